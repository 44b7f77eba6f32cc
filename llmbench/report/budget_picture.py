"""Where the milliseconds of a turn go: stacked bars, in the terminal and as SVG.

A bar stacks the median of each stage and the LLM's median time to its first speakable chunk. They
do not add up to the median of the sum: the table has that.
"""

import math
from collections.abc import Sequence
from html import escape
from itertools import accumulate
from typing import NamedTuple

from llmbench.measure.turn_budget import BudgetRow
from llmbench.report import svg
from llmbench.report.budget import BudgetReport, row_name, shortened
from llmbench.report.columns import NEVER, NOT_MEASURED, digits

LLM = "LLM"
BAR_WIDTH = 60
LABEL_WIDTH = 28
MOST_STAGES = 4
"""With more, the legend has room for names only."""
MOST_BUDGETS = 2.5
"""A bar that is longer than this many times the budget is cut, and shows that it is."""

_LLM_BLOCK, _STAGE_BLOCKS = "█", "▓▒░▚▤▥"

_LLM_COLOR = svg.BLUE
_STAGE_COLORS = (svg.ORANGE, svg.SKY, svg.GREEN, svg.YELLOW, svg.PURPLE, svg.RED)


class Part(NamedTuple):
    """One part of a bar, in ms."""

    name: str
    ms: float


class Bar(NamedTuple):
    """One turn: its parts in order, and what is written at its ends."""

    label: str
    parts: list[Part]
    total: str
    in_budget: str

    @property
    def ms(self) -> float:
        return sum(part.ms for part in self.parts)


def bars(report: BudgetReport) -> list[Bar]:
    """One bar a row."""
    return [_bar(row, report) for row in report.rows]


def _bar(row: BudgetRow, report: BudgetReport) -> Bar:
    parts = [Part(stage.name, stage.p50_ms) for stage in report.stages]
    llm_ms = None if row.verdict == "invalid" else row.ttsc_ms.p50
    if llm_ms is not None and math.isfinite(llm_ms):
        parts.append(Part(LLM, llm_ms))
        total = f"{digits(sum(part.ms for part in parts))} ms"
    else:
        total = NOT_MEASURED if llm_ms is None else NEVER
    chance = row.chance
    kept = NOT_MEASURED if chance is None else f"{100 * chance.value:.1f}%"
    return Bar(shortened(row_name(row, report.rows), LABEL_WIDTH), parts, total, kept)


def _span_ms(drawn: Sequence[Bar], budget_ms: float) -> float:
    """What the axis spans: all bars, but not so long that the budget could not be read."""
    longest_ms = max([budget_ms, *(bar.ms for bar in drawn)])
    return min(longest_ms, MOST_BUDGETS * budget_ms) * 1.05


# ---- in the terminal


def render_bars(report: BudgetReport) -> str:
    """The bars of blocks, with the budget as a line through them, and a legend."""
    drawn = bars(report)
    if not drawn:
        return ""
    per_ms = BAR_WIDTH / _span_ms(drawn, report.budget_ms)
    mark = min(round(report.budget_ms * per_ms), BAR_WIDTH - 1)
    width = max(len(bar.label) for bar in drawn)
    blocks = _blocks(report)
    lines = []
    for bar in drawn:
        whole = _cells(bar.parts, blocks, per_ms)
        cells = list(whole[:BAR_WIDTH].ljust(BAR_WIDTH))
        cells[mark] = "┃"
        if len(whole) > BAR_WIDTH:
            cells[-1] = "▶"
        lines.append(f"{bar.label:<{width}} {''.join(cells).rstrip()} {bar.total}")
    legend = "  ".join(f"{block} {name}" for name, block in blocks.items())
    lines.append(f"{'':<{width}} {legend}  ┃ budget {digits(report.budget_ms)} ms; medians")
    return "\n".join(lines) + "\n"


def _blocks(report: BudgetReport) -> dict[str, str]:
    stages = {
        stage.name: _STAGE_BLOCKS[index % len(_STAGE_BLOCKS)]
        for index, stage in enumerate(report.stages)
    }
    return stages | {LLM: _LLM_BLOCK}


def _cells(parts: Sequence[Part], blocks: dict[str, str], per_ms: float) -> str:
    """Each part from where the one before it ends: what is rounded does not add up."""
    ends = [round(ms * per_ms) for ms in accumulate((part.ms for part in parts), initial=0.0)]
    return "".join(
        blocks[part.name] * (end - begin)
        for part, begin, end in zip(parts, ends, ends[1:], strict=False)
    )


# ---- as SVG

_WIDTH, _LEFT, _RIGHT, _TOP = 900, 210, 150, 84
_BAR, _GAP, _AXIS = 26, 14, 56


def render_svg(report: BudgetReport) -> str:
    """The bars as one SVG document that needs nothing else."""
    drawn = bars(report)
    longest_ms = _span_ms(drawn, report.budget_ms)
    per_ms = (_WIDTH - _LEFT - _RIGHT) / longest_ms
    bottom = _TOP + max(len(drawn), 1) * (_BAR + _GAP)
    title = f"Where the milliseconds of a turn go: budget {digits(report.budget_ms)} ms"
    pieces = [
        *_legend(report),
        *_axis(longest_ms, per_ms, bottom),
        svg.text(_WIDTH - 12, _TOP - 8, "in budget", anchor="end"),
        svg.text(_WIDTH - _RIGHT + 8, _TOP - 8, "medians"),
    ]
    for index, bar in enumerate(drawn):
        pieces += _svg_bar(bar, _TOP + index * (_BAR + _GAP), per_ms, _colors(report))
    pieces += _budget_mark(report.budget_ms, per_ms, bottom)
    return svg.document(_WIDTH, bottom + _AXIS, title, pieces)


def _colors(report: BudgetReport) -> dict[str, str]:
    stages = {
        stage.name: _STAGE_COLORS[index % len(_STAGE_COLORS)]
        for index, stage in enumerate(report.stages)
    }
    return stages | {LLM: _LLM_COLOR}


def _svg_bar(bar: Bar, top: float, per_ms: float, colors: dict[str, str]) -> list[str]:
    middle = top + _BAR / 2 + 4.5
    pieces = [svg.text(_LEFT - 10, middle, bar.label, anchor="end")]
    x, end = float(_LEFT), float(_WIDTH - _RIGHT)
    for part in bar.parts:
        width = min(part.ms * per_ms, end - x)
        color = colors[part.name]
        pieces.append(
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{color}" '
            f'stroke="#ffffff"><title>{escape(part.name)}: {digits(part.ms)} ms</title></rect>'
        )
        figure = digits(part.ms)
        if width > 8 * len(figure):
            ink = "#ffffff" if color in svg.DARK else "#000000"
            pieces.append(svg.text(x + 5, middle, figure, fill=ink))
        x += width
    if bar.ms * per_ms > end - _LEFT:
        pieces.append(_goes_on(end, top))
    pieces.append(svg.text(_WIDTH - _RIGHT + 8, middle, bar.total))
    pieces.append(svg.text(_WIDTH - 12, middle, bar.in_budget, anchor="end", weight="bold"))
    return pieces


def _goes_on(end: float, top: float) -> str:
    """The end of a bar that is cut, as an arrow's."""
    low = top + _BAR
    points = f"{end - 9},{top} {end + 1},{top - 1} {end + 1},{low + 1} {end - 9},{low}"
    return f'<polygon points="{points} {end},{top + _BAR / 2}" fill="#ffffff"/>'


def _legend(report: BudgetReport) -> list[str]:
    pieces, x = [], 16.0
    for name, color in _colors(report).items():
        whole = name == LLM and len(report.stages) <= MOST_STAGES
        shown = f"{name}, to the first speakable chunk" if whole else name
        pieces.append(f'<rect x="{x:.1f}" y="44" width="14" height="14" fill="{color}"/>')
        pieces.append(svg.text(x + 20, 56, shown))
        x += 20 + 7.2 * len(shown) + 18
    return pieces


def _axis(longest_ms: float, per_ms: float, bottom: float) -> list[str]:
    step = svg.step(longest_ms)
    pieces = []
    for index in range(int(longest_ms / step) + 1):
        ms = index * step
        x = _LEFT + ms * per_ms
        pieces.append(svg.line((x, _TOP - 4), (x, bottom), svg.PALE))
        pieces.append(svg.text(x, bottom + 18, f"{ms:g}", anchor="middle"))
    middle = _LEFT + longest_ms * per_ms / 2
    pieces.append(
        svg.text(middle, bottom + 40, "time since the user stopped (ms)", anchor="middle")
    )
    return pieces


def _budget_mark(budget_ms: float, per_ms: float, bottom: float) -> list[str]:
    x = _LEFT + budget_ms * per_ms
    return [
        svg.line((x, _TOP - 8), (x, bottom), svg.BLACK, width=2, dashes="6 4"),
        svg.text(x - 6, _TOP - 8, f"budget {digits(budget_ms)} ms", anchor="end", weight="bold"),
    ]
