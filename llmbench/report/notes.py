"""What stands below the table: why a cell is not shown, and what a reader should know."""

import math
from collections.abc import Iterable, Sequence

from llmbench.measure.blocks import QUANTILES, needs
from llmbench.measure.statistics import fewest
from llmbench.records import Cell
from llmbench.report.columns import BASE, RULER, constant_prompt, digits, ruler_error_ms
from llmbench.report.comparison import several_targets
from llmbench.report.differences import (
    Difference,
    client_taxes,
    http_taxes,
    length_warnings,
)
from llmbench.report.targets import target_lines


def notes(
    cells: Sequence[Cell],
    *,
    mark: str = "",
    baseline: str | None = None,
    left_out: Sequence[str] = (),
) -> list[str]:
    """One line each, the cells that share one named together.

    ``mark`` is what the best of each group has, if any has one; ``left_out`` the columns that the
    table has no room for.
    """
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        for line in _of_cell(cell):
            lines.setdefault(line, []).append(cell)
    return [
        *(f"{places(about, cells)}: {line}" for line, about in lines.items()),
        *(f"client tax, {places([tax.cell], cells)}: {tax.added}" for tax in client_taxes(cells)),
        *_http_taxes(cells),
        *length_warnings(cells),
        *target_lines(cells),
        *_comparing(cells, mark, baseline),
        *_legend(cells, left_out),
    ]


def _of_cell(cell: Cell) -> Iterable[str]:
    label = {"invalid": "INVALID", "partial": "PARTIAL", "valid": ""}[cell.verdict]
    for reason in cell.reasons:
        yield f"{label}, {reason}"
    for kind, count in cell.requests.failures.items():
        words = cell.requests.details.get(kind)
        yield f"failed: {count} × {kind}" + (f" ({words})" if words else "")
    yield from cell.notes
    yield from _dependent(cell)
    for name, objective in (cell.slo or {}).items():
        fate = {True: "met", False: "missed", None: "not known"}[objective.met]
        known = _measured(cell, name) if objective.met is None else ""
        yield f"SLO {fate}: {name} ≤ {objective.limit_ms:g} ms{known}"
    yield from _goodput(cell)


def _measured(cell: Cell, name: str) -> str:
    """The figure that an objective is about, with its interval."""
    metric, _, statistic = name.partition(".")
    block = getattr(cell, f"{metric}_ms")
    value = getattr(block, statistic, None)
    if value is None or cell.verdict == "invalid":
        return ""
    low, high = block.ci95.get(statistic, (value, value))
    return f" (it is {digits(value)}, in {digits(low)} to {digits(high)})"


def _goodput(cell: Cell) -> Iterable[str]:
    """How many requests kept within all limits, where there are limits."""
    found = cell.goodput
    if not cell.slo or found is None or found.share is None or cell.verdict == "invalid":
        return
    low, high = found.ci95 or (found.share, found.share)
    rate = "" if found.per_s is None else f", {digits(found.per_s)} a second"
    told = f"{found.good} of {found.good + found.bad} requests ({low:.1%} to {high:.1%}){rate}"
    yield f"goodput: {told}"


def _dependent(cell: Cell) -> Iterable[str]:
    """Why a percentile of TTFT is a dash, for all that there were requests enough."""
    block = cell.ttft_ms
    if block is None or cell.verdict == "invalid":
        return
    for name in ("p50", "p95"):
        more = needs(block, name)
        if more is None or block.n < fewest(QUANTILES[name]):
            continue
        worth = math.floor(block.worth[name])
        yield (
            f"TTFT {name} needs ~{more:,} more requests: slow ones come together, so {block.n} say "
            f"as much as {worth} apart; they took {block.min:,.4g} to {block.max:,.4g} ms"
        )
        return


def places(about: Sequence[Cell], cells: Sequence[Cell]) -> str:
    """The cells that a note is about, in as few words as tell them apart."""
    if len(about) == len(cells) and len(cells) > 1:
        return "all"
    several_clients = len({cell.client for cell in cells}) > 1
    by_name: dict[str, list[str]] = {}
    for cell in about:
        name = f"{cell.target} via {cell.client}" if several_clients else cell.target
        by_name.setdefault(name, []).append(_load(cell, cells))
    return "; ".join(f"{name} at {', '.join(loads)}" for name, loads in by_name.items())


def _load(cell: Cell, cells: Sequence[Cell]) -> str:
    several_lengths = len({each.prompt_tokens for each in cells}) > 1
    length = f"/{cell.prompt_tokens}" if several_lengths else ""
    if cell.batch_size:
        return f"batch {cell.batch_size}{length}"
    cache = f" {cell.cache_asked}" if len({each.cache_asked for each in cells}) > 1 else ""
    if cell.arrivals is None:
        return f"{cell.concurrency}{length}{cache}"
    rate = cell.rate if cell.request_rate is None else f"{cell.rate}/s"
    return f"{rate}{length}{cache}"


def _http_taxes(cells: Sequence[Cell]) -> list[str]:
    """One line for each pair of targets, with all the loads that both had."""
    pairs: dict[tuple[str, str, str], list[Difference]] = {}
    for tax in http_taxes(cells):
        key = (str(tax.cell.engine), tax.cell.target, tax.base.target)
        pairs.setdefault(key, []).append(tax)
    lines = []
    for (engine, served, inside), taxes in pairs.items():
        told = "; ".join(f"{tax.added} at {_load(tax.cell, cells)}" for tax in taxes)
        lines.append(
            f"over HTTP, {engine} adds {told} ({served} beyond {inside}; where no doubt is left)"
        )
    return lines


def _comparing(cells: Sequence[Cell], mark: str, baseline: str | None) -> list[str]:
    lines = []
    if mark:
        lines.append(
            f"{mark}: best at its load beyond doubt: its 95% interval and ruler error overlap no "
            "other's; what has no interval differs by more than 2%"
        )
    if baseline and several_targets(cells):
        lines.append(
            f"÷{BASE}: divided by {baseline}'s at the same load; below 1 is faster for TTFT and "
            "ITL, above 1 for tok/s"
        )
    return lines


def _legend(cells: Sequence[Cell], left_out: Sequence[str]) -> list[str]:
    lines = []
    if any(cell.ruler.stamps for cell in cells):
        lines.append(_conditions(cells))
    errors_ms = [error for cell in cells if (error := ruler_error_ms(cell)) is not None]
    if errors_ms and RULER.name in left_out:
        lines.append(f"the ruler itself can be off by {max(errors_ms):.2f} ms at most")
    elif any(cell.ruler.ttft_error_ms for cell in cells):
        lines.append(
            "±: how far the 95% interval reaches from a figure; ruler ±: how far off the ruler is"
        )
    if any(_too_small(cell) for cell in cells):
        lines.append(
            "—: not shown, or too few independent samples (p95 needs 72, p99 368; report --why)"
        )
    if "failed" in left_out:
        lines.append("no request failed")
    if others := [name for name in left_out if name != "failed"]:
        lines.append(f"no room for {', '.join(others)}: the JSON has them")
    return lines


def _conditions(cells: Sequence[Cell]) -> str:
    """How all the cells were loaded and read."""
    at_once = "; ".join(dict.fromkeys(map(_loop, cells)))
    lengths = f"asked for {_asked_tokens(cells)} tokens"
    if files := sorted({cell.dataset for cell in cells if cell.dataset}):
        lengths = f"requests from {', '.join(files)}"
    if (prompt := constant_prompt(cells)) is not None:
        lengths = f"prompts of {prompt} tokens, {lengths}"
    stamps = sorted({cell.ruler.stamps for cell in cells if cell.ruler.stamps})
    return f"{at_once}; {lengths}; {' and '.join(stamps)} stamps"


def _loop(cell: Cell) -> str:
    if cell.arrivals is not None:
        wait = ", a wait for one of the places included" if cell.concurrency else ""
        return f"open loop ({cell.arrivals}): TTFT and E2E count from when a request was due{wait}"
    if cell.batch_size:
        return "static batches: service time of that many requests at once"
    if cell.turns is not None:
        return "closed loop: service time with that many users in conversation"
    return "closed loop: service time with that many requests in flight"


def _asked_tokens(cells: Sequence[Cell]) -> str:
    asked = {(cell.output_tokens, cell.output_lengths) for cell in cells}
    return ", ".join(drawn or str(mean) for mean, drawn in sorted(asked, key=lambda each: each[0]))


def _too_small(cell: Cell) -> bool:
    shown = [(cell.ttft_ms, ("p50", "p95")), (cell.itl_ms, ("p50", "p99"))]
    return any(block is None or getattr(block, name) is None for block, ps in shown for name in ps)
