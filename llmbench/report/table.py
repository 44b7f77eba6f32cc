"""The result as text tables: for a terminal, and in Markdown for a pull request."""

import textwrap
import unicodedata
from collections.abc import Sequence

import tabulate

from llmbench.records import Cell
from llmbench.report.columns import columns
from llmbench.report.notes import notes

WIDTH = 100
NARROWEST_NAME = 8


def render_table(cells: Sequence[Cell]) -> str:
    """One row a cell, within 100 columns, with notes below."""
    chosen = columns(cells)
    rows = [[_widened(column.text(cell)) for column in chosen] for cell in cells]
    heads = [column.head for column in chosen]
    table = grid(heads, rows, gap=2)
    if _width(table) > WIDTH:
        table = grid(heads, rows, gap=1)
    if (overflow := _width(table) - WIDTH) > 0:
        longest = max(max(len(row[0]) for row in rows) - overflow, NARROWEST_NAME)
        rows = [[_shorten(row[0], longest), *row[1:]] for row in rows]
        table = grid(heads, rows, gap=1)
    below = (_wrapped(_widened(line)) for line in notes(cells))
    return "\n".join((table, *below)).replace(_SECOND_COLUMN, "") + "\n"


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]], gap: int) -> str:
    """``rows`` under ``heads`` of one or two lines, ``gap`` spaces between columns."""
    lines = [[head.partition("\n")[line] for head in heads] for line in (0, 2)]
    rule = ["-" * max(map(len, texts)) for texts in zip(*lines, *rows, strict=True)]
    row = tabulate.DataRow("", " " * gap, "")
    plain = tabulate.TableFormat(None, None, None, None, row, row, padding=0, with_header_hide=None)
    return tabulate.tabulate(
        [*lines, rule, *rows], tablefmt=plain, disable_numparse=True, colalign=_alignment(heads)
    )


def _width(table: str) -> int:
    return max(map(len, table.splitlines()))


def render_markdown(cells: Sequence[Cell]) -> str:
    """The same table in Markdown."""
    chosen = columns(cells)
    heads, group = [], ""
    for column in chosen:
        top, _, bottom = column.head.partition("\n")
        group = top or group
        heads.append(f"{group} {bottom}".strip())
    table = tabulate.tabulate(
        [[column.text(cell).replace("|", "\\|") for column in chosen] for cell in cells],
        headers=heads,
        tablefmt="github",
        disable_numparse=True,
        colalign=_alignment(heads),
    )
    below = [f"- {line}" for line in notes(cells)]
    return "\n".join((table, "", *below)) + "\n"


def _alignment(heads: Sequence[str]) -> list[str]:
    return ["left", *("right" for _ in heads[1:])]


# Stands behind a character that is two columns wide while widths are counted by ``len``.
_SECOND_COLUMN = "\0"


def _widened(text: str) -> str:
    return "".join(
        char + _SECOND_COLUMN if unicodedata.east_asian_width(char) in "WF" else char
        for char in text
    )


def _wrapped(line: str) -> str:
    width = WIDTH - (_SECOND_COLUMN in line)  # a cut may part a wide character from its second half
    return textwrap.fill(line, width, subsequent_indent="  ")


def _shorten(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    cut = width - 1 - (text[width - 1] == _SECOND_COLUMN)
    return text[:cut] + "…"
