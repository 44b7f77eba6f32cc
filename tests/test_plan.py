"""What is sent: nonces, passages, prompts of a wanted length, and the order of the cells."""

import random
from collections.abc import Callable

import pytest

from llmbench.config import Sweep
from llmbench.plan.grid import grid
from llmbench.plan.prompts import LengthFit, follow_up, load_text, nonce, passage, texts

# ---- nonces


def test_a_nonce_is_four_groups_of_three_digits() -> None:
    for index in range(2000):
        text = nonce("salt", 1, index)
        assert len(text) == 15
        groups = text.split(" ")
        assert [len(group) for group in groups] == [3] * 4
        assert all(group.isascii() and group.isdecimal() for group in groups)


def test_nonces_are_unique() -> None:
    # of 10¹² nonces: even odds of one pair alike only from 1.2 million drawn
    assert len({nonce("a", n // 1000, n % 1000) for n in range(100_000)}) == 100_000


def test_nonces_use_their_whole_space() -> None:
    first = [nonce("a", 0, n).split() for n in range(5000)]
    for group in zip(*first, strict=True):
        assert len(set(group)) > 980  # of 1000, e⁻⁵ of them are missing: 7


def test_a_nonce_is_told_by_run_cell_and_index() -> None:
    assert nonce("a", 1, 2) == nonce("a", 1, 2)
    others = {nonce("b", 1, 2), nonce("a", 2, 1), nonce("a", 12, 0), nonce("a", -1, 2)}
    assert len(others | {nonce("a", 1, 2)}) == 5
    assert nonce("a", 1, 23) != nonce("a", 12, 3)


# ---- passages


def test_a_passage_is_so_many_words() -> None:
    text = load_text()
    assert len(text) > 100
    for words in (0, 1, 7, len(text) - 1, len(text), len(text) + 1, 3 * len(text) + 5):
        assert len(passage(words).split()) == words
    assert passage(5) == " ".join(text[:5])
    assert passage(7).startswith(passage(6))
    assert passage(len(text) + 2) == " ".join([*text, *text[:2]])


def test_a_passage_from_the_middle_on() -> None:
    text = load_text("rag")
    assert passage(5, "rag", 7) == " ".join(text[7:12])
    assert passage(0, "rag", 7) == ""
    end = len(text)
    assert passage(3, "rag", end - 1) == " ".join([text[-1], *text[:2]])
    assert passage(3, "rag", end) == passage(3, "rag", 2 * end) == passage(3, "rag")
    assert passage(end, "rag", 9).split() == [*text[9:], *text[:9]]


def test_the_texts_that_can_be_chosen() -> None:
    assert texts() == ["chat", "code", "lighthouse", "rag", "summary", "voice"]


def test_follow_ups_are_about_one_matter_and_begin_again() -> None:
    assert follow_up(0, 1) != follow_up(0, 2)
    assert follow_up(0, 7) == follow_up(1, 1)  # six lines a matter
    assert follow_up(10, 3) == follow_up(0, 3)  # ten matters


def test_a_text_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"prompts/nothing\.txt"):
        load_text("nothing")


# ---- prompts of a wanted length


def search(wanted: int, count: Callable[[int], int], most: int = 12) -> tuple[int, int, int]:
    """The words and tokens that the search ends with, and how often it asked."""
    fit = LengthFit(wanted)
    for asked in range(most):
        words = fit.guess()
        if words is None:
            return *fit.best, asked
        assert words >= 0
        fit.add(words, count(words))
    return *fit.best, most


class Tokenizer:
    """Counts ``base`` tokens of a template, and each word as ``rate`` on average."""

    def __init__(self, rate: float, base: int, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.totals = [base]
        for _ in range(20_000):
            whole = int(rate) + (rng.random() < rate % 1)
            self.totals.append(self.totals[-1] + whole)

    def __call__(self, words: int) -> int:
        return self.totals[words]


RATES = [0.9, 1.0, 1.3, 1.33, 1.7, 2.0, 2.5]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("base", [0, 8, 30, 100])
@pytest.mark.parametrize("wanted", [128, 512, 1024, 8192])
def test_six_questions_are_enough(rate: float, base: int, wanted: int) -> None:
    tokenizer = Tokenizer(rate, base)
    words, tokens, asked = search(wanted, tokenizer, most=6)
    assert asked <= 6
    assert tokens == tokenizer(words)
    assert abs(tokens - wanted) <= max(0.02 * wanted, 2)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("wanted", [64, 300, 2000])
def test_the_search_ends_with_the_nearest_count(rate: float, wanted: int) -> None:
    tokenizer = Tokenizer(rate, 20, seed=wanted)
    words, tokens, asked = search(wanted, tokenizer, most=40)
    assert asked < 12
    assert abs(tokens - wanted) == min(abs(total - wanted) for total in tokenizer.totals)
    assert tokens == tokenizer(words)


def test_a_first_guess_that_is_right_ends_the_search() -> None:
    fit = LengthFit(100)
    words = fit.guess()
    assert words == 75
    fit.add(words, 100)
    assert fit.guess() is None
    assert fit.best == (75, 100)


def test_the_search_goes_on_while_a_count_is_left_in_between() -> None:
    fit = LengthFit(100)
    for words, tokens in ((10, 95), (13, 105)):
        fit.add(words, tokens)
    assert fit.guess() in (11, 12)
    fit.add(11, 98)
    assert fit.guess() == 12
    fit.add(12, 101)
    assert fit.guess() is None
    assert fit.best == (12, 101)


def test_the_first_question_is_a_cheap_one() -> None:
    assert LengthFit(100_000).guess() == 200
    assert LengthFit(1).guess() == 1


@pytest.mark.parametrize("wanted", [1, 20, 99])
def test_a_template_longer_than_what_is_wanted(wanted: int) -> None:
    words, tokens, asked = search(wanted, Tokenizer(1.3, 100))
    assert (words, tokens) == (0, 100)
    assert asked <= 2


def test_a_template_of_just_what_is_wanted() -> None:
    assert search(100, Tokenizer(1.3, 100))[:2] == (0, 100)


def test_a_server_that_cuts_prompts_short() -> None:
    tokenizer = Tokenizer(1.3, 20)
    words, tokens, asked = search(8192, lambda words: min(tokenizer(words), 4096))
    assert tokens == 4096
    assert words < 8192
    assert asked < 8


@pytest.mark.parametrize("tokens", [1, 50, 500])
def test_a_server_that_counts_the_same_for_everything(tokens: int) -> None:
    words, counted, asked = search(100, lambda _: tokens)
    assert counted == tokens
    assert words <= 75
    assert asked <= 2


# ---- the grid


def test_clients_of_one_load_stand_side_by_side() -> None:
    sweep = Sweep(
        target=["http://a", "http://b"],
        client=["wire", "openai"],
        concurrency=[1, 8],
        prompt_tokens=[64, 512],
        output_tokens=9,
        requests=5,
        warmup=2,
        duration=1.5,
    )
    cells = grid(sweep)
    assert [each.cell for each in cells] == list(range(16))
    places = [(c.target, c.load.prompt_tokens, c.load.concurrency, c.client) for c in cells]
    assert places == [
        (target, length, concurrency, client)
        for target in (0, 1)
        for length in (64, 512)
        for concurrency in (1, 8)
        for client in ("wire", "openai")
    ]
    for each in cells:
        load = each.load
        assert (load.output_tokens, load.requests, load.warmup, load.duration_s) == (9, 5, 2, 1.5)
        assert (each.unmeasured, each.stopped, each.engine, each.dialect) == ("", "", "", "")


def test_the_grid_keeps_the_users_order() -> None:
    cells = grid(Sweep(target=["http://a"], concurrency=[32, 1, 8], prompt_tokens=[9, 3]))
    assert [(c.load.prompt_tokens, c.load.concurrency) for c in cells] == [
        *((9, 32), (9, 1), (9, 8)),
        *((3, 32), (3, 1), (3, 8)),
    ]
