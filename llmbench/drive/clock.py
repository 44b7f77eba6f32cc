"""The one clock: monotonic nanoseconds from the run's own zero, and kernel stamps brought onto it.

The kernel stamps received segments in CLOCK_REALTIME. Its distance from CLOCK_MONOTONIC is constant
(both are slewed alike) until somebody sets the clock, so it is sampled again every second and a
jump is reported.
"""

import socket
import sys
import time

import numpy as np
from numpy.typing import NDArray

# Linux on x86 and Arm; Python 3.11 has no name for it. https://docs.kernel.org/networking/timestamping.html
_SO_TIMESTAMPNS = 35
_TIMESPEC_BYTES = 16
_STEP_NS = 50_000
"""Two samples of the clocks' distance that differ by more than this mean that a clock was set."""

ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC_BYTES) if hasattr(socket, "CMSG_SPACE") else 0
KERNEL_STAMPS = sys.platform == "linux" and sys.maxsize > 2**32
Ints = NDArray[np.int64]


def stamp_segments(sock: socket.socket) -> bool:
    """Ask the kernel to stamp what ``sock`` receives; whether it agreed."""
    if not KERNEL_STAMPS:
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


class Clock:
    """Brings kernel stamps onto ``time.monotonic_ns``; a run's own times count from ``zero_ns``."""

    def __init__(self, zero_ns: int | None = None) -> None:
        self.zero_ns = time.monotonic_ns() if zero_ns is None else zero_ns
        self.steps_ns: list[int] = []
        self._offset_ns = _realtime_offset_ns()
        # The kernel turns stamping on some time after the first socket asks for it, and off with
        # the last one: hold one for as long as there is a clock.
        self._holder = socket.socket()
        stamp_segments(self._holder)

    def resample(self) -> None:
        """Measure the distance between the clocks again, and note a step."""
        offset_ns = _realtime_offset_ns()
        if abs(offset_ns - self._offset_ns) > _STEP_NS:
            self.steps_ns.append(offset_ns - self._offset_ns)
        self._offset_ns = offset_ns

    def from_kernel(self, timespecs: bytes) -> Ints:
        """Kernel stamps, as ``recvmsg`` returns them, joined: in monotonic nanoseconds."""
        parts = np.frombuffer(timespecs, dtype=np.int64).reshape(-1, 2)
        return np.asarray(parts[:, 0] * 1_000_000_000 + parts[:, 1] - self._offset_ns)

    def close(self) -> None:
        self._holder.close()


def _realtime_offset_ns() -> int:
    """CLOCK_REALTIME − CLOCK_MONOTONIC, from the narrowest of 200 sandwiches of the two."""
    return min(_sandwich() for _ in range(200))[1]


def _sandwich() -> tuple[int, int]:
    before_ns = time.monotonic_ns()
    real_ns = time.time_ns()
    after_ns = time.monotonic_ns()
    return after_ns - before_ns, real_ns - (before_ns + after_ns) // 2
