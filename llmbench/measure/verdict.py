"""Whether a cell's numbers can be stood behind, and why not, in plain words."""

import math
from collections.abc import Iterable

from llmbench.measure.ruler import timed, untimed
from llmbench.records import Cell, CellFacts, Health, Range

LOAD_TOLERANCE = 0.02
"""How far what was in flight, averaged over the window, may be from the asked concurrency. By
Little's law it is the rate of the requests times their residence."""

CACHED = 0.01
"""A greater share of prompt tokens from a cache than this makes a cell warm."""

DELAYED_ACKS = 0.1
"""A greater share of gaps near the 40 ms of a delayed ACK, among much shorter ones, is one."""

LATE_MS = 1.0
LATE_SHARE = 0.05
FEWEST_FOR_P99 = 300
"""An open loop whose requests go out later than this, or than this share of TTFT p50 where that is
more, is not the load that was asked for: by the p99 of the lag, or where that is one hiccup or two,
by its p95."""

NEARLY_ALL = 0.9

OVERLOADED, BUSY = "client saturated", "machine busy"
INSECURE = "no TLS certificate was verified (--insecure)"

SATURATED = 0.5
"""A client that used less of a core than this was not the one that had too much to do."""


def judge(cell: Cell, facts: CellFacts) -> None:
    """Set the verdict of ``cell``, the reasons for it, and notes on what its reader should know."""
    if facts.unmeasured:
        cell.verdict = "invalid"
        cell.reasons.append(facts.unmeasured)
        return
    cell.untimed = untimed(cell)
    cell.reasons += [reason for reason in _reasons(cell, facts) if reason]
    if cell.reasons:
        cell.verdict = "invalid"
    if facts.stopped:
        cell.reasons.insert(0, facts.stopped)
        useless = cell.verdict == "invalid" or not cell.requests.ok
        cell.verdict = "invalid" if useless else "partial"
    cell.notes += _notes(cell, facts)


def _reasons(cell: Cell, facts: CellFacts) -> list[str]:
    if not cell.requests.ok:
        lost = facts.stored and not cell.requests.sent  # and the ruler says so
        return ["" if facts.stopped or lost else "no request succeeded"]
    return [
        _nothing_timed(cell, facts) or _held_back(cell, facts),
        _sent_late(cell) if facts.load.rate else _underloaded(cell, facts),
        *(_unhealthy(facts.health) if facts.health else ()),
    ]


def _nothing_timed(cell: Cell, facts: CellFacts) -> str:
    """Why no latency can be stood behind, not even a median, where it is so."""
    medians = [name for name, _, _ in timed(cell) if name.endswith(".p50")]
    if not medians or not set(medians) <= cell.untimed.keys():
        return ""
    return f"{_cause(facts)}: {_off(cell, medians)}; {_remedy(cell, facts)}"


def _held_back(cell: Cell, facts: CellFacts) -> str:
    """Whether replies were read so late that the next requests went out too late for the load."""
    idle_ms, e2e = cell.ruler.end_lag_ms, cell.e2e_ms
    if idle_ms is None or facts.load.rate or e2e is None or e2e.mean is None:
        return ""
    if idle_ms <= max(LATE_MS, LOAD_TOLERANCE * e2e.mean):
        return ""
    return (
        f"{_cause(facts)}: replies were read {idle_ms:.2g} ms after they had ended, and streams "
        f"stood idle meanwhile; {_remedy(cell, facts)}"
    )


def _off(cell: Cell, names: Iterable[str]) -> str:
    """How far off figures can be; ICL is told where there is no ITL, whose gaps are the same."""
    told = []
    for name in names:
        metric, _, statistic = name.partition(".")
        if metric != "icl" or cell.itl_ms is None:
            told.append(f"{metric.upper()} {statistic} can be off by {cell.untimed[name]:.2g} ms")
    return ", ".join(told)


def _cause(facts: CellFacts) -> str:
    """Whose doing it is that the client was late: its own, or that of others on its machine."""
    return BUSY if _is_busy(facts) else OVERLOADED


def _is_busy(facts: CellFacts) -> bool:
    health = facts.health
    if health is None:
        return False
    return health.cpu_share < SATURATED or health.cpu_wait_share > health.cpu_share


def _remedy(cell: Cell, facts: CellFacts) -> str:
    health = facts.health
    if health is not None and _is_busy(facts):
        return (
            f"this process waited for a core {health.cpu_wait_share:.0%} of the time: measure from "
            "a machine that does nothing else"
        )
    used = f"it used {health.cpu_share:.0%} of a core: " if health is not None else ""
    if cell.concurrency == 1:
        return f"{used}use a faster machine"
    return f"{used}use more --workers, fewer streams or a second machine"


def _sent_late(cell: Cell) -> str:
    """The client was too late to be the arrivals that were asked for."""
    lag, ttft = cell.dispatch_lag_ms, cell.ttft_ms
    name = "p99" if lag is not None and lag.n >= FEWEST_FOR_P99 else "p95"
    late_ms = getattr(lag, name, None)
    typical_ms = (ttft.p50 if ttft.p50 is not None else ttft.mean) if ttft is not None else None
    share_ms = LATE_SHARE * typical_ms if typical_ms and math.isfinite(typical_ms) else 0.0
    if late_ms is None or late_ms <= max(LATE_MS, share_ms):
        return ""
    return (
        f"the client sent late: dispatch lag {name} {late_ms:.1f} ms; use --workers or a second "
        "machine"
    )


def _underloaded(cell: Cell, facts: CellFacts) -> str:
    asked, content = facts.load.concurrency, facts.load.content
    if facts.stopped or cell.requests.failed or cell.in_flight is None:
        return ""  # what fails is counted as failed; the load that it leaves out is its doing
    if facts.load.batch_size or (content.turns > 1 and content.think_time):
        return ""  # between two batches nothing is in flight, nor while users think
    kept = cell.in_flight + (cell.opening or 0.0)  # what a server closes is no fault of the load
    if abs(kept - asked) <= LOAD_TOLERANCE * asked:
        return ""
    return (
        f"{cell.in_flight:.1f} requests were in flight on average, not {asked}: the client or its "
        "connections held the load back, or evidence is missing"
    )


def _unhealthy(health: Health) -> list[str]:
    return [
        f"the system's clock was set while measuring, by {health.clock_step_ms:.3g} ms"
        if health.clock_step_ms
        else "",
        f"this process was throttled for {health.throttled_ms:.3g} ms by its control group: give "
        "it more CPU"
        if health.throttled_ms
        else "",
        f"the garbage collector ran {health.collections} times while measuring"
        if health.collections
        else "",
    ]


def _notes(cell: Cell, facts: CellFacts) -> list[str]:
    notes = [*_untimed_notes(cell, facts), *facts.remarks, *_cache_notes(cell, facts)]
    length = cell.measured_output_tokens
    counted = cell.token_source != "chunks"
    as_asked = length is not None and length.min == length.max == facts.load.output_tokens
    if counted and length and not as_asked and _one_length(facts):
        notes.append(
            f"replies of {_span(length)} tokens, asked for {facts.load.output_tokens}"
            + ("" if facts.exact_length else " (this server stops where it likes)")
        )
    if not counted:
        notes.append("no tok/s: the server does not count its tokens; chars_per_s is in the JSON")
    if cell.measured_prompt_tokens is None and counted and cell.requests.ok:
        notes.append("the server does not count prompt tokens: how long prompts are is a guess")
    if cell.hidden_tokens is not None:
        notes.append(
            f"replies have {_span(cell.hidden_tokens)} tokens of reasoning that are not streamed: "
            "TPOT and tok/s are of the others"
        )
    if cell.requests.cancelled:
        notes.append(
            f"{cell.requests.cancelled} requests were cut off in flight: they count as at least as "
            "slow as they were seen to be"
        )
    if cell.delayed_ack_share is not None and cell.delayed_ack_share > DELAYED_ACKS:
        notes.append(
            f"{cell.delayed_ack_share:.0%} of the gaps are 38–45 ms: the server waits for delayed "
            "ACKs (set TCP_NODELAY there)"
        )
    notes += _connection_notes(cell, facts)
    if cell.requests.failures.get("http-429"):
        notes.append("rate-limited: the server answered 429")
    return notes


def _connection_notes(cell: Cell, facts: CellFacts) -> list[str]:
    """What the server did to connections that the client would have used again."""
    counts, sent = cell.reopened or {}, cell.requests.sent
    notes = []
    if closed := counts.get("closed", 0):
        firsts = 0 if facts.load.rate else facts.load.concurrency
        each = closed + counts.get("resent", 0) >= NEARLY_ALL * max(sent - firsts, 1)
        notes.append(
            "the server closes after each reply: connections are opened anew before a request's "
            "clock starts (connect_ms)"
            if each
            else f"the server had closed the connection of {closed} requests: a new one was opened "
            "before their clock started (connect_ms)"
        )
    if left := counts.get("unfinished", 0):
        notes.append(
            f"the server leaves replies open after their end marker: over there, and {left} "
            "requests needed a new connection"
        )
    if resent := counts.get("resent", 0):
        notes.append(
            f"{resent} requests were sent again, on a new connection: the server had closed theirs "
            "without a word of a reply"
        )
    return notes


def _untimed_notes(cell: Cell, facts: CellFacts) -> list[str]:
    """Which single figures are not shown, and why not, where the others can be stood behind."""
    if not cell.untimed or cell.verdict == "invalid":
        return []
    return [f"{_cause(facts)}: {_off(cell, cell.untimed)}; {_remedy(cell, facts)}"]


def _cache_notes(cell: Cell, facts: CellFacts) -> list[str]:
    """Set whether the cell was warm; what to say where that is not what was asked for."""
    share, asked = cell.cached_share, cell.cache_asked
    if share is None:
        return []
    cell.cache = "warm" if share > CACHED else "cold"
    if cell.cache == "warm" and asked == "cold" and not facts.load.content.shares_prefixes:
        return [f"warm: {share:.0%} of the prompt tokens came from a cache"]
    if share < CACHED and asked == "warm":
        return [f"asked for a warm cache, but {100 * share:.2g}% of the prompt tokens came from it"]
    return []


def _one_length(facts: CellFacts) -> bool:
    """Whether replies were to have one length."""
    content = facts.load.content
    drawn = content.output_lengths or content.dataset or content.barge_in
    return not (content.natural_stops or drawn)


def _span(span: Range) -> str:
    return f"{span.min}" if span.min == span.max else f"{span.min}–{span.max}"
