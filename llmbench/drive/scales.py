"""Find out how many words of a cell's text make so many tokens, by asking its target to count."""

from collections.abc import Hashable

from llmbench.drive.reach import Asker
from llmbench.errors import Unmeasurable
from llmbench.plan.scale import Scale
from llmbench.records import TEXT_FORMATS, Load

COUNTED_WORDS = (8, 64, 512, 2048)
"""Between these, and beyond them, tokens grow with words in line."""


def prompt_key(load: Load) -> Hashable:
    """Cells of equal keys make prompts by the same scale."""
    content = load.content
    return load.prompt_tokens, content.prompt_lengths, content.text, content.shared_prefix


async def find_scale(ask: Asker, load: Load) -> Scale:
    """The scale of the prompts of ``load``: exact for a fixed length, along a line for lengths that
    differ. Raises ``Unmeasurable`` where no prompt of the length can be made."""
    content = load.content
    if not content.prompt_lengths and not content.dataset:
        fit = await ask.fit_prompt(load.prompt_tokens, content)
        return Scale(((fit.words, load.prompt_tokens),))
    if content.format in TEXT_FORMATS:
        return Scale()
    counts: list[tuple[int, int]] = []
    for words in COUNTED_WORDS:
        try:
            tokens = await ask.count(words, content)
        except Unmeasurable:
            if len(counts) < 2:
                raise
            break  # the context is shorter than that
        if tokens is None:
            return Scale()
        counts.append((words, tokens))
        if tokens > 2 * load.prompt_tokens and len(counts) > 1 and not content.dataset:
            break
    return Scale(tuple(counts))
