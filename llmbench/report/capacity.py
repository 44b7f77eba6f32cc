"""What a search for capacity found, in words; the loads that it tried are the table above."""

from collections.abc import Sequence

from llmbench.measure.capacity import by_search, load_of
from llmbench.records import Capacity, Cell
from llmbench.report.columns import digits
from llmbench.report.table import wrapped


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of each search from the lightest load to the heaviest: the frontier."""
    return [cell for group in by_search(cells) for cell in sorted(group, key=load_of)]


def render_capacity(found: Sequence[Capacity], style: str = "table") -> str:
    """One sentence a search: the load, how sure it is, and what comes out at it; in ``markdown`` an
    item of a list."""
    several = {
        "cache": len({each.cache for each in found}) > 1,
        "client": len({each.client for each in found}) > 1,
        "prompt_tokens": len({each.prompt_tokens for each in found}) > 1,
    }
    lines = []
    for each in found:
        words = [str(getattr(each, key)) for key, shown in several.items() if shown]
        name = each.target + (f" ({', '.join(words)})" if words else "")
        line = f"{name}: {_told(each)}"
        lines.append(f"- {line}" if style == "markdown" else wrapped(line))
    return "".join(f"{line}\n" for line in lines)


def _told(found: Capacity) -> str:
    limits = " and ".join(f"{name} ≤ {limit:g} ms" for name, limit in found.limits_ms.items())
    unit = "requests/s" if found.by == "rate" else "requests in flight"
    tried = f"{found.probes} {'probe' if found.probes == 1 else 'probes'}"
    if found.load is None:
        least = f", {found.open_end}" if found.open_end else ""
        return f"no load that was tried meets {limits}{least}; {tried}"
    sure = []
    if found.ci95 is not None:
        sure.append(f"95% interval {found.ci95[0]:g}–{found.ci95[1]:g}")
    if found.open_end:
        sure.append(found.open_end)
    meet = "meet" if found.sure else "probably meet"
    if not found.sure:
        sure.append("too few requests to be sure")
    at = [
        f"{digits(found.otps)} tok/s in total" if found.otps else "",
        f"{digits(found.otps_per_user)} per user" if found.otps_per_user else "",
    ]
    return (
        f"up to {found.load:g} {unit} {meet} {limits} ({'; '.join(sure)}); "
        f"there {', '.join(part for part in at if part) or 'no rate is known'}; {tried}"
    )
