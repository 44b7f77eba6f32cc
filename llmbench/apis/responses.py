"""OpenAI Responses: ``POST /responses``. Every event says its ``type``; the last one holds all."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from llmbench.apis import typed
from llmbench.apis.api import Api
from llmbench.apis.chunks import DONE
from llmbench.apis.dialect import Dialect, options
from llmbench.apis.ending import EndMarker
from llmbench.apis.server_times import with_server_times
from llmbench.apis.sse import ServerSentEvent
from llmbench.errors import UserError
from llmbench.records import Content, Event, Kind, Message

_STREAM = {"stream_options": {"include_obfuscation": False}, "store": False}

DIALECTS = (
    # vLLM and llama.cpp take fields that OpenAI does not have.
    Dialect(
        name="exact",
        limit="max_output_tokens",
        fields={"temperature": 0, "ignore_eos": True, "cache_prompt": False, **_STREAM},
        exact_length=True,
    ),
    Dialect(name="standard", limit="max_output_tokens", fields={"temperature": 0, **_STREAM}),
    # Reasoning models take no temperature.
    Dialect(name="reasoning", limit="max_output_tokens", fields=_STREAM),
    Dialect(name="bare", limit="max_output_tokens", fields={}),
)


def encode(
    model: str, messages: Sequence[Message], output_tokens: int, dialect: Dialect, content: Content
) -> bytes:
    """The request's JSON document. llama.cpp reads an assistant's words only with a ``type``."""
    if not all(message.is_plain for message in messages):
        raise UserError("responses are sent texts alone, no images and no tools: ask --api chat")
    said = [
        {"type": "message", "role": message.role, "content": message.text} for message in messages
    ]
    return msgspec.json.encode(
        {"model": model, "input": said} | options(dialect, output_tokens, content)
    )


# What an event adds, by its type less ".delta" or ".done", and where a ".done" has the whole of it.
_PIECES = {
    "response.output_text": (Kind.ANSWER, "text"),
    "response.refusal": (Kind.ANSWER, "refusal"),
    "response.reasoning_text": (Kind.REASONING, "text"),
    "response.reasoning_summary_text": (Kind.REASONING, "text"),
    "response.function_call_arguments": (Kind.TOOL, "arguments"),
    "response.mcp_call_arguments": (Kind.TOOL, "arguments"),
    "response.custom_tool_call_input": (Kind.TOOL, "input"),
    "response.code_interpreter_call_code": (Kind.TOOL, "code"),
}

_ENDS = ("completed", "incomplete", "failed", "cancelled")
_FINISHES = {"max_output_tokens": "length", "max_tokens": "length"}


class _Reply:
    """Decodes the events of one reply, in order."""

    def __init__(self) -> None:
        self._begun: set[tuple[str, str]] = set()  # what came in pieces: kinds of piece, and items

    def event(self, data: bytes, name: str) -> Event:
        if data == DONE:
            return Event(Kind.DONE)
        try:
            said = typed.read(data)
        except typed.Malformed as problem:
            return typed.failed(data) if name == "error" else typed.malformed(problem)
        if said.get("object") == "response" and not said.get("error"):
            return _end(said, "completed", _text_of(said))  # it came whole, and not as a stream
        kind = typed.word(said, "type") or name
        if "error" in (kind, name) or said.get("error"):
            return typed.failed(said)
        what, _, step = kind.rpartition(".")
        if what in _PIECES:
            return self._piece(said, what, step)
        if what == "response" and step in _ENDS:
            return _end(said.get("response"), step)
        return typed.NOTHING

    def _piece(self, said: dict[str, Any], what: str, step: str) -> Event:
        """A piece of text, or the whole of one that came without pieces."""
        kind, whole = _PIECES[what]
        item = what, str(said.get("item_id"))
        if step == "delta":
            logprobs = said.get("logprobs")
            tokens = len(logprobs) if isinstance(logprobs, list) and logprobs else None
            piece = typed.generated(kind, said.get("delta"), tokens)
            if piece.kind:
                self._begun.add(item)
            return piece
        if step == "done" and item not in self._begun:
            self._begun.add(item)
            return typed.generated(kind, said.get(whole))
        return typed.NOTHING


def _end(response: Any, step: str, text: str = "") -> Event:
    """The end of a ``response``. vLLM calls it completed, whatever became of it: its status
    knows."""
    status = typed.word(response, "status")
    status = status if status in _ENDS else step
    if status in ("failed", "cancelled"):
        problem = typed.under(response, "error")
        return typed.failed({"error": problem or f"the server says that the reply is {status}"})
    counts = typed.under(response, "usage")
    used = typed.usage(
        prompt=typed.under(counts, "input_tokens"),
        completion=typed.under(counts, "output_tokens"),
        cached=typed.under(counts, "input_tokens_details", "cached_tokens"),
        reasoning=typed.under(counts, "output_tokens_details", "reasoning_tokens"),
        total=typed.under(counts, "total_tokens"),
    )
    kind = Kind.FINISH | Kind.DONE | (Kind.USAGE if counts else 0) | (Kind.ANSWER if text else 0)
    return Event(kind, text, usage=used if counts else None, finish=_finish(response, status))


def _text_of(response: dict[str, Any]) -> str:
    """The answer in a whole ``response``."""
    output = response.get("output")
    items = output if isinstance(output, list) else []
    return "".join(typed.text(typed.under(item, "content")) for item in items if _is_said(item))


def _is_said(item: Any) -> bool:
    return typed.word(item, "type") == "message"


def _finish(response: Any, status: str) -> str:
    """Why the reply ended, in the words of chat completions; empty where nobody says."""
    if status == "incomplete":
        reason = typed.word(response, "incomplete_details", "reason")
        return _FINISHES.get(reason, reason) or "length"
    # llama.cpp calls a reply completed that it cut at its limit. It repeats no limit either.
    known = isinstance(response, dict) and "max_output_tokens" in response
    return "stop" if known else ""


def decode(events: Sequence[ServerSentEvent]) -> list[Event]:
    """What each of a reply's ``events`` carries. Its tokens are counted by their logprobs where all
    that was generated has some."""
    reply = _Reply()
    told = [reply.event(data, name) for _, data, name in events]
    pieces = [event for event in told if event.kind & Kind.GENERATED]
    counted = [event for event in pieces if event.tokens is not None]
    if counted and len(counted) < len(pieces):
        told = [replace(event, tokens=None) for event in told]
    return told


API = Api(
    path="/responses",
    encode=encode,
    decode=with_server_times(decode),
    dialects=DIALECTS,
    end_marker=EndMarker(b"event", tuple(f"response.{end}".encode() for end in _ENDS)),
    effort=lambda effort: {"reasoning": {"effort": effort}},
    sdk="responses.create",
)
