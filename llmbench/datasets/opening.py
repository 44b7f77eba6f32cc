"""Opening a dataset's file, gzip'd or not, of a disk or a hub, and what to say where that fails."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from llmbench.datasets import hub
from llmbench.errors import UserError

READ_ERRORS = (OSError, EOFError, zlib.error)


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file at its start; what ``.gz`` names is unpacked as it is read."""
    with _raw(path) as raw:
        if not local_path(path).lower().endswith(".gz"):
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield cast(BinaryIO, unpacked)


def local_path(path: str) -> str:
    """Where the file lies: ``path``, or what was fetched of it where it begins with ``hf:``."""
    return hub.fetched(path) if path.startswith(hub.PREFIX) else path


def _raw(path: str) -> BinaryIO:
    file = Path(local_path(path))
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"--dataset {path}: it is not a file")
        return file.open("rb")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def unreadable(path: str, error: Exception) -> UserError:
    """The one line about a file that cannot be opened or read."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"--dataset {path}: {reason}")
