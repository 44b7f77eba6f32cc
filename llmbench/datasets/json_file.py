"""JSON objects of any wording: prompts, conversations or lengths, one a line or in an array."""

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from llmbench.datasets import openai, sharegpt, table
from llmbench.datasets.json_rows import json_rows, time_of
from llmbench.datasets.rows import Broken, Unusable, peeked, samples
from llmbench.datasets.times import Found
from llmbench.records import Sample


def read_json(file: BinaryIO, columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample an object, by the names of its keys; see ``table.THEIRS``."""
    first, rows = peeked(json_rows(file))
    check(first, columns)
    times = table.moments(time_finder(columns), first, columns)
    return samples(rows, lambda row: sample(row, columns), times)


def sample(row: dict[str, Any], columns: dict[str, str]) -> Sample:
    """The sample of one object."""
    if not columns and any(row.get(name) is not None for name in ("messages", *openai.BODIES)):
        return openai.sample(row)
    if not columns and any(row.get(name) is not None for name in sharegpt.NAMES):
        return sharegpt.sample(row)
    found = table.choice((name for name in row if row[name] is not None), columns)
    if not any(name in found for name in table.ONE_OF):
        keys = ", ".join(list(row)[:12]) or "none"
        raise Unusable(f"it has no prompt, no messages and no length of a prompt; its keys: {keys}")
    return table.sample(row, found)


def check(first: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """Refuse columns that none of the ``first`` objects has."""
    if not first:
        return
    table.check(list(dict.fromkeys(key for row in first for key in row)), columns)


def time_finder(columns: dict[str, str]) -> Callable[[dict[str, Any]], Found | None]:
    """What finds the time of an object, in the key that the user named for it."""
    key = next((columns[name] for name in ("at", *table.UNITS) if name in columns), None)
    if key is None:
        return time_of
    return lambda row: (key, row.get(key))
