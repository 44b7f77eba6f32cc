"""A user who talks over a reply: it is cut off some time after its first token, and the server's
end is waited for."""

import asyncio
from collections.abc import Callable

LOOK_S = 0.005
PATIENCE_S = 5.0
"""How long a server is watched that goes on sending to a client that has gone."""


class BargeIn:
    """Calls ``cut`` once, ``after_s`` after ``has_begun`` (asked every 5 ms), and then ``give_up``
    if nobody cancels it first."""

    def __init__(
        self,
        after_s: float,
        has_begun: Callable[[], bool],
        cut: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._after_s = after_s
        self._has_begun, self._cut, self._give_up = has_begun, cut, give_up
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def cancel(self) -> None:
        """The reply is over."""
        self._timer.cancel()

    def _look(self) -> None:
        if self._has_begun():
            self._timer = self._loop.call_later(self._after_s, self._cut_off)
        else:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _cut_off(self) -> None:
        self._timer = self._loop.call_later(PATIENCE_S, self._give_up)
        self._cut()
