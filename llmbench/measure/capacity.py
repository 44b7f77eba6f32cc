"""Cell → Probe: whether a load met its objectives, and whether there is doubt."""

from collections.abc import Iterable, Sequence

from llmbench.measure.slo import objectives
from llmbench.plan.search import Answer, Probe, Search
from llmbench.records import Cell


def probe(cell: Cell, limits_ms: dict[str, float]) -> Probe:
    """What became of the load of ``cell``. It met its objectives if it met all, and for sure if
    each 95% interval lies below its limit; it missed if it missed one, and for sure if one interval
    lies above. Where a figure is withheld nothing is known, unless another objective was missed."""
    told = objectives(cell, limits_ms)
    sides = [_side(cell, name, limit_ms) for name, limit_ms in limits_ms.items()]
    if any(each.met is False for each in told.values()) or not cell.requests.ok:
        return Probe(load_of(cell), "missed", not cell.requests.ok or any(s > 0 for s in sides))
    if any(each.met is None for each in told.values()):
        return Probe(load_of(cell), "unknown", False)
    return Probe(load_of(cell), "met", all(s < 0 for s in sides))


def load_of(cell: Cell) -> float:
    """The load that a search varies: the rate of an open loop, else the concurrency."""
    return cell.request_rate if cell.request_rate is not None else float(cell.concurrency or 0)


def _side(cell: Cell, name: str, limit_ms: float) -> int:
    """-1 where the interval of a figure is below its limit, 1 where above, 0 where it holds it."""
    metric, _, statistic = name.partition(".")
    block = getattr(cell, f"{metric}_ms")
    low, high = (block.ci95.get(statistic) if block else None) or (0.0, float("inf"))
    return -1 if high <= limit_ms else 1 if low > limit_ms else 0


def answer(cells: Iterable[Cell], limits_ms: dict[str, float], most: float) -> Answer:
    """The answer of the search that made ``cells``, in their order."""
    search = Search(1.0, most, whole=False)
    for cell in cells:
        search.add(probe(cell, limits_ms))
    return search.answer


def by_search(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each search of a run: what differs in the load alone belongs together."""
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        key = (cell.target, cell.client, cell.cache_asked, cell.prompt_tokens, cell.prompt_lengths)
        groups.setdefault(key, []).append(cell)
    return list(groups.values())
