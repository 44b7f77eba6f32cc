"""The proxy that a target is reached through, as the environment names it: ``HTTP_PROXY``,
``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, in either case. Nothing else reads these."""

import ipaddress
import os
from base64 import b64encode
from http import HTTPStatus
from urllib.parse import quote, unquote, urlsplit
from urllib.request import (  # type: ignore[attr-defined]  # the stubs lack the second
    getproxies_environment,
    proxy_bypass_environment,
)

from msgspec import Struct

from llmbench.errors import UserError

DEFAULT_PORTS = {"http": 80, "https": 443}


class Proxy(Struct, frozen=True):
    """An HTTP proxy, and the ``variable`` that names it. ``user`` and ``password`` are for the
    proxy alone: a proxy is never stored, and printed without them."""

    variable: str
    host: str
    port: int
    user: str = ""
    password: str = ""

    @property
    def authority(self) -> str:
        """Its host and port, which is how people are told of it."""
        return authority(self.host, self.port)

    @property
    def url(self) -> str:
        """Its URL with user and password, for libraries."""
        user = f"{quote(self.user, '')}:{quote(self.password, '')}@" if self._has_user else ""
        return f"http://{user}{self.authority}"

    @property
    def token(self) -> str:
        """The user and password as ``Proxy-Authorization: Basic`` takes them, if there are any."""
        return b64encode(f"{self.user}:{self.password}".encode()).decode() if self._has_user else ""

    def refusal(self, status: int) -> str:
        """The words for its refusal to open a tunnel, with what would help."""
        phrase = next((f" {each.phrase}" for each in HTTPStatus if each == status), "")
        hint = "NO_PROXY names the hosts that need no proxy"
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            hint = f"its user and password come from {self.variable}"
        return f"it answered {status}{phrase} to CONNECT ({hint})"

    @property
    def _has_user(self) -> bool:
        return bool(self.user or self.password)

    def __repr__(self) -> str:
        return f"Proxy({self.authority!r})"


def proxy_of(url: str) -> Proxy | None:
    """The proxy that requests to ``url`` go through. Raises ``UserError`` where the environment
    names one that cannot be used."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host or is_loopback(host):
        return None
    named = _named(parts.scheme)
    where = authority(host, parts.port or DEFAULT_PORTS[parts.scheme])
    if named is None or any(map(proxy_bypass_environment, (host, where))):
        return None
    return _read(*named)


def way_to(url: str) -> str:
    """The proxy of ``url`` in words, or why it has none though there is one for others; empty where
    there is none at all."""
    proxy, parts = proxy_of(url), urlsplit(url)
    if proxy is not None:
        return f"through the proxy {proxy.authority} ({proxy.variable})"
    if _named(parts.scheme) is None:
        return ""
    return "loopback: no proxy" if is_loopback(parts.hostname or "") else "NO_PROXY: no proxy"


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine by any name of its loopback interface; no proxy leads there.
    The address that stands for all of a machine's own, 0.0.0.0, leads there too."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


def authority(host: str, port: int) -> str:
    """Host and port in one word."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _named(scheme: str) -> tuple[str, str] | None:
    """The variable that names a proxy for URLs of ``scheme``, and what it holds."""
    proxies = getproxies_environment()
    for key in (scheme, "all"):
        if key in proxies:
            lower = f"{key}_proxy"
            return lower if lower in os.environ else lower.upper(), proxies[key]
    return None


def _read(variable: str, value: str) -> Proxy:
    """The proxy that ``variable`` names. What it holds is never echoed: it may have a password."""
    wrong = UserError(
        f"{variable}: not the URL of a proxy; write http://host:3128, and what is special in a "
        "password as %XX (%40 for @)"
    )
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port or DEFAULT_PORTS["http"]
    except ValueError:
        raise wrong from None
    if parts.scheme != "http":
        raise UserError(
            f"{variable}: a proxy must be an http:// one, not {parts.scheme}://; name one, or list "
            "the target's host in NO_PROXY"
        )
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise wrong
    if not (user + password).isascii():
        raise UserError(f"{variable}: the user or password has characters beyond ASCII")
    return Proxy(variable, parts.hostname, port, user, password)
