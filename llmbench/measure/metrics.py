"""Trace and Timeline → RequestMetrics: the definitions (docs/metrics.md says them in words)."""

import sys
from array import array
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from llmbench.measure.ruler import PROMPT_LAG_NS
from llmbench.measure.usage import SEEN_SHARE
from llmbench.records import UNKNOWN_TOKENS, Integers, RequestMetrics, Singles, Timeline, Trace

SECOND_NS = 1e9
MOST_HALF = 65_504.0
"""The greatest float of 16 bits."""

UPWARD = 1 + 2**-10
"""Makes up for what rounding to 11 bits may take away."""


def measure(trace: Trace, timeline: Timeline) -> RequestMetrics:
    """One request's figures. Latencies count from when it was due, in an open loop, so that what
    the client sends late is part of them; else from ``sent``."""
    tokens, source = count_tokens(timeline)
    hidden = timeline.hidden_tokens
    seen_tokens = tokens if hidden is None else tokens - hidden
    at_ns = timeline.at_ns
    first_ns, last_ns = (at_ns[0], at_ns[-1]) if at_ns else (None, None)
    good = not timeline.failure
    was_seen = good or timeline.failure == "cancelled"
    late_ns = 0 if trace.due_ns is None else trace.sent_ns - trace.due_ns
    running = timeline.running_tokens
    evidence: dict[str, Any] = _evidence(trace, timeline) if good else {"lag_ms": array("f")}
    return RequestMetrics(
        phase=trace.phase,
        index=trace.index,
        session=trace.session,
        turn=trace.turn,
        segment=trace.segment,
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
        hidden_tokens=UNKNOWN_TOKENS if hidden is None else hidden,
        head_share=_head_share(timeline, seen_tokens) if running is None else None,
        stages_ms=timeline.stages_ms,
        ttfr_s=_seconds(timeline.first_event_ns, late_ns) if was_seen else None,
        ttft_s=_seconds(first_ns, late_ns) if was_seen else None,
        ttfat_s=_seconds(timeline.first_answer_ns, late_ns) if was_seen else None,
        e2e_s=_seconds(last_ns, late_ns) if good and trace.cut_ns is None else None,
        tpot_s=_tpot_s(at_ns, running, seen_tokens) if good and hidden is not None else None,
        cut=trace.cut_ns is not None,
        stop_s=_seconds(trace.stop_ns, 0),
        events=len(at_ns),
        first_ns=first_ns,
        last_ns=last_ns,
        gaps_s=array("f", [(after - before) / SECOND_NS for before, after in pairwise(at_ns)]),
        counted=running is not None,
        steps=_steps(running),
        stamps=trace.stamps,
        connect=trace.connect,
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


def _tpot_s(at_ns: Integers, running: Integers | None, tokens: int) -> float | None:
    """The time by the token that came after the first event: where a running count tells how many
    came with that, so many fewer; else it is taken for one."""
    if not at_ns or at_ns[-1] == at_ns[0]:
        return None
    after = tokens - 1 if running is None else running[-1] - running[at_ns.count(at_ns[0]) - 1]
    return (at_ns[-1] - at_ns[0]) / SECOND_NS / after if after > 0 else None


def _head_share(timeline: Timeline, tokens: int) -> float | None:
    """The share of a reply's tokens, but for the first, that is taken to have come with its first
    event: where each brings as many, or where events bring several, by its share of the text."""
    at_ns = timeline.at_ns
    if tokens < 2 or not at_ns:
        return None
    head = at_ns.count(at_ns[0]) * tokens / len(at_ns)
    if timeline.chars and len(at_ns) < SEEN_SHARE * tokens:
        head = max(head, timeline.head_chars / timeline.chars * tokens)
    return max(head - 1, 0) / (tokens - 1)


def _steps(running: Integers | None) -> Integers | None:
    if running is None or _rises_by_one(running):
        return None
    return array("q", [after - before for before, after in pairwise(running)])


def _rises_by_one(running: Integers) -> bool:
    first = running[0]
    return running.tolist() == list(range(first, first + len(running)))


def _evidence(trace: Trace, timeline: Timeline) -> dict[str, Any]:
    """What the ruler needs to know of how the reply was read (see ``RequestMetrics``)."""
    lag_ms = _ms(trace.reads.lag_ns) if trace.stamps == "kernel" else array("f")
    shared = sum(map(bool, timeline.slack_ns))
    if not shared:
        return {"lag_ms": lag_ms}
    slack_ms = _ms([ns * UPWARD for ns in timeline.slack_ns])
    late = [lag_ns > PROMPT_LAG_NS for lag_ns in timeline.lag_ns]
    late_slack_ms = array("f", [each * its for each, its in zip(slack_ms, late, strict=True)])
    return {
        "lag_ms": lag_ms,
        "shared": shared,
        "slack_ms": slack_ms,
        "late_slack_ms": late_slack_ms if any(late_slack_ms) else None,
    }


def _ms(ns: Iterable[float]) -> Singles:
    values = [each / 1e6 for each in ns]
    if max(values, default=0.0) > MOST_HALF:
        values = [min(each, MOST_HALF) for each in values]
    return array("f", values)
