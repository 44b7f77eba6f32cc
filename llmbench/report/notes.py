"""What stands below the table: why a cell is not shown, and what a reader should know."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import PurePath
from typing import NamedTuple

from llmbench.measure.blocks import ALIKE
from llmbench.measure.verdict import BUSY, INSECURE, OVERLOADED
from llmbench.records import Block, Cell
from llmbench.report.columns import (
    ABOVE,
    BASE,
    CHUNKS,
    INTERVAL,
    RULER,
    UNSURE,
    UNTIMED,
    constant_prompt,
    digits,
    ruler_error_ms,
)
from llmbench.report.comparison import several_targets
from llmbench.report.differences import (
    Difference,
    client_taxes,
    http_taxes,
    length_warnings,
)
from llmbench.report.targets import target_lines

ROOM = 98
"""Characters of a line that is cut short; two more say so."""

MOST_PRESSING = 4
"""So many lines pressing notes may take from the legend."""

MOST_LINES = 8
"""Below a table stand no more lines than these, unless all are asked for."""


class Notes(NamedTuple):
    """What stands below a table: first ``lines``, then the ``legend``, what is needed most first.
    So many of the lines are ``pressing``."""

    lines: list[str]
    legend: list[str]
    pressing: int = 0

    def shown(self, wrap: Callable[[str], str], most: int | None) -> list[str]:
        """As many lines as ``most`` have room for when they are wrapped; all where it is ``None``.

        Pressing notes come before the legend and are cut short rather than left out; of the others
        there are those that fit. The last line says how many more there are.
        """
        lines, legend = ([wrap(line) for line in each] for each in (self.lines, self.legend))
        if most is None or sum(map(_height, (*lines, *legend))) <= most:
            return [*lines, *legend]
        pressing, others = lines[: self.pressing], lines[self.pressing :]
        needed = min(max(sum(map(_height, pressing)), 1), MOST_PRESSING)
        while sum(map(_height, legend)) > most - needed - 1:
            legend.pop()
        left = most - sum(map(_height, legend)) - 1
        shown: list[str] = []
        for number, text in enumerate(pressing[:left], start=1):
            waiting = min(len(pressing) - number, left - 1)
            shown.append(_cut(text, left - waiting))
            left -= _height(shown[-1])
        for text in others:
            if _height(text) <= left:
                shown.append(text)
                left -= _height(text)
        missing = len(lines) - len(shown)
        more = f"{missing} more {'line' if missing == 1 else 'lines'}" if missing else "the rest"
        return [*shown, f"{more}: --why", *legend]


def _height(text: str) -> int:
    return text.count("\n") + 1


def _cut(text: str, lines: int) -> str:
    """The first ``lines`` of ``text``, with a sign where there is more."""
    if _height(text) <= lines:
        return text
    *first, last = text.split("\n")[:lines]
    return "\n".join((*first, f"{last[:ROOM]} …"))


def notes(
    cells: Sequence[Cell],
    *,
    mark: str = "",
    baseline: str | None = None,
    left_out: Sequence[str] = (),
    marks: Collection[str] = (),
) -> Notes:
    """One line a kind of note, with the cells that it is about.

    ``mark`` is what the best of each group has, if any has one; ``left_out`` the columns that the
    table has no room for, and ``marks`` those of its figures.
    """
    pressing, others = (
        merged(
            [(line, cell) for of_kind in kinds for cell in cells for line in of_kind(cell)], cells
        )
        for kinds in (_PRESSING, _OTHERS)
    )
    lines = [
        *pressing,
        *others,
        *(f"client tax, {places([tax.cell], cells)}: {tax.added}" for tax in client_taxes(cells)),
        *_http_taxes(cells),
        *length_warnings(cells),
        *target_lines(cells),
    ]
    if missing := [name for name in left_out if name != "failed"]:
        lines.append(f"no room for {', '.join(missing)}: the JSON has them")
    legend = _legend(cells, left_out, marks, _comparing(cells, mark, baseline))
    return Notes(lines, legend, len(pressing))


_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")


def merged(told: Sequence[tuple[str, Cell]], cells: Sequence[Cell]) -> list[str]:
    """The lines that are ``told`` of ``cells``, those that differ in nothing but numbers as one,
    which says from where to where these go."""
    kinds: dict[str, list[tuple[str, Cell]]] = {}
    for line, cell in told:
        kinds.setdefault(_NUMBER.sub("\0", line), []).append((line, cell))
    lines = []
    for same in kinds.values():
        columns = zip(*(_NUMBER.findall(line) for line, _ in same), strict=True)
        spans = map(_span, columns)
        line = _NUMBER.sub(lambda _, spans=spans: next(spans), same[0][0])  # type: ignore[misc]
        about = [cell for cell in cells if any(cell is each for _, each in same)]
        lines.append(f"{places(about, cells)}: {line}")
    return lines


def _span(numbers: Sequence[str]) -> str:
    """``12``, or ``12–16`` where they differ."""
    least, *_, most = sorted([numbers[0], *numbers], key=lambda each: float(each.replace(",", "")))
    return least if least == most else f"{least}–{most}"


def _reasons(cell: Cell) -> Iterable[str]:
    label = {"invalid": "INVALID", "partial": "PARTIAL", "valid": ""}[cell.verdict]
    for reason in cell.reasons:
        yield f"{label}, {reason.removeprefix(f'{cell.target}: ')}"


def _failures(cell: Cell) -> Iterable[str]:
    kinds = []
    for kind, count in cell.requests.failures.items():
        words = cell.requests.details.get(kind)
        kinds.append(f"{count} × {kind}" + (f" ({words})" if words else ""))
    if kinds:
        yield f"failed: {', '.join(kinds)}"


def _objectives(cell: Cell) -> Iterable[str]:
    for name, objective in (cell.slo or {}).items():
        fate = {True: "met", False: "missed", None: "not known"}[objective.met]
        known = _measured(cell, name) if objective.met is None else ""
        yield f"SLO {fate}: {name} ≤ {objective.limit_ms:g} ms{known}"


def _alike(cell: Cell) -> Iterable[str]:
    """Where the range of all samples stands for an interval that the table shows."""
    for metric, shown in (("ttft", ("p50", "p95")), ("itl", ("p50",))):
        block: Block | None = getattr(cell, f"{metric}_ms")
        if block is None or cell.verdict == "invalid" or not {*shown} & {*block.ci95_is_range}:
            continue
        yield (
            f"{metric.upper()} of all requests lies within {ALIKE:.0%}: that range stands for the "
            "interval"
        )


def _measured(cell: Cell, name: str) -> str:
    """The figure that an objective is about, with its interval."""
    metric, _, statistic = name.partition(".")
    block: Block | None = getattr(cell, f"{metric}_ms")
    value = block.estimate(statistic) if block is not None else None
    if block is None or value is None or cell.verdict == "invalid":
        return ""
    low, high = block.bounds(statistic)
    ends = [f"at least {digits(low)}"] if low is not None else []
    ends += [f"at most {digits(high)}"] if high is not None else []
    return f" (it is {', '.join([digits(value), *ends])})"


def _goodput(cell: Cell) -> Iterable[str]:
    """How many requests kept within all limits, where there are limits."""
    found = cell.goodput
    if not cell.slo or found is None or found.share is None or cell.verdict == "invalid":
        return
    low, high = found.ci95 or (found.share, found.share)
    rate = "" if found.per_s is None else f", {digits(found.per_s)} a second"
    told = f"{found.share:.1%} of the requests ({low:.1%} to {high:.1%}){rate}"
    yield f"goodput: {told}"


_MUST = (OVERLOADED, BUSY, INSECURE)
"""How remarks begin that are never left out."""


def _untimed(cell: Cell) -> Iterable[str]:
    """Why single figures are not shown, and what makes all of them less safe."""
    return [note for note in cell.notes if note.startswith(_MUST)]


def insecure(cells: Sequence[Cell]) -> list[str]:
    """That certificates were not verified, for reports that have other notes."""
    about = [cell for cell in cells if INSECURE in cell.notes]
    return [f"{places(about, cells)}: {INSECURE}"] if about else []


def _remarks(cell: Cell) -> Iterable[str]:
    """What else its reader should know."""
    return [note for note in cell.notes if not note.startswith(_MUST)]


def _whole(cell: Cell) -> Iterable[str]:
    """Why a cell is not shown."""
    return _reasons(cell) if cell.verdict == "invalid" else ()


def _in_part(cell: Cell) -> Iterable[str]:
    """Why a cell has less than was asked for."""
    return _reasons(cell) if cell.verdict != "invalid" else ()


Kind = Callable[[Cell], Iterable[str]]
_PRESSING: tuple[Kind, ...] = (_whole, _in_part, _failures, _untimed, _objectives)
_OTHERS: tuple[Kind, ...] = (_goodput, _remarks, _alike)
"""What may be said of a cell, the most pressing first."""


def places(about: Sequence[Cell], cells: Sequence[Cell]) -> str:
    """The cells that a note is about, in as few words as tell them apart."""
    if len(about) == len(cells) and len(cells) > 1:
        return "all"
    several_clients = len({cell.client for cell in cells}) > 1
    by_name: dict[str, list[str]] = {}
    for cell in about:
        name = f"{cell.target} via {cell.client}" if several_clients else cell.target
        by_name.setdefault(name, []).append(_load(cell, cells))
    return "; ".join(f"{name} at {', '.join(loads)}" for name, loads in by_name.items())


def _load(cell: Cell, cells: Sequence[Cell]) -> str:
    several_lengths = len({each.prompt_tokens for each in cells}) > 1
    length = f"/{cell.prompt_tokens}" if several_lengths else ""
    if cell.batch_size:
        return f"batch {cell.batch_size}{length}"
    cache = f" {cell.cache_asked}" if len({each.cache_asked for each in cells}) > 1 else ""
    if cell.arrivals is None:
        return f"{cell.concurrency}{length}{cache}"
    rate = cell.rate if cell.request_rate is None else f"{cell.rate}/s"
    return f"{rate}{length}{cache}"


def _http_taxes(cells: Sequence[Cell]) -> list[str]:
    """One line for each pair of targets, with all the loads that both had."""
    pairs: dict[tuple[str, str, str], list[Difference]] = {}
    for tax in http_taxes(cells):
        key = (str(tax.cell.engine), tax.cell.target, tax.base.target)
        pairs.setdefault(key, []).append(tax)
    lines = []
    for (engine, served, inside), taxes in pairs.items():
        told = "; ".join(f"{tax.added} at {_load(tax.cell, cells)}" for tax in taxes)
        lines.append(
            f"over HTTP, {engine} adds {told} ({served} beyond {inside}; where no doubt is left)"
        )
    return lines


def _comparing(cells: Sequence[Cell], mark: str, baseline: str | None) -> list[str]:
    lines = []
    if mark:
        lines.append(f"{mark}: best at its load beyond doubt")
    if baseline and several_targets(cells):
        lines.append(
            f"÷{BASE}: divided by {baseline}'s (faster is below 1 for TTFT and ITL, above 1 for "
            "tok/s)"
        )
    return lines


def _legend(
    cells: Sequence[Cell],
    left_out: Sequence[str],
    marks: Collection[str],
    comparing: Sequence[str],
) -> list[str]:
    """How the cells were loaded and read, and what the marks that stand in the table mean."""
    lines = []
    if any(cell.ruler.stamps for cell in cells):
        failed = "; none failed" if "failed" in left_out else ""
        lines.append(_conditions(cells) + failed)
    errors_ms = [error for cell in cells if (error := ruler_error_ms(cell)) is not None]
    told = []
    if INTERVAL in marks:
        told.append(f"{INTERVAL}: 95% interval")
    if errors_ms and RULER.name in left_out:
        told.append(f"the ruler itself can be off by {max(errors_ms):.2f} ms at most")
    elif errors_ms:
        told.append("ruler ±: how far off the ruler itself can be")
    if UNTIMED in marks:
        told.append("✗: not to be stood behind")
    if ABOVE in marks:
        told.append(">: longer than was seen")
    if CHUNKS in marks:
        told.append("~: gaps between chunks (ICL), where ITL is not known")
    if UNSURE in marks:
        lines.append("?: too few independent requests for a 95% interval (--why: how many more)")
    if told := [*told, *comparing]:
        lines.append("; ".join(told))
    return lines


def _conditions(cells: Sequence[Cell]) -> str:
    """How all the cells were loaded and read."""
    at_once = "; ".join(dict.fromkeys(map(_loop, cells)))
    lengths = f"asked for {_asked_tokens(cells)} tokens"
    if files := sorted({cell.dataset for cell in cells if cell.dataset}):
        lengths = f"requests from {', '.join(PurePath(file).name for file in files)}"
    if (prompt := constant_prompt(cells)) is not None:
        lengths = f"prompts of {prompt} tokens, {lengths}"
    stamps = sorted({cell.ruler.stamps for cell in cells if cell.ruler.stamps})
    return f"{at_once}; {lengths}; {' and '.join(stamps)} stamps"


def _loop(cell: Cell) -> str:
    if cell.arrivals is not None:
        wait = ", a wait for one of the places included" if cell.concurrency else ""
        return f"open loop ({cell.arrivals}): TTFT and E2E count from when a request was due{wait}"
    if cell.batch_size:
        return "static batches: service time of that many at once"
    if cell.turns is not None:
        return "closed loop: service time at that many users in conversation"
    return "closed loop: service time at that many in flight"


def _asked_tokens(cells: Sequence[Cell]) -> str:
    asked = {(cell.output_tokens, cell.output_lengths) for cell in cells}
    return ", ".join(drawn or str(mean) for mean, drawn in sorted(asked, key=lambda each: each[0]))
