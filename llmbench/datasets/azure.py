"""Azure's LLM inference traces of 2023 and 2024: times and lengths, as CSV."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import BinaryIO

from llmbench.datasets.csv_rows import trace_rows
from llmbench.datasets.fields import Clock, count, parsed, shown
from llmbench.datasets.rows import Broken, Unusable, samples
from llmbench.records import Sample

TIME, CONTEXT, GENERATED = COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_azure(file: BinaryIO, _columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample a row. Rows that generated nothing are dropped."""
    clock = Clock()
    return samples(trace_rows(file, COLUMNS), lambda cells: _sample(cells, clock))


def _sample(cells: dict[str, str], clock: Clock) -> Sample | None:
    prompt_tokens = count(parsed(cells[CONTEXT], CONTEXT), CONTEXT)
    output_tokens = count(parsed(cells[GENERATED], GENERATED), GENERATED, 0)
    at_s = clock.since_first(_seconds(cells[TIME]), TIME)
    if not output_tokens:
        return None
    return Sample(prompt_tokens=prompt_tokens, output_tokens=output_tokens, at_s=at_s)


def _seconds(stamp: str) -> float:
    """Seconds since 1970. The files have seven digits of a second, and a time zone since 2024."""
    try:
        time = datetime.fromisoformat(stamp.strip())
    except ValueError:
        raise Unusable(
            f"{TIME} is not a time like 2023-11-16 18:17:03.9799600: {shown(stamp)}"
        ) from None
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH).total_seconds()
