"""How many words make so many tokens, by what a server has counted."""

from bisect import bisect_left

from msgspec import Struct

GUESS = ((75, 100),)
"""English, where nobody counts."""


class Scale(Struct, frozen=True):
    """``counts`` are pairs of words and the tokens that they make in a prompt, ascending."""

    counts: tuple[tuple[int, int], ...] = GUESS

    def words(self, tokens: int) -> int:
        """The words of a prompt of ``tokens`` tokens: on the line between the nearest counts, or on
        the one through the two nearest; by proportion where there is but one count."""
        counts = self.counts
        if len(counts) == 1:
            ((words, counted),) = counts
            return max(round(words * tokens / max(counted, 1)), 0)
        above = bisect_left([counted for _, counted in counts], tokens)
        last = min(max(above, 1), len(counts) - 1)
        (words_0, tokens_0), (words_1, tokens_1) = counts[last - 1 : last + 1]
        per_token = (words_1 - words_0) / max(tokens_1 - tokens_0, 1)
        return max(round(words_0 + (tokens - tokens_0) * per_token), 0)
