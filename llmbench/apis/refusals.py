"""What a server says when it does not take a request: in which words, and of which fields.

Servers agree on nothing here. Some name the field in a place of its own (OpenAI's ``param``, the
``loc`` of pydantic), some in a sentence, some in a document inside a sentence, and some not at all.
"""

import re
from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Struct

from llmbench.apis import lenient
from llmbench.apis.chunks import error_message

PLACES = ("loc", "param", "field", "parameter")
"""Keys of an error whose value is where in the request it is."""

ECHOES = ("input", "ctx", "request", "request_body", "messages", "prompt")
"""Keys under which a server repeats what was asked."""

CODES = ("code", "status", "status_code")

_ECHO = re.compile(r"[\"']input[\"']\s*:\s*\{.*", re.DOTALL)
_ALTERNATIVES = re.compile(
    r"(?<!not )\b(?:expected|allowed|supported|valid|permitted|known|accepted|available)\b"
    r"[^.:\n]{0,40}?\b(?:one of|fields?|param\w*|arg\w*|keys?|properties|are)\b.*",
    re.IGNORECASE,
)
_AMOUNTS = re.compile(
    r"at (?:least|most)|minimum|maximum|higher|larger|lower|smaller|increase|reduce|exceed"
    r"|too (?:small|short|low|few|large|long|high|many)|below|above|(?:greater|less).than|[<>]="
    r"|limit was reached",
    re.IGNORECASE,
)

_CONTEXT = re.compile(r"context|too long|n_ctx|max\w*[ _](?:model|sequence)[ _]len", re.IGNORECASE)

_CONFLICT = re.compile(
    r"together|\bboth\b|either|exclusive|combin|conflict|at the same time", re.IGNORECASE
)


class Refusal(Struct, frozen=True):
    """Why a request was not taken. ``said`` is that in one line of the server's own words,
    ``places`` are the paths that it gives, ``words`` all that it says, and ``code`` is the status
    inside the document."""

    said: str
    places: list[list[str]] = []
    words: str = ""
    code: int | None = None

    def names(self, fields: Collection[str]) -> list[str]:
        """Which of ``fields`` it is about: by the places it gives, else by its words."""
        inner = [
            next((word for word in reversed(place) if word in fields), "") for place in self.places
        ]
        placed = [name for name in fields if name in inner]
        return placed or [name for name in fields if self.mentions(name)]

    def mentions(self, field: str) -> bool:
        first, *others = field.split("_")
        camel = first + "".join(map(str.capitalize, others))
        return re.search(rf"(?<!\w)(?:{field}|{camel})(?!\w)", self.words) is not None

    @property
    def is_of_amount(self) -> bool:
        """Whether it says that something is too small or too large."""
        return _AMOUNTS.search(self.words) is not None

    @property
    def is_of_context(self) -> bool:
        """Whether it says that the prompt and the reply have no room together."""
        return _CONTEXT.search(self.words) is not None

    @property
    def is_of_conflict(self) -> bool:
        """Whether it says that fields do not go together, each of which may do alone."""
        return _CONFLICT.search(self.words) is not None


def read_refusal(body: bytes) -> Refusal:
    """What the ``body`` of an error says, be it an HTTP reply's or an event's."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = body.decode("utf-8", "replace")
    found = _Found()
    found.look(document)
    said = error_message(body)
    if found.path and found.path[-1] not in said:
        said = f"{'.'.join(found.path)}: {said}"
    if found.quoted and found.quoted not in said:
        said = f"{said}: {found.quoted}"
    return Refusal(said, found.places, "\n".join(found.words), found.code)


def is_error(body: bytes) -> bool:
    """Whether ``body`` is a bare JSON document that tells of an error."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(document, dict) and lenient.states_error(document)


class _Found:
    """What a document of an error holds."""

    def __init__(self) -> None:
        self.places: list[list[str]] = []
        self.words: list[str] = []
        self.code: int | None = None
        self.path: list[str] = []  # the first place that its message may not speak of
        self.quoted = ""  # what a gateway heard from the server behind it

    def look(self, said: Any) -> None:
        if isinstance(said, dict):
            for key, value in said.items():
                self._look_at(str(key), value)
        elif isinstance(said, list):
            for each in said:
                self.look(each)
        elif isinstance(said, str):
            # What follows is no longer about what was wrong: the request, or what would be right.
            self.words.append(_ALTERNATIVES.sub("", _ECHO.sub("", said)))

    def _look_at(self, key: str, value: Any) -> None:
        if key in ECHOES:
            return
        if key in PLACES:
            self._place(value)
        elif key in CODES and self.code is None:
            self.code = _status(value)
        elif key == "raw" and isinstance(value, str):
            self.quoted = error_message(value.encode())
        self.words.append(key)
        self.look(value)

    def _place(self, value: Any) -> None:
        parts = value if isinstance(value, list) else re.split(r"\W+", str(value or ""))
        if words := [str(part) for part in parts if part not in ("", "None", None)]:
            self.places.append(words)
            if isinstance(value, list) and not self.path:
                self.path = words


def _status(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError):
        return None
    return number if 400 <= number < 600 else None
