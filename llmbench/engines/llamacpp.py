"""The embedded engine: llama.cpp in a process of its own, measured over HTTP like any server."""

import asyncio
import json
import os
import re
import signal
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from llmbench.engines.models import OWN_FILE, embedded_model
from llmbench.errors import Unmeasurable, UserError

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0

_FILE_NAME = re.compile(
    r"(?P<model>.+?)"
    r"(?:[._-](?P<quantization>(?:I?Q|TQ)\d\w*|BF16|FP?16|FP?32|MXFP4\w*))?"
    r"(?:-\d{5}-of-\d{5})?",
    re.IGNORECASE,
)
_FTYPE = re.compile(r"(?:all |mostly )?(\w+)(?: - (Small|Medium|Large))?(?: - [\d.]+ bpw)?")
_LOGGED_ERROR = re.compile(r"^\S+ E (.+)$", re.MULTILINE)


class LlamaCpp:
    """Runs llama.cpp's server with ``model_path``, or the embedded model, for as long as entered.

    ``parallel`` requests are served at once, each with ``context`` tokens of prompt and reply.
    ``threads`` is left to llama.cpp when ``None``. Its log is appended to ``log_path``. Once
    entered, ``url`` is the API's base (it ends in ``/v1``), ``model`` the name it answers to,
    ``load_s`` how long loading took, and ``quantization`` that of the file, if it is known.

    Entering raises ``UserError`` for a missing extra or a wrong file, and ``Unmeasurable`` where
    the model cannot be fetched or the server does not start.
    """

    def __init__(
        self,
        model_path: Path | None = None,
        *,
        parallel: int = 32,
        context: int = 512,
        threads: int | None = None,
        log_path: Path,
        progress: bool = False,
    ) -> None:
        self.parallel = parallel
        self.context = context
        self.threads = threads
        self.log_path = log_path
        self.url = ""
        self.version = ""
        self.model = ""
        self.quantization: str | None = None
        self.load_s = 0.0
        self.pid = 0
        self.size_bytes = 0
        self._model_path = model_path
        self._progress = progress
        self._log_start = 0
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        if find_spec("xllamacpp") is None:
            raise UserError("the embedded engine needs xllamacpp: pip install 'llmbench[local]'")
        path = self._model_path
        if path is None:
            path = await asyncio.to_thread(embedded_model, progress=self._progress)
        self.size_bytes = check_gguf(path)
        self.model, named = parse_name(path)
        process = self._process = await self._start(path)
        self.pid = process.pid
        try:
            ready = json.loads(await self._ready_line(process, path))
        except BaseException:
            await self._stop(process)
            raise
        self.url = ready["url"]
        self.version = ready["version"]
        self.load_s = ready["load_s"]
        self.quantization = quantization_of(ready["ftype"], named)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            await self._stop(self._process)

    async def _start(self, path: Path) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "llmbench.engines.llamacpp_server"]
        command += [f"--model={path}", f"--alias={self.model}"]
        command += [f"--parallel={self.parallel}", f"--context={self.context}"]
        if self.threads is not None:
            command.append(f"--threads={self.threads}")
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    async def _ready_line(self, process: asyncio.subprocess.Process, path: Path) -> bytes:
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), READY_TIMEOUT_S)
            if line:
                return line
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            problem = "could not load"
        except TimeoutError:
            problem = f"did not within {READY_TIMEOUT_S:g} s load"
        why = _last_words(self.log_path, self._log_start)
        if process.returncode is not None and process.returncode < 0:
            why = f"killed by {signal.Signals(-process.returncode).name}; {why}"
        raise Unmeasurable(f"llama.cpp {problem} {path}: {why} (log: {self.log_path})")

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        """End the server: SIGTERM and a closed stdin, and SIGKILL for one that hears neither."""
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.communicate(), STOP_TIMEOUT_S)
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def check_gguf(path: Path) -> int:
    """The size in bytes of the GGUF file at ``path``. Raises ``UserError`` if it isn't one."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            size_bytes = os.fstat(file.fileno()).st_size
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise UserError(f"cannot read the model file {path}: {reason}; {OWN_FILE}") from problem
    if magic != b"GGUF":
        raise UserError(f"not a GGUF file: {path} (it starts with {magic!r}); {OWN_FILE}")
    return size_bytes


def parse_name(path: Path) -> tuple[str, str | None]:
    """The model and the quantization that a file is named after: ``foo.Q4_K_M.gguf``."""
    match = _FILE_NAME.fullmatch(path.name.removesuffix(".gguf"))
    assert match is not None  # any name that isn't empty does
    quantization = match["quantization"]
    return match["model"], quantization.upper() if quantization else None


def quantization_of(ftype: str, named: str | None) -> str | None:
    """The quantization in the words that file names use, from what the file itself says.

    ``Q4_K - Medium`` is ``Q4_K_M``. Where llama.cpp guesses or has no plain word for it, the name
    decides, and its own words are the last resort.
    """
    match = _FTYPE.fullmatch(ftype)
    if match is None:
        return named or ftype or None
    size = match[2]
    return f"{match[1]}_{size[0]}" if size else match[1]


def _last_words(log_path: Path, start: int) -> str:
    """Why the server failed, from what its log holds since ``start``: one line.

    llama.cpp's first error is the cause and those after it are its consequences; whatever else
    ends a process says so last.
    """
    with log_path.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace").strip()
    if error := _LOGGED_ERROR.search(text):
        return error[1].strip()
    return text.splitlines()[-1].strip() if text else "it logged nothing"
