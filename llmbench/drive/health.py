"""How the client's own process fared while a cell ran: what could have bent its figures."""

import gc
import time
from pathlib import Path

from llmbench.drive.clock import Clock
from llmbench.records import Health

_OWN_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


class HealthWatch:
    """Made when a cell begins; ``report`` says what has happened since."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._steps = len(clock.steps_ns)
        self._throttled_us = _throttled_us()
        self._waited_ns = _waited_for_cpu_ns()
        self._collections = _collections()
        self._began_ns = time.monotonic_ns()
        self._cpu_s = time.process_time()

    def report(self) -> Health:
        wall_s = (time.monotonic_ns() - self._began_ns) / 1e9
        steps_ns = self._clock.steps_ns[self._steps :]
        return Health(
            cpu_share=(time.process_time() - self._cpu_s) / wall_s,
            cpu_wait_share=(_waited_for_cpu_ns() - self._waited_ns) / 1e9 / wall_s,
            clock_step_ms=max((abs(step_ns) for step_ns in steps_ns), default=0) / 1e6,
            throttled_ms=(_throttled_us() - self._throttled_us) / 1e3,
            collections=_collections() - self._collections,
        )


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def _waited_for_cpu_ns() -> int:
    """For how long this thread was ready to run and did not get a core (Linux)."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _throttled_us() -> int:
    """For how long this process's control group has been throttled (Linux, cgroup 2)."""
    try:
        group = _OWN_GROUP.read_text().rpartition("::")[2].strip().lstrip("/")
        stat = (_GROUPS / group / "cpu.stat").read_text().split()
        return int(stat[stat.index("throttled_usec") + 1])
    except (OSError, ValueError, IndexError):
        return 0
