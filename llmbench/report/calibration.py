"""What ``llmbench calibrate`` prints: what was sent, what was read, and how far apart they are."""

from collections.abc import Sequence

from llmbench.report.columns import NOT_MEASURED
from llmbench.report.table import grid
from llmbench.truth.calibrate import CalibrationRun
from llmbench.truth.errors import QUANTILES, Comparison

TTFT_LIMIT_MS = {"p50": 0.3, "p99": 3.0}
ITL_LIMIT_MS = {"p99": 0.5}

_PER_METRIC = ("sent", "read", "off by")


def render_calibration(runs: Sequence[CalibrationRun]) -> str:
    """Two rows a run: TTFT and ITL, each true, measured and apart, at p50, p99 and p99.9."""
    heads = ["streams", "client", "tok/s", "ms"]
    for name in _PER_METRIC:
        heads += [f"{name}\np50", "\np99", "\np99.9"]
    rows = [row for run in runs for row in _rows(run)]
    table = grid([*heads, "CPU µs\n/token", "shared\nreads"], rows, gap=1)
    legend = (
        "sent: by the truth server's log; read: by the client; off by: of single stamps.\n"
        "shared reads: events that shared a read with others: their stamps are less certain."
    )
    return "\n".join((table, legend, *_verdicts(runs))) + "\n"


def _rows(run: CalibrationRun) -> list[list[str]]:
    ttft, itl = _cells(run.errors.ttft), _cells(run.errors.itl)
    cost = [f"{run.cpu_us_per_token:.1f}", f"{run.shared_reads:.2%}"]
    return [
        [str(run.concurrency), run.client, f"{run.tokens_per_s:,.0f}", "TTFT", *ttft, *cost],
        ["", "", "", "ITL", *itl, "", ""],
    ]


def _cells(comparison: Comparison) -> list[str]:
    columns = (comparison.true_ms, comparison.measured_ms, comparison.error_ms)
    digits = (2, 2, 3)
    return [
        f"{column[p]:.{digit}f}" if p in column else NOT_MEASURED
        for column, digit in zip(columns, digits, strict=True)
        for p in QUANTILES
    ]


def _verdicts(runs: Sequence[CalibrationRun]) -> list[str]:
    """For each client, the highest load at which it kept within the limits."""
    lines = []
    for client in dict.fromkeys(run.client for run in runs):
        within = [run for run in runs if run.client == client and keeps_its_word(run)]
        limits = "0.3 ms of the TTFT p50 sent, 3 ms of its p99, 0.5 ms of the ITL p99,"
        if within:
            best = max(within, key=lambda run: run.tokens_per_s)
            lines.append(
                f"{client} reads within {limits}\nup to {best.concurrency} streams, "
                f"{best.tokens_per_s:,.0f} tok/s."
            )
        else:
            lines.append(f"{client} reads at none of these loads within {limits}.")
    return lines


def keeps_its_word(run: CalibrationRun) -> bool:
    """Whether the quantiles that were read are as near to the true ones as llmbench promises."""
    promised = ((run.errors.ttft, TTFT_LIMIT_MS), (run.errors.itl, ITL_LIMIT_MS))
    return all(
        abs(metric.measured_ms[p] - metric.true_ms[p]) <= limit_ms
        for metric, limits in promised
        for p, limit_ms in limits.items()
    )
