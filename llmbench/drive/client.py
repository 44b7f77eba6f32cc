"""What every client does: open its connections, exchange calls for traces, close."""

from array import array
from typing import Protocol

from llmbench.records import Call, Connect, Integers, Reads, Stamps, Trace


class Client(Protocol):
    """Streams replies and stamps what arrives. ``exchange`` never raises for what a server does."""

    async def open(self) -> None:
        """Open a connection for each stream, before anything is timed."""

    async def exchange(self, call: Call) -> Trace:
        """Send ``call`` and see its reply to the end; cancelled, return what had come so far."""

    def settle(self, traces: list[Trace]) -> list[Trace]:
        """Finish, when the cell is over, what the hot path put off."""

    async def close(self) -> None:
        """Drop every connection."""


KEPT_HEADERS = frozenset(
    ("content-encoding", "content-type", "retry-after", "server", "via", "x-accel-buffering")
)
"""The reply headers that a trace keeps: those that say how it was carried. Cookies are not."""


def keep_header(headers: dict[str, str], name: str, value: str) -> None:
    """Note a header of the reply, where it is one to keep."""
    if name.lower() in KEPT_HEADERS:
        headers[name.lower()] = value


class Recording:
    """A reply on its way in: bytes and stamps are appended, nothing is looked at.

    Times are monotonic nanoseconds; ``trace`` makes them relative to ``sent_ns``, and that to the
    run's zero.
    """

    def __init__(self, stamps: Stamps) -> None:
        self.stamps: Stamps = stamps
        self.connect: Connect | None = None
        self.sent_ns = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.size = 0
        self.end: Integers = array("q")
        self.at_ns: Integers = array("q")
        self.read_at_ns: Integers = array("q")
        self.empty_at_ns: Integers = array("q")

    def add(self, piece: bytes, read_at_ns: int) -> None:
        """Keep ``piece`` of the body, which the client got at ``read_at_ns`` by its own clock."""
        self.pieces.append(piece)
        self.size += len(piece)
        self.end.append(self.size)
        self.at_ns.append(read_at_ns)
        self.read_at_ns.append(read_at_ns)
        self.empty_at_ns.append(read_at_ns)

    def trace(
        self, call: Call, zero_ns: int, end_ns: int, error: str = "", detail: str = ""
    ) -> Trace:
        """The evidence. ``error`` and ``detail`` say what the transport saw go wrong."""
        sent_ns = self.sent_ns or end_ns
        return Trace(
            cell=call.cell,
            index=call.index,
            stream=call.stream,
            phase=call.phase,
            sent_ns=sent_ns - zero_ns,
            end_ns=end_ns - sent_ns,
            status=self.status,
            headers=self.headers,
            connect=self.connect,
            error=error,
            detail=detail,
            stamps=self.stamps,
            reads=self._reads(sent_ns),
            body=b"".join(self.pieces),
        )

    def _reads(self, sent_ns: int) -> Reads:
        reads = Reads(self.end, array("q"), array("q"), array("q"))
        previous_ns = sent_ns
        for at_ns, read_at_ns, empty_at_ns in zip(
            self.at_ns, self.read_at_ns, self.empty_at_ns, strict=True
        ):
            reads.at_ns.append(at_ns - sent_ns)
            reads.lag_ns.append(read_at_ns - at_ns)
            reads.slack_ns.append(max(at_ns - max(empty_at_ns, previous_ns), 0))
            previous_ns = at_ns
        return reads
