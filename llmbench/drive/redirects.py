"""Where a server redirects to, and whether a request may follow: a key goes to no other host."""

from urllib.parse import quote, urljoin, urlsplit

from msgspec.structs import replace

from llmbench.drive.proxy import DEFAULT_PORTS, authority
from llmbench.records import Target

REDIRECTS = (301, 302, 307, 308)
MOST_REDIRECTS = 5

_KEPT = "%:/?#[]@!$&'()*+,;=~"
"""What of a URL is not to be quoted: it has a meaning, or is quoted already."""


def followed(url: str, location: str) -> str:
    """The URL that ``location`` names for a request to ``url``. Raises ``ValueError`` where it
    names none."""
    parts = urlsplit(quote(urljoin(url, location.strip()), safe=_KEPT))
    if not location.strip() or parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError("no URL of HTTP")
    where = authority(parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme])
    # Neither the user nor the fragment of a Location is for us.
    where = where.removesuffix(f":{DEFAULT_PORTS[parts.scheme]}")
    return parts._replace(netloc=where, fragment="").geturl()


def may_have_the_key(url: str, place: str) -> bool:
    """Whether what is secret for ``url`` may go to ``place``: to the same host and port, or from
    plain HTTP to the same host's TLS."""
    before, after = urlsplit(url), urlsplit(place)
    origins = [
        (parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme])
        for parts in (before, after)
    ]
    upgraded = ("https", before.hostname, DEFAULT_PORTS["https"])
    plain = ("http", before.hostname, DEFAULT_PORTS["http"])
    return origins[0] == origins[1] or (origins[0] == plain and origins[1] == upgraded)


def moved(target: Target, place: str, path: str) -> Target:
    """``target`` whose API's requests, at ``path`` of it, go to ``place``: below another base where
    ``place`` ends as they do, else to a path of its own."""
    parts = urlsplit(place)
    query = "" if target.query else parts.query  # the target's own is added to every request
    own = parts.path + (f"?{query}" if query else "")
    if own.endswith(path):
        return replace(target, url=parts._replace(query="").geturl().removesuffix(path), path="")
    base = urlsplit(target.url).path.rstrip("/")
    if not own.startswith(f"{base}/"):
        base = ""
    root = parts._replace(path=base, query="").geturl()
    return replace(target, url=root, path=own.removeprefix(base))
