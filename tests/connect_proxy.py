"""An HTTP proxy in a thread of its own, for whom every host name is this machine."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple
from urllib.parse import urlsplit


class Seen(NamedTuple):
    """The head of a request to the proxy; header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]


class ConnectProxy:
    """Opens tunnels and forwards requests. ``answer`` is said to CONNECT in place of a tunnel, and
    the connection is closed; where it is ``None``, nothing is ever said. After ``most`` requests
    all are refused."""

    def __init__(self, answer: bytes | None, most: int) -> None:
        self._answer = answer
        self._most = most
        self.seen: list[Seen] = []
        self.port = 0
        self._over = asyncio.Event()
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._over.wait()
        server.close()
        left = dict(self._open)
        for writer in left:
            writer.transport.abort()
        await asyncio.gather(*filter(None, left.values()), return_exceptions=True)
        await asyncio.sleep(0.01)  # for transports to close

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)

    async def _connection(self, ours: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._open[back] = asyncio.current_task()
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._serve(ours, back)
        back.close()
        del self._open[back]

    async def _serve(self, ours: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        head = await ours.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        self.seen.append(Seen(method, target, headers))
        answer = self._answer if len(self.seen) <= self._most else b"HTTP/1.1 502 No\r\n\r\n"
        if method != "CONNECT":
            parts = urlsplit(target)
            theirs, there = await asyncio.open_connection("127.0.0.1", parts.port)
            own = [f"{method} {parts.path} HTTP/1.1", "Connection: close"]
            own += [line for line in lines if not line.lower().startswith(("proxy-", "connection"))]
            there.write("\r\n".join([*own, "\r\n"]).encode("latin-1"))
        elif answer is None:
            await ours.read()
            return
        elif answer:
            back.write(answer)
            await back.drain()
            return
        else:
            port = int(target.rpartition(":")[2])
            theirs, there = await asyncio.open_connection("127.0.0.1", port)
            back.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
        await asyncio.gather(_copy(ours, there), _copy(theirs, back))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def connect_proxy(answer: bytes | None = b"", most: int = 1000) -> Iterator[ConnectProxy]:
    """A proxy for as long as entered."""
    proxy, ready = ConnectProxy(answer, most), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(proxy.serve(ready),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)
