"""Hugging Face Transformers, in this process.

Prompts asked for one by one run through the library's continuous batching (its paged cache): a
prompt joins the running batch at the next step and leaves it at its own length, so that nothing
waits for the longest. It serves on CPUs as on GPUs, and gives the same tokens as ``generate``. The
library stamps each token in the thread that makes it (``record_timestamps``), with the very clock
that ``time.monotonic`` reads, and hands all of them over at the end: nothing is streamed, and no
other thread runs, while tokens are timed. Shared prefixes are off: every prompt is computed.

The prompts of one call with several run as one static batch through ``generate``: padded on the
left, stamped by a streamer (the library hands it tokens that are already on the host), each up to
its own length. A model that continuous batching cannot run (the first reply tells) takes this way
for all prompts: what waits when a batch ends is the next one.

Where a reply is of an exact length, end tokens are nothing special to either: neither a reason to
stop nor forbidden. Else a reply is over with the model's own, and the others of a batch go on.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic, monotonic_ns, sleep
from typing import Any

from llmbench.hosts.protocol import (
    Engine,
    Facts,
    Job,
    Options,
    Prompt,
    Refused,
    conversation,
    plain,
    words_of,
)
from llmbench.hosts.transformers_model import load_model

PAGE_TOKENS = 256
CPU_STEP_TOKENS = 512
"""The most tokens a step on a CPU computes: the library would size its buffers by free memory."""
GATHER_S = 0.005
"""Who is answered by one static batch asks again together: wait for all before the next."""


def load(options: Options) -> Engine:
    """Load ``options.model``, a directory, a GGUF file or a hub id, and make a first reply."""
    began_s = monotonic()
    model, tokenizer, facts = load_model(options)
    facts.load_s = monotonic() - began_s
    engine = TransformersEngine(model, tokenizer, options, facts)
    engine.rehearse()
    return engine


@dataclass
class Reply:
    """One prompt on its way. ``era`` is the count of cancels when it was asked for, ``ends`` are
    the tokens that end it, ``ended`` whether one did."""

    job: Job
    sequence: int
    era: int
    ids: list[int]
    tokenize_ms: float
    ends: frozenset[int] = frozenset()
    ended: bool = False
    begun_ns: int = 0

    @property
    def events(self) -> list[tuple[int, Any]]:
        return self.job.events[self.sequence]

    @property
    def complete(self) -> bool:
        return self.ended or len(self.events) >= self.job.max_tokens

    @property
    def finish(self) -> str:
        return "stop" if self.ended else "length"

    def stages(self) -> dict[str, float]:
        """How long each part took, as far as it got. They don't overlap."""
        stages = {"tokenize_ms": self.tokenize_ms}
        if self.begun_ns:
            waited_ms = (self.begun_ns - self.job.received_ns) / 1e6
            stages["queue_ms"] = max(0.0, waited_ms - self.tokenize_ms)
        if self.events:
            first_ns, last_ns = self.events[0][0], self.events[-1][0]
            stages["prefill_ms"] = (first_ns - self.begun_ns) / 1e6
            stages["decode_ms"] = (last_ns - first_ns) / 1e6
        return stages


class TransformersEngine:
    """One thread takes what is asked in turn; in a session of continuous batching, the library's
    thread makes the tokens and a third one answers."""

    def __init__(self, model: Any, tokenizer: Any, options: Options, facts: Facts) -> None:
        import transformers

        self.facts = facts
        self._ends = _ends(model, tokenizer)
        # Neither sampling nor, unless it is asked for, an end token that the model's authors chose.
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad = next(token for token in pads if token is not None)
        model.generation_config = transformers.GenerationConfig(
            do_sample=False, pad_token_id=self._pad
        )
        self._model = model
        self._attention = model.config._attn_implementation
        self._tokenizer = tokenizer
        self._options = options
        self._continuous = True
        self._era = 0
        self._inbox: SimpleQueue[tuple[int, Job | None]] = SimpleQueue()
        self._held: deque[tuple[int, Job | None]] = deque()
        self._encoding = threading.Lock()
        self._manager: Any = None
        self._collector: threading.Thread | None = None
        self._requests = 0
        self._replies: dict[str, Reply] = {}
        threading.Thread(target=self._work, daemon=True).start()

    def count(self, api: str, prompt: Prompt) -> int:
        return len(self._encode(api, prompt))

    def submit(self, job: Job) -> None:
        self._inbox.put((self._era, job))

    def cancel(self) -> None:
        self._era += 1
        self._inbox.put((self._era, None))

    def rehearse(self) -> None:
        """Make the first reply, and one in each of the ways that there are."""
        began_ns = monotonic_ns()
        first = self._rehearsed(["Hello"])
        if first.error:
            print(f"no continuous batching for this model: {first.error}", file=sys.stderr)
            self._continuous = False
            self._model.set_attn_implementation(self._attention)  # it may have been changed
            began_ns = monotonic_ns()
            first = self._rehearsed(["Hello"])
        batch = self._rehearsed(["Hello", "Hello there"])
        again = self._rehearsed(["Hello"])
        if error := first.error or batch.error or again.error:
            raise RuntimeError(error)
        self.facts.first_token_s = (first.events[0][0][0] - began_ns) / 1e9

    def _rehearsed(self, prompts: list[str]) -> "Rehearsal":
        rehearsal = Rehearsal(prompts)
        self.submit(rehearsal)
        rehearsal.over.wait()
        return rehearsal

    def _encode(self, api: str, prompt: Prompt) -> list[int]:
        tokenizer = self._tokenizer
        template = getattr(tokenizer, "chat_template", None)
        if api == "chat" and not template and not isinstance(prompt, str):
            raise Refused("the model has no chat template: it takes a text, and no messages")
        with self._encoding:
            if api == "chat" and template:
                encoded = tokenizer.apply_chat_template(
                    conversation(prompt), add_generation_prompt=True, return_dict=True
                )
            else:
                encoded = tokenizer(plain(prompt))
        return list(encoded["input_ids"])

    def _work(self) -> None:
        while True:
            era, job = self._held.popleft() if self._held else self._inbox.get()
            if job is None:
                self._end_session()
                continue
            try:
                self._take(era, job)
            except Exception as problem:
                print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
                for sequence in range(len(job.prompts)):
                    job.failed(sequence, words_of(problem))

    def _take(self, era: int, job: Job) -> None:
        if self._continuous and len(job.prompts) == 1:
            for reply in self._prepared(era, job):
                self._join(reply)
            return
        while self._replies and era == self._era:  # the model is the session's until that is over
            sleep(0.001)
        self._end_session()
        replies = self._prepared(era, job)
        if len(job.prompts) == 1:
            replies += self._gathered(self._options.parallel - 1)
        if replies:
            self._run_batch(replies)

    def _prepared(self, era: int, job: Job) -> list[Reply]:
        """The replies to make for ``job``; what cannot be made is answered here."""
        replies = []
        for sequence, prompt in enumerate(job.prompts):
            began_ns = monotonic_ns()
            try:
                ids = self._encode(job.api, prompt)
            except Exception as failure:  # such as the chat template's own
                job.failed(sequence, words_of(failure))
                continue
            reply = Reply(job, sequence, era, ids, (monotonic_ns() - began_ns) / 1e6)
            if not job.exact:
                reply.ends = self._ends
            if problem := self._problem(reply):
                self._answer(reply, problem)
            else:
                replies.append(reply)
        return replies

    def _problem(self, reply: Reply) -> str:
        if reply.era != self._era:
            return "cancelled"
        tokens, limit = len(reply.ids), self._options.max_model_len
        if not tokens:
            return "the prompt has no tokens"
        if not reply.job.exact and not reply.ends:
            return "no reply can stop by itself: the model names no end token"
        if limit is not None and tokens + reply.job.max_tokens > limit:
            asked = f"a prompt of {tokens} tokens and a reply of {reply.job.max_tokens}"
            return f"{asked} are more than max_model_len, {limit}"
        return ""

    def _answer(self, reply: Reply, error: str) -> None:
        reply.job.done(
            reply.sequence,
            prompt_tokens=len(reply.ids),
            text=_reader(self._tokenizer),
            finish="" if error else reply.finish,
            stages=reply.stages(),
            error=" ".join(error.split())[:300],
        )

    # One static batch

    def _gathered(self, most: int) -> list[Reply]:
        """Up to ``most`` of the prompts that wait, as long as each came alone."""
        replies: list[Reply] = []
        if most > 0:
            sleep(GATHER_S)
        while len(replies) < most:
            try:
                era, job = self._inbox.get_nowait()
            except Empty:
                break
            if job is None or len(job.prompts) > 1:
                self._held.append((era, job))
                break
            replies += self._prepared(era, job)
        return replies

    def _run_batch(self, replies: list[Reply]) -> None:
        """Answer ``replies`` by one call of ``generate``."""
        import torch

        device, era = self._model.device, replies[0].era
        longest = max(len(reply.ids) for reply in replies)
        pads = [longest - len(reply.ids) for reply in replies]
        rows = [[self._pad] * n + reply.ids for n, reply in zip(pads, replies, strict=True)]
        mask = [[0] * n + [1] * (longest - n) for n in pads]

        def ended(ids: Any, _scores: Any, **_: Any) -> Any:
            over = era != self._era or all(reply.complete for reply in replies)
            return torch.full((len(ids),), over, device=ids.device)

        begun_ns = monotonic_ns()
        for reply in replies:
            reply.begun_ns = begun_ns
        problem = "cancelled"
        try:
            with torch.inference_mode():
                self._model.generate(
                    input_ids=torch.tensor(rows, device=device),
                    attention_mask=torch.tensor(mask, device=device),
                    max_new_tokens=max(reply.job.max_tokens for reply in replies),
                    streamer=Stamper(replies),
                    stopping_criteria=[ended],
                )
        except Exception as failure:  # such as too little memory: the next batch may fit
            problem = f"{type(failure).__name__}: {failure}"
        for reply in replies:
            self._answer(reply, "" if reply.complete else problem)

    # Continuous batching

    def _join(self, reply: Reply) -> None:
        """Let ``reply`` join what is running."""
        if self._manager is None or not self._manager.is_running():
            self._end_session()
            self._begin_session()
        self._requests += 1
        request = str(self._requests)
        self._replies[request] = reply
        taken = self._manager.add_request(
            reply.ids,
            request_id=request,
            max_new_tokens=reply.job.max_tokens,
            eos_token_id=sorted(reply.ends) or -1,  # none
            record_timestamps=True,
        )
        if taken is None:
            del self._replies[request]
            self._answer(reply, "continuous batching has stopped")

    def _begin_session(self) -> None:
        import transformers

        config = transformers.ContinuousBatchingConfig(allow_block_sharing=False)
        if self._model.device.type == "cpu":
            pages = -(-self._options.context // PAGE_TOKENS)
            config.page_size = PAGE_TOKENS
            config.num_blocks = 2 * self._options.parallel * pages + 2  # it keeps some of it free
            config.max_batch_tokens = max(CPU_STEP_TOKENS, self._options.parallel)
        greedy = transformers.GenerationConfig(
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=self._pad,
        )
        self._manager = self._model.init_continuous_batching(
            generation_config=greedy, continuous_batching_config=config
        )
        self._manager.warmup()
        self._manager.start()
        self._collector = threading.Thread(target=self._collect, args=[self._manager], daemon=True)
        self._collector.start()

    def _end_session(self) -> None:
        """Stop at once: the library hands over what it has of each reply."""
        if self._manager is None:
            return
        self._manager.stop(hard_stop=True)
        if self._collector is not None:
            self._collector.join()
        self._manager = self._collector = None
        for reply in self._replies.values():
            self._answer(reply, self._why(reply, None))
        self._replies.clear()

    def _collect(self, manager: Any) -> None:
        for output in manager:
            self._over(output)
        while (output := manager.get_result(timeout=0)) is not None:
            self._over(output)

    def _over(self, output: Any) -> None:
        reply = self._replies[output.request_id]
        # Seconds of perf_counter, on POSIX systems the same clock as monotonic.
        stamps = [int(at_s * 1e9) for at_s in output.timestamps]
        reply.events[:] = zip(stamps, output.generated_tokens, strict=False)
        if reply.events and reply.events[-1][1] in reply.ends:
            reply.events.pop()
            reply.ended = True
        reply.begun_ns = max(0, int(output.lifespan[0] * 1e9))
        self._answer(reply, "" if reply.complete else self._why(reply, output.error))
        del self._replies[output.request_id]  # only now: whoever waits for none left may go on

    def _why(self, reply: Reply, error: str | None) -> str:
        if reply.era != self._era:
            return "cancelled"
        return error or "the library lost some of its tokens"


class Rehearsal(Job):
    """A job of our own, whose answers go nowhere. ``over`` is set once all are there."""

    def __init__(self, prompts: list[str]) -> None:
        asked = {"api": "completions", "prompts": prompts, "max_tokens": 2, "exact": True}
        super().__init__({"id": 0, **asked}, monotonic_ns())
        self.error = ""
        self.over = threading.Event()
        self._left = len(prompts)

    def done(self, sequence: int, *, error: str = "", **_: Any) -> None:
        self.error = self.error or error
        self._left -= 1
        if not self._left:
            self.over.set()


class Stamper:
    """What ``generate`` calls a streamer: it is given the prompts, then each step's tokens."""

    def __init__(self, replies: list[Reply]) -> None:
        self._replies = replies
        self._begun = False

    def put(self, tokens: Any) -> None:
        if not self._begun:
            self._begun = True
            return
        for reply, token in zip(self._replies, tokens.tolist(), strict=True):
            if reply.complete:
                continue
            if token in reply.ends:
                reply.ended = True
            else:
                reply.job.stamp(reply.sequence, token)

    def end(self) -> None:
        pass


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a reply, as the model's authors name them."""
    named = (model.generation_config, model.config, tokenizer)
    for ids in (getattr(each, "eos_token_id", None) for each in named):
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def _reader(tokenizer: Any) -> Callable[[int], tuple[int, str]]:
    """Makes text of one token after the other, of as few tokens before it as it takes.

    A token may end within a character: its text then comes with the token that completes it.
    """
    ids: list[int] = []
    start = end = 0

    def read(token: int) -> tuple[int, str]:
        nonlocal start, end
        ids.append(token)
        before = tokenizer.decode(ids[start:end], skip_special_tokens=True)
        text = tokenizer.decode(ids[start:], skip_special_tokens=True)
        if text.endswith("\ufffd"):
            return 1, ""
        start, end = end, len(ids)
        return 1, text[len(before) :]

    return read
