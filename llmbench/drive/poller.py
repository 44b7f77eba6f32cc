"""Tells connections that there is something to read: one poll for all of them, one call for each.

The kernel has stamped what is waiting, so nothing is gained by reading it a moment sooner. Where
there are many sockets the poller looks at most once a millisecond: one poll then serves several of
them, and the client takes a third less of the machine that it shares with what it measures.
"""

import asyncio
import select
import time
from collections.abc import Callable

LOOK_EVERY_NS = 1_000_000
BLOCK_NS = 1_300_000
"""How long before a request is due the process belongs to it: the selector rounds waits up to a
millisecond, and must not reach past the due time."""

MANY = 16

NEAR_NS = 300_000
"""So near to a due time, before it and after, sockets are left unread."""

SERVE_EVERY_NS = 200_000
FEW = 8
"""How many sockets an open loop reads at a time: what their replies take to keep must not make the
next request late."""


class Poller:
    """Watches sockets by their descriptors, inside a running event loop.

    ``empty_at_ns`` is when it looked at all of them before: what one has now was not there then.
    ``due_ns`` is when the next request of an open loop is to be sent, which the poller does not
    sleep through; 0 in a closed loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._looked_at_ns = self._saw_all_at_ns = self.empty_at_ns = time.monotonic_ns()
        self._saw_all = True
        self.due_ns = 0
        if self._epoll is not None:
            self._loop.add_reader(self._epoll.fileno(), self._drain, self._epoll)

    def add(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` whenever ``descriptor`` can be read, until it is removed."""
        if self._epoll is None:  # not Linux
            self._loop.add_reader(descriptor, self._look_then, ready)
            return
        self._ready[descriptor] = ready
        self._epoll.register(descriptor, select.EPOLLIN)

    def remove(self, descriptor: int) -> None:
        if self._epoll is None:
            self._loop.remove_reader(descriptor)
        elif self._ready.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _drain(self, epoll: "select.epoll") -> None:
        now_ns = time.monotonic_ns()
        if self._busy(now_ns):
            return
        early_ns = self._looked_at_ns + LOOK_EVERY_NS - now_ns
        if self.due_ns > now_ns:
            early_ns = min(early_ns, self.due_ns - BLOCK_NS - now_ns)
        if early_ns > 0 and len(self._ready) >= MANY and self._saw_all:
            time.sleep(early_ns / 1e9)
        self._look(epoll, FEW if self.due_ns else -1)

    def serve(self, until_ns: int) -> None:
        """Block until then, and read what comes meanwhile."""
        while (left_ns := until_ns - time.monotonic_ns()) > NEAR_NS and self._epoll is not None:
            self._look(self._epoll, FEW)
            if self._saw_all:
                time.sleep(min(left_ns - NEAR_NS, SERVE_EVERY_NS) / 1e9)
        if left_ns > 0:
            time.sleep(left_ns / 1e9)

    def _look(self, epoll: "select.epoll", most: int) -> None:
        """Read ``most`` of the sockets that have something, or all of them where that is -1."""
        self._looked_at_ns, self.empty_at_ns = time.monotonic_ns(), self._saw_all_at_ns
        waiting = epoll.poll(0, most)
        self._saw_all = len(waiting) != most
        ready_of = self._ready.get
        for descriptor, _ in waiting:
            if self.due_ns and self._busy(time.monotonic_ns()):
                self._saw_all = False  # what is left is stamped, and still there at the next look
                break
            if ready := ready_of(descriptor):  # an earlier call may have closed it
                ready()
        if self._saw_all:
            self._saw_all_at_ns = self._looked_at_ns

    def _busy(self, now_ns: int) -> bool:
        """Whether a request is to be sent right now: what has come can wait."""
        return -NEAR_NS < now_ns - self.due_ns < NEAR_NS

    def _look_then(self, ready: Callable[[], None]) -> None:
        self.empty_at_ns, self._saw_all_at_ns = self._saw_all_at_ns, time.monotonic_ns()
        ready()
