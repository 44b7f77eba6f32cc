"""How TTFT changes from turn to turn of a conversation, as the context grows."""

from collections.abc import Sequence

import tabulate

from llmbench.records import Block, Cell, Range, Turn
from llmbench.report.columns import NOT_MEASURED, told
from llmbench.report.notes import places
from llmbench.report.table import grid, wrapped

_HEADS = ("cell", "turn", "requests", "prompt\ntokens", "cached\n%", "TTFT ms\np50", "TTFT ms\np95")


def render_turns(cells: Sequence[Cell], style: str) -> str:
    """A table with one row a turn for the cells that have some; empty where none has."""
    rows = [
        [places([cell], cells) if first else "", *_row(cell, turn)]
        for cell in cells
        for first, turn in ((turn.turn == 1, turn) for turn in cell.turns or ())
    ]
    if not rows:
        return ""
    cuts = "".join(f"{wrapped(_cut(cell, cells))}\n" for cell in cells if cell.barge_in is not None)
    if style == "markdown":
        heads = [head.replace("\n", " ") for head in _HEADS]
        table = tabulate.tabulate(
            rows,
            heads,
            "github",
            disable_numparse=True,
            colalign=("left", *["right"] * (len(heads) - 1)),
        )
        return f"\n{table}\n\n{cuts}"
    return "\n" + grid(_HEADS, rows, gap=2) + "\n" + cuts


def _cut(cell: Cell, cells: Sequence[Cell]) -> str:
    """What became of the replies of ``cell`` that users cut off."""
    cuts = cell.barge_in
    assert cuts is not None
    where = places([cell], cells) or "all"
    if cell.verdict == "invalid":
        return f"{where}: {cuts.cut} replies were cut off; the cell is INVALID"
    return (
        f"{where}: {cuts.cut} replies were cut off, and the server sent on for "
        f"{_p50(cuts.stop_ms)}. TTFT of the turn after one {_p50(cuts.next_ttft_ms)}, after a "
        f"whole reply {_p50(cuts.other_ttft_ms)}."
    )


def _p50(block: Block | None) -> str:
    words = NOT_MEASURED if block is None else told(block, "p50")
    return f"{words} ms (p50)"


def _row(cell: Cell, turn: Turn) -> list[str]:
    valid = cell.verdict != "invalid"
    return [
        str(turn.turn),
        str(turn.ttft_ms.n),
        _span(turn.prompt_tokens),
        NOT_MEASURED if turn.cached_share is None else f"{100 * turn.cached_share:.0f}",
        *(told(turn.ttft_ms, name) if valid else NOT_MEASURED for name in ("p50", "p95")),
    ]


def _span(span: Range | None) -> str:
    if span is None:
        return NOT_MEASURED
    return f"{span.min}" if span.min == span.max else f"{span.min}–{span.max}"
