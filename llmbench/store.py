"""The run directory: what was measured, written down as soon as a cell is over.

run.json        the sweep, the host, the versions, what is known of each cell
requests.jsonl  one request a line, with its stamps and the bytes of its reply: the evidence
summary.json    derived from the two; ``llmbench report`` makes it again
columns/        what was decoded of long cells (see ``columns``); may be deleted
"""

import itertools
import os
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from llmbench import __version__
from llmbench.config import Sweep
from llmbench.errors import UserError
from llmbench.measure.capacity import answers
from llmbench.records import Capacity, Cell, CellFacts, Target, Trace

RUN_SCHEMA = "llmbench.run/1"
SUMMARY_SCHEMA = "llmbench.summary/1"
Encoding = Literal["utf-8", "latin-1"]


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
    """``summary.json``, and what ``--format json`` prints. ``capacity`` is there after a search."""

    schema: str = SUMMARY_SCHEMA
    llmbench: str = __version__
    started: str
    cells: list[Cell]
    capacity: list[Capacity] | UnsetType = UNSET


class Span(NamedTuple):
    """Bytes of a file that hold whole lines."""

    start: int
    stop: int


class Line(Struct, frozen=True):
    """One line of ``requests.jsonl``. ``body`` is the reply's, in ``encoding``.

    Latin-1 stands in where the bytes are not UTF-8: it gives every byte a character.
    """

    request: Trace
    encoding: Encoding
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
        if not sweep.out:
            path = _unused(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"--out {path}: it exists and is not an empty directory")
        run = Run(
            started=started.isoformat(timespec="seconds"), sweep=sweep, targets=targets, host=host
        )
        directory = cls(path, run)
        try:
            path.mkdir(parents=True, exist_ok=True)
            directory.save_run()
        except OSError as problem:
            raise UserError(f"--out {path}: cannot be made: {problem.strerror}") from None
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
        if any(not 0 <= facts.target < len(run.targets) for facts in run.cells):
            raise UserError(f"{file}: a cell names a target that is not there")
        if run.schema != RUN_SCHEMA:
            raise UserError(f"{file}: schema {run.schema}; this version reads {RUN_SCHEMA}")
        return cls(path, run)

    @property
    def requests_path(self) -> Path:
        return self.path / "requests.jsonl"

    def save_run(self) -> None:
        _write_atomically(self.path / "run.json", _pretty(self.run))

    def finish(self, *, interrupted: bool) -> None:
        """Note in ``run.json`` that the run is over, and how."""
        self.run.ended = datetime.now(UTC).isoformat(timespec="seconds")
        self.run.interrupted = interrupted
        self.save_run()

    def add_cell(self, facts: CellFacts, traces: Iterable[Trace]) -> Span:
        """Append a cell: its evidence first, then the word that it is there. Where that lies."""
        path = self.requests_path
        try:
            before = path.stat().st_size if path.exists() else 0
            try:
                stored = write_traces(path, traces)
            except OSError:
                # The cells before stay readable. Not earlier: closing writes what is buffered.
                os.truncate(path, before)
                raise
            self.run.cells.append(msgspec.structs.replace(facts, stored=stored))
            self.save_run()
            return Span(before, path.stat().st_size)
        except OSError as problem:
            raise StoreError(
                f"{path}: cell {facts.cell + 1} cannot be stored: {problem.strerror}; "
                "the cells before it are safe"
            ) from None

    def traces(self) -> Iterator[Trace]:
        """The stored traces, in order. A last line that was cut off is passed over."""
        return read_traces(self.requests_path)

    def save_summary(self, cells: list[Cell]) -> bytes:
        """Write ``summary.json``, and return its bytes."""
        content = summary_json(self.run, cells)
        _write_atomically(self.path / "summary.json", content)
        return content


def summary_json(run: Run, cells: list[Cell]) -> bytes:
    found = capacities(run, cells)
    return _pretty(Summary(started=run.started, cells=cells, capacity=found or UNSET))


def capacities(run: Run, cells: Sequence[Cell]) -> list[Capacity]:
    """What the searches of a run found, in the order in which its cells were run."""
    sweep = run.sweep
    if not sweep.search:
        return []
    most = max(float(load) for load in sweep.request_rate or sweep.concurrency)
    return answers(cells, sweep.least, most)


def write_traces(path: Path, traces: Iterable[Trace]) -> int:
    """Append ``traces`` to ``path``, and see them on the disk; how many. Raises ``OSError``."""
    written = 0
    with path.open("ab") as file:
        for trace in traces:
            file.write(_encode(trace) + b"\n")
            written += 1
        file.flush()
        os.fsync(file.fileno())
    return written


def read_traces(path: Path) -> Iterator[Trace]:
    """The traces in ``path``, if it exists. A last line that was cut off is passed over."""
    whole = Span(0, path.stat().st_size if path.exists() else 0)
    return (trace for trace, _ in lines_in(path, whole))


def lines_in(path: Path, span: Span) -> Iterator[tuple[Trace, Span]]:
    """The traces in ``span`` of ``path``, each with the bytes of its line. A last line that was cut
    off is passed over. Raises ``UserError`` for one that is damaged."""
    start, end = span
    if start == end:
        return
    with path.open("rb") as file:
        file.seek(start)
        while start < end:
            line = file.readline()
            stop = start + len(line)
            try:
                yield _decode(line), Span(start, stop)
            except (msgspec.DecodeError, ValueError) as problem:
                if not line.endswith(b"\n"):
                    return
                number = _line_number(path, stop)
                raise UserError(f"{path}, line {number}: {problem}") from None
            start = stop


def _line_number(path: Path, end: int) -> int:
    """The number, from 1, of the line of ``path`` that ends before the byte ``end``."""
    with path.open("rb") as file:
        number = 0
        while file.tell() < end and file.readline():
            number += 1
        return number


def _encode(trace: Trace) -> bytes:
    encoding: Encoding = "utf-8"
    try:
        body = trace.body.decode(encoding)
    except UnicodeDecodeError:
        encoding = "latin-1"
        body = trace.body.decode(encoding)
    bare = msgspec.structs.replace(trace, body=b"")
    return _ENCODER.encode(Line(bare, encoding, body))


def _decode(line: bytes) -> Trace:
    """The trace in ``line``. Raises ``ValueError`` where it is damaged."""
    stored = _DECODER.decode(line)
    body = stored.body.encode(stored.encoding)
    reads = stored.request.reads
    columns = (reads.end, reads.at_ns, reads.lag_ns, reads.slack_ns)
    if len({len(column) for column in columns}) > 1:
        raise ValueError("the columns of its reads differ in length")
    if (ends := reads.end.tolist()) != sorted(ends):
        raise ValueError("its reads run backwards")
    if (ends[-1] if ends else 0) != len(body):
        raise ValueError(f"its reads do not end where its body does, at byte {len(body)}")
    msgspec.structs.force_setattr(stored.request, "body", body)  # nobody else has it yet
    return stored.request


def _array_to_list(value: Any) -> Any:
    if isinstance(value, array):
        return value.tolist()
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def _list_to_array(kind: type, value: Any) -> Any:
    if kind is array:
        try:
            return array("q", value)
        except OverflowError as problem:
            raise ValueError(str(problem)) from None
    raise NotImplementedError(f"{kind.__name__} has no JSON form")


_ENCODER = msgspec.json.Encoder(enc_hook=_array_to_list)
_DECODER = msgspec.json.Decoder(Line, dec_hook=_list_to_array)


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to be ``path``: it is replaced in one step, so that a kill leaves the
    old file or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _write_atomically(path: Path, content: bytes) -> None:
    with replacing(path) as scratch:
        scratch.write_bytes(content)


def _unused(path: Path) -> Path:
    """``path``, or with a number behind it where another run has just taken it."""
    taken = path
    for number in itertools.count(2):
        if not path.exists():
            break
        path = taken.with_name(f"{taken.name}-{number}")
    return path


def _slug(name: str) -> str:
    words = "".join(char if char.isalnum() else " " for char in name).split()
    return "-".join(words)[:40].lower() or "run"
