"""Up to how many users a turn is in budget, in words."""

from collections.abc import Sequence

from msgspec import Struct

from llmbench.measure.statistics import fewest
from llmbench.measure.turn_budget import BudgetRow, Group, searched
from llmbench.plan.search import Answer


class VerdictRow(Struct, kw_only=True):
    """Up to which load the turns of one group are in budget; see ``measure/budget.Verdict``."""

    target: str
    unit: str
    sure: float | None
    probable: float | None
    most: float
    says: str


def verdict_rows(groups: Sequence[Group]) -> list[VerdictRow]:
    """One verdict a group, in words that name the group where there are several."""
    return [_verdict_row(group, groups) for group in groups]


def _verdict_row(group: Group, groups: Sequence[Group]) -> VerdictRow:
    found, first = group.verdict, group.rows[0]
    unit = unit_of(first)
    where = f"{_name(group, groups)}: " if len(groups) > 1 else ""
    return VerdictRow(
        target=first.target,
        unit=unit,
        sure=found.sure,
        probable=found.probable,
        most=found.most,
        says=where + _says(group, unit),
    )


def search_verdict_rows(
    groups: Sequence[Group], share: float, least: float, most: float
) -> list[VerdictRow]:
    """One verdict a group of cells that a search has run, in the order in which it ran them."""
    rows = []
    for group in groups:
        first, found = group.rows[0], searched(group.rows, share, least, most)
        unit = unit_of(first)
        where = f"{_name(group, groups)}: " if len(groups) > 1 else ""
        rows.append(
            VerdictRow(
                target=first.target,
                unit=unit,
                sure=found.low,
                probable=found.load,
                most=most,
                says=where + _search_says(found, unit, percent(share), len(group.rows)),
            )
        )
    return rows


def _search_says(found: Answer, unit: str, share: str, probes: int) -> str:
    tried = f"{probes} {'probe' if probes == 1 else 'probes'}"
    if found.load is None:
        return f"not even the lightest load at {share} ({found.open_end or tried})"
    sure = [f"95% interval {found.low:g}–{found.high:g}"] if found.high is not None else []
    sure += [found.open_end] if found.open_end else []
    if not found.sure:
        sure.append("too few turns to be sure")
    words = "up to" if found.sure else "probably up to"
    return f"{words} {count_of(found.load, unit)} at {share} ({'; '.join([*sure, tried])})"


def _says(group: Group, unit: str) -> str:
    found, at = group.verdict, f"at {percent(group.verdict.share)}"
    unknown = _unknown(group, found.probable)
    if found.probable is None:
        least = min(row.load or 0.0 for row in group.rows)
        return unknown or f"not even {count_of(least, unit)} {at}"
    most = " (more were not measured)" if found.probable == found.most else ""
    tail = f"{most}; {unknown}" if unknown else most
    if found.sure == found.probable:
        return f"up to {count_of(found.sure, unit)} {at}{tail}"
    needed = fewest(found.share)
    if min(row.turns for row in group.rows) < needed:
        tail += f"; to be sure takes {needed} turns or more at each load"
    if found.sure is None:
        return f"probably up to {count_of(found.probable, unit)} {at}{tail}"
    return f"up to {count_of(found.sure, unit)} {at}, probably up to {found.probable:g}{tail}"


def _unknown(group: Group, kept: float | None) -> str:
    """Why nothing is said of the load after ``kept``, where its cell is invalid or empty."""
    above = [row for row in group.rows if kept is None or (row.load or 0.0) > kept]
    after = min(above, key=lambda row: row.load or 0.0, default=None)
    if after is None or after.chance is not None:
        return ""
    why = "is INVALID" if after.verdict == "invalid" else "has no requests"
    more = "from it on" if kept is None else "of more"
    return f"nothing can be said {more}: the cell at {after.load:g} {why}"


def unit_of(row: BudgetRow) -> str:
    if row.arrivals is not None:
        return "req/s"
    return "requests at once" if row.batch_size else "users"


def count_of(load: float | None, unit: str) -> str:
    """``8 users``, ``1 user``, ``0.5 req/s``."""
    one = {"users": "user", "requests at once": "request at once"}
    return f"{load or 0.0:g} {one.get(unit, unit) if load == 1 else unit}"


def _name(group: Group, groups: Sequence[Group]) -> str:
    """The target of ``group``, and what else tells it from the other groups."""
    row, firsts = group.rows[0], [each.rows[0] for each in groups]
    words = [row.target]
    if len({each.client for each in firsts}) > 1:
        words.append(f"via {row.client}")
    if len({each.prompt_tokens for each in firsts}) > 1:
        words.append(f"at {row.prompt_tokens} prompt tokens")
    if len({each.output_tokens for each in firsts}) > 1:
        words.append(f"with replies of {row.output_tokens}")
    if len({each.cache_asked for each in firsts}) > 1 and row.cache_asked:
        words.append(row.cache_asked)
    return " ".join(words)


def percent(share: float) -> str:
    return f"{100 * share:.4g}%"
