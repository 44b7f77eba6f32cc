"""Do the statistics keep what they promise? Simulations in which the truth is known.

    python benchmarks/statistics_truth.py [--repetitions 500] [--processes 2]

- How often nominal 95% intervals of p50 and p90 hold the true quantile, for independent values and
  for autoregressive ones (AR(1), φ = 0.5 and 0.8).
- How often two equal runs (A/A) are called different in any metric.
- How often a slowdown of 5% is found with as many requests as a smaller comparison said it needs.

Latencies are lognormal with σ = 0.3. Everything is drawn from fixed seeds. Needs the extra ``dev``
(scipy).
"""

import argparse
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing import Pool
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter
from scipy.stats import norm
from tabulate import tabulate

from llmbench.measure import statistics as stats
from llmbench.measure.blocks import block
from llmbench.measure.claims import decide
from llmbench.measure.compare import HEADLINE, Result, compare_cells
from llmbench.measure.likeness import Side, Stored
from llmbench.measure.requests import Requests
from llmbench.measure.statistics import Floats
from llmbench.records import Block, Cell, CellFacts, Counts, Load, RequestMetrics

SIGMA = 0.3
TTFT_S, TPOT_S, TOKENS = 0.05, 0.01, 20
SLOWDOWN = 1.05
PILOT = 100

LOAD = Load(
    concurrency=1, prompt_tokens=1, output_tokens=TOKENS, requests=1, duration_s=None, warmup=0
)
FACTS = CellFacts(cell=0, target=0, client="wire", load=LOAD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with Pool(args.processes) as pool:
        repeat = partial(_repeat, pool.imap_unordered, args.repetitions)
        coverage(repeat)
        equal_runs(repeat)
        slowdowns(repeat)


def _repeat(
    run: Callable[..., Iterable[object]], times: int, trial: Callable[..., object], factor: int = 1
) -> list[object]:
    return list(run(trial, range(times * factor), chunksize=10))


# ── intervals ────────────────────────────────────────────────────────────────────────────────────


def coverage(repeat: Callable[..., list[object]]) -> None:
    rows = []
    for p in (0.5, 0.9):
        for phi in (0.0, 0.5, 0.8):
            for n in (72, 150, 300, 500):
                told = repeat(partial(_held, p, phi, n), factor=4)
                rows.append([f"p{100 * p:.0f}", phi, n, *_coverage_row(told)])
    heads = ["quantile", "φ", "n", "worth", "naive\nholds", "holds", "shown"]
    print(f"Nominal 95% intervals, share that holds the truth ({4} × repetitions each)\n")
    print(tabulate(rows, heads, disable_numparse=True, stralign="right"), "\n", flush=True)


class Held(NamedTuple):
    """How much a sample was worth, and whether the intervals hold the truth: the one of n
    independent values, and that of a cell, which may not be there."""

    worth: float
    naive: bool
    ours: bool | None


def _held(p: float, phi: float, n: int, seed: int) -> Held:
    rng, truth = np.random.default_rng([1, seed]), float(norm.ppf(p))
    values = autoregressive(rng, n, phi)
    told, name = block(np.exp(SIGMA * values)), f"p{100 * p:.0f}"
    truth = math.exp(SIGMA * truth)
    naive = stats.interval(np.sort(np.exp(SIGMA * values)), p, n)
    ours = told.ci95.get(name)
    assert naive is not None
    return Held(
        told.worth.get(name, n),
        naive[0] <= truth <= naive[1],
        None if ours is None else ours[0] <= truth <= ours[1],
    )


def _coverage_row(told: Sequence[Held]) -> list[str]:
    shown = [each.ours for each in told if each.ours is not None]
    return [
        f"{np.mean([each.worth for each in told]):.0f}",
        f"{np.mean([each.naive for each in told]):.1%}",
        f"{np.mean(shown):.1%}" if shown else "—",
        f"{len(shown) / len(told):.0%}",
    ]


def autoregressive(rng: np.random.Generator, n: int, phi: float) -> Floats:
    """A stationary series of standard normal values with the autocorrelations φᵏ."""
    noise = rng.normal(size=n + 200)
    return np.asarray(lfilter([math.sqrt(1 - phi**2)], [1, -phi], noise)[200:])


# ── equal runs ───────────────────────────────────────────────────────────────────────────────────


def equal_runs(repeat: Callable[..., list[object]]) -> None:
    plans = [(n, phi, 1, 0.0) for phi in (0.0, 0.5, 0.8) for n in (72, 200, 500)]
    plans += [(72, 0.0, runs, spread) for runs in (2, 3, 5) for spread in (0.0, 0.1)]
    rows = []
    for plan in plans:
        told = repeat(partial(_called, *plan))
        called = [each for each in told if each is not None]
        n, phi, runs, spread = plan
        share = sum(map(bool, called)) / len(called)
        rows.append([n, phi, runs, f"{spread:.0%}", f"{share:.1%}", _outside(called)])
    heads = [
        "n a\nrun",
        "φ",
        "runs\na side",
        "spread\nof runs",
        "called\ndifferent",
        "1 outside the 95% interval of\n" + ", ".join(HEADLINE),
    ]
    print("Equal runs (A/A) called different in any metric\n")
    print(tabulate(rows, heads, disable_numparse=True), "\n", flush=True)


class Called(NamedTuple):
    different: bool
    outside: dict[str, bool]

    def __bool__(self) -> bool:
        return self.different


def _called(n: int, phi: float, runs: int, spread: float, seed: int) -> Called:
    rng = np.random.default_rng([2, seed])
    sides = [
        Side([cell(rng, n, phi, math.exp(spread * rng.normal())) for _ in range(runs)])
        for _ in range(2)
    ]
    results = judged(*sides, seed)
    return Called(
        any(each.verdict.kind in ("slower", "faster") for each in results if each.verdict),
        {each.metric: not each.ci95[0] <= 1 <= each.ci95[1] for each in results},
    )


def _outside(called: Sequence[Called]) -> str:
    parts = []
    for metric in HEADLINE:
        its = [each.outside[metric] for each in called if metric in each.outside]
        parts.append(f"{np.mean(its):.1%}" if len(its) > len(called) / 4 else "—")
    return ", ".join(parts)


# ── a slowdown ───────────────────────────────────────────────────────────────────────────────────


def slowdowns(repeat: Callable[..., list[object]]) -> None:
    rows = []
    for words, tpot in (("TTFT alone", 1.0), ("all of it", SLOWDOWN)):
        told = [each for each in repeat(partial(_found, tpot)) if each is not None]
        needs = sorted(each.needs for each in told if each.needs)
        unsure = [each for each in told if each.needs]
        quartiles = [f"{PILOT + needs[len(needs) * q // 4]:,}" for q in (1, 2, 3)]
        rows.append(
            [
                words,
                f"{len(unsure) / len(told):.0%}",
                " / ".join(quartiles),
                f"{np.mean([each.found for each in unsure]):.1%}",
            ]
        )
    heads = [
        "slower\nby 5%",
        f"{PILOT} requests\ncan't tell",
        "predicted n a side\nquartiles",
        "found with\nthat n",
    ]
    print("A true slowdown, ttft.p50\n")
    print(tabulate(rows, heads, disable_numparse=True, stralign="right"), flush=True)


class Found(NamedTuple):
    """How many more the small comparison asked for, 0 where it could tell, and whether that many
    found the slowdown."""

    needs: int
    found: bool


def _found(tpot: float, seed: int) -> Found:
    rng = np.random.default_rng([3, seed])
    first = _p50(rng, PILOT, tpot, seed)
    needs = (first.verdict.needs or 0) if first.verdict else 0
    if not needs:
        return Found(0, False)
    again = _p50(rng, PILOT + needs, tpot, seed)
    return Found(needs, again.verdict is not None and again.verdict.kind == "slower")


def _p50(rng: np.random.Generator, n: int, tpot: float, seed: int) -> Result:
    a, b = cell(rng, n, 0.0), cell(rng, n, 0.0, SLOWDOWN, tpot)
    return judged(Side([a]), Side([b]), seed)[0]


# ── what is compared ─────────────────────────────────────────────────────────────────────────────


def judged(base: Side, other: Side, seed: int) -> list[Result]:
    """The headline metrics: where none of them differs, no other is called different either."""
    results = compare_cells(base, other, seed, HEADLINE).results
    decide(results)
    return results


def cell(
    rng: np.random.Generator, n: int, phi: float, ttft: float = 1.0, tpot: float | None = None
) -> Stored:
    """A cell of one stream whose TTFT and TPOT are lognormal, slower by factors."""
    ttfts = TTFT_S * ttft * np.exp(SIGMA * autoregressive(rng, n, phi))
    tpots = TPOT_S * (tpot or ttft) * np.exp(SIGMA * autoregressive(rng, n, phi))
    requests, sent_s = [], 0.0
    for first_s, gap_s in zip(ttfts.tolist(), tpots.tolist(), strict=True):
        requests.append(_request(sent_s, first_s, gap_s))
        sent_s += first_s + gap_s * (TOKENS - 1)
    shown = Block(n=n)  # that it is there says that it may be compared
    row = Cell(
        target="h",
        engine=None,
        model=None,
        quantization=None,
        api="chat",
        client="wire",
        concurrency=1,
        request_rate=None,
        prompt_tokens=1,
        output_tokens=TOKENS,
        requests=Counts(sent=n, ok=n),
        ttft_ms=shown,
        itl_request_mean_ms=shown,
        otps=n * TOKENS / sent_s,
        window_s=sent_s,
    )
    return Stored(FACTS, row, Requests.of(requests))


_NO_LAG = array("f")


def _request(sent_s: float, first_s: float, gap_s: float) -> RequestMetrics:
    end_s = first_s + gap_s * (TOKENS - 1)
    return RequestMetrics(
        phase="measured",
        sent_ns=round(sent_s * 1e9),
        end_ns=round((sent_s + end_s) * 1e9),
        tokens=TOKENS,
        token_source="usage",
        ttft_s=first_s,
        e2e_s=end_s,
        tpot_s=gap_s,
        events=TOKENS,
        first_ns=round(first_s * 1e9),
        last_ns=round(end_s * 1e9),
        gaps_s=array("f", [gap_s] * (TOKENS - 1)),
        counted=True,
        lag_ms=_NO_LAG,
        stamps="kernel",
    )


if __name__ == "__main__":
    main()
