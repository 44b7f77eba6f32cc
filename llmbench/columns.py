"""A long cell's requests as they were decoded, so that its next report need not decode them again.

columns/<cell>.npz  a table, which bytes of ``requests.jsonl`` it was read from, and by what code

A table counts only while the evidence has those bytes, each of them, and llmbench would decode them
by the same code; else the evidence is read. The folder may be deleted at any time.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from llmbench.host import cores
from llmbench.measure.requests import Ragged, Requests
from llmbench.records import Connect
from llmbench.store import RunDirectory, Span, replacing

_T = TypeVar("_T")

LONG_BYTES = 8 << 20
"""Of evidence: what is not longer is decoded in a tenth of a second."""

BLOCK_BYTES = 4 << 20
"""What is hashed at a time: other threads may run meanwhile."""

_DECODERS = ("apis", "measure", "parts.py", "records.py", "store.py")
"""Of the package, what the figures of a request come from."""


class _Key(Struct, frozen=True):
    """What a table stands for: a cell, the bytes of its evidence, and digests of them and of the
    code that decoded them."""

    cell: int
    start: int
    stop: int
    evidence: str
    code: str


_ABOUT = {"key", "names"}
"""The members that are no part of the table: what it stands for, and the names of all others."""


class Kept(NamedTuple):
    """The table of a cell, and the bytes of the evidence that it stands for."""

    cell: int
    span: Span
    requests: Requests


def keep(directory: RunDirectory, cell: int, span: Span, requests: Requests) -> None:
    """Keep the ``requests`` of a cell that were decoded from ``span``, where that is long. A disk
    that takes no more is no harm: they can be decoded again."""
    if span.stop - span.start <= LONG_BYTES:
        return
    with suppress(OSError):
        key = _key(directory, cell, span)
        path = _folder(directory) / f"{cell}.npz"
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as scratch, scratch.open("wb") as file:
            arrays = _arrays(requests)
            np.savez(file, key=_letters(key), names=_letters(sorted(arrays)), **arrays)


def kept(directory: RunDirectory) -> Iterator[Kept]:
    """The tables that still stand for their evidence, in its order."""
    found = [
        (key, path)
        for path in _folder(directory).glob("*.npz")
        if (key := _usable(_key_in, path)) is not None and path.stem == str(key.cell)
    ]
    for key, path in sorted(found, key=lambda each: each[0].start):
        span = Span(key.start, key.stop)
        requests = _usable(_requests, path, key, directory)
        if requests is not None:
            yield Kept(key.cell, span, requests)


def _usable(read: Callable[..., _T], path: Path, *more: Any) -> _T | None:
    """What ``read`` finds in ``path``, or ``None`` where that is no table of ours, or no longer
    whole: the evidence is there to be decoded, whatever is wrong."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return read(arrays, *more)
    except Exception:
        return None


def _folder(directory: RunDirectory) -> Path:
    return directory.path / "columns"


def _key(directory: RunDirectory, cell: int, span: Span) -> _Key:
    return _Key(cell, span.start, span.stop, _digest(directory.requests_path, span), _code())


def _digest(path: Path, span: Span) -> str:
    """A digest of the digests of the blocks of ``span``, which are read side by side."""
    with path.open("rb") as file, ThreadPoolExecutor(cores()) as pool:

        def block(start: int) -> bytes:
            size = min(BLOCK_BYTES, span.stop - start)
            return hashlib.sha256(os.pread(file.fileno(), size, start)).digest()

        blocks = pool.map(block, range(span.start, span.stop, BLOCK_BYTES))
        return hashlib.sha256(b"".join(blocks)).hexdigest()


@cache
def _code() -> str:
    """A digest of the code that decodes."""
    package = Path(__file__).parent
    code = hashlib.sha256(np.__version__.encode())
    for part in _DECODERS:
        for path in sorted((package / part).rglob("*.py")) or [package / part]:
            code.update(path.read_bytes())
    return code.hexdigest()


# ── a table as arrays ────────────────────────────────────────────────────────────────────────────


def _arrays(requests: Requests) -> dict[str, Any]:
    """Each column under its name; those of several parts as ``<name>.<part>``."""
    arrays: dict[str, Any] = {}
    for name, column in requests.columns.items():
        if isinstance(column, Ragged):
            arrays |= {f"{name}.values": column.values, f"{name}.sizes": column.sizes}
        elif column is not None and column.dtype == object:
            words: dict[Any, int] = {}
            codes = [words.setdefault(each, len(words)) for each in column.tolist()]
            arrays |= {f"{name}.codes": np.array(codes), f"{name}.words": _letters(list(words))}
        elif column is not None:
            arrays[name] = column
    return arrays


def _key_in(arrays: Mapping[str, Any]) -> _Key:
    key: _Key = _read(arrays["key"], _Key)
    return key


def _requests(arrays: Mapping[str, Any], key: _Key, directory: RunDirectory) -> Requests | None:
    """The table, if it stands for ``key``, and that for the evidence."""
    if _key_in(arrays) != key or _read(arrays["names"], list[str]) != sorted(set(arrays) - _ABOUT):
        return None
    if key != _key(directory, key.cell, Span(key.start, key.stop)):
        return None
    return Requests({name: _column(arrays, name) for name in Requests.names()})


def _column(arrays: Mapping[str, Any], name: str) -> Any:
    if name in arrays:
        return arrays[name]
    if f"{name}.values" in arrays:
        return Ragged(arrays[f"{name}.values"], arrays[f"{name}.sizes"])
    if f"{name}.words" not in arrays:
        return None
    found = _read(arrays[f"{name}.words"], list[Connect | None] if name == "connect" else list[str])
    words = np.empty(len(found), dtype=object)
    words[:] = found
    return words[arrays[f"{name}.codes"]]


def _letters(value: Any) -> Any:
    """``value`` as JSON, in an array: nothing is ever unpickled."""
    return np.frombuffer(msgspec.json.encode(value), dtype=np.uint8)


def _read(letters: Any, kind: Any) -> Any:
    return msgspec.json.decode(letters.tobytes(), type=kind)
