"""Which model, of what precision, on what device: what Transformers and PyTorch are told."""

from pathlib import Path
from typing import Any

from llmbench.hosts.protocol import Facts, Options, Refused

EXTRA = "the transformers engine needs its extra: pip install 'llmbench[transformers]'"
DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
QUANTIZATIONS = {
    "int8": "Int8WeightOnlyConfig",
    "int8-dynamic": "Int8DynamicActivationInt8WeightConfig",
}
"""Those of torchao that a CPU can run as what they are: its int4 formats need a GPU and packages
beyond torchao, or hold each weight in a byte."""


def load_model(options: Options) -> tuple[Any, Any, Facts]:
    """The model, ready to generate, its tokenizer, and the facts as far as they are known."""
    try:
        import accelerate  # noqa: F401 - asked of users here, not by a traceback later
        import torch
        import transformers
    except ImportError:
        raise Refused(EXTRA) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    _check(options)
    device = _device(torch, options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    where = _source(options.model)
    how = _how(torch, transformers, options, device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        model = transformers.AutoModelForCausalLM.from_pretrained(**where, **how).eval()
    except ImportError as problem:
        raise Refused(f"{EXTRA} ({_line(problem)})") from problem
    except (OSError, ValueError) as problem:
        raise Refused(f"cannot load {options.model}: {_line(problem)}") from problem
    facts = Facts(
        engine=f"transformers {transformers.__version__}",
        model=_name(options.model),
        quantization=options.quantization or _precision(model),
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        versions=_versions(torch, transformers, options.quantization),
        weights_bytes=_weights_bytes(model),
    )
    return model, tokenizer, facts


def _check(options: Options) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    path, named = Path(options.model).expanduser(), options.model
    if named.endswith(".gguf"):
        if not path.is_file():
            raise Refused(f"no such GGUF file: {named}")
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise Refused(f"not a model directory: {named} has no config.json")
    elif path.exists():
        raise Refused(f"not a model: {named}; give a model directory, a GGUF file or a hub id")
    elif named.startswith(("/", ".", "~")) or named.count("/") != 1:
        raise Refused(f"no such model directory: {named}")
    if options.dtype is not None and options.dtype not in DTYPES:
        raise Refused(
            f"unknown dtype {options.dtype!r}: float32 (fp32), bfloat16 (bf16) and "
            f"float16 (fp16) are known"
        )
    if options.quantization is None:
        return
    if options.quantization not in QUANTIZATIONS:
        known = " and ".join(QUANTIZATIONS)
        raise Refused(f"no quantization {options.quantization!r} in this engine: {known} work")
    if named.endswith(".gguf"):
        raise Refused(
            "a GGUF file is not quantized again: leave quantization out, or give a model directory"
        )


def _source(named: str) -> dict[str, str]:
    path = Path(named).expanduser()
    if named.endswith(".gguf"):
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(path) if path.is_dir() else named}


def _name(named: str) -> str:
    path = Path(named).expanduser()
    if named.endswith(".gguf"):
        return path.stem
    return path.resolve().name if path.is_dir() else named


def _device(torch: Any, asked: str | None) -> str:
    kind, _, index = (asked or "auto").partition(":")
    if kind == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not found:
            raise Refused(f"no device {asked}: PyTorch {torch.__version__} finds no CUDA GPU here")
        if index and not (index.isdecimal() and int(index) < found):
            raise Refused(f"no device {asked}: there are cuda:0 to cuda:{found - 1}")
    elif kind == "mps":
        if not torch.backends.mps.is_available():
            raise Refused(f"no device {asked}: PyTorch {torch.__version__} finds no Apple GPU here")
    elif asked != "cpu":
        raise Refused(f"unknown device {asked!r}: cpu, cuda, cuda:N, mps and auto are known")
    return asked or kind


def _how(torch: Any, transformers: Any, options: Options, device: str) -> dict[str, Any]:
    """Precision and place, in the library's words."""
    fallback = "auto" if device == "cpu" else "bfloat16"  # auto: the checkpoint's own
    name = DTYPES[options.dtype] if options.dtype else fallback
    how: dict[str, Any] = {"dtype": name if name == "auto" else getattr(torch, name)}
    if device != "cpu":
        how["device_map"] = device
    if options.quantization is not None:
        try:
            from torchao import quantization
        except ImportError:
            raise Refused(EXTRA) from None
        config = getattr(quantization, QUANTIZATIONS[options.quantization])()
        how["quantization_config"] = transformers.TorchAoConfig(config)
    return how


def _precision(model: Any) -> str:
    """What the checkpoint was quantized by, or else its dtype. GGUF files are dequantized."""
    quantized = getattr(model.config, "quantization_config", None)
    if quantized is not None:
        known = quantized if isinstance(quantized, dict) else quantized.to_dict()
        method = getattr(known.get("quant_method"), "value", known.get("quant_method"))
        if method and method != "gguf":
            return str(method)
    name = str(model.dtype).removeprefix("torch.")
    return PRECISIONS.get(name, name)


def _versions(torch: Any, transformers: Any, quantization: str | None) -> dict[str, str]:
    versions = {"transformers": str(transformers.__version__), "torch": str(torch.__version__)}
    if quantization is not None:
        import torchao

        versions["torchao"] = str(torchao.__version__)
    return versions


def _weights_bytes(model: Any) -> int:
    """The storage of all parameters and buffers; what two of them share counts once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        for plain in _plain(tensor):
            storage = plain.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _plain(tensor: Any) -> list[Any]:
    """The tensors that a quantized one is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [plain for name in names for plain in _plain(getattr(tensor, name))]


def _line(problem: Exception) -> str:
    """The first sentence of what the library says, which is given to going on."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(problem).__name__
