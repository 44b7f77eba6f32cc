"""When the rows of a trace are due: numbers of any unit, or times of day, as a file has them.

Hardly a trace says its unit. It is told by the field's name (``timestamp_ms``), else by the size of
times since 1970, else by how close the first rows stand together.
"""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

from llmbench.datasets.fields import Clock, number, shown
from llmbench.datasets.names import plain
from llmbench.datasets.rows import Unusable

SECONDS = 1.0
MILLISECONDS = 1e-3

_UNITS = {
    SECONDS: ("s", "sec", "secs", "second", "seconds"),
    MILLISECONDS: ("ms", "msec", "msecs", "millis", "millisecond", "milliseconds"),
    1e-6: ("us", "usec", "micros", "microsecond", "microseconds"),
    1e-9: ("ns", "nsec", "nanos", "nanosecond", "nanoseconds"),
}
_BARE = (
    "at",
    "timestamp",
    "arrival_time",
    "arrival_timestamp",
    "arrived_at",
    "arrival",
    "request_time",
    "request_timestamp",
    "send_time",
    "start_time",
    "time",
    "ts",
)
NAMES = tuple(name + unit for name in map(plain, _BARE) for unit in ("", *sum(_UNITS.values(), ())))
"""What a file may call its times, without their separators, the likeliest first."""

_EXPLICIT = {
    name + unit: scale
    for scale, units in _UNITS.items()
    for name in map(plain, _BARE)
    for unit in units
} | {"at": SECONDS}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SINCE_1970_S = (900_000_000, 5_000_000_000)  # 1998 to 2128
_LATEST_S = 10_000_000_000
_FAST = 10.0
"""Whole numbers nearer to each other than this, on average, are seconds: as milliseconds they would
be more than 100 requests a second."""

_FAST_DECIMALS = 60.0  # who writes decimals writes seconds, as a rule
_SLOW = 100_000.0  # as milliseconds: a request in 100 s

Found = tuple[str, Any]
"""A row's time: what the file calls it, and its value, ``None`` where there is none."""


class Times:
    """Says when a row is due, in seconds from the first row, for ``rows.samples``.

    ``find`` finds the time of a row's value. ``first`` are the values of the first rows: where none
    of them has a time, the file has none; where the unit is not told, they tell it. ``hint`` is the
    unit that the kind of the file lets expect, and ``unit`` the one that it is known to have.
    """

    def __init__(
        self,
        find: Callable[[Any], Found | None],
        first: Sequence[Any],
        *,
        hint: float | None = None,
        unit: float | None = None,
    ) -> None:
        self._find = find
        self._clock = Clock()
        found = [each for each in map(find, first) if each is not None and each[1] is not None]
        self._name = found[0][0] if found else ""
        self._unit, self._guessed = SECONDS, ""
        if found:
            values = [value for _, value in found]
            self._unit, self._guessed = _told(self._name, values, hint, unit)

    def __call__(self, value: Any) -> tuple[float | None, str]:
        if not self._name:
            return None, ""
        name, stamp = self._find(value) or (self._name, None)
        return self._clock.since_first(_seconds(stamp, name, self._unit), name), self._guessed


def _seconds(value: Any, name: str, unit: float) -> float:
    if isinstance(value, str):
        value = _time_of_day(value, name)
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return (aware - _EPOCH).total_seconds()
    return number(value, name, round(_LATEST_S / unit)) * unit


def _time_of_day(text: str, name: str) -> datetime:
    """ISO 8601, with as many digits of a second as there are, and with a time zone or not."""
    try:
        if not any(sign in text for sign in "-:"):
            raise ValueError  # a number in quotes
        return datetime.fromisoformat(text.strip().removesuffix(" UTC"))
    except ValueError:
        raise Unusable(
            f"{name} is neither a number nor a time like 2023-11-16 18:17:03.9799600: {shown(text)}"
        ) from None


def _told(
    name: str, values: Sequence[Any], hint: float | None, unit: float | None
) -> tuple[float, str]:
    """The unit of a file's times in seconds, and its name where it is a guess."""
    explicit = _EXPLICIT.get(plain(name))
    if unit is None and explicit and plain(name) != "at":
        unit = explicit
    numbers = [each for each in values if _is_number(each)]
    if not numbers:
        return unit or SECONDS, ""
    if unit is None and (since_1970 := _since_1970(min(numbers))):
        return since_1970, ""
    if unit or explicit:
        return unit or explicit or SECONDS, ""
    guess = _by_pace(numbers, hint)
    is_sure = guess == hint or len(numbers) == 1
    return guess, "" if is_sure else _UNITS[guess][-1]


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )


def _since_1970(least: float) -> float | None:
    low, high = _SINCE_1970_S
    return next((unit for unit in _UNITS if low <= least * unit < high), None)


def _by_pace(numbers: Sequence[float], hint: float | None) -> float:
    """The unit in which rows would come neither absurdly fast nor absurdly slowly."""
    decimals = sum(isinstance(each, float) for each in numbers) > len(numbers) / 2
    apart = 2 * (median(numbers) - min(numbers)) / len(numbers)
    if hint == SECONDS:
        return SECONDS
    if decimals and apart < _FAST_DECIMALS:
        return SECONDS
    if hint is None and 0 < apart < _FAST:
        return SECONDS
    if hint is None and apart >= _SLOW:
        return 1e-6
    return MILLISECONDS
