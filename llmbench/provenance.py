"""Which model it was: the files that it was loaded from, and their revision."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llmbench.cache import cache_folder
from llmbench.records import ModelFile

LARGEST_HASHED_BYTES = 8 * 10**9
KINDS = frozenset(
    {
        *(
            ".gguf",
            ".safetensors",
            ".bin",
            ".pt",
            ".pth",
            ".onnx",
            ".onnx_data",
            ".data",
        ),  # weights
        *(".json", ".model", ".txt", ".jinja", ".tiktoken"),  # configuration, tokenizer
    }
)

_COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256 = re.compile("[0-9a-f]{64}")


def model_files(path: Path) -> list[ModelFile]:
    """The file at ``path``, or the weights, configuration and tokenizer in that folder.

    Each with its SHA-256, unless it is larger than 8 GB or cannot be read. What has been hashed
    is not hashed again as long as its size and its time of change are the same.
    """
    if path.is_file():
        return [_model_file(path, path.name)]
    return [_model_file(file, name) for name, file in sorted(_files_in(path))]


def revision(path: Path) -> str | None:
    """The commit that a model comes from: its snapshot in a hub's cache, or the HEAD of the git
    repository that its folder is."""
    for candidate in (path.absolute(), path.resolve()):
        for folder, name in zip(candidate.parts, candidate.parts[1:], strict=False):
            if folder == "snapshots" and _COMMIT.fullmatch(name):
                return name
    return _git_head(path.parent if path.is_file() else path)


def _files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of what a model is loaded from; nothing hidden, no README."""
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and file.suffix in KINDS and file.is_file():
            yield name.as_posix(), file


def _model_file(file: Path, name: str) -> ModelFile:
    size_bytes = file.stat().st_size
    try:
        digest = _sha256(file) if size_bytes <= LARGEST_HASHED_BYTES else None
    except OSError:
        digest = None
    return ModelFile(name, size_bytes, digest)


def _sha256(file: Path) -> str:
    real = file.resolve()
    state = real.stat()
    key = repr((str(real), state.st_size, state.st_mtime_ns))
    kept = cache_folder() / "hashes" / hashlib.sha256(key.encode()).hexdigest()[:32]
    with suppress(OSError, UnicodeDecodeError):
        if _SHA256.fullmatch(known := kept.read_text()):
            return known
    with real.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    with suppress(OSError):  # a cache that cannot be written costs the next run some seconds
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch = kept.with_name(f".{kept.name}.{os.getpid()}")
        scratch.write_text(digest)
        scratch.replace(kept)
    return digest


def _git_head(folder: Path) -> str | None:
    """What HEAD points to, read from the files: git itself may not be there."""
    git = folder / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head if _COMMIT.fullmatch(head) else None
        branch = head.removeprefix("ref: ")
        if (git / branch).is_file():
            return (git / branch).read_text().strip()
        for line in (git / "packed-refs").read_text().splitlines():
            commit, _, name = line.partition(" ")
            if name == branch:
                return commit
    except (OSError, UnicodeDecodeError):
        pass
    return None
