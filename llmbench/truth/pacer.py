"""Sends at absolute times: one heap of due sends for all streams, and a loop that wakes on time."""

import asyncio
import selectors
import ssl
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush, heapreplace
from pathlib import Path
from selectors import SelectorKey

from llmbench.truth.log import Ended
from llmbench.truth.replies import Plan

SLICE_NS = 2_000_000
"""Sending pauses for reads after this long."""

SPIN_NS = 60_000
"""Waits shorter than this are spun: to sleep and wake takes about as long."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError)

if sys.platform == "linux":

    class _Selector(selectors.EpollSelector):
        """Wakes within microseconds of a timeout, where epoll's own are whole milliseconds."""

        def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                # The epoll descriptor is itself one that select can watch, with a finer clock.
                # It is made before any connection, so it is below select's limit of 1024.
                with suppress(InterruptedError):
                    selectors_select([self.fileno()], timeout)
                timeout = 0
            return super().select(timeout)


def selectors_select(descriptors: list[int], timeout: float) -> None:
    raise NotImplementedError
