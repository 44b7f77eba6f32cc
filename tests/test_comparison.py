"""Targets side by side: groups of one load, the best marked, ratios, what HTTP adds."""

import re
from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import block, cell, cells_of_a_line, columns_of, rows

from llmbench.errors import UserError
from llmbench.records import Block, Cell, Counts, Ruler
from llmbench.report import RENDERERS
from llmbench.report.columns import columns
from llmbench.report.comparison import best, grouped, rate
from llmbench.report.notes import notes
from llmbench.report.table import render_markdown, render_table

INF = float("inf")


def known(p50: float | None, spread: float = 0.0) -> Block:
    """A distribution with the same figure everywhere, and its interval to both sides."""
    result = block(p50, p50)
    if p50 is not None:
        result.ci95 = dict.fromkeys(("p50", "p95", "p99"), (p50 - spread, p50 + spread))
    return result


def ttft(target: str, p50: float | None, spread: float = 0.0, **fields: Any) -> Cell:
    """A cell whose time to first token is all that differs."""
    return cell(target, ttft_ms=known(p50, spread), **fields)


def heads(cells: list[Cell], baseline: str | None = None) -> list[str]:
    return [column.name for column in columns(cells, baseline)]


def winner(cells: list[Cell], name: str = "TTFT ms p50") -> str | None:
    (measure,) = [column.measure for column in columns(cells) if column.name == name]
    assert measure is not None
    found = best(cells, measure)
    return found.target if found is not None else None


def said(cells: list[Cell], start: str, **about: Any) -> list[str]:
    found = notes(cells, **about)
    return [line for line in [*found.lines, *found.legend] if line.startswith(start)]


# ---- groups


def test_targets_of_one_load_stand_together() -> None:
    cells = [cell(target, load) for target in "ab" for load in (1, 8)]
    assert [[(each.target, each.concurrency) for each in group] for group in grouped(cells)] == [
        [("a", 1), ("b", 1)],
        [("a", 8), ("b", 8)],
    ]
    assert [row[:2] for row in rows(cells)] == [["a", "1"], ["b", "1"], ["a", "8"], ["b", "8"]]
    lines = render_table(cells).splitlines()
    (rule,) = [n for n, line in enumerate(lines) if set(line) == {"-", " "}]
    assert [bool(line) for line in lines[rule + 1 : rule + 7]] == [True, True, False, *[True] * 3]
    table = render_markdown(cells).partition("\n\n")[0].splitlines()
    assert [cells_of_a_line(line)[:2] for line in table[2:]] == [row[:2] for row in rows(cells)]


def test_one_target_stays_in_its_order() -> None:
    cells = [cell("a", load, client=client) for load in (8, 1) for client in ("wire", "openai")]
    assert grouped(cells) == [cells]
    assert "" not in render_table(cells).splitlines()
    assert grouped([]) == []


@pytest.mark.parametrize(
    "other",
    [
        {"api": "completions"},
        {"concurrency": 9},
        {"batch_size": 8},
        {"prompt_tokens": 64},
        {"output_tokens": 8},
    ],
)
def test_other_loads_are_not_compared(other: dict[str, Any]) -> None:
    assert len(grouped([cell("a"), msgspec.structs.replace(cell("b"), **other)])) == 2


# ---- columns


def test_what_is_the_same_for_all_is_said_once() -> None:
    cells = [cell("a", quantization="int8"), cell("b", quantization="int8")]
    assert heads(cells)[:3] == ["target", "conc.", "TTFT ms p50"]
    (line,) = said(cells, "closed loop")
    assert "prompts of 128 tokens, asked for 64 tokens" in line
    assert heads([cell("a"), cell("b", prompt_tokens=64)])[2] == "prompt tokens"
    assert heads([cell("a")])[2] == "prompt tokens"


def test_what_differs_has_a_column() -> None:
    cells = [
        cell("a", quantization="Q4_1", disk_mb=98.4, memory_mb=2100.0, agreement=1.0),
        cell("b", client="engine", api="completions", batch_size=8, disk_mb=270.0, agreement=0.984),
    ]
    assert heads(cells) == [
        *("target", "precision", "client", "api", "conc.", "batch"),
        *("TTFT ms p50", "TTFT ms p95", "ITL ms p50", "ITL ms p99", "ruler ± ms"),
        *("tok/s /user", "tok/s total", "req/s", "disk MB", "memory MB", "agrees %", "failed"),
    ]
    table = render_markdown(cells).partition("\n\n")[0].splitlines()
    first, second = [cells_of_a_line(line) for line in table[2:]]
    assert first[:6] == ["a", "Q4_1", "wire", "chat", "8", ""]
    assert first[-4:-1] == ["98", "2,100", "100.0"]
    assert second[:6] == ["b", "?", "engine", "completions", "", "8"]
    assert second[-4:-1] == ["270", "—", "98.4"]


def test_sizes_of_one_target_are_said_below() -> None:
    cells = [cell("a", load, memory_mb=200.0 + load, disk_mb=98.0) for load in (1, 8)]
    assert not {"disk MB", "memory MB"} & set(heads(cells))
    assert said(cells, "a: ") == ["a: m; 98 MB on disk, up to 208 MB in memory"]


def test_batches_alone_need_no_concurrency() -> None:
    cells = [cell("a", size, batch_size=size, notes=["odd"] * (size == 2)) for size in (1, 2)]
    assert heads(cells)[:2] == ["target", "batch"]
    assert notes(cells).lines[0] == "a at batch 2: odd"
    assert said(cells, "static batches")


# ---- the best


def test_the_best_is_beyond_every_interval() -> None:
    assert winner([ttft("a", 10, 1), ttft("b", 13, 1)]) == "a"
    assert winner([ttft("a", 13, 1), ttft("b", 10, 1)]) == "b"
    assert winner([ttft("a", 10, 2), ttft("b", 13, 2)]) is None
    # The third is further off, but no more certain to be.
    assert winner([ttft("a", 10, 1), ttft("b", 13, 1), ttft("c", 14, 5)]) is None


def test_what_the_ruler_can_be_off_is_no_advantage() -> None:
    ruler = Ruler(ttft_error_ms={"p50": 0.6})
    assert winner([ttft("a", 10), ttft("b", 11)]) == "a"
    assert winner([ttft("a", 10, ruler=ruler), ttft("b", 11, ruler=ruler)]) is None


def test_rates_must_differ_by_two_percent() -> None:
    assert (
        winner(
            [cell("a", otps=100.0, otps_ci95=None), cell("b", otps=103.0, otps_ci95=None)],
            "tok/s total",
        )
        == "b"
    )
    assert (
        winner([cell("a", otps=100.0, otps_ci95=None), cell("b", otps=101.5)], "tok/s total")
        is None
    )
    sizes = [cell("a", disk_mb=100.0, verdict="invalid"), cell("b", disk_mb=200.0)]
    assert winner(sizes, "disk MB") is None  # what cannot be marked is not passed over either


def test_only_comparable_cells_compete() -> None:
    assert winner([ttft("a", 10), ttft("b", 20, verdict="invalid")]) is None
    assert winner([ttft("a", 10), ttft("b", None)]) is None
    assert winner([ttft("a", 10, verdict="partial"), ttft("b", 20)]) is None
    assert winner([ttft("a", 10), ttft("b", 20, verdict="partial")]) == "a"
    assert winner([ttft("a", 10), ttft("a", 20)]) is None
    assert winner([ttft("a", INF), ttft("b", INF)]) is None
    assert winner([ttft("a", INF), ttft("b", 9)]) == "b"


def test_marks() -> None:
    cells = [
        ttft("a", 10),
        ttft("b", 20),
        ttft("a", 10, concurrency=1),
        ttft("b", 10.1, 1, concurrency=1),
    ]
    assert [row[2] for row in rows(cells)] == ["10.0*", "20.0", "10.0", "10.1"]
    assert render_table(cells).count("*: best at its load beyond doubt") == 1
    text = render_markdown(cells)
    assert [cells_of_a_line(line)[2] for line in text.splitlines()[2:6]] == [
        *("**10.0**", "20.0", "10.0", "10.1 ±1.0")
    ]
    assert "**bold**: best at its load" in text
    for render in (render_table, render_markdown):
        assert "best at its load" not in render([cell("a"), cell("b")])
        assert "best at its load" not in render([ttft("a", 10), ttft("a", 20)])


# ---- ratios


def test_ratios_to_a_baseline() -> None:
    cells = [
        cell("a", ttft_ms=known(10.0), itl_ms=known(2.0), otps=100.0),
        cell("b", ttft_ms=known(8.2), itl_ms=known(3.0), otps=1230.0),
        cell("c", verdict="invalid"),
    ]
    table = render_markdown(cells, "a").partition("\n\n")[0].splitlines()
    titles, _, *body = map(cells_of_a_line, table)
    ratio = [n for n, title in enumerate(titles) if title.endswith("÷base")]
    assert [titles[n] for n in ratio] == ["TTFT ms ÷base", "ITL ms ÷base", "tok/s ÷base"]
    assert [[line[n] for n in ratio] for line in body] == [
        ["base"] * 3,
        ["0.82×", "1.50×", "12.3×"],
        ["—"] * 3,
    ]
    (legend,) = said(cells, "÷base", baseline="a")
    assert "divided by a's" in legend
    assert "÷base" in render_table(cells, "a")
    assert "÷base" not in render_table(cells)
    assert "÷base" not in render_table(cells[:1], "a")


@pytest.mark.parametrize("base", [None, INF, 0.0])
def test_there_is_no_ratio_to_nothing(base: float | None) -> None:
    cells = [ttft("a", base), ttft("b", 10.0)]
    (column,) = [each for each in columns(cells, "a") if each.name == "TTFT ms ÷base"]
    assert column.text(cells[1]) == "—"
    assert column.text(cells[0]) == ("—" if base is None else "base")


def test_a_ratio_is_to_the_same_client_and_load() -> None:
    cells = [
        ttft("a", 10, client="wire"),
        ttft("a", 20, client="openai"),
        ttft("b", 40, client="wire"),
        ttft("b", 40, client="openai"),
        ttft("c", 40, client="engine"),
        ttft("d", 40, concurrency=1),
    ]
    (column,) = [each for each in columns(cells, "a") if each.name == "TTFT ms ÷base"]
    assert [column.text(each) for each in cells] == [
        *("base", "base", "4.00×", "2.00×", "4.00×", "—")
    ]


@pytest.mark.parametrize("style", RENDERERS)
def test_a_baseline_must_be_one_of_the_targets(style: str) -> None:
    with pytest.raises(UserError, match=r"--baseline c: .*: a, b$"):
        RENDERERS[style]([cell("a"), cell("b"), cell("a", 1)], baseline="c")
    assert RENDERERS[style]([cell("a"), cell("b")], baseline="") == RENDERERS[style](
        [cell("a"), cell("b")]
    )


# ---- what a way of calling adds


def same_engine(target: str, client: str, ttft_ms: float, **fields: Any) -> Cell:
    about = {"engine": "vllm 0.32.0", "quantization": "bf16"} | fields
    return cell(target, client=client, ttft_ms=known(ttft_ms), itl_ms=known(ttft_ms / 10), **about)


def test_what_http_adds() -> None:
    cells = [
        same_engine("inside", "engine", 10.0, concurrency=1),
        same_engine("inside", "engine", 20.0, concurrency=4),
        same_engine("served", "wire", 13.1, concurrency=1),
        same_engine("served", "wire", 21.0, concurrency=4),
        same_engine("served", "openai", 30.0, concurrency=4),
    ]
    assert said(cells, "over HTTP") == [
        "over HTTP, vllm 0.32.0 adds +3.10 ms on TTFT p50, +0.31 ms on ITL p50 at 1; "
        "+1.00 ms on TTFT p50, +0.10 ms on ITL p50 at 4 "
        "(served beyond inside; where no doubt is left)"
    ]


def test_what_http_may_add_by_chance_is_not_said() -> None:
    def doubtful(target: str, client: str, ttft_ms: float) -> Cell:
        made = same_engine(target, client, ttft_ms)
        assert made.ttft_ms is not None
        made.ttft_ms.ci95["p50"] = (ttft_ms - 2, ttft_ms + 2)
        return made

    cells = [doubtful("inside", "engine", 10.0), doubtful("served", "wire", 13.0)]
    (line,) = said(cells, "over HTTP")
    assert "TTFT" not in line
    assert "+0.30 ms on ITL p50" in line
    (line,) = said([cells[0], doubtful("served", "wire", 15.0)], "over HTTP")
    assert "+5.00 ms on TTFT p50" in line


@pytest.mark.parametrize(
    "other",
    [
        {"engine": "onnxruntime-genai 0.11"},
        {"engine": None},
        {"model": "other"},
        {"quantization": "int8"},
        {"concurrency": 4},
        {"verdict": "invalid"},
        {"ttft_ms": known(INF), "itl_ms": None},
    ],
)
def test_http_is_blamed_for_nothing_else(other: dict[str, Any]) -> None:
    inside, served = same_engine("a", "engine", 10.0), same_engine("b", "wire", 13.0)
    assert said([inside, served], "over HTTP")
    changed = msgspec.structs.replace(served, **other)
    assert not said([inside, changed], "over HTTP")


def test_a_served_model_may_go_by_the_end_of_its_path() -> None:
    inside = same_engine("a", "engine", 10.0, model="/models/small")
    assert said([inside, same_engine("b", "wire", 13.0, model="small")], "over HTTP")
    assert not said([inside, same_engine("b", "wire", 13.0, model="org/small")], "over HTTP")


def test_loading_is_told_apart() -> None:
    loaded = {"load_s": 0.7, "first_token_s": 0.12, "disk_mb": 98.2, "memory_mb": 210.0}
    mine = cell("mine", engine="llama.cpp b1", quantization="Q4_1", device="cpu", **loaded)
    assert said([mine], "mine: ") == [
        "mine: llama.cpp b1, m, Q4_1, on cpu; loaded in 0.7 s, first token cold after 120 ms, "
        "98 MB on disk, 210 MB in memory"
    ]
    assert said([mine, cell("theirs")], "theirs: ") == ["theirs: m"]
    assert not said([cell("theirs")], "theirs: ")


# ---- the width


figures = st.one_of(st.none(), st.floats(0.01, 999_999), st.just(INF))
blocks = st.builds(known, figures, st.floats(0, 100))


@st.composite
def sweeps(draw: st.DrawFn) -> list[Cell]:
    names = draw(st.lists(st.text("abc漢🙂 -.:|", min_size=1), min_size=1, max_size=4, unique=True))
    names = [name.strip() or "x" for name in names]
    clients = draw(st.lists(st.sampled_from(["wire", "aiohttp", "engine"]), min_size=1, max_size=2))
    batch = st.none() | st.integers(1, 4096)
    return [
        cell(
            name,
            load,
            client=client,
            api=draw(st.sampled_from(["chat", "completions"])),
            quantization=draw(st.sampled_from([None, "Q4_K_M", "compressed-tensors"])),
            batch_size=draw(batch),
            prompt_tokens=draw(st.integers(1, 99_999)),
            ttft_ms=draw(blocks),
            itl_ms=draw(blocks),
            otps_per_user=draw(blocks),
            otps=draw(figures),
            disk_mb=draw(st.none() | st.floats(1, 999_999)),
            memory_mb=draw(st.none() | st.floats(1, 999_999)),
            agreement=draw(st.none() | st.floats(0, 1)),
            requests=draw(
                st.sampled_from([Counts(sent=80, ok=80), Counts(sent=8000, failed=1234)])
            ),
            verdict=draw(st.sampled_from(["valid", "partial", "invalid"])),
        )
        for name, load, client in product(names, (1, 4000), clients)
    ]


@given(sweeps(), st.booleans())
def test_whatever_is_known_fits_a_hundred_columns(cells: list[Cell], compared: bool) -> None:
    lines = render_table(cells, cells[0].target if compared else None).splitlines()
    assert max(map(columns_of, lines)) <= 100
    (rule,) = [n for n, line in enumerate(lines) if set(line) == {"-", " "}]
    body = [line for line in lines[rule + 1 :] if line][: len(cells)]
    assert {columns_of(line) for line in body} == {columns_of(lines[rule])}
    assert not re.search("[\0\2]", "".join(lines))


def everything() -> list[Cell]:
    return [
        cell(
            "a-target-with-a-long-name:" + client,
            load,
            client=client,
            api=api,
            quantization=quantization,
            batch_size=size,
            prompt_tokens=length,
            disk_mb=98.0 + length,
            memory_mb=2100.0,
            agreement=0.98,
        )
        for load, length in ((1, 128), (4000, 32768))
        for client, quantization, api, size in (
            ("wire", "Q4_1", "completions", None),
            ("engine", "bf16", "chat", load),
        )
    ]


def test_what_there_is_no_room_for_is_named() -> None:
    cells = everything()
    baseline = cells[0].target
    text = render_table(cells, baseline)
    below = text.replace("\n  ", " ").splitlines()
    assert any(line.endswith("stamps; none failed") for line in below)
    (line,) = [line for line in below if line.startswith("no room for ")]
    left_out = line.removeprefix("no room for ").partition(": the JSON")[0].split(", ")
    assert left_out[:4] == ["req/s", "disk MB", "memory MB", "ruler ± ms"]
    written = text.partition("\n-")[0]
    assert "req/s" not in written
    assert "client" in written
    assert "÷base" in written
    whole = render_markdown(cells, baseline)
    assert "no room for" not in whole
    assert all(name in whole.partition("\n")[0] for name in left_out)


def test_failures_are_never_left_out() -> None:
    cells = everything()
    cells[0].requests = Counts(sent=80, ok=70, failed=10, failures={"reset": 10})
    text = render_table(cells, cells[0].target)
    assert "10/80" in text
    assert "none failed" not in text


def test_the_ruler_is_never_silent() -> None:
    cells = everything()
    for each in cells:
        each.ruler = Ruler(stamps="kernel", ttft_error_ms={"p50": 0.25, "p95": 0.1})
    text = render_table(cells).replace("\n  ", " ")
    assert "the ruler itself can be off by 0.25 ms at most" in text
    assert "ruler ±: how far" in render_table([cells[0]])


def test_a_rate_of_an_invalid_cell_is_none() -> None:
    assert rate(cell(verdict="invalid"), 5.0) is None
    assert rate(cell(), None) is None
