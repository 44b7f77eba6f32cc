"""onnxruntime-genai: an exported model, in static batches.

Whatever waits when a batch ends runs as the next one: each sequence to its own length or end, the
batch to the longest. (The library's Engine does no better with such models: what it is given while
a batch runs also waits, and batches that change as they run need paged attention, which is CUDA's
alone.) End tokens are forbidden to a whole batch or to none of it: replies of an exact length and
those that stop by themselves run in batches of their own.

The library's Python binding holds the interpreter's lock while it computes. A request that came
meanwhile would be noted only when the token, or the whole prefill, is done, and look faster than it
was. So the C API below it is called, through ctypes, which holds no lock.
"""

import ctypes
import json
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from time import monotonic, monotonic_ns
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

PROVIDERS = {"cpu": None, "cuda": "cuda"}

# Clients whose replies ended together ask again at nearly the same moment. Without a short wait for
# them, the first back would run alone, and all others after it.
GATHER_S = 0.01  # after the last batch ended

Step = list[int]
"""The token that each sequence of a batch was given, in their order."""


def load(options: Options) -> Engine:
    """Load the directory ``options.model`` and make one short reply with it."""
    began_s = monotonic()
    folder = Path(options.model)
    config = _read_config(folder, options)
    try:
        api = _Api()
    except ImportError as problem:
        raise Refused("the onnx engine needs its extra: pip install 'llmbench[onnx]'") from problem
    try:
        model = _Model(api, folder, options)
    except RuntimeError as problem:
        raise Refused(f"onnxruntime-genai cannot load {folder}: {problem}") from problem
    loaded_s = monotonic()
    with closing(model.steps([model.encode("completions", "Hello")], 2, exact=True)) as steps:
        next(steps)
    files = sorted(file for file in folder.iterdir() if ".onnx" in file.name)
    facts = Facts(
        engine=f"onnxruntime-genai {api.version}",
        model=folder.resolve().name,
        quantization=_precision(folder / config["model"]["decoder"]["filename"]),
        device=model.device,
        versions={"onnxruntime-genai": api.version, **_versions("onnxruntime", "onnxruntime-gpu")},
        load_s=loaded_s - began_s,
        first_token_s=monotonic() - loaded_s,
        weights_bytes=sum(file.stat().st_size for file in files),
    )
    limit = options.max_model_len or config["model"]["context_length"]
    return Onnx(model, facts, options.parallel, limit, _ends(config))


class Onnx:
    """The engine: one thread that runs batches, of up to ``parallel`` prompts."""

    def __init__(
        self, model: "_Model", facts: Facts, parallel: int, limit: int, ends: frozenset[int]
    ) -> None:
        self.facts = facts
        self._model = model
        self._parallel = parallel
        self._limit = limit
        self._ends = ends
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._stopped = False
        self._expected = 1
        self._ended_s = 0.0
        threading.Thread(target=self._work, daemon=True).start()

    def count(self, api: str, prompt: Prompt) -> int:
        return len(self._model.encode(api, prompt))

    def submit(self, job: Job) -> None:
        if not job.exact and not self._ends:
            raise Refused("no reply can stop by itself: the genai_config.json has no eos_token_id")
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self) -> None:
        with self._changed:
            waiting, self._waiting = self._waiting, []
            self._stopped = True
        for job in waiting:
            for sequence in range(len(job.prompts)):
                _Row(job, sequence).answer(self._model)

    def _work(self) -> None:
        while True:
            jobs = self._next_batch()
            rows = [_Row(job, sequence) for job in jobs for sequence in range(len(job.prompts))]
            try:
                self._run(rows)
            except Exception as problem:  # the library's own, or memory: the next batch may do
                for row in rows:
                    row.error = row.error or f"onnxruntime-genai: {problem}"
            with self._changed:
                self._expected = min(len(rows) + len(self._waiting), self._parallel)
            for row in rows:
                row.answer(self._model)
            self._ended_s = monotonic()

    def _next_batch(self) -> list[Job]:
        """Wait for work: one job of several prompts, or all jobs of one that may run together."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            self._changed.wait_for(self._gathered, self._ended_s + GATHER_S - monotonic())
            self._changed.wait_for(lambda: self._waiting)  # those may have been cancelled
            exact = self._waiting[0].exact
            alike = [len(job.prompts) == 1 and job.exact == exact for job in self._waiting]
            taken = max(1, min([*alike, False].index(False), self._parallel))
            batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
            self._stopped = False
            return batch

    def _gathered(self) -> bool:
        """Whether all that may be expected are there, or some that run by themselves anyway."""
        alone = any(len(job.prompts) > 1 for job in self._waiting)
        return alone or len(self._waiting) >= self._expected

    def _run(self, rows: "list[_Row]") -> None:
        for row in rows:
            row.encode(self._model)
        rows = [row for row in rows if row.fits(self._limit)]
        if not rows:
            return
        exact = rows[0].job.exact
        ends: frozenset[int] = frozenset() if exact else self._ends
        tokens = max(row.job.max_tokens for row in rows)
        steps = self._model.steps([row.prompt for row in rows], tokens, exact)
        with closing(steps):
            for step in steps:
                for row, token in zip(rows, step, strict=True):
                    row.take(token, ends)
                if self._stopped or all(row.over for row in rows):
                    return


class _Row:
    """One prompt on its way through a batch."""

    def __init__(self, job: Job, sequence: int) -> None:
        self.job = job
        self.sequence = sequence
        self.prompt: list[int] = []
        self.error = ""
        self._ended = False
        self._began_ns = self._encoded_ns = 0

    @property
    def over(self) -> bool:
        return self._ended or len(self.job.events[self.sequence]) >= self.job.max_tokens

    def encode(self, model: "_Model") -> None:
        self._began_ns = monotonic_ns()
        try:
            self.prompt = model.encode(self.job.api, self.job.prompts[self.sequence])
        except Exception as problem:  # such as the chat template's own: the others may do
            self.error = words_of(problem)
        self._encoded_ns = monotonic_ns()

    def fits(self, limit: int) -> bool:
        """Whether it may run; ``error`` says why not."""
        wanted = len(self.prompt) + self.job.max_tokens
        if not self.error and wanted > limit:
            self.error = f"{wanted} tokens of prompt and reply are more than the model's {limit}"
        return not self.error

    def take(self, token: int, ends: frozenset[int]) -> None:
        """Note the token of a step. Once it is over, there is nothing more to note."""
        if self.over:
            return
        if token in ends:
            self._ended = True
        else:
            self.job.stamp(self.sequence, token)

    def answer(self, model: "_Model") -> None:
        """Send what there is: all of it, what was made until it was cancelled, or an error."""
        if self.error:
            self.job.failed(self.sequence, self.error)
            return
        with model.text() as text:
            self.job.done(
                self.sequence,
                prompt_tokens=len(self.prompt),
                text=text,
                finish=self._finish(),
                stages=self._stages(),
                error="" if self.over else "cancelled",
            )

    def _finish(self) -> str:
        if self._ended:
            return "stop"
        return "length" if self.over else ""

    def _stages(self) -> dict[str, float]:
        events = self.job.events[self.sequence]
        if not events:
            return {}
        first_ns, last_ns = events[0][0], events[-1][0]
        return {
            "queue_ms": (self._began_ns - self.job.received_ns) / 1e6,
            "tokenize_ms": (self._encoded_ns - self._began_ns) / 1e6,
            "prefill_ms": (first_ns - self._encoded_ns) / 1e6,
            "decode_ms": (last_ns - first_ns) / 1e6,
        }


class _Model:
    """A loaded model and its tokenizer."""

    def __init__(self, api: "_Api", folder: Path, options: Options) -> None:
        self._api = api
        with api.made("Config", str(folder).encode()) as config:
            if options.threads is not None:
                session = {"intra_op_num_threads": options.threads}
                overlay = {"model": {"decoder": {"session_options": session}}}
                api.call("OgaConfigOverlay", config, json.dumps(overlay).encode())
            if options.device is not None:
                api.call("OgaConfigClearProviders", config)
                if provider := PROVIDERS[options.device]:
                    api.call("OgaConfigAppendProvider", config, provider.encode())
            self._model = api.create("OgaCreateModelFromConfig", config)
        self._tokenizer = api.create("OgaCreateTokenizer", self._model)
        self.device = api.text("OgaModelGetDeviceType", self._model).lower()

    def encode(self, api: str, prompt: Prompt) -> list[int]:
        """The tokens of ``prompt``, in the model's chat template where ``api`` is ``chat``."""
        if api == "chat":
            messages = json.dumps(conversation(prompt)).encode()
            template = (self._tokenizer, None, messages, None, ctypes.c_bool(True))
            text = self._api.text("OgaTokenizerApplyChatTemplate", *template)
        else:
            text = plain(prompt)
        with self._api.made("Sequences") as found:
            self._api.call("OgaTokenizerEncode", self._tokenizer, text.encode(), found)
            return self._api.sequence(found, 0)

    def steps(
        self, prompts: Sequence[list[int]], tokens: int, exact: bool
    ) -> Generator[Step, None, None]:
        """Run ``prompts`` as one batch, greedily, for ``tokens`` steps. No end token is made if
        ``exact``; else whatever follows one is padding, and none may be asked for after the last
        sequence's."""
        api = self._api
        longest = max(map(len, prompts)) + tokens
        with (
            api.made("Sequences") as batch,
            api.made("GeneratorParams", self._model) as params,
        ):
            for prompt in prompts:
                ids = (ctypes.c_int32 * len(prompt))(*prompt)
                api.call("OgaAppendTokenSequence", ids, ctypes.c_size_t(len(prompt)), batch)
            least = longest if exact else 0
            numbers = {"batch_size": len(prompts), "max_length": longest, "min_length": least}
            for name, number in numbers.items():
                value = ctypes.c_double(number)
                api.call("OgaGeneratorParamsSetSearchNumber", params, name.encode(), value)
            greedy = (params, b"do_sample", ctypes.c_bool(False))
            api.call("OgaGeneratorParamsSetSearchBool", *greedy)
            with api.made("Generator", self._model, params) as generator:
                api.call("OgaGenerator_AppendTokenSequences", generator, batch)
                for _ in range(tokens):
                    api.call("OgaGenerator_GenerateNextToken", generator)
                    yield api.next_tokens(generator)

    @contextmanager
    def text(self) -> Iterator[Callable[[int], tuple[int, str]]]:
        """What makes text of one sequence's tokens, given one after the other."""
        with self._api.made("TokenizerStream", self._tokenizer) as stream:
            yield lambda token: (1, self._api.piece(stream, token))


class _Api:
    """The library's C functions. Each returns a result, which holds an error or is null."""

    def __init__(self) -> None:
        import onnxruntime_genai  # also loads the libraries that the one below needs

        self.version: str = onnxruntime_genai.__version__
        (path,) = Path(onnxruntime_genai.__file__).parent.glob("libonnxruntime-genai.*")
        self._library = ctypes.CDLL(str(path))
        self._library.OgaResultGetError.restype = ctypes.c_char_p
        self._library.OgaSequencesGetSequenceCount.restype = ctypes.c_size_t
        self._library.OgaSequencesGetSequenceData.restype = ctypes.POINTER(ctypes.c_int32)

    def call(self, name: str, *args: Any) -> None:
        function = self._library[name]
        function.restype = ctypes.c_void_p
        if result := function(*args):
            error = ctypes.c_void_p(result)
            words = self._library.OgaResultGetError(error).decode(errors="replace")
            self._library.OgaDestroyResult(error)
            raise RuntimeError(words)

    def create(self, name: str, *args: Any) -> ctypes.c_void_p:
        """Call a function whose last argument is where it leaves a handle."""
        handle = ctypes.c_void_p()
        self.call(name, *args, ctypes.byref(handle))
        return handle

    @contextmanager
    def made(self, kind: str, *args: Any) -> Iterator[ctypes.c_void_p]:
        """An object of the library's for as long as it is entered."""
        handle = self.create(f"OgaCreate{kind}", *args)
        try:
            yield handle
        finally:
            self._library[f"OgaDestroy{kind}"](handle)

    def text(self, name: str, *args: Any) -> str:
        """Call a function whose last argument is where it leaves a string that is ours to free."""
        handle = self.create(name, *args)
        try:
            return ctypes.string_at(handle).decode(errors="replace")
        finally:
            self._library.OgaDestroyString(handle)

    def sequence(self, sequences: ctypes.c_void_p, index: int) -> list[int]:
        place = sequences, ctypes.c_size_t(index)
        length = self._library.OgaSequencesGetSequenceCount(*place)
        data: list[int] = self._library.OgaSequencesGetSequenceData(*place)[:length]
        return data

    def next_tokens(self, generator: ctypes.c_void_p) -> Step:
        data, length = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t()
        places = ctypes.byref(data), ctypes.byref(length)
        self.call("OgaGenerator_GetNextTokens", generator, *places)
        return data[: length.value]

    def piece(self, stream: ctypes.c_void_p, token: int) -> str:
        """The text that ``token`` adds; the string stays the stream's."""
        handle = self.create("OgaTokenizerStreamDecode", stream, ctypes.c_int32(token))
        return ctypes.string_at(handle).decode(errors="replace")


def _read_config(folder: Path, options: Options) -> dict[str, Any]:
    """The model's configuration. Raises ``Refused`` where it or an option will not do."""
    try:
        config: dict[str, Any] = json.loads((folder / "genai_config.json").read_bytes())
        context, file = config["model"]["context_length"], config["model"]["decoder"]["filename"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise Refused(
            f"no onnxruntime-genai model in {folder} (its genai_config.json cannot be read): "
            "make one with `llmbench models onnx HF_DIRECTORY --out DIR`"
        ) from problem
    if not (folder / file).is_file():
        raise Refused(f"{folder} has no {file}, which its genai_config.json names")
    for name in ("dtype", "quantization"):
        if value := getattr(options, name):
            raise Refused(
                f"the onnx engine has no option {name} ({value}): a model's precision is set "
                "when it is exported, by `llmbench models onnx --precision`"
            )
    if options.device is not None and options.device not in PROVIDERS:
        raise Refused(f"the onnx engine's device is {' or '.join(PROVIDERS)}, not {options.device}")
    if options.max_model_len is not None and options.max_model_len > context:
        raise Refused(f"max_model_len {options.max_model_len} is more than the model's {context}")
    return config


def _ends(config: dict[str, Any]) -> frozenset[int]:
    """The tokens that end a reply, as the model's configuration names them."""
    named = config["model"].get("eos_token_id", [])
    return frozenset([named] if isinstance(named, int) else named)


def _versions(*packages: str) -> dict[str, str]:
    """Those of ``packages`` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# ── the precision of an ONNX file: just enough of protocol buffers ───────────────────────────────

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_ATTRIBUTE, _ATTRIBUTE_NAME, _ATTRIBUTE_INT = 5, 1, 3
_TENSOR_DIMENSION, _TENSOR_TYPE = 1, 2
_FLOATS = {1: "fp32", 10: "fp16", 16: "bf16"}


def _precision(path: Path) -> str | None:
    """``int4`` where weights are blocks of 4 bits, else the kind of float that most weights are."""
    bits: set[int] = set()
    floats: Counter[str] = Counter()
    for graph in _each(memoryview(path.read_bytes()), _MODEL_GRAPH):
        for node in _each(graph, _GRAPH_NODE):
            for attribute in _each(node, _NODE_ATTRIBUTE):
                if next(_each(attribute, _ATTRIBUTE_NAME), b"") == b"bits":
                    bits.update(_each(attribute, _ATTRIBUTE_INT))
        for tensor in _each(graph, _GRAPH_INITIALIZER):
            kind = _FLOATS.get(next(_each(tensor, _TENSOR_TYPE), 0))
            if kind is not None:
                floats[kind] += prod(_each(tensor, _TENSOR_DIMENSION))
    if bits:
        return "+".join(f"int{each}" for each in sorted(bits))
    return floats.most_common(1)[0][0] if floats else None


def _each(message: memoryview, wanted: int) -> Iterator[Any]:
    """The values of a message's field ``wanted``: numbers, or the bytes of what is in it."""
    at = 0
    value: Any
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
            case 2:
                length, at = _varint(message, at)
                value, at = message[at : at + length], at + length
            case fixed:
                at += 4 if fixed == 5 else 8
                continue
        if key >> 3 == wanted:
            yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
