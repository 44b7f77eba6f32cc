"""Where a target's requests go, and by which way: host, port, TLS, headers, proxy. The only place
that reads an API key."""

import os
import ssl
from urllib.parse import urlsplit

from msgspec import Struct

from llmbench import __version__
from llmbench.apis import APIS, NAMES
from llmbench.drive.proxy import DEFAULT_PORTS, Proxy, authority, proxy_of
from llmbench.errors import UserError
from llmbench.records import Target

USER_AGENT = f"llmbench/{__version__}"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
LEAST_KEY = 8  # what is shorter is a stand-in, such as "EMPTY", and may be a word of the reply


class Endpoint(Struct, frozen=True):
    """An API's base, taken apart. ``key`` is secret: an endpoint is never stored or printed.
    ``proxy`` is what every client goes through, where there is one."""

    url: str
    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None
    key: str
    proxy: Proxy | None = None
    api: str = NAMES[0]

    @property
    def authority(self) -> str:
        whole = authority(self.host, self.port)
        return whole.removesuffix(f":{DEFAULT_PORTS['https' if self.tls else 'http']}")

    def headers(self) -> dict[str, str]:
        """What every request carries beside its own length and id."""
        headers = {
            "User-Agent": USER_AGENT,
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",  # a compressor holds tokens back
            "Content-Type": "application/json",
        }
        return headers | APIS[self.api].headers(self.key)

    def unopened(self, kind: str, words: str) -> tuple[str, str]:
        """The kind of a failure to connect, and its words: through a proxy, it is the proxy's."""
        if self.proxy is not None:
            return "proxy", f"{self.proxy.authority}: {words}"
        return kind, f"{self.host}: {words}" if kind == "dns" else words

    def redacted(self, said: bytes) -> bytes:
        """``said`` by a server or proxy, with as many asterisks for each secret that it repeats."""
        proxy = self.proxy
        for secret in (self.key, *((proxy.password, proxy.token) if proxy else ())):
            # Hardly any reply has one: to find that out takes a third of what replacing does.
            if len(secret) >= LEAST_KEY and said.rfind(secret.encode()) >= 0:
                said = said.replace(secret.encode(), b"*" * len(secret))
        return said

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


def endpoint(target: Target) -> Endpoint:
    """The endpoint of ``target``, with its key and proxy from the environment and its CA file
    loaded; an engine in process has no place, and no proxy."""
    parts = urlsplit(target.url)
    secure = parts.scheme == "https"
    return Endpoint(
        url=target.url,
        host=parts.hostname or "",
        port=parts.port or DEFAULT_PORTS["https" if secure else "http"],
        path=parts.path,
        tls=_tls_context(target.ca_file) if secure else None,
        key=key_of(target),
        proxy=proxy_of(target.url),
        api=target.api,
    )


def check_environment(target: Target) -> None:
    """Raise ``UserError`` for what of the environment keeps ``target`` from being asked."""
    key_of(target)
    if not target.engine:
        proxy_of(target.url)


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
