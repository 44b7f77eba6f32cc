"""The log of true send times: one ``Reply`` for each reply to a completion request."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import msgspec
from msgspec import Struct

Ended = Literal["complete", "truncated", "reset", "hung", "disconnected", "shutdown"]


class Reply(Struct, frozen=True, kw_only=True):
    """What the server truly did. All times are CLOCK_MONOTONIC of its machine, in nanoseconds.

    ``received_ns`` is when the read that completed the request arrived (``stamps`` says by whose
    clock); ``started_ns`` is later where the reply had to wait for a slot or for the reply before
    it on its connection. ``sent_ns[i]`` was taken right before the send that completed event ``i``,
    and ``took_ns[i]`` is how long that send took: the event left within it. Comments are no events.
    Token events are ``first_token`` … ``last_token``, as planned: a reply that broke off has fewer.
    ``late_ns`` is the most that any send was behind its schedule, and ``blocked`` how often the
    peer's full buffer held one back.
    """

    number: int
    request_id: str
    connection: int
    path: str
    status: int
    stamps: Literal["kernel", "user"]
    received_ns: int
    started_ns: int
    ended_ns: int
    ended: Ended
    sent_ns: Sequence[int]
    took_ns: Sequence[int]
    first_token: int | None
    last_token: int | None
    prompt_tokens: int
    output_tokens: int
    late_ns: int
    blocked: int

    @property
    def token_sent_ns(self) -> Sequence[int]:
        """When each token event was sent, in order."""
        if self.first_token is None or self.last_token is None:
            return []
        return self.sent_ns[self.first_token : self.last_token + 1]

    @property
    def token_took_ns(self) -> Sequence[int]:
        """How long each token event's send took, in order."""
        if self.first_token is None or self.last_token is None:
            return []
        return self.took_ns[self.first_token : self.last_token + 1]

    @property
    def ttft_ns(self) -> int | None:
        """The true time to first token, or ``None`` where no token was sent."""
        sent = self.token_sent_ns
        return sent[0] - self.received_ns if sent else None


class Log:
    """The replies, kept as compact arrays; turned into JSON lines only when there is time."""

    def __init__(self, path: Path | None = None) -> None:
        self._replies: list[Reply] = []
        self._written = 0
        self._encoder = msgspec.json.Encoder(enc_hook=list)  # array('q') is all it has to hook
        self._file: BinaryIO | None = path.open("ab") if path else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self.write_one():
            pass
        if self._file:
            self._file.close()

    def __len__(self) -> int:
        return len(self._replies)

    def add(self, reply: Reply) -> None:
        """Keep ``reply``; its ``number`` must be ``len(log)``."""
        self._replies.append(reply)

    def lines(self, since: int = 0) -> bytes:
        """The replies from number ``since`` on, one JSON document a line."""
        return self._encoder.encode_lines(self._replies[since:])

    def write_one(self) -> bool:
        """Write one reply to the file, and say whether there was one; flush when all are there."""
        if self._file is None or self._written == len(self._replies):
            return False
        self._file.write(self._encoder.encode(self._replies[self._written]) + b"\n")
        self._written += 1
        if self._written == len(self._replies):
            self._file.flush()
        return True

    def reset(self) -> None:
        """Forget the replies, once the file has them all; numbers start again from 0."""
        while self.write_one():
            pass
        self._replies.clear()
        self._written = 0


def parse_log(lines: bytes) -> list[Reply]:
    """Read what ``Log.lines`` or a log file holds; raise ``msgspec.DecodeError`` if it is none."""
    decoder = msgspec.json.Decoder(Reply)
    return [decoder.decode(line) for line in lines.splitlines()]
