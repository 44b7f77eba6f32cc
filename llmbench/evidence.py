"""requests.jsonl → the requests of each cell, in several processes where the file is long.

What is read, decoded and measured of one request depends on no other, so a span of the file needs
nothing but the file. The spans come back in its order, and no more of them are under way than there
are processes to work on them. What was decoded before is not decoded again (see ``columns``).
"""

import gc
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import groupby, islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from llmbench import columns
from llmbench.host import cores
from llmbench.measure.cell import requests_in
from llmbench.measure.requests import Requests
from llmbench.store import RunDirectory, Span, lines_in

SPAN_BYTES = 8 << 20
"""Some fourteen hundred replies of 16 tokens: a tenth of a second of work, and little to hold."""

PARTS = 64
"""Spans whose requests are joined at a time."""

LONG_BYTES = 64 << 20
"""Evidence that is not longer is read sooner than other processes have started."""


class Part(NamedTuple):
    """Requests of one cell, and the bytes that they were read from."""

    cell: int
    span: Span
    requests: Requests


def requests_by_cell(directory: RunDirectory) -> Iterator[tuple[int, Requests]]:
    """The stored requests of each cell that ``run.json`` knows, with its number, in the order in
    which they were run. Raises ``UserError`` for a line that is damaged."""
    for number, its in groupby(_pieces(directory), key=lambda piece: piece[0]):
        yield number, Requests.joined([requests for _, requests in its])


def _pieces(directory: RunDirectory) -> Iterator[tuple[int, Requests]]:
    """The requests of each cell, those of one that was only kept in part in several pieces."""
    run, path = directory.run, directory.requests_path
    apis = {facts.cell: run.targets[facts.target].api for facts in run.cells}
    running = run.running
    api = apis.pop(running.cell) if running is not None else ""  # not what a kill left of its lines
    start = 0
    for kept in columns.kept(directory):
        yield from _decoded(directory, Span(start, kept.span.start), apis)
        if kept.cell in apis:
            yield kept.cell, kept.requests
        start = kept.span.stop
    size = path.stat().st_size if path.exists() else 0
    yield from _decoded(directory, Span(start, size), apis)
    if running is not None:
        yield running.cell, requests_in(directory.running_traces(), api)


def _decoded(
    directory: RunDirectory, span: Span, apis: Mapping[int, str]
) -> Iterator[tuple[int, Requests]]:
    """What ``span`` of the evidence says, which is kept for the next time."""
    found = measure_file(directory.requests_path, span, apis, cores())
    for _, its in groupby(found, key=lambda part: part.cell):
        whole = _whole(its)
        if not directory.is_live:
            columns.keep(directory, *whole)
        yield whole.cell, whole.requests


def _whole(parts: Iterator[Part]) -> Part:
    """All ``parts`` of a cell as one, by way of larger ones: what many small arrays leave behind,
    when they are freed, is memory that the large ones cannot have."""
    larger = []
    while some := list(islice(parts, PARTS)):
        larger.append(_joined(some))
    return _joined(larger)


def _joined(parts: Sequence[Part]) -> Part:
    """Neighbours as one; they are emptied on the way."""
    span = Span(parts[0].span.start, parts[-1].span.stop)
    return Part(parts[0].cell, span, Requests.joined([part.requests for part in parts]))


def measure_file(
    path: Path, whole: Span, apis: Mapping[int, str], processes: int, size: int = SPAN_BYTES
) -> Iterator[Part]:
    """What ``measure_span`` finds in ``whole`` of ``path``, in order: in this process, or in so
    many others where that is long. Those are spawned: a fork of a process with threads may hang."""
    work = spans(path, whole, size)
    if processes == 1 or whole.stop - whole.start <= LONG_BYTES:
        for span in work:
            yield from measure_span(path, span, apis)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=gc.disable) as pool:

        def begin(some: Iterable[Span]) -> None:
            under_way.extend(pool.submit(measure_span, path, span, dict(apis)) for span in some)

        under_way: deque[Future[list[Part]]] = deque()
        begin(islice(work, processes + 1))
        while under_way:
            found = under_way.popleft().result()
            begin(islice(work, 1))
            yield from found


def spans(path: Path, whole: Span, size: int = SPAN_BYTES) -> Iterator[Span]:
    """``whole``, in spans of about ``size`` bytes, each up to the end of a line."""
    start, end = whole
    if start == end:
        return
    with path.open("rb") as file:
        while start < end:
            file.seek(min(start + size, end))
            if file.tell() < end:
                file.readline()
            stop = file.tell()
            yield Span(start, stop)
            start = stop


def measure_span(path: Path, span: Span, apis: Mapping[int, str]) -> list[Part]:
    """The requests in ``span`` of each cell that has an API in ``apis``."""
    found = []
    for number, its in groupby(lines_in(path, span), key=lambda line: line[0].cell):
        if number in apis:
            traces, where = zip(*its, strict=True)
            whole = Span(where[0].start, where[-1].stop)
            found.append(Part(number, whole, requests_in(traces, apis[number])))
    return found
