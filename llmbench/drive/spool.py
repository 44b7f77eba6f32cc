"""The traces of a running cell, on disk: memory does not grow with what arrives."""

import errno
import pickle
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path

from llmbench.records import Trace


class Spool:
    """Append traces; iterate over them as often as need be.

    The file has no name and vanishes with the process. Appending raises ``OSError`` where the disk
    takes no more; what was appended before stays.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed below
        self._sizes = array("q")

    def append(self, trace: Trace) -> None:
        packed = pickle.dumps(trace, pickle.HIGHEST_PROTOCOL)  # nobody else can write this file
        if self._file.write(packed) < len(packed):
            raise OSError(errno.ENOSPC, "no space left on the disk")
        self._sizes.append(len(packed))

    def __iter__(self) -> Iterator[Trace]:
        start = 0
        for size in self._sizes:
            self._file.seek(start)
            trace: Trace = pickle.loads(self._file.read(size))  # noqa: S301 - see append
            yield trace
            start += size

    def close(self) -> None:
        self._file.close()
