"""What the user wrote, and what it means; where it is wrong, one line that says where."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from llmbench.config import EMBEDDED_LENGTHS, Sweep, load_sweep
from llmbench.errors import UserError
from llmbench.lists import counts, words
from llmbench.records import Load
from llmbench.targets import TargetTable


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    """Writes a config file."""

    def write(text: str) -> Path:
        path = tmp_path / "sweep.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(flags: dict[str, Any], config: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_sweep(flags, config)
    words = str(caught.value)
    assert "\n" not in words
    assert caught.value.exit_code == 2
    return words


# ---- defaults


def test_every_default() -> None:
    sweep = load_sweep({})
    assert {key: getattr(sweep, key) for key in Sweep.__struct_fields__} == {
        "target": [],
        "model": "",
        "api": "chat",
        "client": ["wire"],
        "api_key_env": "OPENAI_API_KEY",
        "ca_file": "",
        "auth": "",
        "insecure": False,
        "headers": {},
        "query": {},
        "body": {},
        "temperature": None,
        "top_p": None,
        "reasoning_effort": "",
        "system_prompt": "",
        "concurrency": [1, 8, 32],
        "batch_size": None,
        "prompt_tokens": None,
        "output_tokens": None,
        "requests": None,
        "duration": None,
        "until": "",
        "warmup": None,
        "request_rate": None,
        "arrivals": "poisson",
        "speed": 1.0,
        "max_concurrency": None,
        "grace": None,
        "start": "spread",
        "segments": None,
        "dataset": "",
        "dataset_format": "",
        "dataset_columns": {},
        "skip_broken": False,
        "text": "lighthouse",
        "shared_prefix": 0.0,
        "cache": ["cold"],
        "turns": 1,
        "think_time": "",
        "natural_stops": False,
        "barge_in": 0.0,
        "barge_in_after": "uniform(0.2,1)",
        "seed": 0,
        "repeat": 1,
        "timeout": 300.0,
        "first_token_timeout": None,
        "max_failures": "",
        "max_reply_bytes": 67108864,
        "workers": 1,
        "calibrate": True,
        "agreement": False,
        "baseline": "",
        "slo": {},
        "search": "",
        "together": False,
        "least": 1.0,
        "out": "",
        "format": "table",
        "why": False,
    }


MOST = 1_000_000
BY_TIME = {"requests": MOST, "budget_s": 30.0, "grace_s": 60.0}


def load_of(
    concurrency: int, length: int, output: int, requests: int = MOST, **fields: Any
) -> Load:
    facts = {
        "concurrency": concurrency,
        "prompt_tokens": length,
        "output_tokens": output,
        "requests": requests,
        "duration_s": None,
        "warmup": concurrency,
        "segments": 0 if concurrency == 1 else 32,
    }
    return Load(**(facts | fields))


def test_the_default_loads_of_a_server() -> None:
    """As much as half a minute allows."""
    assert load_sweep({"target": ["http://h"], "concurrency": [1, 8, 64]}).loads() == [
        load_of(1, 128, 128, **BY_TIME),
        load_of(8, 128, 128, **BY_TIME),
        load_of(64, 128, 128, **BY_TIME),
    ]


def test_the_default_loads_of_the_embedded_engine_are_short() -> None:
    prompt, reply = EMBEDDED_LENGTHS
    assert load_sweep({"concurrency": [2]}).loads() == [
        load_of(2, prompt, reply, budget_s=20.0, grace_s=40.0)
    ]
    both = load_sweep({"concurrency": [2], "target": ["llamacpp:", "http://h"]})
    assert both.loads() == [load_of(2, 128, 128, **BY_TIME)]


@pytest.mark.parametrize(
    ("flags", "budget_s"),
    [
        ({}, 30.0),
        ({"repeat": 2}, 30.0),  # a minute for all repeats, and no more for one than for a cell
        ({"repeat": 4}, 15.0),
        ({"repeat": 20}, 10.0),  # but never less
        ({"requests": 7}, None),
        ({"duration": 7.0}, None),
        ({"until": "ci=5%"}, None),
    ],
)
def test_time_is_the_budget_where_nobody_says_how_much(
    flags: dict[str, Any], budget_s: float | None
) -> None:
    load = load_sweep({"target": ["http://h"], "concurrency": [2]} | flags).loads()[0]
    assert load.budget_s == budget_s
    assert load.requests == {"requests": 7, "until": 16 * 192}.get("".join(flags), load.requests)


def test_the_probes_of_a_search_have_no_budget() -> None:
    load = replace(load_sweep({"target": ["http://h"]}), search="concurrency").loads()[0]
    assert (load.budget_s, load.requests) == (None, 192)


def test_loads_as_they_are_told() -> None:
    flags = {
        "target": ["http://h"],
        "concurrency": [4, 2],
        "prompt_tokens": [9, 5],
        "output_tokens": 7,
        "duration": 2.5,
        "warmup": 0,
    }
    told = {"duration_s": 2.5, "warmup": 0}
    assert load_sweep(flags).loads() == [
        load_of(4, 9, 7, 192, **told),
        load_of(2, 9, 7, 192, **told),
        load_of(4, 5, 7, 192, **told),
        load_of(2, 5, 7, 192, **told),
    ]
    few = load_sweep({"target": ["http://h"], "concurrency": [64], "requests": 5})
    assert few.loads() == [load_of(64, 128, 128, 5)]


# ---- config files


EVERY_KEY = """
target = ["http://a:1?name=one", "http://b:2"]
model = "m"
api = "completions"
client = ["wire", "openai"]
api_key_env = "KEY"
ca_file = "ca.pem"
auth = "x-api-key"
headers = { "X-Tier" = "gold", "X-Token" = "${NOT_SET_YET}" }
query = { api-version = "1" }
body = { seed = 7, a = { b = [1] } }
temperature = 0
top_p = 1
reasoning_effort = "low"
system_prompt = "Be brief."
concurrency = [1, 4]
prompt_tokens = [64, 512]
output_tokens = 9
requests = 9
until = "ci=5%"
warmup = 0
grace = 3
start = "together"
segments = 4
text = "rag"
shared_prefix = 0.5
cache = ["cold"]
turns = 3
think_time = "500ms"
natural_stops = true
seed = 7
repeat = 3
timeout = 2
max_reply_bytes = 4096
max_failures = "20%"
workers = "auto"
calibrate = false
agreement = true
why = true
baseline = "one"
slo = { "ttft.p95" = "500ms" }
out = "here"
format = "csv"
"""

EVERY_OTHER_KEY = """
insecure = true
request_rate = ["trace", "ramp(2,8)"]
arrivals = "gamma(0.5)"
speed = 2
max_concurrency = 64
dataset = "{path}"
dataset_format = "csv"
dataset_columns = { prompt = "question" }
skip_broken = true
duration = 1.5
first_token_timeout = 4
turns = 2
barge_in = 0.25
barge_in_after = "400ms"
"""


def test_every_key_of_a_file(toml: Any) -> None:
    sweep = load_sweep({}, toml(EVERY_KEY))
    assert sweep == Sweep(
        target=["http://a:1?name=one", "http://b:2"],
        model="m",
        api="completions",
        client=["wire", "openai"],
        api_key_env="KEY",
        ca_file="ca.pem",
        auth="x-api-key",
        headers={"X-Tier": "gold", "X-Token": "${NOT_SET_YET}"},
        query={"api-version": "1"},
        body={"seed": 7, "a": {"b": [1]}},
        temperature=0.0,
        top_p=1.0,
        reasoning_effort="low",
        system_prompt="Be brief.",
        concurrency=[1, 4],
        prompt_tokens=[64, 512],
        output_tokens=9,
        requests=9,
        until="ci=5%",
        warmup=0,
        grace=3.0,
        start="together",
        segments=4,
        text="rag",
        shared_prefix=0.5,
        cache=["cold"],
        turns=3,
        think_time="500ms",
        natural_stops=True,
        seed=7,
        repeat=3,
        timeout=2.0,
        max_reply_bytes=4096,
        max_failures="20%",
        workers="auto",
        calibrate=False,
        agreement=True,
        why=True,
        baseline="one",
        slo={"ttft.p95": "500ms"},
        out="here",
        format="csv",
    )


def test_every_key_of_an_open_loop(toml: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("at,question\n0,one\n", encoding="utf-8")
    sweep = load_sweep({"target": ["http://a"]}, toml(EVERY_OTHER_KEY.replace("{path}", str(rows))))
    assert sweep == Sweep(
        target=["http://a"],
        insecure=True,
        request_rate=["trace", "ramp(2,8)"],
        arrivals="gamma(0.5)",
        speed=2.0,
        max_concurrency=64,
        dataset=str(rows),
        dataset_format="csv",
        dataset_columns={"prompt": "question"},
        skip_broken=True,
        duration=1.5,
        first_token_timeout=4.0,
        turns=2,
        barge_in=0.25,
        barge_in_after="400ms",
    )


def test_no_key_is_left_out() -> None:
    lines = (EVERY_KEY + EVERY_OTHER_KEY).split("\n")
    told = {line.split(" = ")[0] for line in lines if line}
    # concurrency or batch_size; searches and A/B tests are other commands'
    others = {"batch_size", "search", "least", "together"}
    assert set(Sweep.__struct_fields__) == told | others


def test_one_value_will_do_for_a_list(toml: Any) -> None:
    text = 'target = "http://a"\nclient = "aiohttp"\nconcurrency = 2\nprompt_tokens = 3'
    sweep = load_sweep({}, toml(text))
    assert sweep.target == ["http://a"]
    assert sweep.client == ["aiohttp"]
    assert (sweep.concurrency, sweep.prompt_tokens) == ([2], [3])
    sweep = load_sweep({}, toml('batch_size = 4\ntarget = {target = "onnx:d", threads = 2}'))
    assert sweep.batch_size == [4]
    assert sweep.target == [TargetTable(target="onnx:d", threads=2)]


def test_flags_win_over_the_file(toml: Any) -> None:
    path = toml('model = "file"\nconcurrency = [1]\nformat = "csv"\nrequests = 5')
    sweep = load_sweep({"model": "flag", "concurrency": [2, 4], "duration": 1.5}, path)
    assert (sweep.model, sweep.concurrency, sweep.format) == ("flag", [2, 4], "csv")
    assert (sweep.requests, sweep.duration) == (None, 1.5)
    assert load_sweep({"requests": 7}, toml("duration = 2")).duration is None


def test_requests_and_duration_exclude_each_other(toml: Any) -> None:
    said = refusal({"requests": 5, "duration": 1.5})
    assert said == "--requests and --duration: give one of the two"
    path = toml("requests = 5\nduration = 1.5")
    assert refusal({}, path).startswith(f"{path}: requests")


def test_concurrency_and_batch_size_exclude_each_other(toml: Any) -> None:
    one = {"target": ["onnx:d"]}
    said = refusal(one | {"concurrency": [2], "batch_size": [2]})
    assert said == "--concurrency and --batch-size: give one of the two"
    path = toml("concurrency = 2\nbatch_size = 2")
    assert refusal(one, path) == f"{path}: concurrency and batch_size: give one of the two"
    assert load_sweep(one | {"concurrency": [2]}, toml("batch_size = 4")).batch_size is None
    assert load_sweep(one | {"batch_size": [4]}, toml("concurrency = 2")).loads() == [
        load_of(4, 128, 128, batch_size=4, segments=0, **BY_TIME)
    ]


def test_static_batches_are_whole() -> None:
    flags = {"target": ["onnx:d"], "output_tokens": 9, "prompt_tokens": [5]}
    assert load_sweep(flags | {"batch_size": [1, 5, 64]}).loads() == [
        load_of(n, 5, 9, batch_size=n, segments=0, **BY_TIME) for n in (1, 5, 64)
    ]
    search = replace(load_sweep(flags | {"batch_size": [5, 64]}), search="concurrency")
    assert [load.requests for load in search.loads()] == [195, 192]
    told = {"batch_size": [8], "requests": 17, "warmup": 9}
    assert load_sweep(flags | told).loads() == [
        load_of(8, 5, 9, 24, batch_size=8, segments=0, warmup=16)
    ]
    none = {"batch_size": [8], "requests": 16, "warmup": 0}
    assert load_sweep(flags | none).loads() == [
        load_of(8, 5, 9, 16, batch_size=8, segments=0, warmup=0)
    ]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("http://h:1", "h:1"),
        ("vllm-server:m", "vllm-server m"),
        ("llamacpp-server:", "llama.cpp (embedded)"),
    ],
)
def test_static_batches_are_not_for_servers(toml: Any, target: str, name: str) -> None:
    flags = {"target": ["onnx:d", target], "batch_size": [4]}
    whose = f"{name} is a server; static batches are for the engines that are called in process: "
    assert refusal(flags).startswith(f"--batch-size: {whose}llamacpp, onnx, transformers, vllm")
    path = toml("batch_size = 4")
    assert refusal({"target": [target]}, path).startswith(f"{path}: batch_size: {whose}")


def test_a_baseline_is_one_of_the_targets(toml: Any) -> None:
    flags = {"target": ["http://a?name=before", "http://b?name=after"]}
    assert load_sweep(flags | {"baseline": "before"}).baseline == "before"
    said = refusal(flags | {"baseline": "befor"})
    assert said == "--baseline: no target is called 'befor'; did you mean 'before'?"
    path = toml('baseline = "zzz"')
    said = refusal(flags, path)
    assert said == f"{path}: baseline: no target is called 'zzz'; known are before, after"


def test_an_unknown_key(toml: Any) -> None:
    path = toml("concurency = 8")
    assert refusal({}, path) == f"{path}: unknown key 'concurency'; did you mean 'concurrency'?"
    path = toml("zzz = 8")
    said = refusal({}, path)
    assert said.startswith(f"{path}: unknown key 'zzz'; known are target, model, ")
    assert "timeout" in said
    assert "unknown key 'sweep'" in refusal({}, toml("[sweep]\nmodel = 'm'"))


@pytest.mark.parametrize(
    ("line", "place", "why"),
    [
        ('timeout = "x"', "timeout", "expected a number"),
        ("timeout = 0", "timeout", "> 0"),
        ("max_reply_bytes = 1023", "max_reply_bytes", ">= 1024"),
        ("max_reply_bytes = 2e6", "max_reply_bytes", "expected a whole number"),
        ("timeout = nan", "timeout", "> 0"),
        ("timeout = inf", "timeout", "<= "),  # infinity would not survive run.json
        ("duration = -1", "duration", "> 0"),
        ("duration = inf", "duration", "<= "),
        ("requests = 0", "requests", ">= 1"),
        ("requests = 1.5", "requests", "expected a whole number"),
        ("requests = true", "requests", "expected a whole number"),
        ("warmup = -1", "warmup", ">= 0"),
        ("output_tokens = 0", "output_tokens", ">= 1"),
        ("workers = 0", "workers", ">= 1"),
        ('workers = "all"', "workers", "'all'"),
        ('calibrate = "no"', "calibrate", "expected true or false"),
        ("agreement = 1", "agreement", "expected true or false"),
        ("baseline = 1", "baseline", "expected text"),
        ("batch_size = []", "batch_size", "length >= 1"),
        ("batch_size = [2, 0]", "batch_size, item 2", ">= 1"),
        ("batch_size = [2, 2]", "batch_size", "twice"),
        ("model = 1", "model", "expected text"),
        ('api = "grpc"', "api", "unknown value 'grpc'"),
        ('format = "xml"', "format", "unknown value 'xml'"),
        ("concurrency = [1, 0]", "concurrency, item 2", ">= 1"),
        ('concurrency = "1,8"', "concurrency, item 1", "expected a whole number"),
        ("concurrency = []", "concurrency", "length >= 1"),
        ("concurrency = [8, 1, 8]", "concurrency", "twice"),
        ("prompt_tokens = []", "prompt_tokens", "length >= 1"),
        ("prompt_tokens = [1, 1]", "prompt_tokens", "twice"),
        ("client = []", "client", "length >= 1"),
        ('client = ["wire", "wget"]', "client, item 2", "unknown value 'wget'"),
        ("target = [1]", "target, item 1", "expected text or a table"),
        ("target = {a = 1}", "target, item 1", "unknown key 'a'"),
    ],
)
def test_a_wrong_value_names_its_file_and_key(toml: Any, line: str, place: str, why: str) -> None:
    path = toml(line)
    said = refusal({}, path)
    assert said.startswith(f"{path}: {place}: ")
    assert why in said


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        ({"timeout": -1.0}, "--timeout"),
        ({"timeout": float("nan")}, "--timeout"),
        ({"output_tokens": 0}, "--output-tokens"),
        ({"requests": -3}, "--requests"),
        ({"client": ["wire", "wget"]}, "--client, item 2"),
    ],
)
def test_a_wrong_value_names_its_flag(toml: Any, flags: dict[str, Any], place: str) -> None:
    assert refusal(flags).startswith(f"{place}: ")
    assert refusal(flags, toml('model = "m"')).startswith(f"{place}: ")


def test_a_file_that_cannot_be_read(tmp_path: Path, toml: Any) -> None:
    missing = tmp_path / "no.toml"
    assert refusal({}, missing) == f"--config {missing}: cannot be read: No such file or directory"
    assert refusal({}, tmp_path).startswith(f"--config {tmp_path}: cannot be read: ")
    path = toml("model = ")
    assert refusal({}, path).startswith(f"{path}: not valid TOML: ")
    path.write_bytes(b"model = '\xff'")
    assert refusal({}, path) == f"--config {path}: cannot be read: it is not UTF-8 text"


# ---- lists


def test_lists() -> None:
    assert counts("1,8,32") == [1, 8, 32]
    assert counts(" 8, 1 ") == [8, 1]
    assert counts("008") == [8]
    assert words("wire, openai") == ["wire", "openai"]


@pytest.mark.parametrize("text", ["", "0", "1,,8", "1,x", "-1", "1.5", "1 8", "٣", "²", "1,8,1"])
def test_wrong_lists(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        counts(text)


def test_words_that_stand_there_twice() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'wire' stands there twice"):
        words("wire,openai,wire")
