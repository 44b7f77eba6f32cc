"""The traces of a running cell, with the bodies on disk: memory does not grow with what arrives."""

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llmbench.records import Trace


class Spool:
    """Append traces; iterate over them, as often as need be, with their bodies back in place.

    The file has no name and vanishes with the process. Appending raises ``OSError`` where the disk
    takes no more; what was appended before stays.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed below
        self._kept: list[tuple[Trace, int, int]] = []
        self._end = 0

    def append(self, trace: Trace) -> None:
        size = len(trace.body)
        written = self._file.write(trace.body) if size else 0
        if written < size:
            raise OSError(errno.ENOSPC, "no space left on the disk")
        self._kept.append((msgspec.structs.replace(trace, body=b""), self._end, size))
        self._end += size

    def __iter__(self) -> Iterator[Trace]:
        for trace, start, size in self._kept:
            self._file.seek(start)
            yield msgspec.structs.replace(trace, body=self._file.read(size))

    def close(self) -> None:
        self._file.close()
