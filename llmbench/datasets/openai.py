"""Requests as OpenAI's API and its batches have them, one JSON object a line."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from llmbench.datasets.fields import asked, optional_count, shown, text
from llmbench.datasets.json_rows import json_rows
from llmbench.datasets.rows import Broken, Unusable, samples
from llmbench.records import Message, Sample

LENGTHS = ("output_tokens", "max_completion_tokens", "max_tokens")
_ROLES = ("system", "developer", "user", "assistant")
_PARTS = {
    "image_url": "image",
    "input_image": "image",
    "input_audio": "audio",
    "video_url": "video",
}


def read_openai(file: BinaryIO, _columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample an object, ``{"messages": …}``, or a batch's ``{"body": {"messages": …}}``."""
    return samples(json_rows(file), sample)


def sample(row: dict[str, Any]) -> Sample:
    """The sample of one object. A reply at its end is dropped: the model is to give its own."""
    request = row["body"] if "body" in row and "messages" not in row else row
    if not isinstance(request, dict):
        raise Unusable(f"body is not an object: {shown(request)}")
    messages = _messages(request.get("messages"))
    if messages and messages[-1].role == "assistant":
        messages.pop()
    return Sample(messages=asked(messages), output_tokens=_length(request))


def _length(request: dict[str, Any]) -> int | None:
    for name in LENGTHS:
        if request.get(name) is not None:
            return optional_count(request[name], name)
    return None


def _messages(value: Any) -> list[Message]:
    if value is None:
        raise Unusable("messages is missing")
    if not isinstance(value, list):
        raise Unusable(f"messages is not a list: {shown(value)}")
    return [_message(message, f"message {n}") for n, message in enumerate(value, 1)]


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise Unusable(f"{name} is not an object: {shown(value)}")
    role = text(value.get("role"), f"the role of {name}")
    if role not in _ROLES:
        raise Unusable(
            f"{name}: role {shown(role)} is not supported; known are {', '.join(_ROLES)}"
        )
    return Message(role, _content(value.get("content"), f"the content of {name}"))


def _content(value: Any, name: str) -> str:
    if isinstance(value, list):
        return "".join(_part(part, name) for part in value)
    return text(value, name)


def _part(part: Any, name: str) -> str:
    if not isinstance(part, dict):
        raise Unusable(f"{name} has a part that is not an object: {shown(part)}")
    kind = text(part.get("type"), f"{name}: the type of a part")
    if kind != "text":
        raise Unusable(f"{name}: {_PARTS.get(kind, shown(kind))} parts are not supported")
    return text(part.get("text"), f"{name}: the text of a part")
