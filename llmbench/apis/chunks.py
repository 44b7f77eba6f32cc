"""The chunks of chat and completions streams, which differ in one field, and their errors."""

from collections.abc import Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Struct

from llmbench.apis.sse import ServerSentEvent
from llmbench.records import Event, Kind, Usage


class _Delta(Struct, gc=False):
    role: str | None = None
    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(Struct, gc=False):
    """Chat puts what it says into ``delta``, completions into ``text``. Tokens without a text (an
    end token, half a character) show in ``token_ids``, or in the ``token_count`` of an engine in
    process."""

    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    token_count: int | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    object: Any = None
    timings: Any = None


_DECODER = msgspec.json.Decoder(_Chunk)

# Looked up for every event.
_ROLE, _REASONING, _ANSWER, _TOOL = Kind.ROLE, Kind.REASONING, Kind.ANSWER, Kind.TOOL
_USAGE, _FINISH, _GENERATED = Kind.USAGE, Kind.FINISH, Kind.GENERATED

DONE = b"[DONE]"
MALFORMED = "malformed chunk: "


class _StreamError(Exception):
    """A chunk says that something went wrong."""


def decode(data: bytes, name: str = "") -> Event:
    """What one event carries. Reasoning and tool calls are generated tokens too."""
    if data == DONE:
        return Event(Kind.DONE)
    if name == "error":
        return Event(Kind.ERROR, error=error_message(data))
    try:
        return _event(_DECODER.decode(data))
    except UnicodeDecodeError:  # the standard has what is not UTF-8 replaced
        return decode(data.decode("utf-8", "replace").encode(), name)
    except (msgspec.DecodeError, RecursionError) as problem:
        return Event(Kind.ERROR, error=f"{MALFORMED}{problem}")
    except _StreamError:
        return Event(Kind.ERROR, error=error_message(data))


def decode_all(events: Sequence[ServerSentEvent]) -> list[Event]:
    """``decode`` for each of a reply's ``events``: their JSON is parsed in one go, or one by one
    where any of it is out of the ordinary."""
    done = bool(events) and events[-1][1] == DONE
    plain = events[:-1] if done else events
    try:
        chunks = _DECODER.decode_lines(b"\n".join([data for _, data, _ in plain]))
        if len(chunks) == len(plain) and not any(map(_NAME, plain)):
            told = list(map(_event, chunks))
            return [*told, Event(Kind.DONE)] if done else told
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _StreamError):
        pass
    return [decode(data, name) for _, data, name in events]


_NAME = itemgetter(2)


def _event(chunk: _Chunk) -> Event:
    """What ``chunk`` carries. Raises ``_StreamError`` for an error."""
    if chunk.error or chunk.object == "error":
        raise _StreamError
    kind, text, finish, tokens = 0, "", "", None
    for choice in chunk.choices or ():
        delta = choice.delta
        if delta is None:
            if choice.text:
                kind |= _ANSWER
                text += choice.text
        else:
            if delta.role:
                kind |= _ROLE
            if reasoning := delta.reasoning_content or delta.reasoning:
                kind |= _REASONING
                text += reasoning
            if content := delta.content or delta.refusal:
                kind |= _ANSWER
                text += content if isinstance(content, str) else ""
            if delta.tool_calls:
                kind |= _TOOL
        if choice.finish_reason:
            kind |= _FINISH
            finish = choice.finish_reason
        if choice.token_ids is not None:
            tokens = len(choice.token_ids)
        elif choice.token_count is not None:
            tokens = choice.token_count
        if tokens and not kind & _GENERATED:
            kind |= _ANSWER
    usage, timings = chunk.usage, chunk.timings
    if usage is not None:
        kind |= _USAGE
    if timings is not None and not isinstance(timings, dict):
        timings = None
    return Event(kind, text, tokens, usage, finish, "", timings)


def error_message(body: bytes) -> str:
    """One line of what a server said went wrong: out of the JSON shapes in use, or its text."""
    said: Any = body.decode("utf-8", "replace")
    with suppress(msgspec.DecodeError, RecursionError):
        said = msgspec.json.decode(said)
    for key in ("error", "message", "detail"):
        if isinstance(said, list) and said:
            said = said[0]
        if isinstance(said, dict) and said.get(key):
            said = said[key]
    if isinstance(said, list) and said:
        said = said[0]
    if isinstance(said, dict):
        said = said.get("message") or said.get("msg") or said.get("type") or said
    line = " ".join("".join(char if char.isprintable() else " " for char in str(said)).split())
    return line if len(line) <= 200 else line[:199] + "…"
