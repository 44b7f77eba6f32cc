"""Targets side by side: which cells stand together, which is best, and by how much they differ."""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import NamedTuple

from llmbench.errors import UserError
from llmbench.records import Block, Cell

RATE_MARGIN = 0.02
"""How far apart two figures must be of which one has no interval."""


class Figure(NamedTuple):
    """One figure, and between which bounds it may as well lie."""

    value: float
    low: float
    high: float
    has_interval: bool


class Measure(NamedTuple):
    """What a column compares: how to find it in a cell, and which direction is better."""

    of: Callable[[Cell], Figure | None]
    less_is_better: bool


def several_targets(cells: Sequence[Cell]) -> bool:
    return len({cell.target for cell in cells}) > 1


def grouped(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each load together, where there are several targets; else all, as they are."""
    if not several_targets(cells):
        return [list(cells)] if cells else []
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(load(cell), []).append(cell)
    return list(groups.values())


def load(cell: Cell) -> tuple[object, ...]:
    """What two cells must share before their figures can be compared."""
    return (
        cell.api,
        cell.concurrency,
        cell.batch_size,
        cell.rate,
        cell.arrivals,
        cell.cache_asked,
        cell.prompt_tokens,
        cell.output_tokens,
    )


def quantile(cell: Cell, metric: str, name: str, error_ms: float = 0.0) -> Figure | None:
    """A quantile of ``metric``, as in ``ttft``, with its 95% interval, widened by what the ruler
    can be off; ``None`` where there is none that can be stood behind."""
    block: Block | None = getattr(cell, field_of(metric))
    value: float | None = getattr(block, name) if block is not None else None
    if block is None or value is None or not is_shown(cell, metric, name):
        return None
    low, high = block.ci95.get(name, (value, value))
    return Figure(value, low - error_ms, high + error_ms, name in block.ci95)


def field_of(metric: str) -> str:
    """The field of a cell that holds the distribution of ``metric``; rates have no unit there."""
    return metric if metric.startswith("otps") else f"{metric}_ms"


def is_shown(cell: Cell, metric: str, name: str) -> bool:
    """Whether a quantile of ``metric`` can be stood behind."""
    return cell.verdict != "invalid" and f"{metric}.{name}" not in cell.untimed


def rate(cell: Cell, value: float | None, ci95: tuple[float, float] | None = None) -> Figure | None:
    """A figure that is one number for the whole cell, with its 95% interval where it has one."""
    if value is None or cell.verdict == "invalid":
        return None
    return exactly(value) if ci95 is None else Figure(value, *ci95, has_interval=True)


def exactly(value: float) -> Figure:
    return Figure(value, value, value, has_interval=False)


def best(group: Sequence[Cell], measure: Measure) -> Cell | None:
    """The cell that is better than every other beyond doubt, where several targets compete.

    Its interval overlaps no other; where a figure has none, they differ by more than 2%.
    """
    if not several_targets(group):
        return None
    figures = [(cell, figure) for cell in group if (figure := measure.of(cell)) is not None]
    if len(figures) < 2:
        return None
    sign = 1 if measure.less_is_better else -1
    (winner, first), *rest = sorted(figures, key=lambda pair: sign * pair[1].value)
    if winner.verdict != "valid" or not isfinite(first.value):
        return None
    clear = all(_clearly_better(first, other, measure.less_is_better) for _, other in rest)
    return winner if clear else None


def _clearly_better(first: Figure, other: Figure, less_is_better: bool) -> bool:
    apart = first.high < other.low if less_is_better else first.low > other.high
    if first.has_interval and other.has_interval:
        return apart
    margin = RATE_MARGIN * max(abs(first.value), abs(other.value))
    return apart and abs(first.value - other.value) > margin


def check_baseline(names: Sequence[str], baseline: str | None) -> None:
    """Raise ``UserError`` where ``baseline`` is none of the targets' ``names``."""
    if baseline and baseline not in names:
        known = ", ".join(dict.fromkeys(names))
        raise UserError(f"--baseline {baseline}: no target has that name; there are: {known}")


def base_of(cell: Cell, group: Sequence[Cell], baseline: str) -> Cell | None:
    """The baseline's cell to hold ``cell`` against: the one of the same client, if there is one."""
    bases = [each for each in group if each.target == baseline]
    same = [each for each in bases if each.client == cell.client]
    return next(iter(same or bases), None)


def ratio(cell: Cell, base: Cell | None, measure: Measure) -> float | None:
    """The figure of ``cell`` divided by the baseline's; ``None`` where either is missing."""
    mine = measure.of(cell)
    theirs = measure.of(base) if base is not None else None
    if mine is None or theirs is None or not isfinite(theirs.value) or theirs.value <= 0:
        return None
    return mine.value / theirs.value
