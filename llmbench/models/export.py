"""A GGUF file as a plain Hugging Face directory, for engines that read nothing else."""

import logging
from pathlib import Path
from typing import Any

from llmbench.engines.gguf_file import check_gguf
from llmbench.errors import UserError
from llmbench.models.folders import new_folder

DTYPES = ("bfloat16", "float16", "float32")


def export_hf(source: Path, out: Path, *, dtype: str = "bfloat16") -> Path:
    """Write what the GGUF file ``source`` holds to the new directory ``out``, and return that.

    It gets configuration, safetensors of ``dtype``, and the tokenizer with its chat template.
    Precision that ``source`` has lost does not come back: the weights are its values, rounded to
    ``dtype``. Raises ``UserError`` for a file that Transformers cannot read, and where it, torch,
    accelerate or gguf is not installed.
    """
    if dtype not in DTYPES:
        raise UserError(f"no dtype {dtype!r}: {', '.join(DTYPES)}")
    check_gguf(source)
    with new_folder(out) as partial:
        try:
            _export(source, partial, dtype)
        except ImportError as problem:
            raise UserError(
                "export needs torch, transformers, accelerate and gguf: "
                f"pip install 'llmbench[transformers]' ({_line(problem)})"
            ) from problem
        except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as problem:
            raise UserError(f"Transformers cannot export {source}: {_line(problem)}") from problem
    return out


def _export(source: Path, out: Path, dtype: str) -> None:
    torch, transformers = _libraries()
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, dtype))
    # The loaded model remembers that it was a GGUF file, and so would what it saves: give its
    # weights to a model that doesn't.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(out)


def _libraries() -> tuple[Any, Any]:
    import accelerate  # noqa: F401 - Transformers asks for it, and for gguf, only half way through
    import gguf  # noqa: F401
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(logging.ERROR)
    return torch, transformers


def _line(problem: Exception) -> str:
    return (" ".join(str(problem).split()) or type(problem).__name__)[:200]
