"""BurstGPT's traces: times and lengths, as CSV."""

from collections.abc import Iterator
from typing import BinaryIO

from llmbench.datasets.csv_rows import trace_rows
from llmbench.datasets.fields import Clock, count, moment, parsed
from llmbench.datasets.rows import Broken, samples
from llmbench.records import Sample

TIME, REQUEST, RESPONSE = COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read_burstgpt(file: BinaryIO, _columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample a row. Rows without tokens, the trace's failed requests, are dropped."""
    clock = Clock()
    return samples(trace_rows(file, COLUMNS), lambda cells: _sample(cells, clock))


def _sample(cells: dict[str, str], clock: Clock) -> Sample | None:
    prompt_tokens = count(parsed(cells[REQUEST], REQUEST), REQUEST, 0)
    output_tokens = count(parsed(cells[RESPONSE], RESPONSE), RESPONSE, 0)
    at_s = clock.since_first(moment(parsed(cells[TIME], TIME), TIME), TIME)
    if not prompt_tokens or not output_tokens:
        return None
    return Sample(prompt_tokens=prompt_tokens, output_tokens=output_tokens, at_s=at_s)
