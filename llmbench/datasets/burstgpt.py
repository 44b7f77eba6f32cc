"""BurstGPT's traces: times and lengths, as CSV."""

from collections.abc import Iterator
from typing import BinaryIO

from llmbench.datasets.csv_rows import trace_rows
from llmbench.datasets.fields import cell, count
from llmbench.datasets.rows import Broken, peeked, samples
from llmbench.datasets.times import SECONDS, Times
from llmbench.records import Sample

TIME, REQUEST, RESPONSE = COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read_burstgpt(file: BinaryIO, _columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample a row. Rows without tokens, the trace's failed requests, are dropped."""
    first, rows = peeked(trace_rows(file, COLUMNS))
    times = Times(lambda cells: (TIME, cell(cells[TIME])), first, unit=SECONDS)
    return samples(rows, _sample, times)


def _sample(cells: dict[str, str]) -> Sample | None:
    prompt_tokens = count(cell(cells[REQUEST]), REQUEST, 0)
    output_tokens = count(cell(cells[RESPONSE]), RESPONSE, 0)
    if not prompt_tokens or not output_tokens:
        return None
    return Sample(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
