"""requests.jsonl → the requests of each cell, in several processes where the file is long.

What is read, decoded and measured of one request depends on no other, so a span of the file needs
nothing but the file. The spans come back in its order, and no more of them are under way than there
are processes to work on them.
"""

import gc
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import groupby, islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from llmbench.host import cores
from llmbench.measure.cell import requests_in
from llmbench.measure.requests import Requests
from llmbench.store import RunDirectory, lines_in

SPAN_BYTES = 8 << 20
"""Some fourteen hundred replies of 16 tokens: a tenth of a second of work, and little to hold."""

PARTS = 64
"""Spans whose requests are joined at a time."""

LONG_BYTES = 64 << 20
"""A file that is not longer is read sooner than other processes have started."""

Found = list[tuple[int, Requests]]
"""Requests of cells, each with the number of its cell."""


class Span(NamedTuple):
    """Bytes of a file that hold whole lines."""

    start: int
    stop: int


def requests_by_cell(directory: RunDirectory) -> Iterator[tuple[int, Requests]]:
    """The stored requests of each cell that ``run.json`` knows, with its number, in the order in
    which they were run. Raises ``UserError`` for a line that is damaged."""
    run, path = directory.run, directory.requests_path
    apis = {facts.cell: run.targets[facts.target].api for facts in run.cells}
    found = measure_file(path, apis, cores())
    for number, its in groupby(found, key=lambda each: each[0]):
        yield number, _joined(part for _, part in its)


def _joined(parts: Iterator[Requests]) -> Requests:
    """All of ``parts``, by way of larger ones: what many small arrays leave behind, when they are
    freed, is memory that the large ones cannot have."""
    larger = []
    while some := list(islice(parts, PARTS)):
        larger.append(Requests.joined(some))
    return Requests.joined(larger)


def measure_file(
    path: Path, apis: Mapping[int, str], processes: int, size: int = SPAN_BYTES
) -> Iterator[tuple[int, Requests]]:
    """What ``measure_span`` finds in all of ``path``, in order: in this process, or in so many
    others where the file is long. Those are spawned: a fork of a process with threads may hang."""
    work = spans(path, size)
    if processes == 1 or not path.exists() or path.stat().st_size <= LONG_BYTES:
        for span in work:
            yield from measure_span(path, span, apis)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=gc.disable) as pool:

        def begin(some: Iterable[Span]) -> None:
            under_way.extend(pool.submit(measure_span, path, span, dict(apis)) for span in some)

        under_way: deque[Future[Found]] = deque()
        begin(islice(work, processes + 1))
        while under_way:
            found = under_way.popleft().result()
            begin(islice(work, 1))
            yield from found


def spans(path: Path, size: int = SPAN_BYTES) -> Iterator[Span]:
    """``path``, if it exists, in spans of about ``size`` bytes, each up to the end of a line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        length, start = os.fstat(file.fileno()).st_size, 0
        while start < length:
            file.seek(min(start + size, length))
            file.readline()
            stop = file.tell()
            yield Span(start, stop)
            start = stop


def measure_span(path: Path, span: Span, apis: Mapping[int, str]) -> Found:
    """The requests in ``span`` of each cell that has an API in ``apis``."""
    traces = (trace for trace in lines_in(path, *span) if trace.cell in apis)
    return [
        (number, requests_in(its, apis[number]))
        for number, its in groupby(traces, key=lambda trace: trace.cell)
    ]
