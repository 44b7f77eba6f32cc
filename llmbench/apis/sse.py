"""Event streams, by the WHATWG standard: https://html.spec.whatwg.org/multipage/server-sent-events.html

A reply's body is parsed after the fact and whole, so the only question that timing asks of the
parser is *where* each event ended: the offset at which a client could first have acted on it.
"""

import re
from collections.abc import Iterator

_LINE_END = re.compile(rb"\r\n|\n|\r")
# Two line ends in a row: the end of a line, then a blank line, which dispatches the event. The
# groups are atomic, or the CR and LF of one CRLF would pass for two line ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_BOM = b"\xef\xbb\xbf"

ServerSentEvent = tuple[int, bytes, str]
"""Where an event ended (the offset just past the byte that completed it), its data, its name."""


def parse(body: bytes) -> Iterator[ServerSentEvent]:
    """Yield the events of ``body`` that carry data; one that the end cuts off is not dispatched."""
    start = len(_BOM) if body.startswith(_BOM) else 0
    if b"\r" in body:
        yield from _parse_any(body, start)
        return
    # Nearly every server ends lines with LF alone and events with one line of data. Ten times
    # faster than the pattern, and no less strict.
    find = body.find
    while (stop := find(b"\n\n", start)) >= 0:
        end = stop + 2
        if find(b"data: ", start, start + 6) == start and find(b"\n", start, stop) < 0:
            yield end, body[start + 6 : stop], ""
        else:
            data, name = _fields(body[start:stop])
            if data is not None:
                yield end, data, name
        start = end


def _parse_any(body: bytes, start: int) -> Iterator[ServerSentEvent]:
    """``parse`` for any mixture of LF, CR and CRLF."""
    for blank in _BLANK_LINE.finditer(body, start):
        data, name = _fields(body[start : blank.start()])
        start = blank.end()
        if data is not None:
            # A blank line that ends in CRLF has dispatched by its CR.
            yield start - body.startswith(b"\r\n", start - 2), data, name


def _fields(block: bytes) -> tuple[bytes | None, str]:
    """The data and the name of an event of any number of lines, comments among them."""
    data: list[bytes] = []
    name = ""
    for line in _LINE_END.split(block):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return (b"\n".join(data) if data else None), name
