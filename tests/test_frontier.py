"""The frontier's picture: every load where it belongs, and nothing that is not known."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from conftest import InProcess
from test_report import block, cell

from llmbench.measure.cost import Costed, Paid
from llmbench.prices import ListedPrice
from llmbench.records import Billed, Block, Cell, Cost, Objective
from llmbench.report.frontier import Axis, load_name, render_frontier, series, total


def at(load: int, otps: float | None, p50_ms: float, target: str = "a", **fields: object) -> Cell:
    """A cell with an interval of ±10% on its throughput."""
    known: dict[str, object] = {
        "otps": otps,
        "otps_ci95": None if otps is None else (otps * 0.9, otps * 1.1),
        "ttft_ms": block(p50_ms, None),
        "otps_per_user": block(10.0, None),
    }
    return cell(target, load, **(known | fields))


def drawn(cells: list[Cell]) -> ET.Element:
    rows = [Costed(each, None, None, Billed(), None) for each in cells]
    return ET.fromstring(render_frontier(rows))


def words(drawing: ET.Element) -> list[str]:
    return [each.text or "" for each in drawing.iter() if each.tag.endswith("text")]


def dots(drawing: ET.Element, *, hollow: bool = False) -> list[tuple[float, float]]:
    """Where the dots are, without those of the legend."""
    return [
        (float(each.attrib["cx"]), float(each.attrib["cy"]))
        for each in drawing.iter()
        if each.tag.endswith("circle")
        and (each.attrib["fill"] == "#ffffff") == hollow
        and float(each.attrib["cx"]) > 84
    ]


def test_an_axis() -> None:
    line = Axis(0, 50, near=100, far=200)
    assert [line.at(value) for value in (0, 25, 50)] == [100, 150, 200]
    assert line.marks == [0, 10, 20, 30, 40, 50]
    log = Axis(1, 100, near=300, far=100, log=True)
    assert [log.at(value) for value in (1, 10, 100, 0)] == [300, 200, 100, 300]
    assert log.marks == [1, 2, 5, 10, 20, 50, 100]


def test_a_series_is_what_differs_in_its_load_alone() -> None:
    cells = [at(8, 80, 20), at(1, 10, 10), at(1, 12, 9, "b"), at(1, 9, 9, prompt_tokens=4096)]
    found = series(cells)
    assert [each.name for each in found] == [
        f"a, {cells[0].prompt_tokens} prompt tokens",
        "b",
        "a, 4096 prompt tokens",
    ]
    assert [point.load for point in found[0].points(total)] == ["1", "8"]
    assert len({each.color for each in found}) == 3


def test_loads_by_their_kinds() -> None:
    assert load_name(cell("a", 8)) == "8"
    assert load_name(cell("a", None, rate="2.5", request_rate=2.5)) == "2.5/s"
    assert load_name(cell("a", 1, batch_size=4)) == "×4"


def test_dots_stand_where_their_figures_are() -> None:
    """tok/s from 0 to 108% of 110, on 788 pixels from 84 on: 50 at 415.6, 100 at 747.3."""
    drawing = drawn([at(1, 50, 10), at(2, 100, 100)])
    ttft, per_user = dots(drawing)[:2], dots(drawing)[2:]
    assert [x for x, _ in ttft] == [x for x, _ in per_user] == [415.6, 747.3]
    assert ttft[0][1] > ttft[1][1]  # what is slower stands higher
    assert per_user[0][1] == per_user[1][1]


def test_what_is_not_known_is_not_drawn() -> None:
    cells = [
        at(1, 50, 10),
        at(2, 100, 20, verdict="invalid"),
        at(4, None, 30),
        at(8, 120, float("inf")),
    ]
    drawing = drawn(cells)
    assert len(dots(drawing)) == 1 + 2  # 8 has tokens a second, and no finite TTFT
    assert any("2 cells without figures left out" in each for each in words(drawing))
    assert any("no cell has figures" in each for each in words(drawn(cells[1:3])))


def test_objectives_tails_and_costs() -> None:
    tail = Block(n=100, p50=10.0, p95=40.0, ci95={"p50": (9, 11), "p95": (35, float("inf"))})
    slo = {"ttft.p95": Objective(500, 40, True), "tpot.p50": Objective(9, 9, True)}
    drawing = drawn([at(1, 50, 0, ttft_ms=tail, slo=slo, cost=Cost(1.0, 2.5))])
    assert len(dots(drawing, hollow=True)) == 1
    assert len(dots(drawing)) == 3
    assert "ttft.p95 ≤ 500 ms" in words(drawing)
    assert not any("tpot" in each for each in words(drawing))
    assert "cost per 1M output tokens" in words(drawing)


def test_the_cost_of_good_requests_stands_before_that_of_all() -> None:
    price = ListedPrice(name="a", date=date(2026, 11, 24), currency="EUR", hour=1.0)
    its = at(1, 50, 10, cost=Cost(1.0, 2.5))
    paid = Paid(per_1k_requests=2.0, per_1m_output_tokens=250.0)
    text = render_frontier([Costed(its, price, None, Billed(), paid)])
    assert "cost per 1M output tokens, EUR" in text
    assert ">250<" in text  # on its axis


@pytest.mark.parametrize("name", ["<b>&", "'\""])
def test_names_are_escaped(name: str) -> None:
    assert any(name in each for each in words(drawn([at(1, 50, 10, name)])))


def test_report_writes_it(
    in_process: InProcess, sample: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "frontier.svg"
    done = in_process("report", sample("sample-quantizations"), "--svg", path)
    assert done.code == 0, done.err
    said = words(ET.fromstring(path.read_text()))
    assert {"F16", "Q8_0", "Q4_0"} <= set(said)
    done = in_process("report", sample("sample"), "--svg", tmp_path / "no" / "f.svg")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "f.svg: cannot be written: No such file or directory" in done.err
