"""The wire client: one socket a stream, stamped by the kernel; bytes are kept, not looked at.

While a reply comes in, ``_Connection._readable`` reads, notes the stamps, and asks of the bytes
only whether the reply may end with them. HTTP is parsed when it does, everything else after the
cell.
"""

import asyncio
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from itertools import accumulate
from time import monotonic_ns
from typing import Any

import httptools
import numpy as np
from msgspec.structs import replace

from llmbench.apis.ending import DONE, Ending, EndMarker
from llmbench.drive.barge_in import BargeIn
from llmbench.drive.client import FRAMING_S, Habits, Recording, inflated
from llmbench.drive.clock import ANCILLARY_BYTES, Clock
from llmbench.drive.endpoint import Endpoint
from llmbench.drive.limits import HEAD_BYTES, KEPT_BYTES, Limits
from llmbench.drive.opening import READ_BYTES, Failure, Tls, open_socket
from llmbench.drive.poller import Poller
from llmbench.headers import overlaid
from llmbench.records import TOO_LARGE, Call, Connect, Reopened, Trace

OPENING_AT_ONCE = 32

RACE_NS = 50_000_000
"""A connection that is closed so soon after a request on it, with no word, was being closed when
that went out."""

# A chunked reply ends with an empty line, and an event's chunk hardly ever does. A short read may
# be the rest of one, or of an end marker.
_EMPTY_LINE = b"\r\n\r\n"
SHORT_BYTES = 32

LASTED_NS = 1_000_000_000
"""A connection that was closed sooner, though it was not used, is not opened ahead again."""

_ACKED_AT = 120
"""Where in the kernel's ``tcp_info`` it counts the bytes that were acknowledged."""

# Every socket is read into one buffer, and what came is copied out: a bytes object that recv
# allocates at full size and then shrinks leaves the heap in tatters.
_VIEW = memoryview(bytearray(READ_BYTES))
_BUFFERS = [_VIEW]


class WireClient:
    """Connections to one endpoint, one for each stream of ``streams``. Without any, as in an open
    loop, a connection that the server closes is opened again at once, ahead of the next call."""

    settle = None

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        streams: Iterable[int],
        limits: Limits,
        clock: Clock,
        marker: EndMarker = DONE,
    ) -> None:
        self._poller = Poller()
        self._new = partial(
            _Connection, endpoint, path, limits, clock, self._poller, marker, Habits()
        )
        self._connections = {stream: self._new() for stream in streams}
        self._ahead = not self._connections

    async def open(self) -> None:
        """Connect every stream, a few at a time; one that fails tries again at its first call."""
        slots = asyncio.Semaphore(OPENING_AT_ONCE)

        async def connect(connection: _Connection) -> None:
            async with slots:
                try:
                    await connection.connect()
                except Failure:
                    connection.close()

        await asyncio.gather(*(connect(each) for each in self._connections.values()))

    async def prepare(self, stream: int) -> None:
        connection = self._connections[stream] = self._new(ahead=self._ahead)
        await connection.reopen()

    def expect(self, due_ns: int) -> None:
        self._poller.due_ns = due_ns

    def wait(self, until_ns: int) -> None:
        self._poller.serve(until_ns)

    async def exchange(self, call: Call) -> Trace:
        if call.stream not in self._connections:
            await self.prepare(call.stream)
        return await self._connections[call.stream].exchange(call)

    async def close(self) -> None:
        for connection in self._connections.values():
            connection.leave()
        self._poller.close()


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


class _Connection:
    """One connection, which carries one exchange at a time and is opened again where need be."""

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        limits: Limits,
        clock: Clock,
        poller: Poller,
        marker: EndMarker,
        habits: Habits,
        ahead: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._marker = marker
        self._ends, self._words = (_EMPTY_LINE, *marker.ends), marker.words
        self._habits = habits
        self._ahead = ahead
        self._limits = limits
        self._clock = clock
        self._poller = poller
        self._loop = asyncio.get_running_loop()
        headers = overlaid({"Host": endpoint.authority}, endpoint.headers())
        self._head = "\r\n".join(
            (
                f"POST {endpoint.path}{path}{endpoint.query} HTTP/1.1",
                *(f"{name}: {value}" for name, value in headers.items()),
            )
        )
        self._sock: socket.socket | None = None
        self._tls: Tls | None = None
        self._stages: Connect | None = None  # of the opening that no call has reported yet
        self._stamped = self._used = self._unsent = self._closes_silently = False
        self._reopened: Reopened = ""  # why it is not open any longer
        self._opening: asyncio.Task[None] | None = None
        self._opened_ns = self._acked = 0
        self._reply = _Reply(limits, marker)
        self._idle = True  # no exchange waits for what comes
        self._done: asyncio.Future[None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    async def connect(self) -> None:
        """Open the connection anew. Raises ``Failure``."""
        self.close()
        self._sock, self._tls, stages, self._stamped = await open_socket(self._endpoint)
        self._stages = replace(stages, reopened=self._reopened) if self._reopened else stages
        self._recvmsg_into = self._sock.recvmsg_into
        self._used = False
        self._reopened = ""
        self._opened_ns = monotonic_ns()
        self._poller.add(self._sock.fileno(), self._readable)

    async def reopen(self) -> None:
        """Open the connection, if that can be; else the next exchange tries."""
        with suppress(Failure):
            await self.connect()

    def leave(self) -> None:
        """Close the connection for good."""
        if self._opening is not None:
            self._opening.cancel()
        self.close()

    def close(self) -> None:
        if self._sock is not None:
            self._poller.remove(self._sock.fileno())
            self._loop.remove_writer(self._sock)
            self._sock.close()
        self._sock = None

    # ── one exchange ─────────────────────────────────────────────────────────────────────────────

    async def exchange(self, call: Call) -> Trace:
        """Send ``call`` and read its reply to the end.

        A server may close an idle connection at any time (RFC 9112, 9.6). A request that went out
        on a connection just as it was closed, and never arrived, is sent again on a new one, and
        its clock starts anew.
        """
        began_ns = monotonic_ns()
        while True:
            reused = self._sock is not None and self._used
            reply = self._reply = _Reply(self._limits, self._marker)
            error = detail = ""
            try:
                await self._attempt(call)
            except Failure as failure:
                error, detail = failure.kind, failure.detail
            except asyncio.CancelledError:
                error = "" if reply.over else "cancelled"
            end_ns = monotonic_ns()
            if error == TOO_LARGE:
                reply = self._reply = reply.beginning()
            if reused and error == "reset" and not reply.reads:
                self._closes_silently = True
                if self._never_arrived():
                    self.close()
                    self._reopened = "resent"
                    continue
            ends = reply.recording.cut_at_ns or not reply.keeps_alive
            if error or ends or self._unsent or self._closes_silently:
                self.close()
            if self._sock is None and not (error or reply.recording.cut_at_ns):
                self._lose("unfinished" if reply.left_open else "closed")
            recording = reply.seal(self._clock if self._stamped else None)
            opened = recording.connect
            if opened is not None and opened.reopened and recording.sent_ns:
                recording.connect = replace(opened, wait_ns=recording.sent_ns - began_ns)
            return recording.trace(call, self._clock.zero_ns, end_ns, error, detail)

    def _lose(self, why: Reopened) -> None:
        """Note that the server does not keep the connection; open it again where that is to be done
        ahead."""
        self.close()
        self._reopened = why
        if self._ahead and (self._opening is None or self._opening.done()):
            self._opening = self._loop.create_task(self.reopen())

    def _never_arrived(self) -> bool:
        """Whether nobody has worked on the request that was lost: the other side's kernel, which
        says so within 40 ms of what it passes on, has acknowledged none of it; or the connection
        was closed so soon that the server had done so before it looked for a next request."""
        lasted_ns = monotonic_ns() - self._reply.recording.sent_ns
        return lasted_ns < RACE_NS or self._bytes_acked() == self._acked

    def _bytes_acked(self) -> int:
        """How many bytes the other side has acknowledged; 0 where the system does not tell."""
        if self._sock is None or not hasattr(socket, "TCP_INFO"):
            return 0
        told = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_AT + 8)
        acked: int = struct.unpack_from("Q", told, _ACKED_AT)[0] if len(told) > _ACKED_AT else 0
        return acked

    async def _attempt(self, call: Call) -> None:
        if self._opening is not None:
            await self._opening
            self._opening = None
        if self._sock is None:
            await self.connect()
        request = (
            f"{self._head}\r\nX-Request-Id: {call.request_id}\r\n"
            f"{_lines(call.headers)}Content-Length: {len(call.body)}\r\n\r\n"
        ).encode() + call.body
        if self._tls is not None:
            request = self._tls.encrypt(request)
        self._reply.recording.connect, self._stages = self._stages, None
        if self._used:
            self._acked = self._bytes_acked()
        self._used = True
        self._done = self._loop.create_future()
        self._idle = False
        timers: list[asyncio.TimerHandle | BargeIn]
        timers = [self._loop.call_later(self._limits.whole_s, self._time_out)]
        if self._limits.first_token_s is not None:
            timers.append(
                self._loop.call_later(self._limits.first_token_s, self._time_out_unless_begun)
            )
        if call.cut_after_s is not None:
            timers.append(BargeIn(call.cut_after_s, self._has_begun, self._cut, self._end))
        try:
            self._send(request)
            await self._done
        finally:
            self._idle = True
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
            for timer in timers:
                timer.cancel()

    def _send(self, request: bytes) -> None:
        """Send what the socket takes now; the rest goes when it takes more."""
        assert self._sock is not None
        recording = self._reply.recording
        if recording.sent_ns:
            self._loop.remove_writer(self._sock)
        try:
            recording.sent_ns = recording.sent_ns or monotonic_ns()
            sent = self._sock.send(request)
            recording.send_ns = monotonic_ns() - recording.sent_ns
        except BlockingIOError:
            sent = 0
        except OSError as problem:
            self._fail(Failure("reset", problem.strerror or str(problem)))
            return
        self._unsent = sent < len(request)
        if self._unsent:
            self._loop.add_writer(self._sock, self._send, request[sent:])

    # ── the hot path ─────────────────────────────────────────────────────────────────────────────

    def _readable(self) -> None:
        try:
            size, ancillary, _, _ = self._recvmsg_into(_BUFFERS, ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as problem:
            self._lost(problem.strerror or str(problem))
            return
        if not size:
            self._closed()
            return
        data = _VIEW[:size].tobytes()
        timespec = ancillary[0][2] if ancillary else b""
        reply = self._reply
        if self._tls is not None:
            self._readable_tls(data, timespec)
            return
        if self._idle:
            self._lost_idle()  # whatever a server says unasked, it is about to leave
            return
        reply.reads.append((data, timespec, monotonic_ns(), self._poller.empty_at_ns))
        reply.size += size
        if reply.size > reply.check_at and self._is_beyond(reply):
            return
        if (
            reply.eager
            or size < SHORT_BYTES
            or data.endswith(self._ends)
            or any(word in data for word in self._words)
        ):
            self._parse()

    def _readable_tls(self, data: bytes, timespec: bytes) -> None:
        read_at_ns = monotonic_ns()
        try:
            plain = self._tls.decrypt(data) if self._tls is not None else data
        except Failure as failure:
            self._fail(failure)
            return
        if not plain:  # half a record, or none of the stream's: session tickets, a farewell
            return
        if self._idle:
            self._lost_idle()
            return
        reply = self._reply
        reply.reads.append((plain, timespec, read_at_ns, self._poller.empty_at_ns))
        reply.size += len(plain)
        if reply.size <= reply.check_at or not self._is_beyond(reply):
            self._parse()

    def _is_beyond(self, reply: "_Reply") -> bool:
        """Whether ``reply`` is too large, with which it ends; else the next check is set."""
        words = reply.check()
        if words and reply.recording.cut_at_ns:
            self._end()  # when the server would have stopped, nobody knows
        elif words:
            self._fail(Failure(TOO_LARGE, words))
        return bool(words)

    # ── how a reply ends ─────────────────────────────────────────────────────────────────────────

    def _parse(self) -> None:
        try:
            complete = self._reply.parse()
        except httptools.HttpParserError as problem:
            self._fail(Failure("protocol", f"not an HTTP reply: {problem}"))
            return
        if complete:
            self._habits.left_open = 0
            self._finish()
        elif self._reply.over:
            self._await_framing()
        elif self._reply.size > HEAD_BYTES and not self._reply.headers_complete:
            words = f"no end of the headers within {HEAD_BYTES >> 10} KiB"
            self._fail(Failure("protocol", words))

    def _await_framing(self) -> None:
        """Give the framing of a reply that is over a moment to end; some servers never do."""
        if self._habits.leaves_open:
            self._end_unfinished()
        elif self._patience is None:
            self._patience = self._loop.call_later(FRAMING_S, self._end_unfinished)

    def _end_unfinished(self) -> None:
        self._habits.left_open += 1
        self._reply.left_open = True
        self._finish()

    def _closed(self) -> None:
        """The server closed the connection: the end of a reply that is delimited so."""
        if self._idle:
            self._lost_idle()
            return
        self._parse()
        if self._reply.ends_by_close:
            self._finish()
        else:
            self._lost("the server closed the connection")

    def _lost(self, words: str) -> None:
        """The connection is gone; so is the reply, unless it had ended before."""
        if self._idle:
            self._lost_idle()
        elif self._reply.headers_complete:
            self._fail(Failure("truncated", f"{words} in the middle of the reply"))
        else:
            self._fail(Failure("reset", words))

    def _lost_idle(self) -> None:
        """The connection is gone, between two requests."""
        lasted = monotonic_ns() - self._opened_ns > LASTED_NS
        if self._used or (self._ahead and lasted):
            self._lose("closed")
        else:
            self.close()

    def _time_out(self) -> None:
        limit_s = self._limits.whole_s
        self._fail(Failure("timeout", f"no end of the reply within {limit_s:g} s"))

    def _time_out_unless_begun(self) -> None:
        if not self._has_begun():
            self._fail(self._limits.no_first_token)

    def _has_begun(self) -> bool:
        """The one look at what a reply says while it comes in: is there a token?"""
        with suppress(httptools.HttpParserError):
            self._reply.parse()
        return self._limits.has_begun(self._reply.text())

    def _cut(self) -> None:
        """Close our side, which is all that a server sees of a client that goes, and read on."""
        self._reply.recording.cut_at_ns = monotonic_ns()
        if self._sock is not None:
            with suppress(OSError):
                if self._tls is not None:
                    self._sock.send(self._tls.farewell())
                self._sock.shutdown(socket.SHUT_WR)

    def _finish(self) -> None:
        if self._reply.recording.cut_at_ns:
            self._reply.recording.stop_at_ns = monotonic_ns()
        self._end()

    def _end(self) -> None:
        self._idle = True
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, failure: Failure) -> None:
        if failure.kind != TOO_LARGE:
            with suppress(httptools.HttpParserError):
                self._reply.parse()
        if self._reply.recording.cut_at_ns or self._reply.over:
            self._finish()  # however the server leaves now, it has stopped
            return
        self._idle = True
        if self._done is not None and not self._done.done():
            self._done.set_exception(failure)


class _Reply:
    """One HTTP reply on its way in, parsed for its framing alone, as late as that can be.

    ``reads`` holds ``(data, timespec, read_at_ns, empty_at_ns)`` for each read, ``size`` what they
    brought. ``eager`` is true as long as any read may end the reply: until its headers are in, and
    after that unless it is chunked. ``left_open`` is true where it is over and the server did not
    say so by its framing.
    """

    def __init__(self, limits: Limits, marker: EndMarker) -> None:
        self._limits = limits
        self._marker = marker
        self._ending = Ending(marker)
        self._looked_at = 0  # how many pieces of the body were searched for the marker
        self.reads: list[tuple[bytes, bytes, int, int]] = []
        self.size = 0
        self.check_at = limits.reads
        self.recording = Recording()
        self.eager = True
        self.headers_complete = self.complete = self.keeps_alive = self.left_open = False
        self._framed = self._chunked = False
        self._pieces_after: list[int] = []  # how many pieces of the body each read completed
        self.on_body = self.recording.pieces.append
        self._parser: Any = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_chunked_length=True,  # a length beside the chunks, which count: RFC 9112, 6.3
            lenient_data_after_close=True,
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )

    def check(self) -> str:
        """Why the reply is too large. Where it is not, it need not be checked again before it can
        be: a read brings one byte at least."""
        reads_left = self._limits.reads - len(self.reads)
        self.check_at = min(self._limits.reply_bytes, self.size + reads_left)
        return self._limits.exceeded(self.size, len(self.reads))

    def beginning(self) -> "_Reply":
        """The first bytes of the reply, as a reply of their own; this one is over."""
        first, ours, left = _Reply(self._limits, self._marker), self.recording, KEPT_BYTES
        first.recording.connect = ours.connect
        first.recording.sent_ns, first.recording.send_ns = ours.sent_ns, ours.send_ns
        for data, timespec, read_at_ns, empty_at_ns in self.reads:
            first.reads.append((data[:left], timespec, read_at_ns, empty_at_ns))
            left -= len(data)
            if left <= 0:
                break
        self._parser = None  # as in ``seal``
        return first

    def parse(self) -> bool:
        """Parse the reads that have not been; whether the reply is complete. Where it is not, see
        whether it is over for all that."""
        pieces, after, feed = self.recording.pieces, self._pieces_after, self._parser.feed_data
        for data, _, _, _ in self.reads[len(after) :]:
            before = len(pieces)
            try:
                feed(data)
            finally:
                if len(pieces) > before + 1:  # each would take more memory than its bytes
                    pieces[before:] = [b"".join(pieces[before:])]
                after.append(len(pieces))
        if not self.complete and len(pieces) > self._looked_at:
            self._ending.add(b"".join(pieces[self._looked_at :]))
            self._looked_at = len(pieces)
        return self.complete

    @property
    def over(self) -> bool:
        """Whether its end marker has come, as far as it has been parsed."""
        return self._ending.over

    @property
    def ends_by_close(self) -> bool:
        return self.headers_complete and not self._framed

    def text(self) -> bytes:
        """What has come of the body."""
        return b"".join(self._inflated() or self.recording.pieces)

    def _inflated(self) -> list[bytes] | None:
        """The body where it came compressed, and can be undone."""
        encoding = self.recording.headers.get("content-encoding")
        if encoding is None:
            return None
        return inflated(self.recording.pieces, encoding, self._limits.reply_bytes)

    def seal(self, clock: Clock | None) -> Recording:
        """The recording with its stamps, brought onto monotonic time by ``clock`` where there are
        kernel stamps."""
        recording = self.recording
        try:
            self.parse()
        except httptools.HttpParserError:
            del self.reads[len(self._pieces_after) :]
        if (plain := self._inflated()) is not None:
            recording.pieces[:] = plain
            del recording.headers["content-encoding"]
        if self.reads:
            ends = [0, *accumulate(map(len, recording.pieces))]
            recording.end.extend(map(ends.__getitem__, self._pieces_after))
            _, timespecs, read_at_ns, empty_at_ns = zip(*self.reads, strict=True)
            recording.read_at_ns.extend(read_at_ns)
            if clock is not None and all(timespecs):
                recording.at_ns = clock.from_kernel(b"".join(timespecs))
                recording.empty_at_ns = np.array(empty_at_ns, dtype=np.int64)
        self._parser = None  # it refers back here, and nothing collects cycles inside a cell
        return recording

    # What httptools calls:

    def on_header(self, name: bytes, value: bytes) -> None:
        self.recording.keep_header(name.decode("latin-1"), value.decode("latin-1"))
        name = name.lower()
        if name == b"transfer-encoding" and b"chunked" in value.lower():
            self._framed = self._chunked = True
        elif name == b"content-length":
            self._framed = True

    def on_headers_complete(self) -> None:
        self.recording.status = self._parser.get_status_code()
        self.headers_complete = self.recording.status >= HTTPStatus.OK
        self.eager = not (self.headers_complete and self._chunked)

    def on_message_complete(self) -> None:
        if not self.headers_complete:  # an interim reply, as 100 and 103 are
            self.recording.status = 0
            self.recording.headers.clear()
            return
        self.complete = True
        self.keeps_alive = self._parser.should_keep_alive()
