"""What the user wants said in every request, from flags and files: read and checked once, before it
is a part of a sweep."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmbench.apis.body import layered
from llmbench.errors import UserError
from llmbench.headers import REFERENCE, check_header, check_parameter, overlaid, read_header

Place = Callable[[str], str]
Settings = dict[str, Any]

_NOT_YOURS = {
    "messages": "--dataset and --text say what to ask, --system-prompt what comes first",
    "prompt": "--dataset and --text say what to ask",
    "input": "--dataset and --text say what to ask, --system-prompt what comes first",
    "stream": "only streams are timed",
    "model": "--model names it, as the reports do",
    "n": "one reply a request is timed",
}
"""Fields of a body that cannot be said, and why."""

_AS_WE_SAY = {"stream": ("true",), "model": ("null",), "n": ("null", "1")}
"""What can be said of them all the same, as JSON: it changes nothing that is reported."""


def read_said(settings: Settings, place: Place) -> Settings:
    """``settings`` with their headers, query, body and system prompt as tables and text: files that
    they name are read. Those of each target's table too. ``place`` names a key for the user."""
    found = _read(settings, place)
    targets = settings.get("target")
    if isinstance(targets, list):
        found["target"] = [
            _read(each, _below(place("target"), number)) if isinstance(each, dict) else each
            for number, each in enumerate(targets, start=1)
        ]
    return found


def _below(target: str, number: int) -> Place:
    return lambda key: f"{target}, item {number}, {key}"


def _read(settings: Settings, place: Place) -> Settings:
    """Whatever is of a wrong type stays as it is: there are words for that elsewhere."""
    readers = {"headers": _headers, "query": _query, "body": _body, "system_prompt": _text}
    return settings | {
        key: read(settings[key], place(key)) for key, read in readers.items() if key in settings
    }


def _headers(given: Any, place: str) -> Any:
    if _are_texts(given):
        found: dict[str, str] = {}
        for name, value in (read_header(each, place) for each in given):
            check_header(name, value, place)
            found = overlaid(found, {name: value})
        return found
    for name, value in _texts(given):
        check_header(name, value, place)
    return given


def _query(given: Any, place: str) -> Any:
    if _are_texts(given):
        parts = [each.partition("=") for each in given]
        if not all(equals for _, equals, _ in parts):
            raise UserError(f"{place}: write it like api-version=2024-10-21")
        given = {name.strip(): value for name, _, value in parts}
    for name, value in _texts(given):
        check_parameter(name, value, place)
    return given


def _are_texts(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(each, str) for each in given)


def _texts(given: Any) -> Sequence[tuple[str, str]]:
    if not isinstance(given, dict):
        return ()
    return [(name, value) for name, value in given.items() if isinstance(value, str)]


def _body(given: Any, place: str) -> Any:
    found: Any = given
    if isinstance(given, str) or _are_texts(given):
        found = {}
        for text in [given] if isinstance(given, str) else given:
            found = layered(found, _document(text, place))
    if isinstance(found, dict):
        for name, why in _NOT_YOURS.items():
            if name in found and json.dumps(found[name]) not in _AS_WE_SAY.get(name, ()):
                raise UserError(f"{place}: {name} cannot be set: {why}")
        _check_texts(found, place)
    return found


def _check_texts(said: Any, place: str) -> None:
    """Raise ``UserError`` for a variable: it would be sent as it is written."""
    if isinstance(said, dict | list):
        for each in said.values() if isinstance(said, dict) else said:
            _check_texts(each, place)
    elif isinstance(said, str) and REFERENCE.fullmatch(said):
        raise UserError(f"{place}: {said}: variables are read in headers and the query alone")


def _document(text: str, place: str) -> dict[str, Any]:
    said = _text(text, place)
    try:
        found = json.loads(said, parse_constant=_no_number)
    except ValueError as problem:
        words = f"not JSON: {problem}"
    else:
        if isinstance(found, dict):
            return found
        words = "a JSON object is expected"
    like = """'{"top_k": 20}' or @body.json"""
    where = f" {text}" if text.startswith("@") else ""
    raise UserError(f"{place}{where}: {words}; write it like {like}")


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _text(given: Any, place: str) -> Any:
    """``given``, or what the file holds that it names, as in ``@prompt.txt``."""
    if not (isinstance(given, str) and given.startswith("@")):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise UserError(f"{place} {given}: cannot be read: {reason}") from None
