"""What a way of calling adds to the same work: another client, or the way over HTTP."""

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from llmbench.records import Block, Cell
from llmbench.report.comparison import grouped, load, several_targets

REFERENCE_CLIENT = "wire"
IN_PROCESS_CLIENT = "engine"


class Difference(NamedTuple):
    """What ``cell`` needs beyond ``base``, in words."""

    base: Cell
    cell: Cell
    added: str


def client_taxes(cells: Sequence[Cell]) -> list[Difference]:
    """What other clients read at the same load beyond what the wire client reads."""
    wire = {(cell.target, load(cell)): cell for cell in cells if cell.client == REFERENCE_CLIENT}
    pairs = (
        (base, cell)
        for cell in cells
        if cell.client != REFERENCE_CLIENT
        if (base := wire.get((cell.target, load(cell)))) is not None
    )
    return list(_told(pairs))


LENGTHS_DIFFER = 0.05
"""Median reply lengths further apart than this are other work, not other speed."""


def length_warnings(cells: Sequence[Cell]) -> list[str]:
    """A line for each load at which targets replied at different lengths."""
    lines = []
    for group in grouped(cells) if several_targets(cells) else []:
        medians = {
            cell.target: cell.measured_output_tokens.p50
            for cell in group
            if cell.measured_output_tokens is not None and cell.token_source != "chunks"
        }
        if medians and max(medians.values()) > (1 + LENGTHS_DIFFER) * min(medians.values()):
            told = ", ".join(f"{target} {tokens}" for target, tokens in medians.items())
            lines.append(
                f"replies differ in length ({told} tokens): E2E and tok/s total are of other "
                "work; compare TPOT, and tpot_by_length in the JSON"
            )
    return list(dict.fromkeys(lines))


def http_taxes(cells: Sequence[Cell]) -> list[Difference]:
    """What an engine that serves over HTTP needs beyond the same one in process, at each load.

    The wire client stands for the way over HTTP, wherever it was used. A difference whose 95%
    intervals overlap is not stated: two runs of one engine differ by that much too.
    """
    inside = [cell for cell in cells if cell.client == IN_PROCESS_CLIENT]
    served = [cell for cell in cells if cell.client != IN_PROCESS_CLIENT]
    if any(cell.client == REFERENCE_CLIENT for cell in served):
        served = [cell for cell in served if cell.client == REFERENCE_CLIENT]
    return list(
        _told(
            (
                (base, cell)
                for base in inside
                for cell in served
                if _same_work(base) == _same_work(cell)
            ),
            sure=True,
        )
    )


def _sure(base: Block, cell: Block) -> bool:
    """Whether the medians' intervals leave no doubt that they differ; so too without intervals."""
    if "p50" not in base.ci95 or "p50" not in cell.ci95:
        return True
    (low, high), (its_low, its_high) = base.ci95["p50"], cell.ci95["p50"]
    return its_low > high or its_high < low


def _engine_word(cell: Cell) -> str:
    """The engine without its version: ``vllm`` of ``vllm 0.32.0``."""
    return (cell.engine or "").partition(" ")[0].lower()


def _same_work(cell: Cell) -> object:
    # An engine or a model without a name is the same as no other.
    if not cell.engine or not cell.model:
        return id(cell)
    return _engine_word(cell), _model_name(cell.model), cell.quantization, load(cell)


def _model_name(model: str) -> str:
    """The end of a path, which is what a server may call its model; any other name as it is."""
    return Path(model).name if model.startswith(("/", ".", "~")) else model


def _told(pairs: Iterable[tuple[Cell, Cell]], sure: bool = False) -> Iterator[Difference]:
    for base, cell in pairs:
        if added := _added(base, cell, sure):
            yield Difference(base, cell, added)


def _added(base: Cell, cell: Cell, sure: bool) -> str:
    """The differences of the medians; with ``sure`` those alone that chance is not."""
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
        if not sure or _sure(base_block, cell_block)
    ]
    return ", ".join(figures)
