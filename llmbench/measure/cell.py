"""Trace* → Cell: the whole right-hand side of the path, for one cell."""

from collections.abc import Iterable

from llmbench.apis import APIS
from llmbench.measure.metrics import measure
from llmbench.measure.summary import summarize
from llmbench.measure.timeline import decode
from llmbench.records import Cell, CellFacts, Target, Trace


def measure_cell(target: Target, facts: CellFacts, traces: Iterable[Trace]) -> Cell:
    """The row of one cell, from what is stored of it."""
    decode_event = APIS[target.api].decode
    return summarize(
        target, facts, [measure(trace, decode(trace, decode_event)) for trace in traces]
    )
