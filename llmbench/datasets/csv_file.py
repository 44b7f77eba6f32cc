"""CSV and TSV files of prompts, or of lengths: a header, then one request a row."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from llmbench.datasets import table
from llmbench.datasets.csv_rows import csv_rows
from llmbench.datasets.fields import Clock, parsed
from llmbench.datasets.rows import Broken, samples
from llmbench.records import Sample


def read_csv(file: BinaryIO, columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """The rows of a file whose fields are separated by commas."""
    return _read(file, columns, ",")


def read_tsv(file: BinaryIO, columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """The rows of a file whose fields are separated by tabs."""
    return _read(file, columns, "\t")


def _read(file: BinaryIO, columns: dict[str, str], delimiter: str) -> Iterator[Sample | Broken]:
    header, rows = csv_rows(file, delimiter)
    wanted = table.chosen(header, columns)
    clock = Clock()
    return samples(rows, lambda cells: table.sample(_values(cells, wanted), clock))


def _values(cells: dict[str, str], wanted: dict[str, str]) -> dict[str, Any]:
    return {
        name: parsed(cells[column], name) if name in table.NUMBERS else cells[column]
        for name, column in wanted.items()
    }
