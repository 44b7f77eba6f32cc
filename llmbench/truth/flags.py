"""The truth server's command line, derived from ``Script``'s fields."""

import argparse
from typing import Any, get_args

import msgspec
from msgspec import Meta
from msgspec.structs import FieldInfo

from llmbench.lists import whole
from llmbench.truth.script import Script


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of ``Script``; values stay text until ``script_from``."""
    group = parser.add_argument_group("what every reply does")
    for field in msgspec.structs.fields(Script):
        text = _help(field).replace("%", "%%")
        if field.default is False:
            group.add_argument(_flag(field.name), action="store_true", default=None, help=text)
        else:
            known = "" if field.default in (None, "") else f" (default: {field.default})"
            group.add_argument(_flag(field.name), metavar=_metavar(field), help=text + known)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for where the server listens and logs."""
    group = parser.add_argument_group("the server")
    group.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    group.add_argument("--port", type=whole, default=0, help="port (default: a free one)")
    group.add_argument("--log", metavar="FILE", help="append the log of send times, as JSON lines")
    group.add_argument("--tls-cert", metavar="FILE", help="certificate chain, PEM: serve HTTPS")
    group.add_argument("--tls-key", metavar="FILE", help="the certificate's key, PEM")
    group.add_argument(
        "--watch-stdin", action="store_true", help="exit when standard input is closed"
    )


def script_from(args: argparse.Namespace) -> Script:
    """The script that the parsed flags describe; raise ``ValueError`` naming a flag that is bad."""
    names = [field.name for field in msgspec.structs.fields(Script)]
    given = {name: getattr(args, name, None) for name in names}
    try:
        return msgspec.convert(
            {name: value for name, value in given.items() if value is not None},
            Script,
            strict=False,
        )
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`")
        raise ValueError(f"{_flag(name)}: {problem}, got {given.get(name)!r}") from None


def flags_for(script: Script) -> list[str]:
    """The flags that make ``script`` again; only what differs from the defaults."""
    flags: list[str] = []
    for field in msgspec.structs.fields(Script):
        value: Any = getattr(script, field.name)
        if value == field.default:
            continue
        flags.append(_flag(field.name) if value is True else f"{_flag(field.name)}={value}")
    return flags


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(field: FieldInfo) -> str:
    if field.name.endswith("_ms"):
        return "MS"
    return "NAME" if isinstance(field.default, str) else "N"


def _help(field: FieldInfo) -> str:
    for note in get_args(field.type)[1:]:
        if isinstance(note, Meta) and note.description:
            return note.description
    return ""
