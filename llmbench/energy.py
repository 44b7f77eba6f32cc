"""Joules of the GPUs between two moments, from NVML's own counters. GPU-only: no CPU, no memory of
the machine, no fans, no power supply.

``nvmlDeviceGetTotalEnergyConsumption`` counts millijoules since the driver was loaded (Volta and
later; NVML API reference, device queries).
"""

import time
from importlib import import_module
from typing import Any, NamedTuple

from llmbench.records import Energy


class Reading(NamedTuple):
    """The counters of the GPUs, in joules by index, at one moment of CLOCK_MONOTONIC."""

    at_ns: int
    joules: dict[int, float]


def read(nvml: Any = None) -> Reading | None:
    """The counters now, of all GPUs that have one. ``None`` without the ``gpu`` extra, a driver or
    such a GPU. It takes milliseconds: not for the inside of a window.

    ``nvml`` stands in for the module pynvml.
    """
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        joules = _counters(nvml)
        return Reading(time.monotonic_ns(), joules) if joules else None
    finally:
        _ask(nvml, nvml.nvmlShutdown)


def between(before: Reading | None, after: Reading | None) -> Energy | None:
    """What was taken between two readings, of the GPUs that are in both. ``None`` where a counter
    went back: the driver was loaded anew."""
    if before is None or after is None:
        return None
    taken = [after.joules[gpu] - before.joules[gpu] for gpu in after.joules if gpu in before.joules]
    seconds = (after.at_ns - before.at_ns) / 1e9
    if not taken or min(taken) < 0 or seconds <= 0:
        return None
    return Energy(joules=sum(taken), seconds=seconds, gpus=len(taken))


def _counters(nvml: Any) -> dict[int, float]:
    joules = {}
    for gpu in range(_ask(nvml, nvml.nvmlDeviceGetCount) or 0):
        handle = _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, gpu)
        if handle is None:
            continue
        millijoules = _ask(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        if millijoules is not None:
            joules[gpu] = millijoules / 1e3
    return joules


def _ask(nvml: Any, query: Any, *arguments: Any) -> Any:
    """The answer, or ``None`` where the driver has none: GPUs before Volta have no counter."""
    try:
        return query(*arguments)
    except nvml.NVMLError:
        return None
