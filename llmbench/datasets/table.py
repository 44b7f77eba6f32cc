"""Tables of prompts, whatever the file is: which column is which, and what a row says."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmbench.datasets.fields import Clock, count, moment, optional_count, text
from llmbench.datasets.rows import Unusable
from llmbench.errors import UserError, suggestion
from llmbench.records import Message, Sample

PROMPTS = ("prompt", "question", "instruction", "input", "text")
NAMES = ("prompt", "system", "output_tokens", "prompt_tokens", "at")
NUMBERS = ("output_tokens", "prompt_tokens", "at")


def chosen(header: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our names of the columns to read → the file's. ``columns`` is what the user said of them.

    A name of ours that the user leaves out is looked for in the header. A row has a prompt or a
    number of prompt tokens; where a file has both, the prompt counts.
    """
    _check(header, columns)
    found = dict(columns)
    prompt = next((name for name in PROMPTS if name in header), None)
    if prompt and "prompt_tokens" not in columns:
        found.setdefault("prompt", prompt)
    for name in NAMES[1:]:
        if name in header and not (name == "prompt_tokens" and "prompt" in found):
            found.setdefault(name, name)
    if "prompt" not in found and "prompt_tokens" not in found:
        raise UserError(
            f"no column is called {', '.join(PROMPTS[:-1])} or {PROMPTS[-1]}; "
            f"say --dataset-columns prompt=NAME, where NAME is one of {', '.join(header)}"
        )
    for column in found.values():
        if header.count(column) > 1:
            raise UserError(f"more than one column is called '{column}'")
    return found


def _check(header: Sequence[str], columns: Mapping[str, str]) -> None:
    for name, column in columns.items():
        if name not in NAMES:
            raise UserError(f"--dataset-columns has no '{name}'{suggestion(name, NAMES)}")
        if column not in header:
            raise UserError(f"no column '{column}', for {name}{suggestion(column, header)}")
    if "prompt" in columns and "prompt_tokens" in columns:
        raise UserError("--dataset-columns has both prompt and prompt_tokens; give one of them")


def sample(values: Mapping[str, Any], clock: Clock) -> Sample:
    """The sample of one row: our names of the chosen columns → their values."""
    output_tokens = optional_count(values.get("output_tokens"), "output_tokens")
    messages: list[Message] = []
    prompt_tokens = None
    if "prompt" in values:
        messages = _messages(values)
    else:
        prompt_tokens = count(values["prompt_tokens"], "prompt_tokens")
    at_s = None
    if "at" in values:
        at_s = clock.since_first(moment(values["at"], "at"), "at")
    return Sample(
        messages=messages, prompt_tokens=prompt_tokens, output_tokens=output_tokens, at_s=at_s
    )


def _messages(values: Mapping[str, Any]) -> list[Message]:
    prompt = Message("user", text(values["prompt"], "prompt"))
    if not prompt.content.strip():
        raise Unusable("prompt is empty")
    system = values.get("system")
    if system is None or system == "":
        return [prompt]
    return [Message("system", text(system, "system")), prompt]
