"""The frontier as SVG: what each load gives a user, against what it gives in total.

Panels above one another share the axis of tok/s in total, so that a load is on one vertical in all.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmbench.measure.capacity import by_search, load_of
from llmbench.measure.cost import Costed
from llmbench.records import Cell
from llmbench.report import comparison, svg
from llmbench.report.budget import shortened


class Figure(NamedTuple):
    """A figure and its 95% interval, of no width where it has none."""

    value: float
    low: float
    high: float


class Point(NamedTuple):
    """A load: what it gives in total, and its figure in a panel."""

    load: str
    total: Figure
    figure: Figure


Of = Callable[[Cell], Figure | None]


class Panel(NamedTuple):
    """One diagram. ``tail`` is drawn beside ``figure``, hollow; ``objective`` names the objectives
    whose limits are lines in it."""

    unit: str
    figure: Of
    tail: Of | None = None
    objective: str = ""
    log: bool = False


def quantile(metric: str, name: str) -> Of:
    """That quantile of a cell, where it can be stood behind and is finite."""

    def of(cell: Cell) -> Figure | None:
        found = comparison.quantile(cell, metric, name)
        return None if found is None else _figure(found.value, (found.low, found.high))

    return of


def total(cell: Cell) -> Figure | None:
    return _figure(cell.otps, cell.otps_ci95)


def _figure(value: float | None, ci95: tuple[float, float] | None) -> Figure | None:
    if value is None or not math.isfinite(value):
        return None
    low, high = ci95 or (value, value)
    return Figure(value, low, high if math.isfinite(high) else value)


TTFT = Panel(
    "TTFT ms (log)",
    quantile("ttft", "p50"),
    tail=quantile("ttft", "p95"),
    objective="ttft",
    log=True,
)
PER_USER = Panel("tok/s per user", quantile("otps_per_user", "p50"))
COST = "cost per 1M output tokens"


def _cost(rows: Sequence[Costed]) -> list[Panel]:
    """By the listed price, for good requests, or else by the config's, for all."""
    costs = {id(row.cell): row.paid or row.cell.cost for row in rows}  # a cell has no hash
    names = {row.price.currency for row in rows if row.price}

    def of(cell: Cell) -> Figure | None:
        cost = costs[id(cell)]
        return _figure(cost.per_1m_output_tokens if cost else None, None)

    return [Panel(", ".join([COST, *sorted(names)]), of)] if any(costs.values()) else []


# ---- what is drawn


class Series(NamedTuple):
    """The loads of one target, from the lightest to the heaviest, and how their line is drawn."""

    name: str
    color: str
    dashes: str
    cells: list[Cell]

    def points(self, of: Of) -> list[Point]:
        return [
            Point(load_name(cell), at, figure)
            for cell in self.cells
            if (at := total(cell)) is not None and (figure := of(cell)) is not None
        ]


COLORS = (svg.BLUE, svg.RED, svg.GREEN, svg.ORANGE, svg.PURPLE, svg.SKY, svg.BLACK)


def load_name(cell: Cell) -> str:
    """``8`` requests in flight, ``2/s``, or a batch of ``×4``."""
    if cell.rate is not None:
        return f"{cell.rate}/s"
    return f"×{cell.batch_size}" if cell.batch_size else f"{load_of(cell):g}"


def series(cells: Sequence[Cell]) -> list[Series]:
    """The cells that have figures, by all that is not their load."""
    shown = [cell for cell in cells if cell.verdict != "invalid" and total(cell) is not None]
    found = []
    for number, its in enumerate(by_search(shown)):
        again, color = divmod(number, len(COLORS))
        dashes = "9 3" if again else ""
        name = _name(its[0], shown)
        found.append(Series(name, COLORS[color], dashes, sorted(its, key=load_of)))
    return found


def _name(cell: Cell, cells: Sequence[Cell]) -> str:
    """The target, with what else its cells differ in."""
    told: dict[str, Callable[[Cell], object]] = {
        "": lambda each: each.client,
        " cache": lambda each: each.cache_asked,
        " prompt tokens": lambda each: each.prompt_lengths or each.prompt_tokens,
    }
    its = [each for each in cells if each.target == cell.target]
    extra = [f"{of(cell)}{unit}" for unit, of in told.items() if len(set(map(of, its))) > 1]
    return ", ".join([shortened(cell.target, 36), *extra])


# ---- as SVG

_WIDTH, _LEFT, _RIGHT, _TOP = 900, 84, 28, 58
_HIGH, _GAP, _BOTTOM, _LINE = 220, 34, 64, 20
_DOT = 4.5


class Axis(NamedTuple):
    """Where a value stands between ``near`` and ``far``, which are pixels."""

    low: float
    high: float
    near: float
    far: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = map(self._scaled, (self.low, self.high, max(value, self.low)))
        return self.near + (self.far - self.near) * (value - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    @property
    def marks(self) -> list[float]:
        if not self.log:
            step = svg.step(self.high - self.low)
            return [step * number for number in range(int(self.high / step) + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [times * 10.0**power for power in powers for times in (1, 2, 5)]
        return [each for each in found if self.low <= each <= self.high]


def render_frontier(rows: Sequence[Costed]) -> str:
    """The frontier of the cells of ``rows``, with a panel of what their good requests cost where
    that is known; cells that are INVALID or have no throughput are left out."""
    cells = [row.cell for row in rows]
    drawn = series(cells)
    panels = [TTFT, PER_USER, *_cost(rows)]
    top = _TOP + _LINE * math.ceil(len(drawn) / 2) + 44
    bottom = top + len(panels) * (_HIGH + _GAP) - _GAP
    totals = [point.total.high for each in drawn for point in each.points(total)]
    across = Axis(0.0, 1.08 * max(totals, default=1.0), _LEFT, _WIDTH - _RIGHT)
    pieces = _legend(drawn, len(cells) - sum(len(each.cells) for each in drawn))
    for number, panel in enumerate(panels):
        pieces += _panel(panel, drawn, across, top + number * (_HIGH + _GAP))
    for mark in across.marks:
        x = across.at(mark)
        pieces.append(svg.line((x, bottom), (x, bottom + 4), svg.GREY))
        pieces.append(svg.text(x, bottom + 18, f"{mark:,g}", anchor="middle"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    pieces.append(svg.text(middle, bottom + 42, "tok/s in total", anchor="middle"))
    title = "What each load gives a user, against what it gives in total"
    return svg.document(_WIDTH, bottom + _BOTTOM, title, pieces)


def _legend(drawn: Sequence[Series], left_out: int) -> list[str]:
    pieces = []
    for number, each in enumerate(drawn):
        row, column = divmod(number, 2)
        x, y = 16 + column * _WIDTH / 2, _TOP + _LINE * row
        pieces.append(svg.line((x, y - 4.5), (x + 26, y - 4.5), each.color, 1.5, each.dashes))
        pieces.append(_dot(x + 13, y - 4.5, each.color, hollow=False))
        pieces.append(svg.text(x + 34, y, each.name))
    unit = {"×": "static batches", "s": "requests a second"}
    loads = {load_name(cell) for each in drawn for cell in each.cells}
    kinds = {unit.get(load[0]) or unit.get(load[-1]) or "requests in flight" for load in loads}
    words = [
        f"numbers: {' or '.join(sorted(kinds))}" if kinds else "no cell has figures",
        "● p50, ○ TTFT p95",
        "bars: 95% intervals",
    ]
    if left_out:
        words.append(f"{left_out} {'cell' if left_out == 1 else 'cells'} without figures left out")
    y = _TOP + _LINE * math.ceil(len(drawn) / 2)
    pieces.append(svg.text(16, y, "; ".join(words), fill=svg.GREY))
    return pieces


def _panel(panel: Panel, drawn: Sequence[Series], across: Axis, top: float) -> list[str]:
    parts = [(of, each) for each in drawn for of in (panel.figure, panel.tail) if of is not None]
    figures = [point.figure for of, each in parts for point in each.points(of)]
    limits = _limits(panel, drawn)
    up = _upward(panel, figures, list(limits.values()), top)
    pieces = [svg.text(_LEFT, top - 8, panel.unit, weight="bold")]
    for mark in up.marks:
        y = up.at(mark)
        pieces.append(svg.line((_LEFT, y), (_WIDTH - _RIGHT, y), svg.PALE))
        pieces.append(svg.text(_LEFT - 8, y + 4.5, f"{mark:,g}", anchor="end"))
    inner = [across.at(mark) for mark in across.marks[1:]]
    pieces += [svg.line((x, top), (x, top + _HIGH), svg.PALE) for x in inner]
    pieces.append(svg.line((_LEFT, top), (_LEFT, top + _HIGH), svg.GREY))
    pieces.append(svg.line((_LEFT, top + _HIGH), (_WIDTH - _RIGHT, top + _HIGH), svg.GREY))
    for name, limit_ms in limits.items():
        y = up.at(limit_ms)
        pieces.append(svg.line((_LEFT, y), (_WIDTH - _RIGHT, y), svg.BLACK, 1.5, "6 4"))
        words = f"{name} ≤ {limit_ms:g} ms"
        pieces.append(svg.text(_LEFT + 8, y - 5, words, weight="bold"))
    for of, each in parts:
        pieces += _curve(each.points(of), each, across, up, hollow=of is panel.tail)
    return pieces


def _limits(panel: Panel, drawn: Sequence[Series]) -> dict[str, float]:
    """The objectives whose limits are lines in ``panel``."""
    told = [cell.slo or {} for each in drawn for cell in each.cells]
    return {
        name: objective.limit_ms
        for its in told
        for name, objective in its.items()
        if panel.objective and name.startswith(f"{panel.objective}.")
    }


def _upward(panel: Panel, figures: Sequence[Figure], limits: Sequence[float], top: float) -> Axis:
    """The axis of a panel, with room for all that is drawn in it."""
    values = [*(each for figure in figures for each in figure), *limits]
    high = max(values, default=1.0) or 1.0
    if panel.log:
        low = min((each for each in values if each > 0), default=high / 10)
        return Axis(low / 1.5, max(high, 2 * low) * 1.5, top + _HIGH, top, log=True)
    return Axis(0.0, 1.12 * high, top + _HIGH, top)


def _curve(
    points: Sequence[Point], drawn: Series, across: Axis, up: Axis, *, hollow: bool
) -> list[str]:
    """Bars of the intervals below the line, the line below the dots, the loads above all."""
    color = drawn.color
    at = [(across.at(each.total.value), up.at(each.figure.value)) for each in points]
    pieces = []
    for (x, y), (_, across_its, its) in zip(at, points, strict=True):
        pieces.append(svg.line((x, up.at(its.low)), (x, up.at(its.high)), color, 1.5))
        ends = (across.at(across_its.low), across.at(across_its.high))
        pieces.append(svg.line((ends[0], y), (ends[1], y), color, 1.5))
    dashes = "2 4" if hollow else drawn.dashes
    pieces += [svg.line(a, b, color, 1.5, dashes) for a, b in itertools.pairwise(at)]
    pieces += [_dot(x, y, color, hollow=hollow) for x, y in at]
    if not hollow:
        below = 15 if up.log else -8  # where the line does not go
        pieces += [
            svg.text(x + 8, y + below, each.load, size=11, fill=color)
            for (x, y), each in zip(at, points, strict=True)
        ]
    return pieces


def _dot(x: float, y: float, color: str, *, hollow: bool) -> str:
    fill = "#ffffff" if hollow else color
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}" fill="{fill}" stroke="{color}" '
        'stroke-width="2"/>'
    )
