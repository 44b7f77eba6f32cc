"""What the sessions of a cell say, in order: synthetic text, or the rows of a dataset.

A session is a conversation of one or more turns. Its number decides all that is drawn for it, so
that every process that runs a part of the cell plans the same.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

from msgspec import Struct

from llmbench.datasets import Rows, open_dataset
from llmbench.plan import prompts
from llmbench.plan.lengths import Length, chance, draws, read_length, read_seconds
from llmbench.plan.scale import Scale
from llmbench.records import TRACE, Load, Message, Sample

BLOCK_TOKENS = 512
"""The size of the blocks that Mooncake's traces name."""


class Ask(Struct, frozen=True):
    """One turn: what is said beyond what was said before, and how long the reply may be; the user
    cuts it off ``cut_after_s`` after its first token, where that is set."""

    messages: Sequence[Message]
    output_tokens: int
    cut_after_s: float | None = None


class Session(Struct, frozen=True):
    """The turns of one conversation, with the pause before each but the first.

    ``at_s`` is when it is due by the clock of a trace.
    """

    asks: Sequence[Ask]
    pauses_s: Sequence[float] = ()
    at_s: float | None = None


class Feed:
    """The sessions of one cell. ``session`` is asked for rising numbers.

    ``salt`` is the run's, and makes its prompts unlike those of any other; ``scale`` says how many
    words make so many tokens.
    """

    def __init__(self, load: Load, cell: int, salt: str, scale: Scale) -> None:
        content = load.content
        self._load, self._cell, self._salt, self._scale = load, cell, salt, scale
        self._content = content
        self._prompt_length = read_length(content.prompt_lengths or str(load.prompt_tokens))
        self._output_length = read_length(content.output_lengths or str(load.output_tokens))
        self._think = read_seconds(content.think_time) if content.think_time else None
        self._cut = read_seconds(content.barge_in_after) if content.barge_in else None
        self._rows: Rows | None = None
        self._first_pass: Rows | None = None
        self._samples: Iterator[Sample] = iter(())
        self._next = 0

    def session(self, number: int) -> Session | None:
        """Session ``number``, or ``None`` where a trace that sets the times has no more rows.

        Raises ``UserError`` for a row that cannot be read, if such are not to be skipped.
        """
        if not self._content.dataset:
            return self._synthetic(number)
        sample = self._sample(number)
        return None if sample is None else self._from_dataset(number, sample)

    @property
    def skipped(self) -> str:
        """How many rows were passed over and why the first was, where any were."""
        rows = self._first_pass or self._rows
        if rows is None or not rows.skipped_count:
            return ""
        first, count = rows.skipped[0], rows.skipped_count
        were = "row was" if count == 1 else "rows were"
        return f"{count} {were} skipped, such as {first.unit} {first.line}: {first.why}"

    # ── synthetic ────────────────────────────────────────────────────────────────────────────────

    def _synthetic(self, number: int) -> Session:
        tokens = self._draw(self._prompt_length, number, "prompt")
        first = self._prompt(number, tokens)
        said = [first, *(prompts.follow_up(number, n) for n in range(1, self._content.turns))]
        asks = [
            Ask(
                (Message("user", text),),
                self._output_tokens(number, turn),
                self._cut_after_s(number, turn, len(said)),
            )
            for turn, text in enumerate(said)
        ]
        return Session(asks, self._pauses_s(number, len(asks)))

    def _prompt(self, number: int, tokens: int, blocks: Sequence[int] = ()) -> str:
        words, block_words = self._scale.words(tokens), 0
        if blocks:
            block_words = self._scale.words(2 * BLOCK_TOKENS) - self._scale.words(BLOCK_TOKENS)
        return prompts.prompt(
            self._salt, self._cell, number, words, self._content, blocks, block_words
        )

    def _output_tokens(self, number: int, turn: int) -> int:
        return self._draw(self._output_length, number, f"output {turn}")

    def _draw(self, length: Length, number: int, what: str) -> int:
        return length.fixed or draws(length, f"{self._content.seed}/{what}", number)

    def _pauses_s(self, number: int, turns: int) -> list[float]:
        if self._think is None:
            return [0.0] * (turns - 1)
        return [
            self._think.draws(f"{self._content.seed}/think {turn}", number)
            for turn in range(1, turns)
        ]

    def _cut_after_s(self, number: int, turn: int, turns: int) -> float | None:
        """When the user cuts off the reply of ``turn``, where that is one of the share that is."""
        if self._cut is None or turn + 1 == turns:
            return None
        seed = self._content.seed
        if chance(f"{seed}/barge-in {turn}", number) >= self._content.barge_in:
            return None
        return self._cut.draws(f"{seed}/barge-in after {turn}", number)

    # ── from a dataset ───────────────────────────────────────────────────────────────────────────

    def _sample(self, number: int) -> Sample | None:
        """Row ``number`` of the dataset; it starts again where it ends, but for a trace's times."""
        sample: Sample | None = None
        while self._next <= number:
            sample = next(self._samples, None)
            if sample is None:
                if self._next and self._load.rate == TRACE:
                    return None
                self._first_pass = self._first_pass or self._rows
                self._rows = open_dataset(
                    self._content.dataset,
                    self._content.format,
                    self._content.columns,
                    self._content.skip_broken,
                )
                self._samples = iter(self._rows)
                continue
            self._next += 1
        return sample

    def _from_dataset(self, number: int, sample: Sample) -> Session:
        if sample.messages:
            turns = self._turns(number, sample.messages)
        else:
            tokens = sample.prompt_tokens or self._load.prompt_tokens
            turns = [(Message("user", self._prompt(number, tokens, sample.blocks)),)]
        asks = [
            Ask(
                said,
                sample.output_tokens or self._output_tokens(number, turn),
                self._cut_after_s(number, turn, len(turns)),
            )
            for turn, said in enumerate(turns)
        ]
        return Session(asks, self._pauses_s(number, len(asks)), sample.at_s)

    def _turns(self, number: int, messages: Sequence[Message]) -> list[tuple[Message, ...]]:
        """The turns that a row is played in. In one turn its messages are sent as they are; in
        several the model's own answers take the place of those in the file."""
        first, *rest = messages
        if self._content.cache == "cold":
            mark = prompts.nonce(self._salt, self._cell, number + 1)
            first = Message(first.role, f"{mark} {first.content}")
        if self._content.turns == 1:
            return [(first, *rest)]
        users = [n for n, each in enumerate((first, *rest)) if each.role == "user"]
        opening = (first, *rest)[: users[0] + 1]
        later = [(messages[n],) for n in users[1 : self._content.turns]]
        return list(chain([opening], later))
