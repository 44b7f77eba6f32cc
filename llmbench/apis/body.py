"""Fields that the user adds to a request's body: laid over each other, and over ours."""

from collections.abc import Mapping
from typing import Any

import msgspec

from llmbench.headers import filled

Fields = Mapping[str, Any]


def layered(under: Fields, over: Fields) -> dict[str, Any]:
    """Both tables as one: tables within are laid over each other, all else is the one ``over``."""
    found = dict(under)
    for name, value in over.items():
        mine = found.get(name)
        if isinstance(mine, dict) and isinstance(value, dict):
            found[name] = layered(mine, value)
        else:
            found[name] = value
    return found


def with_fields(body: bytes, fields: Fields) -> bytes:
    """The document ``body`` with ``fields`` laid over its own; ``None`` removes a field."""
    if not fields:
        return body
    # Long prompts are not decoded: they stay the bytes that they are.
    document: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    for name, value in fields.items():
        if isinstance(value, dict) and name in document:
            document[name] = msgspec.json.decode(document[name])
    return msgspec.json.encode(_patched(document, fields))


def _patched(document: Any, fields: Fields) -> dict[str, Any]:
    """RFC 7396, a JSON merge patch."""
    found = dict(document) if isinstance(document, dict) else {}
    for name, value in fields.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = _patched(found.get(name), value) if isinstance(value, dict) else value
    return found


def filled_in(value: Any, session: str, nonce: str) -> Any:
    """``value`` with the marks in its texts filled in."""
    if isinstance(value, dict):
        return {name: filled_in(item, session, nonce) for name, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, session, nonce) for item in value]
    return filled(value, session, nonce) if isinstance(value, str) else value
