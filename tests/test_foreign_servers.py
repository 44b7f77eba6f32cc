"""Servers that are not ours: llama.cpp's speaks Responses and Messages, too."""

from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from conftest import Done, Llmbench, stored

from llmbench.apis import APIS, sse
from llmbench.engines import models, running
from llmbench.records import Content, Event, Kind, Load, Message, Target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("xllamacpp"), reason="needs llmbench[local]"),
]

LOAD = Load(
    concurrency=2, prompt_tokens=100, output_tokens=28, requests=2, duration_s=None, warmup=0
)
ASK = "Say something about rulers."
TOKENS = 8


@pytest_asyncio.fixture
async def llama(tmp_path: Path) -> AsyncIterator[Target]:
    model = str(models.embedded_model(progress=False))
    target = Target(spec="", name="llama", engine="llamacpp-server", model=model, threads=1)
    async with running(target, [LOAD], tmp_path, progress=False) as started:
        yield started.target


async def streamed(target: Target, name: str, number: int = 0) -> list[Event]:
    """What our decoder reads of a reply to what our encoder asks, in dialect ``number``."""
    api = APIS[name]
    said = [Message("system", "Be brief."), Message("user", ASK)]
    said += [Message("assistant", "A ruler is straight."), Message("user", "And how long?")]
    body = api.encode(target.model, said, TOKENS, api.dialects[number], Content())
    headers = api.headers("none") | {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(target.url + api.path, data=body, headers=headers) as reply,
    ):
        assert reply.status == 200, await reply.text()
        return api.decode(sse.parse(await reply.read()))


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if event.kind & Kind.ANSWER)


async def test_responses(llama: Target) -> None:
    events = await streamed(llama, "responses")
    pieces = [event for event in events if event.kind & Kind.GENERATED]
    end = events[-1]
    assert (len(pieces), end.usage and end.usage.completion_tokens) == (TOKENS, TOKENS)
    assert end.kind & Kind.DONE
    assert end.timings is not None
    assert end.timings["prompt_ms"] > 0
    assert text(events).strip()


async def test_messages(llama: Target) -> None:
    events = await streamed(llama, "messages")
    usage = [event.usage for event in events if event.usage is not None][-1]
    pieces = [event for event in events if event.kind & Kind.GENERATED]
    assert usage.completion_tokens == len(pieces) <= TOKENS
    assert usage.prompt_tokens
    assert events[-1].kind & Kind.DONE
    assert events[-1].finish in ("length", "stop")


async def test_both_say_what_chat_says(llama: Target) -> None:
    """A greedy reply to the same words is the same, whichever way they went."""
    said = [text(await streamed(llama, name)) for name in ("chat", "responses", "messages")]
    assert said[0].startswith(said[2])
    assert said[0] == said[1]


async def test_the_official_sdks_read_the_same(llama: Target) -> None:
    anthropic = pytest.importorskip("anthropic")
    ask: dict[str, Any] = {"model": llama.model, "temperature": 0}
    said = [{"role": "user", "content": ASK}]
    async with openai.AsyncOpenAI(base_url=llama.url, api_key="none") as sdk:
        raw = await sdk.responses.with_raw_response.create(
            **ask, input=said, max_output_tokens=TOKENS, stream=True
        )
        body = await raw.http_response.aread()
        whole = await sdk.responses.create(**ask, input=said, max_output_tokens=TOKENS)
        assert text(APIS["responses"].decode(sse.parse(body))) == whole.output_text
    root = llama.url.removesuffix("/v1")
    # The SDK sends no temperature any longer; the server takes it all the same.
    fields = {"extra_body": {"temperature": 0}, "max_tokens": TOKENS, "messages": said}
    async with anthropic.AsyncAnthropic(base_url=root, api_key="none") as sdk:
        raw = await sdk.messages.with_raw_response.create(model=llama.model, stream=True, **fields)
        body = await raw.http_response.aread()
        async with sdk.messages.stream(model=llama.model, **fields) as stream:
            message = await stream.get_final_message()
    events = APIS["messages"].decode(sse.parse(body))
    assert text(events) == "".join(part.text for part in message.content)
    usage = [event.usage for event in events if event.usage is not None][-1]
    assert usage.completion_tokens == message.usage.output_tokens


@pytest.mark.parametrize("api", ["responses", "messages"])
def test_a_sweep(run_llmbench: Llmbench, run_dir: Path, api: str) -> None:
    small = ("--concurrency", 1, "--requests", 2, "--warmup", 0, "--prompt-tokens", 64)
    done: Done = run_llmbench(
        *("sweep", "--api", api, *small, "--output-tokens", TOKENS, "--no-calibrate"),
        *("--format", "json", "--out", run_dir),
    )
    (cell,) = done.cells
    assert (cell["requests"]["ok"], cell["token_source"], cell["api"]) == (2, "usage", api)
    assert cell["measured_prompt_tokens"]["p50"] == 64
    (facts,) = stored(run_dir)["cells"]
    assert facts["exact_length"] is (api == "responses")
    assert cell["stages_source"] == ("timings" if api == "responses" else None)
