"""Tables of prompts or lengths, whatever the file is: which column is which, what a row says."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llmbench.datasets import openai, sharegpt, times, turns
from llmbench.datasets.fields import count, optional_count, text
from llmbench.datasets.names import MESSAGES, OUTPUT_TOKENS, PROMPT_TOKENS, PROMPTS, SYSTEMS, plain
from llmbench.datasets.rows import Unusable
from llmbench.errors import UserError, suggestion
from llmbench.records import Message, Sample

THEIRS: dict[str, tuple[str, ...]] = {
    "messages": MESSAGES,
    "prompt": tuple(map(plain, PROMPTS)),
    "context": ("input", "context"),
    "system": tuple(map(plain, SYSTEMS)),
    "output_tokens": OUTPUT_TOKENS,
    "prompt_tokens": PROMPT_TOKENS,
    "at": times.NAMES,
}
"""Our names of columns → what files call them, as ``names.plain`` has it, the likeliest first."""

UNITS = {"at_s": times.SECONDS, "at_ms": times.MILLISECONDS, "at_us": 1e-6}
"""More names of ours, for times whose unit the user says."""

NAMES = (*THEIRS, *UNITS)
ONE_OF = ("messages", "prompt", "prompt_tokens")
"""A row has one of these."""

_CONTEXT_OF = "instruction"


def chosen(header: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our names of the columns to read → the file's. ``columns`` is what the user said of them."""
    check(header, columns)
    found = choice(header, columns)
    if not any(name in found for name in ONE_OF):
        raise UserError(
            f"no column is called {', '.join(PROMPTS[:-1])} or {PROMPTS[-1]}, and none is a length "
            "such as input_tokens; say --dataset-columns prompt=NAME, where NAME is one of "
            f"{', '.join(header)}"
        )
    for column in found.values():
        if header.count(column) > 1:
            raise UserError(f"more than one column is called '{column}'")
    return found


def choice(header: Iterable[str], columns: Mapping[str, str]) -> dict[str, str]:
    """``chosen`` without its checks. A name of ours that the user leaves out is looked for; a row
    has messages, a prompt, or a number of prompt tokens, the first of these that is there."""
    named: dict[str, str] = {}
    for column in header:
        named.setdefault(plain(column), column)
    found = {("at" if name in UNITS else name): column for name, column in columns.items()}
    said = any(name in found for name in ONE_OF)
    for name, theirs in THEIRS.items():
        if name in found or (name in ONE_OF and said):
            continue
        if name == "context" and plain(found.get("prompt", "")) != _CONTEXT_OF:
            continue
        if (match := next((each for each in theirs if each in named), None)) is not None:
            found[name] = named[match]
            said = said or name in ONE_OF
    return found


def check(header: Sequence[str], columns: Mapping[str, str]) -> None:
    """Refuse what the user said of columns where it cannot be."""
    for name, column in columns.items():
        if name not in NAMES:
            raise UserError(f"--dataset-columns has no '{name}'{suggestion(name, NAMES)}")
        if column not in header:
            raise UserError(f"no column '{column}', for {name}{suggestion(column, header)}")
    for names in (ONE_OF, ("at", *UNITS)):
        given = [name for name in columns if name in names]
        if len(given) > 1:
            raise UserError(
                f"--dataset-columns has both {given[0]} and {given[1]}; give one of them"
            )


def moments(
    find: Callable[[Any], times.Found | None],
    first: Sequence[Any],
    columns: Mapping[str, str],
    hint: float | None = None,
) -> times.Times:
    """The times that ``find`` finds, in the unit that ``columns`` say, where they do."""
    unit = next((scale for name, scale in UNITS.items() if name in columns), None)
    hint = times.SECONDS if "at" in columns else hint
    return times.Times(find, first, hint=hint, unit=unit)


def sample(row: Mapping[str, Any], found: Mapping[str, str]) -> Sample:
    """The sample of one row: the file's names → its values; ``found`` is our names → the file's."""
    said: list[Message] = []
    prompt_tokens = None
    if "messages" in found:
        said = _conversation(row, found["messages"])
    elif "prompt" in found:
        said = _prompt(row, found)
    else:
        prompt_tokens = count(row.get(found["prompt_tokens"]), found["prompt_tokens"])
    output = found.get("output_tokens")
    return Sample(
        messages=said,
        fields=turns.tools(row) if said else {},
        prompt_tokens=prompt_tokens,
        output_tokens=optional_count(row.get(output), output) if output else None,
    )


def _conversation(row: Mapping[str, Any], name: str) -> list[Message]:
    if plain(name) == MESSAGES[0]:
        return openai.asked(turns.messages(row.get(name), name, "message"), row)
    return sharegpt.asked(turns.messages(row.get(name), name, "turn"), row, name)


def _prompt(row: Mapping[str, Any], found: Mapping[str, str]) -> list[Message]:
    name = found["prompt"]
    if isinstance(row.get(name), list):
        return openai.asked(turns.messages(row[name], name, "message"), row)
    words = text(row.get(name), name)
    if not words.strip():
        raise Unusable(f"{name} is empty")
    if (context := row.get(found.get("context", ""))) is not None:
        words = "\n\n".join(each for each in (words, text(context, found["context"])) if each)
    system = row.get(found.get("system", ""))
    if system is None or system == "":
        return [Message("user", words)]
    return [Message("system", text(system, found["system"])), Message("user", words)]
