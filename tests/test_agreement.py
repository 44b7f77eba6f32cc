"""How far targets say the same, by hand."""

import pytest

from llmbench.measure.agreement import agreement, agreements, bits
from llmbench.records import Provenance, Target


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("fp32", "float32", "F32"), 32),
        (("bf16", "bfloat16", "fp16", "float16", "F16", "half"), 16),
        (("int8", "fp8", "fp8_e4m3", "Q8_0", "8bit"), 8),
        (("Q6_K",), 6),
        (("Q5_K_M",), 5),
        (("int4", "Q4_1", "IQ4_XS", "MXFP4", "nf4", "awq", "awq_marlin", "gptq"), 4),
        (("Q3_K_S",), 3),
        (("IQ2_XXS", "TQ2_0"), 2),
        (("IQ1_S", "TQ1_0"), 1),
        ((None, "", "best"), 0),
    ],
)
def test_bits_of_a_weight(names: tuple[str | None, ...], expected: int) -> None:
    assert {name: bits(name) for name in names} == dict.fromkeys(names, expected)


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([["a", "b", "c", "d"], ["e", "f"]], 1.0),
        ([["a", "x", "c", "d"], ["e", "x"]], 4 / 6),
        ([["x", "a", "b", "c"], ["e", "f"]], 2 / 6),  # by place: what is shifted is other
        ([["a", "b"], ["e", "f"]], 4 / 6),  # what was not said is not the same
        ([["a", "b", "c", "d", "more"], ["e", "f"]], 1.0),
        ([["x"] * 4, []], 0.0),
    ],
)
def test_the_share_of_equal_tokens(replies: list[list[str]], expected: float) -> None:
    assert agreement(replies, [["a", "b", "c", "d"], ["e", "f"]]) == expected


def test_nothing_to_compare_is_no_share() -> None:
    assert agreement([["a"]], []) is None
    assert agreement([["a"]], [[]]) is None


def target(name: str, quantization: str | None, greedy: str, model: str = "m") -> Target:
    replies = [list(greedy)] if greedy else []
    return Target(
        spec="",
        name=name,
        model=model,
        quantization=quantization,
        provenance=Provenance(greedy=replies),
    )


def test_the_most_precise_target_is_the_reference() -> None:
    targets = [
        target("four", "Q4_1", "abxx"),
        target("sixteen", "bf16", "abcd"),
        target("eight", "int8", "abcx"),
    ]
    assert agreements(targets) == [0.5, 1.0, 0.75]


def test_of_equals_the_first_is_the_reference() -> None:
    targets = [target("one", "bf16", "ab"), target("other", "bf16", "abcd")]
    assert agreements(targets) == [1.0, 1.0]
    assert agreements(targets[::-1]) == [1.0, 0.5]


def test_each_model_has_a_reference_of_its_own() -> None:
    targets = [
        target("m 16", "bf16", "ab", model="org/Model"),
        target("n 32", "fp32", "zz", model="n"),
        target("m 8", "int8", "ax", model="/models/model/"),
        target("n 4", "int4", "zx", model="n"),
    ]
    assert agreements(targets) == [1.0, 1.0, 0.5, 0.5]


def test_who_said_nothing_or_is_alone_has_no_share() -> None:
    silent = Target(spec="", name="silent", model="m", quantization="fp32")
    targets = [silent, target("mute", "fp32", ""), target("alone", "bf16", "ab")]
    assert agreements(targets) == [None, None, None]
    assert agreements([*targets, target("eight", "int8", "ax")]) == [None, None, 1.0, 0.5]
