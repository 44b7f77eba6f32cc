"""What ``llmbench doctor`` finds: of this machine, of machines that are worse, and of targets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmbench import doctor
from llmbench.cli import main
from llmbench.doctor import Finding
from llmbench.report.doctor import render
from llmbench.truth.process import TruthServer

Truth = Callable[..., TruthServer]


@pytest.fixture
def examined(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, dict]]]:
    """The exit code and the findings by subject, the last of each."""

    def run(*args: str) -> tuple[int, dict[str, dict]]:
        code = main(["doctor", "--format", "json", *args])
        return code, {each["subject"]: each for each in json.loads(capsys.readouterr().out)}

    return run


def test_this_machine_can_measure(examined: Callable[..., tuple[int, dict[str, dict]]]) -> None:
    code, found = examined()
    assert code == 0
    assert found["stamps"]["level"] == "good"
    assert {"cores", "disk", "llama.cpp", "API key", "calibrations"} <= found.keys()


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_targets_are_asked(
    examined: Callable[..., tuple[int, dict[str, dict]]], truth: Truth, scheme: str
) -> None:
    place = truth().url.removeprefix("http://")
    code, found = examined("--target", f"{scheme}{place}?name=here")
    assert code == 0
    assert found["here"]["level"] == "good"
    assert "answers as truth" in found["here"]["said"]
    assert "exact lengths, counts tokens" in found["here"]["said"]


def test_a_target_that_does_not_answer(
    examined: Callable[..., tuple[int, dict[str, dict]]],
) -> None:
    code, found = examined("--target", "http://127.0.0.1:9?name=gone")
    assert code == 3
    assert found["gone"]["level"] == "bad"
    assert "cannot reach http://127.0.0.1:9" in found["gone"]["said"]


def test_keys_are_named_and_never_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "OPENAI_API_KEY is set" in out
    assert "secret" not in out


def test_calibrations_are_forgotten(
    examined: Callable[..., tuple[int, dict[str, dict]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMBENCH_CACHE", str(tmp_path))
    stored = tmp_path / "calibration" / "wire-1-abc.json"
    stored.parent.mkdir()
    stored.write_text("{}")
    _, found = examined()
    assert found["calibrations"]["said"].startswith("1 in ")
    _, found = examined("--forget-calibrations")
    assert found["calibrations"]["said"].startswith("1 forgotten in ")
    assert not stored.exists()


def test_a_kernel_that_does_not_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "stamp_segments", lambda sock: False)
    (found,) = doctor.stamps()
    assert found.level == "bad"
    assert found.said.startswith("the kernel stamps nothing")


def test_a_clock_that_is_being_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Set(doctor.Clock):
        def from_kernel(self, timespecs: bytes) -> Any:  # an hour off
            return super().from_kernel(timespecs) + 3_600_000_000_000

    monkeypatch.setattr(doctor, "Clock", Set)
    (found,) = doctor.stamps()
    assert found.level == "bad"
    assert "a clock being set" in found.advice


def test_cores_that_are_busy_and_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"cores": 4, "cores_total": 8, "cpu_limit": 1.5, "governor": "powersave", "cpu": "X"}
    monkeypatch.setattr(doctor.host, "describe", lambda: machine)
    # user, nice, system, idle, iowait, irq, softirq, steal: 60 of 100 ticks are idle or waiting.
    ticks = iter([[0] * 8, [20, 0, 10, 50, 10, 0, 0, 10]])
    monkeypatch.setattr(doctor, "_cpu_times", lambda: next(ticks))
    cores, limit, governor, load = doctor.cores()
    assert (cores.level, cores.said) == ("good", "4 of 8, X")
    assert limit.said == "the control group allows 1.5 cores' worth of time"
    assert governor.said == "governor powersave"
    assert (load.level, load.said) == ("note", "40% of the cores are in use")


def test_what_is_printed_fits_and_ends_with_a_verdict() -> None:
    found = [
        Finding("stamps", "good", "fine"),
        Finding("load", "note", "much of it, " * 12, "end it"),
        Finding("GPU", "info", "none is seen"),
    ]
    *lines, verdict = render(found).splitlines()
    assert lines[0] == " ok  stamps  fine"
    assert lines[1].startswith("  !  load    much of it")
    assert lines[-1] == "     GPU     none is seen"
    assert all(len(line) <= 100 for line in lines)
    assert verdict == "this machine can measure; 1 to look at (!)"
    assert render([Finding("stamps", "bad", "none")]).endswith("1 that must be put right\n")
