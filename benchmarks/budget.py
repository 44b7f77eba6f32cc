"""Does the interval of P(turn in budget) hold the truth? Simulated runs of a known distribution.

    python benchmarks/budget.py [--runs 400] [--requests 16,72,300]

For each kind of turn the true P comes from a million turns of its own. Then as many runs are drawn
as asked, each with its requests (and, of a sampled stage, its samples), and the share of runs whose
95% interval holds the truth is printed, with its own interval: at 93% or more, it is as wide as it
should be. Nothing is timed, and nothing is sent.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from tabulate import tabulate

from llmbench.measure.budget import (
    DRAWS,
    Stage,
    chance,
    read_stage,
    sampled_stage,
    share_interval,
    sums,
)
from llmbench.measure.statistics import Floats

Draw = Callable[[Generator, int], Floats]
TRUTH_TURNS = 1_000_000
SAMPLES = 200
STT_S, STT_SIGMA = 0.15, 0.5


class Turn(NamedTuple):
    """A kind of turn: how long the LLM takes (+∞ for never), what the stages do, and the budget."""

    name: str
    waits_s: Draw
    stages: tuple[tuple[str, str], ...]
    budget_s: float
    sampled: bool = False


def lognormal(median_s: float, sigma: float) -> Draw:
    return lambda rng, n: median_s * np.exp(sigma * rng.standard_normal(n))


def stalling(rng: Generator, n: int) -> Floats:
    """Nearly always 300 ms, but one turn in fifty takes 2 s, and one in a hundred never comes."""
    waits = 0.3 + 0.01 * rng.standard_normal(n)
    chances = rng.random(n)
    waits[chances < 0.03] = 2.0
    waits[chances < 0.01] = np.inf
    return waits


FIXED = (("stt", "150ms"), ("tts", "120ms"), ("network", "60ms"))
RANDOM = (("stt", "120ms/300ms"), ("tts", "120ms/200ms"), ("network", "60ms"))
TURNS = (
    Turn("fixed stages", lognormal(0.3, 0.25), FIXED, 0.8),
    Turn("fixed stages, rare stalls", stalling, FIXED, 0.8),
    Turn("random stages", lognormal(0.3, 0.25), RANDOM, 0.8),
    Turn("random stages, half in budget", lognormal(0.3, 0.4), RANDOM, 0.65),
    Turn("random stages, rare stalls", stalling, RANDOM, 1.0),
    Turn("a sampled stage", lognormal(0.3, 0.25), RANDOM[1:], 0.8, sampled=True),
    Turn("a sampled stage, rare stalls", stalling, RANDOM[1:], 1.0, sampled=True),
)


def stages_of(turn: Turn, rng: Generator, samples: int) -> list[Stage]:
    stages = [read_stage(name, text) for name, text in turn.stages]
    if turn.sampled:
        values = STT_S * np.exp(STT_SIGMA * rng.standard_normal(samples))
        stages.append(sampled_stage("stt", "@stt.csv", values.tolist()))
    return stages


def truth(turn: Turn) -> float:
    """P(turn in budget), from turns drawn one by one."""
    rng = default_rng(1)
    total_s = turn.waits_s(rng, TRUTH_TURNS)
    for name, text in turn.stages:
        total_s += rng.choice(read_stage(name, text).values_s, TRUTH_TURNS)
    if turn.sampled:
        total_s += STT_S * np.exp(STT_SIGMA * rng.standard_normal(TRUTH_TURNS))
    return float((total_s <= turn.budget_s).mean())


def covered(
    turn: Turn, requests: int, runs: int, seed: int = 0, draws: int = DRAWS
) -> tuple[int, float]:
    """In how many of ``runs`` the interval holds the truth, and how wide it is on average."""
    expected, rng, held, width = truth(turn), default_rng(seed), 0, 0.0
    for _ in range(runs):
        spent = sums(stages_of(turn, rng, SAMPLES), rng, draws)
        told = chance(turn.waits_s(rng, requests), spent, turn.budget_s)
        assert told is not None
        held += told.low <= expected <= told.high
        width += told.high - told.low
    return held, width / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--requests", default="16,72,300")
    args = parser.parse_args()
    rows = []
    for turn in TURNS:
        for requests in map(int, args.requests.split(",")):
            held, width = covered(turn, requests, args.runs)
            low, high = share_interval(held / args.runs, args.runs)
            share = f"{100 * held / args.runs:.1f}", f"{100 * low:.1f}–{100 * high:.1f}"
            rows.append(
                [turn.name, requests, f"{100 * truth(turn):.2f}", *share, f"{100 * width:.1f}"]
            )
    heads = ["turns", "requests", "true P\n%", "covered\n%", "95%\ninterval", "mean width\n%"]
    print(tabulate(rows, heads, disable_numparse=True, colalign=["left", *["right"] * 5]))
    print(f"{args.runs} simulated runs each; a sampled stage has {SAMPLES} samples")


if __name__ == "__main__":
    main()
