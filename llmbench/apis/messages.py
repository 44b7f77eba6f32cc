"""Anthropic Messages: ``POST /messages``. Its counts come in two parts, at both ends."""

from collections.abc import Sequence
from typing import Any

import msgspec

from llmbench.apis import typed
from llmbench.apis.api import Api, bearer
from llmbench.apis.chunks import DONE
from llmbench.apis.dialect import Dialect, options
from llmbench.apis.ending import EndMarker
from llmbench.apis.server_times import with_server_times
from llmbench.apis.sse import ServerSentEvent
from llmbench.errors import UserError
from llmbench.records import Content, Event, Kind, Message

VERSION = "2023-06-01"
"""The version of the API that is taken everywhere."""

DIALECTS = (
    Dialect(name="standard", limit="max_tokens", fields={"temperature": 0}),
    # Recent models take no temperature.
    Dialect(name="bare", limit="max_tokens", fields={}),
)
"""No server has a field for an exact length here."""


def encode(
    model: str, messages: Sequence[Message], output_tokens: int, dialect: Dialect, content: Content
) -> bytes:
    """The request's JSON document. A system prompt stands apart from the messages."""
    if not all(message.is_plain for message in messages):
        raise UserError("messages are sent texts alone, no images and no tools: ask --api chat")
    system = "\n\n".join(message.text for message in messages if message.role in _SYSTEM)
    said = [
        {"role": message.role, "content": message.text}
        for message in messages
        if message.role not in _SYSTEM
    ]
    fields = {"model": model, "messages": said} | ({"system": system} if system else {})
    return msgspec.json.encode(fields | options(dialect, output_tokens, content))


_SYSTEM = ("system", "developer")


def headers(key: str) -> dict[str, str]:
    """The version, and the key in both ways: Anthropic reads ``x-api-key``, vLLM ``Bearer``."""
    keys = {"x-api-key": key, **bearer(key)} if key else {}
    return {"anthropic-version": VERSION, **keys}


_PIECES = {
    "text_delta": (Kind.ANSWER, "text"),
    "thinking_delta": (Kind.REASONING, "thinking"),
    "input_json_delta": (Kind.TOOL, "partial_json"),
}
_BLOCKS = {"text": (Kind.ANSWER, "text"), "thinking": (Kind.REASONING, "thinking")}
_TOOLS = ("tool_use", "server_tool_use", "mcp_tool_use")

_FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class _Reply:
    """Decodes the events of one reply, in order."""

    def __init__(self) -> None:
        self._counts: dict[str, Any] = {}
        self._finish = ""
        self._silent_tools: set[str] = set()  # blocks of tool calls whose arguments have not begun

    def event(self, data: bytes, name: str) -> Event:
        if data == DONE:  # of gateways that end every stream so
            return self._stop()
        try:
            said = typed.read(data)
        except typed.Malformed as problem:
            return typed.failed(data) if name == "error" else typed.malformed(problem)
        kind = typed.word(said, "type") or name
        if kind == "message":
            return self._whole(said)
        if "error" in (kind, name) or said.get("error"):
            return typed.failed(said)
        match kind:
            case "message_start":
                self._count(typed.under(said, "message", "usage"))
                # Its output_tokens stand for nothing yet: replies begin with 0, 1 or more.
                self._counts.pop("output_tokens", None)
                return Event(Kind.ROLE | Kind.USAGE, usage=self._usage())
            case "content_block_start":
                return self._start_block(said)
            case "content_block_delta":
                return self._piece(said)
            case "content_block_stop":
                return self._stop_block(said)
            case "message_delta":
                reason = typed.word(said, "delta", "stop_reason")
                self._finish = _FINISHES.get(reason, reason) or self._finish
                self._count(said.get("usage"))
                return Event(Kind.USAGE, usage=self._usage())
            case "message_stop":
                return self._stop()
            case _:
                return typed.NOTHING

    def _whole(self, message: dict[str, Any]) -> Event:
        """A reply that came whole, and not as a stream."""
        self._count(message.get("usage"))
        reason = typed.word(message, "stop_reason")
        said = typed.text(message.get("content"))
        kind = Kind.USAGE | Kind.FINISH | Kind.DONE | (Kind.ANSWER if said else 0)
        return Event(kind, said, usage=self._usage(), finish=_FINISHES.get(reason, reason))

    def _start_block(self, said: dict[str, Any]) -> Event:
        block = said.get("content_block")
        kind = typed.word(block, "type")
        if kind in _TOOLS:
            self._silent_tools.add(_block(said))
        if kind in _BLOCKS:
            what, key = _BLOCKS[kind]
            return typed.generated(what, typed.under(block, key))
        return typed.NOTHING

    def _piece(self, said: dict[str, Any]) -> Event:
        kind = typed.word(said, "delta", "type")
        if kind not in _PIECES:  # signatures and citations are no tokens
            return typed.NOTHING
        what, key = _PIECES[kind]
        piece = typed.generated(what, typed.under(said, "delta", key))
        if piece.kind:
            self._silent_tools.discard(_block(said))
        return piece

    def _stop_block(self, said: dict[str, Any]) -> Event:
        """The end of a block: of a tool call without arguments, it is the first that is known."""
        if _block(said) in self._silent_tools:
            self._silent_tools.discard(_block(said))
            return Event(Kind.TOOL)
        return typed.NOTHING

    def _stop(self) -> Event:
        """The end. A stop reason without it is no end: the reply was cut."""
        return Event(Kind.FINISH | Kind.DONE, finish=self._finish)

    def _count(self, stated: Any) -> None:
        """Keep the counts that are ``stated``; each stands until another takes its place."""
        if isinstance(stated, dict):
            self._counts |= {key: value for key, value in stated.items() if value is not None}

    def _usage(self) -> Any:
        """The counts so far. A prompt's tokens are those computed and those cached."""
        counts = self._counts
        computed = typed.count(counts.get("input_tokens"))
        read = typed.count(counts.get("cache_read_input_tokens"))
        written = typed.count(counts.get("cache_creation_input_tokens"))
        return typed.usage(
            prompt=None if computed is None else computed + (read or 0) + (written or 0),
            completion=counts.get("output_tokens"),
            cached=read,
            reasoning=typed.under(counts, "output_tokens_details", "thinking_tokens"),
        )


def _block(said: dict[str, Any]) -> str:
    """Which block of the reply an event is about."""
    return str(said.get("index"))


def decode(events: Sequence[ServerSentEvent]) -> list[Event]:
    """What each of a reply's ``events`` carries."""
    reply = _Reply()
    return [reply.event(data, name) for _, data, name in events]


API = Api(
    path="/messages",
    encode=encode,
    decode=with_server_times(decode),
    dialects=DIALECTS,
    end_marker=EndMarker(b"event", (b"message_stop",)),
    headers=headers,
    effort=lambda effort: {"output_config": {"effort": effort}},
)
