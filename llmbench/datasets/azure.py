"""Azure's LLM inference traces of 2023 and 2024: times and lengths, as CSV."""

from collections.abc import Iterator
from typing import BinaryIO

from llmbench.datasets.csv_rows import trace_rows
from llmbench.datasets.fields import cell, count
from llmbench.datasets.rows import Broken, peeked, samples
from llmbench.datasets.times import Times
from llmbench.records import Sample

TIME, CONTEXT, GENERATED = COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(file: BinaryIO, _columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample a row. Rows that generated nothing are dropped."""
    first, rows = peeked(trace_rows(file, COLUMNS))
    return samples(rows, _sample, Times(lambda cells: (TIME, cell(cells[TIME])), first))


def _sample(cells: dict[str, str]) -> Sample | None:
    prompt_tokens = count(cell(cells[CONTEXT]), CONTEXT)
    output_tokens = count(cell(cells[GENERATED]), GENERATED, 0)
    if not output_tokens:
        return None
    return Sample(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
