"""Where a target's requests go: host, port, TLS, headers. The only place that reads an API key."""

import os
import ssl
from urllib.parse import urlsplit

from msgspec import Struct

from llmbench import __version__
from llmbench.errors import UserError
from llmbench.records import Target

USER_AGENT = f"llmbench/{__version__}"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
LEAST_KEY = 8  # what is shorter is a stand-in, such as "EMPTY", and may be a word of the reply


class Endpoint(Struct, frozen=True):
    """An API's base, taken apart. ``key`` is secret: an endpoint is never stored or printed."""

    url: str
    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None
    key: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def headers(self) -> dict[str, str]:
        """What every request carries beside its own length and id."""
        headers = {
            "User-Agent": USER_AGENT,
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",  # a compressor holds tokens back
            "Content-Type": "application/json",
        }
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return headers

    def redacted(self, said: bytes) -> bytes:
        """``said`` by a server, with as many asterisks for the key, should it repeat that."""
        key = self.key.encode()
        # In every reply there is: rfind looks at few of its bytes, and takes a third of the time.
        if len(key) < LEAST_KEY or said.rfind(key) < 0:
            return said
        return said.replace(key, b"*" * len(key))

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


def endpoint(target: Target) -> Endpoint:
    """The endpoint of ``target``, with its key from the environment and its CA file loaded."""
    parts = urlsplit(target.url)
    secure = parts.scheme == "https"
    return Endpoint(
        url=target.url,
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 80),
        path=parts.path,
        tls=_tls_context(target.ca_file) if secure else None,
        key=key_of(target),
    )


def key_of(target: Target) -> str:
    """The API key of ``target``, empty where it has none. Raises ``UserError`` where the variable
    that was named for it is not set, or holds no key."""
    key = os.environ.get(target.key_env, "").strip()
    if not key and target.key_env != DEFAULT_KEY_ENV:
        raise UserError(f"{target.name}: the environment variable {target.key_env} is not set")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{target.name}: the key in {target.key_env} has characters no key has")
    return key


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as problem:
        raise UserError(f"ca_file {ca_file}: not a readable PEM file ({problem})") from None
