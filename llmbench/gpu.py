"""The NVIDIA GPUs of this machine, as their driver describes them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

GIB = 2**30


def gpus(nvml: Any = None) -> list[dict[str, Any]]:
    """Each GPU as plain JSON values; what its driver does not tell is ``None``.

    Empty without the ``gpu`` extra, a driver or a GPU. ``nvml`` stands in for the module pynvml.
    """
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return _described(nvml)
    finally:
        _ask(nvml, nvml.nvmlShutdown)


def _described(nvml: Any) -> list[dict[str, Any]]:
    driver = _text(_ask(nvml, nvml.nvmlSystemGetDriverVersion))
    cuda = _cuda_version(_ask(nvml, nvml.nvmlSystemGetCudaDriverVersion))
    handles = (
        _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        for index in range(_ask(nvml, nvml.nvmlDeviceGetCount) or 0)
    )
    return [
        {**_one(nvml, handle), "driver": driver, "cuda": cuda}
        for handle in handles
        if handle is not None
    ]


def _one(nvml: Any, handle: Any) -> dict[str, Any]:
    def ask(query: Callable[..., Any], *more: Any) -> Any:
        return _ask(nvml, query, handle, *more)

    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    sm, of_memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
    return {
        "name": _text(ask(nvml.nvmlDeviceGetName)),
        "memory_gb": None if memory is None else round(memory.total / GIB, 1),
        "sm_mhz": ask(nvml.nvmlDeviceGetClockInfo, sm),
        "sm_max_mhz": ask(nvml.nvmlDeviceGetMaxClockInfo, sm),
        "memory_mhz": ask(nvml.nvmlDeviceGetClockInfo, of_memory),
        "memory_max_mhz": ask(nvml.nvmlDeviceGetMaxClockInfo, of_memory),
        "power_w": _watts(ask(nvml.nvmlDeviceGetPowerUsage)),
        "power_limit_w": _watts(ask(nvml.nvmlDeviceGetEnforcedPowerLimit)),
        "temperature_c": ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
    }


def _ask(nvml: Any, query: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or ``None`` where the driver has none: not every GPU answers every query."""
    try:
        return query(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str | None:
    """Older versions of pynvml answer with bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _cuda_version(number: int | None) -> str | None:
    """``12.8`` of 12080."""
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else round(milliwatts / 1e3, 1)
