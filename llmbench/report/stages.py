"""Where the time of a request went, cell by cell: ``llmbench report RUN --stages``."""

from collections.abc import Sequence

from llmbench.measure.requests import STAGES
from llmbench.records import Cell
from llmbench.report.columns import NOT_MEASURED, Column, figure, load_columns
from llmbench.report.notes import places
from llmbench.report.table import as_markdown, as_text

PARTS = (*STAGES, "other")


def render_stages(cells: Sequence[Cell], style: str) -> str:
    """One row a cell, with notes below; ``style`` is ``table`` or ``markdown``."""
    render = as_markdown if style == "markdown" else as_text
    return render([*load_columns(cells), *_columns()], cells, _notes(cells))


def _columns() -> list[Column]:
    return [
        Column("connect\nms", _connect),
        *(_stage(stage) for stage in ("e2e", *PARTS)),
        Column("largest", _largest),
        Column("source", _source, spare=1),
    ]


def _stage(stage: str) -> Column:
    return Column(f"{stage}\nms", lambda cell: figure(cell, _shown(cell).get(stage)))


def _shown(cell: Cell) -> dict[str, float]:
    """The stages of a cell, which an invalid one does not show."""
    return (cell.stages_ms or {}) if cell.verdict != "invalid" else {}


def _connect(cell: Cell) -> str:
    """The medians of DNS, TCP, the proxy's tunnel and TLS together."""
    medians = [block.p50 for block in (cell.connect_ms or {}).values()]
    known = [median for median in medians if median is not None]
    return figure(cell, sum(known) if known and len(known) == len(medians) else None)


def _is_proxied(cell: Cell) -> bool:
    proxy = (cell.connect_ms or {}).get("proxy")
    return proxy is not None and bool(proxy.max)


def _largest(cell: Cell) -> str:
    parts = {part: ms for part, ms in _shown(cell).items() if part in PARTS}
    e2e_ms = _shown(cell).get("e2e")
    if not parts or not e2e_ms:
        return NOT_MEASURED
    part = max(parts, key=parts.__getitem__)
    return f"{part} {parts[part] / e2e_ms:.0%}"


def _source(cell: Cell) -> str:
    return cell.stages_source if cell.stages_source and _shown(cell) else NOT_MEASURED


def _notes(cells: Sequence[Cell]) -> list[str]:
    return [*_of_cells(cells), *_own_e2e(cells), *_legend(cells)]


def _of_cells(cells: Sequence[Cell]) -> list[str]:
    """Why cells show nothing, or what is odd about what they show."""
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.verdict == "invalid":
            for reason in cell.reasons:
                lines.setdefault(f"INVALID, {reason}", []).append(cell)
        elif not _shown(cell):
            line = "no stages: neither the replies nor the server's metrics tell of these requests"
            lines.setdefault(line, []).append(cell)
        elif _shown(cell)["other"] < 0:
            line = "the server accounts for more time than the client saw: do not trust its stages"
            lines.setdefault(line, []).append(cell)
    return [f"{places(about, cells)}: {line}" for line, about in lines.items()]


def _own_e2e(cells: Sequence[Cell]) -> list[str]:
    """How much of ``other`` passed in the server, where it states the whole of its own time."""
    split = []
    for cell in cells:
        ms = _shown(cell)
        if "server_e2e" in ms:
            inside_ms = ms["server_e2e"] - sum(ms.get(stage, 0.0) for stage in STAGES)
            split.append(f"{places([cell], cells)}: {figure(cell, inside_ms)}")
    if not split:
        return []
    return [f"other holds, in ms, inside the server but in none of its stages: {'; '.join(split)}"]


def _legend(cells: Sequence[Cell]) -> list[str]:
    sources = {_source(cell) for cell in cells}
    lines = []
    if sources != {NOT_MEASURED}:
        lines.append(
            "e2e: mean of the client's, from sent to the last token; other: what of it is in no "
            "stage of the server's: network, HTTP and whatever the server does not time"
        )
    if "timings" in sources:
        lines.append(
            "timings: the replies' own; where they have no queue, the wait for a slot is in other"
        )
    if "metrics" in sources:
        lines.append(
            "metrics: the server's own; these and their e2e include the warm-up's requests"
        )
    if any(_connect(cell) != NOT_MEASURED for cell in cells):
        proxy = " + proxy" if any(map(_is_proxied, cells)) else ""
        lines.append(f"connect: median of DNS + TCP{proxy} + TLS, once a connection and not in e2e")
    return lines
