"""How far off, how costly, how large: each figure as a ratio to its limit (1 or less is kept).

    python benchmarks/accuracy.py            # about two minutes; leave the machine alone meanwhile

Runs `llmbench sweep` as a user would, in a process of its own, against a truth server on the same
machine: true TTFT 50 ms, 100 tok/s a stream, 200 tokens a reply. Errors are differences between the
true and the measured quantile. CPU and memory are the whole process's, start-up and decoding
included. Wall time is held against what the requests need by themselves; that run has no warm-up.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from tabulate import tabulate

from llmbench.apis import APIS, NAMES
from llmbench.measure.timeline import decode
from llmbench.store import RunDirectory
from llmbench.truth.errors import Errors, compare
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script

SCRIPT = Script(ttft_ms=50.0, itl_ms=10.0, output_tokens=200)
REQUEST_S = 0.050 + 199 * 0.010
STREAMS = {64: 256, 256: 1024, 512: 2048}
LIMITS_MS = {
    64: {"TTFT p50": 0.3, "TTFT p99": 3.0, "ITL p50": 0.05, "ITL p99": 0.05},
    256: {"TTFT p50": 0.3, "TTFT p99": 3.0, "ITL p50": 0.5, "ITL p99": 0.5},
    512: {"TTFT p50": 0.3, "TTFT p99": 3.0, "ITL p50": 0.5, "ITL p99": 0.5},
}
CPU_US_PER_TOKEN, PEAK_MB, WALL_EXTRA_S, HELP_S, INSTALL_MB = 15.0, 200.0, 2.0, 0.2, 150.0
Row = tuple[str, str, str, str, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--api", default=NAMES[0], choices=NAMES, help="API to speak")
    parser.add_argument("--install", action="store_true", help="also measure a core install (pip)")
    args = parser.parse_args()
    rows: list[Row] = []
    for streams, requests in STREAMS.items():
        rows += measure(streams, requests, args.api)
    rows.append(wall(256, 1024))
    rows.append(start_up())
    if args.install:
        rows.append(install_size())
    print(
        tabulate(
            rows,
            ("", "true", "llmbench", "limit", "ratio"),
            disable_numparse=True,
            colalign=("left", "right", "right", "right", "right"),
        )
    )


def measure(streams: int, requests: int, api: str) -> list[Row]:
    """One load, warm-up included: errors, CPU per token, peak memory."""
    errors, tokens, usage, _ = sweep(streams, requests, [], api)
    rows = []
    for name, comparison in (("TTFT", errors.ttft), ("ITL", errors.itl)):
        for p in ("p50", "p99"):
            true, read = comparison.true_ms[p], comparison.measured_ms[p]
            limit = LIMITS_MS[streams][f"{name} {p}"]
            rows.append(
                (
                    f"{streams} streams: {name} {p}, ms",
                    f"{true:.3f}",
                    f"{read:.3f}",
                    f"± {limit}",
                    f"{abs(read - true) / limit:.3f}",
                )
            )
    cpu_us = (usage.ru_utime + usage.ru_stime) / tokens * 1e6
    promised = streams >= 256  # below, starting up outweighs the tokens
    rows.append(
        (
            f"{streams} streams: CPU a token, µs",
            "",
            f"{cpu_us:.1f}",
            f"{CPU_US_PER_TOKEN:g}" if promised else "",
            f"{cpu_us / CPU_US_PER_TOKEN:.2f}" if promised else "",
        )
    )
    peak_mb = usage.ru_maxrss / 1024
    rows.append(
        (
            f"{streams} streams: peak memory, MB",
            "",
            f"{peak_mb:.0f}",
            f"{PEAK_MB:g}",
            f"{peak_mb / PEAK_MB:.2f}",
        )
    )
    return rows


def wall(streams: int, requests: int) -> Row:
    """The wall time of the whole command against that of the requests alone."""
    ideal_s = requests / streams * REQUEST_S
    _, _, _, wall_s = sweep(streams, requests, ["--warmup", "0"])
    limit_s = ideal_s + WALL_EXTRA_S
    return (
        f"{streams} streams: wall, s (no warm-up)",
        f"{ideal_s:.1f}",
        f"{wall_s:.1f}",
        f"{limit_s:.1f}",
        f"{wall_s / limit_s:.2f}",
    )


def sweep(
    streams: int, requests: int, flags: list[str], api: str = NAMES[0]
) -> tuple[Errors, int, "os.struct_rusage", float]:
    """Run the command; its errors, the tokens that it saw, its resources and its wall time."""
    with tempfile.TemporaryDirectory() as folder, TruthServer(SCRIPT) as server:
        out = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "llmbench",
            "sweep",
            "--target",
            server.url,
            "--api",
            api,
            "--concurrency",
            str(streams),
            "--requests",
            str(requests),
            "--output-tokens",
            "200",
            "--prompt-tokens",
            "64",
            "--no-calibrate",
            "--out",
            str(out),
            *flags,
        ]
        began_s = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began_s
        log = {reply.request_id: reply for reply in server.log()}
        tokens, measured = 0, []
        for trace in RunDirectory.open(out).traces():
            timeline = decode(trace, APIS[api].decode)
            tokens += len(timeline.at_ns)
            if trace.phase == "measured" and not timeline.failure:
                measured.append((trace.request_id, timeline))
        return compare(measured, log), tokens, usage, wall_s


def start_up() -> Row:
    """The median time of ``llmbench --help``."""
    times = []
    for _ in range(9):
        began_s = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "llmbench", "--help"], stdout=subprocess.DEVNULL, check=True
        )
        times.append(time.monotonic() - began_s)
    took_s = statistics.median(times)
    return ("llmbench --help, s", "", f"{took_s:.2f}", f"{HELP_S:g}", f"{took_s / HELP_S:.2f}")


def install_size() -> Row:
    """What a core install adds to an empty virtual environment."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        before = size_mb(Path(folder))
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "-q", "--no-compile"]
        subprocess.run([*pip, str(Path(__file__).parents[1])], check=True)
        added_mb = size_mb(Path(folder)) - before
    return (
        "core install, MB",
        "",
        f"{added_mb:.0f}",
        f"{INSTALL_MB:g}",
        f"{added_mb / INSTALL_MB:.2f}",
    )


def size_mb(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()
