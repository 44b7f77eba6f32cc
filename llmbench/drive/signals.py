"""The signals that end a run: Ctrl-C, a polite kill, and a terminal that is gone."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def heard(handle: Callable[[int, Any], Any]) -> Iterator[None]:
    """Call ``handle`` for each of the signals; SIGHUP stays ignored where it was (``nohup``)."""
    before = {number: signal.getsignal(number) for number in ENDING}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
