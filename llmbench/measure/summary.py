"""RequestMetrics* → Cell: pool the raw figures of one cell. Nothing is averaged twice."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from llmbench.measure import gaps as gap
from llmbench.measure import statistics as stats
from llmbench.measure.ruler import from_evidence
from llmbench.measure.stages import stages
from llmbench.measure.statistics import Floats
from llmbench.measure.steady import drift
from llmbench.records import (
    Block,
    Cell,
    CellFacts,
    Counts,
    Provenance,
    Range,
    RequestMetrics,
    Target,
)

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
SLOW_RATES = {"p1": 0.01, "p5": 0.05}
MS = 1e3


def summarize(target: Target, facts: CellFacts, requests: Sequence[RequestMetrics]) -> Cell:
    """One row from the requests of one cell, of every phase; the verdict on it comes later.

    Latencies come from the measured requests; the throughput counts whatever arrived inside the
    window, which lasts from the first measured ``sent`` to the last measured reply's end.
    """
    measured = [each for each in requests if each.phase == "measured"]
    good = [each for each in measured if not each.timeline.failure]
    cell = _empty_cell(target, facts)
    cell.requests = _count(measured)
    if facts.stored is not None and len(requests) != facts.stored:
        cell.reasons.append(
            f"evidence is missing: {len(requests)} of {facts.stored} requests are there"
        )
    if measured:
        cell.ruler = from_evidence(good)
        _lengths(cell, good)
        _latencies(cell, good)
        _gaps(cell, good)
        if told := stages([each for each in requests if not each.timeline.failure], facts):
            cell.stages_ms, cell.stages_source = told
        _rates(cell, requests, measured)
    return cell


def _empty_cell(target: Target, facts: CellFacts) -> Cell:
    provenance = target.provenance or Provenance()
    sizes = [file.bytes for file in provenance.files]
    return Cell(
        target=target.name,
        engine=facts.engine or None,
        model=facts.model or None,
        quantization=target.quantization,
        api=target.api,
        client=facts.client,
        concurrency=facts.load.concurrency,
        request_rate=None,
        prompt_tokens=facts.load.prompt_tokens,
        output_tokens=facts.load.output_tokens,
        batch_size=facts.load.batch_size,
        device=provenance.device,
        disk_mb=sum(sizes) / 1e6 if sizes else None,
        memory_mb=facts.memory_bytes / 1e6 if facts.memory_bytes is not None else None,
        load_s=provenance.load_s,
        first_token_s=provenance.first_token_s,
        requests=Counts(),
    )


def _count(measured: Sequence[RequestMetrics]) -> Counts:
    kinds = Counter(each.timeline.failure for each in measured)
    ok, cancelled = kinds.pop("", 0), kinds.pop("cancelled", 0)
    return Counts(
        sent=len(measured),
        ok=ok,
        failed=kinds.total(),
        cancelled=cancelled,
        failures=dict(kinds.most_common()),
        details={
            each.timeline.failure: each.timeline.detail
            for each in reversed(measured)
            if each.timeline.failure in kinds and each.timeline.detail
        },
    )


def block(
    values: Floats,
    *,
    lost: int = 0,
    clusters: stats.Ints | None = None,
    slow_side_low: bool = False,
) -> Block:
    """Summarize ``values``; ``lost`` more samples count as +∞ (as 0 for a rate: the slow side).

    ``clusters`` names the request of each value, where one request yields many.
    """
    ordered = np.sort(values)
    if slow_side_low:
        ordered = np.concatenate((np.zeros(lost), ordered))
    else:
        ordered = np.concatenate((ordered, np.full(lost, np.inf)))
    result = Block(n=len(ordered))
    if len(values):
        result.mean = float(values.mean())
        result.min, result.max = float(values.min()), float(values.max())
    wanted = SLOW_RATES | QUANTILES if slow_side_low else QUANTILES
    for name, p in wanted.items():
        value, bounds = _quantile_with_interval(ordered, values, clusters, p)
        setattr(result, name, value)
        if bounds is not None:
            result.ci95[name] = bounds
    return result


def _quantile_with_interval(
    ordered: Floats, values: Floats, clusters: stats.Ints | None, p: float
) -> tuple[float | None, tuple[float, float] | None]:
    if len(ordered) == 0:
        return None, None
    value = stats.quantile(ordered, p)
    n = float(len(ordered))
    if clusters is not None:
        n = stats.effective_size(values, clusters, value)
    bounds = stats.interval(ordered, p, n)
    return (value, bounds) if bounds is not None else (None, None)


def _latencies(cell: Cell, good: Sequence[RequestMetrics]) -> None:
    lost = cell.requests.failed
    batches = _batches(cell, good)
    for name in ("ttfr", "ttft", "ttfat", "e2e", "tpot"):
        setattr(cell, f"{name}_ms", _latency_block(good, f"{name}_s", lost, batches))
    in_order = sorted((each.sent_ns, each.ttft_s) for each in good if each.ttft_s is not None)
    cell.ttft_drift = drift([ttft_s for _, ttft_s in in_order])
    rates = np.array([1 / each.tpot_s for each in good if each.tpot_s])
    cell.otps_per_user = block(rates, lost=lost, slow_side_low=True) if len(rates) else None
    whole = np.array([each.tokens / each.e2e_s for each in good if each.e2e_s])
    cell.otps_end_to_end = block(whole, lost=lost, slow_side_low=True) if len(whole) else None
    _withhold_token_rates(cell, good)


def _latency_block(
    good: Sequence[RequestMetrics], name: str, lost: int, batches: stats.Ints | None
) -> Block | None:
    seconds = [getattr(each, name) for each in good]
    known = np.array([each for each in seconds if each is not None])
    if not len(known):
        return None
    return block(known * MS, lost=lost, clusters=batches if len(known) == len(good) else None)


def _batches(cell: Cell, good: Sequence[RequestMetrics]) -> stats.Ints | None:
    """The static batch of each request, where there are any: its requests share their fate, and
    are worth little more than one sample."""
    if cell.batch_size is None or not good:
        return None
    numbers = np.array([each.index // cell.batch_size for each in good])
    return np.asarray(numbers - numbers.min(), dtype=np.int64)


def _withhold_token_rates(cell: Cell, good: Sequence[RequestMetrics]) -> None:
    """No rate of tokens where they are not counted, or where many come with the first event: that
    rate is over the time after the first, and would count them as made in no time."""
    if cell.token_source == "chunks":
        cell.tpot_ms = cell.otps_per_user = cell.otps_end_to_end = None
        return
    heads = [gap.head_share(each) for each in good]
    share = float(np.mean([each for each in heads if each is not None] or [0.0]))
    if share > gap.HEAVY_HEAD:
        cell.tpot_ms = cell.otps_per_user = None
        cell.notes.append(
            f"TPOT and tok/s per user not shown: {share:.0%} of the tokens come with the first"
        )


def _gaps(cell: Cell, good: Sequence[RequestMetrics]) -> None:
    icl = gap.chunk_gaps(good)
    if not len(icl.seconds):
        return
    cell.icl_ms = block(icl.seconds * MS, clusters=icl.request)
    cell.burst_index = gap.burst_index(icl.seconds)
    cell.delayed_ack_share = gap.delayed_ack_share(icl.seconds)
    itl = gap.token_gaps(good, icl)
    if itl.gaps is None or not len(itl.gaps.seconds):
        cell.notes.append(f"ITL not shown: {itl.why_not or 'one event a reply'}; ICL is")
    elif cell.burst_index > gap.BURSTY:
        cell.notes.append(
            f"ITL not shown: {cell.burst_index:.0%} of the gaps are bursts (a proxy or the server "
            "holds tokens back); ICL is"
        )
    else:
        cell.itl_ms = block(itl.gaps.seconds * MS, clusters=itl.gaps.request)
        cell.itl_request_mean_ms = block(itl.gaps.of_requests() * MS, lost=cell.requests.failed)
        cell.itl_imputed_share = itl.imputed_share


def _rates(
    cell: Cell, requests: Iterable[RequestMetrics], measured: Sequence[RequestMetrics]
) -> None:
    """What went through the window. A request counts by the share of its time that lies inside, so
    that a short window is not at the mercy of which replies just made it."""
    start_ns = min(each.sent_ns for each in measured)
    stop_ns = max(each.end_ns for each in measured)
    window_s = (stop_ns - start_ns) / 1e9
    residence_s = [
        (each.end_ns - each.sent_ns) / 1e9 for each in measured if not each.timeline.failure
    ]
    if window_s <= 0 or not residence_s:
        return
    tokens = chars = done = busy_s = 0.0
    for each in requests:
        inside_s = max(min(each.end_ns, stop_ns) - max(each.sent_ns, start_ns), 0) / 1e9
        busy_s += inside_s
        complete = not each.timeline.failure
        if complete:
            done += inside_s / max((each.end_ns - each.sent_ns) / 1e9, 1e-9)
        elif each.timeline.failure == "cancelled":  # cut off when the cell was over: as the others
            done += inside_s / (sum(residence_s) / len(residence_s))
        at_ns = np.asarray(each.timeline.at_ns, dtype=np.int64) + each.sent_ns
        arrived = int(np.count_nonzero((at_ns >= start_ns) & (at_ns <= stop_ns)))
        if arrived:
            share = arrived / len(at_ns)
            tokens += share * each.tokens if complete else arrived * (cell.tokens_per_event or 1)
            chars += share * each.timeline.chars
    cell.window_s = window_s
    cell.otps = tokens / window_s if cell.token_source != "chunks" else None
    cell.chars_per_s = chars / window_s
    cell.requests_per_s = done / window_s
    cell.in_flight = busy_s / window_s


def _lengths(cell: Cell, good: Sequence[RequestMetrics]) -> None:
    prompts = [each.timeline.usage.prompt_tokens for each in good]
    cell.measured_prompt_tokens = _range([each for each in prompts if each is not None])
    cell.measured_output_tokens = _range([each.tokens for each in good])
    sources = Counter(each.token_source for each in good)
    cell.token_source = sources.most_common(1)[0][0] if sources else None
    events = sum(len(each.timeline.at_ns) for each in good)
    cell.tokens_per_event = sum(each.tokens for each in good) / events if events else None
    cached = [each.timeline.usage.cached_tokens for each in good]
    if any(each is not None for each in cached) and sum(each or 0 for each in prompts) > 0:
        cell.cached_share = sum(each or 0 for each in cached) / sum(each or 0 for each in prompts)
    opened = [each.connect for each in good if each.connect is not None]
    if opened:
        cell.connect_ms = {
            stage: block(np.array([getattr(each, f"{stage}_ns") / 1e6 for each in opened]))
            for stage in ("dns", "tcp", "tls")
        }


def _range(counts: Sequence[int]) -> Range | None:
    if not counts:
        return None
    ordered = sorted(counts)
    return Range(ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1])
