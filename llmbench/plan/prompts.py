"""Prompts of a chosen length: a nonce, then natural text cut to a number of words.

The nonce is the first thing in the message, so that no request shares a prefix with another and
none is served from a prefix cache. It is four groups of three digits, since a group is as many
tokens as any other group in every tokenizer in wide use (one, or one a digit): the nonce does not
change a prompt's length.
"""

from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path

from llmbench.records import Content

PLAIN = Content()
DEFAULT_TEXT = PLAIN.text
AGREEMENT_TOKENS = 32
_GROUPS = 4
_GROUPS_OF_64_BITS = 7
_TURNS_A_MATTER = 6  # lines of voice.txt that are about one matter
_FIRST_GUESS_WORDS = 200  # enough to learn how words become tokens, and cheap to ask
_MOST_WORDS_PER_TOKEN = 4


def nonce(salt: str, cell: int, number: int) -> str:
    """The nonce of one session; ``salt`` is new in every run. Equal arguments, equal nonce."""
    digest = blake2b(f"{salt}/{cell}/{number}".encode(), digest_size=8).digest()
    return _groups(int.from_bytes(digest))


def _groups(number: int, count: int = _GROUPS) -> str:
    return " ".join(f"{number // 1000**group % 1000:03}" for group in range(count))


def prompt(
    salt: str,
    cell: int,
    number: int,
    words: int,
    content: Content = PLAIN,
    blocks: Sequence[int] = (),
    block_words: int = 0,
) -> str:
    """The prompt of session ``number``: a nonce and ``words`` words of the content's text.

    Without prefixes to share the nonce comes first and is the session's own. With a warm cache all
    sessions have the same; with a shared prefix one nonce of the cell stands before it and the
    session's own behind. ``blocks`` are ids of parts of ``block_words`` words each (the last has
    what is left), equal ids being equal text.
    """
    if blocks:
        return f"{nonce(salt, cell, 0)} {_of_blocks(words, content.text, blocks, block_words)}"
    if content.cache == "warm":
        return f"{nonce(salt, cell, 0)} {passage(words, content.text)}"
    own = nonce(salt, cell, number + 1)
    shared = round(words * content.shared_prefix)
    if not shared:
        return f"{own} {passage(words, content.text)}"
    rest = passage(words - shared, content.text, shared)
    return f"{nonce(salt, cell, 0)} {passage(shared, content.text)} {own} {rest}"


def _of_blocks(words: int, text: str, blocks: Sequence[int], size: int) -> str:
    """``words`` words in as many parts as there are ``blocks``, the last one of what is left. The
    first words of a part make room for a tag made of its id: parts differ, and have the length that
    the text has there."""
    parts = []
    for place, block in enumerate(blocks):
        first = min(place * size, words)
        last = words if place == len(blocks) - 1 else min(first + size, words)
        tag = _tag(block, size).split()[: last - first]
        used = len(tag)
        parts += [" ".join(tag), passage(last - first - used, text, first + used)]
    return " ".join(part for part in parts if part)


def _tag(block: int, size: int) -> str:
    """The groups that stand for a block's id, at most half of its ``size`` words. Where they cannot
    hold the id they hold its digest, which no other block of a trace is likely to have."""
    groups = _GROUPS if block < 1000**_GROUPS else _GROUPS_OF_64_BITS
    room = max(size // 2, 1)
    if groups <= room:
        return _groups(block, groups)
    if block >= 1000**room:
        block = int.from_bytes(blake2b(str(block).encode(), digest_size=8).digest())
    return _groups(block, room)


def passage(words: int, name: str = DEFAULT_TEXT, start: int = 0) -> str:
    """``words`` words of a text from its word ``start`` on; it starts again where it ends."""
    text, ends = _layout(name)
    parts = []
    at, left = start % len(ends), max(words, 0)
    while left:
        last = min(at + left, len(ends))
        parts.append(text[ends[at - 1] + 1 if at else 0 : ends[last - 1]])
        left -= last - at
        at = 0
    return " ".join(parts)


@cache
def _layout(name: str) -> tuple[str, list[int]]:
    """A text with one space between its words, and where each word ends."""
    words = load_text(name)
    return " ".join(words), [end - 1 for end in accumulate(len(word) + 1 for word in words)]


@cache
def load_text(name: str = DEFAULT_TEXT) -> tuple[str, ...]:
    """The words of one of the texts in ``prompts/``."""
    return tuple(_file(name).read_text(encoding="utf-8").split())


def follow_up(number: int, turn: int) -> str:
    """What the user of session ``number`` says in its ``turn``, from 1 on."""
    lines = _voice_lines()
    return lines[(number * _TURNS_A_MATTER + turn) % len(lines)]


@cache
def _voice_lines() -> tuple[str, ...]:
    return tuple(_file("voice").read_text(encoding="utf-8").splitlines())


def texts() -> list[str]:
    """The names of the texts that prompts can be cut from."""
    return sorted(
        path.stem for path in _file(DEFAULT_TEXT).parent.glob("*.txt") if path.stem != "agreement"
    )


@cache
def agreement_prompts() -> tuple[str, ...]:
    """The fixed prompts on which the greedy replies of targets are compared, one a line."""
    return tuple(_file("agreement").read_text(encoding="utf-8").splitlines())


def _file(name: str) -> Path:
    package = Path(__file__).parents[1]
    for folder in (package / "prompts", package.parent / "prompts"):  # a wheel, a checkout
        path = folder / f"{name}.txt"
        if path.is_file():
            return path
    raise FileNotFoundError(f"prompts/{name}.txt is missing from this installation")


class LengthFit:
    """Finds how many words make a prompt of ``wanted`` tokens, by asking a server to count.

    Tokens grow with words, nearly in line: after two counts the next guess follows the line through
    the nearest counts below and above, and the search ends when no count in between is left.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._counts: dict[int, int] = {}

    def guess(self) -> int | None:
        """The number of words to try next, or ``None`` when ``best`` cannot be improved."""
        if not self._counts:
            return min(max(round(self.wanted * 0.75), 1), _FIRST_GUESS_WORDS)
        if 0 not in self._counts and min(self._counts.values()) > self.wanted:
            return 0
        below = max((w for w, t in self._counts.items() if t <= self.wanted), default=None)
        above = min((w for w, t in self._counts.items() if t > self.wanted), default=None)
        if below is not None and self._counts[below] == self.wanted:
            return None
        if below is None:
            return None
        if above is None:
            tokens = self._counts[below]
            if list(self._counts.values()).count(tokens) > 1:
                return None  # more words and no more tokens: the server cuts prompts short
            most = _MOST_WORDS_PER_TOKEN * self.wanted
            step = round(below * (self.wanted - tokens) / max(tokens, 1))
            return min(below + max(step, 1), most) if below < most else None
        if above - below <= 1:
            return None
        per_word = (self._counts[above] - self._counts[below]) / (above - below)
        step = round((self.wanted - self._counts[below]) / per_word)
        return min(max(below + step, below + 1), above - 1)

    def add(self, words: int, tokens: int) -> None:
        """Take note that a prompt of ``words`` words counts ``tokens`` tokens."""
        self._counts[words] = tokens

    @property
    def best(self) -> tuple[int, int]:
        """The words that come nearest, and the tokens they make."""
        return min(self._counts.items(), key=lambda count: abs(count[1] - self.wanted))
