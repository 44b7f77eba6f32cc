"""Trace → Timeline: what the bytes of a reply say, and when each of its events had arrived."""

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from http import HTTPStatus
from itertools import pairwise
from typing import Any

from llmbench.apis import bodies, lenient, sse
from llmbench.apis.chunks import MALFORMED, QUOTED_CHARS, error_message
from llmbench.measure.early import heard
from llmbench.measure.usage import hidden_tokens, is_cumulative, running_sum, usage_of
from llmbench.records import TOO_LARGE, Event, Integers, Kind, Timeline, Trace, Usage

_GENERATED, _ANSWER, _REASONING = Kind.GENERATED, Kind.ANSWER, Kind.REASONING
_RARE = Kind.FINISH | Kind.ERROR
"""Looked up for every event."""

CANCELLED = "cancelled"
"""The kind of what was cut off in flight when its cell was over, which is nobody's failure."""

BARGE_IN = "barge-in"
"""How a reply finished that its user cut off."""

_ENDED_BADLY = re.compile(
    "abort|error|fail|cancel|filter|safety|sensitive|insufficient|exhaust|overload|unavailable"
    "|time_?d?_?out|refus|prohibit|blocked|blocklist|denied|guardrail|moderat|violat|recitation|spii"
    "|malformed|unexpected|exception|interrupt|network|connect|reject|preempt|evict|kill|crash"
    "|shut_?down|out_of_memory|^oom$|rate_?limit|throttl|quota|(?:not|un)_?finished|^other$"
)
"""Of finish reasons, in whatever words: there is no telling what the rest would have been."""

_KIND = re.compile(r"[\w.-]{1,40}")
"""What can be the name of a kind of failure."""

_SINGLE_LINES = re.compile(rb"[}\]]\r?\ndata: ?\{")
"""Between events that no blank line parts."""

QUOTABLE_BYTES = 4096


def decode(
    trace: Trace, decode_events: Callable[[Sequence[sse.ServerSentEvent]], list[Event]]
) -> Timeline:
    """Decode ``trace`` with its API's ``decode_events``.

    A content event is one that brings generated tokens: an answer's, reasoning's or a tool call's.
    Role-only, usage and finish events, comments and ``[DONE]`` are not. An event has arrived with
    the read that holds its last byte; where a read completes several content events, its stamp is
    that of the last one, and the others may be older by up to the read's slack.
    """
    events = _events(trace)
    if events is None:
        failure, detail = _failed_without_a_stream(trace)
        return Timeline(
            at_ns=array("q"), slack_ns=array("q"), lag_ns=array("q"), failure=failure, detail=detail
        )
    reads = trace.reads
    if trace.cut_ns is not None:
        events = [event for event in events if event[0] <= len(heard(trace))]
    ends = reads.end
    read_of = [bisect_left(ends, end) for end, _, _ in events]
    told = decode_events(events)
    content: list[int] = []  # the content events' reads
    running = array("q")  # tokens so far, at each of them
    first_answer_ns = None
    stated: list[Usage] = []
    finish, ending, timings, error = "", "", None, ""
    chars = seen = ids = counted = thoughts = thought_chars = 0
    for read, event in zip(read_of, told, strict=True):
        kind = event.kind
        seen |= kind
        if event.usage is not None:
            stated.append(event.usage)
            counted = event.usage.completion_tokens or counted
        if event.tokens is not None:
            ids += event.tokens
        if kind & _GENERATED:
            if first_answer_ns is None and kind & _ANSWER:
                first_answer_ns = reads.at_ns[read]
            content.append(read)
            running.append(ids or counted)
            chars += len(event.text)
            if kind & _REASONING:
                thoughts += 1
                thought_chars += event.thought or len(event.text)
        if kind & _RARE:
            finish, error = event.finish or finish, error or event.error
            ending = event.ending or ending
        if event.timings:
            timings = event.timings
    cumulative = bool(ids) or is_cumulative(running, len(content), chars)
    usage = usage_of(stated, cumulative=cumulative)
    if not cumulative:
        running = running_sum(told)
    if trace.cut_ns is None:
        error = error or _last_words(trace, seen, events)
        failure, detail = _failed(trace, events, seen, error, finish, ending)
        if not failure:
            failure, detail = _short(trace, ids or usage.completion_tokens, len(content), finish)
    else:
        failure, detail, finish = ("stream-error" if error else ""), error, BARGE_IN
    return Timeline(
        first_event_ns=next(
            (reads.at_ns[read] for read, event in zip(read_of, events, strict=True) if event[1]),
            None,
        ),
        first_answer_ns=first_answer_ns,
        at_ns=_at(content, reads.at_ns),
        slack_ns=_slack(content, reads.slack_ns),
        lag_ns=_at(content, reads.lag_ns),
        running_tokens=running if _counts(running) else None,
        token_ids=ids or None,
        hidden_tokens=0
        if ids
        else hidden_tokens(
            usage,
            len(content),
            chars,
            thoughts,
            thought_chars,
            unclear=bool(seen & Kind.TOOL) or _counts(running),
        ),
        chars=chars,
        head_chars=next((len(event.text) for event in told if event.kind & _GENERATED), 0),
        usage=usage,
        finish=finish,
        stages_ms=_stages_ms(timings or {}),
        failure=failure,
        detail=detail,
    )


_STAGES = {
    "tokenize_ms": "tokenize",
    "queue_ms": "queue",
    "prompt_ms": "prefill",
    "predicted_ms": "decode",
}


def _stages_ms(timings: dict[str, Any]) -> dict[str, float]:
    """The stages that ``timings`` knows of, by our names for them."""
    return {
        stage: float(timings[name])
        for name, stage in _STAGES.items()
        if isinstance(timings.get(name), int | float)
    }


def _slack(content: Sequence[int], slack_ns: Integers) -> Integers:
    """The slack of each event, 0 for the last one of its read."""
    if len(set(content)) == len(content):
        return array("q", bytes(8 * len(content)))
    shared = [read == after for read, after in pairwise([*content, -1])]
    return array("q", [slack_ns[read] * its for read, its in zip(content, shared, strict=True)])


def _at(reads: Sequence[int], column: Integers) -> Integers:
    return array("q", [column[read] for read in reads])


def _counts(running: Integers) -> bool:
    """Whether the server kept a running count, from the first content event on. One that stands
    still through all of them is none."""
    if not running or running[0] <= 0 or running[-1] < len(running):
        return False
    return len(running) == 1 or running[0] != running[-1]


def _events(trace: Trace) -> list[sse.ServerSentEvent] | None:
    """The events of the reply; ``None`` where it is no stream of them."""
    headers = trace.headers
    encoded = headers.get("content-encoding", "identity").lower() != "identity"
    if trace.status != HTTPStatus.OK:
        return None
    return bodies.events(trace.body, "" if encoded else headers.get("content-type", ""))


def _failed_without_a_stream(trace: Trace) -> tuple[str, str]:
    """The kind of failure and its words, for a reply that never became an event stream."""
    if trace.error:
        return trace.error, trace.detail
    if trace.status != HTTPStatus.OK:
        detail = error_message(trace.body)
        if retry_after := trace.headers.get("retry-after"):
            detail += f" (Retry-After: {retry_after})"
        return f"http-{trace.status}", detail
    if words := _error_in(trace.body):
        return "stream-error", words
    content_type = trace.headers.get("content-type", "of no stated type")
    if encoding := trace.headers.get("content-encoding"):
        content_type = f"{encoding}-encoded {content_type}"
    words = "" if encoding else _quoted(trace.body)
    if bodies.is_page(trace.body):
        words = f"; it is {bodies.PAGE}"
    return "not-a-stream", f"the reply is {content_type}, not text/event-stream{words}"


def _quoted(body: bytes) -> str:
    """What is to be said of a ``body`` that nobody could read: what it says itself."""
    words = error_message(body[:QUOTABLE_BYTES])
    return f": {words[:QUOTED_CHARS]}" if words else ""


def _error_in(body: bytes) -> str:
    """What went wrong, by a ``body`` that is a JSON error and no event; else nothing."""
    if not body.lstrip().startswith((b"{", b"[")):
        return ""
    try:
        found, _ = lenient.documents(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return ""
    return error_message(body) if any(map(lenient.states_error, found)) else ""


def _last_words(trace: Trace, seen: int, events: Sequence[sse.ServerSentEvent]) -> str:
    """The error that stands in no event, at the end of a reply that did not end well."""
    if trace.error == TOO_LARGE or (seen & (Kind.DONE | Kind.FINISH) and not trace.error):
        return ""
    return _error_in(sse.rest(trace.body, events))


def _failed(
    trace: Trace,
    events: Sequence[sse.ServerSentEvent],
    seen: int,
    error: str,
    finish: str,
    ending: str,
) -> tuple[str, str]:
    """The kind of failure of an event stream and its words; both empty for a good one."""
    if error and trace.error != TOO_LARGE:
        return ("malformed" if error.startswith(MALFORMED) else "stream-error"), error
    if trace.error:
        return trace.error, trace.detail
    if not seen & (Kind.DONE | Kind.FINISH):
        return "truncated", "the stream ended without a finish reason or [DONE]" + _rest(
            trace.body, events, seen
        )
    said = f"the reply ended with finish_reason '{finish}'" + (f" ({ending})" if ending else "")
    if _is_bad(finish):
        kind = finish.lower() if _KIND.fullmatch(finish) else "error"
        return ("abort" if kind == CANCELLED else kind), said
    if _is_bad(ending):
        return "error", said
    if not seen & Kind.GENERATED:
        return "empty", "the reply has no generated tokens" + (
            ", and reached its limit: all of it is reasoning that is not streamed, so ask for more "
            "--output-tokens, or for less --reasoning-effort"
            if finish == "length"
            else ""
        )
    return "", ""


def _rest(body: bytes, events: Sequence[sse.ServerSentEvent], seen: int) -> str:
    """What is to be said of a ``body`` that breaks off after its ``events``."""
    if not events and _SINGLE_LINES.search(body):
        return ": no blank lines part its events, and a client that keeps to the standard sees none"
    if not seen:
        return _quoted(body)
    left = sse.rest(body, events)
    is_cut = b" " not in left or left.startswith((b"{", b"[", b":", b"event:"))
    return "" if is_cut else _quoted(left)


def _is_bad(reason: str) -> bool:
    return _ENDED_BADLY.search(reason.lower()) is not None


def _short(trace: Trace, tokens: int | None, events: int, finish: str) -> tuple[str, str]:
    """The failure of a reply with fewer ``tokens`` than its server was to keep to. As many events
    as that are no short reply: tokens are split, or miscounted. Where none are counted, a reply is
    one that says it stopped by itself."""
    if max(tokens or 0, events) >= trace.exact_tokens or (tokens is None and finish != "stop"):
        return "", ""
    after = f"{events} events" if tokens is None else f"{tokens}"
    return "short", (
        f"the reply stopped after {after} of {trace.exact_tokens} tokens (finish_reason "
        f"'{finish}'), though the server takes ignore_eos; --natural-stops measures replies as "
        "they end"
    )
