"""The client of an engine in process: calls go to it as they are, and its own stamps come back.

The clock of a request starts when the engine has been handed it and each token is stamped where it
is made, in the engine's process, on the clock that all processes of a machine share. What the
engine says is written down as the event stream that a server would have sent, one read an event:
whatever reads a trace need not know the difference.
"""

import asyncio
import time
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from llmbench.drive.client import sleep_until
from llmbench.drive.clock import Clock
from llmbench.engines.hosted import CANCEL_TIMEOUT_S, Answer, HostedEngine
from llmbench.hosts.protocol import Prompt
from llmbench.records import Call, Reads, Trace


class EngineClient:
    """Calls ``engine``; its requests are those that the ``api`` would post."""

    settle = None

    def __init__(self, engine: HostedEngine, api: str, timeout_s: float, clock: Clock) -> None:
        self._engine = engine
        self._api = api
        self._timeout_s = timeout_s
        self._clock = clock

    async def open(self) -> None: ...

    async def prepare(self, stream: int) -> None: ...

    def expect(self, due_ns: int) -> None: ...

    def wait(self, until_ns: int) -> None:
        sleep_until(until_ns)

    async def exchange(self, call: Call) -> Trace:
        return (await self.exchange_batch([call]))[0]

    async def exchange_batch(self, calls: Sequence[Call]) -> list[Trace]:
        """Run ``calls`` together, as one static batch; their traces, in order."""
        asked = [msgspec.json.decode(call.body) for call in calls]
        prompts = [_prompt(each) for each in asked]
        tokens, exact = asked[0]["max_tokens"], asked[0].get("ignore_eos", False)
        asked_ns = time.monotonic_ns()
        task = asyncio.ensure_future(self._engine.generate(self._api, prompts, tokens, exact))
        error = detail = ""
        answers: list[Answer] = []
        try:
            answers = await asyncio.wait_for(asyncio.shield(task), self._timeout_s)
        except TimeoutError:
            error, detail = "timeout", f"no end of the reply within {self._timeout_s:g} s"
            task.cancel()
        except ConnectionError as problem:
            error, detail = "engine", str(problem)
        except asyncio.CancelledError:
            error, answers = "cancelled", await self._cancelled(task)
        if answers:
            pairs = zip(calls, answers, strict=True)
            return [_trace(call, answer, self._clock.zero_ns) for call, answer in pairs]
        return [_nothing(call, asked_ns, self._clock.zero_ns, error, detail) for call in calls]

    async def _cancelled(self, task: "asyncio.Future[list[Answer]]") -> list[Answer]:
        self._engine.cancel()
        try:
            return await asyncio.wait_for(task, CANCEL_TIMEOUT_S)
        except (TimeoutError, ConnectionError, asyncio.CancelledError):
            return []

    async def close(self) -> None: ...


def _prompt(asked: dict[str, Any]) -> Prompt:
    """What a request to either API gives the model: messages, or a text."""
    prompt: Prompt = asked["messages"] if "messages" in asked else asked["prompt"]
    return prompt


def _trace(call: Call, answer: Answer, zero_ns: int) -> Trace:
    pieces, at_ns, tokens = [], array("q"), 0
    for stamp_ns, count, text in answer.events:
        tokens += count
        choice = {"delta": {"content": text}, "token_count": count}
        pieces.append(_event({"choices": [choice], "usage": _usage(answer, tokens)}))
        at_ns.append(stamp_ns - answer.received_ns)
    over_ns = time.monotonic_ns() - answer.received_ns
    if not answer.error:
        timings = {_TIMINGS.get(stage, stage): ms for stage, ms in answer.stages.items()}
        last = {"choices": [{"delta": {}, "finish_reason": answer.finish}], "timings": timings}
        pieces.append(_event(last) + b"data: [DONE]\n\n")
        at_ns.append(at_ns[-1] if at_ns else over_ns)
    zeros = array("q", bytes(8 * len(at_ns)))
    return Trace(
        cell=call.cell,
        index=call.index,
        stream=call.stream,
        phase=call.phase,
        request_id=call.request_id,
        sent_ns=answer.received_ns - zero_ns,
        end_ns=over_ns,
        status=200,
        headers={"content-type": "text/event-stream"},
        error=answer.error and ("cancelled" if answer.error == "cancelled" else "engine"),
        detail="" if answer.error == "cancelled" else answer.error,
        stamps="engine",
        reads=Reads(_ends(pieces), at_ns, zeros, zeros),
        body=b"".join(pieces),
    )


_TIMINGS = {"prefill_ms": "prompt_ms", "decode_ms": "predicted_ms"}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _usage(answer: Answer, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": tokens}


def _ends(pieces: Sequence[bytes]) -> "array[int]":
    ends, end = array("q"), 0
    for piece in pieces:
        end += len(piece)
        ends.append(end)
    return ends


def _nothing(call: Call, asked_ns: int, zero_ns: int, error: str, detail: str) -> Trace:
    """The trace of a call that was never answered."""
    return Trace(
        cell=call.cell,
        index=call.index,
        stream=call.stream,
        phase=call.phase,
        request_id=call.request_id,
        sent_ns=asked_ns - zero_ns,
        end_ns=time.monotonic_ns() - asked_ns,
        error=error,
        detail=detail,
        stamps="engine",
    )
