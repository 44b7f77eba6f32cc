"""``prices.toml`` → what targets cost. The file is the user's own: no price is part of llmbench."""

import datetime
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from llmbench.errors import UserError, suggestion

Money = Annotated[float, Meta(ge=0)]

_BY_TOKEN = ("input", "cached", "output")
_BY_HOUR = ("hour", "gpus", "utilisation")


class ListedPrice(
    Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One ``[[price]]``: what the target or the model of that ``name`` cost on that ``date``.

    Hosted: ``input``, ``cached`` (as ``input`` if not said) and ``output``, for a million tokens.
    Self-hosted: ``hour`` is what one GPU (or machine) costs for an hour, ``gpus`` how many of them
    the target needs, ``utilisation`` the part of its capacity that is used, averaged over the
    hours that are paid for.
    """

    name: str
    date: datetime.date
    source: str = ""
    currency: str = "USD"
    input: Money | None = None
    cached: Money | None = None
    output: Money | None = None
    hour: Money | None = None
    gpus: Annotated[float, Meta(gt=0)] | None = None
    utilisation: Annotated[float, Meta(gt=0, le=1)] | None = None

    @property
    def hosted(self) -> bool:
        return self.hour is None

    @property
    def hourly(self) -> float:
        """What an hour of all its GPUs costs."""
        return (self.hour or 0.0) * (self.gpus or 1.0)


def read_prices(path: Path) -> list[ListedPrice]:
    """The prices in ``path``. Raises ``UserError`` with the entry, its key and what is right."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise UserError(f"--prices {path}: cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as problem:
        raise UserError(f"{path}: not valid TOML: {problem}") from None
    for key in content:
        if key != "price":
            raise UserError(f"{path}: unknown key '{key}'; write [[price]] before each price")
    entries = content.get("price")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: no prices; write [[price]], then name, date and the figures")
    prices = [_read(entry, f"{path}: {_label(entry, n)}") for n, entry in enumerate(entries, 1)]
    seen: dict[tuple[str, datetime.date], int] = {}
    for number, price in enumerate(prices, 1):
        first = seen.setdefault((price.name, price.date), number)
        if first != number:
            raise UserError(
                f"{path}: {price.name} has two prices of {price.date}: {first}, {number}"
            )
    return prices


def price_of(prices: Sequence[ListedPrice], target: str, model: str | None) -> ListedPrice | None:
    """The price of ``target``, by its own name or else by its model's; the newest of several."""
    for name in (target, model):
        if listed := [price for price in prices if price.name == name]:
            return max(listed, key=lambda price: price.date)
    return None


def _label(entry: Any, number: int) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return f"price {number} ({name})" if isinstance(name, str) and name else f"price {number}"


def _read(entry: Any, where: str) -> ListedPrice:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: write it as a table: [[price]]")
    known = ListedPrice.__struct_fields__
    for key, value in entry.items():
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{suggestion(key, known)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {key}: expected a number")
    if "date" not in entry:
        raise UserError(f"{where}: date is missing: the day on which it was seen, as 2026-11-24")
    if not entry.get("name"):
        raise UserError(f"{where}: name is missing: that of a target, or of its model")
    if type(entry["date"]) not in (datetime.date, str):
        raise UserError(f"{where}: date: write the day alone, as 2026-11-24")
    try:
        price = msgspec.convert(entry, ListedPrice)
    except msgspec.ValidationError as problem:
        raise UserError(f"{where}: {_in_words(str(problem))}") from None
    for name in ("name", "source", "currency"):
        if not getattr(price, name).isprintable():
            raise UserError(f"{where}: {name}: it has characters that cannot be printed")
    _check_kind(entry, where)
    return price


def _check_kind(entry: dict[str, Any], where: str) -> None:
    """Either by the token or by the hour."""
    by_token, by_hour = ([key for key in keys if key in entry] for keys in (_BY_TOKEN, _BY_HOUR))
    if by_token and by_hour:
        raise UserError(
            f"{where}: {by_token[0]} and {by_hour[0]}: give a price for tokens "
            f"({', '.join(_BY_TOKEN)}) or for hours ({', '.join(_BY_HOUR)}), not both"
        )
    if by_hour and "hour" not in entry:
        raise UserError(f"{where}: hour is missing: what one GPU costs for an hour")
    if not by_hour and not {"input", "output"} <= entry.keys():
        raise UserError(
            f"{where}: give input and output (for a million tokens), or hour (of one GPU)"
        )


_WORDS = {
    "Expected `date`": "expected a day, as 2026-11-24",
    "Invalid RFC3339 encoded date": "write the day as 2026-11-24",
    "Expected `float | null`": "expected a number",
    "Expected `float`": "expected a number",
    "Expected `str`": "expected text",
}


def _in_words(problem: str) -> str:
    """msgspec's words, with the key in place of its path."""
    words, _, place = problem.partition(" - at `$.")
    for theirs, ours in _WORDS.items():
        words = words.replace(theirs, ours)
    words = re.sub(r"^Expected `float` (.*)", r"expected a number \1", words)
    key = place.rstrip("`")
    return f"{key}: {words}" if key else words
