"""The texts that prompts are made of: long enough, plain, and not alike."""

from itertools import combinations
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "prompts"
LEAST_WORDS = {"chat": 900, "rag": 3000, "code": 900, "summary": 900, "voice": 500}
TEXTS = ("lighthouse", *LEAST_WORDS)
RUN = 8


def read(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def runs(name: str) -> set[tuple[str, ...]]:
    """Every sequence of eight words in a text, whatever their case and punctuation."""
    words = [word.strip(".,;:!?'\"()").lower() for word in read(name).split()]
    return {tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}


@pytest.mark.parametrize("name", LEAST_WORDS)
def test_texts_are_long_enough_and_plain(name: str) -> None:
    text = read(name)
    assert len(text.split()) >= LEAST_WORDS[name]
    assert text.isascii()
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert text.endswith("\n")
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("name", ["chat", "rag", "code", "summary"])
def test_texts_begin_with_what_is_to_be_done(name: str) -> None:
    # a short prompt is cut from the beginning: the instruction has to be there
    instruction = read(name).split("\n\n")[0]
    assert 30 <= len(instruction.split()) <= 80


def test_spoken_turns() -> None:
    lines = read("voice").splitlines()
    assert len(lines) == 60
    assert len(set(lines)) == 60
    for line in lines:
        assert 3 <= len(line.split()) <= 30
        assert line[-1] in ".?!"


@pytest.mark.parametrize(("one", "other"), list(combinations(TEXTS, 2)))
def test_texts_share_no_passage(one: str, other: str) -> None:
    assert not runs(one) & runs(other)


@pytest.mark.parametrize("name", ["chat", "rag", "summary"])
def test_texts_do_not_repeat_themselves(name: str) -> None:
    words = read(name).split()
    assert len(runs(name)) == len(words) - RUN + 1
