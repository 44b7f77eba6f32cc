"""Conversations, in whatever words a file has them: ``role`` and ``content``, ``from`` and
``value``, or a mixture."""

from collections.abc import Mapping
from typing import Any

import msgspec

from llmbench.datasets.fields import optional_count, shown, text
from llmbench.datasets.names import OUTPUT_TOKENS, SYSTEMS, plain
from llmbench.datasets.rows import Unusable
from llmbench.records import Message

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "prompter": "user",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
}
_SYSTEMS = tuple(map(plain, SYSTEMS))
_SPEAKERS = ("role", "from", "speaker", "author")
_WORDS = ("content", "value", "text", "message")
_ALONG = ("name", "tool_calls", "tool_call_id", "reasoning_content")
TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
"""The fields of a request that are about tools."""


def messages(value: Any, name: str, unit: str) -> list[Message]:
    """The messages of a conversation, ``value``; ``unit`` is what one of them is called."""
    value = unpacked(value, name)
    if value is None:
        raise Unusable(f"{name} is missing")
    if not isinstance(value, list):
        raise Unusable(f"{name} is not a list: {shown(value)}")
    return [_message(each, f"{unit} {n}") for n, each in enumerate(value, 1)]


def unpacked(value: Any, name: str) -> Any:
    """``value``; where it is JSON in a text, as cells of tables have it, what that says."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        raise Unusable(f"{name} is not JSON: {shown(value)}") from None


def to_be_answered(said: list[Message], row: Mapping[str, Any]) -> list[Message]:
    """``said``, which must end with words for the model to answer; before it the system prompt that
    stands in ``row`` beside the conversation, where one does."""
    if not any(message.role == "user" for message in said):
        raise Unusable("there is no message of the user's")
    last = said[-1]
    if last.role not in ("user", "tool"):
        raise Unusable(f"the last message is of role '{last.role}', not 'user'")
    if isinstance(last.content, str) and not last.content.strip():
        raise Unusable("the last message is empty")
    prompt = next((row[name] for name in row if plain(name) in _SYSTEMS), None)
    if isinstance(prompt, str) and prompt.strip() and said[0].role not in ("system", "developer"):
        return [Message("system", text(prompt, "the system prompt")), *said]
    return said


def tools(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request about the tools that the model may call."""
    found = {name: unpacked(row[name], name) for name in TOOLS if row.get(name) is not None}
    if not found.get("tools"):
        return {}
    if not isinstance(found["tools"], list):
        raise Unusable(f"tools is not a list: {shown(found['tools'])}")
    _check_text(found, "tools")
    return found


def output_tokens(row: Mapping[str, Any]) -> int | None:
    """How long the reply is to be, by the name that comes first in ``OUTPUT_TOKENS``."""
    named = {plain(name): name for name in row if row[name] is not None}
    name = next((named[each] for each in OUTPUT_TOKENS if each in named), None)
    return None if name is None else optional_count(row[name], name)


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise Unusable(f"{name} is not an object: {shown(value)}")
    role = _role(value, name)
    along = {key: value[key] for key in _ALONG if value.get(key) is not None}
    for key in ("name", "tool_call_id", "reasoning_content"):
        if key in along:
            text(along[key], f"the {key} of {name}")
    if "tool_calls" in along:
        along["tool_calls"] = _objects(along["tool_calls"], f"the tool_calls of {name}")
    return Message(role, _content(value, name, bool(along.get("tool_calls"))), **along)


def _role(value: dict[str, Any], name: str) -> str:
    key = next((key for key in _SPEAKERS if value.get(key) is not None), _SPEAKERS[0])
    speaker = text(value.get(key), f"the {key} of {name}")
    if (role := ROLES.get(speaker.lower())) is None:
        raise Unusable(f"{name}: {shown(speaker)} is not a speaker; known are {', '.join(ROLES)}")
    return role


def _content(
    value: dict[str, Any], name: str, may_be_silent: bool
) -> str | list[dict[str, Any]] | None:
    """The words of a message, or its parts. Parts that are plain texts are joined as they are."""
    key = next((key for key in _WORDS if value.get(key) is not None), None)
    if key is None:
        if may_be_silent:
            return None
        key = next((key for key in _WORDS if key in value), _WORDS[0])
    content, where = value.get(key), f"the {key} of {name}"
    if not isinstance(content, list):
        return text(content, where)
    parts = [_part(part, where) for part in _objects(content, where)]
    if not parts:
        raise Unusable(f"{where} is empty")
    if all(part["type"] == "text" and len(part) == 2 for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    """A part as the chat API takes it. Only those of the Responses API are put into its words."""
    part = {key: value for key, value in part.items() if value is not None}  # as Parquet has them
    kind = text(part.get("type"), f"{where}: the type of a part")
    if kind in ("text", "input_text", "output_text"):
        text(part.get("text"), f"{where}: the text of a part")
        return part | {"type": "text"}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        image = {"url": part["image_url"]} | {k: part[k] for k in ("detail",) if k in part}
        return {"type": "image_url", "image_url": image}
    if kind in ("image_url", "input_audio", "video_url", "audio_url", "file") and kind not in part:
        raise Unusable(f"{where}: a part of type {kind} has no {kind}")
    return part


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    value = unpacked(value, name)
    if not isinstance(value, list):
        raise Unusable(f"{name} is not a list: {shown(value)}")
    for each in value:
        if not isinstance(each, dict):
            raise Unusable(f"{name} has a part that is not an object: {shown(each)}")
    _check_text(value, name)
    return value


def _check_text(value: Any, name: str) -> None:
    """Refuse what no JSON document can say: halves of surrogate pairs, and binary data."""
    try:
        msgspec.json.encode(value)
    except (UnicodeEncodeError, TypeError, ValueError, OverflowError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise Unusable(f"{name} cannot be sent: {why}") from None
