"""What replies say: words without JSON escapes, so that they can be pasted between quotes."""

from typing import Any, Protocol

from llmbench.truth.script import Script

_WORDS = b" The ruler knows its own error , so you can trust what it reads .".split()
_PLAIN = tuple(word if word in b",." else b" " + word for word in _WORDS)
_FOREIGN = tuple(f" {word}".encode() for word in ("naïve", "光", "Ωmega", "🙂", "señal", "время"))

Event = tuple[bytes, bytes]
"""The name of an event of the stream, empty where it has none, and its data."""

Block = list[Event]
"""Events that go out in one send and count as one."""


class Writer(Protocol):
    """Writes one reply in the words of one API: ``tokens`` of output, in blocks or at once."""

    tokens: int

    def opening(self) -> list[Block]:
        """What comes before the first token, and with it."""

    def token_blocks(self) -> list[Block]:
        """What carries tokens, in order."""

    def closing(self) -> list[Block]:
        """What comes after the last token, and with it."""

    def error(self, message: str) -> Event:
        """An error in the middle of a stream."""

    def document(self) -> bytes:
        """The whole reply as one JSON document."""


def text(script: Script, start: int, stop: int) -> bytes:
    """The text of the tokens from ``start`` to ``stop``."""
    words = _FOREIGN if script.split_bytes else _PLAIN
    return b"".join([words[i % len(words)] for i in range(start, stop)])


def error_detail(status: int, message: str, code: str = "") -> dict[str, Any]:
    """An error in OpenAI's words."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "param": None, "code": code or None}
