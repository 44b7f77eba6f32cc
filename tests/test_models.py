"""Variants of a model: a small GGUF file, made here, in every type that can be made of it."""

import argparse
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import UserError
from llmbench.models.cli import add_flags, run
from llmbench.models.export import export_hf
from llmbench.models.folders import new_folder
from llmbench.models.onnx import export_onnx
from llmbench.models.quantize import TYPES, quantize, target_type

KIND = gguf.GGUFValueType
METADATA: list[tuple[str, Any, Any, Any]] = [
    ("general.name", "Tiny", KIND.STRING, None),
    ("general.file_type", 0, KIND.UINT32, None),
    ("llama.rope.freq_base", 1e5, KIND.FLOAT32, None),
    ("llama.large", 2**40, KIND.UINT64, None),
    ("tokenizer.ggml.tokens", ["a", "é", "\n", ""], KIND.ARRAY, KIND.STRING),
    ("tokenizer.ggml.token_type", [1, 1, 3, 6], KIND.ARRAY, KIND.INT32),
    ("tokenizer.ggml.scores", [0.5, -1.5], KIND.ARRAY, KIND.FLOAT32),
    ("tokenizer.ggml.add_bos_token", False, KIND.BOOL, None),
    ("tokenizer.chat_template", "{% for m in messages %}{{ m }}{% endfor %}", KIND.STRING, None),
]
MATRICES = ["token_embd.weight", "blk.0.ffn_up.weight", "blk.0.experts.weight"]
# The largest error of a block, in units of its largest value.
ERROR = {
    "F32": 0,
    "F16": 2**-11,
    "BF16": 2**-8,
    "Q8_0": 1 / 127,
    "Q5_1": 1 / 31,
    "Q5_0": 1 / 16,
    "Q4_1": 1 / 15,
    "Q4_0": 1 / 8,
    "MXFP4": 1 / 4,
}


def tensors() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    random = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (48, 64),
        "blk.0.attn_norm.weight": (64,),
        "blk.0.ffn_up.weight": (32, 96),
        "blk.0.odd.weight": (6, 40),
        "blk.0.experts.weight": (3, 8, 32),
        "blk.0.ffn_gate_inp.weight": (4, 64),
        "blk.0.ffn_up.bias": (96,),
    }
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "Tiny-Model.F32.gguf"
    path.parent.mkdir()
    writer = gguf.GGUFWriter(path, "llama")
    for key, value, kind, of in METADATA:
        writer.add_key_value(key, value, kind, of)
    for name, values in tensors().items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def said(_: str) -> None:
    pass


def floats(tensor: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type))


def by_name(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_the_errors_are_known_for_each_type() -> None:
    assert set(ERROR) == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_each_type_holds_the_values_within_its_error(tiny: Path, tmp_path: Path, name: str) -> None:
    (path,) = quantize(tiny, [name.lower()], tmp_path / "out", progress=said)
    assert path == tmp_path / "out" / f"Tiny-Model.{name}.gguf"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    made = by_name(path)
    for matrix in MATRICES:
        assert made[matrix].tensor_type.name == name
        blocks = tensors()[matrix].reshape(-1, 32)
        error = np.abs(floats(made[matrix]).reshape(-1, 32) - blocks).max(axis=1)
        scale = np.abs(blocks).max(axis=1) * (2 if name.endswith("_1") else 1)
        assert (error <= ERROR[name] * scale * 1.01).all()


@pytest.mark.parametrize("name", TYPES)
def test_what_is_small_stays_as_it_was(tiny: Path, tmp_path: Path, name: str) -> None:
    (path,) = quantize(tiny, [name], tmp_path, progress=said)
    made = by_name(path)
    for small in ("blk.0.attn_norm.weight", "blk.0.ffn_up.bias", "blk.0.ffn_gate_inp.weight"):
        assert made[small].tensor_type.name == "F32"
        np.testing.assert_array_equal(floats(made[small]), tensors()[small])


@pytest.mark.parametrize("name", TYPES)
def test_metadata_names_shapes_and_order_are_kept(tiny: Path, tmp_path: Path, name: str) -> None:
    (path,) = quantize(tiny, [name], tmp_path, progress=said)
    before, after = gguf.GGUFReader(tiny), gguf.GGUFReader(path)
    own = {"general.file_type", "general.quantization_version"}
    for key, field in before.fields.items():
        if not key.startswith("GGUF.") and key not in own:
            assert after.fields[key].types == field.types, key
            assert after.fields[key].contents() == field.contents(), key
    keys = [key for key in after.fields if not key.startswith("GGUF.")]
    assert keys == [*(key for key in before.fields if key in keys), "general.quantization_version"]
    assert after.fields["general.file_type"].contents() == TYPES[name]
    assert after.fields["general.quantization_version"].contents() == 2
    assert [tensor.name for tensor in after.tensors] == list(tensors())
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert list(old.shape) == list(new.shape)


def test_the_file_types_are_those_of_the_gguf_package() -> None:
    for name, number in TYPES.items():
        assert gguf.LlamaFileType(number).name in {
            f"ALL_{name}",
            f"MOSTLY_{name}",
            "MOSTLY_MXFP4_MOE",
        }


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "MXFP4"])
def test_rows_that_no_block_divides_are_f16_and_named(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    lines: list[str] = []
    (path,) = quantize(tiny, [name], tmp_path, progress=lines.append)
    assert by_name(path)["blk.0.odd.weight"].tensor_type.name == "F16"
    assert lines == [f"{name}'s blocks do not divide the rows of blk.0.odd.weight: F16 there"]


def test_a_type_made_of_itself_is_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    (first,) = quantize(tiny, ["Q4_0"], tmp_path / "a", progress=said)
    (second,) = quantize(first, ["Q4_0"], tmp_path / "b", progress=said)
    assert first.read_bytes() == second.read_bytes()


def test_lost_precision_does_not_come_back(tiny: Path, tmp_path: Path) -> None:
    (coarse,) = quantize(tiny, ["Q4_0"], tmp_path, progress=said)
    (fine,) = quantize(coarse, ["F32"], tmp_path, progress=said)
    for name, tensor in by_name(coarse).items():
        np.testing.assert_array_equal(floats(by_name(fine)[name]), floats(tensor))


def test_a_file_that_is_there_is_left_unless_forced(tiny: Path, tmp_path: Path) -> None:
    there = tmp_path / "Tiny-Model.Q8_0.gguf"
    there.write_bytes(b"mine")
    lines: list[str] = []
    assert quantize(tiny, ["Q8_0"], tmp_path, progress=lines.append) == [there]
    assert there.read_bytes() == b"mine"
    assert lines == ["Tiny-Model.Q8_0.gguf is there already and was left as it is"]
    quantize(tiny, ["Q8_0"], tmp_path, progress=said, force=True)
    assert by_name(there)["token_embd.weight"].tensor_type.name == "Q8_0"


def test_the_source_is_never_replaced(tiny: Path) -> None:
    before = tiny.read_bytes()
    assert quantize(tiny, ["F32"], tiny.parent, progress=said, force=True) == [tiny]
    assert tiny.read_bytes() == before


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_type_that_cannot_be_made_is_refused_with_those_that_can(tiny: Path) -> None:
    line = refused(lambda: quantize(tiny, ["Q8_0", "Q4_K_M"], tiny.parent, progress=said))
    assert "Q4_K_M" in line
    assert all(name in line for name in TYPES)
    assert list(tiny.parent.iterdir()) == [tiny]


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("words")
    assert "not a GGUF file" in refused(lambda: quantize(path, ["F16"], tmp_path, progress=said))
    gone = tmp_path / "gone.gguf"
    assert "gone.gguf" in refused(lambda: quantize(gone, ["F16"], tmp_path, progress=said))


@pytest.mark.parametrize("part", [0.0, 0.005, 0.02, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_refused(tiny: Path, tmp_path: Path, part: float) -> None:
    data = tiny.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: 4 + int(len(data) * part) - (part > 0.9) * 64])
    line = refused(lambda: quantize(cut, ["F16"], tmp_path / "out", progress=said))
    assert "cut.gguf is damaged or cut short" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    line = refused(lambda: quantize(tiny, ["F16"], file / "out", progress=said))
    assert line.startswith("cannot write ")


@given(
    shape=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    name=st.sampled_from(["blk.0.ffn_up.weight", "blk.0.attn_norm.weight", "blk.0.ffn_up.bias"]),
    wanted=st.sampled_from(list(TYPES)),
)
def test_a_tensor_gets_a_type_that_can_hold_it(shape: list[int], name: str, wanted: str) -> None:
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted]]
    kind = target_type(name, shape, wanted, block)
    own_block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert shape[-1] % own_block == 0
    assert kind in {"F32", "F16", wanted}
    if len(shape) == 1:
        assert kind == "F32"
    elif name.endswith("up.weight") and shape[-1] % block == 0:
        assert kind == wanted


# ── the other commands, as far as they go without their libraries ────────────────────────────────


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with suppress(ZeroDivisionError), new_folder(out) as partial:
        (partial / "half").write_text("x")
        raise ZeroDivisionError
    assert list(out.parent.iterdir()) == []
    with new_folder(out) as partial:
        (partial / "whole").write_text("x")
    assert [file.name for file in out.iterdir()] == ["whole"]
    assert "exists already" in refused(lambda: new_folder(out).__enter__())


def test_what_export_cannot_do_is_refused(tiny: Path, tmp_path: Path) -> None:
    line = refused(lambda: export_hf(tiny, tmp_path / "out", dtype="int3"))
    assert "int3" in line
    assert "bfloat16" in line
    assert "exists already" in refused(lambda: export_hf(tiny, tmp_path))
    assert "not a GGUF file" in refused(lambda: export_hf(Path(__file__), tmp_path / "out"))


def test_what_onnx_export_cannot_do_is_refused(tmp_path: Path) -> None:
    assert "fp32, int8, int4" in refused(
        lambda: export_onnx(tmp_path, tmp_path / "out", precision="bf16")
    )
    assert "no config.json" in refused(lambda: export_onnx(tmp_path, tmp_path / "out"))


def command(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return run(parser.parse_args([str(word) for word in words]))


def test_the_command_prints_a_line_for_each_file(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("quantize", tiny, "--to", "q8_0, F16", "--out", tmp_path) == 0
    out, err = capsys.readouterr()
    paths = [tmp_path / f"Tiny-Model.{name}.gguf" for name in ("Q8_0", "F16")]
    sizes = [f"{path.stat().st_size / 1e6:.1f} MB" for path in paths]
    assert out.splitlines() == [
        f"{paths[0]}  {sizes[0]}  Q8_0",
        f"{paths[1]}  {sizes[1]}  F16",
    ]
    assert "does not come back" in err


def test_the_command_refuses_a_bad_type_before_anything_else(tmp_path: Path) -> None:
    gone = tmp_path / "gone.gguf"
    assert "Q2_K" in refused(lambda: command("quantize", gone, "--to", "Q8_0,Q2_K"))
    assert "names no type" in refused(lambda: command("quantize", gone, "--to", ","))
