"""Where a target's requests go, and by which way: host, port, TLS, headers, proxy. The only place
that reads an API key."""

import os
import re
import ssl
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlencode, urlsplit

from msgspec import Struct

from llmbench import __version__
from llmbench.apis import APIS, NAMES
from llmbench.apis.api import bearer
from llmbench.drive.proxy import DEFAULT_PORTS, Proxy, authority, proxy_of
from llmbench.errors import UserError
from llmbench.headers import REFERENCE, all_hidden, expanded, filled, is_marked, is_secret, overlaid
from llmbench.records import Target

USER_AGENT = f"llmbench/{__version__}"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
BEARER = "bearer"
KEY_HEADERS = frozenset(("api-key", "x-api-key", "x-goog-api-key"))
_QUOTED, _SCHEME = re.compile(r"(['\"]).*\1$"), re.compile(r"bearer\s", re.IGNORECASE)
LEAST_KEY = 8  # what is shorter is a stand-in, such as "EMPTY", and may be a word of the reply


class Endpoint(Struct, frozen=True):
    """An API's base, taken apart. ``key`` and ``secrets`` are secret, as ``own`` headers and the
    ``query`` may be: an endpoint is never stored or printed. ``proxy`` is what every client goes
    through, where there is one."""

    url: str
    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None
    key: str
    proxy: Proxy | None = None
    api: str = NAMES[0]
    auth: str = ""
    own: dict[str, str] = {}
    query: str = ""
    secrets: tuple[str, ...] = ()

    @property
    def authority(self) -> str:
        whole = authority(self.host, self.port)
        return whole.removesuffix(f":{DEFAULT_PORTS['https' if self.tls else 'http']}")

    def headers(self) -> dict[str, str]:
        """What every request carries beside its own length and id, and what is marked to differ."""
        always = {name: value for name, value in self.own.items() if not is_marked(value)}
        return _headers(self.api, self.auth, self.key, always)

    def filled(self, session: str, nonce: str) -> dict[str, str]:
        """The headers that differ from request to request."""
        return {
            name: filled(value, session, nonce)
            for name, value in self.own.items()
            if is_marked(value)
        }

    def url_of(self, path: str) -> str:
        """The whole URL of what lies at ``path`` below the base."""
        return f"{self.url}{path}{self.query}"

    def unopened(self, kind: str, words: str) -> tuple[str, str]:
        """The kind of a failure to connect, and its words: through a proxy, it is the proxy's."""
        if self.proxy is not None:
            return "proxy", f"{self.proxy.authority}: {words}"
        return kind, f"{self.host}: {words}" if kind == "dns" else words

    def redacted(self, said: bytes) -> bytes:
        """``said`` by a server or proxy, with as many asterisks for each secret that it repeats."""
        proxy = self.proxy
        its = (proxy.password, proxy.token) if proxy else ()
        for secret in (self.key, *self.secrets, *its):
            # Hardly any reply has one: to find that out takes a third of what replacing does.
            if len(secret) >= LEAST_KEY and said.rfind(secret.encode()) >= 0:
                said = said.replace(secret.encode(), b"*" * len(secret))
        return said

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


def _headers(api: str, auth: str, key: str, own: Mapping[str, str]) -> dict[str, str]:
    """Our headers, with the ``key`` as the ``api`` or ``auth`` has it, under those that are the
    user's ``own``: an empty one is not sent, and neither is ours of that name."""
    ours = {
        "User-Agent": USER_AGENT,
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",  # a compressor holds tokens back
        "Content-Type": "application/json",
    }
    ours |= APIS[api].headers("" if auth else key)
    if key and auth:
        ours |= bearer(key) if auth == BEARER else {auth: key}
    return {name: value for name, value in overlaid(ours, own).items() if value}


def shown_headers(target: Target) -> dict[str, str]:
    """The headers of ``target`` as they may be shown: no secret, and nothing of the environment."""
    is_set = os.environ.get(target.key_env) and not _has_own_key(target)
    key = f"${{{target.key_env}}}" if is_set else ""
    return _headers(target.api, target.auth, key, all_hidden(target.headers))


def shown_url(target: Target, path: str) -> str:
    """The URL that requests of ``target`` go to, as it may be shown."""
    return f"{target.url}{path}{_query(target.query, '${}')}"


_IN_A_QUERY = ":/,"


def _query(parameters: Mapping[str, str], also_safe: str = "") -> str:
    if not parameters:
        return ""
    return f"?{urlencode(parameters, safe=_IN_A_QUERY + also_safe, quote_via=quote)}"


def endpoint(target: Target) -> Endpoint:
    """The endpoint of ``target``, with its key, what else is secret and its proxy from the
    environment and its CA file loaded; an engine in process has no place, and no proxy."""
    parts = urlsplit(target.url)
    secure = parts.scheme == "https"
    variable = _variables(target)
    own = {name: expanded(value, variable) for name, value in target.headers.items()}
    query = {name: expanded(value, variable) for name, value in target.query.items()}
    return Endpoint(
        url=target.url,
        host=parts.hostname or "",
        port=parts.port or DEFAULT_PORTS["https" if secure else "http"],
        path=parts.path,
        tls=_tls_context(target) if secure else None,
        key=_sent_key(target),
        proxy=proxy_of(target.url),
        api=target.api,
        auth=target.auth,
        own=own,
        query=_query(query),
        secrets=_secrets(target, own),
    )


def _sent_key(target: Target) -> str:
    return "" if _has_own_key(target) else key_of(target)


def _has_own_key(target: Target) -> bool:
    """Whether a header of the user's is the key: OpenAI's is then for nobody else to see."""
    named = {name.lower() for name in target.headers}
    return target.key_env == DEFAULT_KEY_ENV and bool(named & KEY_HEADERS)


def _variables(target: Target) -> Callable[[str], str]:
    """What reads an environment variable that headers or the query of ``target`` name."""

    def read(name: str) -> str:
        value = os.environ.get(name, "").strip()
        if not value:
            raise UserError(f"{target.name}: the environment variable {name} is not set")
        if not (value.isascii() and value.isprintable()):
            raise UserError(f"{target.name}: {name} has a character that no header has")
        return value

    return read


def _secrets(target: Target, own: Mapping[str, str]) -> tuple[str, ...]:
    """What of the user's headers and query no server is to have repeated: what variables hold, and
    what is written in headers that sound like it; as it is, and as a URL spells it."""
    read = _variables(target)
    given = (*target.headers.values(), *target.query.values())
    found = [read(match[1]) for value in given for match in REFERENCE.finditer(value)]
    for name, value in own.items():
        if is_secret(name) and not is_marked(value):
            found += [value, value.rpartition(" ")[2]]  # with its scheme, and without
    found += [quote(value, safe=safe) for value in found for safe in ("", _IN_A_QUERY)]
    return tuple(sorted(set(found), key=len, reverse=True))


def check_environment(target: Target) -> None:
    """Raise ``UserError`` for what of the environment keeps ``target`` from being asked."""
    key_of(target)
    for value in (*target.headers.values(), *target.query.values()):
        expanded(value, _variables(target))
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
    for more, what in ((_QUOTED, "quotes"), (_SCHEME, "the word Bearer")):
        if more.match(key):
            raise UserError(
                f"{target.name}: {target.key_env} holds {what} as well: set it to the key alone"
            )
    return key


def _tls_context(target: Target) -> ssl.SSLContext:
    ca_file = target.ca_file
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as problem:
        raise UserError(f"ca_file {ca_file}: not a readable PEM file ({problem})") from None
    if target.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
