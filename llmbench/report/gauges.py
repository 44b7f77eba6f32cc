"""The figures of cells as gauges in Prometheus' text format, and as flat names and numbers."""

import math
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from llmbench.records import Block, Cell

LABELS = (
    "cell",
    "target",
    "model",
    "engine",
    "quantization",
    "api",
    "client",
    "concurrency",
    "batch_size",
    "request_rate",
    "prompt_tokens",
    "output_tokens",
)
LATENCIES = ("ttft", "ttfr", "ttfat", "itl", "icl", "tpot", "e2e")
QUANTILES = {"p50": "0.5", "p90": "0.9", "p95": "0.95", "p99": "0.99"}
RATES = {
    "otps": ("output_tokens_per_second", "Output tokens a second, of all users together."),
    "requests_per_s": ("requests_per_second", "Requests a second."),
    "in_flight": ("in_flight", "Requests in flight, averaged over the window."),
}


def gauges(cells: Sequence[Cell]) -> bytes:
    """Every cell's quantiles and rates, each with the labels that say whose it is. An invalid cell
    has only its counts, and ``llmbench_valid`` 0."""
    registry = CollectorRegistry()

    def gauge(name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"llmbench_{name}", about, (*LABELS, *labels), registry=registry)

    valid = gauge("valid", "Whether the figures of the cell can be trusted.")
    counts = gauge("requests", "Measured requests by what became of them.", "outcome")
    latencies = {
        name: gauge(f"{name}_seconds", f"{name.upper()}; docs/metrics.md.", "quantile")
        for name in LATENCIES
    }
    rates = {field: gauge(name, about) for field, (name, about) in RATES.items()}
    for number, cell in enumerate(cells):
        own = _labels(number, cell)
        valid.labels(*own).set(cell.verdict != "invalid")
        for outcome in ("ok", "failed", "cancelled"):
            counts.labels(*own, outcome).set(getattr(cell.requests, outcome))
        if cell.verdict == "invalid":
            continue
        for name, its in latencies.items():
            block: Block | None = getattr(cell, f"{name}_ms")
            for quantile, label in QUANTILES.items():
                value = getattr(block, quantile, None)
                if value is not None and f"{name}.{quantile}" not in cell.untimed:
                    its.labels(*own, label).set(value / 1e3)
        for field, rate in rates.items():
            if (value := getattr(cell, field)) is not None:
                rate.labels(*own).set(value)
    return generate_latest(registry)


def flat_metrics(cell: Cell) -> tuple[dict[str, str], dict[str, float]]:
    """The load of ``cell`` as parameters, and its figures by name (``ttft_ms.p50``): none of an
    invalid cell's but its counts."""
    parameters = dict(zip(LABELS[1:], _labels(0, cell)[1:], strict=True))
    parameters["verdict"] = cell.verdict
    metrics = {
        f"requests.{name}": float(getattr(cell.requests, name))
        for name in ("sent", "ok", "failed", "cancelled")
    }
    if cell.verdict != "invalid":
        metrics |= {name: value for name, value in _figures(cell) if math.isfinite(value)}
    return {name: value for name, value in parameters.items() if value}, metrics


def _figures(cell: Cell) -> Iterator[tuple[str, float]]:
    for field in cell.__struct_fields__:
        value = getattr(cell, field)
        if isinstance(value, Block):
            for name in value.__struct_fields__:
                of_block = getattr(value, name)
                untimed = f"{field.removesuffix('_ms')}.{name}" in cell.untimed
                if isinstance(of_block, int | float) and not untimed:
                    yield f"{field}.{name}", float(of_block)
        elif isinstance(value, float):
            yield field, value


def _labels(number: int, cell: Cell) -> list[str]:
    """The values of ``LABELS``; what there is none of is empty, which is to have no such label."""
    values = [getattr(cell, name) for name in LABELS[1:]]
    return [str(number), *("" if value is None else str(value) for value in values)]
