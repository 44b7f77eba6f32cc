"""Targets in a config file: tables, commands, and environment variables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_config import refusal

from llmbench.config import Sweep, load_sweep
from llmbench.records import Target

SECRET = "sk-5ecret"

Read = Callable[..., Sweep]
Refused = Callable[..., str]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """``read(text, **flags)``: the sweep of a config file under the flags."""

    def load(text: str, **flags: Any) -> Sweep:
        path = tmp_path / "sweep.toml"
        path.write_text(text, encoding="utf-8")
        return load_sweep(flags, path)

    return load


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """``refused(text, **flags)``: why a config file is refused, with FILE for its path."""

    def load(text: str, **flags: Any) -> str:
        path = tmp_path / "sweep.toml"
        path.write_text(text, encoding="utf-8")
        return refusal(flags, path).replace(str(path), "FILE")

    return load


# ---- tables


def test_tables(read: Read) -> None:
    sweep = read("""
        [[target]]
        target = "https://h:8443"
        name = "prod"
        model = "m"
        api = "completions"
        api_key = "${PROD_KEY}"
        ca_file = "ca.pem"
        quantization = "fp8"

        [[target]]
        target = "vllm:a/m"
        dtype = "bfloat16"
        quantization = "int8"
        device = "cpu"
        threads = 2
        max_model_len = 512
        python = "venv/bin/python"
    """)
    assert sweep.targets() == [
        Target(
            spec="https://h:8443",
            name="prod",
            url="https://h:8443/v1",
            model="m",
            api="completions",
            key_env="PROD_KEY",
            ca_file="ca.pem",
            quantization="fp8",
        ),
        Target(
            spec="vllm:a/m",
            name="vllm m bfloat16 int8",
            engine="vllm",
            model="a/m",
            dtype="bfloat16",
            quantization="int8",
            device="cpu",
            threads=2,
            max_model_len=512,
            python="venv/bin/python",
        ),
    ]


def test_a_table_stands_under_the_flags_of_all(read: Read) -> None:
    flags = {"model": "m", "api": "completions", "api_key_env": "KEY", "ca_file": "ca.pem"}
    (target,) = read('[[target]]\ntarget = "http://h"\nkey_env = "OWN"', **flags).targets()
    assert (target.model, target.api, target.ca_file) == ("m", "completions", "ca.pem")
    assert target.key_env == "OWN"


def test_a_command(read: Read) -> None:
    (target,) = read("""
        [[target]]
        command = ["/opt/bin/serve", "--port={port}", "--key=${MY_KEY}"]
        health = "/health"
        env = { A = "${B}" }
        api_key = "${MY_KEY}"
    """).targets()
    assert target == Target(
        spec="http://127.0.0.1:{port}",
        name="serve",
        engine="command",
        url="http://127.0.0.1:{port}/v1",
        key_env="MY_KEY",
        command=["/opt/bin/serve", "--port={port}", "--key=${MY_KEY}"],
        health="/health",
        env={"A": "${B}"},
    )


@pytest.mark.parametrize(
    ("lines", "spec", "url", "name"),
    [
        ('target = "http://h:9"', "http://h:9", "http://h:9/v1", "serve:9"),
        ('target = "h:9"', "http://h:9", "http://h:9/v1", "serve:9"),
        (
            'target = "localhost:{port}"\nenv = {PORT = "{port}"}',
            "http://localhost:{port}",
            "http://localhost:{port}/v1",
            "serve",
        ),
        ('target = "http://h:9"\nname = "n"', "http://h:9", "http://h:9/v1", "n"),
        (
            'target = "http://[::1]:{port}/api/v2"\nenv = {PORT = "{port}"}',
            "http://[::1]:{port}/api/v2",
            "http://[::1]:{port}/api/v2",
            "serve",
        ),
    ],
)
def test_where_a_command_answers(read: Read, lines: str, spec: str, url: str, name: str) -> None:
    table = f'[[target]]\ncommand = ["serve"]\nhealth = "/"\n{lines}'
    (target,) = read(table).targets()
    assert (target.spec, target.url, target.name) == (spec, url, name)


@pytest.mark.parametrize(
    ("lines", "where", "why"),
    [
        ('nmae = "x"', ", item 2: ", "unknown key 'nmae'; did you mean 'name'?"),
        ("threads = '2'", ", item 2, threads: ", "expected a whole number"),
        ("threads = 0", ", item 2, threads: ", ">= 1"),
        ("name = 3", ", item 2, name: ", "expected text"),
        ("dtype = 16", ", item 2, dtype: ", "expected text, got"),
        ('api = "grpc"', ", item 2, api: ", "unknown value 'grpc'"),
        ('command = "serve"', ", item 2, command: ", "expected a list"),
        ('command = ["serve", 8]', ", item 2, command: ", "expected text"),
        ("env = {A = 1}", ", item 2, env: ", "expected text"),
        ('name = "it"', " it: ", "neither a URL nor an engine"),
        ('health = "/"', ": ", "neither a URL nor an engine"),
        ('target = "http://h?name=x"', " http://h: ", "options are keys of their own"),
        ('target = "llamacpp:a?threads=1"', " llamacpp:a: ", "options are keys of their own"),
        ('target = "http://h"\nthreads = 2', " http://h: ", "option 'threads' is not for"),
        ('target = "http://h"\nhealth = "/"', " http://h: ", "option 'health' is not for"),
        ('target = "http://h"\nenv = {A = "1"}', " http://h: ", "option 'env' is not for"),
        ('target = "vllm:m"\nmodel = "n"', " vllm:m: ", "option 'model' is not for"),
        ('target = "vllm:m"\napi_key = "${K}"', " vllm:m: ", "option 'api_key' is not for"),
        ('target = "onnx:d"\ndtype = "int4"', " onnx:d: ", "option 'dtype' is not for"),
        ('name = "it"\ncommand = ["s", "{port}"]', " it: ", "health is missing"),
        ('name = "it"\ncommand = ["s"]\nhealth = "/"', " it: ", "give it a target URL, or {port}"),
        (
            'name = "it"\ncommand = ["s", "{port}"]\nhealth = "/"\nthreads = 2',
            " it: ",
            "option 'threads' is not for",
        ),
        (
            'target = "vllm:m"\ncommand = ["s"]\nhealth = "/"',
            " vllm:m: ",
            "the host is missing",
        ),
        ('target = "http://first"', ": ", "two targets are called first"),
    ],
)
def test_wrong_tables(refused: Refused, lines: str, where: str, why: str) -> None:
    said = refused(f'[[target]]\ntarget = "http://first"\n[[target]]\n{lines}')
    assert said.startswith(f"FILE: target{where}")
    assert why in said


def test_a_wrong_target_in_one_word_names_its_file(refused: Refused) -> None:
    said = refused('target = ["http://a", "b:m"]')
    assert said.startswith("FILE: target b:m: neither a URL nor an engine")
    flags = {"target": ["c:m"]}
    assert refused('target = "b:m"', **flags).startswith("--target c:m: neither")


def test_a_host_and_port_in_a_file(read: Read) -> None:
    words = read('target = ["localhost:8000", "10.0.0.5:1/v1"]').targets()
    assert [each.url for each in words] == ["http://localhost:8000/v1", "http://10.0.0.5:1/v1"]
    (table,) = read('[[target]]\ntarget = "localhost:8000"\nmodel = "m"').targets()
    assert (table.url, table.name, table.model) == (words[0].url, "localhost:8000", "m")


@pytest.mark.parametrize(
    "lines",
    [
        f'api_key = "{SECRET}"',
        f'api_key = "Bearer ${{KEY}}{SECRET}"',
        f'api_key = "${{sk-{SECRET}}}"',
        f'api_key = "${{KEY}}"\nkey_env = "{SECRET}"',
        f'key_env = "{SECRET}"',
    ],
)
def test_a_key_in_a_table_is_named_and_never_written(refused: Refused, lines: str) -> None:
    said = refused(f'[[target]]\ntarget = "http://h"\n{lines}')
    assert said.startswith("FILE: target http://h: ")
    assert "never the key itself" in said
    assert "5ecret" not in said


# ---- environment variables


def test_variables_are_filled_in(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_NAME", "h")
    monkeypatch.setenv("SIZE", "q4")
    monkeypatch.setenv("EMPTY", "")
    sweep = read("""
        model = "m-${SIZE}${EMPTY}"
        client = ["wire"]
        [[target]]
        target = "http://${HOST_NAME}:1"
        name = "${HOST_NAME} $SIZE ${} {SIZE}"
        [[target]]
        target = "llamacpp:${SIZE}.gguf"
    """)
    assert sweep.model == "m-q4"
    one, other = sweep.targets()
    assert (one.url, one.name) == ("http://h:1/v1", "h $SIZE ${} {SIZE}")
    assert other.model == "q4.gguf"
    assert read('target = "http://${HOST_NAME}"').target == ["http://h"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('model = "a${NOT_SET}"', "model"),
        ('target = "http://${NOT_SET}"', "target"),
        ('target = ["http://a", "http://${NOT_SET}"]', "target"),
        ('[[target]]\ntarget = "http://a"\nca_file = "${NOT_SET}/ca"', "target.ca_file"),
    ],
)
def test_a_variable_that_is_not_set(refused: Refused, text: str, key: str) -> None:
    assert refused(text) == f"FILE: {key}: the environment variable NOT_SET is not set"


def test_flags_are_the_shells_to_fill_in() -> None:
    assert load_sweep({"model": "${NOT_SET}"}).model == "${NOT_SET}"


def test_secrets_are_not_filled_in_before_they_are_used(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    sweep = read("""
        [[target]]
        name = "it"
        command = ["serve", "{port}", "--api-key", "${MY_KEY}", "${NOT_SET}"]
        health = "/health"
        env = { TOKEN = "${MY_KEY}" }
        api_key = "${MY_KEY}"
    """)
    stored = msgspec.json.encode([sweep, sweep.targets()]).decode()
    assert SECRET not in stored
    assert stored.count("${MY_KEY}") == 5  # twice three, but the target has key_env instead
    assert sweep.targets()[0].key_env == "MY_KEY"
    assert msgspec.json.decode(msgspec.json.encode(sweep), type=Sweep) == sweep
