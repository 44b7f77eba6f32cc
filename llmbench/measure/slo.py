"""Latency objectives: ``ttft.p95=500ms`` against what a cell measured."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from llmbench.errors import UserError, suggestion
from llmbench.records import Block, Cell, Objective

METRICS = ("ttfr", "ttft", "ttfat", "itl", "icl", "tpot", "e2e")
QUANTILES = ("p50", "p90", "p95", "p99")
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
_LIMIT = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s)")
_UNITS_MS = {"ms": 1.0, "s": 1000.0}


class Preset(Struct, frozen=True, forbid_unknown_fields=True):
    """Objectives that have a name, and where they come from (``configs/slo.toml``)."""

    source: str
    limits: dict[str, str]


@cache
def presets() -> dict[str, Preset]:
    """The presets by name."""
    package = Path(__file__).parents[1]
    for path in (package / "configs" / "slo.toml", package.parent / "configs" / "slo.toml"):
        if path.is_file():  # of a wheel, of a checkout
            return msgspec.convert(tomllib.loads(path.read_text("utf-8")), dict[str, Preset])
    raise FileNotFoundError("configs/slo.toml is missing from this installation")


def read_slo(given: str | Mapping[str, str], where: str = "--slo") -> dict[str, str]:
    """The objectives of ``voice``, of ``ttft.p95=500ms,tpot.p99=50ms``, or of both: what comes
    later wins. A table is taken as it is. Raises ``UserError`` for what is neither."""
    if not isinstance(given, str):
        return dict(given)
    objectives: dict[str, str] = {}
    for word in (part.strip() for part in given.split(",")):
        name, equals, limit = (part.strip() for part in word.partition("="))
        if equals:
            objectives[name] = limit
        elif name in presets():
            objectives |= presets()[name].limits
        elif name.partition(".")[0] in METRICS:
            raise UserError(f"{where}: {name}: give its limit too, as in {name}=500ms")
        else:
            raise UserError(
                f"{where}: '{name}' is no preset{suggestion(name, list(presets()))}; or write "
                "objectives, as in ttft.p95=500ms,tpot.p99=50ms"
            )
    return objectives


def limits_ms(slo: dict[str, str], where: str = "slo") -> dict[str, float]:
    """The limit of each objective in ms. Raises ``UserError`` for what is no objective."""
    limits = {}
    for name, limit in slo.items():
        metric, _, statistic = name.partition(".")
        if metric not in METRICS or statistic not in STATISTICS:
            raise UserError(
                f"{where}: '{name}' is no objective; write METRIC.STATISTIC, such as ttft.p95: "
                f"{', '.join(METRICS)}; {', '.join(STATISTICS)}"
            )
        found = _LIMIT.fullmatch(limit.strip())
        if found is None:
            raise UserError(f"{where}: {name} = '{limit}': write a time, such as 500ms or 1.5s")
        limits[name] = float(found[1]) * _UNITS_MS[found[2]]
        if not limits[name]:
            raise UserError(f"{where}: {name} = '{limit}': nothing takes no time")
    return limits


def objectives(cell: Cell, limits: dict[str, float]) -> dict[str, Objective]:
    """Each objective against the figure of ``cell``. It is met or missed where all of the figure's
    95% interval is, or where the one bound that too few samples have decides it; ``met`` is
    ``None`` where that is not known: the limit lies between, the figure was not measured, or the
    cell is INVALID. A figure that the client could not time counts with how far off it can be."""
    return {name: _objective(cell, name, limit_ms) for name, limit_ms in limits.items()}


def _objective(cell: Cell, name: str, limit_ms: float) -> Objective:
    metric, _, statistic = name.partition(".")
    block: Block | None = getattr(cell, f"{metric}_ms")
    value_ms: float | None = getattr(block, statistic) if block is not None else None
    if cell.verdict == "invalid" or block is None:
        return Objective(limit_ms, value_ms, None)
    low_ms, high_ms = block.bounds(statistic)
    error_ms = cell.untimed.get(name, 0.0)
    if low_ms is not None and low_ms - error_ms > limit_ms:
        return Objective(limit_ms, value_ms, False)
    if high_ms is not None and high_ms + error_ms <= limit_ms:
        return Objective(limit_ms, value_ms, True)
    missed = value_ms is None and _surely_above(block, statistic, limit_ms)
    return Objective(limit_ms, value_ms, False if missed else None)


def _surely_above(block: Block, statistic: str, limit_ms: float) -> bool:
    """Whether a quantile that is not told lies above the limit: a lower one does already."""
    if statistic not in QUANTILES:
        return False
    lower = QUANTILES[: QUANTILES.index(statistic)]
    return any((getattr(block, name) or 0.0) > limit_ms for name in lower)
