"""How llmbench talks to an engine in a process of its own: lines of JSON on stdin and stdout.

The first line in is the options (``Options``); the first line out is ``{"ready": FACTS}`` or
``{"error": WORDS}``. Then, each with an ``id`` that its answers repeat:

    in   {"op": "generate", "id", "api", "prompts": [...], "max_tokens", "exact"}
    out  {"id", "sequence", "received_ns", "events": [[at_ns, tokens, text], ...],
          "prompt_tokens", "finish", "stages": {"prefill_ms": ...}, "error"}   one a prompt
    in   {"op": "count", "id", "api", "prompt"}     out  {"id", "prompt_tokens"} or {"id", "error"}
    in   {"op": "cancel"}                           ends all calls, each answered with what it has

A prompt is a text or, where ``api`` is ``chat``, a list of messages (``{"role", "content"}``). A
reply is of exactly ``max_tokens`` tokens where ``exact`` is true, end token or not; else it stops
where the model ends it, after ``max_tokens`` at the latest. ``finish`` says which: ``length`` or
``stop``. The end token is in no event: it is counted nowhere.

Nothing is sent while tokens are being made: a call is answered when it is over, with the stamps
that were taken as each token came to be. All stamps are ``time.monotonic_ns()``, which every
process of a machine shares. The process ends with its stdin: a parent that is killed takes it
along.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, monotonic_ns
from typing import Any, Protocol


class Refused(Exception):  # noqa: N818 - it is the engine that refuses
    """The engine cannot do what was asked: one line that says what is wrong and what is right."""


Message = dict[str, str]
"""What somebody says in a conversation: ``role`` and ``content``."""

Prompt = str | list[Message]
"""A text, or the messages of a conversation."""


def conversation(prompt: Prompt) -> list[Message]:
    """The messages of ``prompt``: a text is what a user says."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    # Some engines would go on with the model's own last words, others answer them.
    if not messages or messages[-1]["role"] == "assistant":
        raise Refused("the last message of a conversation has to be one for the model to answer")
    return messages


def plain(prompt: Prompt) -> str:
    """The text of ``prompt``, which may not be messages."""
    if not isinstance(prompt, str):
        raise Refused("messages are for the chat API alone: completions take a text")
    return prompt


def words_of(problem: Exception) -> str:
    """What went wrong, in the words that the user gets."""
    return str(problem) if isinstance(problem, Refused) else f"{type(problem).__name__}: {problem}"


@dataclass(frozen=True)
class Options:
    """What to load and how. An engine raises ``Refused`` for an option that it does not have.

    ``parallel`` is the most prompts that will be in flight at once, ``context`` the most tokens of
    prompt and reply together, a sequence. What is ``None`` is left to the engine.
    """

    model: str
    parallel: int = 1
    context: int = 512
    dtype: str | None = None
    quantization: str | None = None
    device: str | None = None
    threads: int | None = None
    max_model_len: int | None = None


@dataclass
class Facts:
    """What was loaded. ``quantization`` is the precision of the weights in the words of the field
    (``fp32``, ``bf16``, ``int8``, ``Q8_0``); ``versions`` are those of the libraries that matter.

    ``load_s`` is how long loading took, ``first_token_s`` how long the first reply's first token
    took after that, when nothing was warm: an engine makes one short reply before it is ready.
    ``weights_bytes`` is the size of the weights in memory.
    """

    engine: str
    model: str
    quantization: str | None = None
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)
    load_s: float = 0.0
    first_token_s: float | None = None
    weights_bytes: int | None = None


class Job:
    """One call: one prompt, or several that run as one static batch.

    ``received_ns`` is when the engine was asked. An engine calls ``stamp`` as soon as tokens exist,
    and ``done`` (or ``failed``) once for each prompt.
    """

    def __init__(self, message: dict[str, Any], received_ns: int) -> None:
        self.received_ns = received_ns
        self.api: str = message["api"]
        self.prompts: list[Prompt] = message["prompts"]
        self.max_tokens: int = message["max_tokens"]
        self.exact: bool = message["exact"]
        self.events: list[list[tuple[int, Any]]] = [[] for _ in self.prompts]
        self._id: int = message["id"]

    def stamp(self, sequence: int, made: Any) -> None:
        """Note that tokens of prompt ``sequence`` exist now. ``made`` is whatever tells which, for
        ``done`` to make text of: nothing is decoded while tokens are timed. Not for an end token
        that the reply stops at."""
        self.events[sequence].append((monotonic_ns(), made))

    def done(
        self,
        sequence: int,
        *,
        prompt_tokens: int,
        text: Callable[[Any], tuple[int, str]],
        finish: str = "length",
        stages: dict[str, float] | None = None,
        error: str = "",
    ) -> None:
        """Answer for one prompt. ``text`` makes ``(tokens, text)`` of what each stamp was given.

        ``stages`` are milliseconds by name, as far as the engine knows: ``tokenize_ms``,
        ``queue_ms``, ``prefill_ms``, ``decode_ms``, which ends with the last stamp. ``error`` is
        ``cancelled`` or one line.
        """
        send(
            {
                "id": self._id,
                "sequence": sequence,
                "received_ns": self.received_ns,
                "events": [(at_ns, *text(made)) for at_ns, made in self.events[sequence]],
                "prompt_tokens": prompt_tokens,
                "finish": finish,
                "stages": stages or {},
                "error": error,
            }
        )

    def failed(self, sequence: int, why: str) -> None:
        """Answer that the engine failed on one prompt, in one line."""
        line = " ".join(why.split())[:300]
        self.done(sequence, prompt_tokens=0, text=lambda _: (0, ""), finish="", error=line)


class Engine(Protocol):
    """A loaded engine. ``submit`` and ``cancel`` return at once; the work is on other threads."""

    facts: Facts

    def count(self, api: str, prompt: Prompt) -> int:
        """How many tokens ``prompt`` is to the model, chat template included where ``api`` is
        ``chat``."""

    def submit(self, job: Job) -> None:
        """Begin ``job``: greedy, and of ``max_tokens`` tokens, end token or not, if ``exact``."""

    def cancel(self) -> None:
        """End all that is running; each prompt is answered with ``error="cancelled"``."""


_out_lock = threading.Lock()
_out: Any = None


def send(message: dict[str, Any]) -> None:
    """Write one line, whichever thread calls."""
    line = json.dumps(message, separators=(",", ":")) + "\n"
    with _out_lock:
        _out.write(line)
        _out.flush()


def serve(load: Callable[[Options], Engine]) -> None:
    """Load an engine by the options on stdin, and answer calls until stdin ends."""
    global _out
    # A terminal's Ctrl-C is the parent's to handle: it may still want what is running.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to the log
    lines = sys.stdin.buffer
    options = Options(**json.loads(lines.readline()))
    lives = threading.Event()
    threading.Thread(target=_watch_parent, args=(os.getppid(), lives), daemon=True).start()
    began_s = monotonic()
    try:
        engine = load(options)
    except Refused as problem:
        send({"error": str(problem)})
        os._exit(1)
    except Exception as problem:  # whatever a library raises, the user gets one line of it
        words = " ".join(str(problem).split()) or type(problem).__name__
        send({"error": f"{type(problem).__name__}: {words}"[:300]})
        raise
    engine.facts.load_s = engine.facts.load_s or monotonic() - began_s
    send({"ready": engine.facts.__dict__})
    for line in lines:
        received_ns = monotonic_ns()
        _answer(engine, json.loads(line), received_ns)
    os._exit(0)


def _answer(engine: Engine, message: dict[str, Any], received_ns: int) -> None:
    match message["op"]:
        case "generate":
            job = Job(message, received_ns)
            try:
                engine.submit(job)
            except Exception as problem:
                for sequence in range(len(job.prompts)):
                    job.failed(sequence, words_of(problem))
        case "count":
            try:
                tokens = engine.count(message["api"], message["prompt"])
            except Exception as problem:
                send({"id": message["id"], "error": words_of(problem)[:300]})
            else:
                send({"id": message["id"], "prompt_tokens": tokens})
        case "cancel":
            engine.cancel()


def _watch_parent(parent: int, lives: threading.Event) -> None:
    """End with the parent also while loading, when nobody reads stdin."""
    while not lives.wait(1.0):
        if os.getppid() != parent:
            os._exit(0)
