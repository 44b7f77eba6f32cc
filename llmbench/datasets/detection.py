"""Which format a file has: by its suffix, and by its header or its first object."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path, PurePath
from typing import BinaryIO

from llmbench.datasets import azure, burstgpt
from llmbench.datasets.csv_rows import csv_rows
from llmbench.datasets.formats import FORMATS
from llmbench.datasets.json_rows import json_rows
from llmbench.datasets.opening import READ_ERRORS, opened, unreadable
from llmbench.datasets.rows import Row
from llmbench.errors import UserError

_BY_SUFFIX = {".parquet": "parquet", ".txt": "text", ".tsv": "tsv"}
_BY_KEY = {
    "messages": "openai",
    "body": "openai",
    "conversations": "sharegpt",
    "hash_ids": "mooncake",
    "input_length": "mooncake",
}
_ROWS_LOOKED_AT = 100


def detect(path: str) -> str:
    """The name of the file's format. What cannot be told is a ``UserError`` that lists them all."""
    suffix = PurePath(path.lower().removesuffix(".gz")).suffix
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if not Path(path).exists():
        raise UserError(f"--dataset {path}: cannot be read: no such file")
    look: Callable[[BinaryIO], str]
    if suffix == ".csv":
        look = _by_header
    elif suffix in (".json", ".jsonl", ".ndjson"):
        look = _by_keys
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


def _by_keys(file: BinaryIO) -> str:
    rows = islice(json_rows(file), _ROWS_LOOKED_AT)
    first = next((row for row in rows if isinstance(row, Row)), None)
    if first is None:
        raise _Untold("it holds no JSON object, neither one a line nor an array of them")
    for key, name in _BY_KEY.items():
        if key in first.value:
            return name
    raise _Untold(f"its first object has none of the keys {', '.join(_BY_KEY)}")


class _Untold(Exception):  # noqa: N818 - it reads as what it says
    """Why the file does not tell its format."""


def _unknown(path: str, why: str) -> UserError:
    return UserError(
        f"--dataset {path}: {why}; say --dataset-format NAME, where NAME is one of "
        f"{', '.join(FORMATS)}"
    )
