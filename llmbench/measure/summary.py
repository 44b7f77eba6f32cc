"""RequestMetrics* → Cell: pool the raw figures of one cell. Nothing is averaged twice."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from msgspec.structs import replace

from llmbench.measure import gaps as gap
from llmbench.measure.barge_in import barge_in
from llmbench.measure.beyond import beyond
from llmbench.measure.blocks import MS, block, census, gaps_block
from llmbench.measure.cost import billed
from llmbench.measure.energy import joules_per_token
from llmbench.measure.goodput import goodput
from llmbench.measure.latencies import add_latencies, latency_block, with_lost
from llmbench.measure.rates import add_growth, add_rate_intervals, add_rates, due_ns, window_of
from llmbench.measure.requests import Requests, connects, reopened
from llmbench.measure.ruler import from_evidence
from llmbench.measure.settling import add_drift, without_warmup
from llmbench.measure.shared import Shared
from llmbench.measure.stages import stages
from llmbench.measure.step import add_step
from llmbench.measure.turns import cached_share, prompt_range, range_of, tpot_by_length, turns
from llmbench.plan.arrivals import read_rate
from llmbench.records import (
    UNKNOWN_TOKENS,
    Cell,
    CellFacts,
    Connect,
    Counts,
    Load,
    Provenance,
    Target,
)

NO_LIMITS: Mapping[str, float] = MappingProxyType({})


def summarize(
    target: Target,
    facts: CellFacts,
    requests: Requests,
    limits_ms: Mapping[str, float] = NO_LIMITS,
) -> Cell:
    """One row from the requests of one cell, of every phase; the verdict on it comes later.

    Latencies come from the measured requests; the throughput counts whatever arrived inside the
    window (see ``rates.window_of``). ``limits_ms`` are the objectives that goodput is held to.
    """
    cell = empty_cell(target, facts)
    if facts.stored is not None and len(requests) != facts.stored:
        cell.reasons.append(
            f"evidence is missing: {len(requests)} of {facts.stored} requests are there"
        )
    requests = settled(cell, facts.load, requests)
    add_connects(cell, connects(requests))
    cell.energy_gpu_only = facts.energy
    cell.joules_per_token_gpu_only = joules_per_token(facts.energy, requests)
    if requests.measured.any():
        _add_figures(cell, facts, requests, limits_ms)
    return cell


def add_goodput(cell: Cell, measured: Requests, limits_ms: Mapping[str, float]) -> None:
    """Which requests were worth their tokens, how many tokens all of them took, and how many were
    beyond each objective of a figure that is shown."""
    cell.goodput, cell.billed = goodput(cell, measured, limits_ms), billed(measured)
    shown = {
        name: limit_ms
        for name, limit_ms in limits_ms.items()
        if getattr(cell, f"{name.partition('.')[0]}_ms") is not None
    }
    cell.beyond = beyond(cell, measured, shown) or None


def settled(cell: Cell, load: Load, requests: Requests) -> Requests:
    """``requests``, with what is still warm-up no longer measured where the load is constant."""
    if not _is_constant(load) or load.batch_size is not None:
        return requests
    return without_warmup(cell, requests, open_loop=bool(load.rate))


def add_distributions(cell: Cell, facts: CellFacts, measured: Requests, good: Requests) -> None:
    """What is pooled over the measured requests, of one run or of several, in the order of time;
    ``good`` are those of them that did not fail."""
    cell.requests = _count(measured)
    cell.reopened = reopened(measured) or None
    cell.ruler = from_evidence(good)
    _lengths(cell, facts, good)
    add_latencies(cell, measured)
    _gaps(cell, measured, good)
    if facts.load.rate:
        _lateness(cell, measured.where(~measured.lost))
    _without_answers(cell, facts, good)
    cell.turns = turns(measured, lambda its: latency_block(cell, its, "ttft_s")[0])
    cell.barge_in = barge_in(measured)
    cell.tpot_by_length = tpot_by_length(good) if cell.tpot_ms is not None else None


def _add_figures(
    cell: Cell, facts: CellFacts, requests: Requests, limits_ms: Mapping[str, float]
) -> None:
    load, measured = facts.load, requests.where(requests.measured)
    window = window_of(requests, open_loop=bool(load.rate))
    good = measured.where(measured.good)
    _lengths(cell, facts, good)
    add_rates(cell, requests, window, open_loop=bool(load.rate))
    if load.rate:
        arrivals = due_ns(measured)
        span_s = float(arrivals.max() - arrivals.min()) / 1e9
        cell.arrivals_per_s = (len(arrivals) - 1) / span_s if span_s > 0 else None
        add_growth(cell, requests, window, constant=_is_constant(load))
    else:
        add_rate_intervals(cell, measured)
    add_distributions(cell, facts, measured, good)
    if told := stages(requests.where(requests.good), facts, int(requests.cancelled.sum())):
        cell.stages_ms, cell.stages_source = told
    if _is_constant(load):
        add_drift(cell, good)
    add_step(cell, load, measured)
    add_goodput(cell, measured, limits_ms)


def _is_constant(load: Load) -> bool:
    """Whether the load is meant to be the same all along."""
    return not load.rate or read_rate(load.rate).kind == "constant"


def empty_cell(target: Target, facts: CellFacts) -> Cell:
    provenance, load = target.provenance or Provenance(), facts.load
    content = load.content
    sizes = [file.bytes for file in provenance.files]
    return Cell(
        target=target.name,
        engine=facts.engine or None,
        model=facts.model or None,
        quantization=target.quantization,
        api=target.api,
        client=facts.client,
        concurrency=load.concurrency or None,
        request_rate=read_rate(load.rate).mean if load.rate else None,
        arrivals=_arrivals_asked(load) if load.rate else None,
        rate=load.rate or None,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        batch_size=load.batch_size,
        text=None if content.dataset else content.text,
        dataset=content.dataset or None,
        prompt_lengths=content.prompt_lengths or None,
        output_lengths=content.output_lengths or None,
        cache_asked="session" if content.turns > 1 else content.cache,
        device=provenance.device,
        disk_mb=sum(sizes) / 1e6 if sizes else None,
        memory_mb=facts.memory_bytes / 1e6 if facts.memory_bytes is not None else None,
        load_s=provenance.load_s,
        first_token_s=provenance.first_token_s,
        requests=Counts(),
    )


def _arrivals_asked(load: Load) -> str | None:
    if load.rate == "trace":
        return "trace" if load.speed == 1 else f"trace ×{load.speed:g}"
    return load.arrivals or None


def _count(measured: Requests) -> Counts:
    lost = measured.lost
    failures = measured.failure[lost].tolist()
    details: dict[str, str] = {}
    for failure, detail in zip(failures, measured.detail[lost].tolist(), strict=True):
        if detail:
            details.setdefault(failure, detail)
    return Counts(
        sent=len(measured),
        ok=int(measured.good.sum()),
        failed=len(failures),
        cancelled=int(measured.cancelled.sum()),
        failures=dict(Counter(failures).most_common()),
        details=details,
    )


def _without_answers(cell: Cell, facts: CellFacts, good: Requests) -> None:
    """Say how many replies used up all their tokens for reasoning."""
    cut_off = np.isnan(good.ttfat_s) & (good.events > 0) & (good.finish == "length")
    if cut_off.any():
        ended = ", and their sessions ended there" if facts.load.content.turns > 1 else ""
        cell.notes.append(
            f"{cut_off.sum()} replies reached their limit in reasoning, with no answer{ended}: ask "
            "for more --output-tokens"
        )


def _lateness(cell: Cell, sent: Requests) -> None:
    """How late the requests of an open loop were sent."""
    queued_ms = sent.queued_ns / 1e6
    cell.dispatch_lag_ms = census(sent.late_s * MS - queued_ms)
    cell.queue_wait_ms = block(queued_ms) if queued_ms.any() else None


def _gaps(cell: Cell, measured: Requests, good: Requests) -> None:
    icl = gap.chunk_gaps(good)
    if not len(icl.values):
        if (good.seen_tokens > 1).any():
            cell.notes.append(
                "each reply came in one event, so its TTFT is the time of the whole reply: the "
                "server, or a gateway before it, does not stream"
            )
        return
    ordered = np.sort(icl.values)
    shared = Shared.of(cell, good)
    cell.icl_ms = gaps_block(icl, ordered, shared)
    cell.burst_index = gap.burst_index(ordered)
    cell.delayed_ack_share = gap.delayed_ack_share(ordered)
    del ordered  # before the tokens' are sorted: either may be most of the memory
    itl = gap.token_gaps(good)
    if itl.gaps is None or not len(itl.gaps.values):
        cell.notes.append(f"ITL not shown: {itl.why_not or 'one event a reply'}; ICL is")
    elif cell.burst_index > gap.BURSTY:
        cell.notes.append(
            f"ITL not shown: {cell.burst_index:.0%} of the gaps are bursts (a proxy or the server "
            "holds tokens back); ICL is"
        )
    else:
        gaps, same = itl.gaps, itl.gaps is icl
        cell.itl_ms = (
            replace(cell.icl_ms) if same else gaps_block(gaps, np.sort(gaps.values), shared)
        )
        means_ms = np.full(len(measured), np.nan)
        means_ms[measured.good] = gap.means(gaps) * MS
        cell.itl_request_mean_ms = block(
            with_lost(measured, means_ms, np.inf), Shared.of(cell, measured)
        )
        cell.itl_imputed_share = itl.imputed_share


def add_connects(cell: Cell, opened: Sequence[Connect]) -> None:
    """What it took to open connections, most of them before the warm-up."""
    if timed := [each for each in opened if each.total_ns]:  # some clients open them out of sight
        cell.connect_ms = {
            stage: block(np.array([getattr(each, f"{stage}_ns") / 1e6 for each in timed]))
            for stage in ("dns", "tcp", "proxy", "tls")
        }


def _cached(cell: Cell, facts: CellFacts, good: Requests) -> None:
    """What came from the server's cache: by the replies' own usage, else by its metrics, which
    count the requests of every phase."""
    share, server = cached_share(good), facts.server_cached
    if share is not None:
        cell.cached_share, cell.cached_share_source = share, "usage"
    elif server is not None:
        cell.cached_share, cell.cached_share_source = server.hits / server.queries, "metrics"


def _lengths(cell: Cell, facts: CellFacts, good: Requests) -> None:
    cell.measured_prompt_tokens = prompt_range(good)
    cell.measured_output_tokens = range_of(good.tokens)
    sources = Counter(good.token_source.tolist())
    cell.token_source = sources.most_common(1)[0][0] if sources else None
    events = int(good.events.sum())
    known = events and not (good.hidden_tokens == UNKNOWN_TOKENS).any()
    cell.tokens_per_event = int(good.seen_tokens.sum()) / events if known else None
    hidden = good.hidden_tokens[good.hidden_tokens > 0]
    cell.hidden_tokens = range_of(hidden)
    _cached(cell, facts, good)
