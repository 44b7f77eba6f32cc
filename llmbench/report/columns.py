"""The columns of the result: what a figure is called and how it is written, in every format."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmbench.records import Block, Cell

NOT_MEASURED = "—"
NEVER = "∞"


class Column(NamedTuple):
    """``head`` is the title, its unit on a second line; ``text`` writes a cell's figure."""

    head: str
    text: Callable[[Cell], str]


def columns(cells: Sequence[Cell]) -> list[Column]:
    """The columns for ``cells``: API, client and model only where they differ."""
    chosen = [Column("target", lambda cell: cell.target)]
    if len({cell.client for cell in cells}) > 1:
        chosen.append(Column("client", lambda cell: cell.client))
    if len({cell.api for cell in cells}) > 1:
        chosen.append(Column("api", lambda cell: cell.api))
    return [
        *chosen,
        Column("conc.", lambda cell: str(cell.concurrency)),
        Column("prompt\ntokens", _prompt),
        Column("TTFT ms\np50", lambda cell: quantile(cell, cell.ttft_ms, "p50")),
        Column("\np95", lambda cell: quantile(cell, cell.ttft_ms, "p95")),
        Column("ITL ms\np50", lambda cell: quantile(cell, cell.itl_ms, "p50")),
        Column("\np99", lambda cell: quantile(cell, cell.itl_ms, "p99")),
        Column("ruler\n± ms", _error),
        Column("tok/s\n/user", lambda cell: quantile(cell, cell.otps_per_user, "p50")),
        Column("tok/s\ntotal", lambda cell: figure(cell, cell.otps)),
        Column("req/s", lambda cell: figure(cell, cell.requests_per_s)),
        Column("failed", _failed),
    ]


def quantile(cell: Cell, block: Block | None, name: str) -> str:
    """A quantile of ``block``, or a dash where there is none or the cell is invalid."""
    return figure(cell, getattr(block, name) if block is not None else None)


def figure(cell: Cell, value: float | None) -> str:
    """Three significant digits, as many as a latency deserves; no figure of an invalid cell."""
    if value is None or cell.verdict == "invalid":
        return NOT_MEASURED
    if math.isinf(value):
        return NEVER
    if value >= 99.95:
        return f"{value:,.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}"


def _error(cell: Cell) -> str:
    """The most that the ruler can be off in a latency that the table shows, in milliseconds."""
    shown = (
        (cell.ttft_ms, cell.ruler.ttft_error_ms, ("p50", "p95")),
        (cell.itl_ms, cell.ruler.itl_error_ms, ("p50", "p99")),
    )
    errors = [
        errors_ms[name]
        for block, errors_ms, names in shown
        for name in names
        if errors_ms and block is not None and getattr(block, name) is not None
    ]
    if not errors or cell.verdict == "invalid":
        return NOT_MEASURED
    return f"{max(errors):.2f}"


def _prompt(cell: Cell) -> str:
    measured = cell.measured_prompt_tokens
    if measured is None:
        return str(cell.prompt_tokens)
    if measured.min == measured.max:
        return str(measured.min)
    return f"{measured.min}–{measured.max}"


def _failed(cell: Cell) -> str:
    counts = cell.requests
    if not counts.sent:
        return NOT_MEASURED
    return f"{counts.failed}/{counts.sent}" if counts.failed else "0"
