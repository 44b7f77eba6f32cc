"""How long prompts, replies and pauses are: the grammar of their distributions, and the draws.

A distribution is a number, or a name with its parameters: ``normal(512,128)``. Two numbers more
clip it: what falls below the first or above the second is moved there, not drawn again. Draws are
made by inversion, one uniform number each (L. Devroye, Non-Uniform Random Variate Generation,
Springer 1986, section II.2). The number comes from a hash of the seed, a name and the request's
index: a request has its length whatever was drawn before it, and in whichever process.
"""

import math
import random
import re
from collections.abc import Sequence
from hashlib import blake2b
from statistics import NormalDist

from msgspec import Struct

from llmbench.errors import UserError

MOST_TOKENS = 1_000_000_000.0
MOST_SECONDS = 1_000_000.0
_MOST_SIGMA = 10.0
_LEAST_ABOVE_ZERO = 1e-6
_ABOVE_ZERO = ("mean", "median")
_SPREADS = ("sd", "sigma")
_PARAMETERS = {
    "fixed": ("value",),
    "normal": ("mean", "sd"),
    "uniform": ("low", "high"),
    "lognormal": ("median", "sigma"),
    "exponential": ("mean",),
}
_LENGTHS = ("fixed", "normal", "uniform", "lognormal")
_LENGTH_HINT = (
    "write 128, normal(512,128), uniform(64,512) or lognormal(256,0.5), "
    "clipped with two numbers more: normal(512,128,1,2048)"
)
_SECONDS_HINT = (
    "write 2, 1.5s, 500ms, normal(2,0.5), uniform(1,3), lognormal(2,0.5) or exponential(2), "
    "clipped with two numbers more: exponential(2,0,30)"
)
_NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
_TERM = re.compile(rf"([a-z]+)(?:\s*\(\s*({_NUMBER}(?:\s*,\s*{_NUMBER})*)\s*\))?|({_NUMBER})")
_TIME = re.compile(rf"({_NUMBER})\s*(ms|s)")
_OUTER_COMMA = re.compile(r",(?![^()]*\))")  # not one between a name's parentheses
_MOST_SHOWN = 60
_HASH_BITS = 52  # so that the middle of each of 2⁵² equal parts is a float below 1
_STANDARD_NORMAL = NormalDist()


# ---- grammar, shared with the rates


def term(text: str) -> tuple[str, tuple[float, ...]] | None:
    """``"ramp(2,32)"`` as a name and its numbers; ``"8"`` has no name, ``"trace"`` no numbers.

    ``None`` for what is neither. The numbers may be infinite: callers check their limits.
    """
    found = _TERM.fullmatch(text.strip())
    if found is None:
        return None
    name, several, single = found.groups()
    numbers = (several or single or "").split(",")
    return name or "", tuple(float(number) for number in numbers if number)


def number(value: float) -> str:
    """The shortest text that ``term`` reads as this value again."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def named(name: str, values: Sequence[float]) -> str:
    """``name(1,2.5)``, which ``term`` reads again."""
    return f"{name}({','.join(map(number, values))})"


def shown(text: str) -> str:
    """What the user wrote, fit to stand in a message of one line."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text)
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}…"


# ---- distributions


class Law(Struct, frozen=True):
    """A distribution: its kind, its parameters, and where it is clipped."""

    kind: str
    values: tuple[float, ...]
    clip: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.kind == "fixed":
            return number(self.values[0])
        return named(self.kind, (*self.values, *(self.clip or ())))

    def at(self, chance: float) -> float:
        """The quantile of ``chance`` in (0, 1), not clipped."""
        first, second = self.values[0], self.values[-1]
        match self.kind:
            case "normal":
                return first + second * _STANDARD_NORMAL.inv_cdf(chance)
            case "uniform":
                return min(first + chance * (second - first), second)
            case "lognormal":
                return first * math.exp(second * _STANDARD_NORMAL.inv_cdf(chance))
            case "exponential":
                return -first * math.log1p(-chance)
            case _:
                return first

    def limits(self, least: float, most: float) -> tuple[float, float]:
        """Where draws are clipped, if they have to lie between ``least`` and ``most`` anyway."""
        low, high = self.clip or (least, most)
        return max(low, least), min(high, most)

    def mean(self, low: float, high: float) -> float:
        """The mean of the draws, clipped to ``low`` and ``high``.

        With a∧b for the lesser of the two, clipping X gives low + X∧high − X∧low.
        """
        return low + _limited_mean(self, high) - _limited_mean(self, low)


def _limited_mean(law: Law, bound: float) -> float:
    """E[X∧bound], the limited expected value (S. A. Klugman, H. H. Panjer, G. E. Willmot, Loss
    Models, appendix A, for the lognormal and the exponential; the others by integration)."""
    first, second = law.values[0], law.values[-1]
    match law.kind:
        case "normal":
            z = (bound - first) / second
            density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            return first * _below(z) - second * density + bound * _below(-z)
        case "uniform":
            if bound <= first or bound >= second:
                return min(bound, (first + second) / 2)
            return bound - (bound - first) ** 2 / (2 * (second - first))
        case "lognormal" if bound > 0:
            z = math.log(bound / first) / second
            mean = first * math.exp(second**2 / 2)
            return mean * _below(z - second) + bound * _below(-z)
        case "exponential" if bound > 0:
            return -first * math.expm1(-bound / first)
        case _:
            return min(first, bound)


def _below(z: float) -> float:
    """The share of a standard normal distribution below ``z``."""
    return math.erfc(-z / math.sqrt(2)) / 2


class Length(Struct, frozen=True):
    """How many tokens long something is: a fixed number, or a distribution of whole numbers."""

    law: Law

    def __str__(self) -> str:
        return str(self.law)

    @property
    def fixed(self) -> int | None:
        """The number of tokens, ``None`` where it is drawn."""
        return int(self.law.values[0]) if self.law.kind == "fixed" else None

    @property
    def mean(self) -> int:
        """The mean of the draws, clipping counted in, rounded."""
        return math.floor(_spread(self.law).mean(*self.law.limits(1, MOST_TOKENS)) + 0.5)

    def at(self, chance: float) -> int:
        """The length at ``chance``, a number in (0, 1) that is drawn evenly."""
        low, high = self.law.limits(1, MOST_TOKENS)
        return math.floor(min(max(_spread(self.law).at(chance), low), high) + 0.5)

    def draw(self, rng: random.Random) -> int:
        """One length, at least 1."""
        return self.at(_inner(rng.getrandbits(_HASH_BITS)))


def _spread(law: Law) -> Law:
    """The law whose draws are rounded to tokens: a uniform one has to reach half a token beyond
    its ends, or these would come half as often as what lies between them."""
    if law.kind != "uniform":
        return law
    low, high = law.values
    # up to the number just below, which is not yet rounded to the next token
    return Law("uniform", (low - 0.5, math.nextafter(high + 0.5, low)))


class Seconds(Struct, frozen=True):
    """How long a pause is, in seconds: fixed, or a distribution."""

    law: Law

    def __str__(self) -> str:
        return str(self.law)

    @property
    def fixed(self) -> float | None:
        """The seconds, ``None`` where they are drawn."""
        return self.law.values[0] if self.law.kind == "fixed" else None

    @property
    def mean(self) -> float:
        """The mean of the draws, clipping counted in."""
        return self.law.mean(*self.law.limits(0, MOST_SECONDS))

    def at(self, chance: float) -> float:
        """The seconds at ``chance``, a number in (0, 1) that is drawn evenly."""
        low, high = self.law.limits(0, MOST_SECONDS)
        return min(max(self.law.at(chance), low), high)

    def draw(self, rng: random.Random) -> float:
        """One pause, never below 0."""
        return self.at(_inner(rng.getrandbits(_HASH_BITS)))

    def draws(self, seed: int | str, index: int) -> float:
        """Pause ``index`` by itself. Equal arguments, equal pause (see ``draws``)."""
        return self.at(chance(seed, index))


# ---- draws that do not depend on what was drawn before


def draws(length: Length, seed: int | str, index: int) -> int:
    """The length of request ``index``. Equal arguments, equal length.

    Where several lengths are drawn for a request, each needs a ``seed`` of its own, such as
    ``7/prompt`` and ``7/output``: with the same one long prompts would always have long replies.
    """
    return length.at(chance(seed, index))


def chance(seed: int | str, index: int) -> float:
    """A number evenly drawn from (0, 1), the ends left out. Equal arguments, equal number."""
    digest = blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return _inner(int.from_bytes(digest) >> (64 - _HASH_BITS))


def _inner(bits: int) -> float:
    return (bits + 0.5) / (1 << _HASH_BITS)


# ---- reading


def read_length(text: str, where: str = "--prompt-tokens") -> Length:
    """``128`` or ``normal(512,128,1,2048)`` as a length in tokens."""
    law = _law(text, where, "length", _LENGTHS, _LENGTH_HINT)
    _check(law, where, 1.0, MOST_TOKENS)
    whole = law.values if law.kind in ("fixed", "uniform") else ()
    for value in (*whole, *(law.clip or ())):
        if not value.is_integer():
            raise UserError(f"{where}: {shown(text)}: {number(value)} is not a whole number")
    return Length(law)


def read_pair(text: str, where: str = "--prompt-tokens") -> tuple[Length, Length | None]:
    """``PROMPT`` or ``PROMPT:OUTPUT``."""
    prompt, colon, output = text.partition(":")
    return read_length(prompt, where), read_length(output, where) if colon else None


def read_lengths(text: str, where: str = "--prompt-tokens") -> list[tuple[Length, Length | None]]:
    """``128,normal(512,128):64`` as prompt lengths, each with the output length it comes with."""
    pairs = []
    for part in _OUTER_COMMA.split(text):
        pair = read_pair(part, where)
        if pair in pairs:
            raise UserError(f"{where}: {shown(part.strip())} stands there twice")
        pairs.append(pair)
    return pairs


def read_seconds(text: str, where: str = "--think-time") -> Seconds:
    """``2``, ``500ms`` or ``exponential(2)`` as a time in seconds."""
    time = _TIME.fullmatch(text.strip())
    if time is not None:
        law = Law("fixed", (float(time[1]) / (1000 if time[2] == "ms" else 1),))
    else:
        law = _law(text, where, "time", tuple(_PARAMETERS), _SECONDS_HINT)
    _check(law, where, 0.0, MOST_SECONDS)
    return Seconds(law)


def _law(text: str, where: str, what: str, kinds: Sequence[str], hint: str) -> Law:
    name, numbers = term(text) or ("?", ())
    kind = name or "fixed"
    if name == "fixed" or kind not in kinds:
        raise UserError(f"{where}: '{shown(text)}' is no {what}; {hint}")
    own = len(_PARAMETERS[kind])
    values, clip = numbers[:own], numbers[own:]
    if len(values) == own and not clip:
        return Law(kind, values)
    if len(clip) == 2:
        return Law(kind, values, (clip[0], clip[1]))
    raise UserError(
        f"{where}: '{shown(text)}': write {kind}({','.join(_PARAMETERS[kind])}), "
        "with two numbers more to clip it"
    )


def _check(law: Law, where: str, least: float, most: float) -> None:
    """Raise ``UserError`` for a parameter outside of its limits, or limits the wrong way round."""
    names = (*_PARAMETERS[law.kind], *(("lower clip", "upper clip") if law.clip else ()))
    for name, value in zip(names, (*law.values, *(law.clip or ())), strict=True):
        low = max(least, _LEAST_ABOVE_ZERO) if name in _ABOVE_ZERO else least
        if name in _SPREADS:
            low = _LEAST_ABOVE_ZERO
        high = _MOST_SIGMA if name == "sigma" else most
        if not low <= value <= high:
            raise UserError(
                f"{where}: {shown(str(law))}: the {name} is {number(value)}; "
                f"write one from {number(low)} to {number(high)}"
            )
    for ends in (law.values if law.kind == "uniform" else None, law.clip):
        if ends and ends[0] > ends[1]:
            raise UserError(
                f"{where}: {shown(str(law))}: {number(ends[0])} is above {number(ends[1])}; "
                "write the lower number first"
            )
