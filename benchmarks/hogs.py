"""Is a printed number ever off by more than was stated? With random CPU hogs beside it.

    python benchmarks/hogs.py --runs 50      # about seven minutes

Each run draws a number of hogs (processes that want a whole core, all the time) and a number of
streams, measures a truth server, and holds every figure of the table against the truth: the same
quantile of the server's own send times, which are intervals where the server, too, was held up. A
cell that is INVALID prints no figure. `over` counts figures that are off by more than stated.
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
from llmbench.measure.statistics import quantile
from llmbench.records import Cell
from llmbench.store import RunDirectory
from llmbench.truth.log import Reply
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script

SCRIPT = Script(ttft_ms=30.0, itl_ms=8.0, jitter_ms=2.0, output_tokens=40)
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
        "over",
        "most off, ms",
        "its stated ±",
    ]
    print("\n" + tabulate(sorted(rows, key=lambda row: row[:2]), heads, disable_numparse=True))
    valid = [row for row in rows if row[2] == "valid"]
    figures = sum(int(row[4]) for row in valid)
    print(
        f"{len(valid)} of {len(rows)} cells printed {figures} figures; "
        f"{sum(int(row[5]) for row in valid)} were off by more than stated "
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
            replies = [
                log[trace.request_id]
                for trace in directory.traces()
                if trace.phase == "measured" and trace.request_id in log and not trace.error
            ]
    finally:
        for hog in running:
            hog.kill()
            hog.join()
    lag = cell.ruler.read_lag_ms["p99"] if cell.ruler.read_lag_ms else float("nan")
    if cell.verdict != "valid":
        return [cell.verdict, f"{lag:.2f}", "0", "0", "—", "—"], 0.0
    offs = errors(cell, replies)
    off, stated = max(offs, key=lambda pair: pair[0] / (pair[1] + MARGIN_MS))
    over = sum(off > stated + MARGIN_MS for off, stated in offs)
    row = [cell.verdict, f"{lag:.2f}", str(len(offs)), str(over), f"{off:.3f}", f"{stated:.3f}"]
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


def errors(cell: Cell, replies: list[Reply]) -> list[tuple[float, float]]:
    """How far each figure that the table shows is off, and what was stated, in ms."""
    early, late = [], []
    early_gaps, late_gaps = [], []
    for reply in replies:
        sent = np.asarray(reply.token_sent_ns, dtype=float)
        left = sent + np.asarray(reply.token_took_ns, dtype=float)
        early.append(sent[0] - reply.received_ns)
        late.append(left[0] - reply.received_ns)
        early_gaps.append(sent[1:] - left[:-1])
        late_gaps.append(left[1:] - sent[:-1])
    found = []
    for block, stated, low, high, shown in (
        (cell.ttft_ms, cell.ruler.ttft_error_ms, np.array(early), np.array(late), ("p50", "p95")),
        (
            cell.itl_ms,
            cell.ruler.itl_error_ms,
            np.concatenate(early_gaps),
            np.concatenate(late_gaps),
            ("p50", "p99"),
        ),
    ):
        for name in shown:
            value = getattr(block, name) if block else None
            if value is None or stated is None:
                continue
            p = float(name[1:]) / 100
            least, most = (quantile(np.sort(bound), p) / 1e6 for bound in (low, high))
            found.append((max(least - value, value - most, 0.0), stated[name]))
    return found


if __name__ == "__main__":
    main()
