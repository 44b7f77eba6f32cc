"""ShareGPT's conversations: one big JSON array of them, or one a line."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from llmbench.datasets.fields import asked, shown, text
from llmbench.datasets.json_rows import json_rows
from llmbench.datasets.rows import Broken, Unusable, samples
from llmbench.records import Message, Sample

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}


def read_sharegpt(file: BinaryIO, _columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample a conversation, up to what the human said last."""
    return samples(json_rows(file), sample)


def sample(row: dict[str, Any]) -> Sample:
    """The sample of one conversation. Replies to nothing, before the human's first turn, go."""
    turns = row.get("conversations")
    if turns is None:
        raise Unusable("conversations is missing")
    if not isinstance(turns, list):
        raise Unusable(f"conversations is not a list: {shown(turns)}")
    messages = [_message(turn, f"turn {n}") for n, turn in enumerate(turns, 1)]
    human = [n for n, message in enumerate(messages) if message.role == "user"]
    if not human:
        raise Unusable("conversations has no turn of a human")
    return Sample(
        messages=asked(
            [
                message
                for n, message in enumerate(messages[: human[-1] + 1])
                if n > human[0] or message.role != "assistant"
            ]
        )
    )


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, dict):
        raise Unusable(f"{name} is not an object: {shown(turn)}")
    speaker = text(turn.get("from"), f"{name}: from")
    if speaker not in ROLES:
        raise Unusable(f"{name}: {shown(speaker)} is not a speaker; known are {', '.join(ROLES)}")
    return Message(ROLES[speaker], text(turn.get("value"), f"{name}: value"))
