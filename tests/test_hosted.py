"""Engines called in process: their own stamps are the trace, and no end of theirs is a hang."""

import asyncio
import json
import re
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import PATIENCE_S, Llmbench

from llmbench import hosts
from llmbench.apis.dialect import DIALECTS
from llmbench.drive.clock import Clock
from llmbench.drive.engine_client import EngineClient
from llmbench.drive.inline import Inline
from llmbench.drive.job import Job
from llmbench.engines import models
from llmbench.engines.hosted import Answer, HostedEngine
from llmbench.errors import Unmeasurable, UserError
from llmbench.measure.cell import requests_in
from llmbench.measure.summary import summarize
from llmbench.parts import part_path, read_part
from llmbench.plan.scale import Scale
from llmbench.records import Call, CellFacts, Load, Target, Trace

MS = 1_000_000
TARGET = Target(spec="fake:", name="fake", engine="llamacpp", model="faked")
LAST_WORDS = "CUDA error: out of memory"
REAL_HOSTS = hosts.__file__
CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one two"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "Say only: hi"},
]

needs_xllamacpp = pytest.mark.skipif(not find_spec("xllamacpp"), reason="needs llmbench[local]")


@pytest.fixture(autouse=True)
def _fake_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines in process are hosted by ``tests/fake_host``."""
    fake = Path(__file__).with_name("fake_host") / "__init__.py"
    monkeypatch.setattr(hosts, "__file__", str(fake))


def hosted(behaviour: str, folder: Path) -> HostedEngine:
    options = {"model": behaviour, "parallel": 2}
    log = folder / "log"
    return HostedEngine("fake", "fake", options, python="", log_path=log, progress=False)


@asynccontextmanager
async def client(
    behaviour: str, folder: Path, timeout_s: float = 300.0
) -> AsyncIterator[EngineClient]:
    clock = Clock(zero_ns=0)
    try:
        async with asyncio.timeout(PATIENCE_S), hosted(behaviour, folder) as engine:
            yield EngineClient(engine, "chat", timeout_s, clock)
    finally:
        clock.close()


def call(index: int = 0, tokens: int = 5, **fields: Any) -> Call:
    plain = {"messages": [{"role": "user", "content": "one two"}], "ignore_eos": True}
    document = plain | {"max_tokens": tokens} | fields
    return Call(0, index, index, "measured", f"id-{index}", json.dumps(document).encode())


def load(**fields: Any) -> Load:
    plain = {"concurrency": 2, "requests": 4, "warmup": 0, "duration_s": None}
    return Load(**(plain | {"prompt_tokens": 8, "output_tokens": 5} | fields))


async def cell(
    behaviour: str, folder: Path, load: Load, timeout_s: float = 300.0
) -> tuple[CellFacts, list[Trace]]:
    """Run one cell of the fake engine."""
    facts = CellFacts(cell=0, target=0, client="wire", load=load)
    clock = Clock()
    async with asyncio.timeout(PATIENCE_S), hosted(behaviour, folder) as engine:
        job = Job(
            facts=facts,
            target=TARGET,
            dialect=DIALECTS[0],
            scale=Scale(((8, 8),)),
            salt="s",
            timeout_s=timeout_s,
        )
        runner = Inline(job, folder, clock, engine)
        try:
            health = await runner.run()
            traces = list(read_part(part_path(folder, cell=0)))
        finally:
            runner.close()
            clock.close()
    return msgspec.structs.replace(facts, health=health, stopped=runner.stopped), traces


def documents(trace: Trace) -> list[Any]:
    events = trace.body.decode().removesuffix("data: [DONE]\n\n").split("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in events if event]


# ── loading ──────────────────────────────────────────────────────────────────────────────────────


async def test_what_an_engine_says_of_itself(tmp_path: Path) -> None:
    async with hosted("steady", tmp_path) as engine:
        facts = engine.facts
        assert (facts.engine, facts.model, facts.quantization) == ("fake 1.0", "faked", "fp32")
        assert (facts.versions, facts.first_token_s) == ({"fake": "1.0"}, 0.25)
        assert (facts.weights_bytes, facts.device) == (1000, "cpu")
        assert await engine.count("chat", "one two") == 5
        assert await engine.count("completions", "one two") == 2
    assert engine.process.exited


@pytest.mark.parametrize(
    ("behaviour", "line"),
    [
        ("refuses", "fake: no such model: try another"),
        ("raises", "fake: ValueError: bad weights in two lines"),
    ],
)
async def test_an_error_on_load_is_the_users(tmp_path: Path, behaviour: str, line: str) -> None:
    engine = hosted(behaviour, tmp_path)
    with pytest.raises(UserError) as failure:
        await engine.__aenter__()
    assert str(failure.value) == line
    assert engine.process.exited


async def test_an_engine_that_ends_before_it_is_ready(tmp_path: Path) -> None:
    engine = hosted("vanishes", tmp_path)
    with pytest.raises(Unmeasurable) as failure:
        await engine.__aenter__()
    log = tmp_path / "log"
    assert str(failure.value) == f"fake: could not load: {LAST_WORDS} (log: {log})"


async def test_a_cancelled_load_leaves_no_process(tmp_path: Path) -> None:
    engine = hosted("hangs", tmp_path)
    loading = asyncio.create_task(engine.__aenter__())
    async with asyncio.timeout(PATIENCE_S):
        while engine.process.process is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
    assert engine.process.exited


# ── one call ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_trace_has_the_engines_own_stamps_and_counts(tmp_path: Path) -> None:
    async with client("steady", tmp_path) as engine:
        trace = await engine.exchange(call(index=3))
    assert (trace.index, trace.stream, trace.request_id) == (3, 3, "id-3")
    assert (trace.status, trace.error, trace.stamps) == (200, "", "engine")
    # 5 tokens in 4 events: the last two come together; the finish comes with them
    assert trace.reads.at_ns == array("q", [5 * MS, 7 * MS, 9 * MS, 11 * MS, 11 * MS])
    assert trace.reads.end[-1] == len(trace.body)
    assert trace.end_ns >= 11 * MS
    *events, last = documents(trace)
    assert [each["choices"][0]["token_count"] for each in events] == [1, 1, 1, 2]
    assert [each["usage"]["completion_tokens"] for each in events] == [1, 2, 3, 5]
    assert {each["usage"]["prompt_tokens"] for each in events} == {5}
    assert last["timings"] == {"prompt_ms": 5.0, "predicted_ms": 6.0}
    facts = CellFacts(cell=0, target=0, client="wire", load=load(concurrency=1, requests=1))
    row = summarize(TARGET, facts, requests_in([trace], TARGET.api))
    assert row.ttft_ms is not None
    assert row.e2e_ms is not None
    assert (row.ttft_ms.mean, row.e2e_ms.mean) == (5.0, 11.0)
    assert row.stages_source == "timings"
    assert row.stages_ms == {"e2e": 11.0, "prefill": 5.0, "decode": 6.0, "other": 0.0}
    assert row.measured_output_tokens is not None
    assert row.measured_output_tokens.p50 == 5


async def test_what_came_before_a_cancel_is_kept(tmp_path: Path) -> None:
    async with client("slow", tmp_path) as engine:
        asking = asyncio.create_task(engine.exchange(call()))
        await asyncio.sleep(1.0)
        asking.cancel()
        trace = await asking
    assert trace.error == "cancelled"
    assert trace.reads.at_ns == array("q", [5 * MS])
    assert b"[DONE]" not in trace.body


async def test_a_call_that_takes_too_long(tmp_path: Path) -> None:
    async with client("slow", tmp_path, timeout_s=0.2) as engine:
        trace = await engine.exchange(call())
    assert (trace.error, trace.detail) == ("timeout", "no end of the reply within 0.2 s")
    assert trace.end_ns >= 0.2e9


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [("dies", LAST_WORDS), ("crashes", "killed by SIGSEGV; it logged nothing")],
)
async def test_an_engine_that_dies_fails_every_call(
    tmp_path: Path, behaviour: str, words: str
) -> None:
    async with client(behaviour, tmp_path) as engine:
        traces = await engine.exchange_batch([call(0), call(1)])
        traces.append(await engine.exchange(call(2)))
    assert [(each.error, each.status) for each in traces] == [("engine", 0)] * 3
    assert {each.detail for each in traces} == {f"the engine has ended: {words}"}


async def test_an_engine_that_fails_on_a_call_lives_on(tmp_path: Path) -> None:
    async with client("fails", tmp_path) as engine:
        traces = [await engine.exchange(call(index)) for index in range(2)]
    assert {each.error for each in traces} == {"engine"}
    assert {each.detail for each in traces} == {"ValueError: no room for it"}


async def test_a_conversation_goes_to_the_engine_as_it_is(tmp_path: Path) -> None:
    async with client("steady", tmp_path) as engine:
        trace = await engine.exchange(call(messages=CONVERSATION))
    assert trace.error == ""
    assert documents(trace)[0]["usage"]["prompt_tokens"] == 4 * 3 + 8


async def test_what_is_no_prompt_is_refused_in_one_line(tmp_path: Path) -> None:
    async with hosted("steady", tmp_path) as engine:
        assert await engine.count("chat", CONVERSATION) == 20
        with pytest.raises(Unmeasurable, match="fake: messages are for the chat API alone"):
            await engine.count("completions", CONVERSATION)
        with pytest.raises(Unmeasurable, match="fake: the last message of a conversation has to"):
            await engine.count("chat", CONVERSATION[:3])


@pytest.mark.parametrize(
    ("fields", "finish", "counts"),
    [
        ({"ignore_eos": True}, "length", [1, 1, 1, 2]),
        ({"ignore_eos": False}, "stop", [1, 2]),
        ({"ignore_eos": False, "max_tokens": 3}, "length", [1, 2]),
    ],
)
async def test_a_reply_may_stop_by_itself(
    tmp_path: Path, fields: dict[str, Any], finish: str, counts: list[int]
) -> None:
    async with client("steady", tmp_path) as engine:
        trace = await engine.exchange(call(**fields))
    *events, last = documents(trace)
    assert last["choices"][0]["finish_reason"] == finish
    assert [each["choices"][0]["token_count"] for each in events] == counts


# ── cells ────────────────────────────────────────────────────────────────────────────────────────


async def test_the_end_of_a_cell_keeps_the_others_as_cancelled_or_whole(tmp_path: Path) -> None:
    facts, traces = await cell("steady", tmp_path, load(requests=6))
    measured = [each for each in traces if each.phase == "measured"]
    assert facts.stopped == ""
    assert len(measured) == 6
    assert not any(each.error for each in measured)
    assert {each.error for each in traces} <= {"", "cancelled"}


@pytest.mark.parametrize("batch_size", [None, 2])
async def test_a_cell_whose_engine_dies_ends(tmp_path: Path, batch_size: int | None) -> None:
    facts, traces = await cell("dies", tmp_path, load(requests=99, batch_size=batch_size))
    words = re.escape(f"(engine: the engine has ended: {LAST_WORDS})")
    assert re.fullmatch(rf"stopped after \d+ failures in a row {words}", facts.stopped)
    assert {each.error for each in traces} == {"engine"}


async def test_a_static_batch_runs_together_and_the_next_after_it(tmp_path: Path) -> None:
    plan = load(concurrency=3, batch_size=3, requests=9, warmup=3)
    _, traces = await cell("steady", tmp_path, plan)
    assert [each.index for each in traces] == list(range(12))
    assert [each.phase for each in traces] == ["warmup"] * 3 + ["measured"] * 9
    batches = [traces[start : start + 3] for start in range(0, 12, 3)]
    for number, batch in enumerate(batches):
        assert len({each.sent_ns for each in batch}) == 1
        texts = [documents(each)[0]["choices"][0]["delta"]["content"] for each in batch]
        assert texts == [f" {number}.{sequence}" for sequence in range(3)]
    for before, after in pairwise(batches):
        assert max(each.sent_ns + each.end_ns for each in before) <= after[0].sent_ns


async def test_a_batch_is_worth_one_sample(tmp_path: Path) -> None:
    plan = load(concurrency=8, batch_size=8, requests=80)
    facts, traces = await cell("steady", tmp_path, plan)
    # Each is a millisecond slower than the one before it; as they come, one tells of the next.
    traces = [
        msgspec.structs.replace(each, sent_ns=each.index // 8 * 7 % 10 * 10**9) for each in traces
    ]
    batched = summarize(TARGET, facts, requests_in(traces, TARGET.api)).ttft_ms
    assert batched is not None
    assert (batched.n, batched.p50) == (80, 9.0)  # ten batches: 5 ms, 6 ms, … 14 ms
    assert batched.ci95["p50"] == (6.0, 13.0)  # the second and the ninth, as of ten
    assert batched.p95 is None  # ten samples do not bound it


# ── the real thing ───────────────────────────────────────────────────────────────────────────────


@needs_xllamacpp
@pytest.mark.parametrize("batched", [False, True], ids=["concurrency", "batch"])
def test_a_sweep_of_llama_cpp_in_process(
    run_llmbench: Llmbench, run_dir: Path, batched: bool
) -> None:
    flags = ["--batch-size", 2] if batched else ["--concurrency", 2, "--agreement"]
    done = run_llmbench(
        *("sweep", "--target", "llamacpp:?threads=1", "--requests", 6, "--output-tokens", 4),
        *("--prompt-tokens", 64, "--no-calibrate", "--out", run_dir, "--format", "json", *flags),
    )
    assert done.code == 0, done.err
    (row,) = done.cells
    assert (row["requests"]["ok"], row["requests"]["failed"]) == (6, 0)
    assert (row["model"], row["quantization"]) == ("SmolLM2-135M-Instruct", "Q4_1")
    assert row["engine"].startswith("llama.cpp b")
    assert row["measured_prompt_tokens"] == {"min": 64, "p50": 64, "max": 64}
    assert row["measured_output_tokens"] == {"min": 4, "p50": 4, "max": 4}
    assert row["batch_size"] == (2 if batched else None)
    assert row["ruler"]["stamps"] == "engine"
    assert row["stages_source"] == "timings"
    assert row["stages_ms"]["prefill"] > 0
    assert row["memory_mb"] > 50
    (target,) = json.loads((run_dir / "run.json").read_bytes())["targets"]
    greedy = target["provenance"].get("greedy", [])
    assert all(0 < len(reply) <= 32 for reply in greedy)
    assert bool(greedy) != batched


@needs_xllamacpp
async def test_llama_cpp_takes_conversations_and_stops_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "__file__", REAL_HOSTS)
    options = {"model": str(models.embedded_model(progress=False)), "parallel": 2, "threads": 1}
    real = HostedEngine(
        "real", "llamacpp", options, python="", log_path=tmp_path / "log", progress=False
    )
    said, last = CONVERSATION[1:], CONVERSATION[-1]["content"]  # a default system message is longer
    async with asyncio.timeout(PATIENCE_S), real as engine:
        assert await engine.count("chat", said) > await engine.count("chat", last)
        exact, natural, cut = await asyncio.gather(
            *(
                engine.generate("chat", [said, last], tokens, exact=exact)
                for tokens, exact in ((20, True), (20, False), (1, False))
            )
        )
        (refused,) = await engine.generate("completions", [said], 1)
    assert [finish_of(each) for each in exact] == [("", "length", 20)] * 2
    assert [finish_of(each) for each in cut] == [("", "length", 1)] * 2
    for stopped, whole in zip(natural, exact, strict=True):
        error, finish, tokens = finish_of(stopped)
        assert (error, finish) == ("", "stop")
        assert 0 < tokens < 20
        texts = [[text for _, _, text in each.events] for each in (stopped, whole)]
        assert texts[0] == texts[1][: len(texts[0])]
        assert "".join(texts[0]).strip()
        span_ms = (stopped.events[-1][0] - stopped.events[0][0]) / MS
        assert stopped.stages["decode_ms"] == pytest.approx(span_ms, rel=0.9, abs=5)
    assert refused.error == "messages are for the chat API alone: completions take a text"


def finish_of(answer: Answer) -> tuple[str, str, int]:
    return answer.error, answer.finish, sum(tokens for _, tokens, _ in answer.events)
