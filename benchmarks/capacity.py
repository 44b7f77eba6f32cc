"""Does ``llmbench capacity`` find the knee of a queue that is known?

    python benchmarks/capacity.py simulate [--searches 200]     # queues in numpy, a few minutes
    python benchmarks/capacity.py live [--searches 3]           # the truth server, sockets and all

A server has c slots and takes a fixed or an exponential time for a reply; requests come as a
Poisson process, or N users ask again as soon as they have their reply. The objective is about the
time until a reply begins: the wait for a slot. What load just meets it is known: for M/M/c from
Erlang's C, for M/D/c from a long simulation, for users in a closed loop from the slots.
"""

import argparse
import heapq
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from tabulate import tabulate

from llmbench.measure.beyond import sample_worth
from llmbench.plan.search import Search
from llmbench.records import Beyond
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script

Floats = np.ndarray


class Queue(NamedTuple):
    """``slots`` servers with a mean service time; ``random`` where that is exponential. ``allowed``
    of the requests may wait longer than ``limit_s``."""

    name: str
    slots: int
    service_s: float
    random: bool
    limit_s: float
    allowed: float

    @property
    def most(self) -> float:
        """The rate that fills it."""
        return self.slots / self.service_s


QUEUES = (
    Queue("M/M/1", 1, 0.1, True, 0.5, 0.05),
    Queue("M/M/8, p95", 8, 0.5, True, 0.5, 0.05),
    Queue("M/M/8, p50", 8, 0.5, True, 0.1, 0.5),
    Queue("M/M/32, p99", 32, 1.0, True, 0.5, 0.01),
    Queue("M/D/4, p95", 4, 0.2, False, 0.2, 0.05),
    Queue("M/D/16, p90", 16, 1.0, False, 0.2, 0.1),
)


def waits_s(queue: Queue, rate: float, count: int, rng: np.random.Generator) -> Floats:
    """The waits of ``count`` requests, the first of which finds the queue empty."""
    at = np.cumsum(rng.exponential(1 / rate, count))
    takes = (
        rng.exponential(queue.service_s, count) if queue.random else np.full(count, queue.service_s)
    )
    free = [0.0] * queue.slots
    waits = np.empty(count)
    for number in range(count):
        begins = max(at[number], free[0])
        waits[number] = begins - at[number]
        heapq.heapreplace(free, begins + takes[number])
    return waits


def true_knee(queue: Queue) -> float:
    """The rate at which just the allowed share waits too long."""
    if queue.random:
        return _root(lambda rate: _erlang_share(queue, rate) - queue.allowed, queue.most)
    rng = np.random.default_rng(1)
    rates = np.linspace(0.5, 0.99, 50) * queue.most
    shares = [np.mean(waits_s(queue, rate, 200_000, rng)[5000:] > queue.limit_s) for rate in rates]
    smooth = np.maximum.accumulate(shares)
    return float(np.interp(queue.allowed, smooth, rates))


def _erlang_share(queue: Queue, rate: float) -> float:
    """P(W > t) = C(c, a) · exp(−(cμ − λ) t): L. Kleinrock, Queueing Systems I, §3.5."""
    offered, slots = rate * queue.service_s, queue.slots
    blocked = 1.0
    for number in range(1, slots + 1):  # Erlang's B, by its recursion
        blocked = offered * blocked / (number + offered * blocked)
    waits = blocked / (1 - offered / slots * (1 - blocked))
    return waits * math.exp(-(queue.most - rate) * queue.limit_s)


def _root(rises: Callable[[float], float], most: float) -> float:
    low, high = 1e-6, most * (1 - 1e-9)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) < 0 else (low, middle)
    return low


class Found(NamedTuple):
    load: float | None
    low: float | None
    high: float | None
    probes: int
    requests: int


def search_queue(queue: Queue, seed: int) -> Found:
    """One search by the rate, with as many requests a probe as ``llmbench capacity`` has."""
    rng = np.random.default_rng(seed)
    search, requests = Search(1.0, 256.0, whole=False), 0
    while (rate := search.next()) is not None:
        count = max(72, round(30 * rate), search.requests)
        warmup = round(2 * rate)
        waits = waits_s(queue, rate, warmup + count, rng)[warmup:]
        share, worth = float(np.mean(waits > queue.limit_s)), sample_worth(waits, queue.limit_s)
        search.add(rate, {"ttft": Beyond(share, count, worth, queue.allowed)})
        requests += count
    answer = search.answer
    return Found(answer.load, answer.low, answer.high, len(search.probes), requests)


def simulate(searches: int) -> None:
    rows = []
    for queue in QUEUES:
        knee = true_knee(queue)
        found = [search_queue(queue, seed) for seed in range(searches)]
        rows.append([queue.name, f"{knee:.3g}", f"{knee / queue.most:.2f}", *summary(found, knee)])
    print(table(["queue", "true knee\nreq/s", "of\nfull"], rows))
    print(f"{searches} searches each")


def summary(found: list[Found], knee: float) -> list[str]:
    ratios = [each.load / knee if each.load else 0.0 for each in found]
    holds = [each.low is not None and each.low <= knee <= (each.high or 0) for each in found]
    widths = [each.high / each.low - 1 for each in found if each.low and each.high]
    return [
        f"{np.median(ratios) - 1:+.1%}",
        f"{np.mean(np.abs(np.array(ratios) - 1) <= 0.05):.1%}",
        f"{np.mean(holds):.1%}",
        f"{np.median(widths):.1%}" if widths else "—",
        f"{np.median([each.probes for each in found]):.0f} / {max(each.probes for each in found)}",
        f"{np.median([each.requests for each in found]):,.0f}",
    ]


def table(heads: list[str], rows: list[list[str]], *more: str) -> str:
    heads = [*heads, "off by,\nmedian", "within\n5%", "interval\nholds it", "its\nwidth"]
    heads += ["probes,\np50 / most", "requests\na search", *more]
    return tabulate(rows, heads, disable_numparse=True, stralign="right")


# ── the truth server ─────────────────────────────────────────────────────────────────────────────

SLOTS, TTFT_MS, ITL_MS, TOKENS = 8, 20.0, 10.0, 19
SERVICE_S = (TTFT_MS + ITL_MS * (TOKENS - 1)) / 1e3


def live(searches: int, ways: list[str]) -> None:
    """Poisson arrivals: the same M/D/c. Users: where the limit is below what one user more than
    there are slots waits on average, the slots."""
    script = Script(ttft_ms=TTFT_MS, itl_ms=ITL_MS, output_tokens=TOKENS, max_parallel=SLOTS)
    queue = Queue("live", SLOTS, SERVICE_S, False, 0.1, 0.1)
    known = {
        "rate": (true_knee(queue), queue.limit_s),
        "concurrency": (float(SLOTS), SERVICE_S / SLOTS / 2),
    }
    rows = []
    for by in ways:
        knee, limit_s = known[by]
        slo = f"ttft.p90={limit_s * 1e3 + TTFT_MS:g}ms"
        began_s = time.monotonic()
        found = [command(script, by, slo, seed) for seed in range(searches)]
        took_s = (time.monotonic() - began_s) / searches
        answers = ", ".join("—" if each.load is None else f"{each.load:g}" for each in found)
        rows.append([by, slo, f"{knee:.3g}", answers, *summary(found, knee), f"{took_s:.0f}"])
    print(table(["by", "objective", "true\nknee", "found"], rows, "s a\nsearch"))
    print(f"{SLOTS} slots of {SERVICE_S * 1e3:g} ms")


def command(script: Script, by: str, slo: str, seed: int) -> Found:
    with tempfile.TemporaryDirectory() as folder, TruthServer(script) as server:
        run_dir = Path(folder) / "run"
        args = [sys.executable, "-m", "llmbench", "capacity", "--target", server.url, "--by", by]
        args += ["--slo", slo, "--seed", str(100 * seed), "--output-tokens", str(TOKENS)]
        args += ["--most", "128", "--no-calibrate", "--out", str(run_dir)]
        done = subprocess.run(args, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 4):
            sys.exit(done.stderr)
        summary = msgspec.json.decode((run_dir / "summary.json").read_bytes())
    (answer,) = summary["capacity"]
    low, high = answer["ci95"] or (None, None)
    sent = sum(cell["requests"]["sent"] for cell in summary["cells"])
    return Found(answer["load"], low, high, answer["probes"], sent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("simulate", "live"))
    parser.add_argument("--searches", type=int)
    parser.add_argument("--by", default="rate,concurrency", help="of the live searches")
    args = parser.parse_args()
    if args.part == "simulate":
        simulate(args.searches or 200)
    else:
        live(args.searches or 3, args.by.split(","))


if __name__ == "__main__":
    main()
