"""Is what was measured kept? Sweeps of a truth server that are ended at random moments.

    python benchmarks/kills.py [--moments 20] [--client wire] [--workers 1] [--seed 1]

The server's log knows which replies had been sent in full: each that had SEEN_MS before the first
signal has to be in the run directory, whole, and what is there has to be in ``llmbench report`` and
``llmbench export``. The exit code is 1 where a request is missing, a traceback is printed, or a run
that could end by itself says something else than 130.
"""

import argparse
import contextlib
import csv
import fcntl
import io
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from llmbench import cli
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script

SEEN_MS = 100.0
"""A busy machine may take this long to read what a server has sent."""

SCRIPT = Script(ttft_ms=10.0, itl_ms=2.0, output_tokens=10)
STREAMS = 8
TWICE_WITHIN_S = 0.05
Popen = subprocess.Popen[bytes]


class Ended(NamedTuple):
    """One run that was ended: what the server had sent, what there is of it, and what is wrong."""

    sent: int
    kept: int
    lost: int
    problems: list[str]


class Run:
    """A sweep with no end of its own, on a terminal of its own."""

    def __init__(self, server: TruthServer, run_dir: Path, client: str, workers: int) -> None:
        ours, terminal = os.openpty()
        command = [sys.executable, "-m", "llmbench", "sweep", "--target", server.url]
        command += ["--client", client, "--workers", str(workers), "--concurrency", str(STREAMS)]
        command += ["--requests", "1000000", "--warmup", "0", "--no-calibrate"]
        command += ["--output-tokens", str(SCRIPT.output_tokens), "--out", str(run_dir)]

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        self.process: Popen = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            preexec_fn=own_terminal,  # noqa: PLW1509
        )
        os.close(terminal)
        self._ours = ours
        self._hung_up = threading.Event()
        self._said = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the process has ended
            while not self._hung_up.is_set():
                if select.select([self._ours], [], [], 0.01)[0]:
                    self._said += os.read(self._ours, 4096)
        os.close(self._ours)

    def hang_up(self) -> None:
        """Close the terminal, as a lost connection does."""
        self._hung_up.set()

    def end(self) -> tuple[int, str]:
        """The exit code, and what was printed."""
        code = self.process.wait(60)
        self._reader.join(5)
        return code, self._said.decode(errors="replace")


def once(number: signal.Signals) -> Callable[[Run], None]:
    return lambda run: run.process.send_signal(number)


def twice(run: Run) -> None:
    run.process.send_signal(signal.SIGINT)
    time.sleep(random.random() * TWICE_WITHIN_S)
    run.process.send_signal(signal.SIGINT)


WAYS: dict[str, Callable[[Run], None]] = {
    "SIGINT": once(signal.SIGINT),
    "SIGINT twice": twice,
    "SIGTERM": once(signal.SIGTERM),
    "SIGHUP": once(signal.SIGHUP),
    "terminal closed": Run.hang_up,
    "SIGKILL": once(signal.SIGKILL),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=20, help="runs that are ended each way")
    parser.add_argument("--client", default="wire")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    random.seed(args.seed)
    rows, problems = [], []
    with TruthServer(SCRIPT) as server:
        for way, end in WAYS.items():
            runs = [ended(server, end, way, args) for _ in range(args.moments)]
            sums = [sum(each) for each in zip(*(run[:3] for run in runs), strict=True)]
            rows.append([way, len(runs), *sums])
            problems += [f"{way}: {problem}" for run in runs for problem in run.problems]
    print(f"--client {args.client} --workers {args.workers}, {STREAMS} in flight\n")
    print(tabulate(rows, ["ended by", "moments", "requests ended", "in the report", "lost"]))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def ended(
    server: TruthServer, end: Callable[[Run], None], way: str, args: argparse.Namespace
) -> Ended:
    """Start a sweep, end it at a random moment of its cell, and look for every request."""
    server.reset()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run = Run(server, run_dir, args.client, args.workers)
        while not measured(server, time.monotonic_ns()):
            if run.process.poll() is not None:
                return Ended(0, 0, 0, ["it ended by itself: " + run.end()[1]])
            time.sleep(0.02)
        time.sleep(random.random())
        at_ns = time.monotonic_ns()
        end(run)
        code, said = run.end()
        gone(run_dir)
        sent = measured(server, at_ns - int(SEEN_MS * 1e6))
        problems = [] if code == (-9 if way == "SIGKILL" else 130) else [f"exit code {code}"]
        problems += ["a traceback: " + said] if "Traceback" in said else []
        kept = [trace for trace in RunDirectory.open(run_dir).traces() if not trace.error]
        whole = {trace.request_id for trace in kept}
        lost = sent - whole
        problems += [f"lost: {', '.join(sorted(lost))}"] if lost else []
        told = reported(run_dir)
        if told != len(whole):
            problems.append(f"{len(whole)} requests are kept, {told} are in the report")
        if (rows := exported(run_dir)) != len(whole):
            problems.append(f"{len(whole)} requests are kept, {rows} are exported")
    return Ended(len(sent), told, len(lost), problems)


def measured(server: TruthServer, by_ns: int) -> set[str]:
    """The requests of the cell that the server had answered in full by then."""
    return {
        reply.request_id
        for reply in server.log()
        if reply.request_id.startswith("llmbench-")
        and reply.ended == "complete"
        and reply.ended_ns <= by_ns
    }


def gone(run_dir: Path) -> None:
    """Wait until no worker writes any longer: they look after their parent once a second."""
    sizes = None
    while sizes != (sizes := [path.stat().st_size for path in run_dir.glob("*.part")]):
        time.sleep(1.2 if sizes else 0)


def reported(run_dir: Path) -> int:
    """The requests that went well, by ``llmbench report``."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(["report", str(run_dir), "--format", "json"])
    cells = json.loads(out.getvalue())["cells"]
    return sum(cell["requests"]["ok"] + cell["warmup_removed"] for cell in cells)


def exported(run_dir: Path) -> int:
    """The requests that went well, by ``llmbench export``."""
    path = run_dir / "requests.csv"
    with contextlib.redirect_stderr(io.StringIO()):
        cli.main(["export", str(run_dir), "--to", str(path)])
    with path.open(newline="") as file:
        return sum(not row["failure"] for row in csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(main())
