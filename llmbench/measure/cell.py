"""Trace* → Cell: the whole right-hand side of the path, for one cell."""

from collections.abc import Iterable, Sequence
from copy import deepcopy

from llmbench.apis import APIS
from llmbench.measure.agreement import agreements
from llmbench.measure.cost import cost
from llmbench.measure.metrics import measure
from llmbench.measure.ruler import add_calibration
from llmbench.measure.slo import limits_ms, objectives
from llmbench.measure.summary import summarize
from llmbench.measure.timeline import decode
from llmbench.measure.verdict import judge
from llmbench.records import Cell, CellFacts, Target, Trace


def measure_cell(target: Target, facts: CellFacts, traces: Iterable[Trace]) -> Cell:
    """The figures of one cell from what is stored of it, without a verdict on them yet.

    Of ``traces`` only one at a time is held, with what it decodes to.
    """
    decode_events = APIS[target.api].decode
    return summarize(
        target, facts, (measure(trace, decode(trace, decode_events)) for trace in traces)
    )


def report_cells(
    targets: Sequence[Target],
    slo: dict[str, str],
    facts: Sequence[CellFacts],
    measured: Sequence[Cell],
) -> list[Cell]:
    """The rows of a run: its cells as ``measured``, judged, with what only the whole run tells."""
    shares, limits = agreements(targets), limits_ms(slo)
    cells = []
    for unjudged, its in zip(measured, facts, strict=True):
        cell, price = judged(unjudged, its), targets[its.target].price
        cell.agreement = shares[its.target]
        cell.slo = objectives(cell, limits) or None
        cell.cost = cost(cell, price) if price is not None else None
        cells.append(cell)
    return cells


def judged(cell: Cell, facts: CellFacts) -> Cell:
    """``cell`` with the ruler's error as it was calibrated, and with its verdict."""
    cell = deepcopy(cell)
    if facts.calibration is not None and cell.requests.ok:
        add_calibration(cell.ruler, facts.calibration)
    judge(cell, facts)
    return cell
