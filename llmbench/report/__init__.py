"""Cell* → text, in the format that was asked for."""

from collections.abc import Sequence
from typing import Protocol

from llmbench.records import Cell
from llmbench.report.table import render_markdown, render_table
from llmbench.report.tabular import render_csv


class Renderer(Protocol):
    """Raises ``UserError`` where ``baseline`` is the name of no target. What stands below a table
    has at most ``most_lines`` lines, where that is given."""

    def __call__(
        self, cells: Sequence[Cell], baseline: str | None = None, most_lines: int | None = None
    ) -> str: ...


RENDERERS: dict[str, Renderer] = {
    "table": render_table,
    "markdown": render_markdown,
    "csv": render_csv,
}
