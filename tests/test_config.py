"""What the user wrote, and what it means; where it is wrong, one line that says where."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from llmbench.config import Sweep, load_sweep
from llmbench.errors import UserError
from llmbench.lists import counts, words
from llmbench.records import Load, Target

SECRET = "sk-5ecret"


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    """Writes a config file."""

    def write(text: str) -> Path:
        path = tmp_path / "sweep.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def target_of(spec: str, **flags: Any) -> Target:
    (target,) = load_sweep({"target": [spec]} | flags).targets()
    return target


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
        "concurrency": [1, 8, 32],
        "prompt_tokens": None,
        "output_tokens": None,
        "requests": None,
        "duration": None,
        "warmup": None,
        "timeout": 300.0,
        "workers": 1,
        "calibrate": True,
        "out": "",
        "format": "table",
    }


def load_of(concurrency: int, length: int, output: int, requests: int, **fields: Any) -> Load:
    facts = {
        "concurrency": concurrency,
        "prompt_tokens": length,
        "output_tokens": output,
        "requests": requests,
        "duration_s": None,
        "warmup": concurrency,
    }
    return Load(**(facts | fields))


def test_the_default_loads_of_a_server() -> None:
    assert load_sweep({"target": ["http://h"], "concurrency": [1, 8, 64]}).loads() == [
        load_of(1, 128, 128, 72),
        load_of(8, 128, 128, 72),
        load_of(64, 128, 128, 128),
    ]


def test_the_default_loads_of_the_embedded_engine_are_short() -> None:
    assert load_sweep({"concurrency": [2]}).loads() == [load_of(2, 64, 16, 72)]
    both = load_sweep({"concurrency": [2], "target": ["llamacpp:", "http://h"]})
    assert both.loads() == [load_of(2, 128, 128, 72)]


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
        load_of(4, 9, 7, 72, **told),
        load_of(2, 9, 7, 72, **told),
        load_of(4, 5, 7, 72, **told),
        load_of(2, 5, 7, 72, **told),
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
concurrency = [1, 4]
prompt_tokens = [64, 512]
output_tokens = 9
requests = 5
warmup = 0
timeout = 2
workers = "auto"
calibrate = false
out = "here"
format = "csv"
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
        concurrency=[1, 4],
        prompt_tokens=[64, 512],
        output_tokens=9,
        requests=5,
        warmup=0,
        timeout=2.0,
        workers="auto",
        calibrate=False,
        out="here",
        format="csv",
    )
    assert load_sweep({}, toml("duration = 1.5")).duration == 1.5
    assert set(Sweep.__struct_fields__) == {
        *(line.split(" = ")[0] for line in EVERY_KEY.strip().splitlines()),
        "duration",
    }


def test_one_value_will_do_for_a_list(toml: Any) -> None:
    text = 'target = "http://a"\nclient = "aiohttp"\nconcurrency = 2\nprompt_tokens = 3'
    sweep = load_sweep({}, toml(text))
    assert sweep.target == ["http://a"]
    assert sweep.client == ["aiohttp"]
    assert (sweep.concurrency, sweep.prompt_tokens) == ([2], [3])


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
        ("timeout = nan", "timeout", "> 0"),
        ("timeout = inf", "timeout", "<= "),  # infinity would not survive run.json
        ("duration = -1", "duration", "> 0"),
        ("duration = inf", "duration", "<= "),
        ("requests = 0", "requests", ">= 1"),
        ("requests = 1.5", "requests", "expected `int"),
        ("requests = true", "requests", "expected `int"),
        ("warmup = -1", "warmup", ">= 0"),
        ("output_tokens = 0", "output_tokens", ">= 1"),
        ("workers = 0", "workers", ">= 1"),
        ('workers = "all"', "workers", "'all'"),
        ('calibrate = "no"', "calibrate", "expected true or false"),
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
        ("target = [1]", "target, item 1", "expected text"),
        ("target = {a = 1}", "target, item 1", "expected text"),
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


# ---- targets


@pytest.mark.parametrize(
    ("spec", "url", "name"),
    [
        ("http://h:8000", "http://h:8000/v1", "h:8000"),
        ("http://h:8000/", "http://h:8000/v1", "h:8000"),
        ("http://h:8000/v1", "http://h:8000/v1", "h:8000"),
        ("http://h:8000/v1/", "http://h:8000/v1", "h:8000"),
        ("http://h:8000/v1/chat/completions", "http://h:8000/v1", "h:8000"),
        ("http://h:8000/v1/chat/completions/", "http://h:8000/v1", "h:8000"),
        ("http://h:8000/v1/completions", "http://h:8000/v1", "h:8000"),
        ("http://h:8000/v1/models", "http://h:8000/v1", "h:8000"),
        ("http://h:8000/chat/completions", "http://h:8000/v1", "h:8000"),
        ("https://h", "https://h/v1", "h"),
        ("https://api.groq.com/openai/v1", "https://api.groq.com/openai/v1", "api.groq.com"),
        ("https://h/api/openai/v1/", "https://h/api/openai/v1", "h"),
        ("https://h/openai", "https://h/openai/v1", "h"),
        ("https://h/v1beta/openai", "https://h/v1beta/openai", "h"),
        ("https://h/v1beta2/openai/", "https://h/v1beta2/openai", "h"),
        ("https://h/api/v4", "https://h/api/v4", "h"),
        ("https://h/v1x/vllm", "https://h/v1x/vllm", "h"),
        ("https://h/vllm/v", "https://h/vllm/v/v1", "h"),
        ("https://h/rev1", "https://h/rev1/v1", "h"),
        ("http://127.0.0.1:80", "http://127.0.0.1:80/v1", "127.0.0.1:80"),
        ("http://[::1]:8000", "http://[::1]:8000/v1", "[::1]:8000"),
        ("http://[fe80::1]", "http://[fe80::1]/v1", "[fe80::1]"),
        ("http://h:65535", "http://h:65535/v1", "h:65535"),
    ],
)
def test_urls(spec: str, url: str, name: str) -> None:
    target = target_of(spec)
    assert (target.url, target.name, target.engine) == (url, name, "")


def test_what_a_target_takes_from_the_flags() -> None:
    flags = {"model": "m", "api": "completions", "api_key_env": "KEY", "ca_file": "ca.pem"}
    assert target_of("http://h", **flags) == Target(
        spec="http://h",
        name="h",
        url="http://h/v1",
        model="m",
        api="completions",
        key_env="KEY",
        ca_file="ca.pem",
    )


def test_options_of_a_target_win_over_the_flags() -> None:
    options = "name=prod%20a&model=o/p&api=chat&key_env=OWN&ca_file=/x.pem&quantization=int8"
    flags = {"model": "m", "api": "completions", "api_key_env": "KEY", "ca_file": "ca.pem"}
    assert target_of(f"https://h:8443/v1?{options}", **flags) == Target(
        spec="https://h:8443/v1",
        name="prod a",
        url="https://h:8443/v1",
        model="o/p",
        api="chat",
        key_env="OWN",
        ca_file="/x.pem",
        quantization="int8",
    )


def test_the_scheme_in_capitals() -> None:
    assert target_of("HTTP://h:8000").url.lower() == "http://h:8000/v1"
    assert target_of("LLAMACPP:a.gguf").engine == "llamacpp"


def test_the_variable_of_a_key_is_no_key() -> None:
    said = refusal({"target": ["http://h"], "api_key_env": SECRET})
    assert SECRET not in said
    assert "--api-key-env" in said


def test_an_empty_name_is_none() -> None:
    assert target_of("http://h?name=").name == "h"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("http://h?key=" + SECRET, "unknown option 'key'; did you mean 'key_env'?"),
        ("http://h?api_key=" + SECRET, "unknown option 'api_key'"),
        ("http://h?model=m&token=" + SECRET, "unknown option 'token'"),
        ("llamacpp:a.gguf?model=" + SECRET, "unknown option 'model'"),
        ("h:8000?key=" + SECRET, "neither a URL nor an engine"),
        ("http://h:99999?name=" + SECRET, "port"),
        (f"http://user:{SECRET}@h", "put no password in a URL"),
        (f"http://{SECRET}@h", "put no password in a URL"),
        (f"http://user:{SECRET}@h:99999", "put no password in a URL"),
        (f"http://user:{SECRET}@h/v1?key=x", "unknown option 'key'"),
        (f"http://user:{SECRET}#@h", "put no password in a URL"),
        (f"http://user:{SECRET}@[::1", "put no password in a URL"),
        (f"HTTP://user:{SECRET}@h", "put no password in a URL"),
        ("http://h?key_env=" + SECRET, "name of an environment variable"),
        ("http://h?name=%1b[31m" + SECRET, "a character that cannot be shown"),
        (f"ftp://user:{SECRET}@h", "neither a URL nor an engine"),
        (f"user:{SECRET}@h:8000", "neither a URL nor an engine"),
    ],
)
def test_secrets_are_never_echoed(spec: str, words: str) -> None:
    said = refusal({"target": [spec]})
    assert said.startswith("--target ")
    assert words in said
    assert SECRET not in said
    assert "5ecret" not in said


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "localhost:8000",
            "neither a URL nor an engine; write http://host:8000, or llamacpp:MODEL",
        ),
        ("vllm:m", "neither a URL nor an engine"),
        ("", "neither a URL nor an engine"),
        ("http://", "the host is missing"),
        ("http:h:8000", "the host is missing"),
        ("http:///v1", "the host is missing"),
        ("http://h:99999", "the port is not a number up to 65535"),
        ("http://h:x", "the port is not a number up to 65535"),
        ("http://[::1", "http://[::1"),
        ("http://[zz]:80", "http://[zz]:80"),
        ("http://h?api=grpc", "api is chat or completions"),
        ("http://h?nmae=x", "unknown option 'nmae'; did you mean 'name'?"),
        ("http://h?threads=2", "unknown option 'threads'"),
        ("llamacpp:?threads=0", "threads is a whole number from 1"),
        ("llamacpp:?threads=00", "threads is a whole number from 1"),
        ("llamacpp:?threads=-1", "threads is a whole number from 1"),
        ("llamacpp:?threads=", "threads is a whole number from 1"),
        ("llamacpp:?threads=²", "threads is a whole number from 1"),
    ],
)
def test_wrong_targets(spec: str, words: str) -> None:
    said = refusal({"target": [spec]})
    assert said.startswith("--target ")
    assert words in said


def test_two_targets_of_one_name() -> None:
    said = refusal({"target": ["http://h:8000/a", "http://h:8000/b"]})
    assert "two targets are called h:8000; give each a name" in said
    assert "called x" in refusal({"target": ["http://a?name=x", "http://b?name=x"]})
    named = load_sweep({"target": ["http://h:8000?name=a", "http://h:8000?name=b"]})
    assert [each.name for each in named.targets()] == ["a", "b"]


@pytest.mark.parametrize(
    ("spec", "name", "file", "threads"),
    [
        ("llamacpp:", "llama.cpp (embedded)", "", None),
        ("llamacpp:/models/tiny-q4.gguf", "tiny-q4", "/models/tiny-q4.gguf", None),
        ("llamacpp:tiny.gguf?threads=2&name=two", "two", "tiny.gguf", 2),
        ("llamacpp:?threads=16", "llama.cpp (embedded)", "", 16),
    ],
)
def test_engines(spec: str, name: str, file: str, threads: int | None) -> None:
    target = target_of(spec, api="completions")
    assert target == Target(
        spec=spec, name=name, engine="llamacpp", model=file, api="completions", threads=threads
    )


def test_without_a_target_it_is_the_embedded_engine() -> None:
    (target,) = load_sweep({}).targets()
    assert (target.engine, target.name, target.url) == ("llamacpp", "llama.cpp (embedded)", "")


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
