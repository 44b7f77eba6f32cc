"""OpenAI chat completions: ``POST /chat/completions``."""

import msgspec

from llmbench.apis.chunks import decode_all
from llmbench.apis.dialect import Dialect, options

__all__ = ["PATH", "decode_all", "encode"]

PATH = "/chat/completions"


def encode(model: str, prompt: str, output_tokens: int, dialect: Dialect) -> bytes:
    """The request's JSON document: one user message that asks for ``output_tokens`` tokens."""
    return msgspec.json.encode(
        {"model": model, "messages": [{"role": "user", "content": prompt}]}
        | options(dialect, output_tokens)
    )
