"""A Hugging Face directory as an onnxruntime-genai directory, for the onnx engine."""

import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from llmbench.errors import UserError
from llmbench.models.folders import new_folder

PRECISIONS = {"cpu": ("fp32", "int8", "int4"), "cuda": ("fp32", "fp16", "bf16", "int8", "int4")}
"""By device, what the library's builder can export for it."""

NEEDED = ("onnxruntime_genai", "onnx", "onnx_ir", "torch", "transformers")


def export_onnx(source: Path, out: Path, *, precision: str = "int4", device: str = "cpu") -> Path:
    """Export the Hugging Face directory ``source`` to the new directory ``out``, and return that.

    The library's own builder does it, in a process of its own; int4 and int8 are blocks of 32
    weights with a scale, rounded to nearest. Nothing is fetched. Raises ``UserError`` where the
    builder cannot do it, in its words, and where it or what it needs is not installed.
    """
    if precision not in PRECISIONS.get(device, ()):
        known = "; ".join(f"{each}: {', '.join(PRECISIONS[each])}" for each in PRECISIONS)
        raise UserError(f"no precision {precision} on {device}: {known}")
    if not (source / "config.json").is_file():
        raise UserError(
            f"{source} is no Hugging Face directory (it has no config.json): "
            "make one of a GGUF file with `llmbench models export FILE.gguf --out DIR`"
        )
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(
            "the ONNX export needs onnxruntime-genai, onnx, torch and transformers: "
            f"pip install 'llmbench[onnx,transformers]' (missing: {', '.join(missing)})"
        )
    with new_folder(out) as partial, tempfile.TemporaryDirectory() as cache:
        options = ["-i", str(source), "-o", str(partial), "-p", precision, "-e", device]
        options += ["-c", cache, "--extra_options", "hf_token=false"]
        built = subprocess.run(
            [sys.executable, "-m", "onnxruntime_genai.models.builder", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,
        )
        if built.returncode or not (partial / "genai_config.json").is_file():
            raise UserError(f"onnxruntime-genai cannot export {source}: {_reason(built.stdout)}")
    return out


def _reason(output: str) -> str:
    """What the builder died of, in one line: the last exception, or the last line."""
    lines = output.strip().splitlines() or ["it said nothing"]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (raised or lines)[-1][:200]
