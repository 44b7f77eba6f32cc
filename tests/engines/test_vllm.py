"""vLLM in a process of its own, talked to as llmbench talks to it. Needs vLLM and a model:

LLMBENCH_TEST_MODEL=DIRECTORY pytest tests/engines/test_vllm.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llmbench.engines.commands import ServerOptions, transformers_server, vllm_server
from llmbench.engines.guard import descendants
from llmbench.errors import UserError
from llmbench.hosts import vllm as hosted

pytestmark = pytest.mark.timeout(600)

HOSTS = Path(__file__).parents[2] / "llmbench" / "hosts"
PROMPT = "What is a ruler good for?"
TALK = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "Say only: hi"},
]
GONE_S = 60.0

Message = dict[str, Any]
Prompt = str | list[dict[str, str]]


class Host:
    """The process, and its lines."""

    def __init__(self, log: Path, python: tuple[str, ...] = (sys.executable,), **options: Any):
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*python, str(HOSTS), "vllm"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=env,
            )
        self.tell(options)
        self.first = self.line()
        self._asked = 0

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

    def generate(self, *prompts: Prompt, tokens: int, api: str = "chat", exact: bool = True) -> int:
        wanted = {"prompts": prompts, "max_tokens": tokens, "exact": exact}
        return self.ask("generate", api=api, **wanted)

    def count(self, prompt: Prompt, api: str = "chat") -> int:
        number = self.ask("count", api=api, prompt=prompt)
        answer = self.line()
        assert answer["id"] == number
        tokens: int = answer["prompt_tokens"]
        return tokens

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def tokens_of(answer: Message) -> int:
    return sum(tokens for _, tokens, _ in answer["events"])


def text_of(answer: Message) -> str:
    return "".join(text for _, _, text in answer["events"])


@pytest.fixture(scope="session")
def model() -> Path:
    named = os.environ.get("LLMBENCH_TEST_MODEL")
    assert named, "LLMBENCH_TEST_MODEL has to name a model directory"
    return Path(named)


@pytest.fixture(scope="session")
def host(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    log = tmp_path_factory.mktemp("vllm") / "log"
    host = Host(log, model=str(model), parallel=8, context=500)
    yield host
    host.end()


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Start a host of the test's own."""
    started: list[Host] = []

    def begin(*python: str, **options: Any) -> Host:
        options = {"model": str(model), **options}
        started.append(Host(tmp_path / "log", python or (sys.executable,), **options))
        return started[-1]

    yield begin
    for host in started:
        host.end()


# ── what it says and makes ───────────────────────────────────────────────────────────────────────


def test_is_ready_with_what_it_loaded(host: Host, model: Path) -> None:
    facts = host.first["ready"]
    assert facts["engine"].startswith("vllm ")
    assert facts["model"] == model.name
    assert facts["device"] in ("cpu", "cuda")
    assert facts["quantization"] == "bf16"
    assert {"vllm", "torch", "transformers"} <= set(facts["versions"]) | {"vllm"}
    assert facts["load_s"] > 0
    assert facts["first_token_s"] > 0
    filed = (model / "model.safetensors").stat().st_size
    assert 0.99 * filed < facts["weights_bytes"] < filed


@pytest.mark.parametrize("tokens", [1, 2, 33])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_makes_exactly_what_was_asked_for(host: Host, api: str, tokens: int) -> None:
    before_ns = time.monotonic_ns()
    number = host.generate(PROMPT, tokens=tokens, api=api)
    answer = host.line()
    after_ns = time.monotonic_ns()
    assert (answer["id"], answer["sequence"], answer["error"]) == (number, 0, "")
    assert answer["finish"] == "length"
    assert tokens_of(answer) == tokens
    stamps = [at_ns for at_ns, _, _ in answer["events"]]
    assert stamps == sorted(stamps)
    assert before_ns < answer["received_ns"] < stamps[0]
    assert stamps[-1] < after_ns
    assert text_of(answer)
    assert answer["prompt_tokens"] == host.count(PROMPT, api)


def test_goes_on_beyond_the_end_of_the_reply(host: Host) -> None:
    host.generate("Say only: hi", tokens=400)
    assert tokens_of(host.line()) == 400


def test_a_reply_may_stop_by_itself(host: Host) -> None:
    host.generate(TALK, tokens=30)
    whole = host.line()
    host.generate(TALK, tokens=30, exact=False)
    stopped = host.line()
    made = tokens_of(stopped)
    assert (stopped["error"], stopped["finish"]) == ("", "stop")
    assert 0 < made < 30
    assert text_of(stopped).strip()
    assert text_of(whole).startswith(text_of(stopped))
    last_ns = stopped["events"][-1][0]
    assert sum(stopped["stages"].values()) <= (last_ns - stopped["received_ns"]) / 1e6
    for tokens, finish in ((made, "length"), (made + 1, "stop")):
        host.generate(TALK, tokens=tokens, exact=False)
        answer = host.line()
        assert (answer["finish"], tokens_of(answer)) == (finish, made)


def test_messages_are_a_conversation(host: Host) -> None:
    counted = host.count(TALK)
    assert counted > host.count(TALK[-1]["content"]) == host.count(TALK[-1:])
    host.generate(TALK, tokens=5)
    answer = host.line()
    assert (answer["prompt_tokens"], tokens_of(answer)) == (counted, 5)
    host.generate(TALK, tokens=5, api="completions")
    assert host.line()["error"].startswith("messages are for the chat API alone")


def test_counts_the_chat_template(host: Host) -> None:
    assert host.count(PROMPT, "chat") > host.count(PROMPT, "completions") > 3


def test_the_stages_are_within_the_request(host: Host) -> None:
    host.generate(PROMPT, tokens=16)
    answer = host.line()
    stages = answer["stages"]
    assert set(stages) == {"tokenize_ms", "queue_ms", "prefill_ms", "decode_ms"}
    assert all(stage >= 0 for stage in stages.values())
    last_ns = answer["events"][-1][0]
    assert sum(stages.values()) <= (last_ns - answer["received_ns"]) / 1e6


def test_requests_overlap(host: Host) -> None:
    asked = {host.generate(f"{PROMPT} {number}", tokens=40) for number in range(4)}
    answers = [host.line() for _ in asked]
    assert {answer["id"] for answer in answers} == asked
    assert [tokens_of(answer) for answer in answers] == [40] * 4
    firsts = [answer["events"][0][0] for answer in answers]
    lasts = [answer["events"][-1][0] for answer in answers]
    assert max(firsts) < min(lasts)


def test_a_static_batch_is_answered_prompt_by_prompt(host: Host) -> None:
    prompts = ["One", "Two is more than one", "Three is more than two and more than one"]
    number = host.generate(*prompts, tokens=12, api="completions")
    answers = sorted((host.line() for _ in prompts), key=lambda answer: int(answer["sequence"]))
    assert [answer["sequence"] for answer in answers] == [0, 1, 2]
    assert {answer["id"] for answer in answers} == {number}
    assert [tokens_of(answer) for answer in answers] == [12] * 3
    counted = [host.count(prompt, "completions") for prompt in prompts]
    assert [answer["prompt_tokens"] for answer in answers] == counted


def test_is_greedy(host: Host) -> None:
    texts = []
    for _ in range(2):
        host.generate(PROMPT, tokens=24)
        texts.append(text_of(host.line()))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("pause_s", [0.0, 1.0])
def test_cancel_ends_every_call(host: Host, pause_s: float) -> None:
    asked = {host.generate(PROMPT, PROMPT, tokens=400), host.generate(PROMPT, tokens=400)}
    time.sleep(pause_s)
    host.tell({"op": "cancel"})
    answers = [host.line() for _ in range(3)]
    assert {answer["id"] for answer in answers} == asked
    assert {answer["error"] for answer in answers} == {"cancelled"}
    assert all(tokens_of(answer) < 400 for answer in answers)
    host.generate(PROMPT, tokens=4)
    assert tokens_of(host.line()) == 4


def test_a_reply_without_room_is_an_error(host: Host) -> None:
    host.generate(PROMPT, tokens=4000)
    answer = host.line()
    assert "max_model_len is 512" in answer["error"]
    assert answer["events"] == []


# ── what it refuses ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "/no/such/model"}, "no model directory /no/such/model"),
        ({"model": __file__}, "has no config.json"),
        ({"dtype": "int3"}, "float32, bfloat16 and float16"),
        ({"device": "abacus"}, "device abacus"),
        ({"quantization": "magic"}, "magic"),
        ({"max_model_len": 10_000_000}, "max_model_len"),
    ],
)
def test_refuses_in_one_line(
    start: Callable[..., Host], options: dict[str, Any], words: str
) -> None:
    host = start(**options)
    assert host.process.wait(60) == 1
    assert set(host.first) == {"error"}
    assert words in host.first["error"]
    assert "\n" not in host.first["error"]
    assert len(host.first["error"]) < 400
    assert "Traceback" not in host.log.read_text()


def test_a_missing_package_names_the_extra(start: Callable[..., Host]) -> None:
    bare = start(sys.executable, "-I", "-S")
    assert bare.process.wait(60) == 1
    assert bare.first == {"error": hosted.EXTRA}


# ── what it leaves behind ────────────────────────────────────────────────────────────────────────


def close(host: Host) -> None:
    assert host.process.stdin is not None
    host.process.stdin.close()


def kill(host: Host) -> None:
    os.kill(host.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [close, kill])
def test_leaves_no_orphans(start: Callable[..., Host], end: Callable[[Host], None]) -> None:
    host = start(parallel=2, context=256, threads=1)
    assert "ready" in host.first
    below = descendants(host.process.pid)
    assert len(below) >= 2  # its engine core is one
    host.generate(PROMPT, tokens=200)
    end(host)
    host.process.wait(10)
    deadline_s = time.monotonic() + GONE_S
    while (left := [pid for pid in below if runs(pid)]) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert left == []


def runs(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


# ── the servers' command lines ───────────────────────────────────────────────────────────────────

CARD = {
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
}


def test_the_length_is_whole_blocks_as_far_as_the_model_goes() -> None:
    assert hosted.length_of(CARD, 300, None) == 384
    assert hosted.length_of(CARD, 300, 301) == 301
    assert hosted.length_of(CARD | {"max_position_embeddings": 310}, 300, None) == 310
    assert hosted.length_of(CARD, 3000, None) == 3000  # vLLM refuses it, and says why
    assert hosted.length_of({}, 300, None) == 300


def test_the_cache_holds_all_sequences() -> None:
    # 2 × 30 layers × 3 heads × 64 × 2 bytes = 23,040 bytes a token
    assert hosted.kv_cache_gib(CARD, 1_000, None) == 1
    assert hosted.kv_cache_gib(CARD, 100_000, None) == 3
    assert hosted.kv_cache_gib(CARD, 100_000, "float32") == 5
    assert hosted.kv_cache_gib({"text_config": CARD}, 100_000, None) == 3
    assert hosted.kv_cache_gib({}, 100_000, None) == hosted.SPARE_GIB


def server(model: str, **options: Any) -> ServerOptions:
    return ServerOptions(python="py", model=model, port=8123, parallel=4, context=300, **options)


def test_the_command_of_a_vllm_server(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CARD))
    command = vllm_server(server(str(tmp_path), device="cpu", dtype="fp32", threads=3))
    assert command.argv[:5] == ["py", "-m", "vllm.entrypoints.cli.main", "serve", str(tmp_path)]
    assert {"--port=8123", "--max-num-seqs=4", "--max-model-len=384"} <= set(command.argv)
    assert {"--dtype=float32", "--no-enable-prefix-caching"} <= set(command.argv)
    assert "--enforce-eager" in command.argv
    assert (command.health, command.model) == ("/health", tmp_path.name)
    assert command.env["OMP_NUM_THREADS"] == "3"
    assert command.env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "--enforce-eager" not in vllm_server(server("org/name", device="cuda")).argv


def test_the_command_of_a_transformers_server() -> None:
    command = transformers_server(server("org/name", device="cpu", dtype="bf16"))
    assert command.argv[:4] == ["py", "-m", "transformers.cli.transformers", "serve"]
    assert {"org/name", "--port=8123", "--dtype=bfloat16", "--device=cpu"} <= set(command.argv)
    assert (command.health, command.model) == ("/health", "org/name")
    with pytest.raises(UserError, match="bnb-4bit and bnb-8bit"):
        transformers_server(server("org/name", quantization="awq"))
    with pytest.raises(UserError, match="float32, bfloat16 and float16"):
        vllm_server(server("org/name", dtype="int3"))
