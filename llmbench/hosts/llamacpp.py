"""llama.cpp in process, through xllamacpp: its server's scheduler without HTTP around it.

Requests run on its slots with continuous batching, as they do over HTTP; each is called from a
thread of its own, which llama.cpp's callback stamps.
"""

import threading
from importlib import metadata
from pathlib import Path
from time import monotonic
from typing import Any

from llmbench.hosts.protocol import (
    Facts,
    Job,
    Options,
    Prompt,
    Refused,
    conversation,
    plain,
    words_of,
)


class LlamaCpp:
    """A loaded GGUF file."""

    def __init__(self, server: Any, facts: Facts) -> None:
        self.facts = facts
        self._server = server
        self._epoch = 0  # calls of an earlier epoch than this are cancelled

    def count(self, api: str, prompt: Prompt) -> int:
        usage: dict[str, Any] = {}

        def keep(chunk: dict[str, Any]) -> bool:
            usage.update(chunk.get("usage") or {})
            return False

        self._call(api, prompt, 1, True, keep)
        return int(usage["prompt_tokens"])

    def submit(self, job: Job) -> None:
        for sequence in range(len(job.prompts)):
            arguments = (job, sequence, self._epoch)
            threading.Thread(target=self._run, args=arguments, daemon=True).start()

    def cancel(self) -> None:
        self._epoch += 1

    def _run(self, job: Job, sequence: int, epoch: int) -> None:
        last: dict[str, Any] = {}
        made = 0

        def keep(chunk: dict[str, Any]) -> bool:
            nonlocal made
            choices = chunk.get("choices")
            if choices and _text(choices[0]):
                before, made = made, chunk["timings"]["predicted_n"]
                job.stamp(sequence, (made - before, choices[0]))
                last["timings"] = chunk["timings"]  # not an end token's, which come last
            if choices:
                last["finish"] = choices[0].get("finish_reason")
            last.update({key: chunk[key] for key in ("usage", "error") if key in chunk})
            return self._epoch > epoch

        try:
            self._call(job.api, job.prompts[sequence], job.max_tokens, job.exact, keep)
        except Exception as problem:
            job.failed(sequence, words_of(problem))
            return
        if "error" in last:
            job.failed(sequence, str(last["error"]))
            return
        timings = last.get("timings", {})
        stages = {"prefill_ms": timings.get("prompt_ms"), "decode_ms": timings.get("predicted_ms")}
        job.done(
            sequence,
            prompt_tokens=last.get("usage", {}).get("prompt_tokens", 0),
            text=lambda made: (made[0], _text(made[1])),
            finish=last.get("finish") or "",
            stages={stage: ms for stage, ms in stages.items() if ms is not None},
            error="cancelled" if self._epoch > epoch else "",
        )

    def _call(self, api: str, prompt: Prompt, tokens: int, exact: bool, keep: Any) -> None:
        options = {
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": exact,
            "cache_prompt": False,
            "stream": True,
            "stream_options": {"include_usage": True},
            "timings_per_token": True,
        }
        if api == "chat":
            said = {"messages": conversation(prompt)}
            self._server.handle_chat_completions(said | options, keep)
        else:
            self._server.handle_completions({"prompt": plain(prompt)} | options, keep)


def _text(choice: dict[str, Any]) -> str:
    return str((choice.get("delta") or choice).get("content") or choice.get("text") or "")


def load(options: Options) -> LlamaCpp:
    """Load the GGUF file of ``options``, with a slot for each parallel sequence."""
    try:
        import xllamacpp
    except ImportError:
        raise Refused(
            "the llamacpp engine needs its extra: pip install 'llmbench[local]'"
        ) from None
    path = Path(options.model)
    if not path.is_file():
        raise Refused(f"no such model file: {path}")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = options.parallel
    params.n_ctx = options.parallel * (options.max_model_len or options.context)
    params.cache_prompt = False  # a prefix found in a cache would look like a fast prefill
    params.cache_ram_mib = 0
    params.verbosity = 1
    if options.threads:
        params.cpuparams.n_threads = options.threads
        params.cpuparams_batch.n_threads = options.threads
    began_s = monotonic()
    try:
        server = xllamacpp.Server(params)
    except Exception as problem:
        raise Refused(f"llama.cpp cannot load {path}: {problem}") from None
    version = metadata.version("xllamacpp")
    facts = Facts(
        engine=f"llama.cpp b{version.rpartition('.')[2]} (xllamacpp {version})",
        model=path.stem,
        versions={"xllamacpp": version},
        load_s=monotonic() - began_s,
        weights_bytes=path.stat().st_size,
    )
    engine = LlamaCpp(server, facts)
    facts.first_token_s = _first_token_s(engine)
    return engine


def _first_token_s(engine: LlamaCpp) -> float:
    began_s, first_s = monotonic(), 0.0

    def keep(chunk: dict[str, Any]) -> bool:
        nonlocal first_s
        if chunk.get("choices") and _text(chunk["choices"][0]) and not first_s:
            first_s = monotonic() - began_s
        return False

    engine._call("completions", "Once upon a time", 2, True, keep)
    return first_s
