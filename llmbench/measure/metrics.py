"""Trace and Timeline → RequestMetrics: the definitions (docs/metrics.md says them in words)."""

import sys
from typing import Any

import numpy as np

from llmbench.measure.ruler import PROMPT_LAG_NS
from llmbench.measure.statistics import Ints, Reals, Singles
from llmbench.records import Column, RequestMetrics, Timeline, Trace

SECOND_NS = 1e9
MOST_HALF = 65_504.0
"""The greatest float of 16 bits."""

UPWARD = 1 + 2**-10
"""Makes up for what rounding to 11 bits may take away."""

_NONE: Column = np.empty(0, dtype=np.float16)


def measure(trace: Trace, timeline: Timeline) -> RequestMetrics:
    """One request's figures. Latencies count from when it was due, in an open loop, so that what
    the client sends late is part of them; else from ``sent``."""
    tokens, source = count_tokens(timeline)
    at_ns = _ints(timeline.at_ns)
    first_ns, last_ns = (int(at_ns[0]), int(at_ns[-1])) if len(at_ns) else (None, None)
    good = not timeline.failure
    seen = good or timeline.failure == "cancelled"
    late_ns = 0 if trace.due_ns is None else trace.sent_ns - trace.due_ns
    running = None if timeline.running_tokens is None else _ints(timeline.running_tokens)
    evidence: dict[str, Any] = _evidence(trace, timeline) if good else {"lag_ms": _NONE}
    return RequestMetrics(
        phase=trace.phase,
        index=trace.index,
        session=trace.session,
        turn=trace.turn,
        sent_ns=trace.sent_ns,
        end_ns=trace.sent_ns + trace.end_ns,
        send_ns=trace.send_ns,
        due_ns=trace.due_ns,
        queued_ns=trace.queued_ns,
        failure=timeline.failure,
        detail=timeline.detail,
        finish=sys.intern(timeline.finish),
        prompt_tokens=timeline.usage.prompt_tokens,
        cached_tokens=timeline.usage.cached_tokens,
        tokens=tokens,
        token_source=source,
        chars=timeline.chars,
        head_share=_head_share(at_ns, running, tokens),
        stages_ms=timeline.stages_ms,
        ttfr_s=_seconds(timeline.first_event_ns, late_ns) if seen else None,
        ttft_s=_seconds(first_ns, late_ns) if seen else None,
        ttfat_s=_seconds(timeline.first_answer_ns, late_ns) if seen else None,
        e2e_s=_seconds(last_ns, late_ns) if good and trace.cut_ns is None else None,
        tpot_s=_tpot_s(first_ns, last_ns, tokens) if good else None,
        cut=trace.cut_ns is not None,
        stop_s=_seconds(trace.stop_ns, 0),
        events=len(at_ns),
        first_ns=first_ns,
        last_ns=last_ns,
        gaps_s=_singles(np.diff(at_ns)),
        counted=running is not None,
        steps=_steps(running),
        stamps=trace.stamps,
        connect=trace.connect,
        via=trace.headers.get("via", ""),
        **evidence,
    )


def count_tokens(timeline: Timeline) -> tuple[int, str]:
    """The output length and where it comes from: token ids or usage, else content events."""
    if timeline.token_ids is not None:
        return timeline.token_ids, "token ids"
    if timeline.usage.completion_tokens is not None:
        return timeline.usage.completion_tokens, "usage"
    return len(timeline.at_ns), "chunks"


def _seconds(ns: int | None, late_ns: int) -> float | None:
    return None if ns is None else (ns + late_ns) / SECOND_NS


def _tpot_s(first_ns: int | None, last_ns: int | None, tokens: int) -> float | None:
    if first_ns is None or last_ns is None or last_ns == first_ns or tokens < 2:
        return None
    return (last_ns - first_ns) / SECOND_NS / (tokens - 1)


def _head_share(at_ns: Ints, running: Ints | None, tokens: int) -> float | None:
    """The share of a reply's tokens, but for the first, that came with its first event."""
    if tokens < 2 or not len(at_ns):
        return None
    events = int(np.count_nonzero(at_ns == at_ns[0]))
    head = events * tokens / len(at_ns) if running is None else float(running[events - 1])
    return max(head - 1, 0) / (tokens - 1)


def _steps(running: Ints | None) -> Column | None:
    if running is None:
        return None
    steps = np.diff(running)
    if (steps == 1).all():
        return None
    return steps.astype(np.int8 if abs(steps).max() < 128 else np.int64)


def _evidence(trace: Trace, timeline: Timeline) -> dict[str, Any]:
    """What the ruler needs to know of how the reply was read (see ``RequestMetrics``)."""
    lag_ms = _halves(_ints(trace.reads.lag_ns)) if trace.stamps == "kernel" else _NONE
    slack_ns = _ints(timeline.slack_ns)
    shared = int(np.count_nonzero(slack_ns))
    if not shared:
        return {"lag_ms": lag_ms}
    slack_ms = _halves(slack_ns * UPWARD)
    late = (_ints(timeline.lag_ns) > PROMPT_LAG_NS) & (slack_ns > 0)
    return {
        "lag_ms": lag_ms,
        "shared": shared,
        "slack_ms": slack_ms,
        "late_slack_ms": slack_ms * late if late.any() else None,
    }


def _ints(values: Any) -> Ints:
    return np.asarray(values, dtype=np.int64)


def _halves(ns: Ints | Reals) -> Column:
    """Milliseconds, to 11 bits."""
    halves: Column = np.minimum(ns / 1e6, MOST_HALF).astype(np.float16)
    return halves


def _singles(ns: Ints) -> Singles:
    return (ns / SECOND_NS).astype(np.float32)
