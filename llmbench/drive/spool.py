"""The traces of a running cell, on disk: memory does not grow with what arrives, and a kill loses
nothing that had ended."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from llmbench.parts import pack_into, read_part
from llmbench.records import Trace


class Spool:
    """Appends the traces of one process to ``path``, each ``cleaned`` of what must not be stored.

    Appending raises ``OSError`` where the disk takes no more; what was appended before stays.
    """

    def __init__(self, path: Path, cleaned: Callable[[Trace], Trace] = lambda trace: trace) -> None:
        self.path = path
        self._cleaned = cleaned
        self._file = path.open("wb", buffering=0)
        self._record = bytearray()

    def append(self, trace: Trace) -> Trace:
        """Write ``trace`` at once, and return it as it was written."""
        cleaned = self._cleaned(trace)
        pack_into(self._record, cleaned)
        written = self._file.write(self._record)
        if written < len(self._record):
            # Half a record would hide those after it; a smaller one may still find room.
            self._file.seek(-written, os.SEEK_CUR)
            self._file.truncate()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return cleaned

    def settle(self, finished: Callable[[Trace], Trace]) -> None:
        """Write each trace again as it is when ``finished``. Where the disk takes no more, the file
        stays as it was."""
        scratch = self.path.with_suffix(".settled")
        try:
            settled = Spool(scratch, self._cleaned)
            try:
                for trace in self:
                    settled.append(finished(trace))
            finally:
                settled.close()
            scratch.replace(self.path)
        finally:
            scratch.unlink(missing_ok=True)

    def __iter__(self) -> Iterator[Trace]:
        return read_part(self.path)

    def close(self) -> None:
        self._file.close()
