"""``llmbench report --why``: what a dash lacks."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import InProcess
from test_summary import TARGET, facts_of, steady

from llmbench.config import Sweep
from llmbench.measure.blocks import needs
from llmbench.records import Block
from llmbench.store import RunDirectory


@pytest.mark.parametrize(
    ("told", "name", "more"),
    [
        (Block(n=72, p95=1.0), "p95", None),  # it is shown
        (Block(n=72), "p99", 296),  # p99 takes 368
        (Block(n=500), "p99", None),  # enough requests: it lies beyond a cut
        (Block(n=0), "p99", None),
    ],
)
def test_how_many_more(told: Block, name: str, more: int | None) -> None:
    assert needs(told, name) == more


def test_requests_that_depend_on_each_other_count_for_what_they_are_worth() -> None:
    assert needs(Block(n=80, worth={"p50": 5.0}), "p50") == 16  # six independent ones, not five
    assert needs(Block(n=500, worth={"p95": 30.0}), "p95") == 700  # 72 of 30


def test_the_lines_below_the_table(in_process: InProcess, sample: Callable[[str], Path]) -> None:
    done = in_process("report", sample("sample"), "--why")
    assert re.search(
        r"p99 of TTFT[A-Z0-9, ]* needs [\d,]+ more requests", " ".join(done.out.split())
    )


def test_what_itl_and_rates_lack(in_process: InProcess, run_dir: Path) -> None:
    directory = RunDirectory.create(Sweep(out=str(run_dir)), [TARGET], {})
    directory.add_cell(facts_of(), steady(10, 50, 60, 70))
    done = in_process("report", run_dir, "--why", "--slo", "ttft.p50=5s")
    told = " ".join(done.out.split())
    assert re.search(r"p99 of ITL needs [\d,]+ more requests", told)
    assert "tok/s and req/s have an interval from 30 independent requests on" in told
    assert "SLO met: ttft.p50 ≤ 5000 ms" in told
    assert "goodput: 100.0% of the requests (72.2% to 100.0%), " in told
