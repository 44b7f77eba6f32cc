"""OpenAI completions: ``POST /completions``, a bare prompt without a chat template."""

import msgspec
from msgspec import Struct

from llmbench.apis.chunks import Chunk, parse_chunk
from llmbench.apis.dialect import Dialect, options
from llmbench.records import Event, Kind

PATH = "/completions"


class _Choice(Struct):
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _CompletionChunk(Chunk):
    choices: list[_Choice] | None = None


_DECODER = msgspec.json.Decoder(_CompletionChunk)


def encode(model: str, prompt: str, output_tokens: int, dialect: Dialect) -> bytes:
    """The request's JSON document for ``prompt`` and ``output_tokens`` tokens."""
    return msgspec.json.encode({"model": model, "prompt": prompt} | options(dialect, output_tokens))


def decode(data: bytes, name: str = "") -> Event:
    """What one event carries: text, a finish reason, token counts."""
    chunk = parse_chunk(_DECODER, data, name)
    if isinstance(chunk, Event):
        return chunk
    kind, text, finish, tokens = 0, "", "", None
    for choice in chunk.choices or ():
        if choice.text:
            kind |= Kind.ANSWER
            text += choice.text
        if choice.finish_reason:
            kind |= Kind.FINISH
            finish = choice.finish_reason
        if choice.token_ids is not None:
            tokens = len(choice.token_ids)
    if chunk.usage is not None:
        kind |= Kind.USAGE
    return Event(kind, text, tokens, chunk.usage, finish)
