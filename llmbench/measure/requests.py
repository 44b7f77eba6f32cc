"""The requests of a cell as a table: a column a figure. A million of them are arrays to add up and
to sort, where a million objects would fill the memory.

What is unknown is NaN in a column of floats and ``UNKNOWN`` in one of whole numbers.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from math import prod
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmbench.measure.statistics import Floats, Ints, Reals
from llmbench.records import Connect, Phase, RequestMetrics

UNKNOWN = -1
STAGES = ("tokenize", "queue", "prefill", "decode")
"""The stages that replies may state."""

PHASES: tuple[Phase, ...] = ("warmup", "measured", "cooldown")

Mask = NDArray[np.bool_]
Objects = NDArray[np.object_]
Int32s = NDArray[np.int32]
Column = NDArray[Any]

MOST_SMALL = 127
"""Of whole numbers that fit into a byte."""

AT_ONCE = 1 << 16
"""Rows whose values are looked up at a time: their places take more memory than they do."""

MAPPED_BYTES = 128 << 10
"""An array of fewer bytes is kept in the heap."""

PACKED = 1024
"""Rows that are held as objects while they are packed."""


class Ragged(NamedTuple):
    """Values of which each row has any number: those of row i are ``sizes[i]`` of ``values``, after
    those of the rows before it."""

    values: Column
    sizes: Ints

    @property
    def starts(self) -> Ints:
        """Where the values of each row begin."""
        return np.asarray(np.cumsum(self.sizes) - self.sizes)

    @property
    def firsts(self) -> Mask:
        """Which values are the first of their row."""
        firsts = np.zeros(len(self.values), dtype=bool)
        firsts[self.starts[self.sizes > 0]] = True
        return firsts

    @property
    def lasts(self) -> Mask:
        """Which values are the last of their row."""
        lasts = np.zeros(len(self.values), dtype=bool)
        lasts[(self.starts + self.sizes - 1)[self.sizes > 0]] = True
        return lasts

    def sums(self, kind: type[np.generic] = np.float64) -> Column:
        """The sum of each row's values, 0 for a row without."""
        sums = np.zeros(len(self.sizes), dtype=kind)
        some = self.sizes > 0
        if some.any():
            sums[some] = np.add.reduceat(self.values, self.starts[some], dtype=kind)
        return sums

    def of(self, rows: Mask) -> "Ragged":
        """Those of the rows that are marked."""
        return Ragged(self.values[np.repeat(rows, self.sizes)], self.sizes[rows])

    def at(self, rows: Ints) -> "Ragged":
        """Those of ``rows``, in this order."""
        sizes, starts = self.sizes[rows], self.starts[rows]
        values, done = _room((int(sizes.sum()),), self.values.dtype), 0
        for some in range(0, len(rows), AT_ONCE):
            its = sizes[some : some + AT_ONCE]
            shifts = starts[some : some + AT_ONCE] - (np.cumsum(its) - its)
            places = np.repeat(shifts, its) + np.arange(its.sum())
            values[done : done + len(places)] = self.values[places]
            done += len(places)
        return Ragged(values, sizes)

    def where(self, kept: Mask) -> "Ragged":
        """The values that are ``kept``; the rows stay."""
        return Ragged(self.values[kept], Ragged(kept, self.sizes).sums(np.int64))

    def rows(self) -> Iterator[Column]:
        """The values of each row."""
        for start, size in zip(self.starts.tolist(), self.sizes.tolist(), strict=True):
            yield self.values[start : start + size]


class Requests:
    """Requests in columns, in the order of their starts; ``RequestMetrics`` says what each means.

    ``phase`` is an index into ``PHASES``, ``due`` says whether it was due at ``start_ns`` or sent
    then, and ``stages_ms`` has a column for each of ``STAGES``. ``gaps_s`` and ``lag_ms`` are
    ragged; so are ``steps`` (as many as gaps), and ``slack_ms`` and ``late_slack_ms`` (as many as
    events), which are ``None`` where no request has any.
    """

    phase: NDArray[np.int8]
    index: Int32s
    session: Int32s
    turn: Int32s
    run: Int32s
    segment: Int32s
    sent_ns: Ints
    start_ns: Ints
    end_ns: Ints
    send_ns: Ints
    queued_ns: Ints
    due: Mask
    failure: Objects
    detail: Objects
    finish: Objects
    token_source: Objects
    stamps: Objects
    connect: Objects
    prompt_tokens: Int32s
    cached_tokens: Int32s
    tokens: Int32s
    hidden_tokens: Int32s
    chars: Int32s
    events: Int32s
    shared: Int32s
    first_ns: Ints
    last_ns: Ints
    counted: Mask
    cut: Mask
    head_share: Floats
    ttfr_s: Floats
    ttft_s: Floats
    ttfat_s: Floats
    e2e_s: Floats
    tpot_s: Floats
    stop_s: Floats
    stages_ms: Floats
    gaps_s: Ragged
    lag_ms: Ragged
    steps: Ragged | None
    slack_ms: Ragged | None
    late_slack_ms: Ragged | None

    def __init__(self, columns: dict[str, Any]) -> None:
        self.__dict__.update(columns)

    def __len__(self) -> int:
        return len(self.phase)

    @staticmethod
    def names() -> tuple[str, ...]:
        """Those of all columns."""
        return _COLUMNS

    @property
    def columns(self) -> dict[str, Any]:
        """All columns by name."""
        return {name: self.__dict__[name] for name in _COLUMNS}

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process: a column of objects that are all alike as one of them."""
        return {name: _alike(column) for name, column in self.columns.items()}

    def __setstate__(self, columns: dict[str, Any]) -> None:
        count = len(columns["phase"])
        self.__dict__.update({name: _apart(its, count) for name, its in columns.items()})

    @classmethod
    def of(cls, rows: Iterable[RequestMetrics]) -> "Requests":
        """The table of ``rows``, of which only some are held at a time."""
        rest, parts = iter(rows), []
        while some := list(islice(rest, PACKED)):
            some.sort(key=attrgetter("start_ns"))
            parts.append(_packed(some))
        return cls.joined(parts or [_packed([])])

    @classmethod
    def joined(cls, parts: "Sequence[Requests]") -> "Requests":
        """The requests of all ``parts``, which are emptied on the way: nothing is held twice."""
        if len(parts) == 1:
            return parts[0]
        starts_ns = np.concatenate([part.start_ns for part in parts])
        order = np.argsort(starts_ns, kind="stable")
        columns: dict[str, Any] = {}
        sizes = [(part.events, part.gaps_s.sizes) for part in parts]
        for name in _COLUMNS:
            its = [part.__dict__.pop(name) for part in parts]
            if name in _OPTIONAL and any(each is not None for each in its):
                of_event = name != "steps"
                its = [
                    each or _plain(*size, of_event=of_event)
                    for each, size in zip(its, sizes, strict=True)
                ]
            columns[name] = _at(_end_to_end(its), order)
        return cls(columns)

    def where(self, rows: Mask) -> "Requests":
        """The requests that ``rows`` marks, in their order."""
        if rows.all():
            return self
        return Requests({name: _where(column, rows) for name, column in self.columns.items()})

    def but(self, **columns: Any) -> "Requests":
        """The same requests with other ``columns``."""
        return Requests(self.columns | columns)

    @cached_property
    def good(self) -> Mask:
        return np.asarray(self.failure == "")

    @cached_property
    def cancelled(self) -> Mask:
        return np.asarray(self.failure == "cancelled")

    @property
    def lost(self) -> Mask:
        """Those that failed; one that was cut off has not."""
        return ~(self.good | self.cancelled)

    @property
    def seen_tokens(self) -> Int32s:
        """The tokens that came in events, as far as it is known how many did not."""
        return self.tokens - np.maximum(self.hidden_tokens, 0)

    @property
    def measured(self) -> Mask:
        return np.asarray(self.phase == PHASES.index("measured"))

    @property
    def late_s(self) -> Floats:
        """How long after its start each was sent; negative where it was early."""
        return np.asarray((self.sent_ns - self.start_ns) / 1e9)


_COLUMNS = tuple(Requests.__annotations__)
_OPTIONAL = ("steps", "slack_ms", "late_slack_ms")


class _Alike(NamedTuple):
    value: Any


def _alike(column: Any) -> Any:
    if isinstance(column, np.ndarray) and column.dtype == object and len(column):
        first = column[0]
        if all(each == first for each in column.tolist()):
            return _Alike(first)
    return column


def _apart(column: Any, count: int) -> Any:
    if not isinstance(column, _Alike):
        return column
    same = np.empty(count, dtype=object)
    same.fill(column.value)  # ``np.full`` would make a new string for each
    return same


def _where(column: Any, rows: Mask) -> Any:
    if column is None:
        return None
    return column.of(rows) if isinstance(column, Ragged) else column[rows]


def _at(column: Any, numbers: Ints) -> Any:
    if column is None:
        return None
    if isinstance(column, Ragged):
        return column.at(numbers)
    room = _room((len(numbers), *column.shape[1:]), column.dtype)
    return column.take(numbers, axis=0, out=room, mode="clip")  # "raise" would make a copy


def _room(shape: tuple[int, ...], kind: np.dtype[Any]) -> Column:
    """An array to be filled. A large one is a mapping of its own, which goes back to the system
    when it is freed: holes that many of them leave in the heap are too small for larger ones."""
    size = prod(shape) * kind.itemsize
    if size < MAPPED_BYTES or kind.hasobject:
        return np.empty(shape, dtype=kind)
    return np.frombuffer(mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS), dtype=kind).reshape(shape)


def _end_to_end(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Ragged):
        return Ragged(
            np.concatenate([each.values for each in parts]),
            np.concatenate([each.sizes for each in parts]),
        )
    return None if parts[0] is None else np.concatenate(parts)


def _plain(events: Int32s, gaps: Ints, *, of_event: bool) -> Ragged:
    """What stands for an optional column of requests that have none of it: no slack at any event, a
    step of one token at every gap."""
    if of_event:
        return Ragged(np.zeros(int(events.sum()), dtype=np.float16), events.astype(np.int64))
    return Ragged(np.ones(int(gaps.sum()), dtype=np.int8), gaps)


def _packed(rows: Sequence[RequestMetrics]) -> Requests:
    def whole(name: str, kind: type[np.generic] = np.int64) -> Column:
        return np.array([getattr(each, name) for each in rows], dtype=kind)

    def maybe(name: str, kind: type[np.generic]) -> Column:
        found = [getattr(each, name) for each in rows]
        return np.array([UNKNOWN if each is None else each for each in found], dtype=kind)

    def words(name: str) -> Objects:
        column = np.empty(len(rows), dtype=object)
        column[:] = [getattr(each, name) for each in rows]
        return column

    def ragged(name: str, kind: type[np.generic]) -> Ragged:
        each = [getattr(row, name) for row in rows]
        sizes = np.array([len(its) for its in each], dtype=np.int64)
        return Ragged(np.frombuffer(b"".join(each), dtype=np.float32).astype(kind), sizes)

    gaps, events = ragged("gaps_s", np.float32), whole("events")
    columns: dict[str, Any] = {
        "phase": np.array([PHASES.index(each.phase) for each in rows], dtype=np.int8),
        "due": np.array([each.due_ns is not None for each in rows], dtype=bool),
        "stages_ms": _stages(rows),
        "gaps_s": gaps,
        "lag_ms": ragged("lag_ms", np.float16),
        "steps": _filled([each.steps for each in rows], gaps.sizes, np.int32, 1),
        "slack_ms": _filled([each.slack_ms for each in rows], events, np.float16, 0),
        "late_slack_ms": _filled([each.late_slack_ms for each in rows], events, np.float16, 0),
    }
    for name in ("sent_ns", "start_ns", "end_ns", "send_ns", "queued_ns"):
        columns[name] = whole(name)
    for name in (
        *("index", "session", "turn", "run", "segment"),
        *("tokens", "hidden_tokens", "chars", "events", "shared"),
    ):
        columns[name] = whole(name, np.int32)
    for name in ("counted", "cut"):
        columns[name] = whole(name, np.bool_)
    for name, kind in (
        *(("first_ns", np.int64), ("last_ns", np.int64)),
        *(("prompt_tokens", np.int32), ("cached_tokens", np.int32)),
    ):
        columns[name] = maybe(name, kind)
    for name in ("failure", "detail", "finish", "token_source", "stamps", "connect"):
        columns[name] = words(name)
    for name in ("head_share", "ttfr_s", "ttft_s", "ttfat_s", "e2e_s", "tpot_s", "stop_s"):
        columns[name] = whole(name, np.float64)  # None becomes NaN
    return Requests(columns)


def _stages(rows: Sequence[RequestMetrics]) -> Floats:
    table = np.full((len(rows), len(STAGES)), np.nan)
    for number, each in enumerate(rows):
        for stage, value in each.stages_ms.items():
            table[number, STAGES.index(stage)] = value
    return table


def _filled(
    parts: Sequence[Any], sizes: Ints, kind: type[np.generic], otherwise: int
) -> Ragged | None:
    """``parts`` end to end, ``otherwise`` as often as ``sizes`` says in the place of one that is
    ``None``; ``None`` if all are."""
    if all(each is None for each in parts):
        return None
    values = np.full(int(sizes.sum()), otherwise, dtype=kind)
    for start, part in zip(np.cumsum(sizes) - sizes, parts, strict=True):
        if part is not None:
            values[start : start + len(part)] = part
    small = kind is np.int32 and not (abs(values) > MOST_SMALL).any()
    return Ragged(values.astype(np.int8) if small else values, sizes)


def connects(requests: Requests) -> list[Connect]:
    """What it took to open connections, for those requests that opened one."""
    return [each for each in requests.connect.tolist() if each is not None]


def known(values: Reals) -> Floats:
    """``values`` without those that are unknown."""
    return np.asarray(values[~np.isnan(values)])


def reopened(requests: Requests) -> dict[str, int]:
    """How many of ``requests`` a stream had to open a connection anew for, by why."""
    return dict(Counter(each.reopened for each in connects(requests) if each.reopened))
