"""Prompts of a chosen length: a nonce, then natural text cut to a number of words.

The nonce is the first thing in the message, so that no request shares a prefix with another and
none is served from a prefix cache. It is four groups of three digits, since a group is as many
tokens as any other group in every tokenizer in wide use (one, or one a digit): the nonce does not
change a prompt's length.
"""

from functools import cache
from hashlib import blake2b
from pathlib import Path

DEFAULT_TEXT = "lighthouse"
AGREEMENT_TOKENS = 32
_GROUPS = 4
_FIRST_GUESS_WORDS = 200  # enough to learn how words become tokens, and cheap to ask
_MOST_WORDS_PER_TOKEN = 4


def nonce(salt: str, cell: int, index: int) -> str:
    """The nonce of one request; ``salt`` is new in every run. Equal arguments, equal nonce."""
    digest = blake2b(f"{salt}/{cell}/{index}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest)
    return " ".join(f"{number // 1000**group % 1000:03}" for group in range(_GROUPS))


def prompt(salt: str, cell: int, index: int, words: int) -> str:
    """The prompt of one request: its nonce and ``words`` words."""
    return f"{nonce(salt, cell, index)} {passage(words)}"


@cache
def passage(words: int, name: str = DEFAULT_TEXT) -> str:
    """The first ``words`` words of a text, which starts again where it ends."""
    text = load_text(name)
    rounds = -(-words // len(text))
    return " ".join((text * rounds)[:words])


@cache
def load_text(name: str = DEFAULT_TEXT) -> tuple[str, ...]:
    """The words of one of the texts in ``prompts/``."""
    return tuple(_file(name).read_text(encoding="utf-8").split())


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
