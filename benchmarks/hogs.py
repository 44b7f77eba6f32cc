"""Is a printed number ever off by more than was stated? With random CPU hogs beside it.

    python benchmarks/hogs.py --runs 50      # about seven minutes

Each run draws a number of hogs (processes that want a whole core, all the time) and a number of
streams, measures a truth server, and holds every figure of the table against the truth: the same
quantile of the server's own send times, which are intervals where the server, too, was held up. A
cell that is INVALID prints no figure, and one that could not be timed is a ✗. `over` counts figures
that are off by more than stated.
"""

import argparse
import multiprocessing
import random
import tempfile
from pathlib import Path

import numpy as np
from tabulate import tabulate

from llmbench.config import Sweep
from llmbench.drive.sweep import SilentView, SweepRun
from llmbench.measure.ruler import timed
from llmbench.measure.statistics import quantile
from llmbench.records import Cell
from llmbench.store import RunDirectory
from llmbench.truth.log import Reply
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script

SCRIPT = Script(ttft_ms=30.0, itl_ms=8.0, jitter_ms=2.0, output_tokens=40)
SHOWN = ("ttft.p50", "ttft.p95", "itl.p50", "itl.p99")
MARGIN_MS = 0.02  # what lies between the two ends of the loopback device


def burn() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    rows, worst = [], 0.0
    for _ in range(args.runs):
        hogs, streams = draw.randint(0, 6), draw.choice((4, 16, 64, 128))
        row, ratio = one_run(hogs, streams)
        rows.append([hogs, streams, *row])
        worst = max(worst, ratio)
        print(".", end="", flush=True)
    heads = [
        "hogs",
        "streams",
        "verdict",
        "read lag p99, ms",
        "figures",
        "✗",
        "over",
        "most off, ms",
        "its stated ±",
    ]
    print("\n" + tabulate(sorted(rows, key=lambda row: row[:2]), heads, disable_numparse=True))
    valid = [row for row in rows if row[2] == "valid"]
    figures = sum(int(row[4]) for row in valid)
    print(
        f"{len(valid)} of {len(rows)} cells printed {figures} figures; "
        f"{sum(int(row[5]) for row in valid)} more were ✗; "
        f"{sum(int(row[6]) for row in valid)} were off by more than stated "
        f"(worst: {worst:.2f} × stated)."
    )


def one_run(hogs: int, streams: int) -> tuple[list[str], float]:
    running = [multiprocessing.Process(target=burn, daemon=True) for _ in range(hogs)]
    for hog in running:
        hog.start()
    try:
        with tempfile.TemporaryDirectory() as folder, TruthServer(SCRIPT) as server:
            cell, directory = sweep(server.url, streams, Path(folder))
            log = {reply.request_id: reply for reply in server.log()}
            measured = [trace for trace in directory.traces() if trace.phase == "measured"]
            measured.sort(key=lambda trace: trace.sent_ns)
            replies = [
                log[trace.request_id]
                for trace in measured[cell.warmup_removed :]
                if trace.request_id in log and not trace.error
            ]
    finally:
        for hog in running:
            hog.kill()
            hog.join()
    lag = cell.ruler.read_lag_ms["p99"] if cell.ruler.read_lag_ms else float("nan")
    if cell.verdict != "valid":
        return [cell.verdict, f"{lag:.2f}", "0", "0", "0", "—", "—"], 0.0
    offs, untimed = errors(cell, replies)
    off, stated = max(offs, key=lambda pair: pair[0] / (pair[1] + MARGIN_MS), default=(0.0, 0.0))
    over = sum(off > stated + MARGIN_MS for off, stated in offs)
    counts = [str(len(offs)), str(untimed), str(over)]
    row = [cell.verdict, f"{lag:.2f}", *counts, f"{off:.3f}", f"{stated:.3f}"]
    return row, off / (stated + MARGIN_MS)


def sweep(url: str, streams: int, folder: Path) -> tuple[Cell, RunDirectory]:
    settings = Sweep(
        target=[url],
        concurrency=[streams],
        prompt_tokens=[32],
        output_tokens=40,
        duration=2.0,
        out=str(folder / "run"),
        calibrate=False,
    )
    directory = RunDirectory.create(settings, settings.targets(), {})
    run = SweepRun(directory, SilentView())
    run.run()
    (cell,) = run.cells
    return cell, directory


def errors(cell: Cell, replies: list[Reply]) -> tuple[list[tuple[float, float]], int]:
    """How far each figure that the table shows is off, and what was stated, in ms; and how many
    could not be timed."""
    early, late = [], []
    early_gaps, late_gaps = [], []
    for reply in replies:
        sent = np.asarray(reply.token_sent_ns, dtype=float)
        left = sent + np.asarray(reply.token_took_ns, dtype=float)
        early.append(sent[0] - reply.received_ns)
        late.append(left[0] - reply.received_ns)
        early_gaps.append(sent[1:] - left[:-1])
        late_gaps.append(left[1:] - sent[:-1])
    bounds = {
        "ttft": (np.array(early), np.array(late)),
        "itl": (np.concatenate(early_gaps), np.concatenate(late_gaps)),
    }
    found, untimed = [], 0
    for name, value, stated in timed(cell):
        metric, _, p = name.partition(".")
        if name not in SHOWN:
            continue
        if name in cell.untimed:
            untimed += 1
            continue
        ends = [quantile(np.sort(end), float(p[1:]) / 100) / 1e6 for end in bounds[metric]]
        found.append((max(ends[0] - value, value - ends[1], 0.0), stated))
    return found, untimed


if __name__ == "__main__":
    main()
