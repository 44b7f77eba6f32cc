"""Parquet files: tables of prompts like CSV, or of whole conversations."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from llmbench.datasets import table, turns
from llmbench.datasets.rows import Broken, Row, peeked, samples
from llmbench.errors import UserError
from llmbench.records import Sample

_ROWS = 256  # of a batch: enough to be fast, few enough to be small
_BUFFER = 1 << 20


def read_parquet(file: BinaryIO, columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample a row: its ``messages`` or ``conversations`` where it has such a column and the
    user chose no others, else what its columns say.
    """
    parquet = _opened(file)
    header = list(parquet.schema_arrow.names)
    found = table.chosen(header, columns)
    wanted = [*found.values(), *(name for name in turns.TOOLS if name in header)]
    first, rows = peeked(_rows(parquet, list(dict.fromkeys(wanted))))
    at = found.get("at")
    times = at and table.moments(lambda row: (at, row[at]), first, columns)
    return samples(rows, lambda row: table.sample(row, found), times or None)


def _opened(file: BinaryIO) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError("reading Parquet needs pyarrow: pip install 'llmbench[parquet]'") from None
    try:
        # Without these two settings a whole row group is read before its first row.
        return ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)
    except (ArrowException, OSError) as error:
        raise UserError(f"it is not a Parquet file: {_first_line(error)}") from None


def _rows(parquet: Any, names: list[str]) -> Iterator[Row | Broken]:
    """The rows by number. Where a page is damaged nothing can follow."""
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in parquet.iter_batches(batch_size=_ROWS, columns=names):
            columns = {
                name: _in_microseconds(column)
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            }
            for index in range(batch.num_rows):
                number += 1
                yield _row(columns, index, number)
    except (ArrowException, OSError) as error:
        why = f"the file cannot be read from here on: {_first_line(error)}"
        yield Broken(number + 1, why, "row")


def _in_microseconds(column: Any) -> Any:
    """Times as Python has them: it knows no nanoseconds."""
    from pyarrow import timestamp
    from pyarrow.types import is_timestamp

    if not is_timestamp(column.type):
        return column
    return column.cast(timestamp("us", column.type.tz), safe=False)


def _row(columns: dict[str, Any], index: int, number: int) -> Row | Broken:
    try:
        values = {name: column[index].as_py() for name, column in columns.items()}
    except ValueError as error:  # text that is not UTF-8, a date that Python does not have
        return Broken(number, f"it cannot be read: {_first_line(error)}", "row")
    return Row(number, values, "row")


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].rstrip(".")
