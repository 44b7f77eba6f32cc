"""What the body of a reply is, whatever its content type says: an event stream, or one document."""

import re
from typing import Any

import msgspec

from llmbench.apis import sse

_BOM = b"\xef\xbb\xbf"
_FIELD = re.compile(rb"(?::|(?:data|event|id|retry|error)\s?(?::|[\r\n]))")
_CONTENTS = ("choices", "output", "content")
"""What holds the text of a whole reply, one in each API."""

_PAGE = re.compile(rb"<(?:!doctype|html|head|body|\?xml)", re.IGNORECASE)

PAGE = "a web page: is the target's URL that of an API, and no gateway or login page before it?"


def events(body: bytes, content_type: str) -> list[sse.ServerSentEvent] | None:
    """The events of ``body``: those of a stream, or one that holds a whole JSON document. ``None``
    where it is neither."""
    if content_type.lower().startswith("text/event-stream"):
        return sse.parse(body) or document(body)
    start = body[:64].removeprefix(_BOM).lstrip()
    return sse.parse(body) if _FIELD.match(start) else document(body) or None


def document(body: bytes) -> list[sse.ServerSentEvent]:
    """The event that a stream would have sent in place of ``body``, a whole JSON document; none for
    anything else. What is no reply is an error."""
    try:
        said = msgspec.json.decode(body.removeprefix(_BOM))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    if not isinstance(said, dict | list):
        return []
    if not isinstance(said, dict) or said.get("error") or not any(map(said.get, _CONTENTS)):
        return [(len(body), body, "error")]
    return [(len(body), msgspec.json.encode(_as_chunk(said)), "")]


def is_page(body: bytes) -> bool:
    """Whether ``body`` is made for a browser."""
    return _PAGE.match(body[:64].removeprefix(_BOM).lstrip()) is not None


def _as_chunk(said: dict[str, Any]) -> dict[str, Any]:
    """A reply that was not streamed, in the words of one that was."""
    choices = said.get("choices")
    if not isinstance(choices, list):
        return said
    streamed = [
        choice | {"delta": choice["message"]}
        if isinstance(choice, dict) and "message" in choice
        else choice
        for choice in choices
    ]
    return said | {"choices": streamed}
