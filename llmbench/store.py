"""The run directory: what was measured, written down as soon as a cell is over.

run.json        the sweep, the host, the versions, what is known of each cell
requests.jsonl  one request a line, with its stamps and the bytes of its reply: the evidence
*.part          the evidence of the cell that is running (see ``parts``)
summary.json    derived from the two; ``llmbench report`` makes it again
columns/        what was decoded of long cells (see ``columns``); may be deleted
"""

import errno
import fcntl
import itertools
import os
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from llmbench import __version__
from llmbench.config import Sweep
from llmbench.errors import UserError
from llmbench.headers import all_hidden
from llmbench.measure.capacity import answers
from llmbench.parts import check_reads, count_in_part, part_paths, read_part
from llmbench.records import Capacity, Cell, CellFacts, Target, Trace
from llmbench.targets import is_target

RUN_SCHEMA = "llmbench.run/1"
SUMMARY_SCHEMA = "llmbench.summary/1"
Encoding = Literal["utf-8", "latin-1"]
Reader = Callable[[Iterable[Trace]], object]


def exhaust(traces: Iterable[Trace]) -> None:
    """Read ``traces`` to their end, for what happens on the way."""
    deque(traces, maxlen=0)


class StoreError(UserError):
    """The disk did not take a cell."""

    exit_code = 4


class Run(Struct, kw_only=True):
    """``run.json``. ``targets`` are the sweep's, with what running them found out. ``running`` is
    the cell whose evidence is still in parts."""

    schema: str = RUN_SCHEMA
    llmbench: str = __version__
    started: str
    ended: str | None = None
    interrupted: bool = False
    sweep: Sweep
    targets: list[Target]
    host: dict[str, Any]
    cells: list[CellFacts] = []
    running: CellFacts | None = None


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
    """One run on disk: one that is made here, or one that was ``opened`` to be read.

    Of the latter ``run.cells`` has the running cell too, as far as it got. ``is_live`` says whether
    another process may still be at it.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.run = run
        self.is_live = False
        self._lock: int | None = None
        self._parts: list[tuple[Path, int]] = []

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
            directory._lock = _locked(path)
            directory.save_run()
        except OSError as problem:
            raise UserError(f"--out {path}: cannot be made: {problem.strerror}") from None
        return directory

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """The run at ``path``. Raises ``UserError`` where there is none that can be read."""
        directory = cls(path, _read_run(path))
        directory.is_live = directory.run.ended is None and _is_locked(path)
        if directory.run.running is not None:
            directory._add_running(directory.run.running)
        return directory

    def _add_running(self, facts: CellFacts) -> None:
        """Add the running cell to those that are over, with the word that it is not."""
        with self._going_on():
            paths = part_paths(self.path, facts.cell)
            self._parts = [(path, count_in_part(path)) for path in paths]
            if _read_run(self.path).running != facts:
                raise FileNotFoundError
        stored = sum(count for _, count in self._parts)
        how = "ended in the middle of this cell (killed, or the disk was full)"
        how = "is still running" if self.is_live else how
        stopped = f"the run {how}: {stored:,} requests had ended"
        self.run.cells.append(msgspec.structs.replace(facts, stored=stored, stopped=stopped))

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """A run may go on while it is read, and the parts of a cell be gone."""
        try:
            yield
        except FileNotFoundError:
            again = "a cell ended while it was read; run this once more"
            raise UserError(f"{self.path}: {again}") from None

    @property
    def requests_path(self) -> Path:
        return self.path / "requests.jsonl"

    def save_run(self) -> None:
        _write_atomically(self.path / "run.json", _pretty(_recorded(self.run)))

    def finish(self, *, interrupted: bool) -> None:
        """Note in ``run.json`` that the run is over, and how."""
        self.run.ended = datetime.now(UTC).isoformat(timespec="seconds")
        self.run.interrupted = interrupted
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self.save_run()

    def begin_cell(self, facts: CellFacts) -> None:
        """Note in ``run.json`` which cell is about to run. Raises ``OSError``."""
        self.run.running = facts
        self.save_run()

    def add_cell(self, facts: CellFacts, traces: Iterable[Trace], read: Reader = exhaust) -> Span:
        """Append a cell: its evidence first, then the word that it is there; its parts can go then.
        Where it lies. ``read`` sees its traces while they are written."""
        path = self.requests_path
        before = path.stat().st_size if path.exists() else 0
        running = self.run.running
        try:
            try:
                stored = write_traces(path, traces, read)
            except BaseException:
                # The cells before stay readable. Not earlier: closing writes what is buffered.
                if path.exists():
                    os.truncate(path, before)
                raise
            self.run.cells.append(msgspec.structs.replace(facts, stored=stored))
            self.run.running = None
            self.save_run()
        except OSError as problem:
            self.run.running = running
            raise self.lost(facts, problem) from None
        for part in part_paths(self.path, facts.cell):
            part.unlink()
        return Span(before, path.stat().st_size)

    def lost(self, facts: CellFacts, problem: OSError) -> StoreError:
        """What to raise where ``problem`` ended a cell: what is left of it, and what to do."""
        parts = part_paths(self.path, facts.cell)
        kept = sum(map(count_in_part, parts))
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "no space left on the disk" if full else problem.strerror or problem
        advice = "free space, then " * full + f"llmbench report {self.path}"
        held = f", its {kept:,} requests are kept in {', '.join(map(str, parts))}" if parts else ""
        return StoreError(f"{self.path}: {why}; cell {facts.cell + 1} was stopped{held}; {advice}")

    def traces(self) -> Iterator[Trace]:
        """The stored traces, in order, those of the running cell last. A last line that was cut off
        is passed over."""
        running = self.run.running
        for trace in read_traces(self.requests_path):
            if running is None or trace.cell != running.cell:  # lines that a kill left of it
                yield trace
        yield from self.running_traces()

    def running_traces(self) -> Iterator[Trace]:
        """The traces of the running cell, as many as had ended when the run was opened."""
        with self._going_on():
            for path, count in self._parts:
                yield from itertools.islice(read_part(path), count)

    def part_traces(self, cell: int) -> Iterator[Trace]:
        """The traces of ``cell``, which has just ended."""
        for path in part_paths(self.path, cell):
            yield from read_part(path)

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


def write_traces(path: Path, traces: Iterable[Trace], read: Reader = exhaust) -> int:
    """Append ``traces`` to ``path``, and see them on the disk; how many. ``read`` takes them all,
    on the way. Raises ``OSError``."""
    written = 0

    def passing() -> Iterator[Trace]:
        nonlocal written
        for trace in traces:
            file.write(_encode(trace) + b"\n")
            written += 1
            yield trace

    with path.open("ab") as file:
        read(passing())
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
    check_reads(stored.request, len(body))
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


def _recorded(run: Run) -> Run:
    """``run`` without the values of headers: they may be secrets."""
    targets = [
        msgspec.structs.replace(each, headers=all_hidden(each.headers)) for each in run.targets
    ]
    return msgspec.structs.replace(run, sweep=run.sweep.recorded(), targets=targets)


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


def _read_run(path: Path) -> Run:
    file = path / "run.json"
    try:
        run = msgspec.json.decode(file.read_bytes(), type=Run)
    except OSError as problem:
        if not path.exists() and is_target(str(path)):
            raise UserError(
                f"{path}: not a run directory; to measure it: llmbench sweep --target {path}; two "
                "in turns: llmbench compare --ab"
            ) from None
        raise UserError(f"{path}: not a run directory: run.json: {problem.strerror}") from None
    except msgspec.DecodeError as problem:
        raise UserError(f"{file}: not a run that this version can read: {problem}") from None
    known = run.cells if run.running is None else [*run.cells, run.running]
    if any(not 0 <= facts.target < len(run.targets) for facts in known):
        raise UserError(f"{file}: a cell names a target that is not there")
    if run.schema != RUN_SCHEMA:
        raise UserError(f"{file}: schema {run.schema}; this version reads {RUN_SCHEMA}")
    return run


def _locked(path: Path) -> int | None:
    """The directory ``path``, open and locked for as long as this process lives; ``None`` where the
    file system has no locks."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _is_locked(path: Path) -> bool:
    """Whether another has locked the directory ``path``, as far as can be told."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as problem:
        return isinstance(problem, BlockingIOError)
    finally:
        os.close(handle)
    return False


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
