"""What event streams have in common whose events say their ``type``: reading them leniently."""

import json
from typing import Any

import msgspec

from llmbench.apis.chunks import MALFORMED, error_message, quoted
from llmbench.records import Event, Kind, Usage

NOTHING = Event(0)


class Malformed(ValueError):  # noqa: N818  it is what came that is
    """The data of an event is no JSON object."""


def read(data: bytes) -> dict[str, Any]:
    """The object that an event holds; empty where it holds nothing. Raises ``Malformed``."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = _read_anyhow(data)
    if not isinstance(document, dict):
        raise Malformed("not a JSON object")
    return document


def _read_anyhow(data: bytes) -> Any:
    """What Python's own reader takes beside: half a surrogate pair, NaN, what is not UTF-8."""
    said = data.decode("utf-8", "replace").strip()
    try:
        return json.loads(said) if said else {}
    except (ValueError, RecursionError) as problem:
        raise Malformed(f"{problem}{quoted(said)}") from None


def malformed(problem: Malformed) -> Event:
    return Event(Kind.ERROR, error=f"{MALFORMED}{problem}")


def failed(said: Any) -> Event:
    """The event of an error, in the server's own words."""
    return Event(Kind.ERROR, error=error_message(said if isinstance(said, bytes) else _json(said)))


def _json(said: Any) -> bytes:
    return json.dumps(said).encode()


def generated(kind: int, said: Any, tokens: int | None = None) -> Event:
    """The event of a piece of text; nothing where it is empty."""
    piece = text(said)
    return Event(kind, piece, tokens) if piece else NOTHING


def text(said: Any) -> str:
    """``said`` as a text: a number, an object or a list of parts may stand for one."""
    if isinstance(said, list):
        said = "".join([part if isinstance(part, str) else word(part, "text") for part in said])
    if isinstance(said, str):
        return said if said.isascii() else _whole_characters(said)
    return "" if said in (None, {}) else json.dumps(said)


def _whole_characters(said: str) -> str:
    """``said`` with a mark in place of half a surrogate pair."""
    return said.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def usage(
    *,
    prompt: Any = None,
    completion: Any = None,
    cached: Any = None,
    reasoning: Any = None,
    total: Any = None,
) -> Usage:
    """Token counts in the words of chat completions; what is no count is left out."""
    return msgspec.convert(
        {
            "prompt_tokens": count(prompt),
            "completion_tokens": count(completion),
            "prompt_tokens_details": {"cached_tokens": count(cached)},
            "completion_tokens_details": {"reasoning_tokens": count(reasoning)},
            "total_tokens": count(total),
        },
        Usage,
    )


def count(value: Any) -> int | None:
    """``value`` where it is a number of tokens; some gateways write it as 12.0."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= value <= 1_000_000_000:
        return None
    return int(value)


def under(of: Any, *keys: str) -> Any:
    """What stands below ``keys`` in nested objects; ``None`` where nothing does."""
    for key in keys:
        of = of.get(key) if isinstance(of, dict) else None
    return of


def word(of: Any, *keys: str) -> str:
    """The text that stands below ``keys``; empty where none does."""
    found = under(of, *keys)
    return found if isinstance(found, str) else ""
