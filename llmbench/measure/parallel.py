"""requests.jsonl → RequestMetrics in several processes: each measures spans of the file's bytes.

What is read, decoded and measured of one request depends on no other, so a span needs nothing but
the file. The spans come back in the order of the file, and no more of them are under way than there
are processes to work on them: memory does not grow with the file.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import msgspec

from llmbench.apis import APIS
from llmbench.errors import UserError
from llmbench.measure.metrics import measure
from llmbench.measure.timeline import decode
from llmbench.records import RequestMetrics
from llmbench.store import _decode as decode_line

SPAN_BYTES = 4 << 20
"""Some seven hundred replies of 16 tokens: a tenth of a second of work, and little to hold."""

Measured = list[tuple[int, RequestMetrics]]
"""Requests, each with the number of its cell."""


class Span(NamedTuple):
    """Bytes of a file that hold whole lines."""

    start: int
    stop: int


def spans(path: Path, size: int = SPAN_BYTES) -> Iterator[Span]:
    """``path`` in spans of about ``size`` bytes, each up to the end of a line."""
    with path.open("rb") as file:
        length, start = os.fstat(file.fileno()).st_size, 0
        while start < length:
            file.seek(min(start + size, length))
            file.readline()
            stop = file.tell()
            yield Span(start, stop)
            start = stop


def measure_span(path: Path, span: Span, apis: Mapping[int, str]) -> Measured:
    """The requests in ``span`` of those cells that have an API in ``apis``. A last line that was
    cut off is passed over. Raises ``UserError`` for one that is damaged."""
    found: Measured = []
    with path.open("rb") as file:
        file.seek(span.start)
        while file.tell() < span.stop:
            line = file.readline()
            try:
                trace = decode_line(line)
            except (msgspec.DecodeError, ValueError) as problem:
                if not line.endswith(b"\n"):
                    break
                number = _line_number(path, file.tell())
                raise UserError(f"{path}, line {number}: {problem}") from None
            if trace.cell in apis:
                events = APIS[apis[trace.cell]].decode
                found.append((trace.cell, measure(trace, decode(trace, events))))
    return found


def measure_file(
    path: Path, apis: Mapping[int, str], processes: int, size: int = SPAN_BYTES
) -> Iterator[tuple[int, RequestMetrics]]:
    """Every request in ``path``, in order, with the number of its cell, by so many ``processes``.

    They are spawned: a fork of a process that has threads may hang.
    """
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    work = spans(path, size)
    with pool:
        under_way: deque[Future[Measured]] = deque()
        for span in islice(work, processes + 1):
            under_way.append(pool.submit(measure_span, path, span, dict(apis)))
        while under_way:
            found = under_way.popleft().result()
            for span in islice(work, 1):
                under_way.append(pool.submit(measure_span, path, span, dict(apis)))
            yield from found


def _line_number(path: Path, end: int) -> int:
    """The number, from 1, of the line of ``path`` that ends before the byte ``end``."""
    with path.open("rb") as file:
        return file.read(end).count(b"\n")
