"""What the user wrote of a target in one word, and what it means."""

from typing import Any

import pytest
from msgspec.structs import replace
from test_config import refusal

from llmbench.config import load_sweep
from llmbench.plan.grid import grid
from llmbench.records import Target
from llmbench.targets import is_target

SECRET = "sk-5ecret"


def target_of(spec: str, **flags: Any) -> Target:
    (target,) = load_sweep({"target": [spec]} | flags).targets()
    return target


# ---- in one word


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
        ("http://h:8000/chat/completions", "http://h:8000", "h:8000"),
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
        ("localhost:8000", "http://localhost:8000/v1", "localhost:8000"),
        ("h:8000/", "http://h:8000/v1", "h:8000"),
        ("10.0.0.5:8000/v1", "http://10.0.0.5:8000/v1", "10.0.0.5:8000"),
        ("h.example:80/api/v4", "http://h.example:80/api/v4", "h.example:80"),
        ("[::1]:8000", "http://[::1]:8000/v1", "[::1]:8000"),
        ("my_host-2:1", "http://my_host-2:1/v1", "my_host-2:1"),
        ("8:8", "http://8:8/v1", "8:8"),
    ],
)
def test_urls(spec: str, url: str, name: str) -> None:
    target = target_of(spec)
    assert (target.url, target.name, target.engine) == (url, name, "")


def test_a_host_and_port_is_the_url_that_it_lacks_the_scheme_of() -> None:
    options = "model=m&name=x&key_env=MY_KEY"
    assert target_of(f"h.example:80?{options}") == target_of(f"http://h.example:80?{options}")
    assert target_of(f"h:443/v1?{options}") == target_of(f"https://h:443/v1?{options}")
    assert target_of(f"h:1443?{options}") == target_of(f"http://h:1443?{options}")
    assert target_of("localhost:8000") == target_of("http://localhost:8000")


@pytest.mark.parametrize("word", ["llamacpp", "vllm", "vllm-server", "VLLM"])
def test_a_number_after_an_engine_is_a_model(word: str) -> None:
    target = target_of(f"{word}:8000")
    assert (target.engine, target.model, target.url) == (word.lower(), "8000", "")


@pytest.mark.parametrize(
    ("word", "reads"),
    [
        ("http://h", True),
        ("localhost:8000", True),
        ("h:8000/v1?model=m", True),
        ("[::1]:8000", True),
        ("vllm:m", True),
        ("llamacpp:a/b.gguf", True),
        ("localhost", False),
        ("runs/before", False),
        ("runs/a:8", False),
        ("C:runs", False),
        ("h:80a", False),
        ("user@h:80", False),
        ("", False),
    ],
)
def test_what_reads_as_a_target(word: str, reads: bool) -> None:
    assert is_target(word) == reads


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


@pytest.mark.parametrize("targets", [{"target": ["http://h"]}, {"target": ["vllm:m"]}, {}])
def test_the_variable_of_a_key_is_no_key(targets: dict[str, Any]) -> None:
    said = refusal(targets | {"api_key_env": SECRET})
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
        ("llamacpp:a.gguf?model=" + SECRET, "option 'model' is not for this kind of target"),
        ("h:8000?key=" + SECRET, "unknown option 'key'"),
        ("h:99999?model=" + SECRET, "the port is not a number up to 65535"),
        ("h?model=" + SECRET, "neither a URL nor an engine"),
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
            "localhost",
            "neither a URL nor an engine; write http://localhost:8000, or ENGINE:MODEL, where "
            "ENGINE is one of llamacpp, onnx, transformers, vllm, llamacpp-server, ",
        ),
        ("example.com", "write http://example.com:8000, or ENGINE:MODEL"),
        ("10.0.0.5", "write http://10.0.0.5:8000, or ENGINE:MODEL"),
        ("[::1]", "write http://[::1]:8000, or ENGINE:MODEL"),
        ("vlm:m", "write http://host:8000, or ENGINE:MODEL"),
        ("tiny-q4.gguf", "write http://host:8000, or ENGINE:MODEL"),
        ("models/a:8000", "neither a URL nor an engine"),
        ("localhost:99999", "the port is not a number up to 65535"),
        ("localhost:8000x", "neither a URL nor an engine"),
        ("http:8000", "the host is missing"),
        ("[zz]:80", "[zz]:80"),
        ("command:m", "neither a URL nor an engine"),
        ("vllm:", "name the model: vllm:MODEL, a directory or a hub id"),
        ("transformers-server:", "name the model: transformers-server:MODEL"),
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
        ("http://h?threads=2", "option 'threads' is not for this kind of target"),
        ("http://h?python=p", "option 'python' is not for this kind of target"),
        ("llamacpp:a?dtype=float16", "option 'dtype' is not for this kind of target"),
        ("llamacpp-server:a?quantization=q", "option 'quantization' is not for"),
        ("onnx:d?dtype=float16", "option 'dtype' is not for this kind of target"),
        ("vllm:m?ca_file=c", "option 'ca_file' is not for this kind of target"),
        ("vllm:m?key_env=K", "option 'key_env' is not for this kind of target"),
        ("vllm:m?command=x", "unknown option 'command'"),
        ("vllm:m?max_model_len=1.5", "max_model_len is a whole number from 1"),
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
    ("spec", "engine", "name", "model"),
    [
        ("llamacpp:", "llamacpp", "llama.cpp (in process)", ""),
        ("llamacpp-server:", "llamacpp-server", "llama.cpp (embedded)", ""),
        ("llamacpp:/models/tiny-q4.gguf", "llamacpp", "llamacpp tiny-q4", "/models/tiny-q4.gguf"),
        ("llamacpp-server:t.gguf", "llamacpp-server", "llamacpp-server t", "t.gguf"),
        ("onnx:out/int4/", "onnx", "onnx int4", "out/int4/"),
        ("vllm:HuggingFaceTB/SmolLM2", "vllm", "vllm SmolLM2", "HuggingFaceTB/SmolLM2"),
        ("vllm-server:a/m", "vllm-server", "vllm-server m", "a/m"),
        ("transformers-server:a/m", "transformers-server", "transformers-server m", "a/m"),
    ],
)
def test_engines(spec: str, engine: str, name: str, model: str) -> None:
    assert target_of(spec, api="completions") == Target(
        spec=spec, name=name, engine=engine, model=model, api="completions"
    )


def test_options_of_an_engine() -> None:
    options = "dtype=bfloat16&quantization=int8&device=cpu&threads=2&max_model_len=512&python=p"
    expected = Target(
        spec="transformers:a/m",
        name="transformers m bfloat16 int8",
        engine="transformers",
        model="a/m",
        dtype="bfloat16",
        quantization="int8",
        device="cpu",
        threads=2,
        max_model_len=512,
        python="p",
    )
    assert target_of(f"transformers:a/m?{options}") == expected
    named = target_of(f"transformers:a/m?{options}&name=mine&api=completions")
    assert named == replace(expected, name="mine", api="completions")


def test_engines_that_differ_in_what_their_name_does_not_say() -> None:
    said = refusal({"target": ["llamacpp:a.gguf?threads=1", "llamacpp:a.gguf?threads=2"]})
    assert "two targets are called llamacpp a; give each a name" in said


def test_without_a_target_it_is_the_embedded_engine() -> None:
    (target,) = load_sweep({}).targets()
    assert target == Target(
        spec="llamacpp-server:", name="llama.cpp (embedded)", engine="llamacpp-server"
    )


def test_an_engine_in_process_has_no_client_but_the_call() -> None:
    sweep = load_sweep(
        {
            "target": ["vllm:m", "http://h", "vllm-server:m"],
            "client": ["wire", "openai"],
            "concurrency": [1, 2],
        }
    )
    planned = [(each.target, each.client, each.load.concurrency) for each in grid(sweep)]
    assert planned == [
        (0, "engine", 1),
        (0, "engine", 2),
        *((n, client, load) for n in (1, 2) for load in (1, 2) for client in ("wire", "openai")),
    ]
    assert [each.cell for each in grid(sweep)] == list(range(10))
