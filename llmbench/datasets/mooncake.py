"""Mooncake's traces: times, lengths, and which blocks of their prompts requests share."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from llmbench.datasets.fields import Clock, count, moment, shown
from llmbench.datasets.json_rows import json_rows
from llmbench.datasets.rows import Broken, Unusable, samples
from llmbench.records import Sample

BLOCK_TOKENS = 512
_LARGEST_ID = (1 << 64) - 1  # ids are names, not amounts


def read_mooncake(file: BinaryIO, _columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample an object: ``timestamp`` (ms), lengths, and ``hash_ids``, which may be absent."""
    clock = Clock()
    return samples(json_rows(file), lambda row: _sample(row, clock))


def _sample(row: dict[str, Any], clock: Clock) -> Sample:
    prompt_tokens = count(row.get("input_length"), "input_length")
    output_tokens = count(row.get("output_length"), "output_length")
    blocks = _blocks(row["hash_ids"], prompt_tokens) if "hash_ids" in row else []
    milliseconds = moment(row.get("timestamp"), "timestamp")
    return Sample(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        at_s=clock.since_first(milliseconds / 1000, "timestamp"),
        blocks=blocks,
    )


def _blocks(ids: Any, prompt_tokens: int) -> list[int]:
    if not isinstance(ids, list):
        raise Unusable(f"hash_ids is not a list: {shown(ids)}")
    expected = -(-prompt_tokens // BLOCK_TOKENS)
    if len(ids) != expected:
        raise Unusable(
            f"hash_ids is of length {len(ids)}, and an input_length of {prompt_tokens} needs "
            f"{expected} (one for {BLOCK_TOKENS} tokens)"
        )
    for value in ids:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Unusable(f"hash_ids has an id that is not a whole number: {shown(value)}")
        if not 0 <= value <= _LARGEST_ID:
            raise Unusable("hash_ids has an id that is negative or has more than 64 bits")
    return ids
