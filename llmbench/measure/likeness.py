"""Which cells of two runs belong together, and what makes two of them other work."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from llmbench.measure.requests import Requests
from llmbench.measure.steady import SURE_Z, rank_z
from llmbench.records import Cell, CellFacts, Load, Range

PROMPTS_DIFFER = 0.02
"""Median prompt lengths further apart than this are other work."""

REPLIES_DIFFER = 0.05
"""And median reply lengths."""

BRIEF = 60
"""Characters of what the user says in a request, where it is named."""


class Stored(NamedTuple):
    """One cell of one run: what is known of it, its row, and all its requests."""

    facts: CellFacts
    cell: Cell
    requests: Requests


class Side(NamedTuple):
    """One side of a comparison: the same cell of each of its runs."""

    stored: Sequence[Stored]

    @property
    def cells(self) -> list[Cell]:
        return [each.cell for each in self.stored]

    def measured(self) -> Iterator[tuple[Cell, Requests]]:
        """Each run's cell with the requests that its figures are of, in the order of time."""
        for _, cell, requests in self.stored:
            its = requests.where(requests.measured)
            yield cell, its.where(np.arange(len(its)) >= cell.warmup_removed)


Key = Callable[[Stored], object]


def matched(
    base: Sequence[Stored], other: Sequence[Stored]
) -> tuple[list[tuple[Stored, Stored]], list[Stored], list[Stored]]:
    """The pairs of cells of two runs at the same load, and the cells of each that have no partner.

    Where each run has one target its name does not matter. What is like in everything is paired
    first, then what is like in size alone, so that it can be said in what it differs.
    """
    one_target = all(len({each.cell.target for each in run}) <= 1 for run in (base, other))

    def named(key: Key) -> Key:
        return lambda each: ("" if one_target else each.cell.target, key(each))

    pairs: list[tuple[Stored, Stored]] = []
    left, right = list(base), list(other)
    for key in (named(_exactly), named(_size)):
        pairs += _paired(left, right, key)
    if not pairs and len(left) == len(right) == 1:
        pairs.append((left.pop(), right.pop()))
    order = {id(each): number for number, each in enumerate(base)}
    return sorted(pairs, key=lambda pair: order[id(pair[0])]), left, right


def _paired(left: list[Stored], right: list[Stored], key: Key) -> list[tuple[Stored, Stored]]:
    """The pairs whose ``key`` is theirs alone on both sides, taken out of them."""
    counts = [Counter(map(key, side)) for side in (left, right)]
    partners = {key(each): each for each in right}
    pairs = [
        (each, partners[key(each)])
        for each in left
        if all(count[key(each)] == 1 for count in counts)
    ]
    for mine, its in pairs:
        _remove(left, mine)
        _remove(right, its)
    return pairs


def _remove(side: list[Stored], gone: Stored) -> None:
    side[:] = [each for each in side if each is not gone]


def _size(stored: Stored) -> object:
    load = stored.facts.load
    return (
        load.concurrency,
        load.batch_size,
        load.rate,
        load.prompt_tokens,
        load.output_tokens,
    )


def _exactly(stored: Stored) -> object:
    facts, cell = stored.facts, stored.cell
    said = _sorted(facts.body), facts.system_prompt
    how = facts.load.arrivals, facts.client, cell.api, cell.cache_asked, cell.text
    return _size(stored), how, said


def differences(base: Stored, other: Stored) -> list[str]:
    """What makes the two other work, one short text each; empty where their figures compare."""
    if not (base.cell.requests.ok and other.cell.requests.ok):
        return []  # there is nothing to compare, and that is why
    told = [
        f"{what} {_word(mine)} against {_word(its)}"
        for (what, mine), (_, its) in zip(_conditions(base), _conditions(other), strict=True)
        if mine != its
    ]
    a, b = base.cell, other.cell
    content = base.facts.load.content
    if not (content.prompt_lengths or content.dataset) or _drawn_apart(
        base, other, "prompt_tokens"
    ):
        told += _far("prompts", a.measured_prompt_tokens, b.measured_prompt_tokens, PROMPTS_DIFFER)
    if not (content.output_lengths or content.dataset) or _drawn_apart(base, other, "tokens"):
        told += _far("replies", a.measured_output_tokens, b.measured_output_tokens, REPLIES_DIFFER)
    return told


def _drawn_apart(base: Stored, other: Stored, column: str) -> bool:
    """Whether lengths that were drawn differ beyond chance, by their ranks."""
    lengths = (
        getattr(each.requests, column)[each.requests.good & each.requests.measured]
        for each in (base, other)
    )
    return abs(rank_z(*(each.astype(np.float64) for each in lengths))) > SURE_Z


def _conditions(stored: Stored) -> list[tuple[str, object]]:
    load, cell = stored.facts.load, stored.cell
    content = load.content
    return [
        ("api", cell.api),
        ("client", cell.client),
        ("stamps", cell.ruler.stamps),
        ("concurrency", load.concurrency),
        ("batch size", load.batch_size),
        ("request rate", load.rate),
        ("arrivals", _arrivals(load)),
        ("cache", _cache(cell)),
        ("turns", content.turns),
        ("think time", content.think_time),
        ("share of replies cut off", content.barge_in),
        ("time to the cut", content.barge_in_after),
        ("text", content.dataset or content.text),
        ("prompt lengths", content.prompt_lengths),
        ("reply lengths", content.output_lengths),
        ("shared prefix", content.shared_prefix),
        ("natural stops", content.natural_stops),
        ("request fields", _brief(_sorted(stored.facts.body))),
        ("system prompt", _brief(stored.facts.system_prompt)),
    ]


def _sorted(body: dict[str, Any]) -> str:
    return msgspec.json.encode(body, order="deterministic").decode() if body else ""


def _brief(text: str) -> str:
    """``text`` in a few words, that are others for another text."""
    if len(text) <= BRIEF:
        return text
    return f"{text[:BRIEF]}… ({len(text)} characters, CRC {zlib.crc32(text.encode()):08x})"


def _arrivals(load: Load) -> str:
    return load.arrivals if load.speed == 1 else f"{load.arrivals} ×{load.speed:g}".strip()


def _cache(cell: Cell) -> str | None:
    """What the cache was, where the server says so, else what it was meant to be."""
    return cell.cache or cell.cache_asked


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value in (None, "", 0) else str(value)


def _far(what: str, mine: Range | None, its: Range | None, limit: float) -> list[str]:
    if (
        mine is None
        or its is None
        or max(mine.p50, its.p50) <= (1 + limit) * min(mine.p50, its.p50)
    ):
        return []
    return [f"{what} of {mine.p50} against {its.p50} tokens (medians; more than {limit:.0%} apart)"]
