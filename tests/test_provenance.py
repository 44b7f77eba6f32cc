"""Where the figures come from: the machine, its GPUs, and the files of a model."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmbench import host, provenance
from llmbench.gpu import gpus
from llmbench.provenance import model_files, revision
from llmbench.records import ModelFile, Provenance, Target
from llmbench.report.provenance import machine_line, provenance_lines

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# ---- GPUs


class NVMLError(Exception):
    """What the driver answers instead of a figure."""


GIB = 2**30
ANSWERS = {
    "nvmlInit": None,
    "nvmlShutdown": None,
    "nvmlSystemGetDriverVersion": "570.86.10",
    "nvmlSystemGetCudaDriverVersion": 12080,
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": "handle",
    "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * GIB, used=GIB),
    "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 345, 2: 2619}[kind],
    "nvmlDeviceGetMaxClockInfo": lambda handle, kind: {1: 1980, 2: 2620}[kind],
    "nvmlDeviceGetPowerUsage": 69_876,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetTemperature": 31,
}
H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "memory_gb": 80.0,
    "sm_mhz": 345,
    "sm_max_mhz": 1980,
    "memory_mhz": 2619,
    "memory_max_mhz": 2620,
    "power_w": 69.9,
    "power_limit_w": 700.0,
    "temperature_c": 31,
    "driver": "570.86.10",
    "cuda": "12.8",
}
TOLD_BY = {
    "nvmlDeviceGetName": {"name"},
    "nvmlDeviceGetMemoryInfo": {"memory_gb"},
    "nvmlDeviceGetClockInfo": {"sm_mhz", "memory_mhz"},
    "nvmlDeviceGetMaxClockInfo": {"sm_max_mhz", "memory_max_mhz"},
    "nvmlDeviceGetPowerUsage": {"power_w"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit_w"},
    "nvmlDeviceGetTemperature": {"temperature_c"},
    "nvmlSystemGetDriverVersion": {"driver"},
    "nvmlSystemGetCudaDriverVersion": {"cuda"},
    "nvmlShutdown": set(),
}


class Nvml:
    """Stands in for pynvml: fixed answers, and an error for each name in ``broken``."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *broken: str, **answers: Any) -> None:
        self.asked: list[str] = []
        self._broken = broken
        self._answers = ANSWERS | answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answer = self._answers[name]

        def query(*arguments: Any) -> Any:
            self.asked.append(name)
            if name in self._broken:
                raise NVMLError("Not Supported")
            return answer(*arguments) if callable(answer) else answer

        return query


def test_a_gpu() -> None:
    nvml = Nvml()
    assert gpus(nvml) == [H100]
    assert nvml.asked[0] == "nvmlInit"
    assert nvml.asked[-1] == "nvmlShutdown"


@pytest.mark.parametrize("query", TOLD_BY)
def test_what_a_gpu_does_not_tell_is_none(query: str) -> None:
    (gpu,) = gpus(Nvml(query))
    assert gpu == H100 | dict.fromkeys(TOLD_BY[query])


def test_no_gpus() -> None:
    assert gpus(Nvml("nvmlInit")) == []
    assert gpus(Nvml("nvmlDeviceGetCount")) == []
    assert gpus(Nvml(nvmlDeviceGetCount=0)) == []


def test_a_gpu_that_is_lost_hides_no_other() -> None:
    def handle(index: int) -> str:
        if index == 0:
            raise NVMLError("GPU is lost")
        return "handle"

    assert gpus(Nvml(nvmlDeviceGetCount=3, nvmlDeviceGetHandleByIndex=handle)) == [H100, H100]


def test_words_may_come_as_bytes() -> None:
    (gpu,) = gpus(Nvml(nvmlDeviceGetName=b"Tesla T4", nvmlSystemGetDriverVersion=b"450.1"))
    assert (gpu["name"], gpu["driver"]) == ("Tesla T4", "450.1")


def test_no_gpus_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert gpus() == []


# ---- the CPU


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes files of a system's own, by their names with ``/`` below the root."""
    monkeypatch.setattr(host, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(host, "_CPUS", tmp_path / "cpu")
    monkeypatch.setattr(host, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(host, "_GROUPS", tmp_path / "groups")

    def make(files: dict[str, str]) -> None:
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)

    return make


def test_describe_is_json_and_knows_its_machine() -> None:
    described = host.describe()
    assert json.loads(json.dumps(described)) == described
    assert 1 <= described["cores"] <= described["cores_total"] == os.cpu_count()
    assert isinstance(described["gpus"], list)


def test_clocks(system: Callable[..., None]) -> None:
    system({"cpuinfo": "model name\t: Some CPU @ 2.0GHz\ncpu MHz\t\t: 2596.140\n"})
    described = host.describe()
    assert described["cpu"] == "Some CPU @ 2.0GHz"
    assert [described[key] for key in ("cpu_mhz", "cpu_max_mhz", "governor")] == [
        *(2596.1, None, None)
    ]
    folder = "cpu/cpu0/cpufreq/"
    system(
        {
            folder + "scaling_cur_freq": "1400000\n",
            folder + "cpuinfo_max_freq": "3700000\n",
            folder + "scaling_governor": "powersave\n",
        }
    )
    described = host.describe()
    assert [described[key] for key in ("cpu_mhz", "cpu_max_mhz", "governor")] == [
        *(1400.0, 3700.0, "powersave")
    ]


def test_nothing_is_known_of_a_bare_system(system: Callable[..., None]) -> None:
    described = host.describe()
    for key in ("cpu_mhz", "cpu_max_mhz", "governor", "cpu_limit"):
        assert described[key] is None


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"own": "0::/\n", "groups/cpu.max": "150000 100000\n"}, 1.5),
        ({"own": "0::/\n", "groups/cpu.max": "max 100000\n"}, None),
        ({"own": "0::/a/b\n", "groups/a/b/cpu.max": "max 100000\n"}, None),
        (
            {
                "own": "0::/a/b\n",
                "groups/a/b/cpu.max": "400000 100000\n",
                "groups/a/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        ({"own": "0::/gone/from/here\n", "groups/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "own": "5:cpuset:/a\n3:cpu,cpuacct:/a\n0::/\n",
                "groups/cpuset/a/cpu.cfs_quota_us": "100000\n",
                "groups/cpuset/a/cpu.cfs_period_us": "100000\n",
                "groups/cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n",
                "groups/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "own": "1:cpu:/\n",
                "groups/cpu/cpu.cfs_quota_us": "-1\n",
                "groups/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_the_limit_of_the_control_group(
    system: Callable[..., None], files: dict[str, str], limit: float | None
) -> None:
    system(files)
    assert host.describe()["cpu_limit"] == limit


# ---- the files of a model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "onnx").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name in ("model.safetensors", "config.json", "onnx/model.onnx", "README.md", ".git/x.json"):
        (folder / name).write_text(name)
    return folder


def of(name: str, content: str | None = None) -> ModelFile:
    data = (name if content is None else content).encode()
    return ModelFile(name, len(data), hashlib.sha256(data).hexdigest())


def test_the_files_of_a_folder(model: Path) -> None:
    assert model_files(model) == [*map(of, ("config.json", "model.safetensors", "onnx/model.onnx"))]


def test_the_file_itself(model: Path) -> None:
    assert model_files(model / "model.safetensors") == [of("model.safetensors")]
    (model / "link.gguf").symlink_to(model / "config.json")
    assert model_files(model / "link.gguf") == [of("link.gguf", "config.json")]
    assert model_files(model / "nothing.gguf") == []


def test_a_file_is_hashed_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = model / "model.safetensors"
    (before,) = model_files(file)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)  # would be called if it were hashed again
        assert model_files(file) == [before]
    stamp = file.stat().st_mtime_ns
    file.write_text("new weights......")  # as long as the old
    os.utime(file, ns=(stamp + 1, stamp + 1))
    assert model_files(file) == [of("model.safetensors", "new weights......")]
    file.write_text("longer weights, as old as the first")
    os.utime(file, ns=(stamp, stamp))
    assert model_files(file) == [of("model.safetensors", "longer weights, as old as the first")]


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\xff"])
def test_a_damaged_cache_is_not_believed(model: Path, cache: Path, damage: bytes) -> None:
    model_files(model)
    kept = list((cache / "hashes").iterdir())
    assert len(kept) == 3
    for file in kept:
        file.write_bytes(damage)
    assert model_files(model / "config.json") == [of("config.json")]


def test_no_cache_is_no_hindrance(model: Path, cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    assert model_files(model / "config.json") == [of("config.json")]


def test_a_huge_file_is_not_hashed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "LARGEST_HASHED_BYTES", 11)
    assert model_files(model)[:2] == [of("config.json"), ModelFile("model.safetensors", 17)]


# ---- revisions


def test_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    hub = tmp_path / "models--org--name"
    snapshot = hub / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    blob = hub / "blobs" / "aa"
    blob.parent.mkdir()
    blob.write_text("weights")
    (snapshot / "model.gguf").symlink_to(blob)
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    for path in (snapshot, snapshot / "model.gguf", link):
        assert revision(path) == COMMIT
    assert revision(blob) is None
    (tmp_path / "snapshots" / "latest").mkdir(parents=True)
    assert revision(tmp_path / "snapshots" / "latest") is None


@pytest.mark.parametrize(
    ("files", "commit"),
    [
        ({"HEAD": f"{COMMIT}\n"}, COMMIT),
        ({"HEAD": "ref: refs/heads/main\n", "refs/heads/main": f"{COMMIT}\n"}, COMMIT),
        (
            {
                "HEAD": "ref: refs/heads/main\n",
                "packed-refs": f"# pack-refs\n{'f' * 40} refs/heads/x\n{COMMIT} refs/heads/main\n",
            },
            COMMIT,
        ),
        ({"HEAD": "ref: refs/heads/main\n"}, None),
        ({"HEAD": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_head_of_a_repository(model: Path, files: dict[str, str], commit: str | None) -> None:
    for name, content in files.items():
        file = model / ".git" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert revision(model) == commit
    assert revision(model / "config.json") == commit
    assert revision(model / "onnx") is None  # a folder in a repository is not the repository


# ---- in words


def test_the_machine_in_one_line() -> None:
    machine = {
        "cpu": "AMD EPYC",
        "cores": 2,
        "cores_total": 64,
        "cpu_limit": 1.5,
        "cpu_mhz": 2596.1,
        "governor": "powersave",
        "memory_gb": 23.5,
        "gpus": [H100, H100],
        "system": "Linux 6.18",
        "python": "3.11.7",
    }
    assert machine_line(machine) == (
        "2 of 64 cores of AMD EPYC (2.6 GHz, governor powersave, limited to 1.5 at once), 24 GB, "
        "2 × NVIDIA H100 80GB HBM3 (80 GB, driver 570.86.10, CUDA 12.8, limit 700 W), "
        "Linux 6.18, Python 3.11.7"
    )


def test_the_machine_of_an_older_run() -> None:
    assert machine_line({"cpu": "A", "cores": 1, "gpus": [dict.fromkeys(H100)]}) == (
        "1 core of A, 1 × a GPU"
    )
    assert machine_line({"cpu": None, "cores": 4, "memory_gb": None}) == "4 cores of a CPU"
    assert machine_line({}) == ""
    assert "None" not in machine_line(host.describe())


def test_what_is_behind_a_target() -> None:
    files = [
        ModelFile("config.json", 1, "c" * 64),
        ModelFile("a.safetensors", 90, "a" * 64),
        ModelFile("b.safetensors", 95),
        ModelFile("tokenizer.json", 5, "d" * 64),
        ModelFile("more.json", 2, "e" * 64),
    ]
    known = Provenance(
        engine="vllm 0.32.0",
        versions={"vllm": "0.32.0", "torch": "2.13.0", "transformers": "5.1"},
        files=files,
        revision=COMMIT,
    )
    targets = [
        Target(spec="x", name="known", provenance=known),
        Target(spec="x", name="unknown"),
        Target(spec="x", name="silent", provenance=Provenance()),
        Target(spec="x", name="bare", provenance=Provenance(engine="e", files=files[:1])),
    ]
    assert provenance_lines(targets) == [
        "known: vllm 0.32.0; torch 2.13.0, transformers 5.1; b.safetensors not hashed, "
        "a.safetensors aaaaaaaaaaaa, tokenizer.json dddddddddddd and 2 more files; "
        "revision 0123456789ab",
        "bare: e; config.json cccccccccccc",
    ]
