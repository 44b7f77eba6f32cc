"""The run directory: what was measured, written down as soon as a cell is over.

run.json        the sweep, the host, the versions, what is known of each cell
requests.jsonl  one request a line, with its stamps and the bytes of its reply: the evidence
summary.json    derived from the two; ``llmbench report`` makes it again
"""

import os
import time
from array import array
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from llmbench import __version__
from llmbench.config import Sweep
from llmbench.errors import UserError
from llmbench.records import Cell, CellFacts, Target, Trace

RUN_SCHEMA = "llmbench.run/1"
SUMMARY_SCHEMA = "llmbench.summary/1"


class StoreError(UserError):
    """The disk did not take a cell."""

    exit_code = 4


class Run(Struct, kw_only=True):
    """``run.json``. ``targets`` are the sweep's, with what running them found out."""

    schema: str = RUN_SCHEMA
    llmbench: str = __version__
    started: str
    ended: str | None = None
    interrupted: bool = False
    sweep: Sweep
    targets: list[Target]
    host: dict[str, Any]
    cells: list[CellFacts] = []


class Summary(Struct, kw_only=True):
    """``summary.json``, and what ``--format json`` prints."""

    schema: str = SUMMARY_SCHEMA
    llmbench: str = __version__
    started: str
    cells: list[Cell]


class Line(Struct, frozen=True):
    """One line of ``requests.jsonl``. ``body`` is the reply's, in ``encoding``.

    Latin-1 stands in where the bytes are not UTF-8: it gives every byte a character.
    """

    request: Trace
    encoding: str
    body: str


class RunDirectory:
    """One run on disk."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.run = run

    @classmethod
    def create(cls, sweep: Sweep, targets: list[Target], host: dict[str, Any]) -> "RunDirectory":
        """A new directory, ``sweep.out`` or ``results/<time>-<name>``."""
        started = datetime.now(UTC)
        name = f"{started:%Y%m%d-%H%M%S}-{_slug(targets[0].name)}"
        path = Path(sweep.out) if sweep.out else Path("results") / name
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"--out {path}: it exists and is not an empty directory")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(f"--out {path}: cannot be made: {problem.strerror}") from None
        run = Run(
            started=started.isoformat(timespec="seconds"), sweep=sweep, targets=targets, host=host
        )
        directory = cls(path, run)
        directory.save_run()
        return directory

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """The run at ``path``. Raises ``UserError`` where there is none that can be read."""
        file = path / "run.json"
        try:
            run = msgspec.json.decode(file.read_bytes(), type=Run)
        except OSError as problem:
            raise UserError(f"{path}: not a run directory: run.json: {problem.strerror}") from None
        except msgspec.DecodeError as problem:
            raise UserError(f"{file}: not a run that this version can read: {problem}") from None
        if run.schema != RUN_SCHEMA:
            raise UserError(f"{file}: schema {run.schema}; this version reads {RUN_SCHEMA}")
        return cls(path, run)

    def save_run(self) -> None:
        _write_atomically(self.path / "run.json", _pretty(self.run))

    def finish(self, *, interrupted: bool) -> None:
        """Note in ``run.json`` that the run is over, and how."""
        self.run.ended = datetime.now(UTC).isoformat(timespec="seconds")
        self.run.interrupted = interrupted
        self.save_run()

    def add_cell(self, facts: CellFacts, traces: Iterable[Trace]) -> None:
        """Append a cell: its evidence first, then the word that it is there."""
        path = self.path / "requests.jsonl"
        try:
            with path.open("ab") as file:
                before = file.tell()
                try:
                    file.writelines(_encode(trace) + b"\n" for trace in traces)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(path, before)  # the cells before stay readable
                    raise
            self.run.cells.append(facts)
            self.save_run()
        except OSError as problem:
            raise StoreError(
                f"{path}: cell {facts.cell + 1} cannot be stored: {problem.strerror}; "
                "the cells before it are safe"
            ) from None

    def traces(self) -> Iterator[Trace]:
        """The stored traces, in order. A last line that was cut off is passed over."""
        path = self.path / "requests.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield _decode(line)
                except (msgspec.DecodeError, ValueError) as problem:
                    if not line.endswith(b"\n"):
                        return
                    raise UserError(f"{path}, line {number}: {problem}") from None

    def save_summary(self, cells: list[Cell]) -> bytes:
        """Write ``summary.json``, and return its bytes."""
        content = summary_json(self.run, cells)
        _write_atomically(self.path / "summary.json", content)
        return content


def summary_json(run: Run, cells: list[Cell]) -> bytes:
    return _pretty(Summary(started=run.started, cells=cells))


def _encode(trace: Trace) -> bytes:
    try:
        body, encoding = trace.body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        body, encoding = trace.body.decode("latin-1"), "latin-1"
    bare = msgspec.structs.replace(trace, body=b"")
    return _ENCODER.encode(Line(bare, encoding, body))


def _decode(line: bytes) -> Trace:
    stored = _DECODER.decode(line)
    return msgspec.structs.replace(stored.request, body=stored.body.encode(stored.encoding))


def _array_to_list(value: Any) -> Any:
    if isinstance(value, array):
        return value.tolist()
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def _list_to_array(kind: type, value: Any) -> Any:
    if kind is array:
        return array("q", value)
    raise NotImplementedError(f"{kind.__name__} has no JSON form")


_ENCODER = msgspec.json.Encoder(enc_hook=_array_to_list)
_DECODER = msgspec.json.Decoder(Line, dec_hook=_list_to_array)


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step, so that a kill leaves the old file or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _slug(name: str) -> str:
    words = "".join(char if char.isalnum() else " " for char in name).split()
    return "-".join(words)[:40].lower() or "run"
