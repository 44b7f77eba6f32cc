"""The objects of a JSON file, one at a time: JSON lines, or one big array of them."""

import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import ijson
import msgspec

from llmbench.datasets.names import plain
from llmbench.datasets.rows import (
    BLOCK,
    LONGEST,
    NOT_UTF8,
    TOO_LONG,
    Broken,
    Row,
    first_byte,
    lines,
    peeked,
    samples,
)
from llmbench.datasets.times import NAMES, Found, Times
from llmbench.records import Sample

_DEEPEST = 100  # a deeper row is not of any format here, and building it could take all memory
_WRAPPED = re.compile(
    rb"""(?:\xef\xbb\xbf)?\s*\{                                   # an object that begins with
    (?:\s*"[^"]*"\s*:\s*(?:"[^"]*"|[\w.+-]+)\s*,)*           # single values, if any, and then
    \s*"(?:data|dataset|examples|instances|items|records|requests|rows|samples)"\s*:\s*\[\s*\{""",
    re.VERBOSE,
)
_NOT_AN_OBJECT = "it is not a JSON object"


def json_samples(
    file: BinaryIO, sample: Callable[[dict[str, Any]], Sample | None]
) -> Iterator[Sample | Broken]:
    """What ``sample`` makes of each object, with its time where objects have one."""
    first, rows = peeked(json_rows(file))
    return samples(rows, sample, Times(time_of, first))


def time_of(row: dict[str, Any]) -> Found | None:
    """The time of an object, by the name that comes first in ``NAMES``."""
    named = {plain(name): name for name in row if row[name] is not None}
    found = next((named[each] for each in NAMES if each in named), None)
    return None if found is None else (found, row[found])


def json_rows(file: BinaryIO) -> Iterator[Row | Broken]:
    """The objects of a file; those of an array count as rows, for they may share a line.

    The array may be all of the file, or stand in an object under a name such as ``data``.
    """
    if first_byte(file) == b"[":
        return _array(file)
    place = file.tell()
    start = file.read(BLOCK)
    file.seek(place)
    return _array(file, wrapped=True) if _WRAPPED.match(start) else _lines(file)


def _lines(file: BinaryIO) -> Iterator[Row | Broken]:
    for number, line in lines(file):
        if line is None:
            yield Broken(number, TOO_LONG)
        elif line := line.strip():
            yield _line(number, line)


def _line(number: int, line: bytes) -> Row | Broken:
    try:
        value = msgspec.json.decode(line)
    except RecursionError:
        return Broken(number, "it is nested too deeply")
    except UnicodeDecodeError:
        return Broken(number, NOT_UTF8)
    except msgspec.MsgspecError as error:
        words = str(error).removeprefix("JSON is malformed: ")
        words = words.replace("Input data was truncated", "it ends too early")
        return Broken(number, f"it is not JSON: {words}")
    return Row(number, value) if isinstance(value, dict) else Broken(number, _NOT_AN_OBJECT)


def _array(file: BinaryIO, wrapped: bool = False) -> Iterator[Row | Broken]:
    """Where an array breaks, nothing can follow: the last item then says why."""
    number = 0
    try:
        for value in _elements(file, wrapped):
            number += 1
            if isinstance(value, dict):
                yield Row(number, value, "row")
            else:
                yield Broken(number, _NOT_AN_OBJECT, "row")
    except (ijson.JSONError, _Unreadable) as error:
        why = f"the file cannot be read from here on: {_first_line(error)}"
        yield Broken(number + 1, why, "row")


def _elements(file: BinaryIO, wrapped: bool) -> Iterator[Any]:
    """The elements of an array, each built from its own events; of the first one, if ``wrapped``.

    ``ijson.items`` would do, were it not for its paths: they take memory with depth squared.
    """
    metered = _Metered(file)
    builder = ijson.ObjectBuilder()
    depth = 0
    events = ijson.basic_parse(metered, buf_size=BLOCK, use_float=True)
    if wrapped:
        next(event for event, _ in events if event == "start_array")
        depth = 1
    for event, value in events:
        if event in ("start_map", "start_array"):
            depth += 1
            if depth == 1:
                continue
            if depth > _DEEPEST:
                raise _Unreadable("it is nested too deeply")
        elif event in ("end_map", "end_array"):
            depth -= 1
            if depth == 0:
                if wrapped:
                    return  # what else the object says is no row
                continue
        builder.event(event, value)
        if depth == 1:
            yield builder.value
            builder = ijson.ObjectBuilder()
            metered.since = 0


class _Unreadable(Exception):  # noqa: N818 - it reads as what it says
    """An array holds something that is not worth the memory."""


class _Metered:
    """A file that stops where one element of the array takes too long to end."""

    def __init__(self, file: BinaryIO) -> None:
        self.since = 0
        self._file = file

    def read(self, size: int) -> bytes:
        if self.since > LONGEST:
            raise _Unreadable(TOO_LONG)
        data = self._file.read(size)
        self.since += len(data)
        return data


def _first_line(error: Exception) -> str:
    """The words of a parser's error, without its drawing of where. They may come as bytes."""
    words = error.args[0] if error.args else ""
    if isinstance(words, bytes):
        words = words.decode(errors="replace")
    return str(words).split("\n", 1)[0].rstrip(".")
