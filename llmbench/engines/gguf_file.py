"""What a GGUF file says of itself, by its name and its first bytes."""

import re
from pathlib import Path

from llmbench.engines.models import OWN_FILE
from llmbench.errors import UserError

_FILE_NAME = re.compile(
    r"(?P<model>.+?)"
    r"(?:[._-](?P<quantization>(?:I?Q|TQ)\d\w*|BF16|FP?16|FP?32|MXFP4\w*))?"
    r"(?:-\d{5}-of-\d{5})?",
    re.IGNORECASE,
)
_FTYPE = re.compile(r"(?:all |mostly )?(\w+)(?: - (Small|Medium|Large))?(?: - [\d.]+ bpw)?")


def check_gguf(path: Path) -> None:
    """Raises ``UserError`` if there is no GGUF file at ``path``."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise UserError(f"cannot read the model file {path}: {reason}; {OWN_FILE}") from problem
    if magic != b"GGUF":
        raise UserError(f"not a GGUF file: {path} (it starts with {magic!r}); {OWN_FILE}")


def parse_name(path: Path) -> tuple[str, str | None]:
    """The model and the quantization that a file is named after: ``foo.Q4_K_M.gguf``."""
    match = _FILE_NAME.fullmatch(path.name.removesuffix(".gguf"))
    assert match is not None  # any name that isn't empty does
    quantization = match["quantization"]
    return match["model"], quantization.upper() if quantization else None


def quantization_of(ftype: str, named: str | None) -> str | None:
    """The quantization in the words that file names use, from what the server says of the file.

    ``Q4_K - Medium`` is ``Q4_K_M``. Where llama.cpp guesses or has no plain word for it, the name
    decides, and its own words are the last resort.
    """
    match = _FTYPE.fullmatch(ftype)
    if match is None:
        return named or ftype or None
    size = match[2]
    return f"{match[1]}_{size[0]}" if size else match[1]
