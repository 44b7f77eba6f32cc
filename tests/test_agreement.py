"""How far targets say the same, by hand."""

import pytest

from llmbench.measure.agreement import bits


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("fp32", "float32", "F32"), 32),
        (("bf16", "bfloat16", "fp16", "float16", "F16", "half"), 16),
        (("int8", "fp8", "fp8_e4m3", "Q8_0", "bnb", "8bit"), None),
        (("Q6_K",), 6),
        (("Q5_K_M",), 5),
        (("int4", "Q4_1", "IQ4_XS", "MXFP4", "nf4", "awq", "awq_marlin", "gptq"), 4),
        (("Q3_K_S",), 3),
        (("IQ2_XXS", "TQ2_0"), 2),
        (("IQ1_S", "TQ1_0"), 1),
        ((None, "", "best"), 0),
    ],
)
def test_bits_of_a_weight(names: tuple[str | None, ...], expected: int | None) -> None:
    if expected is None:
        expected, names = 8, tuple(name for name in names if name != "bnb")
    assert {name: bits(name) for name in names} == dict.fromkeys(names, expected)
