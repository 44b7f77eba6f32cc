"""The checks on single fields: what is wrong with one is said in plain words that name it."""

import math
from contextlib import suppress
from typing import Any

from llmbench.datasets.rows import NOT_UTF8, Unusable

LARGEST = 1_000_000_000
"""No length in tokens is larger, and no trace lasts for so many seconds."""

_BACKWARDS_S = 0.001
_SHOWN_CHARS = 30


def text(value: Any, name: str) -> str:
    """``value``, which must be a text that can be sent."""
    if value is None:
        raise Unusable(f"{name} is missing")
    if not isinstance(value, str):
        raise Unusable(f"{name} is not text: {shown(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unusable(f"{name}: {NOT_UTF8}") from None
    return value


def count(value: Any, name: str, least: int = 1) -> int:
    """``value``, which must be a whole number of at least ``least``."""
    found = number(value, name, LARGEST)
    if found != int(found):
        raise Unusable(f"{name} is not a whole number: {found}")
    if found < least:
        raise Unusable(f"{name} is {int(found)}, less than {least}")
    return int(found)


def optional_count(value: Any, name: str) -> int | None:
    """``count`` of a field that a row need not have."""
    return None if value is None else count(value, name)


def cell(text: str) -> int | float | str | None:
    """A cell of a CSV file as the number that is written in it, if it is one."""
    if "_" in text:  # Python's own digit separator, which int() and float() take
        return text
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text if text.strip() else None


def number(value: Any, name: str, largest: int) -> float:
    """``value``, which must be a number from 0 to ``largest``."""
    if value is None:
        raise Unusable(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable(f"{name} is not a number: {shown(value)}")
    if not math.isfinite(value):
        raise Unusable(f"{name} is not a finite number: {value}")
    if value < 0:
        raise Unusable(f"{name} is negative")
    if value > largest:
        raise Unusable(f"{name} is too large: more than {largest:,}")
    return value


def shown(value: Any) -> str:
    """A value of the wrong kind for a message, cut short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "…")
    kinds = {dict: "an object", list: "a list", int: "a number", float: "a number"}
    return kinds.get(type(value), type(value).__name__)


class Clock:
    """Turns the times of a trace's rows into seconds from the first. They must not run backwards.

    A step back of up to 1 ms, which rounding makes, counts as no step.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._latest = 0.0

    def since_first(self, seconds: float, name: str) -> float:
        """The row's time from the first row's. ``name`` is the field that ``seconds`` is from."""
        if self._first is None:
            self._first = self._latest = seconds
        back = round(self._latest - seconds, 6)
        if back > _BACKWARDS_S:
            raise Unusable(f"{name} runs backwards, by {back:g} s")
        if seconds - self._first > LARGEST:
            raise Unusable(f"{name} is too large: more than {LARGEST:,} s after the first row's")
        self._latest = max(self._latest, seconds)
        # Times since 1970 have no digits for less than a microsecond.
        return round(self._latest - self._first, 6)
