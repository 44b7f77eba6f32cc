"""Requests of a cell → how its turns fare against a budget; cells → up to how many users."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct, field

from llmbench.apis import APIS
from llmbench.measure import budget as chances
from llmbench.measure import statistics as stats
from llmbench.measure.beyond import sample_worth
from llmbench.measure.blocks import MS, block
from llmbench.measure.budget import Chance, Level, Stage, Sums, Verdict
from llmbench.measure.metrics import measure
from llmbench.measure.shared import Shared, can_step
from llmbench.measure.speech import Manner, Speech, read, speech
from llmbench.measure.statistics import Floats
from llmbench.plan.search import Answer, Beyonds, Search
from llmbench.records import Beyond, Block, Cell, Range, RequestMetrics, Target, Trace

SEED = 0


class Budget(NamedTuple):
    """What the user asked: a ``share`` of the turns within ``budget_s``, which the ``stages`` and
    the LLM spend; ``spent`` are draws of what the stages take together."""

    budget_s: float
    share: float
    stages: Sequence[Stage]
    spent: Sums
    manner: Manner


class Quantiles(Struct, kw_only=True):
    """Of turns, in ms; +∞ where as many were never answered, ``None`` for too few of them."""

    p50: float | None = None
    p95: float | None = None


class TurnRow(Struct, kw_only=True):
    """The requests of one turn (from 1) of a cell's conversations."""

    turn: int
    ttft_ms: Block
    ttsc_ms: Block
    prompt_tokens: Range | None = None
    in_budget: float | None = None


class BudgetRow(Struct, kw_only=True):
    """How the turns of one cell fare. The JSON contract; keys are only ever added.

    ``answered`` of ``turns`` said or called something. ``ttsc_ms`` is the time to the first
    speakable chunk, or to a tool call of a reply without a text; a failed turn counts as +∞ in it.
    ``ttsc_error_ms`` is the most that the ruler can be off in a time to an event of the stream, as
    for TTFT: by quantile, ``None`` without kernel stamps and calibration.
    The turns are ``worth`` so many independent ones.
    ``left_ms`` is what is left of the budget after the whole turn, at the asked share: negative
    where it exceeds it. ``stalled_share`` is the share of replies with a stall; blocks of stalls,
    delays and pauses have one value a whole reply. See ``measure/speech`` for what they are.
    """

    target: str
    client: str
    concurrency: int | None
    request_rate: float | None
    arrivals: str | None
    batch_size: int | None
    prompt_tokens: int
    output_tokens: int
    cache_asked: str | None
    turns: int
    answered: int
    ttsc_ms: Block
    turn_ms: Quantiles
    in_budget: float | None = None
    in_budget_ci95: tuple[float, float] | None = None
    worth: float | None = None
    left_ms: float | None = None
    first_sentence_ms: Block | None = None
    start_delay_ms: Block | None = None
    stalls: int | None = None
    stalled_share: float | None = None
    stalled_ms: Block | None = None
    longest_pause_ms: Block | None = None
    fluidity: Block | None = None
    first_tool_ms: Block | None = None
    ttsc_error_ms: dict[str, float] | None = None
    by_turn: list[TurnRow] = field(default_factory=list)
    verdict: str = "valid"
    reasons: list[str] = field(default_factory=list)

    @property
    def load(self) -> float | None:
        """Users at once or, in an open loop, requests a second; ``None`` for a trace's own."""
        return self.request_rate if self.arrivals is not None else self.concurrency

    @property
    def chance(self) -> Chance | None:
        """P(turn in budget), where it can be trusted."""
        if self.in_budget is None or self.in_budget_ci95 is None or self.verdict == "invalid":
            return None
        return Chance(self.in_budget, *self.in_budget_ci95)


class Spoken(NamedTuple):
    """One request: its metrics, and its figures as one who listens meets it."""

    request: RequestMetrics
    speech: Speech


def spoken(target: Target, traces: Iterable[Trace], manner: Manner) -> list[Spoken]:
    """The requests of a cell, each decoded once and let go."""
    decode_events = APIS[target.api].decode
    each = []
    for trace in traces:
        timeline, answer = read(trace, decode_events)
        each.append(Spoken(measure(trace, timeline), speech(answer, manner, timeline.failure)))
    return each


def counted(cell: Cell, requests: Sequence[Spoken]) -> list[Spoken]:
    """The measured requests without those that ``cell`` took for warm-up, which are its first."""
    measured = [each for each in requests if each.request.phase == "measured"]
    measured.sort(key=lambda each: each.request.start_ns)
    return measured[cell.warmup_removed :]


def budget_row(cell: Cell, requests: Sequence[Spoken], asked: Budget) -> BudgetRow:
    """How the measured ``requests`` of ``cell`` fare against what was ``asked``."""
    rng = chances.generator(SEED)
    replies = counted(cell, requests)
    waits_s, shared = _waits_s(cell, replies, asked.budget_s)
    turns_s = chances.turns_s(waits_s, asked.spent, rng) if len(waits_s) else np.empty(0)
    row = BudgetRow(
        target=cell.target,
        client=cell.client,
        concurrency=cell.concurrency,
        request_rate=cell.request_rate,
        arrivals=cell.arrivals,
        batch_size=cell.batch_size,
        prompt_tokens=cell.prompt_tokens,
        output_tokens=cell.output_tokens,
        cache_asked=cell.cache_asked,
        turns=len(replies),
        answered=int(np.isfinite(waits_s).sum()),
        ttsc_ms=block(waits_s * MS, shared),
        turn_ms=Quantiles(
            p50=_quantile_ms(turns_s, 0.5, len(waits_s)),
            p95=_quantile_ms(turns_s, 0.95, len(waits_s)),
        ),
        ttsc_error_ms=cell.ruler.ttft_error_ms,
        verdict=cell.verdict,
        reasons=list(cell.reasons),
    )
    if len(waits_s):
        left_s = chances.left_s(asked.spent, asked.budget_s, 0.5)
        row.worth = sample_worth(waits_s, left_s, shared)
    alone = row.worth / len(waits_s) if row.worth is not None else 1.0
    if told := chances.chance(waits_s, asked.spent, asked.budget_s, alone):
        row.in_budget, row.in_budget_ci95 = told.value, (told.low, told.high)
        slow_ms = _quantile_ms(turns_s, asked.share, len(waits_s))
        row.left_ms = None if slow_ms is None else asked.budget_s * MS - slow_ms
    _add_speech(row, [each.speech for each in replies])
    row.by_turn = _by_turn(cell, replies, asked)
    return row


def _waits_s(cell: Cell, replies: Sequence[Spoken], budget_s: float) -> tuple[Floats, Shared]:
    """How long each turn waited for something to say, and what those turns share. Of one that was
    cut off before, within the budget, nobody knows."""
    waits, segments = [], []
    for request, its in replies:
        if its.reaction_s is not None:
            waits.append(its.reaction_s)
        elif not _was_cut_off_early(request, budget_s):
            waits.append(np.inf)
        else:
            continue
        segments.append(request.segment)
    of_each = np.array(segments, dtype=np.int32)
    return np.array(waits), Shared(
        segments=of_each, in_step=can_step(cell), in_bursts=cell.arrivals is not None
    )


def _was_cut_off_early(request: RequestMetrics, budget_s: float) -> bool:
    waited_s = (request.end_ns - request.start_ns) / 1e9
    return request.failure == "cancelled" and waited_s < budget_s


def _quantile_ms(ordered_s: Floats, p: float, n: int) -> float | None:
    """A quantile of turns that come from ``n`` requests, if those can carry it."""
    return stats.quantile(ordered_s, p) * MS if n >= stats.fewest(p) else None


def _add_speech(row: BudgetRow, speeches: Sequence[Speech]) -> None:
    """The figures of the replies that came whole."""
    whole = [each for each in speeches if each.stalls is not None]

    def of(name: str, scale: float = MS, among: Sequence[Speech] = whole) -> Block | None:
        values = [value for each in among if (value := getattr(each, name)) is not None]
        low_is_slow = name == "fluidity"
        return block(np.array(values) * scale, slow_side_low=low_is_slow) if values else None

    row.first_sentence_ms = of("first_sentence_s", among=speeches)
    row.first_tool_ms = of("first_tool_s", among=speeches)
    row.start_delay_ms = of("start_delay_s")
    row.stalled_ms = of("stalled_s")
    row.longest_pause_ms = of("longest_pause_s")
    row.fluidity = of("fluidity", scale=1.0)
    if whole:
        row.stalls = sum(each.stalls or 0 for each in whole)
        row.stalled_share = sum(bool(each.stalls) for each in whole) / len(whole)


def _by_turn(cell: Cell, replies: Sequence[Spoken], asked: Budget) -> list[TurnRow]:
    """TTFT as the cell has it, and TTSC beside it, where there are several turns."""
    rows = []
    for turn in cell.turns or ():
        its = [each for each in replies if each.request.turn == turn.turn - 1]
        waits_s, shared = _waits_s(cell, its, asked.budget_s)
        told = chances.chance(waits_s, asked.spent, asked.budget_s)
        rows.append(
            TurnRow(
                turn=turn.turn,
                ttft_ms=turn.ttft_ms,
                ttsc_ms=block(waits_s * MS, shared),
                prompt_tokens=turn.prompt_tokens,
                in_budget=told.value if told else None,
            )
        )
    return rows


# ---- up to how many users


class Group(NamedTuple):
    """The rows that differ in their load only, and up to which of the loads they are in budget."""

    rows: list[BudgetRow]
    verdict: Verdict


def grouped(rows: Sequence[BudgetRow], share: float) -> list[Group]:
    """``rows`` apart by all but their load; those of a trace, which has none, are in no group."""
    groups: dict[object, list[BudgetRow]] = {}
    for row in rows:
        if row.load is not None:
            groups.setdefault(_apart(row), []).append(row)
    return [
        Group(its, chances.verdict([Level(each.load or 0.0, each.chance) for each in its], share))
        for its in groups.values()
    ]


def beyond_budget(row: BudgetRow, share: float) -> Beyonds:
    """What a search for the load is told: the turns that are not in budget; nothing where nobody
    knows."""
    if row.chance is None:
        return {}
    worth = row.turns if row.worth is None else row.worth
    return {"turn": Beyond(1 - row.chance.value, row.turns, worth, round(1 - share, 9))}


def searched(rows: Sequence[BudgetRow], share: float, least: float, most: float) -> Answer:
    """The answer of the search that ran ``rows``, in their order."""
    search = Search(least, most, whole=rows[0].arrivals is None)
    for row in rows:
        search.add(row.load or 0.0, beyond_budget(row, share))
    return search.answer


def _apart(row: BudgetRow) -> tuple[object, ...]:
    return (
        row.target,
        row.client,
        row.arrivals,
        row.batch_size is not None,
        row.prompt_tokens,
        row.output_tokens,
        row.cache_asked,
    )
