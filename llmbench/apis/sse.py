"""Event streams, by the WHATWG standard: https://html.spec.whatwg.org/multipage/server-sent-events.html

A reply's body is parsed after the fact and whole, so the only question that timing asks of the
parser is *where* each event ended: the offset at which a client could first have acted on it.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, repeat

_LINE_END = re.compile(rb"\r\n|\n|\r")
# Two line ends in a row: the end of a line, then a blank line, which dispatches the event. The
# groups are atomic, or the CR and LF of one CRLF would pass for two line ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_BOM = b"\xef\xbb\xbf"
_ERROR = re.compile(rb'\s*\{\s*"error"\s*:(?!\s*null)')
_DATA = b"data: "
_NEXT_EVENT = b"\n\n" + _DATA

ServerSentEvent = tuple[int, bytes, str]
"""Where an event ended (the offset just past the byte that completed it), its data, its name."""


def parse(body: bytes) -> list[ServerSentEvent]:
    """The events of ``body`` that carry data; one that the end cuts off is not dispatched."""
    start = len(_BOM) if body.startswith(_BOM) else 0
    return _parse_plain(body, start) or list(_parse_any(body, start))


def _parse_plain(body: bytes, start: int) -> list[ServerSentEvent]:
    """``parse`` for what nearly every server sends, in a few passes of C: lines that end in LF, and
    events of one line of data. Empty for anything else."""
    stop = body.rfind(b"\n\n")
    if stop < 0 or not body.startswith(_DATA, start) or b"\r" in body:
        return []
    data = body[start + len(_DATA) : stop].split(_NEXT_EVENT)
    if body.count(b"\n", start, stop) != 2 * (len(data) - 1):
        return []
    ends = accumulate(map(len(_NEXT_EVENT).__add__, map(len, data)), initial=start)
    next(ends)
    return list(zip(ends, data, repeat(""), strict=False))


def _parse_any(body: bytes, start: int) -> Iterator[ServerSentEvent]:
    """``parse`` for any mixture of LF, CR and CRLF, and any fields."""
    for blank in _BLANK_LINE.finditer(body, start):
        data, name = _fields(body[start : blank.start()])
        start = blank.end()
        if data is not None:
            # A blank line that ends in CRLF has dispatched by its CR.
            yield start - body.startswith(b"\r\n", start - 2), data, name


def _fields(block: bytes) -> tuple[bytes | None, str]:
    """The data and the name of an event of any number of lines, comments among them.

    Beyond the standard, a field ``error`` and a line that is a bare JSON error, as some servers
    send them when a reply breaks off, make the event one that is named error.
    """
    data: list[bytes] = []
    name = ""
    for line in _LINE_END.split(block):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"error" and value:
            return value, "error"
        elif _ERROR.match(line):
            return line, "error"
    return (b"\n".join(data) if data else None), name


def rest(body: bytes, events: Sequence[ServerSentEvent]) -> bytes:
    """What ``body`` says after the last of its ``events``, without the name of a field."""
    left = body[events[-1][0] if events else 0 :].strip()
    for field in (b"data:", b"error:"):
        left = left.removeprefix(field)
    return left.strip()
