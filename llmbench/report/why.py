"""Why a percentile has no interval, and how many more requests would give it one: ``--why``."""

import math
from collections.abc import Sequence

from llmbench.measure.blocks import QUANTILES, needs
from llmbench.measure.rates import FEWEST_FOR_A_RATE
from llmbench.records import Cell
from llmbench.report.notes import places
from llmbench.report.table import wrapped

OF_REQUESTS = ("ttft", "tpot", "e2e")


def render_why(cells: Sequence[Cell], style: str = "table") -> str:
    """Lines below the table: what each cell lacks; in ``markdown`` items of a list."""
    lines = [
        f"{places([cell], cells) or 'all'}: {'; '.join(_told(cell))}"
        for cell in cells
        if cell.verdict != "invalid"  # the reasons are among the notes
    ]
    return "".join(f"- {line}\n" if style == "markdown" else f"{wrapped(line)}\n" for line in lines)


def _told(cell: Cell) -> list[str]:
    missing: dict[tuple[str, int], list[str]] = {}
    for metric in OF_REQUESTS:
        block = getattr(cell, f"{metric}_ms")
        if block is None:
            continue
        for name in QUANTILES:
            if (more := needs(block, name)) is not None:
                missing.setdefault((name, more), []).append(metric.upper())
    told = [
        f"{name} of {', '.join(metrics)} needs {more:,} more requests"
        for (name, more), metrics in missing.items()
    ]
    told += _of_gaps(cell)
    if cell.otps is not None and cell.otps_ci95 is None and cell.requests.ok:
        told.append(
            f"tok/s and req/s have an interval from {FEWEST_FOR_A_RATE} independent requests on"
        )
    return told or ["no figure lacks requests"]


def _of_gaps(cell: Cell) -> list[str]:
    """What ITL lacks: replies, for their gaps come together."""
    block = cell.itl_ms
    if block is None or not cell.requests.ok:
        return []
    lacking = {name: more for name in QUANTILES if (more := needs(block, name)) is not None}
    return [
        f"{name} of ITL needs {math.ceil(more * cell.requests.ok / block.n):,} more requests"
        for name, more in lacking.items()
    ]
