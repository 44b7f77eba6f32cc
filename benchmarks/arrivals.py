"""Is an open loop sent when it was to be sent? Against the truth server, by the stored evidence.

    python benchmarks/arrivals.py [--rate 500] [--duration 60] [--arrivals poisson,constant]

For each kind of arrivals one sweep of one cell, then from its traces: how late requests were sent
(dispatch error), the rate that was achieved, and whether the gaps between due
times pass for the distribution that was asked for (Kolmogorov and Smirnov's test), and how far from
it (D) those between the times of sending are: one process cannot send two requests at once.
Needs the extra ``dev`` (scipy).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import gamma, kstest
from tabulate import tabulate

from llmbench.plan.arrivals import read_arrivals
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script

SCRIPT = Script(ttft_ms=50.0, itl_ms=10.0, output_tokens=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--duration", type=float, default=60.0)
    parser.add_argument("--arrivals", default="poisson,constant,gamma(0.5)")
    args = parser.parse_args()
    heads = ["arrivals", "asked\nreq/s", "achieved\nreq/s", "off\n%", "n"]
    heads += ["late ms\np50", "late ms\np99", "late ms\nmax"]
    heads += ["KS p\ndue", "KS D\ndue", "KS D\nsent", "verdict"]
    rows = [row(kind, args.rate, args.duration) for kind in args.arrivals.split(",")]
    print(tabulate(rows, heads, disable_numparse=True, stralign="right"))
    print(f"{args.duration:g} s each, {SCRIPT.output_tokens} tokens a reply, true TTFT 50 ms")


def row(kind: str, rate: float, duration_s: float) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, TruthServer(SCRIPT) as server:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "llmbench", "sweep", "--target", server.url]
        command += ["--request-rate", f"{rate:g}", "--duration", f"{duration_s:g}"]
        command += ["--arrivals", kind, "--output-tokens", str(SCRIPT.output_tokens)]
        command += ["--no-calibrate", "--out", str(run_dir)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 4):
            sys.exit(done.stderr)
        traces = [
            trace for trace in RunDirectory.open(run_dir).traces() if trace.due_ns is not None
        ]
    measured = [trace for trace in traces if trace.phase == "measured"]
    due_s = np.array(sorted(trace.due_ns or 0 for trace in measured)) / 1e9
    sent_s = np.array(sorted(trace.sent_ns for trace in measured)) / 1e9
    due_d, due_p = ks(kind, np.diff(due_s) * rate)
    sent_d, _ = ks(kind, np.diff(sent_s) * rate)
    late_ms = np.array([(trace.sent_ns - (trace.due_ns or 0)) / 1e6 for trace in measured])
    achieved = len(measured) / duration_s
    return [
        kind,
        f"{rate:g}",
        f"{achieved:.2f}",
        f"{100 * (achieved / rate - 1):+.2f}",
        f"{len(measured):,}",
        *(f"{value:.3f}" for value in np.percentile(late_ms, [50, 99, 100])),
        due_p,
        due_d,
        sent_d,
        "invalid" if "INVALID" in done.stdout else "valid",
    ]


def ks(kind: str, gaps: np.ndarray) -> tuple[str, str]:
    """D and the p-value of ``gaps``, in units of their mean, against what was asked; nothing for
    constant arrivals, which have no distribution to test."""
    burstiness = read_arrivals(kind).burstiness
    if burstiness is None:
        return "—", "—"
    result = kstest(gaps, gamma(burstiness, scale=1 / burstiness).cdf)
    return f"{result.statistic:.4f}", f"{result.pvalue:.2f}"


if __name__ == "__main__":
    main()
