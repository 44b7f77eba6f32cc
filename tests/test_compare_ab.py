"""``llmbench compare --ab``: targets that take turns, and the targets of one stored run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import InProcess, Llmbench, was_busy

from llmbench.config import load_sweep
from llmbench.plan.grid import grid
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer

Truth = Callable[..., TruthServer]
QUICK = [
    "--concurrency",
    "2",
    "--prompt-tokens",
    "16",
    "--output-tokens",
    "6",
    "--requests",
    "20",
    "--repeat",
    "4",
]


def test_targets_take_turns_so_that_what_drifts_evenly_cancels() -> None:
    flags = {"target": ["http://a", "http://b"], "concurrency": [4], "repeat": 4}
    order = [plan.target for plan in grid(load_sweep(flags))]
    assert order in (
        [0, 1, 1, 0] * 2,
        [1, 0, 0, 1] * 2,
        [0, 1, 1, 0, 1, 0, 0, 1],
        [1, 0, 0, 1, 0, 1, 1, 0],
    )
    # The mean place in line is the same for both.
    places = [[n for n, target in enumerate(order) if target == which] for which in (0, 1)]
    assert sum(places[0]) == sum(places[1])


def test_engines_take_turns_only_where_all_run_at_once() -> None:
    flags = {"target": ["llamacpp:a.gguf", "llamacpp:b.gguf"], "concurrency": [4], "repeat": 2}
    assert [plan.target for plan in grid(load_sweep(flags))] == [0, 0, 1, 1]
    at_once = [plan.target for plan in grid(load_sweep(flags | {"together": True}))]
    assert at_once in ([0, 1, 1, 0], [1, 0, 0, 1])


def test_a_slower_server_is_called_slower(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    old, new = truth(ttft_ms=30), truth(ttft_ms=90)
    targets = (f"{old.url}?name=old", f"{new.url}?name=new")
    rule = ("--fail-if", "ttft.p50 > +10%")
    done = run_llmbench("compare", "--ab", *targets, *QUICK, *rule, "--out", run_dir)
    assert done.code == 1 or was_busy(run_dir), done.err  # the gate
    if done.code != 1:
        return
    (line,) = [each for each in done.out.splitlines() if each.startswith("ttft.p50 ms")]
    assert "slower" in line
    assert done.out.startswith("A: old\nB: new\n")
    run = RunDirectory.open(run_dir).run
    assert len(run.cells) == 8
    assert [each.target for each in run.cells[:4]] in ([0, 1, 1, 0], [1, 0, 0, 1])
    assert in_process("compare", run_dir, *rule).out == done.out
    turned = in_process("compare", run_dir, "--baseline", "new")
    (line,) = [each for each in turned.out.splitlines() if each.startswith("ttft.p50 ms")]
    assert "faster" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--ab http://a", "compare --ab: give two targets or more, the baseline first"),
        ("--ab http://a?name=x http://b?name=x", "x"),
        ("--ab http://a http://b --repeat 1", "--repeat 1: to take turns takes 2 or more"),
        ("--ab http://a http://b --baseline c", "--baseline c: none of the runs"),
        ("--ab http://a http://b --fail-if nonsense", "nonsense"),
        ("nowhere", "nowhere: not a run directory"),
    ],
)
def test_what_cannot_be_compared(in_process: InProcess, words: str, told: str) -> None:
    done = in_process("compare", *words.split())
    assert done.code == 2
    assert told in done.err
    assert len(done.err.splitlines()) == 1


def test_a_run_of_one_target_has_nothing_to_be_compared_with(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    flags = ["--concurrency", "1", "--requests", "2", "--no-calibrate"]
    run_llmbench("sweep", "--target", truth().url, *flags, "--out", run_dir)
    done = in_process("compare", run_dir)
    assert done.code == 2
    assert "has one target; give two runs or more, or --ab" in done.err


def test_taking_turns_is_no_key_of_a_config(in_process: InProcess, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("together = true\n")
    done = in_process("sweep", "--config", tmp_path / "a.toml")
    assert done.code == 2
    assert "unknown key 'together'" in done.err
