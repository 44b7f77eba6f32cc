"""How TTFT changes from turn to turn of a conversation, as the context grows."""

from collections.abc import Sequence

import tabulate

from llmbench.records import Block, Cell, Range, Turn
from llmbench.report.columns import NOT_MEASURED, digits
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
    told = cell.barge_in
    assert told is not None
    where = places([cell], cells) or "all"
    if cell.verdict == "invalid":
        return f"{where}: {told.cut} replies were cut off; the cell is INVALID"
    return (
        f"{where}: {told.cut} replies were cut off, and the server sent on for "
        f"{_p50(told.stop_ms)}. TTFT of the turn after one {_p50(told.next_ttft_ms)}, after a "
        f"whole reply {_p50(told.other_ttft_ms)}."
    )


def _p50(block: Block | None) -> str:
    if block is None or block.p50 is None:
        return "— (too few to tell)"
    return f"{digits(block.p50)} ms (p50)"


def _row(cell: Cell, turn: Turn) -> list[str]:
    valid = cell.verdict != "invalid"
    figures = [turn.ttft_ms.p50, turn.ttft_ms.p95]
    return [
        str(turn.turn),
        str(turn.ttft_ms.n),
        _span(turn.prompt_tokens),
        NOT_MEASURED if turn.cached_share is None else f"{100 * turn.cached_share:.0f}",
        *(NOT_MEASURED if each is None or not valid else digits(each) for each in figures),
    ]


def _span(span: Range | None) -> str:
    if span is None:
        return NOT_MEASURED
    return f"{span.min}" if span.min == span.max else f"{span.min}–{span.max}"
