"""OpenAI chat completions: ``POST /chat/completions``."""

from typing import Any

import msgspec
from msgspec import Struct

from llmbench.apis.chunks import Chunk, parse_chunk
from llmbench.apis.dialect import Dialect, options
from llmbench.records import Event, Kind

PATH = "/chat/completions"


class _Delta(Struct):
    role: str | None = None
    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _ChatChunk(Chunk):
    choices: list[_Choice] | None = None


_DECODER = msgspec.json.Decoder(_ChatChunk)


def encode(model: str, prompt: str, output_tokens: int, dialect: Dialect) -> bytes:
    """The request's JSON document: one user message that asks for ``output_tokens`` tokens."""
    return msgspec.json.encode(
        {"model": model, "messages": [{"role": "user", "content": prompt}]}
        | options(dialect, output_tokens)
    )


def decode(data: bytes, name: str = "") -> Event:
    """What one event carries. Reasoning and tool calls are generated tokens too."""
    chunk = parse_chunk(_DECODER, data, name)
    if isinstance(chunk, Event):
        return chunk
    kind, text, finish, tokens = 0, "", "", None
    for choice in chunk.choices or ():
        if choice.delta is not None:
            delta_kind, delta_text = _delta(choice.delta)
            kind |= delta_kind
            text += delta_text
        if choice.finish_reason:
            kind |= Kind.FINISH
            finish = choice.finish_reason
        if choice.token_ids is not None:
            tokens = len(choice.token_ids)
    if chunk.usage is not None:
        kind |= Kind.USAGE
    return Event(kind, text, tokens, chunk.usage, finish)


def _delta(delta: _Delta) -> tuple[int, str]:
    kind = Kind.ROLE if delta.role else 0
    text = ""
    if reasoning := delta.reasoning_content or delta.reasoning:
        kind |= Kind.REASONING
        text += reasoning
    if content := delta.content or delta.refusal:
        kind |= Kind.ANSWER
        text += content if isinstance(content, str) else ""
    if delta.tool_calls:
        kind |= Kind.TOOL
    return kind, text
