"""A folder that is whole or not there: written under another name, and renamed when it is done."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmbench.errors import UserError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` if all goes well and goes away if not."""
    if out.exists():
        raise UserError(f"{out} exists already: remove it, or give another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as problem:
        raise UserError(f"cannot write {out}: {problem.strerror or problem}") from problem
    try:
        partial.chmod(0o755)
        yield partial
        partial.rename(out)
    except OSError as problem:
        raise UserError(f"cannot write {out}: {problem.strerror or problem}") from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def size_bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
