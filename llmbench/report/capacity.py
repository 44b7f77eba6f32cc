"""What a search for capacity found, in words; the loads that it tried are the table above."""

from collections.abc import Sequence

from llmbench.measure.capacity import answer, by_search, load_of
from llmbench.records import Cell
from llmbench.report.columns import digits
from llmbench.report.table import wrapped


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of each search from the lightest load to the heaviest: the frontier."""
    return [cell for group in by_search(cells) for cell in sorted(group, key=load_of)]


def render_capacity(cells: Sequence[Cell], limits_ms: dict[str, float], most: float) -> str:
    """One sentence a search: the load, how sure it is, and what comes out at it."""
    lines = []
    for group in by_search(cells):
        name = group[0].target + (f" ({group[0].cache_asked})" if _mixed(cells) else "")
        lines.append(f"{name}: {_told(group, limits_ms, most)}")
    return "\n".join(wrapped(line) for line in lines) + "\n"


def _mixed(cells: Sequence[Cell]) -> bool:
    return len({cell.cache_asked for cell in cells}) > 1


def _told(cells: Sequence[Cell], limits_ms: dict[str, float], most: float) -> str:
    found = answer(cells, limits_ms, most)
    limits = " and ".join(f"{name} ≤ {limit:g} ms" for name, limit in limits_ms.items())
    unit = "requests/s" if cells[0].arrivals else "requests in flight"
    tried = f"{len(cells)} {'probe' if len(cells) == 1 else 'probes'}"
    if found.load is None:
        return f"no load meets {limits}, not even {load_of(cells[0]):g} {unit} ({tried})"
    best = max(
        (cell for cell in cells if load_of(cell) == found.load), key=lambda cell: cell.otps or 0
    )
    at = [
        f"{digits(best.otps)} tok/s in total" if best.otps else "",
        f"{digits(best.otps_per_user.p50)} per user"
        if best.otps_per_user and best.otps_per_user.p50
        else "",
    ]
    sure = []
    if found.low is not None:
        sure.append(f"{found.low:g} without doubt")
    if found.high is not None:
        sure.append(f"{found.high:g} certainly not")
    if found.open_end:
        sure.append(found.open_end)
    return (
        f"up to {found.load:g} {unit} meet {limits} ({'; '.join(sure) or 'all within doubt'}); "
        f"there {', '.join(part for part in at if part) or 'no rate is known'}; {tried}"
    )
