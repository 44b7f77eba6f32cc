"""What the poller promises: every socket is read, and none had anything at ``empty_at_ns``."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

import pytest
from conftest import PATIENCE_S

from llmbench.drive.poller import FEW, Poller

COUNT = 3 * FEW + 1


class Watched:
    """Sockets under a poller, and what it said each time it found one readable."""

    def __init__(self, stack: ExitStack) -> None:
        self.poller = Poller()
        self.empty_at_ns: list[int] = []
        self._peers = []
        for _ in range(COUNT):
            ours, theirs = map(stack.enter_context, socket.socketpair())
            ours.setblocking(False)
            self._peers.append(theirs)
            self.poller.add(ours.fileno(), self._reader(ours))

    def _reader(self, ours: socket.socket) -> Callable[[], None]:
        def read() -> None:
            if ours.recv(100):
                self.empty_at_ns.append(self.poller.empty_at_ns)

        return read

    async def write_to_all(self) -> int:
        """When the first byte was written."""
        before_ns = time.monotonic_ns()
        for peer in self._peers:
            peer.send(b"x")
        return before_ns

    async def until_read(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.empty_at_ns) < count:
                await asyncio.sleep(0.001)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    with ExitStack() as stack:
        each = Watched(stack)
        yield each
        each.poller.close()


@pytest.mark.parametrize("due_in_s", [None, -10.0, 0.0, 0.02, 10.0])
async def test_what_is_read_was_not_there_at_the_look_before(
    watched: Watched, due_in_s: float | None
) -> None:
    """In a closed loop (no due time), and around a due time of an open one, where sockets are read
    a few at a time: those that wait for the next look must not pass for having been empty."""
    for round_ in range(1, 4):
        if due_in_s is not None:
            watched.poller.due_ns = time.monotonic_ns() + int(due_in_s * 1e9)
        written_ns = await watched.write_to_all()
        await watched.until_read(round_ * COUNT)
        mine = watched.empty_at_ns[(round_ - 1) * COUNT :]
        assert len(mine) == COUNT
        assert max(mine) <= written_ns


async def test_each_socket_is_read_though_a_request_is_due_all_the_time(watched: Watched) -> None:
    async def always_due() -> None:
        while True:
            watched.poller.due_ns = time.monotonic_ns() + 500_000
            await asyncio.sleep(0.001)

    busy = asyncio.create_task(always_due())
    await watched.write_to_all()
    await watched.until_read(COUNT)
    busy.cancel()


async def test_a_socket_that_was_removed_is_not_called(watched: Watched) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        called = []
        watched.poller.add(ours.fileno(), lambda: called.append(1))
        watched.poller.remove(ours.fileno())
        theirs.send(b"x")
        await asyncio.sleep(0.01)
    assert called == []


async def test_while_it_blocks_for_a_request_it_reads(watched: Watched) -> None:
    written_ns = await watched.write_to_all()
    watched.poller.due_ns = time.monotonic_ns() + 50_000_000
    watched.poller.serve(watched.poller.due_ns)
    assert time.monotonic_ns() >= watched.poller.due_ns
    assert len(watched.empty_at_ns) == COUNT
    assert max(watched.empty_at_ns) <= written_ns
