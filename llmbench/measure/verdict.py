"""Whether a cell's numbers can be stood behind, and why not, in plain words."""

from llmbench.records import Cell, CellFacts

FULL_LOAD = 0.98
"""The least share of the asked concurrency that must have been in flight, averaged over time."""

CACHED = 0.01
"""A greater share of prompt tokens from a cache than this makes a cell warm."""

COUNTS_AGREE = 0.01


def judge(cell: Cell, facts: CellFacts) -> None:
    """Set the verdict of ``cell``, the reasons for it, and notes on what its reader should know."""
    if facts.unmeasured:
        cell.verdict = "invalid"
        cell.reasons.append(facts.unmeasured)
        return
    cell.reasons += _reasons(cell, facts)
    if cell.reasons:
        cell.verdict = "invalid"
    if facts.stopped:
        cell.reasons.insert(0, facts.stopped)
        cell.verdict = "invalid" if cell.verdict == "invalid" else "partial"
    cell.notes += _notes(cell, facts)


def _reasons(cell: Cell, facts: CellFacts) -> list[str]:
    reasons = []
    if cell.requests.ok == 0:
        reasons.append("no request succeeded")
    elif (
        not facts.stopped
        and cell.in_flight is not None
        and cell.in_flight < FULL_LOAD * facts.load.concurrency
    ):
        reasons.append(
            f"only {cell.in_flight:.1f} of {facts.load.concurrency} requests were in flight on "
            "average: the client or its connections held the load back"
        )
    return reasons


def _notes(cell: Cell, facts: CellFacts) -> list[str]:
    notes = []
    if cell.cached_share is not None:
        cell.cache = "warm" if cell.cached_share > CACHED else "cold"
        if cell.cache == "warm":
            notes.append(f"warm: {cell.cached_share:.0%} of the prompt tokens came from a cache")
    length = cell.measured_output_tokens
    if length is not None and not length.min == length.max == facts.load.output_tokens:
        notes.append(
            f"replies of {length.min}–{length.max} tokens, asked for {facts.load.output_tokens}"
            + ("" if facts.exact_length else " (this server stops where it likes)")
        )
    if cell.requests.failures.get("http-429"):
        notes.append("rate-limited: the server answered 429")
    return notes
