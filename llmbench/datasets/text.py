"""Plain text: one prompt a line."""

from collections.abc import Iterator
from typing import BinaryIO

from llmbench.datasets.rows import NOT_UTF8, TOO_LONG, Broken, lines
from llmbench.records import Message, Sample


def read_text(file: BinaryIO, _columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample a line; blank lines are none."""
    for number, line in lines(file):
        if line is None:
            yield Broken(number, TOO_LONG)
            continue
        try:
            prompt = line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            yield Broken(number, NOT_UTF8)
            continue
        if prompt.strip():
            yield Sample(messages=[Message("user", prompt)])
