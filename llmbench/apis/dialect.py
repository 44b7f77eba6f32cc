"""Which optional request fields a server takes. No server says so: see ``ladder`` for how it is
found out.
"""

import json
from collections.abc import Collection
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from llmbench.records import Content


class Dialect(Struct, frozen=True):
    """One way to ask for a stream. ``limit`` is the field that caps the output length, ``least``
    the one that asks for at least as many tokens; ``fields`` are the same in every request.

    With ``exact_length`` replies are of exactly the asked length: in a rung of a ladder that is a
    hope, and in what a server was found to take it was seen.
    """

    name: str
    limit: str
    fields: dict[str, Any]
    exact_length: bool = False
    generation_config: bool = False
    least: str = ""

    @property
    def optional(self) -> list[str]:
        """The names of all that can be left out, the options of a field before the field."""
        nested = [name for value in self.fields.values() for name in _options(value)]
        config = ["generation_config"] if self.generation_config else []
        return [*nested, *self.fields, *([self.least] if self.least else []), *config]

    @property
    def leaves(self) -> list[str]:
        """Those of ``optional`` that have no options of their own."""
        return [name for name in self.optional if not _options(self.fields.get(name))]

    @property
    def forces_length(self) -> bool:
        """Whether it asks for replies of exactly the asked length, be that done or not."""
        return bool(self.least or self.generation_config or "ignore_eos" in self.fields)

    def without(self, names: Collection[str]) -> "Dialect":
        """The dialect less the optional ``names``, and less a field that has no option left."""
        fields = {
            field: {name: value[name] for name in _options(value) if name not in names}
            if _options(value)
            else value
            for field, value in self.fields.items()
            if field not in names
        }
        return replace(
            self,
            fields={field: value for field, value in fields.items() if value != {}},
            least="" if self.least in names else self.least,
            generation_config=self.generation_config and "generation_config" not in names,
        )

    def only(self, names: Collection[str]) -> "Dialect":
        """The dialect with no other optional leaves than ``names``."""
        return self.without([name for name in self.leaves if name not in names])

    def described(self) -> str:
        """What is asked for beside the model and the prompt, by the fields' names."""
        return ", ".join([self.limit, *self.leaves])


def _options(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


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
        least="min_tokens",
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
    Dialect(name="bare", limit="max_tokens", fields={}),
    # OpenAI's reasoning models take neither max_tokens nor a temperature.
    Dialect(
        name="reasoning",
        limit="max_completion_tokens",
        fields={"stream_options": {"include_usage": True}},
    ),
    Dialect(name="bare-reasoning", limit="max_completion_tokens", fields={}),
)
"""The ladder of chat and completions, see ``ladder``."""


def options(dialect: Dialect, output_tokens: int, content: Content) -> dict[str, Any]:
    """The request fields, beside model and prompt, that ask for a stream of ``output_tokens``: of
    exactly so many where the dialect can and ``content`` wants it, else of at most so many."""
    fields: dict[str, Any] = {"stream": True, dialect.limit: output_tokens, **dialect.fields}
    if "cache_prompt" in fields:
        fields["cache_prompt"] = content.shares_prefixes
    if content.natural_stops:
        fields.pop("ignore_eos", None)
        return fields
    if dialect.generation_config:
        exactly = {"min_new_tokens": output_tokens, "max_new_tokens": output_tokens}
        greedy = {"eos_token_id": None, "do_sample": False}
        fields["generation_config"] = json.dumps(exactly | greedy)
    if dialect.least:
        fields[dialect.least] = output_tokens
    return fields
