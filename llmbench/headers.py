"""Headers and query parameters that the user adds to requests: read, checked, laid over each other.

Their values may hold ``${NAME}``, an environment variable that is read when the run begins, and the
marks ``{session}`` and ``{nonce}``, which are filled in for each request.
"""

import re
from collections.abc import Callable, Mapping

from llmbench.errors import UserError

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
HIDDEN = "…"

_MARK = re.compile(r"\{(?:session|nonce)\}")
_KEPT = re.compile(rf"({REFERENCE.pattern.replace('(', '(?:', 1)}|{_MARK.pattern})")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECRET = re.compile(
    r"auth|cookie|credential|key|passw|pwd|secret|signature|token|^sig$|^code$", re.IGNORECASE
)
_OURS = {
    "connection": "llmbench keeps its connections itself",
    "content-length": "it follows from the body",
    "expect": "llmbench sends a request at once",
    "keep-alive": "llmbench keeps its connections itself",
    "te": "it is about the connection",
    "trailer": "it is about the connection",
    "transfer-encoding": "it follows from the body",
    "upgrade": "it is about the connection",
    "x-request-id": "llmbench numbers its requests with it",
}
"""Headers that nobody else can set, and why."""


def read_header(text: str, place: str) -> tuple[str, str]:
    """Read ``Name: value``. The value is never repeated. Raises ``UserError``."""
    name, colon, value = text.partition(":")
    if not colon:
        raise UserError(f"{place}: a colon is missing; write it like 'X-Tier: gold'")
    return name.strip(), value.strip()


def check_header(name: str, value: str, place: str) -> None:
    """Raise ``UserError`` for a header that cannot be sent, or that would break the requests."""
    if not is_header_name(name):
        raise UserError(f"{place}: that is no name of a header; write it like 'X-Tier: gold'")
    if not (value.isascii() and value.replace("\t", " ").isprintable()):
        raise UserError(f"{place} {name}: its value has a character that no header has")
    lower = name.lower()
    if why := _OURS.get(lower):
        raise UserError(f"{place} {name}: {why}; leave it out")
    if lower == "content-type" and "json" not in value.lower():
        raise UserError(f"{place} {name}: the body is JSON; leave it out")
    if lower == "accept-encoding" and value.lower() != "identity":
        raise UserError(f"{place} {name}: a compressor would hold tokens back; leave it out")


def check_parameter(name: str, value: str, place: str) -> None:
    """Raise ``UserError`` for a query parameter that cannot be sent, or would be stored."""
    if not name or not (name.isprintable() and value.isprintable()):
        raise UserError(f"{place}: a name or a value has a character that cannot be shown")
    if is_marked(value):
        raise UserError(f"{place} {name}: {{session}} and {{nonce}} are for headers and the body")
    if is_secret(name) and not REFERENCE.fullmatch(value):
        raise UserError(
            f"{place} {name}: a secret comes from an environment variable: {name}=${{NAME}}"
        )


def is_header_name(name: str) -> bool:
    """Whether a header can be called ``name``."""
    return _TOKEN.fullmatch(name) is not None


def is_secret(name: str) -> bool:
    """Whether what is called ``name`` sounds like a secret."""
    return _SECRET.search(name) is not None


def overlaid(under: Mapping[str, str], over: Mapping[str, str]) -> dict[str, str]:
    """Both tables of headers; where a name is in both, in whatever case, it is the one ``over``."""
    named = {name.lower() for name in over}
    return {name: value for name, value in under.items() if name.lower() not in named} | dict(over)


def hidden(value: str) -> str:
    """``value`` as it may be stored and shown: its variables and marks, and nothing else."""
    parts = _KEPT.split(value)
    return "".join(part if number % 2 else HIDDEN * bool(part) for number, part in enumerate(parts))


def all_hidden(values: Mapping[str, str]) -> dict[str, str]:
    """``values`` as they may be stored and shown."""
    return {name: hidden(value) for name, value in values.items()}


def expanded(value: str, variable: Callable[[str], str]) -> str:
    """``value`` with each ``${NAME}`` replaced by what ``variable`` says that it holds."""
    return REFERENCE.sub(lambda match: variable(match[1]), value)


def is_marked(value: str) -> bool:
    """Whether ``value`` is another one for each request or session."""
    return _MARK.search(value) is not None


def filled(value: str, session: str, nonce: str) -> str:
    """``value`` with its marks filled in."""
    return value.replace("{session}", session).replace("{nonce}", nonce)
