"""``python tests/fake_host ENGINE``: an engine whose tokens come when they are known to.

A reply that may stop by itself does so after ``NATURAL_TOKENS``.

The options' model says how it behaves: ``steady``, ``refuses``, ``raises``, ``vanishes`` and
``hangs`` (before it is ready), ``dies`` and ``crashes`` (once asked to generate), ``fails``,
``slow``.
"""

import os
import signal
import sys
import threading
import time

from llmbench.hosts.protocol import (
    Facts,
    Job,
    Options,
    Prompt,
    Refused,
    conversation,
    plain,
    serve,
)

MS = 1_000_000
PREFILL_MS, STEP_MS = 5, 2
NATURAL_TOKENS = 3
LAST_WORDS = "CUDA error: out of memory"


class FakeEngine:
    """Makes ``PREFILL_MS + number of the call`` ms of the first token, and ``STEP_MS`` of each
    after it; the last two come together, and the texts tell the call and the prompt."""

    def __init__(self, behaviour: str) -> None:
        self.facts = Facts(
            engine="fake 1.0",
            model="faked",
            quantization="fp32",
            versions={"fake": "1.0"},
            first_token_s=0.25,
            weights_bytes=1000,
        )
        self._behaviour = behaviour
        self._calls = 0
        self._cancelled = threading.Event()

    def count(self, api: str, prompt: Prompt) -> int:
        if api != "chat":
            return len(plain(prompt).split())
        return sum(3 + len(said["content"].split()) for said in conversation(prompt))

    def submit(self, job: Job) -> None:
        if self._behaviour == "dies":
            print(LAST_WORDS, file=sys.stderr, flush=True)
            os._exit(3)
        if self._behaviour == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._behaviour == "fails":
            raise ValueError("no room\nfor it")
        threading.Thread(target=self._run, args=(job, self._calls), daemon=True).start()
        self._calls += 1

    def cancel(self) -> None:
        self._cancelled.set()

    def _run(self, job: Job, call: int) -> None:
        first_ms = PREFILL_MS + call
        stops = not job.exact and job.max_tokens > NATURAL_TOKENS
        tokens = NATURAL_TOKENS if stops else job.max_tokens
        made = [(first_ms + STEP_MS * n, 1) for n in range(tokens - 2)]
        made.append((made[-1][0] + STEP_MS, 2))
        if self._behaviour == "slow":  # the second token never comes
            made = [made[0]]
            self._cancelled.wait(60)
        for sequence in range(len(job.prompts)):
            job.events[sequence] = [(job.received_ns + at * MS, tokens) for at, tokens in made]
        self._sleep_until(job.received_ns + made[-1][0] * MS)
        for sequence, prompt in enumerate(job.prompts):
            job.done(
                sequence,
                prompt_tokens=self.count(job.api, prompt),
                text=lambda tokens, name=f" {call}.{sequence}": (tokens, name * tokens),
                finish="stop" if stops else "length",
                stages={"prefill_ms": float(first_ms), "decode_ms": float(made[-1][0] - first_ms)},
                error="cancelled" if self._cancelled.is_set() else "",
            )

    def _sleep_until(self, at_ns: int) -> None:
        time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)


def load(options: Options) -> FakeEngine:
    """As the model of ``options`` says."""
    match options.model:
        case "refuses":
            raise Refused("no such model: try another")
        case "raises":
            raise ValueError("bad weights\nin two lines")
        case "vanishes":
            print(LAST_WORDS, file=sys.stderr, flush=True)
            os._exit(3)
        case "hangs":
            time.sleep(60)
    return FakeEngine(options.model)


serve(load)
