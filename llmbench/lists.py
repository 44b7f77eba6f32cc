"""Numbers and comma-separated lists, as flags take them. Apart, for flags must import fast."""

import argparse
import re


def number(text: str) -> float:
    """Read a number, such as ``2.5``."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number; write it like 2.5") from None


def whole(text: str) -> int:
    """Read a whole number, such as ``30``."""
    if not re.fullmatch(r"-?[0-9]{1,18}", text.strip()):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number; write it like 30")
    return int(text)


def counts(text: str) -> list[int]:
    """Read whole numbers from 1, such as ``1,8,32``, none twice."""
    values = []
    for word in words(text):
        if not re.fullmatch(r"[0-9]+", word) or int(word) < 1:
            raise argparse.ArgumentTypeError(
                f"'{word}' is not a whole number from 1; write it like 1,8,32"
            )
        if int(word) in values:
            raise argparse.ArgumentTypeError(f"{int(word)} stands there twice")
        values.append(int(word))
    return values


def words(text: str) -> list[str]:
    """Read words, such as ``wire,openai``, none twice."""
    values = [word.strip() for word in text.split(",")]
    for value in values:
        if values.count(value) > 1:
            raise argparse.ArgumentTypeError(f"'{value}' stands there twice")
    return values


def items(text: str) -> list[str]:
    """Read items, such as ``128,normal(512,128)``, none twice; commas in parentheses part none."""
    values = [item.strip() for item in re.split(r",(?![^()]*\))", text)]
    for value in values:
        if values.count(value) > 1:
            raise argparse.ArgumentTypeError(f"'{value}' stands there twice")
    return values


def pairs(text: str) -> dict[str, str]:
    """Read a mapping, such as ``ttft.p95=500ms,e2e.p99=2s``."""
    parts = [word.partition("=") for word in words(text)]
    for name, equals, value in parts:
        if not (name and equals and value):
            raise argparse.ArgumentTypeError(
                f"'{name}{equals}{value}' is not NAME=VALUE; write it like a=1,b=2"
            )
    if len({name.strip() for name, _, _ in parts}) < len(parts):
        raise argparse.ArgumentTypeError("a name stands there twice")
    return {name.strip(): value.strip() for name, _, value in parts}
