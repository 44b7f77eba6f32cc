"""Datasets and traces: what requests say, how long they are and when they come, row by row.

``open_dataset`` reads one pass of a file; only the row at hand is ever in memory.
"""

from collections.abc import Generator, Iterator

from llmbench.datasets.detection import detect
from llmbench.datasets.formats import FORMATS, TABLES
from llmbench.datasets.opening import READ_ERRORS, local_path, opened, unreadable
from llmbench.datasets.rows import Broken, Reader
from llmbench.errors import UserError, suggestion
from llmbench.records import Sample

__all__ = ["FORMATS", "Broken", "Reader", "Rows", "detect", "open_dataset"]

SKIPPED_KEPT = 5


def open_dataset(
    content_dataset: str,
    format: str = "",  # noqa: A002 - as the flag is called
    columns: dict[str, str] | None = None,
    skip_broken: bool = False,
    *,
    timed: bool = True,
) -> "Rows":
    """One pass over the file ``content_dataset``, in a ``format`` that is detected where it is "".

    ``columns`` are our names of a table's columns → the file's. What is wrong with these, or with
    opening the file, is said here; what is wrong inside it when the pass comes to it. Rows whose
    times alone are wrong are good ones unless they are to be ``timed``.
    """
    path = content_dataset
    if format and format not in FORMATS:
        raise UserError(f"--dataset-format {format}: unknown{suggestion(format, list(FORMATS))}")
    with opened(path):
        pass
    name = format or detect(path, columns)
    if columns and name not in TABLES:
        raise UserError(f"--dataset-columns is for {', '.join(TABLES)}, and {path} is {name}")
    if name == "parquet" and local_path(path).lower().endswith(".gz"):
        raise UserError(f"--dataset {path}: Parquet is compressed by itself; unpack it (gunzip)")
    return Rows(path, name, columns or {}, skip_broken, timed)


class Rows:
    """The samples of a file, in order and once, each read when it is asked for.

    With ``skip_broken``, rows that cannot be used are passed over: ``skipped`` has the first few
    and ``skipped_count`` is how many there were so far. Without it the first one is a
    ``UserError``. So is, either way, the end of a file that had no row which can be used.
    """

    def __init__(
        self,
        path: str,
        name: str,
        columns: dict[str, str],
        skip_broken: bool,
        timed: bool = True,
    ) -> None:
        self.path = path
        self.format = name
        self.skipped: list[Broken] = []
        self.skipped_count = 0
        self._columns = columns
        self._skip_broken = skip_broken
        self._timed = timed
        self._samples = self._usable()

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        return next(self._samples)

    def close(self) -> None:
        """Close the file before its end, when no more of it is wanted."""
        self._samples.close()

    def _usable(self) -> Generator[Sample, None, None]:
        found = False
        for each in self._items():
            untimed = each.sample if isinstance(each, Broken) and not self._timed else None
            item = untimed or each
            if isinstance(item, Broken):
                self._skip(item)
            else:
                found = True
                yield item
        if not found:
            raise UserError(f"--dataset {self.path}: {self._nothing()}")

    def _items(self) -> Iterator[Sample | Broken]:
        """What the reader finds. What it refuses of the whole file gets the file's name."""
        with opened(self.path) as file:
            try:
                yield from FORMATS[self.format](file, self._columns)
            except UserError as error:
                raise UserError(f"--dataset {self.path}: {error}") from None
            except READ_ERRORS as error:
                raise unreadable(self.path, error) from None

    def _skip(self, broken: Broken) -> None:
        if not self._skip_broken:
            unit = broken.unit
            raise UserError(
                f"{self.path}, {unit} {broken.line}: {broken.why}; "
                f"--skip-broken passes over such {unit}s"
            )
        self.skipped_count += 1
        if len(self.skipped) < SKIPPED_KEPT:
            self.skipped.append(broken)

    def _nothing(self) -> str:
        if not self.skipped:
            return "it has no row that can be used"
        first = self.skipped[0]
        return (
            f"none of its {self.skipped_count} rows can be used; "
            f"the first, {first.unit} {first.line}: {first.why}"
        )
