"""What a dataset holds, from one pass over it: for a plan, before anything is sent."""

from collections.abc import Iterable

from msgspec import Struct

from llmbench.records import Sample


class Spread(Struct, frozen=True):
    """The least, the mean and the greatest of some lengths, in tokens."""

    min: int
    mean: float
    max: int


class Survey(Struct, frozen=True, kw_only=True):
    """``rows`` that can be used, the last of them due ``span_s`` after the first of the file.

    A length is ``None`` where no row says it, and so is the time. ``guessed_unit`` is the unit that
    the times are taken to have, where the file does not say.
    """

    rows: int
    span_s: float | None = None
    guessed_unit: str = ""
    prompt_tokens: Spread | None = None
    output_tokens: Spread | None = None


class _Tally:
    """A running ``Spread``."""

    def __init__(self) -> None:
        self._count = self._total = self._most = 0
        self._least: int | None = None

    def add(self, value: int | None) -> None:
        if value is None:
            return
        self._count, self._total = self._count + 1, self._total + value
        self._most = max(self._most, value)
        self._least = value if self._least is None else min(self._least, value)

    def spread(self) -> Spread | None:
        if self._least is None:
            return None
        return Spread(self._least, self._total / self._count, self._most)


def survey(samples: Iterable[Sample]) -> Survey:
    """Read ``samples`` to their end, and keep none. What is wrong with one is raised as it is."""
    rows, span_s, guessed_unit = 0, None, ""
    prompts, outputs = _Tally(), _Tally()
    for sample in samples:
        rows += 1
        prompts.add(sample.prompt_tokens)
        outputs.add(sample.output_tokens)
        if sample.at_s is not None:
            span_s = max(span_s or 0.0, sample.at_s)
            guessed_unit = sample.guessed_unit
    return Survey(
        rows=rows,
        span_s=span_s,
        guessed_unit=guessed_unit,
        prompt_tokens=prompts.spread(),
        output_tokens=outputs.spread(),
    )
