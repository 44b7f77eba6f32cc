"""Which format a file has: by its suffix, and by its header or its first object."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from llmbench.datasets import azure, burstgpt, sharegpt, table
from llmbench.datasets.csv_rows import csv_rows
from llmbench.datasets.formats import FORMATS
from llmbench.datasets.json_rows import json_rows
from llmbench.datasets.openai import BODIES
from llmbench.datasets.opening import READ_ERRORS, local_path, opened, unreadable
from llmbench.datasets.rows import LOOKED_AT, Row
from llmbench.errors import UserError

_BY_SUFFIX = {".parquet": "parquet", ".txt": "text", ".tsv": "tsv"}
_OPENAI = ("messages", *BODIES)
_TRACE = ("timestamp", "input_length")
_KEYS_SHOWN = 12


def detect(path: str, columns: dict[str, str] | None = None) -> str:
    """The name of the file's format. What cannot be told is a ``UserError`` that lists them all.

    With ``columns``, the user's, objects of JSON are read as rows of a table.
    """
    local = local_path(path)
    suffix = PurePath(local.lower().removesuffix(".gz")).suffix
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if not Path(local).exists():
        raise UserError(f"--dataset {path}: cannot be read: no such file")
    look: Callable[[BinaryIO], str]
    if suffix == ".csv":
        look = _by_header
    elif suffix in (".json", ".jsonl", ".ndjson"):
        look = partial(_by_keys, columns=columns or {})
    else:
        raise _unknown(path, "its name does not tell which format it has")
    try:
        with opened(path) as file:
            return look(file)
    except _Untold as error:
        raise _unknown(path, str(error)) from None
    except READ_ERRORS as error:
        raise unreadable(path, error) from None


def _by_header(file: BinaryIO) -> str:
    try:
        header, _ = csv_rows(file)
    except UserError as error:
        raise _Untold(str(error)) from None
    for name, columns in (("azure", azure.COLUMNS), ("burstgpt", burstgpt.COLUMNS)):
        if set(columns) <= set(header):
            return name
    return "csv"


def _by_keys(file: BinaryIO, columns: dict[str, str]) -> str:
    rows = islice(json_rows(file), LOOKED_AT)
    first = next((row for row in rows if isinstance(row, Row)), None)
    if first is None:
        raise _Untold("it holds no JSON object, neither one a line nor an array of them")
    row: dict[str, Any] = {key: value for key, value in first.value.items() if value is not None}
    if "hash_ids" in row or (not columns and all(key in row for key in _TRACE)):
        return "mooncake"
    if columns:
        return "json"
    if any(key in row for key in _OPENAI):
        return "openai"
    if any(key in row for key in sharegpt.NAMES):
        return "sharegpt"
    if any(name in table.choice(row, {}) for name in table.ONE_OF):
        return "json"
    keys = ", ".join(list(first.value)[:_KEYS_SHOWN]) or "none"
    raise _Untold(
        f"its first object has the keys {keys}, and none that is a prompt (messages, "
        "conversations, prompt, question, instruction, text) or the length of one (input_length, "
        "prompt_tokens); name one with --dataset-columns prompt=KEY"
    )


class _Untold(Exception):  # noqa: N818 - it reads as what it says
    """Why the file does not tell its format."""


def _unknown(path: str, why: str) -> UserError:
    also = ", or" if "--dataset-columns" in why else ";"
    return UserError(
        f"--dataset {path}: {why}{also} say --dataset-format NAME, where NAME is one of "
        f"{', '.join(FORMATS)}"
    )
