"""What the sessions of a cell say: lengths, nonces, prefixes, turns, and the rows of a dataset."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import UserError
from llmbench.plan.feed import Feed, Session
from llmbench.plan.prompts import load_text, passage
from llmbench.plan.scale import Scale
from llmbench.records import Content, Load

A_WORD_A_TOKEN = Scale(((1, 1),))
NONCE = 4  # words


def feed_of(
    *,
    cell: int = 0,
    salt: str = "run",
    prompt: int = 100,
    output: int = 20,
    rate: str = "",
    scale: Scale = A_WORD_A_TOKEN,
    **content: Any,
) -> Feed:
    load = Load(
        concurrency=1,
        prompt_tokens=prompt,
        output_tokens=output,
        requests=1,
        duration_s=None,
        warmup=0,
        rate=rate,
        content=Content(**content),
    )
    return Feed(load, cell, salt, scale)


def told(feed: Feed, number: int) -> Session:
    session = feed.session(number)
    assert session is not None
    return session


def says(session: Session) -> list[list[tuple[str, str]]]:
    """The messages of each turn."""
    return [[(message.role, message.content) for message in ask.messages] for ask in session.asks]


def prompts_of(feed: Feed, numbers: Iterable[int]) -> list[list[str]]:
    """The words of the first message of each session."""
    return [told(feed, number).asks[0].messages[0].content.split() for number in numbers]


def common(one: list[str], other: list[str]) -> int:
    """How many words two prompts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


# ---- lengths


def test_a_fixed_length() -> None:
    session = told(feed_of(prompt=100, output=20), 7)
    (ask,) = session.asks
    (message,) = ask.messages
    assert message.role == "user"
    words = message.content.split()
    assert all(len(group) == 3 and group.isdecimal() for group in words[:NONCE])
    assert words[NONCE:] == list(load_text()[:100])
    assert (ask.output_tokens, list(session.pauses_s), session.at_s) == (20, [], None)


def test_the_scale_says_how_many_words() -> None:
    (words,) = prompts_of(feed_of(prompt=200, scale=Scale(((75, 100),))), [0])
    assert len(words) == NONCE + 150


def test_the_text_that_was_chosen() -> None:
    (words,) = prompts_of(feed_of(text="code"), [0])
    assert " ".join(words[NONCE:]) == passage(100, "code")


def test_drawn_lengths_lie_where_they_should() -> None:
    feed = feed_of(prompt_lengths="uniform(10,13)", output_lengths="uniform(5,7)")
    sessions = [told(feed, number) for number in range(200)]
    words = {len(session.asks[0].messages[0].content.split()) for session in sessions}
    assert words == {NONCE + length for length in (10, 11, 12, 13)}
    assert {session.asks[0].output_tokens for session in sessions} == {5, 6, 7}


DRAWN = {
    "prompt_lengths": "uniform(10,400)",
    "output_lengths": "lognormal(60,0.5)",
    "think_time": "exponential(2)",
    "turns": 3,
    "seed": 5,
}


@given(st.sets(st.integers(0, 60), min_size=1))
def test_a_session_is_the_same_whichever_others_were_asked_for(numbers: set[int]) -> None:
    whole, some = feed_of(**DRAWN), feed_of(**DRAWN)
    sessions = [whole.session(number) for number in range(61)]
    assert [some.session(number) for number in sorted(numbers)] == [
        sessions[number] for number in sorted(numbers)
    ]


def test_another_process_draws_the_same() -> None:
    code = (
        "import msgspec, test_feed as t;"
        "print(msgspec.json.encode([t.told(t.feed_of(**t.DRAWN), 9)]).decode())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == msgspec.json.encode([told(feed_of(**DRAWN), 9)]).decode()


def test_a_seed_decides_the_lengths_and_a_salt_does_not() -> None:
    def lengths(**changed: Any) -> list[int]:
        return [len(words) for words in prompts_of(feed_of(**(DRAWN | changed)), range(20))]

    assert lengths() == lengths(salt="another") == lengths(cell=3)
    assert lengths() != lengths(seed=6)


def test_what_is_drawn_for_one_session_is_drawn_apart() -> None:
    feed = feed_of(
        prompt_lengths="uniform(1,900)",
        output_lengths="uniform(1,900)",
        think_time="uniform(1,900)",
        turns=3,
    )
    session = told(feed, 0)
    drawn = [
        len(session.asks[0].messages[0].content.split()) - NONCE,
        *(ask.output_tokens for ask in session.asks),
        *session.pauses_s,
    ]
    assert len(set(drawn)) == 6


# ---- nonces and prefixes


def test_no_two_prompts_begin_alike() -> None:
    prompts = [
        tuple(words[:NONCE])
        for salt in ("run", "another")
        for cell in range(3)
        for words in prompts_of(feed_of(cell=cell, salt=salt, prompt=8), range(100))
    ]
    assert len(set(prompts)) == 600


def test_the_prompts_of_a_run_can_be_planned_again() -> None:
    assert prompts_of(feed_of(), range(9)) == prompts_of(feed_of(), range(9))


def test_a_warm_cell_says_one_thing() -> None:
    def said(**where: Any) -> str:
        (one,) = {tuple(words) for words in prompts_of(feed_of(cache="warm", **where), range(5))}
        assert len(one) == NONCE + 100
        assert list(one[NONCE:]) == list(load_text()[:100])
        return " ".join(one[:NONCE])

    assert said() == said()
    assert len({said(cell=0), said(cell=1), said(salt="another")}) == 3


@pytest.mark.parametrize(("share", "shared"), [(0.1, 10), (0.25, 25), (0.504, 50), (0.9, 90)])
def test_a_shared_prefix_is_a_share_of_the_words(share: float, shared: int) -> None:
    prompts = prompts_of(feed_of(shared_prefix=share), range(8))
    assert {len(words) for words in prompts} == {2 * NONCE + 100}
    for one, other in combinations(prompts, 2):
        # the two own nonces may begin with the same group of digits, one time in a thousand
        assert NONCE + shared <= common(one, other) <= NONCE + shared + 1
    own = {tuple(words[NONCE + shared : 2 * NONCE + shared]) for words in prompts}
    assert len(own) == 8
    text = list(load_text()[:100])
    for words in prompts:
        assert words[NONCE : NONCE + shared] + words[2 * NONCE + shared :] == text


def test_two_cells_share_no_prefix() -> None:
    (one,), (other,) = (prompts_of(feed_of(cell=n, shared_prefix=0.5), [0]) for n in (0, 1))
    assert one[:NONCE] != other[:NONCE]


def test_a_prompt_that_is_shared_whole_ends_with_its_own_nonce() -> None:
    one, other = prompts_of(feed_of(shared_prefix=1.0), range(2))
    assert one[:-NONCE] == other[:-NONCE]
    assert len(one) == 2 * NONCE + 100
    assert one[-NONCE:] != other[-NONCE:]


def test_a_share_below_one_word_is_none() -> None:
    one, other = prompts_of(feed_of(shared_prefix=0.004), range(2))
    assert len(one) == NONCE + 100
    assert common(one, other) < NONCE


# ---- turns


VOICE = Path(__file__).parents[1].joinpath("prompts", "voice.txt").read_text("utf-8").splitlines()


def test_a_conversation_goes_on_with_the_voice_text() -> None:
    feed = feed_of(turns=3, prompt=10, output=7)
    for number in (0, 1, 12):
        session = told(feed, number)
        first, second, third = says(session)
        assert len(first[0][1].split()) == NONCE + 10
        # six lines are about one matter; a session begins with its second, and there are sixty
        at = 6 * number % 60 + 1
        assert (second, third) == ([("user", VOICE[at])], [("user", VOICE[at + 1])])
        assert [ask.output_tokens for ask in session.asks] == [7, 7, 7]
        assert list(session.pauses_s) == [0.0, 0.0]


def test_pauses_are_drawn_between_turns() -> None:
    feed = feed_of(turns=4, think_time="uniform(1,3)")
    pauses = [list(told(feed, number).pauses_s) for number in range(50)]
    assert {len(each) for each in pauses} == {3}
    drawn = [pause for each in pauses for pause in each]
    assert len(set(drawn)) == 150
    assert 1 <= min(drawn) < 1.2 < 2.8 < max(drawn) <= 3
    assert list(told(feed_of(turns=3, think_time="500ms"), 0).pauses_s) == [0.5, 0.5]


# ---- datasets

Written = Callable[[str, str], str]


@pytest.fixture
def file(tmp_path: Path) -> Written:
    """Writes a dataset, and says its path."""

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_rows_in_order_and_again_from_the_start(file: Written) -> None:
    path = file("rows.txt", "one\ntwo\nthree\n")
    feed = feed_of(dataset=path, format="text", cache="warm")
    assert [says(told(feed, number)) for number in range(7)] == [
        [[("user", text)]] for text in ("one", "two", "three", "one", "two", "three", "one")
    ]
    assert feed.remark == ""


@given(st.sets(st.integers(0, 20), min_size=1))
def test_a_row_is_the_same_whichever_others_were_asked_for(numbers: set[int]) -> None:
    path = str(Path(__file__).parent / "data" / "datasets" / "good.text.txt")
    content = {"dataset": path, "format": "text", "output_lengths": "uniform(1,99)"}
    whole, some = feed_of(**content), feed_of(**content)
    sessions = [whole.session(number) for number in range(21)]
    assert [some.session(number) for number in sorted(numbers)] == [
        sessions[number] for number in sorted(numbers)
    ]


def test_cold_rows_begin_with_a_nonce_of_their_own(file: Written) -> None:
    path = file("rows.txt", "one\ntwo\n")
    feed = feed_of(dataset=path, format="text")
    said = [words for (words,) in (prompts_of(feed, [number]) for number in range(4))]
    assert [words[NONCE:] for words in said] == [["one"], ["two"], ["one"], ["two"]]
    assert len({tuple(words[:NONCE]) for words in said}) == 4
    assert all(group.isdecimal() for words in said for group in words[:NONCE])
    again = feed_of(dataset=path, format="text", cell=1)
    assert prompts_of(again, [0])[0][:NONCE] != said[0][:NONCE]


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Open?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Until when?"},
    {"role": "assistant", "content": "Nine."},
    {"role": "user", "content": "On Sundays?"},
]


def talk(file: Written, **more: Any) -> str:
    return file("talk.jsonl", json.dumps({"messages": TALK} | more) + "\n")


def test_in_one_turn_a_row_is_sent_as_it_is(file: Written) -> None:
    feed = feed_of(dataset=talk(file), format="openai", cache="warm")
    assert says(told(feed, 0)) == [[(each["role"], each["content"]) for each in TALK]]


def test_the_nonce_stands_in_the_first_message(file: Written) -> None:
    feed = feed_of(dataset=talk(file), format="openai")
    ((first, *rest),) = says(told(feed, 0))
    role, content = first
    assert role == "system"
    assert content.split()[NONCE:] == ["Be", "brief."]
    assert rest == [(each["role"], each["content"]) for each in TALK[1:]]


def test_in_several_turns_the_model_answers_for_itself(file: Written) -> None:
    path = talk(file)
    opening = [("system", "Be brief."), ("user", "Open?")]
    later = [[("user", "Until when?")], [("user", "On Sundays?")]]

    def turns(most: int) -> list[list[tuple[str, str]]]:
        feed = feed_of(dataset=path, format="openai", cache="warm", turns=most, think_time="2")
        session = told(feed, 0)
        assert list(session.pauses_s) == [2.0] * (len(session.asks) - 1)
        return says(session)

    assert turns(3) == [opening, *later]
    assert turns(2) == [opening, later[0]]
    assert turns(9) == [opening, *later]  # it has no more
    cold = told(feed_of(dataset=path, format="openai", turns=3), 0)
    assert says(cold)[1:] == later
    assert says(cold)[0][1:] == opening[1:]


def test_the_length_of_the_reply_is_the_rows_where_it_says_one(file: Written) -> None:
    path = file("rows.csv", "prompt,output_tokens\none,33\ntwo,\n")
    feed = feed_of(dataset=path, format="csv", output=20)
    assert [told(feed, number).asks[0].output_tokens for number in range(4)] == [33, 20, 33, 20]
    drawn = feed_of(dataset=path, format="csv", output_lengths="uniform(100,200)")
    assert told(drawn, 0).asks[0].output_tokens == 33
    assert 100 <= told(drawn, 1).asks[0].output_tokens <= 200


def test_the_length_of_a_row_holds_for_all_its_turns(file: Written) -> None:
    feed = feed_of(dataset=talk(file, max_tokens=40), format="openai", turns=3)
    assert [ask.output_tokens for ask in told(feed, 0).asks] == [40, 40, 40]


def test_columns_by_other_names(file: Written) -> None:
    path = file("faq.csv", "id,question,n\n1,one,5\n")
    columns = {"prompt": "question", "output_tokens": "n"}
    session = told(feed_of(dataset=path, format="csv", columns=columns, cache="warm"), 0)
    assert says(session) == [[("user", "one")]]
    assert session.asks[0].output_tokens == 5


def test_a_row_of_lengths_is_a_synthetic_prompt(file: Written) -> None:
    path = file("rows.csv", "prompt_tokens,output_tokens\n30,3\n50,5\n")
    feed = feed_of(dataset=path, format="csv", text="rag")
    for number, (prompt, reply) in enumerate([(30, 3), (50, 5), (30, 3)]):
        (words,) = prompts_of(feed, [number])
        assert " ".join(words[NONCE:]) == passage(prompt, "rag")
        again = feed_of(dataset=path, format="csv", text="rag")
        assert told(again, number).asks[0].output_tokens == reply


def test_a_trace_that_sets_the_times_ends(file: Written) -> None:
    path = file("rows.csv", "at,prompt\n10,one\n10.5,two\n13,three\n")
    feed = feed_of(dataset=path, format="csv", rate="trace", cache="warm")
    assert [told(feed, number).at_s for number in range(3)] == [0.0, 0.5, 3.0]
    assert feed.session(3) is None
    assert feed.session(4) is None
    # with a rate of its own the same file starts again
    wrapped = feed_of(dataset=path, format="csv", rate="5", cache="warm")
    assert [says(told(wrapped, number))[0][0][1] for number in (2, 3)] == ["three", "one"]


def test_a_broken_row_is_an_error(file: Written) -> None:
    path = file("rows.csv", "prompt,output_tokens\none,5\ntwo,-3\nthree,7\n")
    feed = feed_of(dataset=path, format="csv")
    told(feed, 0)
    with pytest.raises(UserError) as caught:
        feed.session(1)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}, line 3: output_tokens ")
    assert line.endswith("--skip-broken passes over such lines")


def test_skipped_rows_are_told(file: Written) -> None:
    path = file("rows.csv", "prompt,output_tokens\none,5\ntwo,-3\nthree,7\nfour,x\nfive,1\n")
    feed = feed_of(dataset=path, format="csv", skip_broken=True, cache="warm")
    told(feed, 0)
    assert feed.remark == ""
    assert says(told(feed, 1)) == [[("user", "three")]]
    assert feed.remark == "1 row was skipped, such as line 3: output_tokens is negative"
    assert says(told(feed, 2)) == [[("user", "five")]]
    assert feed.remark == "2 rows were skipped, such as line 3: output_tokens is negative"


def test_skipped_rows_are_still_told_when_the_file_has_begun_again(file: Written) -> None:
    path = file("rows.csv", "prompt,output_tokens\none,5\ntwo,-3\n")
    feed = feed_of(dataset=path, format="csv", skip_broken=True, cache="warm")
    for number in range(2):
        assert says(told(feed, number)) == [[("user", "one")]]
    assert feed.remark == "1 row was skipped, such as line 3: output_tokens is negative"


# ---- blocks of 512 tokens

BLOCK = 512


def blocks_of(file: Written, *rows: tuple[int, list[int]]) -> list[list[str]]:
    """The words of the prompts, the nonce left out, of a trace in Mooncake's format."""
    lines = [
        json.dumps({"timestamp": 0, "input_length": n, "output_length": 1, "hash_ids": ids})
        for n, ids in rows
    ]
    path = file("trace.jsonl", "".join(f"{line}\n" for line in lines))
    prompts = prompts_of(feed_of(dataset=path, format="mooncake"), range(len(rows)))
    assert len({tuple(words[:NONCE]) for words in prompts}) == 1
    return [words[NONCE:] for words in prompts]


def test_equal_blocks_are_equal_text_at_the_same_place(file: Written) -> None:
    rows = ((1024, [1, 2]), (1024, [1, 3]), (1024, [4, 2]), (1024, [2, 1]))
    one, same_first, same_second, swapped = blocks_of(file, *rows)
    assert {len(words) for words in (one, same_first, same_second, swapped)} == {1024}
    assert same_first[:BLOCK] == one[:BLOCK]
    assert same_second[BLOCK:] == one[BLOCK:]
    for words, at in ((same_first, BLOCK), (same_second, 0), (swapped, 0), (swapped, BLOCK)):
        assert words[at : at + NONCE] != one[at : at + NONCE]


def test_a_prompt_of_blocks_has_the_words_asked_for(file: Written) -> None:
    rows = ((10, [9]), (512, [1]), (1100, [1, 2, 3]), (5000, list(range(10))))
    assert [len(words) for words in blocks_of(file, *rows)] == [10, 512, 1100, 5000]


@pytest.mark.parametrize("longer", [(1100, [1, 2, 9]), (1536, [1, 2, 9]), (2000, [1, 2, 8, 9])])
def test_prompts_of_other_lengths_share_the_blocks_they_begin_with(
    file: Written, longer: tuple[int, list[int]]
) -> None:
    one, other = blocks_of(file, (1024, [1, 2]), longer)
    assert common(one, other) == 2 * BLOCK


@pytest.mark.parametrize("other", [5 + 10**12, 2**64 - 1])
def test_ids_of_64_bits_differ(file: Written, other: int) -> None:
    one, two = blocks_of(file, (512, [5]), (512, [other]))
    assert one != two


def test_a_trace_without_blocks_shares_nothing(file: Written) -> None:
    line = '{"timestamp": 0, "input_length": 50, "output_length": 1}\n'
    feed = feed_of(dataset=file("trace.jsonl", line * 2), format="mooncake")
    one, other = prompts_of(feed, range(2))
    assert one[:NONCE] != other[:NONCE]
    assert one[NONCE:] == other[NONCE:] == list(load_text()[:50])
