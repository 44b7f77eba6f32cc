"""How many tokens a reply has, out of all that its events state of it.

Servers state usage at the end, in every chunk, or in parts; as a total so far, or of the chunk
alone; with reasoning and cached tokens inside the totals, or beside them.
"""

from array import array
from collections.abc import Sequence
from itertools import pairwise

from msgspec.structs import fields, replace

from llmbench.records import Event, Integers, Kind, Usage

EDGE = 4
"""Of many statements, so many of the first and of the last are looked at: what a server states at
all, it does there."""

FEW = 3
MOST_RISES = 8
"""Counts of single chunks fall more often than once in so many; a count of all tokens may correct
itself, and do so at the end."""

SEEN_SHARE = 0.99
"""Where events are at least this share of the tokens, each token was seen."""

MOST_CHARS = 12
"""More characters a token than this are the text of more tokens; some four are usual."""

FEWEST_CHARS = 0.25
"""Fewer characters a token than this cannot be the text of all tokens."""

_FIELDS = tuple(field.name for field in fields(Usage))


def usage_of(stated: Sequence[Usage], *, cumulative: bool = True) -> Usage:
    """What a reply ``stated``, of each count the last word, with reasoning inside the completion's
    tokens and what was cached inside the prompt's. Where the completion's counts are not
    ``cumulative``, their sum, unless the last of them is that."""
    if not stated:
        return Usage()
    usage = stated[-1]
    if len(stated) > 1:
        edges = stated if len(stated) <= 2 * EDGE else [*stated[:EDGE], *stated[-EDGE:]]
        for each in reversed(edges):
            known = {
                name: value
                for name in _FIELDS
                if (value := getattr(each, name)) and not getattr(usage, name)
            }
            if known:
                usage = replace(usage, **known)
        if not cumulative:
            usage = replace(usage, completion_tokens=_sum(stated), total_tokens=None)
    return _with_parts_inside(usage)


def _sum(stated: Sequence[Usage]) -> int:
    counts = [each.completion_tokens for each in stated if each.completion_tokens]
    *before, last = counts
    last_is_total = before and last >= sum(before) and last > before[-1]
    return last if last_is_total else sum(counts)


def is_cumulative(counts: Sequence[int], events: int, chars: int) -> bool:
    """Whether ``counts``, stated one after the other, are each of all tokens so far: then they do
    not fall, but for a correction, nor stand still while more comes than they count."""
    if not counts or not counts[-1]:
        return True
    if not counts[0]:  # the first may come after the first text
        counts = [count for count in counts if count]
    if len(counts) < 2:
        return True
    if list(counts) == sorted(counts):
        return counts[0] != counts[-1] or counts[-1] >= max(events, chars / MOST_CHARS)
    falls = sum(after < before for before, after in pairwise(counts))
    at_the_end = falls == 1 and len(counts) > FEW and counts[-1] < counts[-2]
    return at_the_end or falls < len(counts) / MOST_RISES


def running_sum(events: Sequence[Event]) -> Integers:
    """The tokens so far at each content event, where each states its own."""
    so_far, running = 0, array("q")
    for event in events:
        if event.usage is not None:
            so_far += event.usage.completion_tokens or 0
        if event.kind & Kind.GENERATED:
            running.append(so_far)
    return running


def _with_parts_inside(usage: Usage) -> Usage:
    """``usage`` with its parts inside their totals; counts of 0, which no prompt and no reply has,
    are unknown."""
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    cached, reasoning = usage.cached_tokens or 0, usage.reasoning_tokens or 0
    known = prompt and completion and usage.total_tokens
    extra = usage.total_tokens - prompt - completion if known and usage.total_tokens else None
    reasoning_apart = reasoning > completion or extra in (reasoning, reasoning + cached)
    cached_apart = cached > prompt or extra in (cached, cached + reasoning)
    if reasoning and extra == cached == reasoning and prompt >= cached:
        cached_apart = False
    if reasoning and reasoning_apart:
        completion += reasoning
    if cached and cached_apart:
        prompt += cached
    changes = {"prompt_tokens": prompt or None, "completion_tokens": completion or None}
    new = {name: value for name, value in changes.items() if getattr(usage, name) != value}
    return replace(usage, **new) if new else usage


def hidden_tokens(
    usage: Usage, events: int, chars: int, thoughts: int, thought_chars: int, *, unclear: bool
) -> int | None:
    """How many of the completion's tokens came in none of its ``events`` with ``chars`` characters,
    of which ``thoughts`` and ``thought_chars`` are reasoning; ``None`` where some did not, and
    nobody knows how many: reasoning that is streamed in part, or as a summary. Where it is
    ``unclear`` how long a text is to be, its length says nothing."""
    tokens, reasoning = usage.completion_tokens or 0, usage.reasoning_tokens or 0
    if events >= SEEN_SHARE * tokens:
        return 0
    if not reasoning:
        few = events < tokens / 2 and chars < FEWEST_CHARS * tokens
        return None if few and not unclear else 0
    if not thoughts:
        return min(reasoning, tokens)
    if thoughts >= SEEN_SHARE * reasoning:
        return 0
    answer = tokens - reasoning
    chars_a_token = (chars - thought_chars) / answer if answer > 0 else 1.0
    return 0 if thought_chars >= chars_a_token * reasoning / 2 else None
