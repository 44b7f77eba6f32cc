"""The search for the highest load that meets an objective: its steps, its answer, and for real."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Llmbench
from hypothesis import given
from hypothesis import strategies as st

from llmbench.plan.search import CLOSE, MOST_PROBES, Answer, Fate, Probe, Search
from llmbench.truth.process import TruthServer

Truth = Callable[..., TruthServer]


def searched(fate: Callable[[float], Fate], most: float = 1024, *, whole: bool = True) -> Search:
    search = Search(1, most, whole=whole)
    while (load := search.next()) is not None:
        search.add(Probe(load, fate(load), sure=True))
    return search


def below(knee: float) -> Callable[[float], Fate]:
    return lambda load: "met" if load <= knee else "missed"


def test_the_steps_to_a_knee() -> None:
    search = searched(below(21))
    # fourfold to the first miss, halves in ratio, until neighbours; then the winner again
    assert [each.load for each in search.probes] == [1, 4, 16, 64, 32, 23, 19, 21, 22, 21]
    assert search.answer == Answer(21, 21, 22)


@given(st.floats(1, 1000), st.booleans())
def test_any_knee_is_found_in_few_probes(knee: float, whole: bool) -> None:
    search = searched(below(knee), whole=whole)
    found = search.answer.load
    assert found is not None
    assert found <= knee
    next_to = found + 1 if whole else found
    assert knee <= max(found * CLOSE * 1.01, next_to)
    assert len(search.probes) <= MOST_PROBES


def test_no_load_will_do() -> None:
    search = searched(below(0))
    assert [each.load for each in search.probes] == [1]
    assert search.answer == Answer(None, None, 1)


def test_every_load_will_do() -> None:
    search = searched(below(math.inf), most=50)
    assert [each.load for each in search.probes] == [1, 4, 16, 50]
    assert search.answer == Answer(50, 50, None, "50 is the most that was asked for")


def test_a_load_of_which_nothing_can_be_told_is_tried_once_more() -> None:
    search = searched(lambda load: "met" if load < 16 else "unknown")
    assert [each.load for each in search.probes] == [1, 4, 16, 16]
    assert search.answer == Answer(4, 4, None, "nothing could be told at 16")


def test_a_winner_that_misses_when_run_again_gives_way() -> None:
    fates: dict[float, list[Fate]] = {5: ["met", "missed"]}

    def fate(load: float) -> Fate:
        return fates[load].pop(0) if fates.get(load) else below(5)(load)

    search = searched(fate)
    assert [each.load for each in search.probes] == [1, 4, 16, 8, 6, 5, 5, 4]
    assert search.answer.load == 4


def test_doubt_widens_the_answer() -> None:
    search = Search(1, 64, whole=True)
    while (load := search.next()) is not None:
        search.add(Probe(load, below(20)(load), sure=not 17 <= load <= 24))
    assert search.answer == Answer(20, 16, 32)


def test_the_slots_of_a_server_are_found(
    truth: Truth, run_llmbench: Llmbench, run_dir: Path
) -> None:
    """With four replies at a time a fifth stream waits for a whole reply."""
    server = truth(ttft_ms=20, itl_ms=10, output_tokens=12, max_parallel=4)
    flags = "--slo ttft.p90=40ms --most 16 --requests 48 --output-tokens 12"
    done = run_llmbench("capacity", "--target", server.url, *flags.split(), "--out", run_dir)
    assert "up to 4 requests in flight meet ttft.p90 ≤ 40 ms" in done.out, done.out
    again = run_llmbench("report", run_dir)
    assert again.out == done.out
    loads = [line.split()[1] for line in done.out.splitlines()[3:] if line.startswith("127.")]
    numbers = [int(each) for each in loads if each.isdigit()]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "--slo: say what is to be met"),
        ("--slo ttft.p95=1s --concurrency 4", "--concurrency: a search chooses its loads"),
        ("--slo ttft.p95=1s --least 9 --most 4", "--least 9: must be less than --most 4"),
        ("--slo ttft.p95=1s --by rate --batch-size 2", "--batch-size: a search chooses its loads"),
    ],
)
def test_what_cannot_be_searched(run_llmbench: Llmbench, flags: str, words: str) -> None:
    done = run_llmbench("capacity", "--target", "http://localhost:9", *flags.split())
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1
