"""The result as CSV: every figure of the JSON, one row a cell, nested keys joined by dots."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec

from llmbench.records import Cell
from llmbench.report.comparison import check_baseline


def render_csv(
    cells: Sequence[Cell], baseline: str | None = None, most_lines: int | None = None
) -> str:
    """One header row, one row a cell; what was not measured is empty. Nothing stands below.

    No ``baseline`` changes it: whoever reads it can divide. Raises ``UserError`` where it is the
    name of no target.
    """
    check_baseline([cell.target for cell in cells], baseline)
    return as_csv([msgspec.to_builtins(cell) for cell in cells])


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row under a line of names; keys of dicts inside are joined by dots."""
    rows = [_flat(row) for row in rows]
    header = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = [_flat(item, f"{path}.{key}" if path else key) for key, item in value.items()]
        return {key: item for each in items for key, item in each.items()}
    if isinstance(value, list | tuple):
        return {path: "; ".join(map(str, value))}
    return {path: value}
