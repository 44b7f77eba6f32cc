"""Cells of a search → its answer: the highest load that meets the objectives."""

from collections.abc import Iterable, Sequence

from llmbench.plan.search import Beyonds, Search
from llmbench.records import Beyond, Capacity, Cell, Objective

A_VERDICT = 30
"""What an objective about a mean or a maximum is worth: it is met or not, and no share tells."""


def beyonds(cell: Cell) -> Beyonds:
    """What ``cell`` says of each objective; nothing where it is INVALID, was broken off but for a
    server that refused the load, or does not say it all."""
    if cell.verdict == "invalid" or cell.slo is None:
        return {}
    if cell.verdict == "partial" and not _was_refused(cell):
        return {}
    shares = cell.beyond or {}
    told = {
        name: shares[name] if name in shares else _of_verdict(objective)
        for name, objective in cell.slo.items()
    }
    known = {name: each for name, each in told.items() if each is not None}
    if len(known) < len(told) and all(each.share <= each.allowed for each in known.values()):
        return {}
    return known


def _was_refused(cell: Cell) -> bool:
    """Whether a server that still spoke failed the requests: too much for it, and not its end."""
    kinds = cell.requests.failures
    return bool(kinds) and all(kind.startswith(("http-", "timeout")) for kind in kinds)


def _of_verdict(objective: Objective) -> Beyond | None:
    if objective.met is None:
        return None
    return Beyond(0.0 if objective.met else 1.0, A_VERDICT, A_VERDICT, allowed=0.5)


def load_of(cell: Cell) -> float:
    """The load that a search varies: the rate of an open loop, else the concurrency."""
    return cell.request_rate if cell.request_rate is not None else float(cell.concurrency or 0)


def answers(cells: Iterable[Cell], least: float, most: float) -> list[Capacity]:
    """The answer of each search that made ``cells``, in their order, by the objectives that these
    were held against; none without any."""
    return [_answer(group, least, most) for group in by_search(list(cells)) if group[0].slo]


def _answer(cells: Sequence[Cell], least: float, most: float) -> Capacity:
    search = Search(least, most, whole=not cells[0].arrivals)
    for cell in cells:
        search.add(load_of(cell), beyonds(cell))
    found = search.answer
    at = _nearest(cells, found.load) if found.load is not None else None
    return Capacity(
        target=cells[0].target,
        client=cells[0].client,
        cache=cells[0].cache_asked,
        prompt_tokens=cells[0].prompt_tokens,
        by="rate" if cells[0].arrivals else "concurrency",
        limits_ms={name: each.limit_ms for name, each in (cells[0].slo or {}).items()},
        load=found.load,
        ci95=None if found.low is None or found.high is None else (found.low, found.high),
        open_end=found.open_end or None,
        sure=found.sure,
        probes=len(cells),
        otps=at.otps if at else None,
        otps_per_user=at.otps_per_user.p50 if at and at.otps_per_user else None,
    )


def _nearest(cells: Sequence[Cell], load: float) -> Cell | None:
    """The cell with figures that ran closest to ``load``, on the side that is met if there is one;
    of several at one load the last."""
    shown = [cell for cell in cells if cell.verdict != "invalid" and cell.otps]
    return min(
        reversed(shown),
        key=lambda cell: (load_of(cell) > load * 1.05, abs(load_of(cell) - load)),
        default=None,
    )


def by_search(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each search of a run: what differs in the load alone belongs together."""
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        key = (cell.target, cell.client, cell.cache_asked, cell.prompt_tokens, cell.prompt_lengths)
        groups.setdefault(key, []).append(cell)
    return list(groups.values())
