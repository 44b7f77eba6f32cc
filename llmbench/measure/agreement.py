"""How far targets say the same: the share of tokens equal to the highest precision's greedy ones.

Speed that a lower precision buys is paid for in other tokens. Replies to the same fixed prompts,
greedy, are compared position by position with those of the same model's most precise target. From
the first other token on a reply goes its own way, so this is a strict measure: it falls faster
than any score of the text's quality would.
"""

import re
from collections.abc import Sequence

from llmbench.records import Target

_BITS = (
    (r"fp?32|float32", 32),
    (r"bf16|bfloat16|fp?16|float16|half", 16),
    (r"w?(?:int8|8bit)|fp8\w*|i?q8\w*", 8),
    (r"i?q6\w*", 6),
    (r"i?q5\w*", 5),
    (r"w?(?:int4|4bit)|i?q4\w*|mxfp4\w*|nf4|fp4\w*|awq\w*|gptq\w*", 4),
    (r"i?q3\w*", 3),
    (r"i?q2\w*|tq2\w*", 2),
    (r"i?q1\w*|tq1\w*", 1),
)


def bits(quantization: str | None) -> int:
    """About how many bits a weight has, by the name of its precision; 0 where it tells nothing."""
    name = re.split(r"[-_ ]", (quantization or "").lower().removeprefix("bnb-"))[0]
    return next((n for pattern, n in _BITS if re.fullmatch(pattern, name)), 0)


def agreements(targets: Sequence[Target]) -> list[float | None]:
    """For each target its agreement with the reference: the most precise target of the same model,
    the first of several. ``None`` without greedy replies, or with nobody to compare with."""
    families: dict[str, list[Target]] = {}
    for target in targets:
        if target.provenance is not None and target.provenance.greedy:
            families.setdefault(_family(target), []).append(target)
    shares: list[float | None] = []
    for target in targets:
        family = families.get(_family(target), [])
        if target not in family or len(family) < 2:
            shares.append(None)
            continue
        reference = max(family, key=lambda each: bits(each.quantization))
        shares.append(agreement(_greedy(target), _greedy(reference)))
    return shares


def agreement(replies: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> float | None:
    """The share of the tokens of ``reference`` that ``replies`` have at the same place."""
    pairs = list(zip(replies, reference, strict=False))
    total = sum(len(theirs) for _, theirs in pairs)
    equal = sum(
        mine == its for ours, theirs in pairs for mine, its in zip(ours, theirs, strict=False)
    )
    return equal / total if total else None


def _greedy(target: Target) -> list[list[str]]:
    return target.provenance.greedy if target.provenance is not None else []


def _family(target: Target) -> str:
    return target.model.rstrip("/").rpartition("/")[2].lower()
