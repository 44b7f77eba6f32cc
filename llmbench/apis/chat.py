"""OpenAI chat completions: ``POST /chat/completions``."""

from collections.abc import Sequence

import msgspec

from llmbench.apis.chunks import decode_all
from llmbench.apis.dialect import Dialect, options
from llmbench.records import Content, Message

__all__ = ["PATH", "decode_all", "encode"]

PATH = "/chat/completions"


def encode(
    model: str, messages: Sequence[Message], output_tokens: int, dialect: Dialect, content: Content
) -> bytes:
    """The request's JSON document: ``messages``, and a wish for ``output_tokens`` tokens."""
    return msgspec.json.encode(
        {"model": model, "messages": messages} | options(dialect, output_tokens, content)
    )
