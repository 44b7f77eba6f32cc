"""Do equal runs come out equal, and do intervals hold, on live loops?

    python benchmarks/same.py [--pairs 60] [--jobs 4] [--only NAME …]      # about 20 s a pair
    python benchmarks/same.py --engines [--pairs 20]                       # about 40 s a pair
    python benchmarks/same.py --slower 10 [--pairs 30]                     # is a difference found?
    python benchmarks/same.py --ab [--pairs 20] --only '6 slots'           # in turns, 4 runs a side

Pairs of sweeps of one server, each a process of its own. A server has slots and a line of those
that wait, as an engine's scheduler has. The long run's value is the median over all runs. Printed
of each server: how many of the pairs ``compare`` calls different, or finds a slower one slower; the
share of 95% intervals that hold the long run's value; and by how many times they are wider, in the
middle, than the spread between runs calls for. Runs that ``--keep`` has kept are not run again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace
from tabulate import tabulate

from llmbench.measure.statistics import Z
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script

PLAIN = Script(ttft_ms=40.0, itl_ms=3.0, jitter_ms=2.0, output_tokens=16)
QUEUED = replace(PLAIN, max_parallel=6)
USUAL = ("--output-tokens", "16", "--prompt-tokens", "32", "--requests", "256")
EIGHT = (*USUAL, "--concurrency", "8")
FIGURES = (
    *((f"{name}_ms", p) for name in ("ttft", "e2e", "itl", "tpot") for p in ("p50", "p90", "p95")),
    ("otps", ""),
)
"""What the intervals of are looked at."""


class Server(NamedTuple):
    """Something to measure: a truth server that plays ``script``, or without one what the ``flags``
    of the sweep name."""

    name: str
    script: Script | None
    flags: tuple[str, ...]
    open_loop: bool = False


SERVERS = (
    Server("8 users, no queue", PLAIN, EIGHT),
    Server("8 users, 6 slots", QUEUED, EIGHT),
    Server("the same, no jitter", replace(QUEUED, jitter_ms=0.0), EIGHT),
    Server("the same, jitter 10 ms", replace(QUEUED, jitter_ms=10.0), EIGHT),
    Server("12 users, 9 slots", replace(PLAIN, max_parallel=9), (*USUAL, "--concurrency", "12")),
    Server("32 users, 8 slots", replace(PLAIN, max_parallel=8), (*USUAL, "--concurrency", "32")),
    Server(
        "8 users, 6 slots, lognormal",
        QUEUED,
        (*EIGHT[2:], "--output-tokens", "lognormal(16,0.5)"),
    ),
    Server(
        "8 users, 6 slots, stalls",
        replace(QUEUED, itl_ms=1.5, jitter_ms=1.0, stall_every=50, stall_ms=40.0),
        (*EIGHT[2:], "--output-tokens", "60"),
    ),
    Server(
        "open loop, 80% of 6 slots",
        QUEUED,
        (*USUAL[:4], "--request-rate", "56", "--requests", "1000"),
        open_loop=True,
    ),
    Server("8 users, 6 slots, by time", QUEUED, (*USUAL[:4], "--concurrency", "8")),
)
ENGINES = (
    Server("llama.cpp embedded, 4 users", None, ("--concurrency", "4")),
    Server("llama.cpp embedded, 8 users", None, ("--concurrency", "8")),
)


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``llmbench`` with ``words`` as a user would."""
    command = [sys.executable, "-m", "llmbench", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def serving(server: Server, slower: float) -> Iterator[tuple[str, ...]]:
    """The flags that name ``server`` while it runs; it takes so many times as long."""
    if server.script is None:
        yield ()
        return
    script = replace(
        server.script, ttft_ms=server.script.ttft_ms * slower, itl_ms=server.script.itl_ms * slower
    )
    with TruthServer(script) as running:
        yield ("--target", running.url)


def measured(server: Server, pairs: int, slower: float, folder: Path) -> list[Path]:
    """The run directories of ``pairs``, each a baseline and another that is ``slower``."""
    runs: list[Path] = []
    again = serving(server, slower) if slower != 1 else nullcontext(None)
    with serving(server, 1.0) as base, again as other:
        for number in range(2 * pairs):
            run = folder / f"{number:03}"
            target = other if other is not None and number % 2 else base
            seed = ("--seed", str(number)) if server.open_loop else ()
            if not (run / "summary.json").exists():
                tool("sweep", *target, *server.flags, *seed, "--no-calibrate", "--out", str(run))
            runs.append(run)
    return runs


def cell_of(run: Path) -> dict[str, Any]:
    cell: dict[str, Any] = json.loads((run / "summary.json").read_text())["cells"][0]
    return cell


def called(one: Path, other: Path) -> set[str]:
    """The metrics in which ``compare`` calls two runs different, each with ``slower`` or so."""
    said = tool("compare", str(one), str(other), "--format", "json")
    if not said.stdout:  # one is INVALID: the machine was too busy to send in time
        return set()
    pair = json.loads(said.stdout)["pairs"][0]
    return {
        f"{each['metric']} {each['verdict']['kind']}"
        for each in pair["results"]
        if each["headline"] and each["verdict"]["kind"] in ("slower", "faster")
    }


def called_in_turns(server: Server, target: str, folder: Path) -> bool:
    """Whether ``compare --ab`` calls a server different from itself under another name."""
    names = [f"{target}?name={name}" for name in ("old", "new")]
    flags = [*server.flags[: server.flags.index("--requests")], "--requests", "64"]
    flags += server.flags[server.flags.index("--requests") + 2 :]
    said = tool("compare", "--ab", *names, *flags, "--out", str(folder), "--format", "json")
    (pair,) = json.loads(said.stdout)["pairs"]
    kinds = {each["verdict"]["kind"] for each in pair["results"] if each["headline"]}
    return bool(kinds & {"slower", "faster"})


def row_in_turns(server: Server, pairs: int) -> list[str]:
    with (
        tempfile.TemporaryDirectory(prefix="same-") as scratch,
        serving(server, 1.0) as (_, url),
    ):
        count = sum(
            called_in_turns(server, url, Path(scratch) / str(number)) for number in range(pairs)
        )
    return [server.name, str(pairs), f"{count} ({count / pairs:.0%})"]


class Held(NamedTuple):
    """How the intervals of one figure fared: in how many runs there was one, the share of them that
    held the long run's value, and how wide they were against what the spread calls for."""

    shown: float
    held: float
    width: float


def held(cells: list[dict[str, Any]], figure: str, p: str) -> Held | None:
    told = []
    for cell in cells:
        block = cell[figure]
        if block is None:
            continue
        value = block[p] if p else block
        bounds = block["ci95"].get(p) if p else cell[f"{figure}_ci95"]
        if value is not None and bounds and None not in bounds:
            told.append((value, *bounds))
    if len(told) < 2:
        return None
    middle = statistics.median(value for value, _, _ in told)
    # A hiccup of the machine in one run of a hundred makes neither wide.
    percentiles = statistics.quantiles((value for value, _, _ in told), n=100)
    called_for = Z * (percentiles[83] - percentiles[15]) / 2
    wide = statistics.median((high - low) / 2 for _, low, high in told)
    return Held(
        len(told) / len(cells),
        statistics.mean(low <= middle <= high for _, low, high in told),
        wide / called_for if called_for else float("inf"),
    )


def row(server: Server, pairs: int, slower: float, kept: Path | None) -> list[str]:
    """What was seen of one server."""
    with tempfile.TemporaryDirectory(prefix="same-") as scratch:
        folder = (kept or Path(scratch)) / server.name.replace(" ", "-").replace(",", "")
        runs = measured(server, pairs, slower, folder)
        different = [called(one, other) for one, other in zip(runs[::2], runs[1::2], strict=True)]
        count = sum(bool(each) for each in different)
        if slower != 1:
            right = sum(any("slower" in word for word in each) for each in different)
            return [server.name, str(pairs), f"{right} ({right / pairs:.0%})"]
        cells = [cell for cell in map(cell_of, runs) if cell["verdict"] != "invalid"]
    found = {
        f"{figure.removesuffix('_ms')} {p}".strip(): told
        for figure, p in FIGURES
        if not (server.open_loop and figure == "otps")
        and (told := held(cells, figure, p)) is not None
    }
    worst = min(found, key=lambda name: found[name].held)
    widest = max(found, key=lambda name: found[name].width)
    rarest = min(found, key=lambda name: found[name].shown)
    mean = statistics.mean(each.held for each in found.values())
    names = [f"ttft {p}" for p in ("p50", "p90", "p95")]
    ttft = " ".join(f"{found[each].held:.2f}" if each in found else "–" for each in names)
    return [
        server.name,
        str(pairs),
        f"{count} ({count / pairs:.0%})",
        ttft,
        f"{found['otps'].held:.2f}" if "otps" in found else "–",
        f"{mean:.3f}",
        f"{found[worst].held:.2f} {worst}",
        f"{found[widest].width:.2f} {widest}",
        f"{found[rarest].shown:.0%} {rarest}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=1, help="servers measured at a time")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of servers")
    parser.add_argument("--engines", action="store_true", help="the embedded engine instead")
    parser.add_argument("--target", default="", help="with --engines, a server that runs")
    parser.add_argument("--users", default="4", help="with --target")
    parser.add_argument("--slower", type=float, default=0.0, help="the second is so many %% slower")
    parser.add_argument("--ab", action="store_true", help="by compare --ab, four runs a side")
    parser.add_argument("--keep", type=Path, help="keep the run directories here")
    args = parser.parse_args()
    servers: tuple[Server, ...] = ENGINES if args.engines else SERVERS
    if args.target:
        flags = ("--target", args.target, "--concurrency", args.users)
        servers = (Server(f"{args.target}, {args.users} users", None, flags),)
    chosen = [
        each for each in servers if not args.only or any(word in each.name for word in args.only)
    ]

    def one(server: Server) -> list[str]:
        if args.ab:
            told = row_in_turns(server, args.pairs)
        else:
            told = row(server, args.pairs, 1 + args.slower / 100, args.keep)
        print(*told, sep=" | ", file=sys.stderr, flush=True)
        return told

    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(one, chosen))
    heads = ["server", "pairs", "called\ndifferent"]
    if args.slower:
        heads[2] = "found\nslower"
    elif not args.ab:
        heads += ["TTFT holds\np50 p90 p95", "tok/s\nholds", "mean\nhold", "least hold"]
        heads += ["widest", "rarest"]
    print(tabulate(rows, headers=heads, disable_numparse=True))
    print(f"{os.cpu_count()} cores; {args.jobs} servers at a time")


if __name__ == "__main__":
    main()
