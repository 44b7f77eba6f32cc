"""``llmbench export``: the requests of a run as a table, its cells as gauges or MLflow runs.

The table is worked out again from the stored evidence, request by request, in constant memory; the
gauges are the figures of ``summary.json``.
"""

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from llmbench.apis import APIS
from llmbench.errors import Unmeasurable, UserError
from llmbench.measure.metrics import measure
from llmbench.measure.timeline import decode
from llmbench.plan.arrivals import read_rate
from llmbench.records import CellFacts, RequestMetrics, Target, Trace
from llmbench.report.gauges import flat_metrics, gauges
from llmbench.store import SUMMARY_SCHEMA, RunDirectory, Summary

ROWS = 10_000
"""Rows of a Parquet row group: what is held in memory at once."""

COLUMNS = {
    "cell": int,
    "row": int,
    "repeat": int,
    "target": str,
    "model": str,
    "api": str,
    "client": str,
    "concurrency": int,
    "request_rate": float,
    "asked_prompt_tokens": int,
    "asked_output_tokens": int,
    "phase": str,
    "index": int,
    "session": int,
    "turn": int,
    "due_s": float,
    "sent_s": float,
    "end_s": float,
    "ttft_ms": float,
    "ttft_from_sent_ms": float,
    "tpot_ms": float,
    "e2e_ms": float,
    "queue_ms": float,
    "lag_ms": float,
    "prompt_tokens": int,
    "cached_tokens": int,
    "tokens": int,
    "token_source": str,
    "failure": str,
    "finish": str,
    "segment": int,
}
"""The columns of a request and their types; docs/export.md says what they mean."""

Row = tuple[Any, ...]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``llmbench export``. ``run`` does what they ask for."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FILE",
        help=f"what to write, by its suffix: {', '.join(WRITERS)}",
    )
    parser.add_argument(
        "--mlflow",
        metavar="EXPERIMENT",
        help="log the cells to MLflow, which has to be installed, as runs of this experiment",
    )


def run(args: argparse.Namespace) -> int:
    """Write the requests or the figures of a run in a format that other tools read."""
    if args.to is None and args.mlflow is None:
        raise UserError(f"export: give --to FILE ({', '.join(WRITERS)}) or --mlflow EXPERIMENT")
    write = None if args.to is None else _writer(args.to)
    directory = RunDirectory.open(args.run_dir)
    if args.mlflow is not None and find_spec("mlflow") is None:
        raise UserError("--mlflow needs MLflow: pip install mlflow")
    if write is not None:
        said = write(directory, args.to)
        print(f"{args.to}: {said}", file=sys.stderr)
    if args.mlflow is not None:
        count = log_to_mlflow(directory, args.mlflow)
        print(f"MLflow, {args.mlflow}: {count} cells", file=sys.stderr)
    return 0


# ---- requests


def rows(directory: RunDirectory) -> Iterator[Row]:
    """One row a stored request, in order, with the values of ``COLUMNS``. Raises ``Unmeasurable``
    where there is none."""
    of_cell: dict[int, tuple[Row, Callable[[Trace], RequestMetrics]]] = {}
    for facts in directory.run.cells:
        target = directory.run.targets[facts.target]
        events = APIS[target.api].decode
        of_cell[facts.cell] = _cell_part(target, facts), partial(_measured, events)
    found = False
    for trace in directory.traces():
        if trace.cell in of_cell:
            found = True
            cell, measured = of_cell[trace.cell]
            yield cell + _request_part(trace, measured(trace))
    if not found:
        raise Unmeasurable(f"{directory.path}: no request was stored: there is nothing to export")


def _measured(events: Any, trace: Trace) -> RequestMetrics:
    return measure(trace, decode(trace, events))


def _cell_part(target: Target, facts: CellFacts) -> Row:
    load = facts.load
    return (
        facts.cell,
        facts.cell if facts.row is None else facts.row,
        facts.repeat,
        target.name,
        facts.model or target.model or None,
        target.api,
        facts.client,
        load.concurrency or None,
        read_rate(load.rate).mean if load.rate else None,
        load.prompt_tokens,
        load.output_tokens,
    )


def _request_part(trace: Trace, request: RequestMetrics) -> Row:
    queue_ms = request.queued_ns / 1e6
    late_ms = request.late_s * 1e3
    return (
        request.phase,
        request.index,
        trace.session,
        request.turn,
        None if request.due_ns is None else request.due_ns / 1e9,
        request.sent_ns / 1e9,
        request.end_ns / 1e9,
        _ms(request.ttft_s),
        None if request.ttft_s is None else 1e3 * request.ttft_s - late_ms,
        _ms(request.tpot_s),
        _ms(request.e2e_s),
        queue_ms,
        late_ms - queue_ms,
        request.prompt_tokens,
        request.cached_tokens,
        request.tokens,
        request.token_source,
        request.failure or None,
        request.finish or None,
        request.segment,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def write_csv(directory: RunDirectory, path: Path) -> str:
    """One line a request under a line of names; what is not known is empty."""
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows(directory):
            writer.writerow(row)
            count += 1
    return f"{count:,} requests"


def write_parquet(directory: RunDirectory, path: Path) -> str:
    """The same table in row groups of 10,000; what is not known is null."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("writing Parquet needs pyarrow: pip install 'llmbench[parquet]'") from None
    types = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    count = 0
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in _parts(rows(directory), ROWS):
            arrays = [
                pyarrow.array(values, field.type)
                for values, field in zip(zip(*part, strict=True), schema, strict=True)
            ]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema), row_group_size=ROWS)
            count += len(part)
    return f"{count:,} requests"


def _parts(every: Iterable[Row], size: int) -> Iterator[list[Row]]:
    remaining = iter(every)
    while part := list(islice(remaining, size)):
        yield part


# ---- cells


def write_prometheus(directory: RunDirectory, path: Path) -> str:
    """The figures of each cell as gauges, in Prometheus' text format."""
    summary = read_summary(directory)
    path.write_bytes(gauges(summary.cells))
    return f"{len(summary.cells)} cells"


def read_summary(directory: RunDirectory) -> Summary:
    """``summary.json``. Raises ``UserError`` where there is none that can be read."""
    path = directory.path / "summary.json"
    again = f"make it with: llmbench report {directory.path}"
    try:
        content = _with_infinities(msgspec.json.decode(path.read_bytes()))
        summary = msgspec.convert(content, Summary)
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror}; {again}") from None
    except msgspec.DecodeError as problem:
        raise UserError(f"{path}: {problem}; {again}") from None
    if summary.schema != SUMMARY_SCHEMA:
        raise UserError(f"{path}: schema {summary.schema}, not {SUMMARY_SCHEMA}; {again}")
    return summary


def _with_infinities(value: Any) -> Any:
    """``value`` with +∞ back in its intervals, for which JSON has null alone: a percentile so near
    the failed requests that its interval has no end."""
    if isinstance(value, list):
        return [_with_infinities(each) for each in value]
    if not isinstance(value, dict):
        return value
    known = {key: _with_infinities(each) for key, each in value.items()}
    if isinstance(of_quantiles := known.get("ci95"), dict):
        known["ci95"] = {
            name: [math.inf if end is None else end for end in its]
            for name, its in of_quantiles.items()
            if isinstance(its, list)
        }
    return known


def log_to_mlflow(directory: RunDirectory, experiment: str) -> int:
    """A run with the files of the run directory, but for the requests, and below it one run a cell
    with its load as parameters and its figures as metrics; how many cells."""
    summary = read_summary(directory)
    mlflow = import_module("mlflow")
    try:
        _log(mlflow, directory, summary, experiment)
    except mlflow.exceptions.MlflowException as problem:
        said = next(iter(str(problem).splitlines()), "") or type(problem).__name__
        raise UserError(f"--mlflow {experiment}: MLflow refused: {said}") from None
    return len(summary.cells)


def _log(mlflow: Any, directory: RunDirectory, summary: Summary, experiment: str) -> None:
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=directory.path.resolve().name):
        for name in ("run.json", "summary.json"):
            mlflow.log_artifact(str(directory.path / name))
        for number, cell in enumerate(summary.cells):
            parameters, metrics = flat_metrics(cell)
            with mlflow.start_run(run_name=f"{number} {cell.target}", nested=True):
                mlflow.log_params(parameters)
                mlflow.log_metrics(metrics)


WRITERS: dict[str, Callable[[RunDirectory, Path], str]] = {
    ".parquet": write_parquet,
    ".csv": write_csv,
    ".prom": write_prometheus,
}


def _writer(path: Path) -> Callable[[RunDirectory, Path], str]:
    if path.suffix not in WRITERS:
        raise UserError(f"--to {path}: end it in one of {', '.join(WRITERS)}")
    write = WRITERS[path.suffix]

    def in_one_step(directory: RunDirectory, path: Path) -> str:
        """What is half written never has the name that was asked for."""
        scratch = path.with_name(f".{path.name}.part")
        try:
            said = write(directory, scratch)
            scratch.replace(path)
        except OSError as problem:
            raise UserError(f"--to {path}: cannot be written: {problem.strerror}") from None
        finally:
            scratch.unlink(missing_ok=True)
        return said

    return in_one_step
