"""The records of a CSV file, one at a time, by the names in its header."""

import csv
from collections.abc import Iterator
from typing import BinaryIO

from llmbench.datasets.rows import BLOCK, LONGEST, NOT_UTF8, TOO_LONG, Broken, Row, lines
from llmbench.errors import UserError


def csv_rows(file: BinaryIO, delimiter: str = ",") -> tuple[list[str], Iterator[Row | Broken]]:
    """The names in the header, and the rows below it as dicts of these names."""
    records = _records(file, delimiter)
    header = next(records, None)
    if header is None:
        raise UserError("it is empty, and should begin with a header")
    if isinstance(header, Broken):
        raise UserError(f"its header cannot be read: {header.why}")
    names = [name.strip() for name in header.value]
    return names, _named(names, records)


def separator(file: BinaryIO) -> str:
    """What separates the fields of a CSV file: a semicolon or a tab where its header has one and
    no comma. The file is then at its start again."""
    header = file.readline(BLOCK)
    file.seek(0)
    return next((sign for sign in (",", ";", "\t") if sign.encode() in header), ",")


def trace_rows(file: BinaryIO, names: tuple[str, ...]) -> Iterator[Row | Broken]:
    """The rows of a trace, whose header must have ``names``."""
    header, rows = csv_rows(file)
    if missing := [name for name in names if name not in header]:
        raise UserError(f"no column '{missing[0]}'; its columns are {', '.join(header)}")
    return rows


def _named(names: list[str], records: Iterator[Row | Broken]) -> Iterator[Row | Broken]:
    for record in records:
        if isinstance(record, Broken):
            yield record
        elif len(record.value) != len(names):
            counts = f"the header has {len(names)} fields, this row {len(record.value)}"
            yield Broken(record.line, counts)
        else:
            yield Row(record.line, dict(zip(names, record.value, strict=True)))


def _records(file: BinaryIO, delimiter: str) -> Iterator[Row | Broken]:
    """The records as lists of cells; blank lines are none."""
    csv.field_size_limit(LONGEST // 4)  # characters, which the csv module holds in 4 bytes each
    text = _Text(file)
    # strict: else a quote that is never closed makes one prompt of all that follows.
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        text.damage = ""
        line = text.line + 1  # a record may have several lines: this is its first
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Broken(line, text.damage or _words(error))
            continue
        if text.damage:
            yield Broken(line, text.damage)
        elif cells:
            yield Row(line, cells)


def _words(error: csv.Error) -> str:
    words = str(error)
    if words == "unexpected end of data":
        return "a quote is not closed"
    return f"it is not CSV: {words.split(' - ')[0]}"


class _Text:
    """The lines of a file as text, for the csv module, which cannot go on after an exception.

    What could not be had of the lines since ``damage`` was last emptied is in it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.line = 0
        self.damage = ""
        self._lines = lines(file)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.line, line = next(self._lines)
        if line is None:
            self.damage = TOO_LONG
            return "\n"
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.damage = NOT_UTF8
            return line.decode(errors="replace")
