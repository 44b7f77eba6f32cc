"""A process of an engine: guarded, so that nothing of it outlives llmbench; its log kept."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path

from llmbench.engines import guard

STOP_TIMEOUT_S = guard.GRACE_S + 10.0
LARGEST_LINE = 2**28  # a reply of a hosted engine is one line

_LOGGED_ERROR = re.compile(r"^(?:\S+ E |\w*Error: |error: )(.+)$", re.MULTILINE)


class EngineProcess:
    """Runs ``argv`` under the guard. What it logs is appended to ``log_path``."""

    def __init__(self, argv: list[str], env: dict[str, str], log_path: Path) -> None:
        self.log_path = log_path
        self._argv = argv
        self._env = env
        self._log_start = 0
        self._lifeline: int | None = None
        self.process: Process | None = None

    async def start(self, *, pipes: bool = False) -> Process:
        """Start it; with ``pipes``, its stdin and stdout are ours to talk through."""
        watched, self._lifeline = os.pipe()
        try:
            with self.log_path.open("ab") as log:
                self._log_start = log.tell()
                self.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", guard.__file__, str(watched), *self._argv),
                    stdin=PIPE if pipes else DEVNULL,
                    stdout=PIPE if pipes else log,
                    stderr=log,
                    env=os.environ | self._env,
                    pass_fds=[watched],
                    start_new_session=True,
                    limit=LARGEST_LINE,
                )
        finally:
            os.close(watched)
        return self.process

    async def stop(self) -> None:
        """End it and all that it started, and wait until they are gone; cancelled, kill them."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self.process is None:
            return
        try:
            await asyncio.wait_for(self.process.communicate(), STOP_TIMEOUT_S)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        except asyncio.CancelledError:
            for pid in guard.descendants(self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await self.process.wait()  # the guard has nothing left to wait for
            raise

    async def ended(self) -> None:
        """Return once it has ended, and ``exited`` and ``why_it_ended`` know."""
        if self.process is not None:
            await self.process.wait()

    @property
    def exited(self) -> bool:
        return self.process is not None and self.process.returncode is not None

    def memory_bytes(self) -> int | None:
        """What its processes hold in memory, shared pages counted once (Linux: PSS)."""
        if self.process is None:
            return None
        sizes = [_memory(pid) for pid in guard.descendants(self.process.pid)]
        known = [size for size in sizes if size is not None]
        return sum(known) if known else None

    def why_it_ended(self) -> str:
        """One line: the signal that ended it, and what its log says."""
        code = self.process.returncode if self.process is not None else None
        why = last_words(self.log_path, self._log_start)
        return f"killed by {signal.Signals(-code).name}; {why}" if code and code < 0 else why


def _memory(pid: int) -> int | None:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def last_words(log_path: Path, start: int) -> str:
    """Why a process failed, from what its log holds since ``start``: one line.

    The last exception is the cause where there is one; llama.cpp's first error is; whatever else
    ends a process says so last.
    """
    with log_path.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace").strip()
    if error := _LOGGED_ERROR.search(text):
        return error[1].strip()[:300]
    return text.splitlines()[-1].strip()[:300] if text else "it logged nothing"
