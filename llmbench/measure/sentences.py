"""What of a text can be spoken: where its first sentence is known to be whole, and its words.

Ends of sentences are those of ``sentencex`` (Wikimedia, MIT), which knows the marks of all scripts,
decimals, abbreviations, initials, quotes and brackets. Of abbreviations it is asked for the English
ones, which are in use beyond English too.

A text arrives in pieces, and an end shows only with what follows it: ``3.`` may become ``3.14``,
and ``Dr.`` is none. So what counts is how many characters must have come before it is known. That
depends on the text alone, not on where it was cut into pieces.
"""

import re

import numpy as np
from sentencex import segment

from llmbench.measure.statistics import Floats, Ints

LONGEST = 1000
"""A first sentence that is longer than this, in characters, is none."""

CHARS_A_WORD = 1.3
"""Ideographs and kana that are read aloud in the time of an English word. Readers of one text
manage 228 words a minute in English, 255 characters in Chinese, 357 in Japanese: 1.1 and 1.6 a
word. S. Trauzettel-Klosinski & K. Dietz, *Standardized Assessment of Reading Performance: The New
International Reading Speed Texts IReST*, Investigative Ophthalmology & Visual Science 53 (2012)."""

LETTERS_A_WORD = 5.0
"""The same for letters of Thai, Lao, Burmese and Khmer, which put no spaces between words: as many
as a word has where typing is measured. A convention, not a measurement."""

_IDEOGRAPHS = (
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_LETTERS = (
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e45\u0e81-\u0eb0\u0ec0-\u0ec4\u1000-\u102a\u1780-\u17b3"
)
# One ideograph, one letter of a script without spaces, or a word: what stands between blanks, from
# its first letter or digit on.
_UNIT = re.compile(
    rf"(?P<ideograph>[{_IDEOGRAPHS}])|(?P<letter>[{_LETTERS}])"
    rf"|(?P<word>[^\W_{_IDEOGRAPHS}{_LETTERS}][^\s{_IDEOGRAPHS}{_LETTERS}]*)"
)
_WORDS_EACH = {"ideograph": 1 / CHARS_A_WORD, "letter": 1 / LETTERS_A_WORD, "word": 1.0}


def whole_sentence_at(text: str) -> int | None:
    """How many characters of ``text`` must have come before its first sentence is known to be
    whole; ``None`` where its end never shows.

    A sentence has a letter in it: the number of a list's item is none. The text is looked at after
    each character but those within words, where no end can show.
    """
    for end in range(2, min(len(text), LONGEST) + 1):
        if not text[end - 2].isalnum() and _has_whole_sentence(text[:end]):
            return end
    return None


def _has_whole_sentence(text: str) -> bool:
    return any(_has_letter(each) for each in segment("en", text)[:-1])


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


def speakable_at(text: str, chars: int) -> int | None:
    """How many characters of ``text`` must have come before its first chunk can be spoken: a whole
    sentence, or ``chars`` characters without the blanks before them, whichever is first; ``None``
    where there is neither."""
    enough = len(text) - len(text.lstrip()) + chars
    if enough <= len(text):
        text = text[:enough]
    sentence = whole_sentence_at(text)
    if sentence is not None:
        return sentence
    return enough if enough <= len(text) else None


def is_speakable(text: str) -> bool:
    """Whether there is a letter or a digit in ``text``."""
    return any(map(str.isalnum, text))


def words(text: str) -> tuple[Ints, Floats]:
    """Where the words of ``text`` begin, and how many words each is worth: 1, or a share of one for
    a character of a script that puts no spaces between words."""
    found = list(_UNIT.finditer(text))
    starts = np.array([unit.start() for unit in found], dtype=np.int64)
    worth = np.array([_WORDS_EACH[unit.lastgroup or ""] for unit in found], dtype=np.float64)
    return starts, worth
