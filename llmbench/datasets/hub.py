"""Datasets of the Hugging Face hub: which file is meant, fetched once into the hub's own cache."""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import msgspec

from llmbench.cache import cache_folder
from llmbench.errors import UserError

PREFIX = "hf:"
_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
_FIRST_SPLIT = "train"
_CONVERTED = "refs/convert/parquet"
"""Where the hub keeps Parquet files that it has made of a dataset itself."""

_ASIDE = ("readme", "license", "dataset_info", "dataset_infos", "config", "requirements", "state")
_SHOWN = 8
_UNREACHED = {
    "ConnectError",
    "ConnectionError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ProxyError",
    "Timeout",
    "TimeoutError",
    "TransportError",
}

Choice = tuple[str | None, str]
"""A revision and a file."""


@cache
def fetched(name: str) -> str:
    """The path of the file that ``name`` means: ``hf:owner/name``, its first split or the file of a
    ``:split``, or ``hf:owner/name/path/of/a/file``.

    Of a split in several files it is the first. Raises ``UserError``, one line that says what to
    do.
    """
    repository, file, split = _parts(name)
    hub = _library(name)
    try:
        revision = None
        if not file:
            revision, file = _remembered(
                name, lambda: _chosen(hub.HfApi(), name, repository, split)
            )
        path: str = hub.hf_hub_download(repository, file, repo_type="dataset", revision=revision)
    except UserError:
        raise
    except Exception as problem:
        raise UserError(f"--dataset {name}: {_why(problem)}") from None
    return path


def _parts(name: str) -> tuple[str, str, str]:
    """The repository, the file in it or "", and the split or ""."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/([^:]+)|:([\w.-]+))?", name.removeprefix(PREFIX))
    if match is None:
        raise UserError(
            f"--dataset {name}: write hf:owner/name, hf:owner/name:split or hf:owner/name/file"
        )
    return match[1], match[2] or "", match[3] or ""


def _library(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"--dataset {name}: needs huggingface_hub: pip install 'llmbench[hf]', or fetch the "
            "file by hand and give its path"
        ) from None
    return huggingface_hub


def _remembered(name: str, choose: Callable[[], Choice]) -> Choice:
    """What ``choose`` says, or where the hub cannot be asked what it said last: without a network
    the file is still in the hub's cache."""
    note = cache_folder() / "hub" / f"{quote(name, safe='')}.json"
    try:
        choice = choose()
    except Exception as problem:
        if isinstance(problem, UserError) or not _is_unreached(problem) or not note.is_file():
            raise
        return msgspec.json.decode(note.read_bytes(), type=tuple[str | None, str])
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_bytes(msgspec.json.encode(choice))
    return choice


def _chosen(api: Any, name: str, repository: str, split: str) -> Choice:
    """The revision and the path of the first file of ``split``, or of the likeliest split."""
    seen: list[str] = []
    for revision in (None, _CONVERTED):
        try:
            listed = api.list_repo_files(repository, repo_type="dataset", revision=revision)
        except Exception:
            if revision is None:
                raise
            break  # the hub has converted nothing
        files = sorted(file for file in listed if _is_data(file))
        seen += files
        if file := _of_split(files, split):
            return revision, file
    if not seen:
        kinds = ", ".join(suffix.removeprefix(".") for suffix in _SUFFIXES)
        raise UserError(f"--dataset {name}: the repository has no file of {kinds}")
    more = ", …" if len(seen) > _SHOWN else ""
    raise UserError(
        f"--dataset {name}: no file is of a split '{split}'; its files are "
        f"{', '.join(seen[:_SHOWN])}{more}; name one, as hf:{repository}/{seen[0]}"
    )


def _is_data(file: str) -> bool:
    path = PurePosixPath(file.lower().removesuffix(".gz"))
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix in _SUFFIXES and path.stem not in _ASIDE and not hidden


def _of_split(files: list[str], split: str) -> str:
    """The first of ``files`` that is of ``split``; of the first split where none is asked for."""
    wanted = split or _FIRST_SPLIT
    named = [file for file in files if wanted.lower() in re.split(r"[/._-]", file.lower())]
    exact = [file for file in files if f"/{wanted.lower()}-" in f"/{file.lower()}"]
    best = exact or named or ([] if split else files)
    return min(best, key=_order) if best else ""


def _order(file: str) -> tuple[int, str]:
    """Tables before texts, then by name."""
    suffix = PurePosixPath(file.lower().removesuffix(".gz")).suffix
    return _SUFFIXES.index(suffix), file


def _why(problem: Exception) -> str:
    """What went wrong, in a line, and what helps."""
    kinds = _kinds(problem)
    if "GatedRepoError" in kinds:
        return "it is gated: ask for access on its page, and set HF_TOKEN"
    if "RepositoryNotFoundError" in kinds:
        return "no such dataset on the hub; a private one needs HF_TOKEN"
    if _is_unreached(problem):
        return (
            "the hub cannot be reached, and the file is not in its cache; fetch it where there is "
            "a network and give its path"
        )
    if "EntryNotFoundError" in kinds:
        return "no such file in the repository; hf:owner/name takes the first that it has"
    first = (str(problem).strip().splitlines() or [type(problem).__name__])[0].rstrip(".")
    return f"the hub says: {first}"


def _is_unreached(problem: Exception) -> bool:
    return bool(_kinds(problem) & _UNREACHED)


def _kinds(problem: Exception) -> set[str]:
    """The names of the error's classes, for the library has had several clients, each with errors
    of its own."""
    return {kind.__name__ for kind in type(problem).__mro__}
