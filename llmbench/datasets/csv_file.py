"""CSV and TSV files of prompts, or of lengths: a header, then one request a row."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from llmbench.datasets import table
from llmbench.datasets.csv_rows import csv_rows, separator
from llmbench.datasets.fields import cell
from llmbench.datasets.rows import Broken, peeked, samples
from llmbench.records import Sample

_NUMBERS = ("output_tokens", "prompt_tokens", "at")


def read_csv(file: BinaryIO, columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """The rows of a file whose fields are separated by commas, or by semicolons."""
    return _read(file, columns, separator(file))


def read_tsv(file: BinaryIO, columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """The rows of a file whose fields are separated by tabs."""
    return _read(file, columns, "\t")


def _read(file: BinaryIO, columns: dict[str, str], delimiter: str) -> Iterator[Sample | Broken]:
    header, rows = csv_rows(file, delimiter)
    found = table.chosen(header, columns)
    first, rows = peeked(rows)
    at = found.get("at")
    times = at and table.moments(lambda cells: (at, cell(cells[at])), first, columns)
    numbers = [found[name] for name in _NUMBERS if name in found]

    def sample(cells: dict[str, Any]) -> Sample:
        return table.sample(cells | {name: cell(cells[name]) for name in numbers}, found)

    return samples(rows, sample, times or None)
