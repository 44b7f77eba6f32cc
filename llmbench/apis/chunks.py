"""What chat and completions chunks have in common: usage and errors."""

from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from llmbench.records import Event, Kind, Usage


class Chunk(Struct):
    """The part of a chunk that does not depend on the API."""

    usage: Usage | None = None
    error: Any = None
    object: Any = None


C = TypeVar("C", bound=Chunk)

MALFORMED = "malformed chunk: "


def parse_chunk(decoder: msgspec.json.Decoder[C], data: bytes, name: str) -> C | Event:
    """The typed chunk, or the event that stands for ``[DONE]``, an error or a malformed chunk."""
    if data == b"[DONE]":
        return Event(Kind.DONE)
    if name == "error":
        return Event(Kind.ERROR, error=error_message(data))
    try:
        chunk = decoder.decode(data)
    except UnicodeDecodeError:  # the standard has what is not UTF-8 replaced
        return parse_chunk(decoder, data.decode("utf-8", "replace").encode(), name)
    except (msgspec.DecodeError, RecursionError) as problem:
        return Event(Kind.ERROR, error=f"{MALFORMED}{problem}")
    if chunk.error or chunk.object == "error":
        return Event(Kind.ERROR, error=error_message(data))
    return chunk


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
