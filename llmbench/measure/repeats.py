"""Several runs of one cell → one row: raw figures pooled, with the spread between the runs."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from llmbench.measure.requests import Requests, connects
from llmbench.measure.ruler import add_calibration
from llmbench.measure.statistics import CONFIDENCE, student
from llmbench.measure.summary import (
    NO_LIMITS,
    add_connects,
    add_distributions,
    add_goodput,
    empty_cell,
    settled,
)
from llmbench.records import Cell, CellFacts, Repeats, Target

Run = tuple[CellFacts, Cell, Requests]
"""A run of the cell: its facts, its own figures as judged, and its requests."""


def pool(target: Target, runs: Sequence[Run], limits_ms: Mapping[str, float] = NO_LIMITS) -> Cell:
    """The row of ``runs``. Distributions are over the requests of all; those of one run have
    something in common, so an interval takes each run for a cluster (Kish, *Survey Sampling*,
    §8.2). Rates are of all windows together: what came over the sum of their lengths."""
    facts, first, _ = runs[0]
    row = empty_cell(target, facts)
    add_connects(row, [each for _, _, requests in runs for each in connects(requests)])
    kept = Requests.joined(
        [
            _of_run(number, settled(empty_cell(target, its), its.load, requests))
            for number, (its, _, requests) in enumerate(runs)
        ]
    )
    add_distributions(row, facts, kept, kept.where(kept.good))
    cells = [cell for _, cell, _ in runs]
    _add_rates(row, cells)
    add_goodput(row, kept, limits_ms)
    for its, _, _ in runs:
        if its.calibration is not None and row.requests.ok:
            add_calibration(row.ruler, its.calibration)
    row.verdict = "partial" if any(cell.verdict == "partial" for cell in cells) else "valid"
    row.stages_ms, row.stages_source = first.stages_ms, first.stages_source
    row.settled = None if None in [c.settled for c in cells] else all(c.settled for c in cells)
    row.cache = first.cache
    row.repeats = spread(cells)
    told = [*_shared_notes(cells), _told(row.repeats)]
    row.notes = [note for note in dict.fromkeys([*row.notes, *told]) if note]
    return row


def _of_run(number: int, requests: Requests) -> Requests:
    """The measured ones of a run's ``requests``, with its number."""
    measured = requests.where(requests.measured)
    return measured.but(run=np.full(len(measured), number, dtype=np.int32))


def _shared_notes(cells: Sequence[Cell]) -> list[str]:
    """What is said of the runs, each line once, with how many it is true of; what makes a run
    INVALID is told elsewhere."""
    said = [[*cell.notes, *(cell.reasons if cell.verdict == "partial" else ())] for cell in cells]
    lines = []
    for note in dict.fromkeys(note for notes in said for note in notes):
        count = sum(note in notes for notes in said)
        lines.append(note if count == len(said) else f"{note} ({count} of {len(said)} repeats)")
    return lines


def _add_rates(row: Cell, cells: Sequence[Cell]) -> None:
    windows = np.array([cell.window_s or 0.0 for cell in cells])
    row.window_s = float(windows.sum()) or None
    row.warmup_removed = sum(cell.warmup_removed for cell in cells)
    for name in ("otps", "requests_per_s", "chars_per_s", "in_flight", "opening", "arrivals_per_s"):
        values = [getattr(cell, name) for cell in cells]
        if row.window_s and None not in values:
            setattr(row, name, float(np.dot(values, windows) / row.window_s))
            if f"{name}_ci95" in row.__struct_fields__ and len(values) > 1 and not row.arrivals:
                setattr(row, f"{name}_ci95", _by_runs(getattr(row, name), values))


def _by_runs(rate: float, values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the rate of several runs, from how far these are apart."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = student((1 + CONFIDENCE) / 2, len(values) - 1) * error
    return max(rate - reach, 0.0), rate + reach


def spread(cells: Sequence[Cell]) -> Repeats:
    """The medians and the rate of each run, in the order in which they were run."""
    return Repeats(
        runs=len(cells),
        ttft_p50_ms=[cell.ttft_ms.p50 if cell.ttft_ms else None for cell in cells],
        itl_p50_ms=[cell.itl_ms.p50 if cell.itl_ms else None for cell in cells],
        otps=[cell.otps for cell in cells],
    )


def _told(repeats: Repeats) -> str:
    """One line on how far the runs were apart."""
    parts = []
    for name, values in (
        ("TTFT p50", repeats.ttft_p50_ms),
        ("ITL p50", repeats.itl_p50_ms),
        ("tok/s", repeats.otps),
    ):
        known = [each for each in values if each is not None]
        if len(known) > 1:
            mean = float(np.mean(known))
            share = float(np.std(known, ddof=1)) / mean if mean else 0.0
            unit = "" if name == "tok/s" else " ms"
            parts.append(f"{name} {min(known):.4g}–{max(known):.4g}{unit} (CV {share:.1%})")
    return f"{repeats.runs} repeats: {', '.join(parts)}" if parts else ""
