"""GPU energy by a stand-in for NVML's module: no GPU was at hand."""

from typing import Any

import pytest

from llmbench import energy
from llmbench.energy import Energy, Reading, between, joules_per_token


class NVMLError(Exception):
    pass


class Nvml:
    """``counters`` in millijoules by GPU; ``None`` for one that has no counter."""

    NVMLError = NVMLError

    def __init__(self, *counters: int | None, driver: bool = True) -> None:
        self.counters = counters
        self.driver = driver
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's own names
        if not self.driver:
            raise NVMLError
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.counters)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if (counter := self.counters[handle]) is None:
            raise NVMLError
        return counter


def test_millijoules_are_joules_and_a_gpu_without_a_counter_is_left_out() -> None:
    nvml = Nvml(1_500, None, 7_000_250)
    reading = energy.read(nvml)
    assert reading is not None
    assert reading.joules == {0: 1.5, 2: 7000.25}
    assert nvml.open == 0


@pytest.mark.parametrize("nvml", [Nvml(driver=False), Nvml(), Nvml(None)])
def test_no_driver_no_gpu_no_counter(nvml: Nvml) -> None:
    assert energy.read(nvml) is None
    assert nvml.open == 0


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(energy, "import_module", missing)
    assert energy.read() is None


def test_what_was_taken_between() -> None:
    before = Reading(5_000_000_000, {0: 100.0, 1: 1.0, 2: 9.0})
    after = Reading(45_000_000_000, {0: 6100.0, 1: 2001.0})
    assert between(before, after) == Energy(joules=8000.0, seconds=40.0, gpus=2)
    assert between(None, after) is None
    assert between(before, Reading(6_000_000_000, {0: 99.0})) is None  # the driver came back
    assert between(before, Reading(6_000_000_000, {7: 1.0})) is None


def test_joules_a_token() -> None:
    # 8,000 J for 20,000 tokens
    assert joules_per_token(Energy(joules=8000.0, seconds=40.0, gpus=2), 20_000) == 0.4
    assert joules_per_token(Energy(joules=8000.0, seconds=29.9, gpus=2), 20_000) is None
    assert joules_per_token(Energy(joules=8000.0, seconds=40.0, gpus=2), 0) is None
    assert joules_per_token(None, 20_000) is None
    assert "GPU-only" in energy.LABEL
