"""Servers that are already here: what answers at the usual ports of this machine.

They are asked for their models and for nothing else: without a key, without a proxy, for a moment.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from llmbench.drive.endpoint import USER_AGENT
from llmbench.plan.lengths import shown

USUAL_PORTS = {
    8000: "vLLM",
    8080: "llama.cpp",
    30000: "SGLang",
    11434: "Ollama",
    1234: "LM Studio",
}
PATIENCE_S = 0.3
MOST_BYTES = 1 << 20

_SAFE = re.compile(r"[A-Za-z0-9._:/-]{1,100}")
"""A model's name that a URL and a shell take as it is."""


class Server(Struct, frozen=True):
    """A server on this machine, the engine that its port is usual for, and the models it lists."""

    url: str
    usual: str
    models: list[str]


class _Listing(Struct):
    data: list[Any]


async def servers_here(
    ports: Mapping[int, str] = USUAL_PORTS, patience_s: float = PATIENCE_S
) -> list[Server]:
    """Return the servers that list their models at one of ``ports``, all asked at once."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        timeout=aiohttp.ClientTimeout(total=patience_s),
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    ) as session:
        listings = await asyncio.gather(*(_listing(session, port) for port in ports))
    return [
        Server(f"http://localhost:{port}", usual, _names(listing))
        for (port, usual), listing in zip(ports.items(), listings, strict=True)
        if listing is not None
    ]


async def _listing(session: aiohttp.ClientSession, port: int) -> _Listing | None:
    """Return what the server at ``port`` lists; ``None`` where none does."""
    url, body = f"http://127.0.0.1:{port}/v1/models", b""
    try:
        async with session.get(url, allow_redirects=False) as reply:
            if reply.status != 200:
                return None
            async for piece in reply.content.iter_any():
                body += piece
                if len(body) > MOST_BYTES:
                    return None
        return msgspec.json.decode(body, type=_Listing)
    except (aiohttp.ClientError, OSError, ValueError, RecursionError):
        return None


def _names(listing: _Listing) -> list[str]:
    ids = [model.get("id") for model in listing.data if isinstance(model, dict)]
    return [name for name in ids if isinstance(name, str) and name]


def invitation(servers: Sequence[Server]) -> str:
    """Return one line that names ``servers``, and the command that measures them."""
    places = ", ".join(
        f"{each.url} ({each.usual}'s usual port{_models(each.models)})" for each in servers
    )
    targets = " ".join(f"--target {_target(each)}" for each in servers)
    answers = "a server answers" if len(servers) == 1 else "servers answer"
    return f"{answers} at {places}: llmbench sweep {targets}"


def _models(names: Sequence[str]) -> str:
    if not names:
        return ""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"; model {shown(names[0])}{others}"


def _target(server: Server) -> str:
    """Return the target that measures ``server``; of several models one must be named."""
    if len(server.models) < 2:
        return server.url
    model = next((name for name in server.models if _SAFE.fullmatch(name)), "MODEL")
    return f"'{server.url}?model={model}'"
