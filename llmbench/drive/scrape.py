"""Reads a server's own metrics, which stand beside its API and not under it."""

import aiohttp

from llmbench.apis import prometheus
from llmbench.drive.aiohttp_client import read_all, session
from llmbench.drive.endpoint import Endpoint
from llmbench.drive.redirects import MOST_REDIRECTS, REDIRECTS, followed, may_have_the_key

MOST_BYTES = 4 << 20


async def scrape(endpoint: Endpoint, timeout_s: float = 5.0) -> str:
    """The metrics of the server of ``endpoint``, where they say something that is read.

    Empty where it says nothing, which is what most hosted endpoints do: this never raises. Only the
    endpoint's own origin is asked, wherever a redirect leads: the key must not go elsewhere.
    A request that takes ``timeout_s`` ends it.
    """
    try:
        async with session(endpoint, timeout_s, one_shot=True) as asking:
            for url in _places(endpoint):
                text = await _text(asking, url)
                if prometheus.times(text) or prometheus.cached(text):
                    return text
    except (aiohttp.ClientError, OSError):
        pass  # what cannot be read says nothing
    return ""


def _places(endpoint: Endpoint) -> list[str]:
    """Where the metrics may be: beside the API, which may have a path before ``/v1``, then at the
    root, where a gateway's own may be."""
    root = f"{'https' if endpoint.tls else 'http'}://{endpoint.authority}"
    prefix = endpoint.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return list(dict.fromkeys((f"{root}{prefix}/metrics", f"{root}/metrics")))


async def _text(asking: aiohttp.ClientSession, url: str) -> str:
    """The text at ``url``; empty for anything but a reply of a sensible size that says 200."""
    accept = {"Accept": "text/plain"}
    for _ in range(MOST_REDIRECTS + 1):
        async with asking.get(url, headers=accept, allow_redirects=False) as reply:
            if reply.status == 200:
                body = await read_all(reply, MOST_BYTES)
                return "" if body is None else body.decode(errors="replace")
            place = _elsewhere(url, reply)
        if not place:
            break
        url = place
    return ""


def _elsewhere(url: str, reply: aiohttp.ClientResponse) -> str:
    """Where ``reply`` redirects to on the origin of ``url``; empty where it does not."""
    if reply.status not in REDIRECTS:
        return ""
    try:
        place = followed(url, reply.headers.get("Location", ""))
    except ValueError:
        return ""
    return place if may_have_the_key(url, place) else ""
