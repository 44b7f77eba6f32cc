"""Trace* → Cell: the whole right-hand side of the path, for one cell."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

from llmbench.apis import APIS
from llmbench.measure.agreement import agreements
from llmbench.measure.cost import cost
from llmbench.measure.metrics import measure
from llmbench.measure.repeats import pool
from llmbench.measure.requests import Requests
from llmbench.measure.ruler import add_calibration, add_to_intervals
from llmbench.measure.slo import limits_ms, objectives
from llmbench.measure.summary import NO_LIMITS, summarize
from llmbench.measure.timeline import decode
from llmbench.measure.verdict import judge
from llmbench.records import Cell, CellFacts, Target, Trace


def requests_in(traces: Iterable[Trace], api: str) -> Requests:
    """The table of ``traces``, which speak ``api``. Only some are held at a time."""
    decode_events = APIS[api].decode
    return Requests.of(measure(trace, decode(trace, decode_events)) for trace in traces)


class Measured(NamedTuple):
    """One cell as it was run: what is known of it, its figures without a verdict, and the requests
    behind them where they are to be pooled with those of other repeats."""

    facts: CellFacts
    cell: Cell
    requests: Requests | None


def measured(
    target: Target,
    facts: CellFacts,
    requests: Requests,
    limits_ms: Mapping[str, float] = NO_LIMITS,
) -> Measured:
    """The cell of ``requests``, which are kept where it is one of several repeats."""
    cell = summarize(target, facts, requests, limits_ms)
    return Measured(facts, cell, None if facts.row is None else requests)


def report_cells(
    targets: Sequence[Target], slo: dict[str, str], runs: Sequence[Measured]
) -> list[Cell]:
    """The rows of a run: its cells, repeats of one pooled, judged, with what only the whole run
    tells."""
    shares, limits = agreements(targets), limits_ms(slo)
    rows: dict[int, list[Measured]] = {}
    for run in runs:
        row = run.facts.cell if run.facts.row is None else run.facts.row
        rows.setdefault(row, []).append(run)
    cells = []
    for _, its in sorted(rows.items()):
        facts = its[0].facts
        verdicts = [judged(run.cell, run.facts) for run in its]
        target = targets[facts.target]
        cell = verdicts[0] if facts.row is None else pooled(target, its, verdicts, limits)
        add_to_intervals(cell)
        price = targets[facts.target].price
        cell.agreement = shares[facts.target]
        cell.slo = objectives(cell, limits) or None
        cell.cost = cost(cell, price) if price is not None else None
        cells.append(cell)
    return cells


def pooled(
    target: Target,
    runs: Sequence[Measured],
    cells: Sequence[Cell],
    limits_ms: Mapping[str, float] = NO_LIMITS,
) -> Cell:
    """The row of the repeats ``runs``, judged as ``cells``: of those that are valid, or of all and
    INVALID where none is."""
    pairs = list(zip(runs, cells, strict=True))
    good = [(run, cell) for run, cell in pairs if cell.verdict != "invalid"]
    known = [
        (run.facts, cell, run.requests) for run, cell in good or pairs if run.requests is not None
    ]
    row = pool(target, known, limits_ms)
    bad = [(run, cell) for run, cell in pairs if cell.verdict == "invalid"]
    if not good:
        row.verdict = "invalid"
        row.reasons = list(dict.fromkeys(reason for _, cell in bad for reason in cell.reasons))
        return row
    for run, cell in bad:
        row.notes.append(f"repeat {run.facts.repeat + 1} left out: {'; '.join(cell.reasons)}")
    return row


def judged(cell: Cell, facts: CellFacts) -> Cell:
    """``cell`` with the ruler's error as it was calibrated, and with its verdict."""
    cell = deepcopy(cell)
    if facts.calibration is not None and cell.requests.ok:
        add_calibration(cell.ruler, facts.calibration)
    judge(cell, facts)
    return cell
