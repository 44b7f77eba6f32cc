"""An engine that is called through its own Python API, in a process of its own (see ``hosts``)."""

import asyncio
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from llmbench import hosts
from llmbench.engines.process import EngineProcess
from llmbench.engines.server import LOOK_S, Waiting
from llmbench.errors import Unmeasurable, UserError
from llmbench.hosts.protocol import Facts, Prompt

CANCEL_TIMEOUT_S = 30.0


class Answer(Struct):
    """What the engine made of one prompt. ``events`` are ``(at_ns, tokens, text)``."""

    id: int
    sequence: int
    received_ns: int
    events: list[tuple[int, int, str]]
    prompt_tokens: int
    finish: str
    stages: dict[str, float]
    error: str


class HostedEngine:
    """Runs the host of ``engine`` for as long as entered. ``options`` are the host's."""

    def __init__(
        self,
        name: str,
        engine: str,
        options: dict[str, Any],
        *,
        python: str,
        log_path: Path,
        progress: bool,
    ) -> None:
        self.name = name
        self.facts = Facts(engine="", model="")
        folder = str(Path(hosts.__file__).parent)
        self.process = EngineProcess([python or sys.executable, folder, engine], {}, log_path)
        self._options = options
        self._progress = progress
        self._numbers = itertools.count()
        self._waiting: dict[tuple[int, int], asyncio.Future[bytes]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        process = await self.process.start(pipes=True)
        assert process.stdout is not None
        try:
            self._send(self._options)
            self.facts = self._ready(await self._first_line(process.stdout))
            self._reader = asyncio.create_task(self._read(process.stdout))
        except BaseException:
            await self.process.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._reader is not None:
            self._reader.cancel()
        await self.process.stop()

    async def _first_line(self, lines: asyncio.StreamReader) -> bytes:
        """What the engine says when it has loaded; empty once it has ended without a word."""
        first = asyncio.create_task(lines.readline())
        try:
            with Waiting(f"loading {self.name}", self._progress) as waiting:
                while not first.done():
                    waiting.look()
                    await asyncio.wait({first}, timeout=LOOK_S)
        finally:
            first.cancel()
        if not (line := first.result()):
            await self.process.ended()
        return line

    def _ready(self, line: bytes) -> Facts:
        said = msgspec.json.decode(line) if line else {}
        if "ready" in said:
            return msgspec.convert(said["ready"], Facts)
        if "error" in said:
            raise UserError(f"{self.name}: {said['error']}")
        raise Unmeasurable(
            f"{self.name}: could not load: {self.process.why_it_ended()} "
            f"(log: {self.process.log_path})"
        )

    async def generate(
        self, api: str, prompts: Sequence[Prompt], max_tokens: int, exact: bool = True
    ) -> list[Answer]:
        """Run ``prompts`` together; their answers, in order, of ``max_tokens`` tokens each if
        ``exact``, else up to where the model ends them. Cancelled, it still takes the answers that
        the engine gives once ``cancel`` was called. Raises ``ConnectionError`` where the engine has
        died."""
        number = next(self._numbers)
        futures = [self._expect(number, sequence) for sequence in range(len(prompts))]
        self._send(
            {
                "op": "generate",
                "id": number,
                "api": api,
                "prompts": prompts,
                "max_tokens": max_tokens,
                "exact": exact,
            }
        )
        lines = await asyncio.gather(*futures)
        return [msgspec.json.decode(line, type=Answer) for line in lines]

    async def count(self, api: str, prompt: Prompt) -> int:
        """How many tokens ``prompt`` is to the model, chat template included where there is one."""
        number = next(self._numbers)
        future = self._expect(number, 0)
        self._send({"op": "count", "id": number, "api": api, "prompt": prompt})
        said = msgspec.json.decode(await future)
        if "error" in said:
            raise Unmeasurable(f"{self.name}: {said['error']}")
        return int(said["prompt_tokens"])

    def cancel(self) -> None:
        """End all that is running: each call is answered with what it has."""
        if self._waiting:
            self._send({"op": "cancel"})

    def _expect(self, number: int, sequence: int) -> "asyncio.Future[bytes]":
        if self.process.exited:
            raise ConnectionError(self._death())
        future = asyncio.get_running_loop().create_future()
        self._waiting[number, sequence] = future
        return future

    def _send(self, message: dict[str, Any]) -> None:
        process = self.process.process
        assert process is not None
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(message) + b"\n")

    async def _read(self, lines: asyncio.StreamReader) -> None:
        """Hand each answer to whoever waits for it, undecoded: there may be streams to time."""
        while line := await lines.readline():
            said = _HEAD.decode(line)
            future = self._waiting.pop((said.id, said.sequence), None)
            if future is not None and not future.done():
                future.set_result(line)
        await self.process.ended()  # from here on nothing more is asked of it
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError(self._death()))
        self._waiting.clear()

    def _death(self) -> str:
        return f"the engine has ended: {self.process.why_it_ended()}"


class _Head(Struct):
    id: int
    sequence: int = 0


_HEAD = msgspec.json.Decoder(_Head)
