"""What every reader of a dataset is made of: rows, broken rows, and lines of bounded length."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from llmbench.records import Sample

LONGEST = 64 << 20
"""Bytes. A longer line, or element of a JSON array, is broken rather than held in memory."""

LOOKED_AT = 100
"""How many rows are read ahead to tell what a file means by its numbers."""

BLOCK = 64 << 10
TOO_LONG = f"it is longer than {LONGEST >> 20} MiB"
NOT_UTF8 = "it is not UTF-8"
_BOM = b"\xef\xbb\xbf"


class Broken(Struct, frozen=True):
    """A row that cannot be used, and why. ``line`` counts from 1, in ``unit`` (line or row).

    Where only its time is at fault, ``sample`` is the row without it, of use where no times are
    wanted.
    """

    line: int
    why: str
    unit: str = "line"
    sample: Sample | None = None


class Row(Struct, frozen=True):
    """A row as the file has it: its value, and where it starts."""

    line: int
    value: Any
    unit: str = "line"


Reader = Callable[[BinaryIO, dict[str, str]], Iterator[Sample | Broken]]
"""Reads one pass of a file (open, seekable, at its start), row by row.

The dict is the user's columns, our name → the file's. A row that cannot be used is ``Broken``, and
the next follows; a file that is not of the format at all is a ``UserError``.
"""


class Unusable(Exception):  # noqa: N818 - it reads as what it says
    """Why one row cannot be used. It never leaves this package."""


Moment = Callable[[Any], tuple[float | None, str]]
"""When a row's value is due, and the unit of that where it was guessed; see ``times``."""


def samples(
    rows: Iterable[Row | Broken],
    sample: Callable[[Any], Sample | None],
    moment: Moment | None = None,
) -> Iterator[Sample | Broken]:
    """What ``sample`` makes of each row's value; ``None`` drops the row without a word.

    ``moment`` says when each is due.
    """
    for row in rows:
        if isinstance(row, Broken):
            yield row
            continue
        made: Sample | None = None
        try:
            made = sample(row.value)
            at_s, guessed = moment(row.value) if moment else (None, "")
        except Unusable as error:
            yield Broken(row.line, str(error), row.unit, made)
            continue
        if made is not None:
            yield made if at_s is None else replace(made, at_s=at_s, guessed_unit=guessed)


def peeked(rows: Iterator[Row | Broken]) -> tuple[list[Any], Iterator[Row | Broken]]:
    """The values of the first rows that can be read, and all rows."""
    first = list(islice(rows, LOOKED_AT))
    return [row.value for row in first if isinstance(row, Row)], chain(first, rows)


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file with their numbers, without a BOM; ``None`` for one that is too long."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            while line and not line.endswith(b"\n"):
                line = file.readline(BLOCK)
            yield number, None
        else:
            yield number, line.removeprefix(_BOM) if number == 1 else line


def first_byte(file: BinaryIO) -> bytes:
    """The first byte that is neither BOM nor white space; the file is then at its start again."""
    start = file.read(BLOCK)
    skip = len(_BOM) if start.startswith(_BOM) else 0
    found = start[skip:].lstrip()
    while start and not found:
        start = file.read(BLOCK)
        found = start.lstrip()
    file.seek(skip)
    return found[:1]
