"""Mooncake's traces and those like it: times, lengths, and which blocks of prompts are shared."""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from msgspec.structs import replace

from llmbench.datasets import json_file, table
from llmbench.datasets.fields import count, shown
from llmbench.datasets.json_rows import json_rows
from llmbench.datasets.rows import Broken, Unusable, peeked, samples
from llmbench.datasets.times import MILLISECONDS, SECONDS
from llmbench.records import Sample

BLOCK_TOKENS = 512
_OTHER_SIZES = (16, 32, 64, 128, 256, 1024, 2048, 4096, 8, 4, 2, 1)
_SIZE_KEYS = ("block_size", "block_tokens", "hash_block_size")
_BAILIAN = ("chat_id", "parent_chat_id")
_LARGEST_ID = (1 << 64) - 1  # ids are names, not amounts


class _Blocks(NamedTuple):
    """How a file names blocks: of so many tokens each, the last one of a prompt also where it is
    not full, or full ones alone."""

    tokens: int
    full_alone: bool = False

    def expected(self, prompt_tokens: int) -> int:
        begun = not self.full_alone and prompt_tokens % self.tokens > 0
        return prompt_tokens // self.tokens + begun


def read_mooncake(file: BinaryIO, columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample an object: ``timestamp``, lengths, and ``hash_ids``; all but lengths may be
    absent. Mooncake has milliseconds and blocks of 512 tokens, Bailian's traces seconds and 16."""
    first, rows = peeked(json_rows(file))
    json_file.check(first, columns)
    blocks = _blocks_of(first, columns)
    hint = _hint(first, blocks)
    times = table.moments(json_file.time_finder(columns), first, columns, hint)
    return samples(rows, lambda row: _sample(row, columns, blocks), times)


def _hint(first: Sequence[dict[str, Any]], blocks: _Blocks) -> float | None:
    if any(key in row for row in first for key in _BAILIAN):
        return SECONDS
    is_mooncake = blocks == _Blocks(BLOCK_TOKENS) and any(row.get("hash_ids") for row in first)
    return MILLISECONDS if is_mooncake else None


def _sample(row: dict[str, Any], columns: dict[str, str], blocks: _Blocks) -> Sample:
    made = json_file.sample(row, columns)
    if made.prompt_tokens is None:
        return made
    if made.output_tokens is None:
        raise Unusable("output_length is missing")
    if row.get("hash_ids") is None:
        return made
    size = next((row[key] for key in _SIZE_KEYS if row.get(key) is not None), None)
    if size is not None:
        blocks = _of_size(count(size, "block_size"), row["hash_ids"], made.prompt_tokens)
    ids = _ids(row["hash_ids"], made.prompt_tokens, blocks)
    return replace(made, blocks=ids, block_tokens=blocks.tokens)


def _ids(ids: Any, prompt_tokens: int, blocks: _Blocks) -> list[int]:
    if not isinstance(ids, list):
        raise Unusable(f"hash_ids is not a list: {shown(ids)}")
    if len(ids) != (expected := blocks.expected(prompt_tokens)):
        raise Unusable(
            f"hash_ids is of length {len(ids)}, and an input_length of {prompt_tokens} needs "
            f"{expected} (one for {blocks.tokens} tokens)"
        )
    for value in ids:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Unusable(f"hash_ids has an id that is not a whole number: {shown(value)}")
        if not 0 <= value <= _LARGEST_ID:
            raise Unusable("hash_ids has an id that is negative or has more than 64 bits")
    return ids


def _of_size(tokens: int, ids: Any, prompt_tokens: int) -> _Blocks:
    full = _Blocks(tokens, full_alone=True)
    is_full = isinstance(ids, list) and len(ids) == full.expected(prompt_tokens)
    return full if is_full else _Blocks(tokens)


def _blocks_of(first: Sequence[dict[str, Any]], columns: dict[str, str]) -> _Blocks:
    """The blocks that all of the ``first`` rows fit, or the most; Mooncake's where these do."""
    seen = []
    for row in first:
        ids, length = row.get("hash_ids"), row.get(columns.get("prompt_tokens", "input_length"))
        if isinstance(ids, list) and ids and isinstance(length, int) and length > 0:
            seen.append((length, len(ids)))
    if not seen:
        return _Blocks(BLOCK_TOKENS)
    usual = [_Blocks(n, full) for full in (False, True) for n in (BLOCK_TOKENS, *_OTHER_SIZES)]
    longest, ids_of_longest = max(seen, key=lambda each: each[1])
    least, most = -(-longest // ids_of_longest), longest // ids_of_longest
    guesses = [*usual, _Blocks(least), _Blocks(max(most, 1), full_alone=True)]
    fitting = [sum(guess.expected(n) == ids for n, ids in seen) for guess in guesses]
    if max(fitting) < len(seen) and 2 * fitting[0] >= len(seen):
        return guesses[0]  # Mooncake's, with some rows broken
    return guesses[fitting.index(max(fitting))]
