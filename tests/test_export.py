"""Exports: the table of requests against stored traces, gauges, MLflow."""

import argparse
import csv
import json
import sys
from array import array
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import content, finish, sse
from prometheus_client.parser import text_string_to_metric_families

from llmbench import export
from llmbench.config import Sweep
from llmbench.errors import UserError
from llmbench.records import Block, Cell, CellFacts, Counts, Load, Reads, Target, Trace
from llmbench.store import RunDirectory

TARGETS = [Target(spec="http://h", name="h:8000", url="http://h/v1", model="m")]
HEADERS = {"content-type": "text/event-stream"}
MS = 1_000_000


def answered(cell: int, index: int, **fields: Any) -> Trace:
    """Three tokens at 100, 120 and 140 ms."""
    parts = [sse(content(word)) for word in ("a", "b", "c")]
    parts[-1] += sse(finish(128, 3), "[DONE]")
    ends = array("q", [len(b"".join(parts[:count])) for count in (1, 2, 3)])
    at_ns = array("q", [100 * MS, 120 * MS, 140 * MS])
    zeros = array("q", [0, 0, 0])
    known: dict[str, Any] = {
        "cell": cell,
        "index": index,
        "stream": 0,
        "phase": "measured",
        "sent_ns": 1_000 * MS,
        "end_ns": 141 * MS,
        "status": 200,
        "headers": HEADERS,
        "reads": Reads(ends, at_ns, zeros, zeros),
        "body": b"".join(parts),
    }
    return Trace(**(known | fields))


def refused(cell: int, index: int) -> Trace:
    return Trace(
        cell=cell, index=index, stream=0, phase="measured", sent_ns=0, end_ns=MS, error="refused"
    )


def facts(cell: int, rate: str = "") -> CellFacts:
    load = Load(
        concurrency=0 if rate else 4,
        prompt_tokens=128,
        output_tokens=3,
        requests=3,
        duration_s=None,
        warmup=0,
        rate=rate,
        arrivals="poisson" if rate else "",
    )
    return CellFacts(cell=cell, target=0, client="wire", model="served", load=load)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A closed cell, then an open one whose requests waited."""
    run = RunDirectory.create(Sweep(out=str(tmp_path / "run")), TARGETS, {"cpu": "x"})
    run.add_cell(facts(0), [answered(0, 0, phase="warmup"), answered(0, 1), refused(0, 2)])
    late = answered(1, 0, due_ns=970 * MS, queued_ns=20 * MS, session=7, turn=2)
    run.add_cell(facts(1, "8"), [late])
    return run


def exported(directory: RunDirectory, name: str) -> Path:
    path = directory.path / name
    assert go(directory, "--to", str(path)) == 0
    return path


def go(directory: RunDirectory, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    export.add_flags(parser)
    return export.run(parser.parse_args([str(directory.path), *flags]))


EXPECTED_LATE = {
    "cell": 1,
    "row": 1,
    "repeat": 0,
    "target": "h:8000",
    "model": "served",
    "api": "chat",
    "client": "wire",
    "concurrency": None,
    "request_rate": 8.0,
    "asked_prompt_tokens": 128,
    "asked_output_tokens": 3,
    "phase": "measured",
    "index": 0,
    "session": 7,
    "turn": 2,
    "due_s": 0.97,
    "sent_s": 1.0,
    "end_s": 1.141,
    "ttft_ms": 130.0,
    "ttft_from_sent_ms": 100.0,
    "tpot_ms": 20.0,
    "e2e_ms": 170.0,
    "queue_ms": 20.0,
    "lag_ms": 10.0,
    "prompt_tokens": 128,
    "cached_tokens": None,
    "tokens": 3,
    "token_source": "usage",
    "failure": None,
    "finish": "length",
    "segment": 0,
}


def test_parquet(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow.parquet import ParquetFile

    monkeypatch.setattr(export, "ROWS", 3)
    path = exported(directory, "requests.parquet")
    file = ParquetFile(path)
    assert file.num_row_groups == 2  # three rows, then one
    table = file.read().to_pylist()
    assert table[3].keys() == EXPECTED_LATE.keys()
    assert table[3] == pytest.approx(EXPECTED_LATE)
    assert [row["phase"] for row in table] == ["warmup", "measured", "measured", "measured"]
    assert [row["failure"] for row in table] == [None, None, "refused", None]
    assert table[1]["due_s"] is None
    assert table[1]["ttft_ms"] == table[1]["ttft_from_sent_ms"] == pytest.approx(100.0)
    assert table[2]["ttft_ms"] is None
    assert list(directory.path.glob(".*part")) == []


def test_csv(directory: RunDirectory) -> None:
    with exported(directory, "requests.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(EXPECTED_LATE)
    late = {key: value for key, value in EXPECTED_LATE.items() if isinstance(value, int | float)}
    assert {key: float(lines[3][key]) for key in late} == pytest.approx(late)
    assert lines[3]["concurrency"] == lines[3]["failure"] == ""
    assert lines[2]["failure"] == "refused"


def test_an_interrupted_export_leaves_nothing(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: RunDirectory) -> Any:
        yield tuple(EXPECTED_LATE.values())
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "rows", broken)
    with pytest.raises(KeyboardInterrupt):
        go(directory, "--to", str(directory.path / "requests.csv"))
    assert {path.name for path in directory.path.iterdir()} == {"run.json", "requests.jsonl"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "give --to FILE"),
        (("--to", "requests.xlsx"), "--to requests.xlsx: end it in one of .parquet, .csv, .prom"),
        (("--to", "/nowhere/at/all.csv"), "/nowhere/at/all.csv: cannot be written"),
        (("--to", "/nowhere/at/all.parquet"), "all.parquet: cannot be written"),
        (("--to", "m.prom"), "summary.json: No such file or directory; make it with: llmbench rep"),
    ],
)
def test_what_cannot_be_exported(
    directory: RunDirectory, flags: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        go(directory, *flags)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "flags", "words"),
    [
        ("pyarrow", ("--to", "r.parquet"), "pip install 'llmbench[parquet]'"),
        ("mlflow", ("--mlflow", "e"), "pip install mlflow"),
    ],
)
def test_without_the_package(
    directory: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    flags: tuple[str, ...],
    words: str,
) -> None:
    directory.save_summary([cell()])
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError) as caught:
        go(directory, *flags)
    assert words in str(caught.value)


# ---- cells


def cell(**fields: Any) -> Cell:
    known: dict[str, Any] = {
        "target": 'a "quoted" name',
        "engine": None,
        "model": "m",
        "quantization": None,
        "api": "chat",
        "client": "wire",
        "concurrency": 4,
        "request_rate": None,
        "prompt_tokens": 128,
        "output_tokens": 3,
        "requests": Counts(sent=5, ok=3, failed=2),
        "ttft_ms": Block(n=5, p50=100.0, mean=120.0, max=float("inf"), ci95={"p50": (1.0, 2.0)}),
        "otps": 42.0,
    }
    return Cell(**(known | fields))


def test_gauges(directory: RunDirectory) -> None:
    directory.save_summary([cell(), cell(verdict="invalid")])
    text = exported(directory, "metrics.prom").read_text()
    samples = {
        (sample.name, sample.labels["cell"], sample.labels.get("quantile")): sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("outcome", "ok") == "ok"
    }
    ttft = samples["llmbench_ttft_seconds", "0", "0.5"]
    assert ttft.value == 0.1
    assert ttft.labels["target"] == 'a "quoted" name'
    assert ttft.labels["concurrency"] == "4"
    assert ttft.labels["request_rate"] == ""
    assert ("llmbench_ttft_seconds", "0", "0.95") not in samples
    assert samples["llmbench_output_tokens_per_second", "0", None].value == 42.0
    assert samples["llmbench_requests", "0", None].value == 3
    assert samples["llmbench_valid", "0", None].value == 1
    assert samples["llmbench_valid", "1", None].value == 0
    assert ("llmbench_ttft_seconds", "1", "0.5") not in samples


def test_an_interval_without_an_end(directory: RunDirectory) -> None:
    """JSON has no infinity; p95 next to a tail of failures has one."""
    tail = Block(n=99, p50=1.0, p95=9.0, ci95={"p50": (0.5, 2.0), "p95": (8.0, float("inf"))})
    directory.save_summary([cell(ttft_ms=tail)])
    assert b'quantile="0.95"' in exported(directory, "m.prom").read_bytes()
    block = export.read_summary(directory).cells[0].ttft_ms
    assert block is not None
    assert block.ci95 == tail.ci95


class RefusedError(Exception):
    """MLflow's own."""


def test_mlflow_that_refuses(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RefusedError("no server\nat all")

    mlflow = Mlflow()
    mlflow.set_experiment = refuse  # type: ignore[attr-defined]
    mlflow.exceptions = SimpleNamespace(MlflowException=RefusedError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)  # type: ignore[arg-type]
    directory.save_summary([cell()])
    with pytest.raises(UserError, match=r"^--mlflow mine: MLflow refused: no server$"):
        go(directory, "--mlflow", "mine")


class Mlflow:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    @contextmanager
    def start_run(self, **about: Any) -> Any:
        self.said.append(("start", about))
        yield
        self.said.append("end")

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.said.append((name, *arguments))


def test_mlflow(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)  # type: ignore[arg-type]
    directory.save_summary([cell()])
    assert go(directory, "--mlflow", "mine") == 0
    names = [each if isinstance(each, str) else each[0] for each in mlflow.said]
    assert names == [
        "set_experiment",
        "start",
        "log_artifact",
        "log_artifact",
        "start",
        "log_params",
        "log_metrics",
        "end",
        "end",
    ]
    parameters, metrics = (mlflow.said[number][1] for number in (5, 6))
    assert parameters["concurrency"] == "4"
    assert "request_rate" not in parameters
    assert metrics["ttft_ms.p50"] == 100.0
    assert metrics["requests.failed"] == 2.0
    assert "ttft_ms.max" not in metrics  # infinite
    json.dumps(metrics, allow_nan=False)
