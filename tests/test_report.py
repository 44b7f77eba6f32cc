"""Cells as text: every format says the same, and none says more than was measured."""

import csv
import io
import json
import re
import unicodedata
from typing import Any

import pytest

from llmbench.config import Sweep
from llmbench.records import Block, Cell, Counts, Estimate, Range, Ruler
from llmbench.report import RENDERERS
from llmbench.report.columns import figure, interval
from llmbench.report.notes import notes
from llmbench.report.table import render_markdown, render_table
from llmbench.report.tabular import render_csv
from llmbench.store import Run, summary_json

INF = float("inf")
RUN = Run(started="2026-01-01T00:00:00+00:00", sweep=Sweep(), targets=[], host={})


def block(p50: float | None, tail: float | None = None) -> Block:
    """A distribution with a median, and the same p95 and p99."""
    return Block(n=80, mean=p50, min=p50, p50=p50, p95=tail, p99=tail, max=tail)


def cell(target: str = "h:8000", concurrency: int = 8, **fields: Any) -> Cell:
    known = {
        "target": target,
        "engine": None,
        "model": "m",
        "quantization": None,
        "api": "chat",
        "client": "wire",
        "concurrency": concurrency,
        "request_rate": None,
        "prompt_tokens": 128,
        "output_tokens": 64,
        "requests": Counts(sent=80, ok=80),
        "ttft_ms": block(12.345, 67.89),
        "itl_ms": block(1.234, 5.678),
        "otps_per_user": block(99.5),
        "otps": 1234.5,
        "otps_ci95": (1234.5, 1234.5),
        "requests_per_s": 3.21,
        "requests_per_s_ci95": (3.21, 3.21),
        "ruler": Ruler(stamps="kernel"),
    }
    return Cell(**(known | fields))


def of(value: float | None, **fields: Any) -> Cell:
    """A cell with the same figure everywhere."""
    same = dict.fromkeys(["ttft_ms", "itl_ms", "otps_per_user"], block(value, value))
    rates = {"otps": value, "requests_per_s": value}
    known = {f"{name}_ci95": None if value is None else (value, value) for name in rates}
    return cell(**(same | rates | known | fields))


def columns_of(line: str) -> int:
    """How many columns of a terminal ``line`` takes."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def rows(cells: list[Cell]) -> list[list[str]]:
    """The rows of the table, without heads and notes."""
    lines = render_table(cells).splitlines()
    rule = next(n for n, line in enumerate(lines) if set(line) == {"-", " "})
    body = [line for line in lines[rule + 1 :] if line][: len(cells)]
    return [re.split(r" {1,}", line.strip()) for line in body]


# ---- figures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (INF, "∞"),
        (0.0, "0.00"),
        (0.123, "0.12"),
        (1.234, "1.23"),
        (9.99, "9.99"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (99.94, "99.9"),
        (99.96, "100"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (123456.0, "123,456"),
    ],
)
def test_a_figure_has_three_digits(value: float | None, text: str) -> None:
    assert figure(cell(), value) == text
    assert figure(cell(verdict="partial"), value) == text
    assert figure(cell(verdict="invalid"), value) == ("—" if value is None else "✗")


def test_a_row() -> None:
    (row,) = rows([cell()])
    assert row == [
        *("h:8000", "8", "128", "12.3", "67.9", "1.23", "5.68", "—", "99.5", "1,234", "3.21", "0")
    ]


def test_what_was_not_measured_is_a_dash() -> None:
    empty = cell(ttft_ms=None, itl_ms=None, otps_per_user=None, otps=None, requests_per_s=None)
    assert rows([empty]) == [["h:8000", "8", "128", *["—"] * 8, "0"]]
    assert rows([of(None)]) == [["h:8000", "8", "128", *["—"] * 8, "0"]]


def test_what_never_came_is_infinite() -> None:
    (row,) = rows([of(INF)])
    assert row[3:] == [*["∞"] * 4, "—", *["∞"] * 3, "0"]


@pytest.mark.parametrize("name", ["table", "markdown"])
def test_no_figure_of_an_invalid_cell(name: str) -> None:
    ruler = Ruler(stamps="kernel", ttft_error_ms={"p50": 777, "p95": 777, "p99": 777})
    wrong = of(777.0, verdict="invalid", reasons=["the client was late"], ruler=ruler)
    text = RENDERERS[name]([wrong, cell(concurrency=1)])
    assert "777" not in text
    assert "INVALID, the client was late" in text


def test_the_rulers_error_is_the_greatest_of_what_is_shown() -> None:
    ruler = Ruler(
        stamps="kernel",
        ttft_error_ms={"p50": 0.1, "p95": 0.256, "p99": 9.0},  # its p99 is not in the table
        itl_error_ms={"p50": 0.2, "p95": 9.0, "p99": 0.1},
    )
    (row,) = rows([cell(ruler=ruler)])
    assert row[7] == "0.26"
    (row,) = rows([cell(ruler=ruler, ttft_ms=block(1.0))])  # nor is a p95 that there is not
    assert row[7] == "0.20"


def test_what_failed() -> None:
    counts = Counts(sent=80, ok=77, failed=3, failures={"reset": 2, "http-429": 1})
    (row,) = rows([cell(requests=counts)])
    assert row[-1] == "3/80"
    (row,) = rows([cell(requests=Counts())])
    assert row[-1] == "—"


def test_the_prompt_lengths_that_were_achieved() -> None:
    assert rows([cell(measured_prompt_tokens=Range(127, 127, 127))])[0][2] == "127"
    assert rows([cell(measured_prompt_tokens=Range(126, 127, 129))])[0][2] == "126–129"


def test_columns_that_tell_cells_apart() -> None:
    (plain,) = rows([cell()])
    both = rows([cell(), cell(client="openai", api="completions")])
    assert both[0] == ["h:8000", "wire", "chat", *plain[1:]]
    assert both[1] == ["h:8000", "openai", "completions", *plain[1:]]


# ---- the table


LONG = "a-very-long-name-of-a-model-on-some-host.example.com:8000"
WIDE = "東京のサーバー-量子化された大きなモデル"


@pytest.mark.parametrize("name", ["h", LONG, WIDE, "🙂" * 30, "x" * 200, "é" * 60])
@pytest.mark.parametrize("value", [None, 1.0, 123456.0, INF])
@pytest.mark.parametrize("clients", [["wire"], ["wire", "aiohttp", "openai"]])
def test_every_line_fits_a_hundred_columns(
    name: str, value: float | None, clients: list[str]
) -> None:
    counts = Counts(
        sent=80, ok=70, failed=10, failures={"reset": 10}, details={"reset": "壊" * 200}
    )
    cells = [
        of(value, target=target, client=client, requests=counts, notes=[f"note {name} " * 9])
        for target in (name, "other")
        for client in clients
    ]
    for line in render_table(cells).splitlines():
        assert columns_of(line) <= 100, line
        assert "\0" not in line


@pytest.mark.parametrize("name", [LONG, WIDE, "🙂" * 30, "a漢" * 20])
def test_columns_stand_below_each_other(name: str) -> None:
    same_load = [cell(target=name), cell(target="short"), of(123456.0)]
    lines = render_table(same_load).splitlines()
    rule = next(n for n, line in enumerate(lines) if set(line) == {"-", " "})
    assert {columns_of(line) for line in lines[rule : rule + 4]} == {columns_of(lines[rule])}


def test_names_are_cut_only_where_they_must_be() -> None:
    assert rows([cell(target="a" * 30)])[0][0] == "a" * 30
    (row,) = rows([cell(target="a" * 60)])
    assert re.fullmatch("a{8,30}…a{8,30}", row[0])
    (row,) = rows([cell(target="漢" * 40)])
    assert re.fullmatch("漢{4,}…漢{4,}", row[0])


def test_names_that_are_cut_are_told_apart_by_their_ends() -> None:
    names = [LONG.replace("8000", port) for port in ("8000", "8001")]
    assert [row[0][-5:] for row in rows([cell(target=name) for name in names])] == [
        ":8000",
        ":8001",
    ]


def test_a_wide_name_is_cut_to_what_it_may_take() -> None:
    for name in ("漢" * 40, "a" + "漢" * 40):
        lines = render_table([cell(target=name)]).splitlines()
        assert 99 <= max(columns_of(line) for line in lines[:4]) <= 100


# ---- Markdown


def cells_of_a_line(line: str) -> list[str]:
    """The cells of one row of a Markdown table; an escaped bar is none."""
    assert line.startswith("|")
    assert line.endswith("|")
    return [each.strip() for each in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_is_a_table() -> None:
    cells = [cell("a|b", client="openai"), of(None, target="||"), of(INF), cell(WIDE)]
    text = render_markdown(cells)
    table, _, below = text.partition("\n\n")
    heads, rule, *body = [cells_of_a_line(line) for line in table.splitlines()]
    assert len(body) == 4
    assert {len(line) for line in (heads, rule, *body)} == {len(heads)}
    assert all(re.fullmatch(":?-+:?", each) for each in rule)
    assert heads[:5] == ["target", "client", "conc.", "TTFT ms p50", "TTFT ms p95"]
    assert "" not in heads
    assert len(set(heads)) == len(heads)
    assert [line[0] for line in body] == ["a\\|b", "\\|\\|", "h:8000", WIDE]
    assert all(line.startswith("- ") for line in below.splitlines() if line)


def test_markdown_says_what_the_table_says() -> None:
    cells = [cell(), of(123456.0, concurrency=1), of(None), cell(verdict="invalid")]
    table = render_markdown(cells).partition("\n\n")[0]
    assert [cells_of_a_line(line) for line in table.splitlines()[2:]] == rows(cells)


# ---- CSV


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of the JSON by its path."""
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, each in value.items():
            found |= flat(each, f"{path}.{key}" if path else key)
        return found
    return {path: value}


def test_csv_has_every_figure_of_the_json() -> None:
    counts = Counts(sent=8, ok=7, failed=1, failures={"reset": 1}, details={"reset": "x"})
    first = cell('a,"b"\nc', requests=counts, measured_prompt_tokens=Range(1, 2, 3))
    assert first.ttft_ms is not None
    first.ttft_ms.ci95 = {"p50": (1.5, 2.5)}
    cells = [first, cell(verdict="invalid", reasons=["one", "two"]), of(None, ttft_ms=None)]
    told = json.loads(summary_json(RUN, cells))["cells"]
    lines = list(csv.DictReader(io.StringIO(render_csv(cells)), strict=True))
    assert len(lines) == 3
    for line, document in zip(lines, told, strict=True):
        for key, value in flat(document).items():
            if isinstance(value, list):
                assert line[key] == "; ".join(map(str, value))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                assert float(line[key]) == value
            else:
                assert line[key] == ("" if value is None else str(value))
    assert lines[0]["target"] == 'a,"b"\nc'
    assert lines[0]["ttft_ms.p50"] == "12.345"
    assert lines[0]["ttft_ms.ci95.p50"] == "1.5; 2.5"
    assert lines[1]["reasons"] == "one; two"
    assert lines[2]["ttft_ms.p50"] == ""
    heads = render_csv(cells).splitlines()[0].split(",")
    assert len(set(heads)) == len(heads)


def test_csv_says_infinity() -> None:
    (line,) = csv.DictReader(io.StringIO(render_csv([of(INF)])))
    assert float(line["ttft_ms.p50"]) == INF


# ---- notes


def test_a_note_names_its_cells() -> None:
    slow = ["slow"]
    cells = [
        cell("a", 1),
        cell("a", 8, notes=slow),
        cell("a", 32, notes=slow),
        cell("b", 8, notes=[*slow, "odd"]),
    ]
    assert notes(cells).lines[:2] == ["a at 8, 32; b at 8: slow", "b at 8: odd"]
    assert notes([cell("a", n, notes=slow) for n in (1, 8)]).lines[0] == "all: slow"
    assert notes([cell("a", 1, notes=slow)]).lines[0] == "a at 1: slow"


def test_a_note_tells_lengths_and_clients_apart() -> None:
    cells = [
        cell("a", 1, prompt_tokens=length, client=client, notes=["odd"] * (length == 64))
        for length in (64, 512)
        for client in ("wire", "openai")
    ]
    assert notes(cells).lines[0] == "a via wire at 1/64; a via openai at 1/64: odd"


def test_reasons_come_with_their_verdict() -> None:
    counts = Counts(
        sent=9, ok=1, failed=8, failures={"reset": 7, "empty": 1}, details={"reset": "by peer"}
    )
    cells = [
        cell("a", verdict="invalid", reasons=["late", "throttled"]),
        cell("b", verdict="partial", reasons=["interrupted"], requests=counts),
        cell("c"),
    ]
    assert notes(cells).lines[:4] == [
        "a at 8: INVALID, late",
        "a at 8: INVALID, throttled",
        "b at 8: PARTIAL, interrupted",
        "b at 8: failed: 7 × reset (by peer), 1 × empty",
    ]


def test_the_legend_says_what_the_load_was() -> None:
    (line,) = notes([cell()]).legend
    assert line.startswith("closed loop: ")
    assert "64 tokens; kernel stamps" in line
    two = [cell(output_tokens=9), cell(ruler=Ruler(stamps="user"))]
    assert "9, 64 tokens; kernel and user stamps" in notes(two).legend[-1]


def test_only_marks_that_stand_in_the_table_are_explained() -> None:
    def marks(*cells: Cell) -> list[str]:
        lines = render_table(cells).splitlines()
        parts = [part for line in lines for part in line.split("; ")]
        return [part[0] for part in parts if part[1:3] == ": "]

    few = Block(n=40, p50=12.0, estimates={"p95": Estimate(67.0, 50.0, None)})
    unseen = Block(n=40, p50=12.0, estimates={"p95": Estimate(None, 50.0, None)})
    assert marks(cell()) == []
    assert marks(cell(ttft_ms=few)) == ["?"]
    assert marks(cell(), cell(ttft_ms=unseen)) == [">"]
    assert marks(cell(untimed={"itl.p99": 17.0})) == ["✗"]
    assert marks(cell(ttft_ms=few, verdict="invalid")) == ["✗"]
    assert marks(cell("a?b > c", icl_ms=few)) == []  # ICL has no column beside ITL


def test_marks_stand_in_the_place_of_a_dash() -> None:
    """A dash is left for what has no value at all."""
    few = Block(n=40, p50=12.0, estimates={"p95": Estimate(2710.4, 2290.0, None)})
    unseen = Block(n=40, p50=12.0, estimates={"p99": Estimate(None, 51.2, None)})
    table = rows([cell(ttft_ms=few, itl_ms=unseen, untimed={"itl.p50": 3.0}, otps_per_user=None)])
    assert table[0][3:] == ["12.0", "2,710?", "✗", ">51.2", "—", "—", "1,234", "3.21", "0"]


def test_gaps_of_chunks_are_shown_where_those_of_tokens_are_not_known() -> None:
    unknown = cell(itl_ms=None, icl_ms=block(7.0, 9.0))
    heads, _, row = render_markdown([unknown]).splitlines()[:3]
    assert heads.count("ICL ms") == 2
    assert "ITL" not in heads
    assert "| 7.00 | 9.00 |" in re.sub(" +", " ", row)
    heads, _, row, _, _, *below = render_markdown([unknown, cell(icl_ms=block(3.0))]).splitlines()
    assert (heads.count("ITL ms"), heads.count("ICL ms")) == (2, 0)
    assert "| 7.00~ | 9.00~ |" in re.sub(" +", " ", row)
    assert "~: gaps between chunks (ICL), where ITL is not known" in below[-1]
    assert "ICL" not in render_markdown([cell(icl_ms=block(3.0))]).splitlines()[0]


def test_lines_that_differ_in_numbers_alone_are_one() -> None:
    cells = [
        cell("a", 1, notes=["the first 4 requests (0.5 s) were cut; p95 of 1,000"]),
        cell("a", 8, notes=["the first 12 requests (1.5 s) were cut; p95 of 1,000", "odd"]),
    ]
    assert notes(cells).lines == [
        "all: the first 4–12 requests (0.5–1.5 s) were cut; p95 of 1,000",
        "a at 8: odd",
    ]


def below(cell: Cell, most_lines: int | None = 8) -> list[str]:
    return render_table([cell], most_lines=most_lines).splitlines()[4:]


def test_few_lines_stand_below_a_table() -> None:
    names = [f"cause {letter} of {letter}" for letter in "abcdefghijkl"]
    told = below(cell(notes=names))
    assert len(told) == 8
    assert told[5] == "h:8000 at 8: cause f of f"
    assert told[6] == "6 more lines: --why"
    assert told[7].startswith("closed loop: ")
    assert len(below(cell(notes=names), None)) == 13
    assert "more line" not in "".join(below(cell(notes=names[:7])))
    markdown = render_markdown([cell(notes=names)], most_lines=8).partition("\n\n")[2].splitlines()
    assert [len(markdown), markdown[6]] == [8, "- 6 more lines: --why"]


def test_the_most_pressing_line_is_shown_however_long_it_is() -> None:
    told = below(cell(verdict="invalid", reasons=["late " * 200], notes=["odd"]))
    assert len(told) == 8
    assert told[0].startswith("h:8000 at 8: INVALID, late late")
    cut = told.index("1 more line: --why") - 1
    assert (cut, told[cut][-7:]) == (4, " late …")
    assert max(map(len, told)) <= 100


def test_why_a_figure_is_not_shown_comes_before_other_remarks() -> None:
    busy = "machine busy: ITL p99 can be off by 17 ms; this process waited"
    odd = cell(notes=["odd", busy], untimed={"itl.p99": 17.0})
    assert notes([odd]).lines == [f"h:8000 at 8: {busy}", "h:8000 at 8: odd"]
    assert notes([odd]).pressing == 1


def test_reasons_have_lines_whatever_the_legend_would_need() -> None:
    """INVALID before PARTIAL, and a line each before a second one for any; of the legend what is
    needed most stays."""
    few = Block(n=40, p50=12.0, estimates={"p95": Estimate(67.0, 50.0, None)})
    words = "and that takes more than one line of a hundred characters to say, whoever says it, so"
    cells = [
        cell("a", verdict="partial", reasons=[f"cut {words}"], ttft_ms=few),
        *(cell(name, verdict="invalid", reasons=[f"{name} {words}"]) for name in "bcd"),
    ]
    lines = render_table(cells, "a", most_lines=8).splitlines()
    told = lines[next(n for n, line in enumerate(lines) if line.startswith("b at 8: ")) :]
    assert [line[:14] for line in told[:3]] == [f"{n} at 8: INVALI" for n in "bcd"]
    assert told[3].startswith("a at 8: PARTIAL, cut and")
    assert told[3].endswith(" …")
    assert told[4].endswith(" more lines: --why")
    assert told[5].startswith("closed loop: ")
    assert len(told) <= 8


def test_what_another_client_adds() -> None:
    cells = [
        cell("a", ttft_ms=block(10.0), itl_ms=block(2.0)),
        cell("a", ttft_ms=block(10.5), itl_ms=block(1.75), client="openai"),
        cell("b", ttft_ms=block(10.0), itl_ms=None),
        cell("b", ttft_ms=block(11.0), itl_ms=block(1.0), client="openai"),
    ]
    tax = [line for line in notes(cells).lines if line.startswith("client tax")]
    assert tax == [
        "client tax, a via openai at 8: +0.50 ms on TTFT p50, -0.25 ms on ITL p50",
        "client tax, b via openai at 8: +1.00 ms on TTFT p50",
    ]


@pytest.mark.parametrize("ours", [of(INF), of(None), of(1.0, verdict="invalid")])
@pytest.mark.parametrize("theirs", [of(INF, client="openai"), of(1.0, client="openai")])
def test_nothing_is_added_to_what_never_came(ours: Cell, theirs: Cell) -> None:
    lines = notes([ours, theirs]).lines
    assert not any("nan" in line or "inf" in line or "client tax" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "ends", "said"),
    [
        (41.3, (40.6, 42.1), " ±0.8"),  # the farther end
        (5.001, (5.0, 5.002), " ±0.01"),  # rounded up: it is no less
        (41.3, (41.2, 41.4), " ±0.1"),  # but not by what floats are off
        (1234.0, (34.0, 1300.0), " ±1,200"),
        (50.0, (50.0, 50.0), ""),
        (50.0, (49.0, float("inf")), ""),
        (50.0, None, ""),
    ],
)
def test_an_interval_stands_behind_its_figure(
    value: float, ends: tuple[float, float] | None, said: str
) -> None:
    known = Block(n=99, p50=value, ci95={} if ends is None else {"p50": ends})
    assert interval(cell(ttft_ms=known), "ttft", "p50") == said
    assert interval(cell(ttft_ms=known, verdict="invalid"), "ttft", "p50") == ""
    assert interval(cell(ttft_ms=known, untimed={"ttft.p50": 9.0}), "ttft", "p50") == ""


def test_intervals_go_before_columns_do() -> None:
    """They cost no more than the columns that go first."""
    known = Block(n=99, p50=1234.0, p95=2345.0, ci95={"p50": (1000, 1500), "p95": (2000, 2500)})
    narrow = render_table([cell(target="a", ttft_ms=known)])
    assert "1,234 ±266" in narrow
    crowd = [cell(name * 30, quantization=name, ttft_ms=known, memory_mb=900) for name in "abc"]
    wide = render_table(crowd, baseline="a" * 30)
    assert "±266" not in wide
    assert max(map(len, wide.splitlines())) <= 100
