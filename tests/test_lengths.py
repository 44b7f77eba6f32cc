"""Lengths and pauses: their grammar, and the draws against the moments of their distributions."""

import random
from collections import Counter
from itertools import pairwise
from statistics import fmean, median, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import UserError
from llmbench.plan.lengths import (
    Law,
    Length,
    Seconds,
    draws,
    read_length,
    read_lengths,
    read_pair,
    read_seconds,
)

DRAWS = 20_000


def drawn(text: str, seed: int = 1) -> list[int]:
    length = read_length(text)
    return [draws(length, seed, index) for index in range(DRAWS)]


# ---- the grammar of lengths


@pytest.mark.parametrize(
    ("text", "canonical", "fixed", "mean"),
    [
        ("128", "128", 128, 128),
        (" 0128 ", "128", 128, 128),
        ("1", "1", 1, 1),
        ("normal(512,128)", "normal(512,128)", None, 512),
        ("normal( 512.5 , 1e1 )", "normal(512.5,10)", None, 513),
        ("normal(512,128,1,2048)", "normal(512,128,1,2048)", None, 512),
        ("normal(512,128,512,513)", "normal(512,128,512,513)", None, 512),
        ("uniform(16,256)", "uniform(16,256)", None, 136),
        ("uniform(7,7)", "uniform(7,7)", None, 7),
        ("uniform(10,20,30,40)", "uniform(10,20,30,40)", None, 30),
        # 256 e^(1/8) = 290.08
        ("lognormal(256,0.5)", "lognormal(256,0.5)", None, 290),
        ("lognormal(256,0.5,256,256)", "lognormal(256,0.5,256,256)", None, 256),
    ],
)
def test_lengths(text: str, canonical: str, fixed: int | None, mean: int) -> None:
    length = read_length(text)
    assert str(length) == canonical
    assert length.fixed == fixed
    assert length.mean == mean
    assert read_length(canonical) == length


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no length; write 128, normal(512,128)"),
        ("long", "'long' is no length"),
        ("128 64", "is no length"),
        ("fixed(5)", "is no length"),
        ("gamma(2,3)", "is no length"),
        ("exponential(2)", "is no length"),
        ("normal(1,2", "is no length"),
        ("normal(,2)", "is no length"),
        ("nan", "is no length"),
        ("1\r\n2", "'1??2' is no length"),
        ("normal", "write normal(mean,sd), with two numbers more to clip it"),
        ("normal(5)", "write normal(mean,sd)"),
        ("lognormal(5,1,2)", "write lognormal(median,sigma)"),
        ("uniform(1,2,3,4,5)", "write uniform(low,high)"),
        ("0", "the value is 0; write one from 1 to 1000000000"),
        ("-5", "the value is -5; write one from 1"),
        ("1e99", "write one from 1 to 1000000000"),
        ("1.5", "1.5 is not a whole number"),
        ("uniform(1,2.5)", "2.5 is not a whole number"),
        ("normal(5,1,0,9)", "the lower clip is 0; write one from 1"),
        ("normal(5,1,1,9.5)", "9.5 is not a whole number"),
        ("normal(0,1)", "the mean is 0; write one from 1"),
        ("normal(5,0)", "the sd is 0; write one from 1e-06"),
        ("lognormal(5,11)", "the sigma is 11; write one from 1e-06 to 10"),
        ("uniform(9,3)", "9 is above 3; write the lower number first"),
        ("normal(5,1,9,3)", "9 is above 3; write the lower number first"),
        ("7" * 5000, "write one from 1 to 1000000000"),
    ],
)
def test_what_is_no_length(text: str, words: str) -> None:
    with pytest.raises(UserError, match=r"^--output-tokens: ") as caught:
        read_length(text, "--output-tokens")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 240


def test_pairs() -> None:
    assert read_pair("128") == (read_length("128"), None)
    assert read_pair("normal(512,128):uniform(16,256)") == (
        read_length("normal(512,128)"),
        read_length("uniform(16,256)"),
    )
    for text in ("128:", ":64", "128:64:32"):
        with pytest.raises(UserError, match="is no length"):
            read_pair(text)


def test_lists_are_split_outside_of_parentheses() -> None:
    pairs = read_lengths("128, 1024,normal(512,128):64 ,64:uniform(1,5)")
    written = [(str(prompt), str(output)) for prompt, output in pairs]
    assert written == [
        ("128", "None"),
        ("1024", "None"),
        ("normal(512,128)", "64"),
        ("64", "uniform(1,5)"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("128,,64", "'' is no length"),
        ("128,", "'' is no length"),
        ("normal(1,2,3", "'normal(1' is no length"),
        ("1,2)", "is no length"),
        ("128,64:8,128", "128 stands there twice"),
        ("uniform(1,5),uniform(1, 5)", "uniform(1, 5) stands there twice"),
    ],
)
def test_what_is_no_list_of_lengths(text: str, words: str) -> None:
    with pytest.raises(UserError, match=r"^--prompt-tokens: ") as caught:
        read_lengths(text)
    assert words in str(caught.value)


whole = st.integers(1, 10**9).map(float)
fraction = st.floats(1.0, 1e9)
ordered = st.tuples(whole, whole).map(lambda ends: (min(ends), max(ends)))
clips = st.one_of(st.none(), ordered)
laws = st.one_of(
    whole.map(lambda value: Law("fixed", (value,))),
    st.builds(Law, st.just("normal"), st.tuples(fraction, st.floats(1e-6, 1e9)), clips),
    st.builds(Law, st.just("uniform"), ordered, clips),
    st.builds(Law, st.just("lognormal"), st.tuples(fraction, st.floats(1e-6, 10)), clips),
)


@given(laws, st.integers(), st.integers(0))
def test_lengths_read_as_they_are_written(law: Law, seed: int, index: int) -> None:
    length = Length(law)
    assert read_length(str(length)) == length
    low, high = law.clip or (1, 10**9)
    assert low <= draws(length, seed, index) <= high
    assert low <= length.mean <= high
    assert Seconds(law).draws(seed, index) >= 0


@given(laws, laws)
def test_pairs_read_as_they_are_written(prompt: Law, output: Law) -> None:
    assert read_lengths(f"{prompt}:{output}") == [(Length(prompt), Length(output))]


GRAMMAR = st.text("0123456789.,():+-eEms aflnorstui", max_size=24)


@given(st.one_of(st.text(), GRAMMAR, laws.map(lambda law: f"{law}0")))
def test_garbage_is_a_user_error(text: str) -> None:
    for read in (read_length, read_lengths, read_seconds):
        message = ""
        try:
            read(text)
        except UserError as error:
            message = str(error)
        assert len(message.splitlines()) <= 1


# ---- draws


def test_a_fixed_length_is_always_that() -> None:
    assert set(drawn("128")) == {128}


def test_moments_of_a_normal_length() -> None:
    lengths = drawn("normal(512,128)")
    assert fmean(lengths) == pytest.approx(512, abs=4)
    assert stdev(lengths) == pytest.approx(128, rel=0.03)
    assert min(lengths) >= 1


def test_moments_of_a_lognormal_length() -> None:
    lengths = drawn("lognormal(256,0.5)")
    assert median(lengths) == pytest.approx(256, rel=0.03)
    assert fmean(lengths) == pytest.approx(256 * 1.1331, rel=0.03)  # e^(σ²/2)


def test_a_uniform_length_takes_each_number_as_often() -> None:
    counts = Counter(drawn("uniform(3,12)"))
    assert sorted(counts) == list(range(3, 13))
    assert all(abs(count - DRAWS / 10) < 5 * (DRAWS / 10) ** 0.5 for count in counts.values())


def test_uniform_lengths_do_not_leave_their_ends() -> None:
    low, high = 999_999_990, 999_999_999
    length = read_length(f"uniform({low},{high})")
    assert length.at(2**-53) == low
    assert length.at(1 - 2**-53) == high


def test_clipping_moves_what_is_outside_to_the_ends() -> None:
    counts = Counter(drawn("normal(100,10,90,110)"))
    assert min(counts) == 90
    assert max(counts) == 110
    # 0.171 below 90.5, where it is rounded to 90, and as many above 109.5
    assert counts[90] / DRAWS == pytest.approx(0.171, abs=0.015)
    assert counts[110] / DRAWS == pytest.approx(0.171, abs=0.015)


def test_no_length_is_below_one() -> None:
    lengths = drawn("normal(1,50)")
    assert min(lengths) == 1
    # E max(X, 1) of a normal X about 1 is 1 + 50/√(2π)
    assert read_length("normal(1,50)").mean == 21
    assert fmean(lengths) == pytest.approx(20.9, rel=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "normal(512,400,100,600)",
        "normal(10,100)",
        "uniform(1,100,40,60)",
        "lognormal(256,1.5,50,1000)",
        "lognormal(256,1)",
    ],
)
def test_the_mean_is_that_of_the_draws(text: str) -> None:
    length = read_length(text)
    # evenly spread chances instead of drawn ones: next to no error of sampling
    even = fmean(length.at((n + 0.5) / 100_000) for n in range(100_000))
    assert even == pytest.approx(length.mean, abs=0.6)


def test_longer_lengths_have_greater_chances() -> None:
    for text in ("normal(50,20)", "uniform(1,9)", "lognormal(20,1)"):
        lengths = [read_length(text).at((n + 0.5) / 500) for n in range(500)]
        assert all(shorter <= longer for shorter, longer in pairwise(lengths))


def test_draws_are_told_by_seed_and_index() -> None:
    length = read_length("uniform(1,1000000000)")
    assert draws(length, 7, 3) == draws(read_length(str(length)), 7, 3)
    others = {draws(length, seed, index) for seed in range(30) for index in range(30)}
    assert len(others) == 900
    assert draws(length, "7/output", 3) != draws(length, "7/prompt", 3)
    assert draws(length, 1, 11) != draws(length, 11, 1)


def test_draws_of_the_same_request_are_not_alike() -> None:
    length = read_length("normal(1000,1)")
    prompts = [draws(length, "7/prompt", index) for index in range(2000)]
    outputs = [draws(length, "7/output", index) for index in range(2000)]
    same = sum(a == b for a, b in zip(prompts, outputs, strict=True))
    assert same < 1000  # of a spread of one token, about 0.27 by chance


def test_draws_from_a_generator() -> None:
    length = read_length("normal(512,128)")
    first, second = random.Random(3), random.Random(3)
    lengths = [length.draw(first) for _ in range(5000)]
    assert lengths == [length.draw(second) for _ in range(5000)]
    assert fmean(lengths) == pytest.approx(512, abs=8)


# ---- seconds


@pytest.mark.parametrize(
    ("text", "canonical", "fixed", "mean"),
    [
        ("2", "2", 2.0, 2.0),
        ("0", "0", 0.0, 0.0),
        ("1.5s", "1.5", 1.5, 1.5),
        (" 500 ms ", "0.5", 0.5, 0.5),
        ("normal(2,0.5)", "normal(2,0.5)", None, 2.00001),
        ("uniform(0,3)", "uniform(0,3)", None, 1.5),
        ("lognormal(2,0.5)", "lognormal(2,0.5)", None, 2.2663),
        ("exponential(2)", "exponential(2)", None, 2.0),
        # 2 (1 - e⁻¹), the lesser of it and 2
        ("exponential(2,0,2)", "exponential(2,0,2)", None, 1.26424),
    ],
)
def test_seconds(text: str, canonical: str, fixed: float | None, mean: float) -> None:
    seconds = read_seconds(text)
    assert str(seconds) == canonical
    assert seconds.fixed == fixed
    assert seconds.mean == pytest.approx(mean, rel=1e-4)
    assert read_seconds(canonical) == seconds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no time; write 2, 1.5s, 500ms, normal(2,0.5)"),
        ("2m", "is no time"),
        ("normal(500ms,1)", "is no time"),
        ("-1s", "the value is -1; write one from 0"),
        ("exponential(0)", "the mean is 0; write one from 1e-06"),
        ("exponential(1,2)", "write exponential(mean), with two numbers more"),
        ("9999999", "write one from 0 to 1000000"),
        ("1e999s", "write one from 0 to 1000000"),
    ],
)
def test_what_is_no_time(text: str, words: str) -> None:
    with pytest.raises(UserError, match=r"^--think-time: ") as caught:
        read_seconds(text)
    assert words in str(caught.value)


@given(st.floats(0, 1e6))
def test_seconds_read_as_they_are_written(value: float) -> None:
    seconds = Seconds(Law("fixed", (value,)))
    assert read_seconds(str(seconds)) == seconds


def test_moments_of_seconds() -> None:
    for text, mean, deviation in (
        ("normal(2,0.5)", 2, 0.5),
        ("uniform(1,3)", 2, 2 / 12**0.5),
        ("exponential(2)", 2, 2),
    ):
        seconds = read_seconds(text)
        pauses_s = [seconds.draws(5, index) for index in range(DRAWS)]
        assert fmean(pauses_s) == pytest.approx(mean, rel=0.03)
        assert stdev(pauses_s) == pytest.approx(deviation, rel=0.04)
        assert min(pauses_s) >= 0
        assert fmean(seconds.draw(random.Random(n)) for n in range(2000)) == pytest.approx(
            mean, rel=0.1
        )


def test_no_pause_is_below_zero() -> None:
    seconds = read_seconds("normal(1,5)")
    pauses_s = [seconds.draws("x", index) for index in range(2000)]
    assert min(pauses_s) == 0
    assert fmean(pauses_s) == pytest.approx(seconds.mean, rel=0.1)
