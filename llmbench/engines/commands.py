"""The command lines of servers that llmbench starts: vLLM's and Transformers' own."""

import json
from pathlib import Path

from msgspec import Struct

from llmbench.errors import UserError
from llmbench.hosts import vllm as hosted
from llmbench.hosts.protocol import Refused

HOST = "127.0.0.1"
TRANSFORMERS_QUANTIZATIONS = ("bnb-4bit", "bnb-8bit")


class ServerOptions(Struct, frozen=True, kw_only=True):
    """What to serve and how. ``python`` is the interpreter that has the engine.

    ``parallel`` is the most requests that will be in flight at once, ``context`` the most tokens of
    prompt and reply together. What is ``None`` is left to the engine.
    """

    python: str
    model: str
    port: int
    parallel: int
    context: int
    dtype: str | None = None
    quantization: str | None = None
    device: str | None = None
    threads: int | None = None
    max_model_len: int | None = None


class Command(Struct, frozen=True):
    """How to start a server. It is up when ``health``, a path, answers 200; ``model`` is the name
    that it answers to."""

    argv: list[str]
    env: dict[str, str]
    health: str
    model: str


def vllm_server(options: ServerOptions) -> Command:
    """``vllm serve``, set as the vLLM that is called in process is."""
    card = _card(options.model)
    dtype = _dtype(options.dtype)
    length = hosted.length_of(card, options.context, options.max_model_len)
    env = hosted.environment(options.device, options.threads)
    name = Path(options.model).name if card else options.model
    argv = [options.python, "-m", "vllm.entrypoints.cli.main", "serve", options.model]
    argv += [f"--host={HOST}", f"--port={options.port}", f"--served-model-name={name}"]
    argv += [f"--max-model-len={length}", f"--max-num-seqs={options.parallel}"]
    # A prefix found in a cache would look like a fast prefill.
    argv += ["--no-enable-prefix-caching", "--no-enable-log-requests"]
    argv += ["--disable-uvicorn-access-log"]
    if dtype:
        argv.append(f"--dtype={dtype}")
    if options.quantization:
        argv.append(f"--quantization={options.quantization}")
    if hosted.on_cpu(options.device):
        argv.append("--enforce-eager")
        gib = hosted.kv_cache_gib(card, options.parallel * length, dtype)
        env["VLLM_CPU_KVCACHE_SPACE"] = str(gib)
    return Command(argv=argv, env=env, health="/health", model=name)


def transformers_server(options: ServerOptions) -> Command:
    """``transformers serve``, pinned to one model, several requests a step.

    It has no limit on a sequence's length nor on the requests in flight to be set.
    """
    argv = [options.python, "-m", "transformers.cli.transformers", "serve", options.model]
    argv += [f"--host={HOST}", f"--port={options.port}", "--continuous-batching"]
    if dtype := _dtype(options.dtype):
        argv.append(f"--dtype={dtype}")
    if options.quantization:
        if options.quantization not in TRANSFORMERS_QUANTIZATIONS:
            names = " and ".join(TRANSFORMERS_QUANTIZATIONS)
            raise UserError(f"quantization {options.quantization}: transformers serve has {names}")
        argv.append(f"--quantization={options.quantization}")
    if options.device:
        argv.append(f"--device={options.device}")
    env = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    return Command(argv=argv, env=env, health="/health", model=options.model)


def _dtype(name: str | None) -> str | None:
    try:
        return hosted.dtype_of(name)
    except Refused as problem:
        raise UserError(str(problem)) from problem


def _card(model: str) -> dict[str, object]:
    """The ``config.json`` of a model directory; empty for a model of the hub."""
    try:
        card = json.loads((Path(model) / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}
