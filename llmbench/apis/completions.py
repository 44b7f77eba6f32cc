"""OpenAI completions: ``POST /completions``, a bare prompt without a chat template."""

import msgspec

from llmbench.apis.chunks import decode_all
from llmbench.apis.dialect import Dialect, options

__all__ = ["PATH", "decode_all", "encode"]

PATH = "/completions"


def encode(model: str, prompt: str, output_tokens: int, dialect: Dialect) -> bytes:
    """The request's JSON document for ``prompt`` and ``output_tokens`` tokens."""
    return msgspec.json.encode({"model": model, "prompt": prompt} | options(dialect, output_tokens))
