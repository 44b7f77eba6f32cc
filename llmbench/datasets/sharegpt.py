"""ShareGPT's conversations: one big JSON array of them, or one a line."""

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from llmbench.datasets import turns
from llmbench.datasets.json_rows import json_samples
from llmbench.datasets.rows import Broken, Unusable
from llmbench.records import Message, Sample

NAMES = ("conversations", "conversation")


def read_sharegpt(file: BinaryIO, _columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample a conversation, up to what the human said last."""
    return json_samples(file, sample)


def sample(row: dict[str, Any]) -> Sample:
    """The sample of one conversation."""
    name = next((name for name in NAMES if row.get(name) is not None), NAMES[0])
    return Sample(
        messages=asked(turns.messages(row.get(name), name, "turn"), row, name),
        fields=turns.tools(row),
        output_tokens=turns.output_tokens(row),
    )


def asked(said: list[Message], row: Mapping[str, Any], name: str) -> list[Message]:
    """``said`` up to the human's last turn. Replies to nothing, before the first one, go."""
    human = [n for n, message in enumerate(said) if message.role == "user"]
    if not human:
        raise Unusable(f"{name} has no turn of a human")
    kept = [
        message
        for n, message in enumerate(said[: human[-1] + 1])
        if n > human[0] or message.role != "assistant"
    ]
    return turns.to_be_answered(kept, row)
