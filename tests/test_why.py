"""``llmbench report --why``: what a dash lacks."""

from pathlib import Path

import pytest
from conftest import ROOT, Llmbench

from llmbench.records import Block
from llmbench.report.why import needs


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


def test_static_batches_count_as_one() -> None:
    assert needs(Block(n=80), "p50", batch=16) == 16  # six batches


def test_the_lines_below_the_table(run_llmbench: Llmbench, tmp_path: Path) -> None:
    done = run_llmbench("report", ROOT / "results" / "sample", "--why")
    assert "p99 of TTFT, TPOT, E2E needs 296 more requests" in " ".join(done.out.split())
