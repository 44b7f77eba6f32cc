"""The machine: what a run was made with, and what it lets us have."""

import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from llmbench.gpu import gpus

PACKAGES = ("llmbench", "aiohttp", "httptools", "msgspec", "numpy", "openai", "xllamacpp")


_CPU_INFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def describe() -> dict[str, Any]:
    """The host and the versions, as plain JSON values; what cannot be found out is ``None``.

    ``cores`` are those that this process may run on, of ``cores_total``; ``cpu_limit`` is for how
    many at once its control group lets it. Clocks, power and temperature are of this moment.
    """
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "cores_total": os.cpu_count(),
        "cpu_limit": _cpu_limit(),
        "cpu_mhz": _cpu_mhz(),
        "cpu_max_mhz": _khz_as_mhz(_CPUS / "cpu0/cpufreq/cpuinfo_max_freq"),
        "governor": _first_line(_CPUS / "cpu0/cpufreq/scaling_governor"),
        "memory_gb": _memory_gb(),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str | None:
    try:
        for line in _CPU_INFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or None


def _cpu_mhz() -> float | None:
    """The first core's clock: as the kernel governs it, else as the processor says."""
    if (governed := _khz_as_mhz(_CPUS / "cpu0/cpufreq/scaling_cur_freq")) is not None:
        return governed
    try:
        for line in _CPU_INFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "cpu MHz":
                return round(float(value), 1)
    except (OSError, ValueError):
        pass
    return None


def _khz_as_mhz(file: Path) -> float | None:
    try:
        return round(int(_first_line(file) or "") / 1e3, 1)
    except ValueError:
        return None


def _cpu_limit() -> float | None:
    """The cores' worth of time that the control groups allow: the least of this one's and those
    around it, as far as they can be seen. ``None`` where there is no limit."""
    limits = []
    for line in _lines(_OWN_GROUPS):
        _, controllers, group = line.split(":", 2)
        if not controllers:
            root, limit_of = _GROUPS, _limit_of_v2
        elif "cpu" in controllers.split(","):
            root, limit_of = _GROUPS / controllers, _limit_of_v1
        else:
            continue
        own = root / group.strip("/")
        around = [own, *own.parents]
        folders = around[: around.index(root) + 1]
        limits += [limit for folder in folders if (limit := limit_of(folder)) is not None]
    return min(limits, default=None)


def _limit_of_v2(group: Path) -> float | None:
    quota, _, period = (_first_line(group / "cpu.max") or "").partition(" ")
    return _share(quota, period)


def _limit_of_v1(group: Path) -> float | None:
    quota = _first_line(group / "cpu.cfs_quota_us") or ""
    return _share(quota, _first_line(group / "cpu.cfs_period_us") or "")


def _share(quota: str, period: str) -> float | None:
    """Without a limit, the quota is ``max`` or -1."""
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return round(int(quota) / int(period), 2)


def _first_line(file: Path) -> str | None:
    return next(iter(_lines(file)), None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def raise_file_limit() -> int | None:
    """Allow this process, and those it starts, as many open files as the system does, and return
    how many; ``None`` where there is no limit."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if allowed == resource.RLIM_INFINITY else allowed
