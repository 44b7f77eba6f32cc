"""Which optional request fields a server takes, from the most exact load to the plainest.

No server says what it accepts, so the first probe tries these in order and steps down on a 400.
"""

import json
from typing import Any

from msgspec import Struct

from llmbench.records import Content


class Dialect(Struct, frozen=True):
    """One way to ask for a stream. ``limit`` is the field that caps the output length."""

    name: str
    limit: str
    fields: dict[str, Any]
    exact_length: bool = False
    generation_config: bool = False


DIALECTS = (
    # vLLM, SGLang, llama.cpp: greedy, replies of exactly the asked length, a running token count.
    Dialect(
        name="exact",
        limit="max_tokens",
        fields={
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
        exact_length=True,
    ),
    # `transformers serve` takes its exact lengths in words of its own.
    Dialect(
        name="transformers",
        limit="max_tokens",
        fields={"temperature": 0},
        exact_length=True,
        generation_config=True,
    ),
    Dialect(
        name="standard",
        limit="max_tokens",
        fields={"temperature": 0, "stream_options": {"include_usage": True}},
    ),
    # OpenAI's reasoning models take neither max_tokens nor a temperature.
    Dialect(
        name="reasoning",
        limit="max_completion_tokens",
        fields={"stream_options": {"include_usage": True}},
    ),
    Dialect(name="bare", limit="max_tokens", fields={}),
)


def options(dialect: Dialect, output_tokens: int, content: Content) -> dict[str, Any]:
    """The request fields, beside model and prompt, that ask for a stream of ``output_tokens``: of
    exactly so many where the dialect can and ``content`` wants it, else of at most so many."""
    fields: dict[str, Any] = {"stream": True, dialect.limit: output_tokens, **dialect.fields}
    if "cache_prompt" in fields:
        fields["cache_prompt"] = content.shares_prefixes
    if content.natural_stops:
        fields.pop("ignore_eos", None)
    elif dialect.generation_config:
        exactly = {"min_new_tokens": output_tokens, "max_new_tokens": output_tokens}
        greedy = {"eos_token_id": None, "do_sample": False}
        fields["generation_config"] = json.dumps(exactly | greedy)
    elif dialect.exact_length:
        fields["min_tokens"] = output_tokens
    return fields
