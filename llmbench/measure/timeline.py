"""Trace → Timeline: what the bytes of a reply say, and when each of its events had arrived."""

from array import array
from collections.abc import Callable
from http import HTTPStatus

from llmbench.apis import sse
from llmbench.apis.chunks import MALFORMED, error_message
from llmbench.records import Event, Integers, Kind, Timeline, Trace, Usage


def decode(trace: Trace, decode_event: Callable[[bytes, str], Event]) -> Timeline:
    """Decode ``trace`` with its API's ``decode_event``.

    A content event is one that brings generated tokens: an answer's, reasoning's or a tool call's.
    Role-only, usage and finish events, comments and ``[DONE]`` are not. An event has arrived with
    the read that holds its last byte; where a read completes several content events, its stamp is
    that of the last one, and the others may be older by up to the read's slack.
    """
    if trace.status != HTTPStatus.OK or not _is_event_stream(trace):
        failure, detail = _failed_without_a_stream(trace)
        return Timeline(
            at_ns=array("q"), slack_ns=array("q"), lag_ns=array("q"), failure=failure, detail=detail
        )
    at_ns, slack_ns, lag_ns, running = array("q"), array("q"), array("q"), array("q")
    first_event_ns = first_answer_ns = None
    chars = seen = ids = 0
    usage, finish, error = Usage(), "", ""
    reads = trace.reads
    ends, stamps_ns, lags_ns, slacks_ns = reads.end, reads.at_ns, reads.lag_ns, reads.slack_ns
    read, content_read = 0, -1
    for end, data, name in sse.parse(trace.body):
        while end > ends[read]:
            read += 1
        kind, text, tokens, event_usage, event_finish, event_error = decode_event(data, name)
        seen |= kind
        if first_event_ns is None:
            first_event_ns = stamps_ns[read]
        if event_usage is not None:
            usage = event_usage
        if tokens is not None:
            ids += tokens
        if kind & Kind.GENERATED:
            if first_answer_ns is None and kind & Kind.ANSWER:
                first_answer_ns = stamps_ns[read]
            if read == content_read:
                slack_ns[-1] = slacks_ns[read]
            content_read = read
            at_ns.append(stamps_ns[read])
            slack_ns.append(0)
            lag_ns.append(lags_ns[read])
            running.append(ids or usage.completion_tokens or 0)
            chars += len(text)
        finish = event_finish or finish
        error = error or event_error
    failure, detail = _failed(trace, seen, error)
    return Timeline(
        first_event_ns=first_event_ns,
        first_answer_ns=first_answer_ns,
        at_ns=at_ns,
        slack_ns=slack_ns,
        lag_ns=lag_ns,
        running_tokens=running if _counts(running) else None,
        token_ids=ids or None,
        chars=chars,
        usage=usage,
        finish=finish,
        failure=failure,
        detail=detail,
    )


def _counts(running: Integers) -> bool:
    """Whether the server kept a running count, from the first content event on."""
    return bool(running) and running[0] > 0 and running[-1] >= len(running)


def _is_event_stream(trace: Trace) -> bool:
    headers = trace.headers
    return (
        headers.get("content-type", "").lower().startswith("text/event-stream")
        and headers.get("content-encoding", "identity").lower() == "identity"
    )


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
    return "not-a-stream", f"the reply is {content_type}, not text/event-stream"


def _failed(trace: Trace, seen: int, error: str) -> tuple[str, str]:
    """The kind of failure of an event stream and its words; both empty for a good one."""
    if error:
        return ("malformed" if error.startswith(MALFORMED) else "stream-error"), error
    if trace.error:
        return trace.error, trace.detail
    if not seen & (Kind.DONE | Kind.FINISH):
        return "truncated", "the stream ended without a finish reason or [DONE]"
    if not seen & Kind.GENERATED:
        return "empty", "the reply has no generated tokens"
    return "", ""
