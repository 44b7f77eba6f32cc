"""Cell* → text, in the format that was asked for."""

from collections.abc import Callable, Sequence

from llmbench.records import Cell
from llmbench.report.table import render_markdown, render_table
from llmbench.report.tabular import render_csv

RENDERERS: dict[str, Callable[[Sequence[Cell]], str]] = {
    "table": render_table,
    "markdown": render_markdown,
    "csv": render_csv,
}
