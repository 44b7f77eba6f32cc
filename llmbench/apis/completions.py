"""OpenAI completions: ``POST /completions``, a bare prompt without a chat template."""

from collections.abc import Sequence

import msgspec

from llmbench.apis.chunks import decode_all
from llmbench.apis.dialect import Dialect, options
from llmbench.errors import UserError
from llmbench.records import Content, Message

__all__ = ["PATH", "decode_all", "encode"]

PATH = "/completions"


def encode(
    model: str, messages: Sequence[Message], output_tokens: int, dialect: Dialect, content: Content
) -> bytes:
    """The request's JSON document: the texts of ``messages``, and a wish for ``output_tokens``."""
    if not all(message.is_plain for message in messages):
        raise UserError("completions take texts alone, no images and no tools: ask --api chat")
    prompt = "\n\n".join(message.text for message in messages)
    return msgspec.json.encode(
        {"model": model, "prompt": prompt} | options(dialect, output_tokens, content)
    )
