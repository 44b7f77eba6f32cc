"""Does memory grow with the length of a run? Peak memory of sweeps of one cell, ever longer.

    python benchmarks/memory.py [--duration 60,600] [--concurrency 200]

Against a truth server that streams 100 tok/s to each request: 200 of them are 20,000 tok/s. The
peak is the largest resident set that the sweep's process ever had, its own summary included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script

SCRIPT = Script(ttft_ms=50.0, itl_ms=10.0, output_tokens=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--duration", default="60,600")
    parser.add_argument("--concurrency", type=int, default=200)
    args = parser.parse_args()
    rows = [row(float(each), args.concurrency) for each in args.duration.split(",")]
    heads = [
        "window s",
        "tokens",
        "tok/s",
        "peak MB",
        "evidence MB",
        "after the window s",
        "verdict",
    ]
    print(tabulate(rows, heads, disable_numparse=True, stralign="right"))


def row(duration_s: float, concurrency: int) -> list[str]:
    import msgspec

    with tempfile.TemporaryDirectory() as folder, TruthServer(SCRIPT) as server:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "llmbench", "sweep", "--target", server.url]
        command += ["--concurrency", str(concurrency), "--duration", f"{duration_s:g}"]
        command += ["--output-tokens", "200", "--no-calibrate", "--out", str(run_dir)]
        began_s = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, status, usage = os.wait4(process.pid, 0)
        took_s = time.monotonic() - began_s
        if os.waitstatus_to_exitcode(status) not in (0, 4):
            sys.exit("the sweep failed")
        (cell,) = msgspec.json.decode((run_dir / "summary.json").read_bytes())["cells"]
        evidence_mb = (run_dir / "requests.jsonl").stat().st_size / 1e6
    return [
        f"{duration_s:g}",
        f"{cell['otps'] * cell['window_s']:,.0f}",
        f"{cell['otps']:,.0f}",
        f"{usage.ru_maxrss / 1024:.0f}",
        f"{evidence_mb:,.0f}",
        f"{took_s - cell['window_s']:.0f}",
        cell["verdict"],
    ]


if __name__ == "__main__":
    main()
