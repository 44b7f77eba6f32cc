"""Trace → Timeline: what the bytes of a reply say, and when each of its events had arrived."""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from http import HTTPStatus
from itertools import pairwise
from typing import Any

from llmbench.apis import bodies, sse
from llmbench.apis.chunks import MALFORMED, error_message
from llmbench.measure.early import heard
from llmbench.records import TOO_LARGE, Event, Integers, Kind, Timeline, Trace, Usage

_GENERATED, _ANSWER, _RARE = Kind.GENERATED, Kind.ANSWER, Kind.FINISH | Kind.ERROR
"""Looked up for every event."""

BARGE_IN = "barge-in"
"""How a reply finished that its user cut off."""


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
    content: list[int] = []  # the content events' reads
    running = array("q")  # tokens so far, at each of them
    first_answer_ns = None
    usage, finish, timings, error = Usage(), "", None, ""
    chars = seen = ids = counted = 0
    for read, event in zip(read_of, decode_events(events), strict=True):
        kind = event.kind
        seen |= kind
        if event.usage is not None:
            usage = event.usage
            counted = usage.completion_tokens or 0
        if event.tokens is not None:
            ids += event.tokens
        if kind & _GENERATED:
            if first_answer_ns is None and kind & _ANSWER:
                first_answer_ns = reads.at_ns[read]
            content.append(read)
            running.append(ids or counted)
            chars += len(event.text)
        if kind & _RARE:
            finish, error = event.finish or finish, error or event.error
        if event.timings:
            timings = event.timings
    if trace.cut_ns is None:
        failure, detail = _failed(trace, seen, error)
    else:
        failure, detail, finish = ("stream-error" if error else ""), error, BARGE_IN
    return Timeline(
        first_event_ns=reads.at_ns[read_of[0]] if read_of else None,
        first_answer_ns=first_answer_ns,
        at_ns=_at(content, reads.at_ns),
        slack_ns=_slack(content, reads.slack_ns),
        lag_ns=_at(content, reads.lag_ns),
        running_tokens=running if _counts(running) else None,
        token_ids=ids or None,
        chars=chars,
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
    """Whether the server kept a running count, from the first content event on."""
    return bool(running) and running[0] > 0 and running[-1] >= len(running)


def _events(trace: Trace) -> list[sse.ServerSentEvent] | None:
    """The events of the reply; ``None`` where it is no stream of them."""
    headers = trace.headers
    encoded = headers.get("content-encoding", "identity").lower() != "identity"
    if trace.status != HTTPStatus.OK or encoded:
        return None
    return bodies.events(trace.body, headers.get("content-type", ""))


def _failed_without_a_stream(trace: Trace) -> tuple[str, str]:
    """The kind of failure and its words, for a reply that never became an event stream."""
    if trace.error:
        return trace.error, trace.detail
    if trace.status != HTTPStatus.OK:
        detail = error_message(trace.body)
        if retry_after := trace.headers.get("retry-after"):
            detail += f" (Retry-After: {retry_after})"
        return f"http-{trace.status}", detail
    content_type = trace.headers.get("content-type", "of no stated type")
    if encoding := trace.headers.get("content-encoding"):
        content_type = f"{encoding}-encoded {content_type}"
    page = f"; it is {bodies.PAGE}" if bodies.is_page(trace.body) else ""
    return "not-a-stream", f"the reply is {content_type}, not text/event-stream{page}"


def _failed(trace: Trace, seen: int, error: str) -> tuple[str, str]:
    """The kind of failure of an event stream and its words; both empty for a good one."""
    if error and trace.error != TOO_LARGE:
        return ("malformed" if error.startswith(MALFORMED) else "stream-error"), error
    if trace.error:
        return trace.error, trace.detail
    if not seen & (Kind.DONE | Kind.FINISH):
        return "truncated", "the stream ended without a finish reason or [DONE]"
    if not seen & Kind.GENERATED:
        return "empty", "the reply has no generated tokens"
    return "", ""
