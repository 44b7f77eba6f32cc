"""The columns of the result: what a figure is called and how it is written, in every format."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmbench.measure.ruler import timed
from llmbench.records import Block, Cell, Estimate
from llmbench.report import comparison
from llmbench.report.comparison import Measure

SHOWN = ("p50", "p95")
"""The quantiles of latencies that have their intervals beside them where there is room."""

NOT_MEASURED = "—"
NEVER = "∞"
UNKNOWN = "?"
UNSURE = "?"
UNTIMED = "✗"
ABOVE = ">"
CHUNKS = "~"
INTERVAL = "±"
MARKS = (UNSURE, UNTIMED, ABOVE, CHUNKS)
"""What a figure may have beside it, or in its place."""

BASE = "base"

Errors = dict[str, float] | None


class Column(NamedTuple):
    """``head`` is the title, its unit on a second line; ``text`` writes a cell's figure.

    ``measure`` is set where cells can be compared by it, and ``ratio`` where a column of ratios to
    a baseline may stand beside it. Where there is no room for all columns, those with the highest
    ``spare`` are left out first, and those without one never. ``words`` are no figures: they stand
    at the left, of the table and of their column. ``interval`` is what to put behind the figure
    where there is room for it.
    """

    head: str
    text: Callable[[Cell], str]
    measure: Measure | None = None
    ratio: bool = False
    spare: int = 0
    words: bool = False
    interval: Callable[[Cell], str] | None = None

    @property
    def name(self) -> str:
        return self.head.replace("\n", " ")


def columns(cells: Sequence[Cell], baseline: str | None = None) -> list[Column]:
    """The columns for ``cells``: what tells them apart, and what is known of them.

    With several targets and a ``baseline``, three figures have a column of ratios beside them.
    """
    return [
        *load_columns(cells),
        *_figure_columns(cells, baseline),
        *_size_columns(cells),
        _failures(cells),
    ]


def constant_prompt(cells: Sequence[Cell]) -> str | None:
    """The prompt length of all cells, where a comparison need not repeat it in each row."""
    lengths = {_prompt(cell) for cell in cells}
    return lengths.pop() if len(lengths) == 1 and comparison.several_targets(cells) else None


def load_columns(cells: Sequence[Cell]) -> list[Column]:
    """What tells the cells apart."""
    chosen = [Column("target", lambda cell: cell.target, words=True)]
    if len({cell.quantization for cell in cells}) > 1:
        chosen.append(
            Column("precision", lambda cell: cell.quantization or UNKNOWN, spare=2, words=True)
        )
    if len({cell.client for cell in cells}) > 1:
        chosen.append(Column("client", lambda cell: cell.client, words=True))
    if len({cell.api for cell in cells}) > 1:
        chosen.append(Column("api", lambda cell: cell.api, words=True))
    batched = [cell.batch_size is not None for cell in cells]
    opened = [cell.arrivals is not None for cell in cells]
    closed = [not (batch or open_) for batch, open_ in zip(batched, opened, strict=True)]
    if any(opened):
        sessions = any(cell.turns for cell in cells)
        chosen.append(Column("asked\nsess./s" if sessions else "asked\nreq/s", _rate_asked))
    if any(closed):
        chosen.append(Column("conc.", _concurrency))
    elif any(opened) and any(cell.concurrency for cell in cells):
        chosen.append(Column("most\nconc.", _concurrency))
    if any(batched):
        chosen.append(Column("batch", lambda cell: str(cell.batch_size or "")))
    if len({cell.cache_asked for cell in cells}) > 1:
        chosen.append(Column("cache", lambda cell: cell.cache_asked or ""))
    if constant_prompt(cells) is None:
        chosen.append(Column("prompt\ntokens", _prompt))
    return chosen


def _figure_columns(cells: Sequence[Cell], baseline: str | None) -> list[Column]:
    chosen = []
    left_out: list[Column] = []
    if not any(cell.arrivals is not None for cell in cells):
        left_out += OPEN_LOOP
    answered = [cell for cell in cells if cell.icl_ms is not None]
    known = not answered or any(cell.itl_ms is not None for cell in answered)
    left_out += ICL if known else ITL
    for column in FIGURES:
        if column in left_out:
            continue
        chosen.append(column)
        if baseline and column.ratio and comparison.several_targets(cells):
            chosen.append(_ratios(cells, baseline, column))
    return chosen


def _ratios(cells: Sequence[Cell], baseline: str, beside: Column) -> Column:
    measure = beside.measure
    assert measure is not None
    # A cell has no hash: it is known by its identity.
    bases = {
        id(cell): comparison.base_of(cell, group, baseline)
        for group in comparison.grouped(cells)
        for cell in group
    }

    def text(cell: Cell) -> str:
        if cell.target == baseline and measure.of(cell) is not None:
            return BASE
        return times(comparison.ratio(cell, bases[id(cell)], measure))

    return Column(beside.head.partition("\n")[0] + f"\n÷{BASE}", text, spare=1)


def _size_columns(cells: Sequence[Cell]) -> list[Column]:
    """What a target takes and how it answers, where targets can be compared by it."""
    chosen = [COST] if any(cell.cost is not None for cell in cells) else []
    if not comparison.several_targets(cells):
        return chosen
    if len({cell.disk_mb for cell in cells}) > 1:
        chosen.append(DISK)
    if any(cell.memory_mb is not None for cell in cells):
        chosen.append(MEMORY)
    if any(cell.agreement is not None for cell in cells):
        chosen.append(AGREES)
    return chosen


def quantile(cell: Cell, metric: str, name: str) -> str:
    """A quantile of ``metric``: ``2,710?`` where its sample carries no interval, ``✗`` where the
    client could not time it or the cell is invalid, a dash where there is no value. Where ITL is
    not known ICL takes its place, as ``7.05~``."""
    block: Block | None = getattr(cell, comparison.field_of(metric))
    if block is None and metric == "itl" and cell.icl_ms is not None:
        return quantile(cell, "icl", name) + CHUNKS
    if block is None:
        return NOT_MEASURED
    text = told(block, name)
    shown = text == NOT_MEASURED or comparison.is_shown(cell, metric, name)
    return text if shown else UNTIMED


def told(block: Block, name: str) -> str:
    """A quantile of ``block``, with a mark where it has no interval."""
    value: float | None = getattr(block, name)
    if value is not None:
        return digits(value)
    estimate = block.estimates.get(name, Estimate(None))
    if estimate.value is not None:
        return digits(estimate.value) + UNSURE
    return NOT_MEASURED if estimate.at_least is None else f"{ABOVE}{digits(estimate.at_least)}"


def figure(cell: Cell, value: float | None) -> str:
    """Three significant digits, as many as a latency deserves; no figure of an invalid cell."""
    if value is None:
        return NOT_MEASURED
    return UNTIMED if cell.verdict == "invalid" else digits(value)


def digits(value: float) -> str:
    if math.isinf(value):
        return NEVER
    if value >= 99.95:
        return f"{value:,.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}"


def interval(cell: Cell, metric: str, name: str) -> str:
    """`` ±0.8``: how far the farther end of a quantile's 95% interval lies from it, rounded up to
    the figure's last digit; nothing where it has none."""
    block: Block | None = getattr(cell, comparison.field_of(metric))
    if block is None or not comparison.is_shown(cell, metric, name):
        return ""
    return reach(cell, getattr(block, name), block.ci95.get(name))


def reach(cell: Cell, value: float | None, ci95: tuple[float, float] | None) -> str:
    """How far the farther end of ``ci95`` lies from ``value``, as ``interval`` says it."""
    if value is None or ci95 is None or cell.verdict == "invalid":
        return ""
    low, high = ci95
    return plus_minus(value, max(value - low, high - value))


def plus_minus(value: float, far: float) -> str:
    """`` ±0.8``: ``far``, rounded up to the last digit of ``value``; nothing if it is nothing."""
    if not 0 < far < math.inf:
        return ""
    decimals = len(digits(value).partition(".")[2])
    steps = math.ceil(far * 10**decimals - 1e-6)  # a hair above a digit is that digit
    return f" {INTERVAL}{steps / 10**decimals:,.{decimals}f}"


def times(value: float | None) -> str:
    """A ratio: ``0.82×``."""
    return NOT_MEASURED if value is None else f"{digits(value)}×"


def _agreement(cell: Cell) -> str:
    return NOT_MEASURED if cell.agreement is None else f"{cell.agreement:.1%}".removesuffix("%")


def ruler_error_ms(cell: Cell) -> float | None:
    """The most that the ruler can be off in a latency that the table shows."""
    if cell.verdict == "invalid":
        return None
    shown = ("ttft.p50", "ttft.p95", "itl.p50", "itl.p99")
    errors = [
        error_ms for name, _, error_ms in timed(cell) if name in shown and name not in cell.untimed
    ]
    return max(errors, default=None)


def _error(cell: Cell) -> str:
    error_ms = ruler_error_ms(cell)
    return NOT_MEASURED if error_ms is None else f"{error_ms:.2f}"


def _concurrency(cell: Cell) -> str:
    return "" if cell.batch_size else str(cell.concurrency or "")


def _rate_asked(cell: Cell) -> str:
    return cell.rate or ""


def _prompt(cell: Cell) -> str:
    measured = cell.measured_prompt_tokens
    if measured is None:
        return str(cell.prompt_tokens)
    if measured.min == measured.max:
        return str(measured.min)
    return f"{measured.min}–{measured.max}"


def _failed(cell: Cell) -> str:
    counts = cell.requests
    if not counts.sent:
        return NOT_MEASURED
    return f"{counts.failed}/{counts.sent}" if counts.failed else "0"


def _failures(cells: Sequence[Cell]) -> Column:
    """A column without a failure in it is the first to go: one line can say as much."""
    none_failed = all(cell.requests.sent and not cell.requests.failed for cell in cells)
    return Column("failed", _failed, spare=10 if none_failed else 0)


def _latency(
    metric: str, name: str, spare: int = 0, errors: Callable[[Cell], Errors] | None = None
) -> Column:
    """A quantile of a latency; one that is never left out has its ratio beside it."""

    def bounded(cell: Cell) -> comparison.Figure | None:
        error_ms = ((errors(cell) if errors else None) or {}).get(name, 0.0)
        return comparison.quantile(cell, metric, name, error_ms)

    return Column(
        f"{metric.upper()} ms\n{name}",
        lambda cell: quantile(cell, metric, name),
        Measure(bounded, less_is_better=True),
        ratio=not spare,
        spare=spare,
        interval=(lambda cell: interval(cell, metric, name)) if name in SHOWN else None,
    )


def _rate(
    head: str,
    value: Callable[[Cell], float | None],
    ci95: Callable[[Cell], tuple[float, float] | None],
    spare: int = 0,
) -> Column:
    def text(cell: Cell) -> str:
        """The rate, with a mark where too few requests carry an interval that it could have."""
        told = figure(cell, value(cell))
        unsure = cell.arrivals is None and ci95(cell) is None and any(map(str.isdigit, told))
        return told + UNSURE * unsure

    return Column(
        head,
        text,
        Measure(lambda cell: comparison.rate(cell, value(cell), ci95(cell)), less_is_better=False),
        ratio=not spare,
        spare=spare,
        interval=None if spare else lambda cell: reach(cell, value(cell), ci95(cell)),
    )


def _megabytes(head: str, value: Callable[[Cell], float | None], spare: int) -> Column:
    """What an engine takes is known even where its latencies are not to be trusted."""

    def text(cell: Cell) -> str:
        megabytes = value(cell)
        return NOT_MEASURED if megabytes is None else f"{megabytes:,.0f}"

    def exact(cell: Cell) -> comparison.Figure | None:
        megabytes = value(cell)
        return None if megabytes is None else comparison.exactly(megabytes)

    return Column(head, text, Measure(exact, less_is_better=True), spare=spare)


def _ttft_errors(cell: Cell) -> Errors:
    return cell.ruler.ttft_error_ms


def _itl_errors(cell: Cell) -> Errors:
    return cell.ruler.itl_error_ms


RULER = Column("ruler\n± ms", _error, spare=6)
OPEN_LOOP = (
    Column("from sent\np95", lambda cell: quantile(cell, "ttft_from_sent", "p95"), spare=3),
    Column("lag ms\np99", lambda cell: quantile(cell, "dispatch_lag", "p99"), spare=3),
)
"""Of an open loop: TTFT without what a request waited to be sent, and how late it was sent."""

ITL = (
    _latency("itl", "p50", errors=_itl_errors),
    _latency("itl", "p99", spare=4, errors=_itl_errors),
)
ICL = (_latency("icl", "p50"), _latency("icl", "p99", spare=4))
"""The raw gaps between chunks, where nobody knows which tokens were in them."""

FIGURES = (
    _latency("ttft", "p50", errors=_ttft_errors),
    _latency("ttft", "p95", spare=4, errors=_ttft_errors),
    *OPEN_LOOP,
    *ITL,
    *ICL,
    RULER,
    Column(
        "tok/s\n/user",
        lambda cell: quantile(cell, "otps_per_user", "p50"),
        Measure(lambda cell: comparison.quantile(cell, "otps_per_user", "p50"), False),
        spare=5,
    ),
    _rate("tok/s\ntotal", lambda cell: cell.otps, lambda cell: cell.otps_ci95),
    _rate(
        "req/s", lambda cell: cell.requests_per_s, lambda cell: cell.requests_per_s_ci95, spare=9
    ),
)
DISK = _megabytes("disk\nMB", lambda cell: cell.disk_mb, spare=8)
MEMORY = _megabytes("memory\nMB", lambda cell: cell.memory_mb, spare=7)
COST = Column(
    "cost/1M\nout",
    lambda cell: figure(cell, cell.cost.per_1m_output_tokens if cell.cost else None),
    spare=2,
)
AGREES = Column("agrees\n%", _agreement, spare=3)
