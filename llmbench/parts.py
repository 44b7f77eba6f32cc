"""The requests of the running cell on disk, each as soon as it has ended: a kill loses none.

cell-<cell>.<number>.part  one a process: for each request the size of its record in four bytes, and
                           the trace as MessagePack, the columns of its reads as they lie in memory

When the cell is over they become lines of ``requests.jsonl``, and the files go. What a kill or a
full disk left of the last record is passed over.
"""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from llmbench.records import Trace

HEAD_BYTES = 4


def part_path(folder: Path, cell: int, number: int = 0) -> Path:
    """The file of process ``number`` in the run directory ``folder``."""
    return folder / f"cell-{cell}.{number}.part"


def part_paths(folder: Path, cell: int) -> list[Path]:
    """The files that there are of ``cell``, in order."""
    return sorted(folder.glob(part_path(folder, cell).name.replace(".0.", ".*.")))


def pack_into(record: bytearray, trace: Trace) -> None:
    """Make ``record`` that of ``trace``."""
    _ENCODER.encode_into(trace, record, HEAD_BYTES)
    record[:HEAD_BYTES] = (len(record) - HEAD_BYTES).to_bytes(HEAD_BYTES, "little")


def read_part(path: Path) -> Iterator[Trace]:
    """The traces in ``path``, up to the first record that is cut off or damaged."""
    with path.open("rb") as file:
        for size in _sizes(file):
            try:
                trace = _DECODER.decode(file.read(size))
                check_reads(trace, len(trace.body))
            except (msgspec.DecodeError, ValueError, RecursionError):
                return
            yield trace


def count_in_part(path: Path) -> int:
    """How many whole records ``path`` has; what they say is not looked at."""
    with path.open("rb") as file:
        return sum(1 for _ in _sizes(file))


def _sizes(file: BinaryIO) -> Iterator[int]:
    """The size of each whole record in ``file``, which then stands at its beginning."""
    end, start = os.fstat(file.fileno()).st_size, 0
    while start + HEAD_BYTES <= end:
        file.seek(start)
        size = int.from_bytes(file.read(HEAD_BYTES), "little")
        start += HEAD_BYTES + size
        if start > end:
            return
        yield size


def check_reads(trace: Trace, body_bytes: int) -> None:
    """Raise ``ValueError`` where the reads of ``trace`` cannot be those of a body of that size."""
    reads = trace.reads
    columns = (reads.end, reads.at_ns, reads.lag_ns, reads.slack_ns)
    if len({len(column) for column in columns}) > 1:
        raise ValueError("the columns of its reads differ in length")
    if (ends := reads.end.tolist()) != sorted(ends):
        raise ValueError("its reads run backwards")
    if (ends[-1] if ends else 0) != body_bytes:
        raise ValueError(f"its reads do not end where its body does, at byte {body_bytes}")


def _array_to_bytes(value: Any) -> Any:
    if isinstance(value, array):
        return value.tobytes()
    raise NotImplementedError(f"{type(value).__name__} has no packed form")


def _bytes_to_array(kind: type, value: Any) -> Any:
    if kind is array and isinstance(value, bytes):
        return array("q", value)
    raise ValueError(f"a column of integers was expected, not {type(value).__name__}")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_array_to_bytes)
_DECODER = msgspec.msgpack.Decoder(Trace, dec_hook=_bytes_to_array)
