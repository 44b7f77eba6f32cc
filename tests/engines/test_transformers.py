"""Transformers over its pipes, with the real library and the model that LLMBENCH_TEST_MODEL names.

It needs llmbench[transformers] and pytest, and is no part of the default run.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest

HOSTS = Path(__file__).parents[2] / "llmbench" / "hosts"
PROMPT = "The capital of France is"
TALK = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "Say only: hi"},
]
ANSWER_S = 120.0

Prompt = str | list[dict[str, str]]


class Host:
    """The engine's process. Each answer is read as it comes, so that none waits for its reader."""

    def __init__(self, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HOSTS), "transformers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: Queue[Any] = Queue()
        Thread(target=self._read, daemon=True).start()
        self._ids = 0
        self.say(options)
        self.first = self.hear()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(json.loads(line))

    def say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        return self._answers.get(timeout=ANSWER_S)

    def ask(
        self, *prompts: Prompt, tokens: int, api: str = "completions", exact: bool = True
    ) -> int:
        self._ids += 1
        call = {"api": api, "prompts": prompts, "max_tokens": tokens, "exact": exact}
        self.say({"op": "generate", "id": self._ids, **call})
        return self._ids

    def replies(self, count: int) -> dict[tuple[int, int], Any]:
        """The next ``count`` answers by their id and sequence."""
        answers = [self.hear() for _ in range(count)]
        return {(answer["id"], answer["sequence"]): answer for answer in answers}

    def reply(
        self, prompt: Prompt, tokens: int, api: str = "completions", exact: bool = True
    ) -> Any:
        asked = self.ask(prompt, tokens=tokens, api=api, exact=exact)
        return self.replies(1)[asked, 0]

    def count(self, prompt: Prompt, api: str) -> int:
        self.say({"op": "count", "id": 0, "api": api, "prompt": prompt})
        counted = self.hear()
        assert counted == {"id": 0, "prompt_tokens": counted["prompt_tokens"]}
        return int(counted["prompt_tokens"])

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)


def model() -> str:
    path = os.environ.get("LLMBENCH_TEST_MODEL")
    assert path, "set LLMBENCH_TEST_MODEL to the directory of a small model for Transformers"
    return path


def refusal(**options: Any) -> str:
    """What a process that does not start says."""
    host = Host(**options)
    assert host.process.wait(30) == 1
    assert list(host.first) == ["error"]
    words = host.first["error"]
    assert "\n" not in words
    return str(words)


def text(reply: Any) -> str:
    return "".join(words for _, _, words in reply["events"])


def times(reply: Any) -> list[int]:
    return [at_ns for at_ns, _, _ in reply["events"]]


def check(reply: Any, tokens: int, finish: str = "length") -> None:
    assert reply["error"] == ""
    assert reply["finish"] == finish
    assert [made for _, made, _ in reply["events"]] == [1] * tokens
    assert times(reply) == sorted(times(reply))
    assert reply["received_ns"] < times(reply)[0]
    stages = reply["stages"]
    assert set(stages) == {"tokenize_ms", "queue_ms", "prefill_ms", "decode_ms"}
    assert all(value >= 0 for value in stages.values())
    first_ms = (times(reply)[0] - reply["received_ns"]) / 1e6
    before = stages["tokenize_ms"] + stages["queue_ms"] + stages["prefill_ms"]
    assert before == pytest.approx(first_ms, abs=0.1)
    last_ms = (times(reply)[-1] - times(reply)[0]) / 1e6
    assert stages["decode_ms"] == pytest.approx(last_ms, abs=0.1)


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    running = Host(model=model(), parallel=4, context=512, threads=1, max_model_len=400)
    yield running
    assert running.close() == 0


def test_says_what_it_loaded(host: Host) -> None:
    facts = host.first["ready"]
    assert facts["engine"] == f"transformers {facts['versions']['transformers']}"
    assert facts["versions"]["torch"]
    assert facts["model"] == Path(model()).name
    assert facts["quantization"] in {"fp32", "bf16", "fp16"}
    stored = sum(file.stat().st_size for file in Path(model()).glob("*.safetensors"))
    assert facts["weights_bytes"] == pytest.approx(stored, rel=0.05)
    assert facts["load_s"] > 0
    assert facts["first_token_s"] > 0


@pytest.mark.parametrize("tokens", [1, 2, 23])
def test_replies_have_the_asked_length(host: Host, tokens: int) -> None:
    check(host.reply(PROMPT, tokens), tokens)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_counts_what_it_is_given(host: Host, api: str) -> None:
    counted = host.count(PROMPT, api)
    assert host.reply(PROMPT, 1, api)["prompt_tokens"] == counted > 0


def test_a_chat_template_adds_tokens(host: Host) -> None:
    chat, plain = (host.reply(PROMPT, 1, api) for api in ("chat", "completions"))
    assert chat["prompt_tokens"] > plain["prompt_tokens"]


def test_the_end_of_a_reply_is_no_end(host: Host) -> None:
    check(host.reply("Answer in one word: is water wet?", 60, "chat"), 60)


def test_a_reply_may_stop_by_itself(host: Host) -> None:
    whole = host.reply(TALK, 30, "chat")
    stopped = host.reply(TALK, 30, "chat", exact=False)
    made = len(stopped["events"])
    assert 0 < made < 30
    check(stopped, made, "stop")
    assert text(whole).startswith(text(stopped))
    check(host.reply(TALK, made, "chat", exact=False), made, "length")
    check(host.reply(TALK, made + 1, "chat", exact=False), made, "stop")


def test_the_others_of_a_batch_go_on(host: Host) -> None:
    asked = host.ask(TALK, PROMPT, tokens=30, api="chat", exact=False)
    replies = host.replies(2)
    stopped, whole = replies[asked, 0], replies[asked, 1]
    check(stopped, len(stopped["events"]), "stop")
    check(whole, 30)
    assert times(stopped)[-1] < times(whole)[-1]
    again = host.ask(TALK, TALK, tokens=300, api="chat", exact=False)
    ended = host.replies(2)
    assert {ended[again, sequence]["finish"] for sequence in range(2)} == {"stop"}
    assert text(ended[again, 0]) == text(ended[again, 1])


def test_messages_are_a_conversation(host: Host) -> None:
    counted = host.count(TALK, "chat")
    assert counted > host.count(TALK[-1]["content"], "chat") == host.count(TALK[-1:], "chat")
    reply = host.reply(TALK, 5, "chat")
    check(reply, 5)
    assert reply["prompt_tokens"] == counted


def test_what_is_no_conversation_fails_alone(host: Host) -> None:
    asked = host.ask(PROMPT, TALK[:2], tokens=4, api="chat")
    no_text = host.ask(TALK, tokens=4)
    replies = host.replies(3)
    check(replies[asked, 0], 4)
    assert replies[asked, 1]["error"].startswith("the last message of a conversation has to be")
    assert replies[no_text, 0]["error"].startswith("messages are for the chat API alone")


def test_greedy_replies_repeat(host: Host) -> None:
    first, second = (text(host.reply(PROMPT, 16)) for _ in range(2))
    assert first == second
    assert first.strip()


def test_concurrent_replies_run_together(host: Host) -> None:
    asked = {host.ask(f"{n}: {PROMPT}", tokens=n): n for n in (24, 8, 16, 12)}
    replies = host.replies(len(asked))
    for number, tokens in asked.items():
        check(replies[number, 0], tokens)
    stamps = {number: times(replies[number, 0]) for number in asked}
    assert max(at[0] for at in stamps.values()) < min(at[-1] for at in stamps.values())
    longest, shortest = (find(asked, key=lambda n: asked[n]) for find in (max, min))
    assert stamps[shortest][-1] < stamps[longest][-1]


def test_a_late_prompt_joins_what_runs(host: Host) -> None:
    long, short = host.ask(PROMPT, tokens=100), host.ask("One, two,", tokens=3)
    first, second = host.hear(), host.hear()
    assert [first["id"], second["id"]] == [short, long]
    assert times(second)[0] < times(first)[-1] < times(second)[-1]


def test_prompts_of_one_call_are_one_batch(host: Host) -> None:
    prompts = [PROMPT, "One, two, three, four, five,", "Water is made of hydrogen and"]
    asked = host.ask(*prompts, tokens=9)
    replies = host.replies(3)
    for sequence in range(3):
        check(replies[asked, sequence], 9)
    counts = [replies[asked, sequence]["prompt_tokens"] for sequence in range(3)]
    assert len(set(counts)) > 1
    steps = list(zip(*map(times, replies.values()), strict=True))
    for step, following in pairwise(steps):  # each step makes a token of every reply
        assert max(step) <= min(following)
    check(host.reply(PROMPT, 5), 5)  # and back


def test_cancel_answers_all(host: Host) -> None:
    running = host.ask(PROMPT, tokens=300)
    marker = host.ask("A", tokens=3)
    assert host.hear()["id"] == marker  # so the other one is running
    waiting = host.ask(PROMPT, "Two prompts", tokens=300)
    host.say({"op": "cancel"})
    replies = host.replies(3)
    assert set(replies) == {(running, 0), (waiting, 0), (waiting, 1)}
    assert {reply["error"] for reply in replies.values()} == {"cancelled"}
    assert 0 < len(replies[running, 0]["events"]) < 300
    assert text(replies[running, 0]).strip()
    check(host.reply(PROMPT, 4), 4)


def test_cancel_ends_a_batch(host: Host) -> None:
    asked = host.ask(PROMPT, "Two prompts", tokens=300)
    host.say({"op": "count", "id": 0, "api": "chat", "prompt": PROMPT})
    host.hear()
    host.say({"op": "cancel"})
    replies = host.replies(2)
    assert set(replies) == {(asked, 0), (asked, 1)}
    for reply in replies.values():
        assert reply["error"] == "cancelled"
        assert len(reply["events"]) < 300
    check(host.reply(PROMPT, 4), 4)


def test_a_prompt_that_is_too_long_is_refused(host: Host) -> None:
    reply = host.reply("one two three " * 200, 4)
    assert "max_model_len" in reply["error"]
    assert reply["events"] == []
    check(host.reply(PROMPT, 2), 2)


def test_refuses_a_missing_model() -> None:
    assert refusal(model="/no/such/model") == "no such model directory: /no/such/model"
    assert refusal(model="/no/such.gguf") == "no such GGUF file: /no/such.gguf"


def test_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(model=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert str(tmp_path) in refusal(model=str(tmp_path))


def test_refuses_what_it_does_not_know() -> None:
    assert "float32 (fp32), bfloat16" in refusal(model=model(), dtype="float12")
    assert "int8 and int8-dynamic work" in refusal(model=model(), quantization="int4")
    assert "unknown device 'abacus'" in refusal(model=model(), device="abacus")


def test_ends_with_its_stdin() -> None:
    host = Host(model=model(), threads=1, dtype="fp32")
    assert host.first["ready"]["quantization"] == "fp32"
    host.ask(PROMPT, tokens=400)
    assert host.close() == 0


def test_int8_weights_are_smaller() -> None:
    host = Host(model=model(), threads=1, quantization="int8")
    facts = host.first["ready"]
    assert facts["quantization"] == "int8"
    assert facts["versions"]["torchao"]
    stored = sum(file.stat().st_size for file in Path(model()).glob("*.safetensors"))
    assert facts["weights_bytes"] < 0.8 * stored
    check(host.reply(PROMPT, 4), 4)
    assert host.close() == 0
