"""A reply as one who listens or reads meets it: pure functions of a stored timeline.

Times are integers of nanoseconds from the request's start: when it was due in an open loop, else
when it was sent. Reasoning is not spoken, and counts for nothing here.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np
from msgspec import Struct

from llmbench.apis.lenient import clean
from llmbench.apis.sse import ServerSentEvent
from llmbench.measure import sentences
from llmbench.measure.statistics import Floats
from llmbench.measure.timeline import decode
from llmbench.records import Event, Kind, Timeline, Trace

SECOND_NS = 1_000_000_000
MINUTE_S = 60.0

ROUNDING_S = 1e-6
"""Waits that are not longer are none."""

WORDS_A_TOKEN = 0.75
"""OpenAI's rule of thumb for English: 100 tokens are about 75 words."""

SPEAKING = 150.0
READING = 250.0
"""Words a minute of English speech and of silent reading (M. Brysbaert, *How many words do we read
per minute?*, Journal of Memory and Language 109, 2019, has 238 to 260 for reading)."""


class Manner(Struct, frozen=True, kw_only=True):
    """How a reply is spoken, or read.

    ``chars`` characters can be spoken before a sentence is whole. ``start_delay_s`` is how long
    after its first word the reply begins to be spoken; ``None``: as soon as a chunk can be.
    ``first_deadline_s`` is when its first piece is due, for the fluidity index.
    """

    chars: int = 50
    words_per_min: float = SPEAKING
    start_delay_s: float | None = None
    first_deadline_s: float = 0.35

    @property
    def words_per_s(self) -> float:
        return self.words_per_min / MINUTE_S

    @property
    def token_deadline_s(self) -> float:
        """The time between two tokens that come as fast as they are spoken."""
        return WORDS_A_TOKEN / self.words_per_s


class Answer(Struct, frozen=True, kw_only=True):
    """What of a reply is spoken: its ``texts`` and when each came. ``end_ns`` is when the reply was
    known to be over, ``None`` where it broke off; ``tool_ns`` when its first tool call began."""

    texts: Sequence[str] = ()
    at_ns: Sequence[int] = ()
    end_ns: int | None = None
    tool_ns: int | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Speech(Struct, frozen=True, kw_only=True):
    """The figures of one reply, in seconds; ``None`` where it has none.

    - ``ttsc_s``: time to the first speakable chunk; ``first_sentence_s``: to the first whole
      sentence. The end of the reply ends both.
    - ``start_delay_s``: B*(r), the least delay after the first word without a stall (``delays_s``).
    - ``stalls`` and ``stalled_s``: how often the voice waited for text, and for how long in all,
      where it began at the manner's start delay.
    - ``longest_pause_s``: the longest time between two pieces of the answer.
    - ``fluidity``: the share of Etalon's deadlines that were met (``fluidity``).
    - ``first_tool_s``: when the first tool call began.

    A reply that broke off has none of them; one that the user cut off has the first two and the
    last, where it lived to see them.
    """

    ttsc_s: float | None = None
    first_sentence_s: float | None = None
    start_delay_s: float | None = None
    stalls: int | None = None
    stalled_s: float | None = None
    longest_pause_s: float | None = None
    fluidity: float | None = None
    first_tool_s: float | None = None

    @property
    def reaction_s(self) -> float | None:
        """When the reply did something: it can be spoken or, without a text, calls a tool."""
        return self.first_tool_s if self.ttsc_s is None else self.ttsc_s


Decode = Callable[[Sequence[ServerSentEvent]], list[Event]]


def read(trace: Trace, decode_events: Decode) -> tuple[Timeline, Answer]:
    """Decode ``trace`` once: its timeline, and what of it is spoken.

    An event has come with the read that holds its last byte: where a read completes several, the
    earlier ones may be older than this by up to the read's slack.
    """
    decoded: list[tuple[int, Event]] = []

    def remember(events: Sequence[ServerSentEvent]) -> list[Event]:
        told = decode_events(events)
        decoded.extend((end, each) for (end, _, _), each in zip(events, told, strict=True))
        return told

    timeline = decode(trace, remember)
    late_ns = 0 if trace.due_ns is None else trace.sent_ns - trace.due_ns
    reads = np.searchsorted(np.asarray(trace.reads.end), [end for end, _ in decoded]).tolist()
    times = [trace.reads.at_ns[each] + late_ns for each in reads]
    told = [(at_ns, event) for at_ns, (_, event) in zip(times, decoded, strict=True)]
    answers = [(at_ns, clean(event.answer)) for at_ns, event in told if event.kind & Kind.ANSWER]
    return timeline, Answer(
        texts=[text for _, text in answers],
        at_ns=[at_ns for at_ns, _ in answers],
        end_ns=_first(told, Kind.FINISH | Kind.DONE),
        tool_ns=_first(told, Kind.TOOL),
    )


def _first(told: Sequence[tuple[int, Event]], kind: int) -> int | None:
    return next((at_ns for at_ns, event in told if event.kind & kind), None)


def speech(answer: Answer, manner: Manner, failure: str = "") -> Speech:
    """The figures of a reply; ``failure`` is its timeline's."""
    if failure not in ("", "cancelled"):
        return Speech()
    text = answer.text
    if not sentences.is_speakable(text):
        return Speech(first_tool_s=_seconds(answer.tool_ns))
    over_ns = None if failure else answer.end_ns
    first = Speech(
        ttsc_s=_seconds(_came(answer, sentences.speakable_at(text, manner.chars), over_ns)),
        first_sentence_s=_seconds(_came(answer, sentences.whole_sentence_at(text), over_ns)),
        first_tool_s=_seconds(answer.tool_ns),
    )
    if failure or first.ttsc_s is None:
        return first
    return _with_stalls(first, answer, manner)


def _with_stalls(first: Speech, answer: Answer, manner: Manner) -> Speech:
    heard = spoken_pieces(answer)
    at_ns = [at for at, _ in heard]
    delays = delays_s(heard, manner.words_per_s)
    start_s = manner.start_delay_s
    if start_s is None:
        assert first.ttsc_s is not None
        start_s = max(first.ttsc_s - at_ns[0] / SECOND_NS, 0.0)
    count, total_s = stalls(delays, [before for _, before in heard], start_s)
    return Speech(
        ttsc_s=first.ttsc_s,
        first_sentence_s=first.first_sentence_s,
        first_tool_s=first.first_tool_s,
        start_delay_s=max(float(delays.max()), 0.0),
        stalls=count,
        stalled_s=total_s,
        longest_pause_s=max((b - a for a, b in pairwise(answer.at_ns)), default=0) / SECOND_NS,
        fluidity=fluidity(answer.at_ns, manner.first_deadline_s, manner.token_deadline_s),
    )


def _came(answer: Answer, chars: int | None, over_ns: int | None) -> int | None:
    """When ``chars`` characters of the answer had come; without such, when it was over."""
    if chars is None:
        return over_ns
    lengths = list(accumulate(map(len, answer.texts)))
    return answer.at_ns[int(np.searchsorted(lengths, chars))]


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / SECOND_NS


# ---- stalls


def spoken_pieces(answer: Answer) -> list[tuple[int, float]]:
    """When each piece of the answer came that has a letter or a digit, and how many words had begun
    before it. Blanks and punctuation make no voice wait."""
    starts, worth = sentences.words(answer.text)
    begun = np.concatenate(([0.0], np.cumsum(worth)))
    pieces, position = [], 0
    for text, at_ns in zip(answer.texts, answer.at_ns, strict=True):
        if sentences.is_speakable(text):
            before = float(begun[np.searchsorted(starts, position)])
            pieces.append((at_ns, before))
        position += len(text)
    return pieces


def delays_s(pieces: Sequence[tuple[int, float]], words_per_s: float) -> Floats:
    """How long after the first piece the voice must begin not to wait for each: (tᵢ − t₁) − i/r,
    with i words before the piece at rate r. The greatest of them is B*(r), the least start delay
    without a stall: what a playout buffer must hold in advance."""
    at_s = np.array([at_ns - pieces[0][0] for at_ns, _ in pieces]) / SECOND_NS
    return np.asarray(at_s - np.array([before for _, before in pieces]) / words_per_s)


def stalls(delays: Floats, words_before: Sequence[float], start_s: float) -> tuple[int, float]:
    """How often a voice that begins ``start_s`` after the first piece waits, and for how long.

    It waits at each piece whose delay exceeds the start and all the waits before it, by as much as
    it does. Pieces between which no word begins are one wait.
    """
    lag_s, count, waited_at = start_s, 0, -1.0
    for delay_s, before in zip(delays.tolist(), words_before, strict=True):
        if delay_s > lag_s + ROUNDING_S:
            lag_s = delay_s
            count += before != waited_at
            waited_at = before
    return count, lag_s - start_s


# ---- deadlines


def fluidity(at_ns: Sequence[int], first_deadline_s: float, token_deadline_s: float) -> float:
    """The fluidity index: the share of deadlines that were met.

    A. Agrawal et al., *Etalon: Holistic Performance Evaluation Framework for LLM Inference
    Systems*, arXiv 2407.07000, §4.1, algorithm 1, as their published code has it: a piece is due
    ``token_deadline_s`` after the one before it, the first ``first_deadline_s`` after the start.
    What comes early adds to the slack of all that follow. A late one misses as many deadlines as
    passed while it was waited for, and the count begins anew at it, without slack.
    """
    first_ns, token_ns = round(first_deadline_s * SECOND_NS), round(token_deadline_s * SECOND_NS)
    due = missed = slack_ns = last_ns = 0
    for index, now_ns in enumerate(at_ns):
        allowed_ns = (token_ns if index else first_ns) + slack_ns
        over_ns = now_ns - last_ns - allowed_ns
        last_ns = now_ns
        if over_ns <= 0:
            slack_ns = -over_ns
            due += 1
            continue
        misses = 1 + over_ns // token_ns
        slack_ns = 0
        missed += misses
        due += misses
    return 1 - missed / due if due else 1.0
