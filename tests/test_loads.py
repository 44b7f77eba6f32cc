"""From flags and keys to the loads of a grid, and one line for what does not go together."""

import argparse
import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Done

from llmbench.cli import main
from llmbench.config import load_sweep
from llmbench.drive.board import Board
from llmbench.errors import UserError
from llmbench.lists import items, pairs
from llmbench.plan.grid import grid
from llmbench.records import Content, Load

SERVER: dict[str, Any] = {"target": ["http://h"]}
DATASETS = Path(__file__).parent / "data" / "datasets"


def loads(**flags: Any) -> list[Load]:
    return load_sweep(SERVER | flags).loads()


def refusal(flags: dict[str, Any], config: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_sweep(SERVER | flags, config).loads()
    (line,) = str(caught.value).splitlines()
    assert caught.value.exit_code == 2
    return line


@pytest.fixture
def toml(tmp_path: Path) -> Callable[..., Path]:
    """Writes a config file of these keys."""

    def value(of: Any) -> str:
        if isinstance(of, dict):
            return f"{{ {', '.join(f'{key} = {value(item)}' for key, item in of.items())} }}"
        return json.dumps(of, ensure_ascii=False)

    def write(**keys: Any) -> Path:
        path = tmp_path / "sweep.toml"
        lines = [f"{key} = {value(of)}\n" for key, of in keys.items()]
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write


# ---- open loops


@pytest.mark.parametrize(
    ("rate", "requests", "warmup"),
    [
        ("8", 240, 16),  # half a minute of it, after two seconds
        ("2", 60, 4),
        ("6.41", 193, 13),
        ("8.5", 255, 17),
        ("0.1", 6, 1),  # never fewer than a median needs
        ("100", 3000, 200),
        ("ramp(2,32)", 510, 4),  # 17 a second on average; the warm-up is at the first rate
        ("ramp(32,2)", 510, 64),
        ("steps(2,8,32)", 420, 4),  # 14 on average
    ],
)
def test_the_default_load_of_an_open_loop(rate: str, requests: int, warmup: int) -> None:
    assert loads(request_rate=[rate]) == [
        Load(
            concurrency=0,
            prompt_tokens=128,
            output_tokens=128,
            requests=requests,
            duration_s=None,
            warmup=warmup,
            rate=rate,
            budget_s=30.0 if rate[0].isdigit() else None,
            arrivals="poisson",
            speed=1.0,
            grace_s=30.0,
        )
    ]


def test_an_open_loop_as_it_is_told() -> None:
    (load,) = loads(
        request_rate=["08.0"],
        arrivals="gamma( 0.5 )",
        max_concurrency=64,
        grace=2.5,
        requests=500,
        warmup=0,
        max_failures="20%",
        until="ci=5%",
    )
    assert (load.rate, load.arrivals, load.concurrency) == ("8", "gamma(0.5)", 64)
    assert (load.requests, load.warmup, load.grace_s) == (500, 0, 2.5)
    assert (load.max_failures, load.until, load.duration_s) == ("20%", "ci=5%", None)
    (timed,) = loads(request_rate=["8"], duration=7.5)
    assert timed.duration_s == 7.5
    assert timed.warmup == 16


def test_a_closed_loop_waits_for_its_replies() -> None:
    (load,) = loads(concurrency=[4], requests=9)
    assert (load.rate, load.arrivals, load.grace_s, load.speed) == ("", "", None, 1.0)
    assert loads(concurrency=[4])[0].grace_s == 60.0  # twice its time
    assert loads(concurrency=[4], grace=5.0)[0].grace_s == 5.0


@pytest.mark.parametrize("name", ["good.mooncake.jsonl", "good.burstgpt.csv", "good.azure.csv"])
def test_a_trace_is_played_from_its_first_row_to_its_last(name: str) -> None:
    path = str(DATASETS / name)
    (load,) = loads(request_rate=["trace"], dataset=path, speed=2.0)
    assert (load.rate, load.speed, load.requests, load.warmup) == ("trace", 2.0, 1_000_000, 0)
    assert (load.content.dataset, load.content.format) == (path, name.split(".")[1])
    assert load.grace_s == 30.0
    (some,) = loads(request_rate=["trace"], dataset=path, requests=9, warmup=3)
    assert (some.requests, some.warmup) == (9, 3)


def test_until_asks_for_sixteen_times_as_many_at_most() -> None:
    assert [load.requests for load in loads(concurrency=[1, 64], until="ci=5%")] == [3072, 3072]
    assert loads(concurrency=[1], until="ci=5%", requests=100)[0].requests == 100


# ---- grids


def test_lists_make_a_grid() -> None:
    grid_of = loads(
        request_rate=["2", "8"], prompt_tokens=["64", "normal(512,128)"], cache=["cold", "warm"]
    )
    assert [
        (load.content.prompt_lengths or load.prompt_tokens, load.content.cache, load.rate)
        for load in grid_of
    ] == [
        (64, "cold", "2"),
        (64, "cold", "8"),
        (64, "warm", "2"),
        (64, "warm", "8"),
        ("normal(512,128)", "cold", "2"),
        ("normal(512,128)", "cold", "8"),
        ("normal(512,128)", "warm", "2"),
        ("normal(512,128)", "warm", "8"),
    ]
    assert {load.output_tokens for load in grid_of} == {128}


def test_the_grid_has_a_cell_for_each_target_load_and_client() -> None:
    sweep = load_sweep(
        {
            "target": ["http://a", "http://b"],
            "client": ["wire", "openai"],
            "request_rate": ["2", "8"],
        }
    )
    cells = grid(sweep)
    assert [(each.target, each.load.rate, each.client) for each in cells] == [
        (target, rate, client)
        for target in (0, 1)
        for rate in ("2", "8")
        for client in ("wire", "openai")
    ]


def test_pairs_of_lengths() -> None:
    told = loads(
        prompt_tokens=["128:64", "uniform(10,20):normal(30,5)", "256"],
        output_tokens="99",
        concurrency=[1],
    )
    assert [
        (
            load.prompt_tokens,
            load.content.prompt_lengths,
            load.output_tokens,
            load.content.output_lengths,
        )
        for load in told
    ] == [
        (128, "", 64, ""),
        (15, "uniform(10,20)", 30, "normal(30,5)"),
        (256, "", 99, ""),
    ]


def test_what_is_said_is_the_same_all_over_the_grid() -> None:
    said = loads(
        text="rag", turns=3, think_time="500ms", natural_stops=True, seed=9, shared_prefix=0.5
    )
    assert {load.concurrency for load in said} == {1, 8, 32}
    for load in said:
        assert load.content == Content(
            text="rag",
            turns=3,
            think_time="0.5",
            natural_stops=True,
            seed=9,
            shared_prefix=0.5,
        )


@pytest.mark.parametrize(
    ("flags", "shares"),
    [
        ({}, False),
        ({"cache": ["warm"]}, True),
        ({"turns": 2}, True),
        ({"shared_prefix": 0.1}, True),
        ({"dataset": str(DATASETS / "good.mooncake.jsonl")}, True),
        ({"dataset": str(DATASETS / "good.csv")}, False),
    ],
)
def test_which_contents_share_prefixes(flags: dict[str, Any], shares: bool) -> None:
    assert {load.content.shares_prefixes for load in loads(**flags)} == {shares}


def test_a_dataset_and_its_columns() -> None:
    path = str(DATASETS / "good.tsv")
    (load,) = loads(concurrency=[1], dataset=path, skip_broken=True)
    assert load.content == Content(dataset=path, format="tsv", skip_broken=True)
    assert load.prompt_tokens == 128


# ---- keys of a file


@pytest.mark.parametrize(
    ("value", "rates"),
    [
        (2, ["2"]),
        (0.5, ["0.5"]),
        ("ramp(2,8)", ["ramp(2,8)"]),
        ([2, "8", 0.25, "steps(1,3)"], ["2", "8", "0.25", "steps(1,3)"]),
    ],
)
def test_rates_of_a_file(toml: Callable[..., Path], value: Any, rates: list[str]) -> None:
    sweep = load_sweep(SERVER, toml(request_rate=value))
    assert [load.rate for load in sweep.loads()] == rates


@pytest.mark.parametrize(
    ("value", "lengths"),
    [
        (64, [(64, "")]),
        ("normal(512,128)", [(512, "normal(512,128)")]),
        ([64, "uniform(16,256)", "128:7"], [(64, ""), (136, "uniform(16,256)"), (128, "")]),
    ],
)
def test_lengths_of_a_file(
    toml: Callable[..., Path], value: Any, lengths: list[tuple[int, str]]
) -> None:
    path = toml(prompt_tokens=value, concurrency=1)
    told = load_sweep(SERVER, path).loads()
    assert [(load.prompt_tokens, load.content.prompt_lengths) for load in told] == lengths


def test_other_keys_of_a_file_are_numbers_or_text(toml: Callable[..., Path]) -> None:
    path = toml(turns=2, think_time=1.5, max_failures=3, output_tokens="uniform(3,5)", cache="warm")
    for load in load_sweep(SERVER, path).loads():
        assert (load.content.turns, load.content.think_time) == (2, "1.5")
        assert (load.max_failures, load.content.cache) == ("3", "warm")
        assert (load.output_tokens, load.content.output_lengths) == (4, "uniform(3,5)")
    text = toml(turns=2, think_time="lognormal(2,0.5)", max_failures="5%", output_tokens=7)
    for load in load_sweep(SERVER, text).loads():
        assert (load.content.think_time, load.max_failures) == ("lognormal(2,0.5)", "5%")
        assert (load.output_tokens, load.content.output_lengths) == (7, "")


# ---- what excludes each other

EXCLUSIVE: list[tuple[str, Any, str, Any]] = [
    ("requests", 5, "duration", 1.5),
    ("until", "ci=5%", "duration", 1.5),
    ("concurrency", [2], "batch_size", [2]),
    ("concurrency", [2], "request_rate", ["2"]),
    ("batch_size", [2], "request_rate", ["2"]),
]


@pytest.mark.parametrize(("one", "its", "other", "others"), EXCLUSIVE)
def test_only_one_of_two(
    toml: Callable[..., Path], one: str, its: Any, other: str, others: Any
) -> None:
    target = {"target": ["onnx:d" if "batch_size" in (one, other) else "http://h"]}
    flags = [f"--{key.replace('_', '-')}" for key in (one, other)]
    both = {one: its, other: others}
    assert refusal(target | both) == f"{flags[0]} and {flags[1]}: give one of the two"
    path = toml(**both)
    assert refusal(target, path) == f"{path}: {one} and {other}: give one of the two"
    # a flag takes the place of the other in the file
    sweep = load_sweep(SERVER | target | {one: its}, toml(**{other: others}))
    assert getattr(sweep, one) == its
    assert getattr(sweep, other) in (None, "")


def test_a_rate_takes_the_place_of_the_files_concurrency(toml: Callable[..., Path]) -> None:
    (load,) = load_sweep(SERVER | {"request_rate": ["2"]}, toml(concurrency=[4, 8])).loads()
    assert (load.rate, load.concurrency) == ("2", 0)
    closed = load_sweep(SERVER | {"concurrency": [4]}, toml(request_rate=[2])).loads()
    assert [(load.rate, load.concurrency) for load in closed] == [("", 4)]


# ---- what is wrong

INSIDE = "vllm m is called in process"
CACHES = f"{INSIDE}, where prefix caches are off; serve it over HTTP"
FAILURES = "write a number of requests, or a share such as 20%"
UNTIL = "write ci=5% (for TTFT p50), or ttft.p95=5%; of p50, p90, p95, p99"
NO_DATASET = ": there is no --dataset that it could be about"
CSV = str(DATASETS / "good.csv")
TIMELESS = str(DATASETS / "good.text.txt")
NO_TIMES = f"{TIMELESS} (text) says no times"
IN_PROCESS = {"target": ["vllm:m"]}
BATCHES: dict[str, Any] = {"target": ["onnx:d"], "batch_size": [2]}


@pytest.mark.parametrize(
    ("key", "value", "why", "beside"),
    [
        ("prompt_tokens", ["long"], ": 'long' is no length; write 128, normal(512,128)", {}),
        ("prompt_tokens", ["1:2:3"], ": '2:3' is no length", {}),
        ("prompt_tokens", ["8:0"], ": 0: the value is 0; write one from 1", {}),
        ("prompt_tokens", ["8", "8"], ": something stands there twice", {}),
        ("output_tokens", "exponential(2)", ": 'exponential(2)' is no length", {}),
        ("output_tokens", "0", ": 0: the value is 0; write one from 1 to 1000000000", {}),
        (
            "output_tokens",
            "uniform(1,5)",
            ": the replies of a static batch have one length",
            BATCHES,
        ),
        (
            "text",
            "ligthouse",
            ": no text is called 'ligthouse'; did you mean 'lighthouse'?",
            {},
        ),
        ("text", "agreement", ": no text is called 'agreement'", {}),
        ("text", "../pyproject", ": no text is called '../pyproject'", {}),
        (
            "request_rate",
            ["fast"],
            ": 'fast' is no rate; write requests a second, such as 8, ramp(2,32) or "
            "steps(2,8,32), or trace",
            {},
        ),
        ("request_rate", ["0"], ": '0': 0 requests a second is out of range", {}),
        ("request_rate", ["ramp(2)"], ": 'ramp(2)': ramp takes two rates, such as ramp(2,32)", {}),
        ("request_rate", ["2", "8", "2"], ": something stands there twice", {}),
        ("request_rate", [], ": expected a list of length >= 1", {}),
        ("request_rate", ["trace"], ": trace: name the trace with --dataset FILE", {}),
        ("request_rate", ["2", "trace"], ": trace: name the trace with --dataset FILE", {}),
        (
            "arrivals",
            "regular",
            ": 'regular' is no kind of arrivals; write poisson, constant or gamma(B), such as "
            "gamma(0.5)",
            {},
        ),
        ("speed", 2.0, ": only a replay has one: --request-rate trace", {"request_rate": ["2"]}),
        ("speed", 0.0, ": expected a number > 0.0", {}),
        (
            "max_concurrency",
            4,
            ": it caps a --request-rate; a closed loop has --concurrency",
            {},
        ),
        ("max_concurrency", 0, ": expected a whole number >= 1", {"request_rate": ["2"]}),
        ("grace", 0.0, ": expected a number > 0.0", {}),
        ("until", "ci=5", f" 'ci=5': {UNTIL}", {}),
        ("until", "itl.p50=5%", f" 'itl.p50=5%': {UNTIL}", {}),
        ("until", "ci=0%", " 'ci=0%': the width must lie between 0% and 100%", {}),
        ("max_failures", "some", f" 'some': {FAILURES}", {}),
        ("max_failures", "-1", f" '-1': {FAILURES}", {}),
        ("max_failures", "1.5", f" '1.5': {FAILURES}", {}),
        ("max_failures", "100.1%", f" '100.1%': {FAILURES}", {}),
        ("think_time", "soon", ": 'soon' is no time; write 2, 1.5s, 500ms, ", {"turns": 2}),
        (
            "think_time",
            "2",
            ": there is nothing to think about in one turn; give --turns",
            {},
        ),
        ("turns", 0, ": expected a whole number >= 1", {}),
        ("turns", 2, ": static batches have one turn, of one length", BATCHES),
        ("dataset", CSV, ": static batches have one turn, of one length", BATCHES),
        (
            "shared_prefix",
            0.5,
            ": with --cache warm whole prompts are shared; give one",
            {"cache": ["cold", "warm"]},
        ),
        ("shared_prefix", 1.5, ": expected a number <= 1.0", {}),
        ("shared_prefix", -0.5, ": expected a number >= 0.0", {}),
        ("cache", ["hot"], ", item 1: unknown value 'hot'", {}),
        ("cache", ["warm", "warm"], ": something stands there twice", {}),
        ("seed", -1, ": expected a whole number >= 0", {}),
        ("dataset_format", "csv", NO_DATASET, {}),
        ("dataset_columns", {"prompt": "question"}, NO_DATASET, {}),
        ("skip_broken", True, NO_DATASET, {}),
        (
            "dataset_format",
            "cvs",
            ": no format is called 'cvs'; did you mean 'csv'?",
            {"dataset": CSV},
        ),
        (
            "request_rate",
            ["trace"],
            f": {NO_TIMES}",
            {"dataset": TIMELESS},
        ),
        (
            "first_token_timeout",
            2.0,
            ": only the wire client can do that",
            {"client": ["wire", "openai"]},
        ),
        ("first_token_timeout", 2.0, f": {INSIDE}; serve it over HTTP", IN_PROCESS),
        ("barge_in", 0.5, f": {INSIDE}; serve it over HTTP", {**IN_PROCESS, "turns": 2}),
        ("barge_in", 0.5, ": only the wire client", {"client": ["openai"], "turns": 2}),
        ("barge_in", 0.5, ": users cut off a reply to say their next turn; give --turns", {}),
        (
            "output_tokens",
            32,
            ": each length in --prompt-tokens has its own already",
            {"prompt_tokens": ["128:64", "8:9"]},
        ),
        ("text", "chat", ": the prompts come from --dataset", {"dataset": TIMELESS}),
        (
            "shared_prefix",
            0.5,
            ": the prompts of a dataset are what they are",
            {"dataset": TIMELESS},
        ),
        ("barge_in", 2.0, ": expected a number <= 1.0", {"turns": 2}),
        ("barge_in_after", "1s", ": no reply is cut off; give --barge-in", {"turns": 2}),
        ("barge_in_after", "soon", ": 'soon' is no time", {"turns": 2, "barge_in": 0.5}),
        ("first_token_timeout", -1.0, ": expected a number > 0.0", {}),
        ("cache", ["warm"], f": {CACHES}", IN_PROCESS),
        ("shared_prefix", 0.5, f": {CACHES}", IN_PROCESS),
        ("shared_prefix", 0.5, f": {CACHES}", {"target": ["http://h", "vllm:m"]}),
    ],
)
def test_one_line_says_what_is_wrong_and_where(
    toml: Callable[..., Path], key: str, value: Any, why: str, beside: dict[str, Any]
) -> None:
    said = refusal({key: value} | beside)
    assert said.startswith(f"--{key.replace('_', '-')}{why}")
    assert len(said) < 300
    path = toml(**{key: value})
    assert refusal(beside, path).startswith(f"{path}: {key}{why}")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("request_rate", 0, ": '0.0': 0 requests a second is out of range"),
        ("request_rate", True, ", item 1: expected "),
        ("prompt_tokens", 0, ", item 1: expected a whole number >= 1"),
        ("prompt_tokens", 1.5, ", item 1: expected "),
        ("output_tokens", 1.5, ": expected "),
        ("max_failures", -3, f" '-3': {FAILURES}"),
        ("max_failures", 1.5, ": expected "),
        ("natural_stops", "yes", ": expected true or false"),
        ("seed", "1", ": expected a whole number"),
        ("text", 5, ": expected text"),
    ],
)
def test_numbers_of_a_file_that_are_wrong(
    toml: Callable[..., Path], key: str, value: Any, why: str
) -> None:
    path = toml(**{key: value})
    assert refusal({}, path).startswith(f"{path}: {key}{why}")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("rows.txt", "", "it has no row that can be used"),
        ("rows.dat", "one\n", "its name does not tell which format it has; say --dataset-format"),
        ("rows.csv", "a,b\n1,2\n", "no column is called prompt, question, "),
    ],
)
def test_a_dataset_without_a_row(tmp_path: Path, name: str, text: str, why: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert refusal({"dataset": str(path)}).startswith(f"--dataset {path}: {why}")
    missing = tmp_path / "none.txt"
    assert refusal({"dataset": str(missing)}) == f"--dataset {missing}: No such file or directory"


def test_a_broken_first_row_is_found_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,output_tokens\none,0\ntwo,5\n", encoding="utf-8")
    assert refusal({"dataset": str(path)}).startswith(f"{path}, line 2: output_tokens is 0")
    assert load_sweep(SERVER | {"dataset": str(path), "skip_broken": True}).loads()


# ---- what slips through


@pytest.mark.parametrize(
    "flags",
    [
        {"max_failures": "a\nb"},
        {"until": "a\nb"},
        {"text": "a\nb"},
        {"arrivals": "a\nb"},
        {"request_rate": ["a\nb"]},
        {"think_time": "a\nb", "turns": 2},
    ],
)
def test_words_of_two_lines_are_refused_in_one(flags: dict[str, Any]) -> None:
    assert refusal(flags)


@pytest.mark.parametrize("most", ["²", "٣", "٣%", "3", "3%"])
def test_a_limit_that_is_taken_can_be_counted(most: str) -> None:
    try:
        (load,) = loads(concurrency=[1], max_failures=most)
    except UserError:
        return
    Board(load).ended("measured", True)


def test_a_trace_among_other_rates_needs_times() -> None:
    said = refusal({"request_rate": ["trace", "5"], "dataset": TIMELESS})
    assert said == f"--request-rate: {NO_TIMES}"


def test_a_file_without_times_is_no_trace_however_it_is_written(toml: Callable[..., Path]) -> None:
    path = toml(request_rate=" trace ", dataset=TIMELESS)
    assert refusal({}, path) == f"{path}: request_rate: {NO_TIMES}"


def test_one_rate_in_two_spellings_stands_there_twice() -> None:
    assert refusal({"request_rate": ["2", "2.0"]}).startswith("--request-rate: ")


def test_one_length_in_two_spellings_names_its_file(toml: Callable[..., Path]) -> None:
    path = toml(prompt_tokens=[128, "128"])
    assert refusal({}, path).startswith(f"{path}: prompt_tokens: ")


def test_replies_of_a_batch_have_one_length_in_pairs_too() -> None:
    said = refusal(BATCHES | {"prompt_tokens": ["128:uniform(5,9)"]})
    assert said == "--prompt-tokens: the replies of a static batch have one length"


@pytest.mark.parametrize("seed", [0, 2**64 - 1, 2**99])
def test_a_seed_that_is_taken_can_be_stored(seed: int) -> None:
    sweep = load_sweep(SERVER | {"seed": seed})
    assert msgspec.json.decode(msgspec.json.encode(sweep), type=type(sweep)) == sweep


# ---- lists of flags


def test_lists_are_split_outside_of_parentheses() -> None:
    assert items("128, normal(512,128),8:uniform(1,5)") == [
        "128",
        "normal(512,128)",
        "8:uniform(1,5)",
    ]
    assert items("ramp(2,32)") == ["ramp(2,32)"]
    assert items("") == [""]
    with pytest.raises(argparse.ArgumentTypeError, match=r"'ramp\(2,8\)' stands there twice"):
        items("ramp(2,8),4,ramp(2,8)")


def test_columns_are_pairs() -> None:
    assert pairs("prompt=question, output_tokens=n") == {
        "prompt": "question",
        "output_tokens": "n",
    }
    for text in ("prompt", "prompt=", "=question", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is not NAME=VALUE"):
            pairs(text)


# ---- dry runs


@pytest.fixture
def dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``llmbench sweep --dry-run`` of a server, in this process."""

    def run(*args: object) -> Done:
        with contextlib.chdir(tmp_path):
            code = main(["sweep", "--dry-run", "--target", "http://a", *map(str, args)])
        return Done(code, *capsys.readouterr())

    return run


def words(line: str) -> list[str]:
    return line.split()


def rows(done: Done) -> list[list[str]]:
    assert (done.code, done.err) == (0, "")
    plan = done.out.partition("\nfirst request of ")[0]
    return [words(line) for line in plan.replace("\n  ", " ").splitlines()]


def test_a_dry_run_of_an_open_loop(dry_run: Callable[..., Done]) -> None:
    done = dry_run("--request-rate", "2,8,ramp(2,8)", "--output-tokens", 20)
    head, _, *cells, total, enough = rows(done)
    assert head == ["target", "client", "req/s", "prompt", "output", "requests", "about"]
    # A reply takes 0.5 s + 20 × 25 ms = 1 s, after two seconds of warm-up and 30 s of arrivals.
    assert cells == [
        words("a wire 2 128 20 60 + 4 33 s"),
        words("a wire 8 128 20 240 + 16 33 s"),
        words("a wire ramp(2,8) 128 20 150 + 4 33 s"),
    ]
    assert " ".join(total) == "3 cells, by time, about 2 min"
    assert " ".join(enough).startswith("a cell ends after 30 s (60 s of slow replies), or sooner,")


def test_a_dry_run_of_an_open_loop_by_time(dry_run: Callable[..., Done]) -> None:
    done = dry_run("--request-rate", 4, "--duration", 20, "--output-tokens", 20, "--warmup", 4)
    _, _, cell, total = rows(done)
    assert cell == words("a wire 4 128 20 by time + 4 22 s")
    assert " ".join(total) == "1 cell, by time, about 22 s"


def test_a_dry_run_says_distributions_and_caches(dry_run: Callable[..., Done]) -> None:
    done = dry_run(
        *("--prompt-tokens", "normal(512,128):uniform(16,24)", "--cache", "cold,warm"),
        *("--concurrency", 4, "--requests", 8),
    )
    head, _, *cells, _, _, prompts, replies = rows(done)
    assert head[2:5] == ["conc.", "cache", "prompt"]
    assert [cell[:-2] for cell in cells] == [
        words(f"a wire 4 {cache} ~512 ~20 8 + 4") for cache in ("cold", "warm")
    ]
    assert " ".join(prompts) == "prompts of normal(512,128) tokens"
    assert " ".join(replies) == "replies of uniform(16,24) tokens"


@pytest.mark.parametrize(
    ("given", "pause"), [("2", "2 s"), ("500ms", "500 ms|500ms|0.5 s"), ("exponential(2)", "exp")]
)
def test_a_dry_run_of_conversations(dry_run: Callable[..., Done], given: str, pause: str) -> None:
    done = dry_run("--concurrency", 1, "--turns", 3, "--think-time", given, "--output-tokens", 20)
    said = done.out.partition("\nfirst request of ")[0].splitlines()[-1]
    assert said.startswith("conversations of 3 turns, thinking ")
    assert re.search(rf"thinking ({pause})", said)
    assert "ms s" not in said


def test_a_dry_run_of_a_trace(dry_run: Callable[..., Done], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows_of = [(0, 100, 20, [1]), (4_000, 600, 40, [1, 2]), (10_000, 200, 30, [3])]
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows_of]
    path.write_text("\n".join(lines))
    done = dry_run("--request-rate", "trace", "--dataset", path, "--speed", 2)
    _, _, cell, total, guess, source, held = rows(done)
    # 10 s at twice the speed, and a mean reply of 0.5 s + 30 × 25 ms.
    assert cell == words("a wire trace file file 3 + 0 6 s")
    assert " ".join(total) == "1 cell, 3 requests with warm-up, about 6 s"
    assert guess[0] == "guessed"
    assert " ".join(source) == f"requests and their lengths from {path} (mooncake)"
    assert " ".join(held) == (
        "the file has 3 rows, over 10 s of its own clock; prompts of 100 to 600 tokens, 300 on "
        "average; replies of 20 to 40 tokens, 30 on average"
    )


def test_a_dry_run_finds_a_broken_row_anywhere(dry_run: Callable[..., Done]) -> None:
    path = DATASETS / "bad.mooncake.jsonl"
    done = dry_run("--request-rate", "trace", "--dataset", path)
    assert (done.code, done.out) == (2, "")
    assert "--skip-broken" in done.err


def test_a_dry_run_of_the_first_rows_of_a_trace(dry_run: Callable[..., Done]) -> None:
    path = DATASETS / "good.mooncake.jsonl"
    done = dry_run("--request-rate", "trace", "--dataset", path, "--requests", 3, "--warmup", 1)
    _, _, cell, total, _, _, _ = rows(done)
    assert cell[5:8] == ["3", "+", "1"]
    assert " ".join(total).startswith("1 cell, 4 requests with warm-up, about ")


def test_a_dry_run_refuses_what_a_run_would(dry_run: Callable[..., Done]) -> None:
    done = dry_run("--speed", 2)
    assert (done.code, done.out) == (2, "")
    assert done.err == "llmbench: --speed: only a replay has one: --request-rate trace\n"
