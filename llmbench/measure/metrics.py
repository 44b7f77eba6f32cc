"""Trace and Timeline → RequestMetrics: the definitions (docs/metrics.md says them in words)."""

from llmbench.records import RequestMetrics, Timeline, Trace

SECOND_NS = 1e9


def measure(trace: Trace, timeline: Timeline) -> RequestMetrics:
    """One request's figures; all latencies count from ``sent``, in seconds."""
    tokens, source = count_tokens(timeline)
    good = not timeline.failure
    first_s = timeline.at_ns[0] / SECOND_NS if good else None
    last_s = timeline.at_ns[-1] / SECOND_NS if good else None
    decode_s = last_s - first_s if first_s is not None and last_s is not None else 0.0
    return RequestMetrics(
        phase=trace.phase,
        index=trace.index,
        sent_ns=trace.sent_ns,
        end_ns=trace.sent_ns + trace.end_ns,
        send_ns=trace.send_ns,
        timeline=timeline,
        tokens=tokens,
        token_source=source,
        ttfr_s=_seconds(timeline.first_event_ns) if good else None,
        ttft_s=first_s,
        ttfat_s=_seconds(timeline.first_answer_ns) if good else None,
        e2e_s=last_s,
        tpot_s=decode_s / (tokens - 1) if decode_s > 0 and tokens > 1 else None,
        lag_ns=trace.reads.lag_ns,
        stamps=trace.stamps,
        connect=trace.connect,
        via=trace.headers.get("via", ""),
    )


def count_tokens(timeline: Timeline) -> tuple[int, str]:
    """The output length and where it comes from: token ids or usage, else content events."""
    if timeline.token_ids is not None:
        return timeline.token_ids, "token ids"
    if timeline.usage.completion_tokens is not None:
        return timeline.usage.completion_tokens, "usage"
    return len(timeline.at_ns), "chunks"


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / SECOND_NS
