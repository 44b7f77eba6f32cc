"""A server that llmbench starts, waits for, and ends."""

import asyncio
import os
import re
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin

import aiohttp
from tqdm import tqdm

from llmbench.config import environment
from llmbench.engines.commands import Command
from llmbench.engines.process import EngineProcess
from llmbench.errors import Unmeasurable

READY_TIMEOUT_S = 1800.0
LOOK_S = 0.1
ANSWER_TIMEOUT_S = 5.0


class ManagedServer:
    """Runs ``command`` for as long as entered; ``url`` is where it answers, ``/v1`` and all.

    Entered, it has answered ``command.health`` with 200; ``ready_s`` is how long that took. Raises
    ``Unmeasurable`` with one line where it ends before, or does not within ``READY_TIMEOUT_S``.
    """

    def __init__(self, name: str, command: Command, url: str, log_path: Path, progress: bool):
        self.name = name
        self.url = url
        self.model = command.model
        self.ready_s = 0.0
        self.process = EngineProcess(
            [_filled(each, name) for each in command.argv],
            {key: _filled(value, name) for key, value in command.env.items()},
            log_path,
        )
        self._health = urljoin(url, command.health)
        self._progress = progress

    async def __aenter__(self) -> Self:
        began_s = time.monotonic()
        try:
            await self.process.start()
            await self._ready(began_s)
        except BaseException:
            await self.process.stop()
            raise
        self.ready_s = time.monotonic() - began_s
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.process.stop()

    async def _ready(self, began_s: float) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        with Waiting(f"starting {self.name}", self._progress) as waiting:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                while not await self._healthy(session):
                    if self.process.exited:
                        raise self._failed("ended before it was ready: ")
                    if time.monotonic() - began_s > READY_TIMEOUT_S:
                        raise self._failed(f"not ready within {READY_TIMEOUT_S:g} s: ")
                    waiting.look()
                    await asyncio.sleep(LOOK_S)

    async def _healthy(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(self._health) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _failed(self, what: str) -> Unmeasurable:
        log = self.process.log_path
        return Unmeasurable(f"{self.name}: {what}{self.process.why_it_ended()} (log: {log})")


class Waiting:
    """One moving line on stderr, on a terminal, while something takes its time."""

    def __init__(self, label: str, shown: bool) -> None:
        self._bar: Any = tqdm(
            desc=label,
            file=sys.stderr,
            leave=False,
            disable=not shown,
            bar_format="{desc} {elapsed}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def look(self) -> None:
        self._bar.refresh()


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _filled(text: str, name: str) -> str:
    """``text`` with each ``${NAME}`` replaced by that environment variable."""
    return re.sub(r"\$\{(\w+)\}", lambda match: environment(match[1], name), text)


def in_environment(python: str) -> dict[str, str]:
    """The PATH that activating the environment of ``python`` would set: compilers and tools."""
    folder = str(Path(python).absolute().parent)
    return {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
