"""What stands below the table: why a cell is not shown, and what a reader should know."""

from collections.abc import Iterable, Sequence
from math import isfinite

from llmbench.records import Cell


def notes(cells: Sequence[Cell]) -> list[str]:
    """One line each, the cells that share one named together."""
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        for line in _of_cell(cell):
            lines.setdefault(line, []).append(cell)
    said = [f"{_places(about, cells)}: {line}" for line, about in lines.items()]
    return said + _client_tax(cells) + _legend(cells)


def _of_cell(cell: Cell) -> Iterable[str]:
    label = {"invalid": "INVALID", "partial": "PARTIAL", "valid": ""}[cell.verdict]
    for reason in cell.reasons:
        yield f"{label}, {reason}"
    for kind, count in cell.requests.failures.items():
        words = cell.requests.details.get(kind)
        yield f"failed: {count} × {kind}" + (f" ({words})" if words else "")
    yield from cell.notes


def _places(about: Sequence[Cell], cells: Sequence[Cell]) -> str:
    """The cells that a note is about, in as few words as tell them apart."""
    if len(about) == len(cells) and len(cells) > 1:
        return "all"
    several_lengths = len({cell.prompt_tokens for cell in cells}) > 1
    several_clients = len({cell.client for cell in cells}) > 1
    places: dict[str, list[str]] = {}
    for cell in about:
        name = f"{cell.target} via {cell.client}" if several_clients else cell.target
        length = f"/{cell.prompt_tokens}" if several_lengths else ""
        places.setdefault(name, []).append(f"{cell.concurrency}{length}")
    return "; ".join(f"{name} at {', '.join(loads)}" for name, loads in places.items())


def _client_tax(cells: Sequence[Cell]) -> list[str]:
    """What other clients read at the same load beyond what the wire client reads."""
    wire = {_load(cell): cell for cell in cells if cell.client == "wire"}
    taxes = [
        (cell, added)
        for cell in cells
        if cell.client != "wire" and (base := wire.get(_load(cell))) is not None
        if (added := _added(base, cell))
    ]
    return [f"client tax, {_places([cell], cells)}: {added}" for cell, added in taxes]


def _load(cell: Cell) -> tuple[str, int | None, int]:
    return cell.target, cell.concurrency, cell.prompt_tokens


def _added(base: Cell, cell: Cell) -> str:
    if "invalid" in (base.verdict, cell.verdict):
        return ""
    figures = [
        (f"{cell_block.p50 - base_block.p50:+.2f} ms on {name} p50")
        for name, base_block, cell_block in (
            ("TTFT", base.ttft_ms, cell.ttft_ms),
            ("ITL", base.itl_ms, cell.itl_ms),
        )
        if base_block and cell_block and base_block.p50 is not None and cell_block.p50 is not None
        if isfinite(base_block.p50) and isfinite(cell_block.p50)
    ]
    return ", ".join(figures)


def _legend(cells: Sequence[Cell]) -> list[str]:
    stamps = sorted({cell.ruler.stamps for cell in cells if cell.ruler.stamps})
    lines = []
    if stamps:
        asked = sorted({cell.output_tokens for cell in cells})
        lines.append(
            "closed loop: service time with that many requests in flight; asked for "
            f"{', '.join(map(str, asked))} tokens; {' and '.join(stamps)} stamps"
        )
    if any(cell.ruler.ttft_error_ms for cell in cells):
        lines.append("±: how far the ruler itself can be off, in ms; not the spread of the server")
    if any(_too_small(cell) for cell in cells):
        lines.append(
            "—: not shown, or too few samples (p95 needs 72 requests; p99 368 independent ones)"
        )
    return lines


def _too_small(cell: Cell) -> bool:
    shown = [(cell.ttft_ms, ("p50", "p95")), (cell.itl_ms, ("p50", "p99"))]
    return any(block is None or getattr(block, name) is None for block, ps in shown for name in ps)
