"""Where the time of a request went, cell by cell: ``llmbench report RUN --stages``."""

from collections.abc import Sequence
from functools import partial

from llmbench.measure.requests import STAGES
from llmbench.records import Cell
from llmbench.report.columns import NOT_MEASURED, Column, figure, load_columns
from llmbench.report.notes import insecure, places
from llmbench.report.table import as_markdown, as_text

PARTS = (*STAGES, "other")
TTFT = "TTFT"
CONNECTING = {"DNS": "dns", "TCP": "tcp", "proxy": "proxy", "TLS": "tls"}


def render_stages(cells: Sequence[Cell], style: str) -> str:
    """One row a cell, with notes below; ``style`` is ``table`` or ``markdown``."""
    render = as_markdown if style == "markdown" else as_text
    return render([*load_columns(cells), *_columns(cells)], cells, partial(_notes, cells))


def _columns(cells: Sequence[Cell]) -> list[Column]:
    """The stages that any of ``cells`` has: of connecting, as the client saw requests, and as the
    server accounts for them."""
    connecting = [name for name in CONNECTING if any(_opening(cell, name) for cell in cells)]
    told = [part for part in PARTS if any(part in _shown(cell) for cell in cells)]
    server = [Column("largest", _largest), Column("source", _source, spare=3)]
    return [
        *(_connect(name) for name in connecting),
        Column(f"{TTFT}\nms", lambda cell: figure(cell, _ttft_ms(cell)), spare=2),
        Column("e2e\nms", lambda cell: figure(cell, _e2e_ms(cell))),
        *map(_stage, told),
        *(server if told else ()),
    ]


def _stage(stage: str) -> Column:
    spare = 4 if stage == "tokenize" else 0
    return Column(f"{stage}\nms", lambda cell: figure(cell, _shown(cell).get(stage)), spare=spare)


def _shown(cell: Cell) -> dict[str, float]:
    """The stages of a cell, which an invalid one does not show."""
    return (cell.stages_ms or {}) if cell.verdict != "invalid" else {}


def _connect(name: str) -> Column:
    return Column(f"{name}\nms", lambda cell: figure(cell, _opening(cell, name)), spare=1)


def _opening(cell: Cell, name: str) -> float | None:
    """The median of a stage of connecting."""
    block = (cell.connect_ms or {}).get(CONNECTING[name])
    return block.estimate("p50") if block is not None else None


def _ttft_ms(cell: Cell) -> float | None:
    """The mean from sent to the first token."""
    block = cell.ttft_from_sent_ms or cell.ttft_ms
    return block.mean if block is not None else None


def _e2e_ms(cell: Cell) -> float | None:
    """The mean from sent to the last token, or to the end where nothing is held against it."""
    block = cell.e2e_from_sent_ms or cell.e2e_ms
    return (cell.stages_ms or {}).get("e2e", block.mean if block is not None else None)


def _largest(cell: Cell) -> str:
    parts = {part: ms for part, ms in _shown(cell).items() if part in PARTS}
    e2e_ms = _shown(cell).get("e2e")
    if not parts or not e2e_ms:
        return NOT_MEASURED
    part = max(parts, key=parts.__getitem__)
    return f"{part} {parts[part] / e2e_ms:.0%}"


def _source(cell: Cell) -> str:
    return cell.stages_source if cell.stages_source and _shown(cell) else NOT_MEASURED


def _notes(cells: Sequence[Cell], left_out: Sequence[str]) -> list[str]:
    return [*_of_cells(cells), *insecure(cells), *_own_e2e(cells), *_legend(cells, left_out)]


def _of_cells(cells: Sequence[Cell]) -> list[str]:
    """Why cells show nothing, or what is odd about what they show."""
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.verdict == "invalid":
            for reason in cell.reasons:
                lines.setdefault(f"INVALID, {reason}", []).append(cell)
        elif not _shown(cell):
            line = "no stages of the server: neither replies nor metrics tell of these requests"
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


def _legend(cells: Sequence[Cell], left_out: Sequence[str]) -> list[str]:
    sources = {_source(cell) for cell in cells}
    lines = []
    if any(_e2e_ms(cell) is not None for cell in cells):
        lines.append("e2e: mean of the client's, from sent to the last token")
        if f"{TTFT} ms" not in left_out:
            lines[0] = "TTFT, e2e: means of the client's, from sent to the first and the last token"
    if sources != {NOT_MEASURED}:
        lines.append("other: what of e2e is in no stage of the server's: network, HTTP, …")
    if "timings" in sources:
        lines.append(
            "timings: the replies' own; where they have no queue, the wait for a slot is in other"
        )
    if "metrics" in sources:
        lines.append(
            "metrics: the server's own; these and their e2e include the warm-up's requests"
        )
    connecting = [name for name in CONNECTING if any(_opening(cell, name) for cell in cells)]
    if shown := [name for name in connecting if f"{name} ms" not in left_out]:
        lines.append(f"{', '.join(shown)}: medians, once a connection and not in e2e")
    return lines
