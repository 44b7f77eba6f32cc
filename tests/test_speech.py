"""What one who listens meets: every figure worked out by hand, and stalls by the server's log."""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import Llmbench, content, finish, sse, too_late
from hypothesis import given
from hypothesis import strategies as st

from llmbench.apis import APIS
from llmbench.measure import speech as speaking
from llmbench.measure.sentences import speakable_at, whole_sentence_at, words
from llmbench.measure.speech import Answer, Manner, Speech, fluidity, read, speech, stalls
from llmbench.records import Reads, Trace
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script, schedule_ns

MS = 1_000_000
CHAT = APIS["chat"].decode
FAST = 6_000.0  # words a minute: 10 ms a word


def said(*pieces: tuple[float, str], end_ms: float | None = None, tool_ms: float = 0) -> Answer:
    """An answer whose pieces came at so many ms, over with the last unless told."""
    last_ms = pieces[-1][0] if pieces else 0
    return Answer(
        texts=[text for _, text in pieces],
        at_ns=[round(at_ms * MS) for at_ms, _ in pieces],
        end_ns=round((last_ms if end_ms is None else end_ms) * MS),
        tool_ns=round(tool_ms * MS) or None,
    )


def heard(answer: Answer, failure: str = "", **manner: Any) -> Speech:
    return speech(answer, Manner(**manner), failure)


# ── the end of a sentence ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("Hello there. Go", "Hello there. G"),
        ("Really?! Yes", "Really?! Y"),
        ("It costs 3.14 euros. Yes", "It costs 3.14 euros. Y"),
        ("I use v1.2.3 of it. OK", "I use v1.2.3 of it. O"),
        ("See example.com for it. OK", "See example.com for it. O"),
        ("Dr. Smith is in. Come", "Dr. Smith is in. C"),
        ("J. R. R. Tolkien wrote. Yes", "J. R. R. Tolkien wrote. Y"),
        ("At 5 p.m. today. We", "At 5 p.m. today. W"),
        ('He said "Go." Then', 'He said "Go." T'),
        ("今天天气很好。我们去公园。", "今天天气很好。我"),
        ("「行こう。」と彼は言った。はい。", "「行こう。」と"),
        ("यह एक वाक्य है। दूसरा", "यह एक वाक्य है। द"),
        ("مرحبا؟ كيف", "مرحبا؟ ك"),
        ("ሰላም። እንዴት", "ሰላም። እ"),
        ("1. First item. 2. Second", "1. First item. 2"),
        ("A title\n\nand so on", "A title\n\n"),
    ],
)
def test_a_sentence_is_whole_once_what_follows_shows_it(text: str, whole: str) -> None:
    assert whole_sentence_at(text) == len(whole)


@pytest.mark.parametrize(
    "text", ["", "Hello there.", "Hello there. ", "It costs 3.", "Dr. ", "1. "]
)
def test_an_end_may_not_be_one_yet(text: str) -> None:
    assert whole_sentence_at(text) is None


def test_enough_characters_can_be_spoken_without_an_end() -> None:
    assert speakable_at("  " + "ab " * 20, 50) == 52
    assert speakable_at("ab " * 16, 50) is None  # 48
    assert speakable_at("Yes. " + "ab " * 20, 50) == len("Yes. a")
    assert speakable_at("Yes. No", 6) == 6


def test_words_of_scripts_with_and_without_spaces() -> None:
    starts, worth = words(" The ruler , isn't 3.14 .")
    assert (starts.tolist(), worth.tolist()) == ([1, 5, 13, 19], [1, 1, 1, 1])
    starts, worth = words("我们 go。")
    assert starts.tolist() == [0, 1, 3]
    assert worth.tolist() == pytest.approx([1 / 1.3, 1 / 1.3, 1])
    assert words("สวัสดี")[1].sum() == pytest.approx(4 / 5)  # its vowel marks are no letters


# ── the first speakable chunk ────────────────────────────────────────────────────────────────────


def test_the_event_that_shows_the_end_makes_the_chunk() -> None:
    spoken = heard(said((100, "Yes"), (120, "."), (150, " It"), (170, " is.")))
    assert (spoken.ttsc_s, spoken.first_sentence_s) == (0.15, 0.15)


def test_characters_come_before_the_sentence() -> None:
    spoken = heard(said((100, "one two"), (120, " three four"), (150, " five. Six")), chars=10)
    assert (spoken.ttsc_s, spoken.first_sentence_s) == (0.12, 0.15)


def test_the_end_of_a_short_reply_ends_its_sentence() -> None:
    spoken = heard(said((100, "Yes"), (120, "."), end_ms=125))
    assert (spoken.ttsc_s, spoken.first_sentence_s) == (0.125, 0.125)


def test_a_reply_that_calls_a_tool_reacts_by_that() -> None:
    spoken = heard(said(tool_ms=80))
    assert (spoken.ttsc_s, spoken.first_tool_s, spoken.reaction_s) == (None, 0.08, 0.08)
    both = heard(said((60, "Let me look. I"), tool_ms=80))
    assert (both.ttsc_s, both.first_tool_s, both.reaction_s) == (0.06, 0.08, 0.06)


def test_punctuation_is_not_spoken() -> None:
    assert heard(said((100, "-" * 60))) == Speech()


def test_what_broke_off_says_nothing_and_what_was_cut_off_what_it_showed() -> None:
    answer = said((100, "Yes. It"), (150, " is"))
    assert heard(answer, "truncated") == Speech()
    assert heard(answer, "cancelled") == Speech(ttsc_s=0.1, first_sentence_s=0.1)
    assert heard(said((100, "Yes")), "cancelled") == Speech()


TEXTS = (
    "Dr. No paid 3.14 euros. Then he went home.",
    "今天很好。我们去公园。",
    "So it is, and on it goes",
)


@given(st.sampled_from(TEXTS), st.data())
def test_where_a_text_is_cut_changes_nothing_but_the_event(text: str, data: st.DataObject) -> None:
    """The chunk is there with the event that brings the character which completes it."""
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    edges = [0, *cuts, len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    answer = said(*((10.0 * (number + 1), piece) for number, piece in enumerate(pieces)))
    ends = list(accumulate(map(len, pieces)))
    for chars in (5, 20, 50):
        at = speakable_at(text, chars)
        event = len(pieces) - 1 if at is None else bisect_left(ends, at)
        assert heard(answer, chars=chars).ttsc_s == pytest.approx(0.01 * (event + 1))


# ── stalls ───────────────────────────────────────────────────────────────────────────────────────

# 10 ms a word: due at 100 (first), 110, 120, 130, 140 from the first on. They come 30 and 35 late.
LATE = said(
    (100, "one"), (110, " two"), (150, " three"), (152, " four"), (175, " five."), end_ms=176
)


def test_start_delay_and_stalls_by_hand() -> None:
    """Delays (tᵢ − t₁) − i·10 ms: 0, 0, 30, 22, 35."""
    begun = heard(LATE, words_per_min=FAST, start_delay_s=0.0)
    assert begun.start_delay_s == pytest.approx(0.035)
    # it waits 30 ms for "three"; "four" is there by then; it waits 5 ms more for "five"
    assert (begun.stalls, begun.stalled_s) == (2, pytest.approx(0.035))
    assert begun.longest_pause_s == pytest.approx(0.040)


@pytest.mark.parametrize(
    ("start_s", "count", "total_s"), [(0.02, 2, 0.015), (0.03, 1, 0.005), (0.035, 0, 0), (1, 0, 0)]
)
def test_a_later_start_stalls_less(start_s: float, count: int, total_s: float) -> None:
    begun = heard(LATE, words_per_min=FAST, start_delay_s=start_s)
    assert (begun.stalls, begun.stalled_s) == (count, pytest.approx(total_s))


def test_by_default_the_voice_begins_with_its_chunk() -> None:
    """The reply has no sentence but its end, at 176 ms: 76 ms after the first word."""
    assert heard(LATE, words_per_min=FAST).stalls == 0
    early = heard(LATE, words_per_min=FAST, chars=3)
    assert (early.stalls, early.stalled_s) == (2, pytest.approx(0.035))


def test_no_voice_waits_for_punctuation() -> None:
    answer = said((100, "one"), (110, " two"), (900, "."))
    begun = heard(answer, words_per_min=FAST, start_delay_s=0.0)
    assert (begun.stalls, begun.start_delay_s) == (0, 0)
    assert begun.longest_pause_s == pytest.approx(0.79)


def test_pieces_of_one_word_are_one_wait() -> None:
    answer = said((100, "on"), (110, "e"), (160, "-t"), (200, "wo"), (210, " three"))
    begun = heard(answer, words_per_min=FAST, start_delay_s=0.0)
    assert (begun.stalls, begun.stalled_s) == (1, pytest.approx(0.11 - 0.01))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1), st.integers(0, 60))
def test_stalls_are_those_of_a_voice_played_word_by_word(
    steps: list[tuple[int, int]], start: int
) -> None:
    """Against a loop that plays: 10 units of time a word."""
    at = list(accumulate((step for step, _ in steps), initial=0))
    before = list(accumulate((count for _, count in steps), initial=0))
    delays = speaking.delays_s(
        [(1_000_000_000 * now, float(word)) for now, word in zip(at, before, strict=True)], 0.1
    )
    count, total = stalls(delays, before, float(start))
    clock, played, waited, waits, silent = float(start), 0, 0.0, 0, False
    for now, word in zip(at, before, strict=True):
        clock += 10 * (word - played)
        silent &= word == played
        played = word
        if now > clock:
            waits += not silent
            silent = True
            waited += now - clock
            clock = now
    assert (count, total) == (waits, pytest.approx(waited))
    assert max(delays.max(), start) - start == pytest.approx(total)


# ── deadlines ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("at_ms", "met"),
    [
        ([100, 150, 200], 1.0),  # each just in time
        ([50, 150, 250], 2 / 4),  # 50 early: that serves the second; the third misses two
        ([40, 150, 200], 1.0),
        ([101, 151], 1 / 2),  # the first is late, and the next is due 50 after it
        ([251, 301], 1 / 5),  # 151 late: the first and three deadlines of 50 passed
        ([100, 260, 310], 2 / 5),  # 110 late: 3 misses of 5
    ],
)
def test_fluidity_by_hand(at_ms: list[float], met: float) -> None:
    """The first piece due after 100 ms, each later one 50 ms after the one before it."""
    assert fluidity([round(each * MS) for each in at_ms], 0.1, 0.05) == pytest.approx(met)


def test_the_deadlines_of_a_manner() -> None:
    assert Manner().token_deadline_s == pytest.approx(0.3)  # 150 words/min, 0.75 words a token
    assert Manner(words_per_min=250).token_deadline_s == pytest.approx(0.18)


# ── from what is stored ──────────────────────────────────────────────────────────────────────────


def trace_of(*events: tuple[float, Any], **fields: Any) -> Trace:
    """A reply whose events came in reads of their own, at so many ms after it was sent."""
    parts = [sse(event) for _, event in events]
    columns = [list(accumulate(map(len, parts))), [round(at * MS) for at, _ in events]]
    zeros = array("q", [0] * len(events))
    facts = {"cell": 0, "index": 0, "stream": 0, "phase": "measured", "sent_ns": 0, "end_ns": 1}
    facts |= {"status": 200, "headers": {"content-type": "text/event-stream"}}
    reads = Reads(*(array("q", column) for column in columns), zeros, zeros)
    return Trace(**(facts | {"reads": reads, "body": b"".join(parts)} | fields))


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


def test_only_the_answer_is_spoken() -> None:
    trace = trace_of(
        (10, delta(role="assistant", content="")),
        (20, delta(reasoning_content="Hm. So")),
        (30, content("Yes.")),
        (40, content(" It")),
        (50, delta(tool_calls=[{"index": 0, "function": {"name": "f"}}])),
        (60, finish()),
        (70, "[DONE]"),
    )
    timeline, answer = read(trace, CHAT)
    assert timeline.failure == ""
    assert answer == said((30, "Yes."), (40, " It"), end_ms=60, tool_ms=50)
    assert heard(answer).ttsc_s == 0.04


def test_in_an_open_loop_the_clock_starts_when_it_was_due() -> None:
    trace = trace_of((30, content("Yes.")), (40, finish()), sent_ns=5 * MS, due_ns=2 * MS)
    assert read(trace, CHAT)[1] == said((33, "Yes."), end_ms=43)


def test_a_reply_that_is_no_stream_has_no_answer() -> None:
    trace = trace_of((30, content("Yes.")), status=500)
    timeline, answer = read(trace, CHAT)
    assert (timeline.failure, answer.text, answer.end_ns) == ("http-500", "", None)


# ── on the truth server ──────────────────────────────────────────────────────────────────────────

STALLING: dict[str, Any] = {
    "ttft_ms": 20.0,
    "itl_ms": 10.0,
    "output_tokens": 28,
    "stall_every": 8,
    "stall_ms": 60.0,
}
"""Tokens every 10 ms, and before every eighth of them 60 ms more."""

SLOWER = Manner(words_per_min=5_000.0, start_delay_s=0.0)  # 12 ms a word


def at_times(texts: Sequence[str], times_ns: Sequence[int]) -> Answer:
    return Answer(texts=texts, at_ns=[at - times_ns[0] for at in times_ns], end_ns=10**9)


def test_the_schedule_of_stalls_by_hand() -> None:
    """28 tokens of "The ruler knows its own error , so you can trust what it reads .", of which the
    8th, 16th and 24th come 60 ms late: "so" at 130 ms after the first is spoken 6 words of 12 ms
    after it, and waits 58 ms; "The" at 270 after 13 words, and waits 56; "you" at 410 after 20."""
    text = " The ruler knows its own error , so you can trust what it reads ."
    texts = [f" {word}" for word in (text * 2).split()[:28]]
    planned = at_times(texts, schedule_ns(Script(**STALLING), 28, Random(0)))
    spoken = speech(planned, SLOWER)
    assert (spoken.stalls, spoken.stalled_s) == (3, pytest.approx(0.058 + 0.056 + 0.056))
    assert spoken.longest_pause_s == pytest.approx(0.070)


def test_stalls_equal_the_servers_own_log(
    truth: Callable[..., TruthServer], run_llmbench: Llmbench, run_dir: Path
) -> None:
    server = truth(**STALLING)
    done = run_llmbench(
        *("sweep", "--target", server.url, "--concurrency", "2", "--requests", "6"),
        *("--warmup", "0", "--output-tokens", "28", "--no-calibrate", "--out", run_dir),
    )
    assert done.code in (0, 4), done.err
    replies = {reply.request_id: reply for reply in server.log()}
    traces = [each for each in RunDirectory.open(run_dir).traces() if each.phase == "measured"]
    assert len(traces) == 6
    for trace in traces:
        if too_late(trace):
            continue
        timeline, answer = read(trace, CHAT)
        spoken = speech(answer, SLOWER, timeline.failure)
        expected = speech(at_times(answer.texts, replies[trace.request_id].token_sent_ns), SLOWER)
        assert len(answer.texts) == 28
        for name in ("stalled_s", "start_delay_s", "longest_pause_s"):
            assert getattr(spoken, name) == pytest.approx(getattr(expected, name), abs=1e-3)
        assert spoken.stalls == expected.stalls
