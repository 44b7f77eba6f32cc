"""Where an event stream is over: at its end marker, whatever its connection does after that."""

import re
from functools import cache
from typing import NamedTuple

_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")

_WINDOW = 128
"""How many bytes of what came before are looked at again: a marker's line is shorter."""


class EndMarker(NamedTuple):
    """The line by which the last event of an API's streams is known: a ``field`` and its
    ``values``, that of a good reply first.

    ``data`` says all there is to say. After the line of any other field the event's data are still
    to come, up to a blank line.
    """

    field: bytes
    values: tuple[bytes, ...]

    @property
    def ends(self) -> tuple[bytes, ...]:
        """What a chunk ends with whose last line is the marker's."""
        if self.field != b"data":
            return ()
        return tuple(value + line for value in self.values for line in _CHUNK_ENDS)

    @property
    def words(self) -> tuple[bytes, ...]:
        """What is to be looked for in each read, as no chunk need end with the marker; none where
        ``ends`` says it all."""
        return () if self.field == b"data" else self.values


_CHUNK_ENDS = (b"\n\n\r\n", b"\n\r\n", b"\r\n")

DONE = EndMarker(b"data", (b"[DONE]",))
"""That of chat and completions."""


class Ending:
    """Looks for ``marker`` in a body that comes in pieces. ``over`` is whether it has come."""

    def __init__(self, marker: EndMarker) -> None:
        self._line = _line_of(marker)
        self._is_all = marker.field == b"data"
        self._values = marker.values
        self._tail = b"\n"  # the body begins with a line
        self._named = False
        self.over = False

    def add(self, piece: bytes) -> None:
        """Look at the next ``piece`` of the body."""
        if self.over:
            return
        text = self._tail + piece
        if not self._named and any(value in text for value in self._values):
            line = self._line.search(text)
            if line is not None:
                self._named = True
                text = text[line.end() :]
        if self._named:
            self.over = self._is_all or _BLANK_LINE.search(text) is not None
        self._tail = text[-_WINDOW:]


@cache
def _line_of(marker: EndMarker) -> re.Pattern[bytes]:
    values = b"|".join(map(re.escape, marker.values))
    line = rb"[\r\n]%b: ?(?:%b)[ \t]*(?=[\r\n]|\Z)" % (marker.field, values)
    if marker.field != b"data":  # some servers name the event in its data alone
        line += rb"|\"type\": ?\"(?:%b)\"" % values
    return re.compile(line)
