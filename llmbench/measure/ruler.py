"""What the ruler knows of its own error, from the evidence and from calibration.

From the evidence alone: a request left within its sending call (``Trace.send_ns``); an event that
had a read to itself arrived at its kernel stamp; one that shared a read arrived within the read's
slack before that stamp. So each latency lies between two bounds, and each quantile of the true
latencies between the same quantiles of the bounds, however busy the machine was. Calibration adds
what the same client was off by on this machine against a server with known send times.
"""

from collections.abc import Iterator

import numpy as np

from llmbench.measure.requests import Ragged, Requests
from llmbench.measure.statistics import Reals, quantile
from llmbench.records import Calibration, Cell, Ruler

PROMPT_LAG_NS = 1_250_000
"""A client that is hardly ever later than this (with many sockets it looks once a millisecond) has
not made events share a read: the server, or the network, sent them together."""

SHOWN = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
LEAST_ERROR_MS = 0.5
ERROR_SHARE = 0.05
"""A figure may be off by half a millisecond or by this share of itself, whichever is greater."""


def from_evidence(good: Requests) -> Ruler:
    """The ruler's errors as far as the evidence bounds them, over the good requests of a cell."""
    ruler = Ruler()
    if not len(good):
        return ruler
    stamps = set(good.stamps.tolist())
    ruler.stamps = stamps.pop() if len(stamps) == 1 else "user"
    ruler.coalesced_share = float(good.shared.sum() / good.events.sum())
    if ruler.stamps != "kernel":
        return ruler
    lag_ms = np.sort(good.lag_ms.values)
    ruler.read_lag_ms = _shown(lag_ms)
    ruler.end_lag_ms = float(good.lag_ms.values[good.lag_ms.lasts].mean(dtype=np.float64))
    prompt = quantile(lag_ms, 0.99) <= PROMPT_LAG_NS / 1e6
    del lag_ms
    slack_ms = good.late_slack_ms if prompt else good.slack_ms
    ruler.ttft_error_ms = _ttft_errors(good, slack_ms)
    ruler.itl_error_ms = _gap_errors(good.gaps_s, slack_ms)
    return ruler


def _ttft_errors(good: Requests, slack_ms: Ragged | None) -> dict[str, float]:
    """Each request left within its sending call. In an open loop it may have left late, which made
    its latency longer by up to as much. ``slack_ms``: see ``_gap_errors``."""
    late_ns = good.sent_ns - good.start_ns
    first_ns = good.first_ns + late_ns
    older_ns = np.zeros(len(good))
    if slack_ms is not None:
        older_ns[slack_ms.sizes > 0] = slack_ms.values[slack_ms.firsts].astype(np.float64) * 1e6
    measured = _shown(np.sort(first_ns.astype(np.float64)))
    sent_late_ns = np.maximum(late_ns - good.queued_ns, 0)
    low = _shown(np.sort(first_ns - good.send_ns - older_ns - sent_late_ns))
    return {name: ns / 1e6 for name, ns in _errors(measured, low, measured).items()}


def _gap_errors(gaps_s: Ragged, slack_ms: Ragged | None) -> dict[str, float] | None:
    """A gap is longer by the slack of the event before it, shorter by that of the one after it:
    ``slack_ms`` is how much older than its stamp each content event can be."""
    if not len(gaps_s.values):
        return None
    if slack_ms is None:
        return dict.fromkeys(SHOWN, 0.0)
    slack_s = slack_ms.values.astype(np.float32) / 1e3

    def quantiles(bound_s: Reals) -> dict[str, float]:
        return {name: value * 1e3 for name, value in _shown(np.sort(bound_s)).items()}

    measured = quantiles(gaps_s.values)
    low = quantiles(gaps_s.values - slack_s[~slack_ms.firsts])
    high = quantiles(gaps_s.values + slack_s[~slack_ms.lasts])
    return _errors(measured, low, high)


def _shown(ordered: Reals) -> dict[str, float]:
    return {name: quantile(ordered, p) for name, p in SHOWN.items()}


def _errors(
    measured: dict[str, float], low: dict[str, float], high: dict[str, float]
) -> dict[str, float]:
    """The most that each quantile can be off, given bounds on it."""
    return {name: max(measured[name] - low[name], high[name] - measured[name]) for name in measured}


def add_calibration(ruler: Ruler, calibration: Calibration) -> None:
    """State the greater of what the evidence and what ``calibration`` says."""
    ruler.calibrated = True
    ruler.ttft_error_ms = _greater(ruler.ttft_error_ms, calibration.ttft_error_ms)
    ruler.itl_error_ms = _greater(ruler.itl_error_ms, calibration.itl_error_ms)


def _greater(one: dict[str, float] | None, other: dict[str, float]) -> dict[str, float]:
    return {name: max((one or other)[name], other[name]) for name in other}


def untimed(cell: Cell) -> dict[str, float]:
    """The shown figures that are less certain than they may be, with how far off each can be.

    aiohttp and openai are there to be seen as an application sees them, their own delay included:
    their error is stated, and no reason to say nothing.
    """
    if cell.client != "wire":
        return {}
    return {
        name: error_ms
        for name, value, error_ms in timed(cell)
        if error_ms > max(LEAST_ERROR_MS, ERROR_SHARE * value)
    }


def add_to_intervals(cell: Cell) -> None:
    """Let no interval of a latency be narrower than what the ruler itself can be off by: a server
    that is steady to a microsecond is not known to one. The ends of replies are stamped as their
    first tokens are."""
    for block, errors_ms in (
        (cell.ttft_ms, cell.ruler.ttft_error_ms),
        (cell.e2e_ms, cell.ruler.ttft_error_ms),
        (cell.itl_ms, cell.ruler.itl_error_ms),
        (cell.icl_ms, cell.ruler.itl_error_ms),
    ):
        if block is None or errors_ms is None:
            continue
        for name, (low, high) in block.ci95.items():
            value = block.estimate(name)
            if value is not None:
                # of p90, which is not bounded by itself, as that of p95
                error_ms = errors_ms[name] if name in errors_ms else errors_ms["p95"]
                block.ci95[name] = min(low, value - error_ms), max(high, value + error_ms)


def timed(cell: Cell) -> Iterator[tuple[str, float, float]]:
    """Each quantile whose timing error is bounded: its name, its value and the bound, in ms."""
    for metric, block, errors_ms in (
        ("ttft", cell.ttft_ms, cell.ruler.ttft_error_ms),
        ("itl", cell.itl_ms, cell.ruler.itl_error_ms),
        ("icl", cell.icl_ms, cell.ruler.itl_error_ms),  # the bounds are those of chunks
    ):
        for p, error_ms in (errors_ms or {}).items():
            value = block.estimate(p) if block is not None else None
            if value is not None:
                yield f"{metric}.{p}", value, error_ms
