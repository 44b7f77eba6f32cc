"""How many words make so many tokens, by lines through what was counted."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.plan.scale import Scale

COUNTED = Scale(((8, 30), (64, 100), (512, 800)))


def test_counts_are_met_exactly() -> None:
    assert [COUNTED.words(tokens) for tokens in (30, 100, 800)] == [8, 64, 512]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (65, 36),  # halfway from 30 to 100, and from 8 to 64
        (450, 288),  # halfway from 100 to 800, and from 64 to 512
        (40, 16),  # 8 + 10 × 56/70
    ],
)
def test_between_counts(tokens: int, words: int) -> None:
    assert COUNTED.words(tokens) == words


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (900, 576),  # 512 + 100 × 448/700
        (7800, 4992),
        (25, 4),  # 8 - 5 × 56/70
        (20, 0),
        (1, 0),  # -15
    ],
)
def test_beyond_the_counts_along_the_nearest_line(tokens: int, words: int) -> None:
    assert COUNTED.words(tokens) == words


def test_one_count_is_a_proportion() -> None:
    assert [Scale(((75, 100),)).words(tokens) for tokens in (100, 200, 4, 1)] == [75, 150, 3, 1]
    assert Scale().words(1000) == 750
    assert Scale(((0, 40),)).words(40) == 0  # a template that is longer than the prompt
    assert Scale(((5, 0),)).words(3) == 15


@st.composite
def scales(draw: st.DrawFn) -> Scale:
    """Some counts, each with more words and more tokens than the one before."""
    steps = draw(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 900)), min_size=1))
    words, tokens = (accumulate(column) for column in zip(*steps, strict=True))
    return Scale(tuple(zip(words, tokens, strict=True)))


@given(scales(), st.integers(1, 100_000))
def test_more_tokens_never_take_fewer_words(scale: Scale, tokens: int) -> None:
    assert 0 <= scale.words(tokens) <= scale.words(tokens + 1)


@given(scales())
def test_every_count_is_met(scale: Scale) -> None:
    assert [scale.words(tokens) for _, tokens in scale.counts] == [w for w, _ in scale.counts]
