"""What every client does: open its connections, exchange calls for traces, close."""

import time
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from llmbench.drive.clock import Ints
from llmbench.drive.limits import KEPT_BYTES
from llmbench.records import Call, Connect, Integers, Reads, Stamps, Trace

KEPT_HEADERS = frozenset(
    ("content-encoding", "content-type", "retry-after", "server", "via", "x-accel-buffering")
)
"""The reply headers that a trace keeps: those that say how it was carried. Cookies are not."""


FRAMING_S = 0.2
"""How long after its end marker the framing of a reply has to end: then its connection is kept."""

LEFT_OPEN = 2
"""A server that left so many replies open, one after the other, leaves them all open."""


_EITHER = zlib.MAX_WBITS | 32  # gzip or zlib, told by its first bytes
INFLATED = ("gzip", "x-gzip", "deflate")


class Habits:
    """How the server has ended its replies lately: so many in a row were ``left_open``."""

    left_open = 0

    @property
    def leaves_open(self) -> bool:
        return self.left_open >= LEFT_OPEN


def inflated(pieces: Sequence[bytes], encoding: str, most: int) -> list[bytes] | None:
    """What each of the ``pieces`` of a body says, where its ``encoding`` is one that can be undone
    and there are no more than ``most`` bytes; else ``None``. Some compress, asked or not."""
    if encoding.lower() not in INFLATED:
        return None
    found: list[bytes] = []
    unpacker, left = None, most
    for packed in pieces:
        rest, plain = packed, b""
        while rest:
            if unpacker is None or unpacker.eof:
                is_raw = encoding.lower() == "deflate" and rest[0] & 15 != zlib.DEFLATED
                unpacker = zlib.decompressobj(-zlib.MAX_WBITS if is_raw else _EITHER)
            try:
                plain += unpacker.decompress(rest, left + 1 - len(plain))
            except zlib.error:
                return None
            if len(plain) > left:
                return None
            rest = unpacker.unused_data
        found.append(plain)
        left -= len(plain)
    return found


class Client(Protocol):
    """Streams replies and stamps what arrives. ``exchange`` never raises for what a server does."""

    async def open(self) -> None:
        """Open a connection for each stream, before anything is timed."""

    async def prepare(self, stream: int) -> None:
        """Open a connection for one more stream, ahead of its first call."""

    def expect(self, due_ns: int) -> None:
        """A call is to be sent at ``due_ns`` on the monotonic clock: be awake then."""

    def wait(self, until_ns: int) -> None:
        """Block the process until then, for the call that is to be sent; read, if that can be."""

    async def exchange(self, call: Call) -> Trace:
        """Send ``call`` and see its reply to the end; cancelled, return what had come so far."""

    @property
    def settle(self) -> Callable[[Trace], Trace] | None:
        """What finishes a trace when the cell is over, where the hot path has put something off."""

    async def close(self) -> None:
        """Drop every connection."""


class Recording:
    """A reply on its way in: bytes and stamps are appended, nothing is looked at.

    Times are monotonic nanoseconds; ``trace`` makes them relative to ``sent_ns``, and that to the
    run's zero. ``at_ns`` and ``empty_at_ns`` stay ``None`` where only the client's own clock tells.
    """

    def __init__(self) -> None:
        self.connect: Connect | None = None
        self.sent_ns = self.send_ns = 0
        self.cut_at_ns = self.stop_at_ns = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.size = 0
        self.end: Integers = array("q")
        self.read_at_ns: Integers = array("q")
        self.at_ns: Ints | None = None
        self.empty_at_ns: Ints | None = None

    def add(self, piece: bytes, read_at_ns: int) -> None:
        """Keep ``piece`` of the body, which the client got at ``read_at_ns`` by its own clock."""
        self.pieces.append(piece)
        self.size += len(piece)
        self.end.append(self.size)
        self.read_at_ns.append(read_at_ns)

    def keep_header(self, name: str, value: str) -> None:
        """Note a header of the reply, where it is one to keep."""
        if name.lower() in KEPT_HEADERS:
            self.headers[name.lower()] = value

    def trace(
        self, call: Call, zero_ns: int, end_ns: int, error: str = "", detail: str = ""
    ) -> Trace:
        """The evidence. ``error`` and ``detail`` say what the transport saw go wrong."""
        sent_ns = self.sent_ns or end_ns
        stamps: Stamps = "user" if self.at_ns is None else "kernel"
        return Trace(
            cell=call.cell,
            index=call.index,
            stream=call.stream,
            phase=call.phase,
            exact_tokens=call.exact_tokens,
            request_id=call.request_id,
            sent_ns=sent_ns - zero_ns,
            end_ns=end_ns - sent_ns,
            send_ns=self.send_ns,
            cut_ns=self.cut_at_ns - sent_ns if self.cut_at_ns else None,
            stop_ns=self.stop_at_ns - self.cut_at_ns if self.stop_at_ns else None,
            status=self.status,
            headers=self.headers,
            connect=self.connect,
            error=error,
            detail=detail,
            stamps=stamps,
            reads=self._reads(sent_ns),
            body=b"".join(self.pieces),
        )

    def _reads(self, sent_ns: int) -> Reads:
        read_at_ns = np.asarray(self.read_at_ns, dtype=np.int64)
        at_ns = read_at_ns if self.at_ns is None else self.at_ns
        empty_at_ns = at_ns if self.empty_at_ns is None else self.empty_at_ns
        previous_ns = np.concatenate(([sent_ns], at_ns[:-1])) if len(at_ns) else at_ns
        since_ns = np.maximum(empty_at_ns, previous_ns)
        return Reads(
            end=self.end,
            at_ns=_column(at_ns - sent_ns),
            lag_ns=_column(read_at_ns - at_ns),
            slack_ns=_column(np.maximum(at_ns - since_ns, 0)),
        )


def _column(values: Ints) -> Integers:
    return array("q", values.astype(np.int64).tobytes())


def beginning(trace: Trace) -> Trace:
    """``trace`` with the first bytes of its body alone, and the reads that brought them."""
    reads = trace.reads
    count = bisect_left(reads.end, KEPT_BYTES) + 1
    end = array("q", [min(each, KEPT_BYTES) for each in reads.end[:count]])
    first = Reads(end, reads.at_ns[:count], reads.lag_ns[:count], reads.slack_ns[:count])
    return replace(trace, body=trace.body[:KEPT_BYTES], reads=first)


def sleep_until(at_ns: int) -> None:
    """Block until then on the monotonic clock."""
    left_ns = at_ns - time.monotonic_ns()
    if left_ns > 0:
        time.sleep(left_ns / 1e9)
