"""The result as text tables: for a terminal, and in Markdown for a pull request."""

import textwrap
from collections.abc import Sequence

from tabulate import tabulate

from llmbench.records import Cell
from llmbench.report.columns import columns
from llmbench.report.notes import notes

WIDTH = 100
NAME_WIDTH = 24


def render_table(cells: Sequence[Cell]) -> str:
    """One row a cell, within 100 columns, with notes below."""
    chosen = columns(cells)
    rows = [[_shorten(column.text(cell)) for column in chosen] for cell in cells]
    table = tabulate(
        rows,
        headers=[column.head for column in chosen],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left", *("right" for _ in chosen[1:])],
    )
    below = (textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in notes(cells))
    return "\n".join((table, *below)) + "\n"


def render_markdown(cells: Sequence[Cell]) -> str:
    """The same table in Markdown."""
    chosen = columns(cells)
    heads, group = [], ""
    for column in chosen:
        top, _, bottom = column.head.partition("\n")
        group = top or group
        heads.append(f"{group} {bottom}".strip())
    table = tabulate(
        [[column.text(cell) for column in chosen] for cell in cells],
        headers=heads,
        tablefmt="github",
        disable_numparse=True,
        colalign=["left", *("right" for _ in chosen[1:])],
    )
    below = [f"- {line}" for line in notes(cells)]
    return "\n".join((table, "", *below)) + "\n"


def _shorten(text: str) -> str:
    return text if len(text) <= NAME_WIDTH else text[: NAME_WIDTH - 1] + "…"
