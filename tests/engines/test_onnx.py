"""onnxruntime-genai in a process of its own, talked to as llmbench talks to it. Needs a model:

LLMBENCH_TEST_ONNX=DIRECTORY pytest tests/engines/test_onnx.py
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmbench.hosts.onnx import _precision

HOSTS = Path(__file__).parents[2] / "llmbench" / "hosts"
PROMPT = "What is a ruler good for?"
TALK = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "Say only: hi"},
]

Message = dict[str, Any]
Prompt = str | list[dict[str, str]]


class Host:
    """The process, and its lines."""

    def __init__(self, log: Path, flags: Sequence[str] = (), **options: Any) -> None:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *flags, str(HOSTS), "onnx"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=env,
            )
        self.log = log
        self._asked = 0
        self.tell(options)
        self.first = self.line()

    def tell(self, message: Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def line(self) -> Message:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the host has ended:\n{self.log.read_text()[-3000:]}"
        message: Message = json.loads(line)
        return message

    def ask(self, op: str, **fields: Any) -> int:
        self._asked += 1
        self.tell({"op": op, "id": self._asked, **fields})
        return self._asked

    def start(self, *prompts: Prompt, tokens: int, api: str = "chat", exact: bool = True) -> int:
        wanted = {"prompts": prompts, "max_tokens": tokens, "exact": exact}
        return self.ask("generate", api=api, **wanted)

    def answers(self, *asked: int) -> list[Message]:
        """One answer to each of the calls ``asked``, in that order, in whichever they came."""
        found = {message["id"]: message for message in (self.line() for _ in asked)}
        return [found[each] for each in asked]

    def reply(self, prompt: Prompt, tokens: int, api: str = "chat", exact: bool = True) -> Message:
        (answer,) = self.answers(self.start(prompt, tokens=tokens, api=api, exact=exact))
        return answer

    def count(self, prompt: Prompt, api: str = "chat") -> int:
        (answer,) = self.answers(self.ask("count", api=api, prompt=prompt))
        tokens: int = answer["prompt_tokens"]
        return tokens

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture(scope="module")
def folder() -> Path:
    name = os.environ.get("LLMBENCH_TEST_ONNX")
    assert name, "set LLMBENCH_TEST_ONNX to a directory that `llmbench models onnx` made"
    return Path(name)


@pytest.fixture(scope="module")
def host(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    log = tmp_path_factory.mktemp("onnx") / "log"
    host = Host(log, model=str(folder), parallel=4, context=512)
    yield host
    host.kill()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Start a host of the test's own."""
    hosts: list[Host] = []

    def start(model: Path, flags: Sequence[str] = (), **options: Any) -> Host:
        hosts.append(Host(tmp_path / f"log{len(hosts)}", flags, model=str(model), **options))
        return hosts[-1]

    yield start
    for host in hosts:
        host.kill()


def text_of(answer: Message) -> str:
    return "".join(text for _, _, text in answer["events"])


def span(answer: Message) -> tuple[int, int]:
    return answer["events"][0][0], answer["events"][-1][0]


def check_whole(answer: Message, tokens: int, finish: str = "length") -> None:
    assert answer["error"] == ""
    assert answer["finish"] == finish
    assert [count for _, count, _ in answer["events"]] == [1] * tokens
    stamps = [at_ns for at_ns, _, _ in answer["events"]]
    assert stamps == sorted(stamps)
    assert answer["received_ns"] <= stamps[0]
    assert set(answer["stages"]) == {"queue_ms", "tokenize_ms", "prefill_ms", "decode_ms"}
    assert all(stage_ms >= 0 for stage_ms in answer["stages"].values())
    total_ms = (stamps[-1] - answer["received_ns"]) / 1e6
    assert sum(answer["stages"].values()) <= total_ms + 1e-6


def test_it_says_what_it_loaded(host: Host, folder: Path) -> None:
    facts = host.first["ready"]
    versions = facts["versions"]
    assert facts["engine"] == f"onnxruntime-genai {versions['onnxruntime-genai']}"
    assert "onnxruntime" in versions or "onnxruntime-gpu" in versions
    assert facts["model"] == folder.resolve().name
    assert facts["quantization"] in {"fp32", "fp16", "bf16", "int8", "int4"}
    assert facts["device"] in {"cpu", "cuda"}
    assert facts["weights_bytes"] == sum(file.stat().st_size for file in folder.glob("*.onnx*"))
    assert facts["load_s"] > 0
    assert facts["first_token_s"] > 0


@pytest.mark.parametrize("tokens", [1, 2, 70])
def test_a_reply_has_exactly_the_tokens_asked_for(host: Host, tokens: int) -> None:
    answer = host.reply(PROMPT, tokens)
    check_whole(answer, tokens)
    assert text_of(answer)


def test_the_end_token_is_passed_over(host: Host) -> None:
    check_whole(host.reply("Reply with the one word yes and nothing else.", 120), 120)


def test_a_reply_may_stop_by_itself(host: Host) -> None:
    whole = host.reply(TALK, 30)
    stopped = host.reply(TALK, 30, exact=False)
    made = len(stopped["events"])
    assert 0 < made < 30
    check_whole(stopped, made, "stop")
    assert text_of(whole).startswith(text_of(stopped))
    check_whole(host.reply(TALK, made, exact=False), made, "length")
    check_whole(host.reply(TALK, made + 1, exact=False), made, "stop")


def test_the_others_of_a_batch_go_on(host: Host) -> None:
    """Also those that wait: what is of an exact length runs apart from what may stop."""
    batch = host.start(TALK, PROMPT, tokens=30, exact=False)
    waiting = [host.start(TALK, tokens=30, exact=exact) for exact in (False, True, False)]
    lines = [host.line() for _ in range(5)]
    stopped, whole = (line for line in lines if line["id"] == batch)
    check_whole(stopped, len(stopped["events"]), "stop")
    check_whole(whole, 30)
    assert span(stopped)[1] < span(whole)[1]
    found = {line["id"]: line["finish"] for line in lines if line["id"] != batch}
    assert [found[each] for each in waiting] == ["stop", "length", "stop"]


def test_messages_are_a_conversation(host: Host) -> None:
    counted = host.count(TALK)
    assert counted > host.count(TALK[-1]["content"]) == host.count(TALK[-1:])
    answer = host.reply(TALK, 5)
    check_whole(answer, 5)
    assert answer["prompt_tokens"] == counted


def test_what_is_no_conversation_fails_alone(host: Host) -> None:
    asked = [host.start(PROMPT, tokens=9), host.start(TALK[:2], tokens=2)]
    asked += [host.start(PROMPT, tokens=2), host.start(TALK, tokens=2, api="completions")]
    first, unanswerable, third, no_text = host.answers(*asked)
    assert unanswerable["error"].startswith("the last message of a conversation has to be")
    assert no_text["error"].startswith("messages are for the chat API alone")
    check_whole(first, 9)
    check_whole(third, 2)


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("prompt", [PROMPT, "äöü 🐈\n\n" * 5, "<|im_end|> 2026"])
def test_count_equals_prompt_tokens(host: Host, api: str, prompt: str) -> None:
    assert host.count(prompt, api) == host.reply(prompt, 1, api)["prompt_tokens"]


def test_the_chat_template_is_counted(host: Host) -> None:
    assert host.count(PROMPT, "chat") > host.count(PROMPT, "completions") > 0


def test_the_same_prompt_gets_the_same_reply(host: Host) -> None:
    first, second = host.reply(PROMPT, 24), host.reply(PROMPT, 24)
    assert text_of(first) == text_of(second)


def test_requests_that_wait_run_together_each_to_its_own_length(host: Host) -> None:
    first = host.start(PROMPT, PROMPT, tokens=30)  # which lets nobody join
    lengths = [5, 40, 20]
    asked = [host.start(f"{PROMPT} {length}", tokens=length) for length in lengths]
    running, *waited = host.answers(first, first, *asked)[1:]
    check_whole(running, 30)
    for answer, length in zip(waited, lengths, strict=True):
        check_whole(answer, length)
        assert span(answer)[0] > span(running)[1]
    starts, ends = zip(*map(span, waited), strict=True)
    assert max(starts) < min(ends)
    assert ends[0] < ends[2] < ends[1]


def test_no_more_run_together_than_it_was_told(host: Host) -> None:
    asked = [host.start(PROMPT, tokens=12) for _ in range(9)]
    spans = sorted(span(answer) for answer in host.answers(*asked))
    for start, _ in spans:
        assert sum(begin <= start <= end for begin, end in spans) <= 4


def test_several_prompts_are_exactly_one_batch(host: Host) -> None:
    before = host.start(PROMPT, tokens=30)
    prompts = [
        "One",
        "What is the capital of France? Tell me in a sentence.",
        PROMPT,
        "A",
        "B",
        "C",
    ]
    batch = host.start(*prompts, tokens=9, api="completions")
    after = host.start(PROMPT, tokens=3)
    lines = [host.line() for _ in range(8)]
    (first,) = (line for line in lines if line["id"] == before)
    (last,) = (line for line in lines if line["id"] == after)
    rows = [line for line in lines if line["id"] == batch]
    assert [row["sequence"] for row in rows] == list(range(6))
    for row, prompt in zip(rows, prompts, strict=True):
        check_whole(row, 9)
        assert row["prompt_tokens"] == host.count(prompt, "completions")
        assert span(first)[1] < span(row)[0]
        assert span(row)[1] < span(last)[0]
    steps = [[row["events"][step][0] for row in rows] for step in range(9)]
    for step, following in pairwise(steps):
        assert max(step) < min(following)


def test_padding_does_not_change_a_reply(host: Host) -> None:
    """The first token at least: later ones may differ where sums are taken in another order."""
    prompts = ["One two three", "Water is " * 12, "The capital of France is"]
    asked = host.start(*prompts, tokens=1, api="completions")
    rows = [host.line() for _ in prompts]
    assert {row["id"] for row in rows} == {asked}
    alone = [host.reply(prompt, 1, "completions") for prompt in prompts]
    assert [text_of(row) for row in rows] == [text_of(answer) for answer in alone]


def test_it_listens_while_it_computes(host: Host) -> None:
    """What comes during a prefill must be stamped when it comes: the interpreter is not held."""
    long = host.start("ruler " * 1500, tokens=1, api="completions")
    counted = host.ask("count", api="completions", prompt="One")
    assert [host.line()["id"], host.line()["id"]] == [counted, long]


def test_cancel_ends_what_runs_and_what_waits(host: Host) -> None:
    asked = [host.start(PROMPT, tokens=4000)]
    asked += [host.start(PROMPT, tokens=4000) for _ in range(5)]
    host.tell({"op": "cancel"})
    for answer in host.answers(*asked):
        assert answer["error"] == "cancelled"
        assert answer["finish"] == ""
        assert len(answer["events"]) < 4000
    check_whole(host.reply(PROMPT, 5), 5)


def test_what_is_too_long_fails_alone(host: Host) -> None:
    asked = [host.start(PROMPT, tokens=tokens) for tokens in (30, 4, 10**6, 6)]
    first, second, long, fourth = host.answers(*asked)
    assert "are more than the model's" in long["error"]
    assert long["events"] == []
    for answer, tokens in zip((first, second, fourth), (30, 4, 6), strict=True):
        check_whole(answer, tokens)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"dtype": "bfloat16"}, "no option dtype (bfloat16)"),
        ({"quantization": "int4"}, "no option quantization (int4)"),
        ({"device": "tpu"}, "device is cpu or cuda, not tpu"),
        ({"max_model_len": 10**9}, "max_model_len 1000000000 is more than the model's"),
    ],
)
def test_an_option_it_cannot_honour_is_one_line(
    folder: Path, begin: Callable[..., Host], option: Message, words: str
) -> None:
    host = begin(folder, **option)
    assert words in host.first["error"]
    assert "\n" not in host.first["error"]
    assert host.process.wait(30) == 1


def test_threads_device_and_length_are_honoured(folder: Path, begin: Callable[..., Host]) -> None:
    options = {"threads": 1, "device": "cpu", "max_model_len": 40}
    host = begin(folder, **options)
    assert host.first["ready"]["device"] == "cpu"
    check_whole(host.reply("One", 5, "completions"), 5)
    status = Path(f"/proc/{host.process.pid}/status").read_text()
    assert "more than the model's 40" in host.reply("One", 40, "completions")["error"]
    more = begin(folder, threads=6)
    more_status = Path(f"/proc/{more.process.pid}/status").read_text()
    assert threads_in(more_status) == threads_in(status) + 5


def threads_in(status: str) -> int:
    (line,) = (line for line in status.splitlines() if line.startswith("Threads:"))
    return int(line.split()[1])


def test_a_directory_without_a_model_is_one_line(
    tmp_path: Path, begin: Callable[..., Host]
) -> None:
    host = begin(tmp_path / "none")
    assert host.first["error"].startswith("no onnxruntime-genai model in ")
    assert "llmbench models onnx" in host.first["error"]
    assert "Traceback" not in host.log.read_text()


def test_a_broken_model_is_one_line(
    folder: Path, tmp_path: Path, begin: Callable[..., Host]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".onnx":
            (broken / file.name).write_bytes(file.read_bytes()[:1000])
        else:
            (broken / file.name).symlink_to(file.resolve())
    host = begin(broken)
    assert host.first["error"].startswith(f"onnxruntime-genai cannot load {broken}: ")
    assert "\n" not in host.first["error"]


def test_a_missing_package_is_one_line(folder: Path, begin: Callable[..., Host]) -> None:
    host = begin(folder, ["-S"])
    assert host.first["error"] == "the onnx engine needs its extra: pip install 'llmbench[onnx]'"


def test_it_ends_with_its_stdin_also_while_it_computes(
    folder: Path, begin: Callable[..., Host]
) -> None:
    host = begin(folder)
    host.start(PROMPT, tokens=4000)
    assert host.process.stdin is not None
    host.process.stdin.close()
    assert host.process.wait(30) == 0


# ── the precision, from files made here ──────────────────────────────────────────────────────────


def field(tag: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return varint(tag << 3) + varint(value)
    return varint(tag << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return low + varint(value >> 7) if value > 0x7F else low


def tensor(kind: int, *shape: int) -> bytes:
    return field(5, b"".join(field(1, size) for size in shape) + field(2, kind) + field(9, b"abc"))


def node(bits: int | None) -> bytes:
    other = field(5, field(1, b"K") + field(3, 576))
    own = b"" if bits is None else field(5, field(1, b"bits") + field(3, bits))
    return field(1, field(4, b"MatMulNBits") + other + own)


@pytest.mark.parametrize(
    ("graph", "precision"),
    [
        (node(None) + tensor(1, 300, 300), "fp32"),
        (node(None) + tensor(1, 300) + tensor(10, 300, 300), "fp16"),
        (node(None) + tensor(16, 300, 300) + tensor(7, 1000, 1000), "bf16"),
        (node(4) + node(4) + tensor(1, 300, 300) + tensor(2, 10), "int4"),
        (node(8) + node(4), "int4+int8"),
        (b"", None),
    ],
)
def test_the_precision_is_read_from_the_graph(
    tmp_path: Path, graph: bytes, precision: str | None
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(field(1, 10) + b"\x1d1234" + b"\x1912345678" + field(7, graph))
    assert _precision(path) == precision
