"""What must be known of a reply before its cell is over, from as little of it as will do."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from llmbench.apis import bodies, lenient, sse
from llmbench.records import Event, Kind, Trace

Decode = Callable[[Sequence[sse.ServerSentEvent]], list[Event]]

_START_BYTES = 4096


def first_token_ns(trace: Trace, decode_events: Decode) -> int | None:
    """When the first generated token came, from ``due`` where there is one, else from ``sent``;
    ``None`` for a reply without one."""
    for body in (trace.body[:_START_BYTES], trace.body):
        events = sse.parse(body) or bodies.document(body)
        for (end, _, _), event in zip(events, decode_events(events), strict=True):
            if event.kind & Kind.GENERATED:
                late_ns = trace.sent_ns - trace.due_ns if trace.due_ns is not None else 0
                return trace.reads.at_ns[bisect_left(trace.reads.end, end)] + late_ns
    return None


def heard(trace: Trace) -> bytes:
    """The body of a reply, up to where the user cut it off."""
    if trace.cut_ns is None:
        return trace.body
    reads = bisect_right(trace.reads.at_ns, trace.cut_ns)
    return trace.body[: trace.reads.end[reads - 1] if reads else 0]


def reply_text(body: bytes, decode_events: Decode) -> str | None:
    """The answer in a reply, without reasoning; ``None`` for one without, which no server lets a
    user say back to it, and for one that says it has failed."""
    events = decode_events(sse.parse(body) or bodies.document(body))
    if any(event.kind & Kind.ERROR for event in events):
        return None
    return lenient.joined([event.answer for event in events]) or None
