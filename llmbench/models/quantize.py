"""Other precisions of a GGUF file: each tensor is made floats again, and then the other type.

Precision that the source has lost does not come back: an F16 file made of a Q4_1 file holds Q4_1's
values. Size and speed are those of the variant's type; how well its replies agree says how close
the variant is to the source, and not to the model that the source was once made of.

Every matrix is of the one type, where llama.cpp's own tool keeps some (the output matrix above all)
finer, and so makes slightly larger and slightly better files of the same name.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from llmbench.engines.gguf_file import check_gguf, parse_name
from llmbench.errors import UserError

# llama.cpp's number for a file of mostly that type. The package also knows two ternary types, which
# leave nothing of a model that was not trained for them.
TYPES = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q5_1": 9,
    "Q5_0": 8,
    "Q4_1": 3,
    "Q4_0": 2,
    "MXFP4": 38,
}

_FILE_TYPE = "general.file_type"
_QUANTIZATION_VERSION = "general.quantization_version"

Progress = Callable[[str], None]


def quantize(
    source: Path, types: Sequence[str], out: Path, *, progress: Progress, force: bool = False
) -> list[Path]:
    """Make a GGUF file of each of ``types`` from ``source`` in the folder ``out``.

    Metadata, and tensors' names, shapes and order are the source's. Norms and all other tensors of
    one dimension are F32, as in llama.cpp; a matrix whose rows the type's blocks do not divide is
    F16. ``progress`` is told, a line at a time, of such and of files that are there already: those
    are left as they are without ``force``. Returns the paths in the order of ``types``.

    Raises ``UserError`` for types and files that the gguf package cannot do.
    """
    names = [check_type(name) for name in types]
    check_gguf(source)
    reader = _read(source)
    stem, _ = parse_name(source)
    paths = []
    for name in names:
        path = out / f"{stem}.{name}.gguf"
        if path.exists() and (not force or path.samefile(source)):
            progress(f"{path.name} is there already and was left as it is")
        else:
            _write(reader, source, name, path, progress)
        paths.append(path)
    return paths


def check_type(name: str) -> str:
    """``name`` in capitals. Raises ``UserError`` if there is no such type to quantize to."""
    if name.upper() not in TYPES:
        raise UserError(f"cannot quantize to {name}: the gguf package can to {', '.join(TYPES)}")
    return name.upper()


def target_type(name: str, shape: Sequence[int], wanted: str, block: int) -> str:
    """The type of tensor ``name`` of ``shape`` (rows last) in a file of mostly ``wanted``."""
    matrix = len(shape) > 1 and name.endswith(".weight")
    # Norms, and what chooses between experts, cost little and are sensitive.
    if not matrix or "_norm" in name or "ffn_gate_inp" in name:
        return "F32"
    return "F16" if shape[-1] % block else wanted


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as problem:
        raise UserError("quantize needs the gguf package: pip install 'llmbench[models]'") from (
            problem
        )
    return gguf


def _read(source: Path) -> Any:
    gguf = _gguf()
    try:
        reader = gguf.GGUFReader(source)
    # whatever its parser runs into where bytes are missing or wrong
    except (ValueError, IndexError, KeyError, OSError, OverflowError, MemoryError) as problem:
        words = " ".join(str(problem).split())[:120]
        raise UserError(f"{source} is damaged or cut short: {words}") from problem
    if reader.byte_order != "I":
        raise UserError(f"{source} is of the other byte order; only this machine's can be read")
    if not reader.tensors or "general.architecture" not in reader.fields:
        raise UserError(f"{source} holds no model: no tensors, or no general.architecture")
    if (split := reader.fields.get("split.count")) is not None and split.contents() > 1:
        raise UserError(f"{source} is one of {split.contents()} parts: merge them first")
    return reader


def _write(reader: Any, source: Path, name: str, path: Path, progress: Progress) -> None:
    """Write the variant under a temporary name, and rename it when it is whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        try:
            _fill(reader, Path(partial), name, progress)
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
    except OSError as problem:
        raise UserError(f"cannot write {path}: {problem.strerror or problem}") from problem
    except NotImplementedError as problem:
        raise UserError(f"cannot read the weights of {source}: {problem}") from problem


def _fill(reader: Any, path: Path, name: str, progress: Progress) -> None:
    """Write header and metadata, then one tensor after the other: no two are in memory at once."""
    gguf = _gguf()
    wanted = gguf.GGMLQuantizationType[name]
    plan = [(tensor, _plan(gguf, tensor, wanted)) for tensor in reader.tensors]
    odd = [tensor.name for tensor, kind in plan if kind.name == "F16" != name]
    if odd:
        progress(f"{name}'s blocks do not divide the rows of {', '.join(odd)}: F16 there")
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    with closing(writer):
        writer.data_alignment = int(reader.alignment)
        _copy_metadata(reader, writer, TYPES[name], progress)
        for tensor, kind in plan:
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            size_bytes = int(tensor.n_elements) // block * block_bytes
            writer.add_tensor_info(tensor.name, _shape(tensor), None, size_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in plan:
            writer.write_tensor_data(_convert(gguf, tensor, kind))


def _copy_metadata(reader: Any, writer: Any, file_type: int, progress: Progress) -> None:
    """All of the source's keys, in its order, but for the two that say what the weights are."""
    gguf = _gguf()
    array, uint32 = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
    own = {_FILE_TYPE: file_type, _QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION}
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue  # the writer's own
        if key in own:
            writer.add_key_value(key, own.pop(key), uint32)
        elif field.types[0] != array:
            writer.add_key_value(key, field.contents(), field.types[0])
        elif len(field.types) == 2:
            writer.add_key_value(key, field.contents(), array, field.types[1])
        else:
            progress(f"left out {key}: the gguf package cannot write empty or nested arrays")
    for key, value in own.items():
        writer.add_key_value(key, value, uint32)


def _plan(gguf: Any, tensor: Any, wanted: Any) -> Any:
    """The type that ``tensor`` becomes: integers stay what they are."""
    if tensor.tensor_type.name.startswith("I") and tensor.tensor_type.name[1:].isdigit():
        return tensor.tensor_type
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    name = target_type(tensor.name, _shape(tensor), wanted.name, block)
    return gguf.GGMLQuantizationType[name]


def _shape(tensor: Any) -> list[int]:
    """Rows last, as numpy has it."""
    return [int(size) for size in reversed(tensor.shape)]


def _convert(gguf: Any, tensor: Any, kind: Any) -> Any:
    if tensor.tensor_type == kind:
        return tensor.data
    return gguf.quantize(gguf.dequantize(tensor.data, tensor.tensor_type), kind)
