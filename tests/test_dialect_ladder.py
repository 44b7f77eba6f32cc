"""Which dialect is found of servers that refuse in all the ways that servers do."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from conftest import Peer, content, finish, raw_server, sse
from hypothesis import given
from hypothesis import strategies as st

from llmbench.apis import APIS
from llmbench.apis.dialect import DIALECTS, Dialect, options
from llmbench.apis.ladder import Answer, climb
from llmbench.apis.refusals import Refusal, is_error, read_refusal
from llmbench.drive.endpoint import endpoint
from llmbench.drive.limits import Limits
from llmbench.drive.probe import LONGEST_PAUSE_S, Probe, retry_after_s
from llmbench.errors import Unmeasurable
from llmbench.records import Content, Target

RICHEST = DIALECTS[0]
LEAVES = ["include_usage", "continuous_usage_stats", "temperature", "ignore_eos", "cache_prompt"]
EVERYTHING = {*LEAVES, "min_tokens"}

Fields = dict[str, Any]


# ---- the parts of a dialect


def test_what_can_be_left_out() -> None:
    assert set(RICHEST.leaves) == EVERYTHING
    assert set(RICHEST.optional) == EVERYTHING | {"stream_options"}
    assert RICHEST.without(["include_usage", "continuous_usage_stats"]).fields == {
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    assert RICHEST.only(["include_usage"]).fields == {"stream_options": {"include_usage": True}}
    assert RICHEST.only(["min_tokens"]) == Dialect(
        "exact", "max_tokens", {}, exact_length=True, least="min_tokens"
    )
    assert RICHEST.without([]) == RICHEST


def test_a_natural_reply_is_asked_for_no_length_but_its_most() -> None:
    natural = options(RICHEST, 9, Content(natural_stops=True))
    assert (natural["max_tokens"], "min_tokens" in natural) == (9, False)
    assert "ignore_eos" not in natural


# ---- the ladder


class Strict:
    """A server that takes ``knows`` and the limit in ``limits``, and whose replies are of the asked
    length where ``obeys`` says so. Its refusals name one field at a time, all, or none."""

    def __init__(
        self,
        knows: set[str],
        limits: tuple[str, ...] = ("max_tokens", "max_completion_tokens"),
        names: str = "one",
        obeys: Callable[[set[str]], bool] = lambda asked: "ignore_eos" in asked,
    ) -> None:
        self.knows, self.limits, self.names, self.obeys = knows, limits, names, obeys
        self.asked: list[Dialect] = []

    def answer(self, dialect: Dialect) -> Answer:
        self.asked.append(dialect)
        asked = set(dialect.leaves)
        odd = sorted(asked - self.knows) + [dialect.limit] * (dialect.limit not in self.limits)
        if not odd:
            return Answer(exact=dialect.forces_length and self.obeys(asked))
        told = {"one": odd[:1], "all": odd, "none": []}[self.names]
        said = f"not taken: {', '.join(told)}" if told else "bad request"
        return Answer(Refusal(said, words=said))

    def climbed(self, exactly: bool = True) -> Dialect | None:
        ladder = climb(DIALECTS, exactly)
        tried = next(ladder)
        while True:
            try:
                tried = ladder.send(self.answer(tried.dialect))
            except StopIteration as end:
                found: Dialect | None = end.value
                return found


USAGE = {"include_usage"}
STANDARD = USAGE | {"temperature"}


@pytest.mark.parametrize("names", ["one", "all", "none"])
@pytest.mark.parametrize(
    ("knows", "limits", "name", "exact"),
    [
        (EVERYTHING, ("max_tokens",), "exact", True),
        (EVERYTHING - {"cache_prompt"}, ("max_tokens",), "exact without cache_prompt", True),
        (
            EVERYTHING - {"temperature"},
            ("max_completion_tokens",),
            "exact with max_completion_tokens without temperature",
            True,
        ),
        (STANDARD, ("max_tokens",), "standard", False),
        (USAGE, ("max_completion_tokens",), "reasoning", False),
        (set(), ("max_tokens",), "bare", False),
        (set(), ("max_completion_tokens",), "bare-reasoning", False),
    ],
)
def test_the_richest_dialect_is_found(
    names: str, knows: set[str], limits: tuple[str, ...], name: str, exact: bool
) -> None:
    server = Strict(knows, limits, names)
    found = server.climbed()
    assert found is not None
    assert (found.name, found.exact_length) == (name, exact)
    assert (set(found.leaves), found.limit) == (knows & EVERYTHING, limits[0])
    assert len(server.asked) <= {"one": 9, "all": 4, "none": 14}[names]


def test_a_least_length_alone_is_exact_where_it_is_obeyed() -> None:
    obeys: Callable[[set[str]], bool] = lambda asked: "min_tokens" in asked  # noqa: E731
    found = Strict(STANDARD | {"min_tokens"}, obeys=obeys).climbed()
    assert found is not None
    assert found.exact_length
    assert found.least == "min_tokens"
    assert found.name == "exact without continuous_usage_stats, ignore_eos, cache_prompt"


def test_silence_is_not_consent() -> None:
    """What is taken and not obeyed is no exact length; one reply is enough to see that."""
    server = Strict(EVERYTHING, obeys=lambda asked: False)
    found = server.climbed()
    assert found is not None
    assert (found.name, found.exact_length, len(server.asked)) == ("standard", False, 1)


def test_the_words_of_transformers_are_tried_where_others_were_refused() -> None:
    obeys: Callable[[set[str]], bool] = lambda asked: "generation_config" in asked  # noqa: E731
    found = Strict({"temperature", "generation_config"}, obeys=obeys, names="all").climbed()
    assert found is not None
    assert (found.name, found.exact_length) == ("transformers", True)
    assert found.generation_config


def test_what_no_dialect_mends() -> None:
    server = Strict(EVERYTHING, limits=(), names="none")
    assert server.climbed() is None
    assert len(server.asked) <= len(DIALECTS)


def test_natural_stops_want_no_exact_length() -> None:
    found = Strict(STANDARD, names="all").climbed(exactly=False)
    assert found is not None
    assert found.name == "standard"
    assert not found.generation_config


@given(
    st.sets(st.sampled_from(sorted({*EVERYTHING, "generation_config"}))),
    st.sampled_from([("max_tokens",), ("max_completion_tokens",)]),
    st.sampled_from(["one", "all", "none"]),
)
def test_whatever_a_server_takes_is_asked_for(
    knows: set[str], limits: tuple[str, ...], names: str
) -> None:
    server = Strict(knows, limits, names, obeys=lambda asked: bool(asked & {"min_tokens"}))
    found = server.climbed()
    assert found is not None
    assert set(found.leaves) - {"generation_config"} == knows & EVERYTHING
    assert found.limit == limits[0]
    assert found.exact_length == ("min_tokens" in knows)
    assert len(server.asked) <= 15


# ---- what servers say


REFUSALS: dict[str, tuple[Any, list[str], str]] = {
    "OpenAI, of a parameter": (
        {
            "error": {
                "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead.",
                "type": "invalid_request_error",
                "param": "max_tokens",
                "code": "unsupported_parameter",
            }
        },
        ["max_tokens"],
        "Use 'max_completion_tokens' instead",
    ),
    "OpenAI, of several": (
        {
            "error": {
                "message": "Unrecognized request arguments supplied: cache_prompt, ignore_eos",
                "param": None,
            }
        },
        ["ignore_eos", "cache_prompt"],
        "Unrecognized request arguments",
    ),
    "OpenAI, of a value": (
        {
            "error": {
                "message": "Unsupported value: 'temperature' does not support 0 with this model. "
                "Only the default (1) value is supported.",
                "param": "temperature",
            }
        },
        ["temperature"],
        "does not support 0",
    ),
    "OpenAI, of an option": (
        {
            "error": {
                "message": "Unknown parameter",
                "param": "stream_options.continuous_usage_stats",
            }
        },
        ["continuous_usage_stats"],
        "Unknown parameter",
    ),
    "FastAPI": (
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", name],
                    "msg": "Extra inputs are not permitted",
                    "input": {"temperature": 0, "min_tokens": 8},
                }
                for name in ("ignore_eos", "cache_prompt")
            ]
        },
        ["ignore_eos", "cache_prompt"],
        "body.ignore_eos: Extra inputs are not permitted",
    ),
    "pydantic, in a sentence": (
        {
            "object": "error",
            "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'cache_prompt'), 'msg': "
            "'Extra inputs are not permitted', 'input': {'temperature': 0, 'ignore_eos': True}}]",
            "code": 400,
        },
        ["cache_prompt"],
        "extra_forbidden",
    ),
    "serde": (
        b"Failed to deserialize the JSON body: unknown field `ignore_eos`, expected one of "
        b"`model`, `max_tokens`, `temperature`, `stream_options`",
        ["ignore_eos"],
        "unknown field `ignore_eos`",
    ),
    "transformers": (
        {"detail": "Unexpected keys in the request: {'ignore_eos', 'min_tokens'}"},
        ["ignore_eos", "min_tokens"],
        "Unexpected keys",
    ),
    "Mistral": (
        {
            "object": "error",
            "message": {"detail": [{"loc": ["body", "cache_prompt"], "msg": "Extra inputs"}]},
            "param": None,
            "code": None,
        },
        ["cache_prompt"],
        "body.cache_prompt: Extra inputs",
    ),
    "Fireworks": (
        {
            "error": {
                "message": "Extra inputs are not permitted, field: 'cache_prompt', value: False"
            }
        },
        ["cache_prompt"],
        "not permitted, field: 'cache_prompt'",
    ),
    "Groq": (
        {"error": {"message": "property 'ignore_eos' is unsupported, did you mean 'stop'?"}},
        ["ignore_eos"],
        "did you mean 'stop'?",
    ),
    "Cerebras": (
        {"message": "body.ignore_eos: property is unsupported", "param": "validation_error"},
        ["ignore_eos"],
        "body.ignore_eos: property is unsupported",
    ),
    "Google": (
        [{"error": {"code": 400, "message": 'Unknown name "min_tokens": Cannot find field.'}}],
        ["min_tokens"],
        "Cannot find field",
    ),
    "LiteLLM": (
        {"error": {"message": "openai does not support parameters: ['ignore_eos'], for model=m"}},
        ["ignore_eos"],
        "does not support parameters",
    ),
    "in another spelling": (
        {"error": "Argument not supported on this model: ignoreEos"},
        ["ignore_eos"],
        "ignoreEos",
    ),
    "a gateway": (
        {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {"raw": '{"error": {"message": "unknown: min_tokens"}}'},
            }
        },
        ["min_tokens"],
        "Provider returned error: unknown: min_tokens",
    ),
    "by the key": ({"errors": {"cache_prompt": ["is not known"]}}, ["cache_prompt"], "not known"),
    "no field": ({"error": {"message": "bad request"}}, [], "bad request"),
    "nearly a field": ({"error": "max_tokens_to_sample and min_tokens_x"}, [], "min_tokens_x"),
    "nothing": (b"", [], ""),
    "a page": (b"<html><h1>Bad Request</h1></html>", [], "Bad Request"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_the_fields_that_a_refusal_names(case: str) -> None:
    said, names, words = REFUSALS[case]
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    refusal = read_refusal(body)
    fields = [name for name in RICHEST.optional if name != "stream_options"]
    assert sorted(refusal.names([*fields, "max_tokens"])) == sorted(names)
    assert words in refusal.said


@pytest.mark.parametrize(
    ("words", "is_of_amount"),
    [
        ("max_tokens must be at least 16", True),
        ("Input should be greater than or equal to 16", True),
        ("Expected a value >= 16, but got 8 instead", True),
        ("Please try again with higher max_tokens.", True),
        ("max_tokens is too large: 5000", True),
        ("Unsupported parameter: 'max_tokens'", False),
        ("unknown field max_tokens", False),
    ],
)
def test_an_amount_is_told_from_a_field(words: str, is_of_amount: bool) -> None:
    assert read_refusal(json.dumps({"error": words}).encode()).is_of_amount is is_of_amount


def test_a_bare_error_is_told_from_a_reply() -> None:
    assert is_error(b'{"error": {"message": "no"}}')
    assert is_error(b'{"object": "error", "message": "no"}')
    assert not is_error(b'{"object": "chat.completion", "choices": [], "error": null}')
    assert not is_error(b"[]")
    assert not is_error(b"data: {}")


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda said: json.dumps(said).encode()
    )
)
def test_any_body_can_be_looked_at(body: bytes) -> None:
    assert isinstance(read_refusal(body).said, str)


# ---- servers on a socket


JSON_HEAD = b"HTTP/1.1 %d No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"


START = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def refused(document: Any, status: int = 400, headers: bytes = b"") -> bytes:
    body = json.dumps(document).encode()
    return JSON_HEAD % (status, len(body), headers, body)


def streamed(*events: Any) -> bytes:
    body = sse(*events)
    return START + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def limit_of(asked: Fields) -> int:
    return int(asked.get("max_tokens") or asked["max_completion_tokens"])


def good(asked: Fields, tokens: int | None = None) -> bytes:
    """A reply of the asked length, or one that stops by itself after ``tokens``."""
    length = limit_of(asked) if tokens is None else tokens
    last = finish(20, length)
    if tokens is not None:
        last["choices"][0]["finish_reason"] = "stop"
    return streamed(*[content(" a")] * length, last, "[DONE]")


Answers = Callable[[Fields, int], bytes]


class Found:
    """What a probe found of a server, what that was asked, and what a person was told."""

    def __init__(self) -> None:
        self.asked: list[Fields] = []
        self.told: list[str] = []
        self.dialect = RICHEST
        self.tokens: int | None = None


async def probed(answers: Answers, limits: Limits = Limits(30.0), **how: Any) -> Found:  # noqa: B008
    """What is found of a server that ``answers(asked, number)``."""
    found = Found()

    async def answer(peer: Peer, _: int) -> None:
        while True:
            asked = json.loads((await peer.request())[1])
            found.asked.append(asked)
            await peer.send(answers(asked, len(found.asked) - 1))

    async with raw_server(answer) as server:
        target = Target(spec="", name="t", url=f"{server.url}/v1", model="m")
        probe = Probe(target, endpoint(target), "salt", limits, say=found.told.append, **how)
        async with probe:
            found.dialect = await probe.find_dialect()
            found.tokens = await probe.count(8)
    return found


async def test_a_server_that_takes_all_is_asked_once() -> None:
    found = await probed(lambda asked, _: good(asked), output_tokens=24)
    assert (found.dialect.name, found.dialect.exact_length) == ("exact", True)
    first, count = found.asked
    assert (first["max_tokens"], first["min_tokens"], count["max_tokens"]) == (24, 24, 1)
    assert found.tokens == 20


@pytest.mark.parametrize(
    "reply",
    [
        lambda asked: good(asked, tokens=5),
        lambda asked: good(asked, tokens=limit_of(asked)),  # long enough, and by itself
        lambda asked: streamed(*[content(" a")] * 7, finish(20, 7), "[DONE]"),
    ],
)
async def test_an_exact_length_is_believed_when_it_was_seen(
    reply: Callable[[Fields], bytes],
) -> None:
    found = await probed(lambda asked, _: reply(asked), output_tokens=8)
    assert (found.dialect.name, found.dialect.exact_length) == ("standard", False)
    assert "include_usage" in found.dialect.leaves


async def test_a_long_reply_of_a_model_that_may_stop_is_not_exact() -> None:
    def answers(asked: Fields, _: int) -> bytes:
        forced = {"ignore_eos", "min_tokens", "generation_config", "cache_prompt"} & asked.keys()
        return refused({"error": f"unknown: {', '.join(forced)}"}) if forced else good(asked)

    found = await probed(answers)
    assert (found.dialect.name, found.dialect.exact_length) == ("standard", False)


NAMED = {"error": {"message": "Unsupported: ignore_eos", "code": 400}}


@pytest.mark.parametrize(
    "refusal",
    [
        refused(NAMED),
        refused(NAMED, 422),
        refused(NAMED, 500),
        streamed(NAMED),
        streamed({"error": {"message": "no ignore_eos here", "code": 500}}, "[DONE]"),
        streamed({"object": "error", "message": "Unsupported: ignore_eos"}),
        refused({"error": "bad field ignore_eos"}, 200),
    ],
    ids=["400", "422", "500", "event", "event-500", "event-object", "bare"],
)
async def test_a_field_is_refused_in_many_ways(refusal: bytes) -> None:
    found = await probed(lambda asked, _: refusal if "ignore_eos" in asked else good(asked))
    assert found.dialect.name == "exact without ignore_eos"
    assert len(found.asked) == 3


async def test_of_fields_that_do_not_go_together_one_is_kept() -> None:
    both = refused({"error": "ignore_eos and min_tokens are mutually exclusive"})

    def answers(asked: Fields, _: int) -> bytes:
        return both if {"ignore_eos", "min_tokens"} <= asked.keys() else good(asked)

    found = await probed(answers)
    assert (found.dialect.name, found.dialect.exact_length) == ("exact without min_tokens", True)


async def test_usage_is_asked_for_to_the_end() -> None:
    """A server may name the field and mean one of its options."""

    def answers(asked: Fields, _: int) -> bytes:
        odd = len(asked.get("stream_options", {})) > 1
        return refused({"error": "invalid stream_options"}) if odd else good(asked)

    found = await probed(answers)
    assert found.dialect.name == "exact without continuous_usage_stats"
    assert "include_usage" in found.dialect.leaves


async def test_a_server_that_names_the_wrong_field_is_asked_on() -> None:
    wrong = refused({"error": {"message": "bad request", "param": "temperature"}})
    found = await probed(lambda asked, _: wrong if "cache_prompt" in asked else good(asked))
    assert found.dialect.name == "exact without cache_prompt"


async def test_a_500_that_names_no_field_is_no_refusal() -> None:
    with pytest.raises(Unmeasurable, match="500: out of luck"):
        await probed(lambda asked, _: refused({"error": "out of luck"}, 500))


async def test_a_model_with_a_least_length_counts_prompts_with_the_cells_length() -> None:
    def answers(asked: Fields, _: int) -> bytes:
        if limit_of(asked) < 16:
            words = "Could not finish the message because max_tokens or model output limit was "
            return refused(
                {"error": {"message": words + "reached. Try again with higher max_tokens"}}
            )
        return good(asked)

    found = await probed(answers, output_tokens=64)
    assert found.dialect.name == "exact"
    assert found.tokens == 20
    assert [asked["max_tokens"] for asked in found.asked] == [64, 1, 64]


async def test_a_length_that_is_too_small_says_so() -> None:
    words = "Invalid 'max_tokens': Expected a value >= 16, but got 8 instead."
    with pytest.raises(Unmeasurable) as caught:
        await probed(lambda asked, _: refused({"error": {"message": words}}), output_tokens=8)
    assert words in str(caught.value)
    assert "asked for 8 tokens, see --output-tokens" in str(caught.value)


async def test_a_tiny_reply_that_counts_nothing_is_asked_for_again() -> None:
    def answers(asked: Fields, _: int) -> bytes:
        tokens = limit_of(asked)
        return good(asked) if tokens >= 32 else streamed(finish(), "[DONE]")

    assert (await probed(answers, output_tokens=32)).tokens == 20


async def test_prompts_of_no_tokens_are_not_counted() -> None:
    last = finish(20, 16)
    last["usage"]["prompt_tokens"] = 0
    found = await probed(lambda asked, _: streamed(*[content(" a")] * 16, last, "[DONE]"))
    assert found.tokens is None


# ---- servers that ask for time


def test_how_long_a_server_asks_to_be_given() -> None:
    assert retry_after_s({}) is None
    assert retry_after_s({"retry-after": "2"}) == 2
    assert retry_after_s({"retry-after": "0.5"}) == 0.5
    assert retry_after_s({"retry-after": "-3"}) == 0
    assert retry_after_s({"retry-after-ms": "1500", "retry-after": "2"}) == 1.5
    assert retry_after_s({"retry-after": "soon"}) is None
    past = datetime.now(UTC) - timedelta(minutes=1)
    assert retry_after_s({"retry-after": format_datetime(past, usegmt=True)}) == 0
    later = retry_after_s({"retry-after": format_datetime(past + timedelta(hours=1), usegmt=True)})
    assert later is not None
    assert 3300 < later <= 3540


BUSY = [
    (429, b"Retry-After: 0\r\n"),
    (503, b"retry-after-ms: 5\r\n"),
    (529, b"Retry-After: 0.01\r\n"),
]


@pytest.mark.parametrize(("status", "header"), BUSY)
async def test_a_busy_server_is_asked_again(status: int, header: bytes) -> None:
    def answers(asked: Fields, number: int) -> bytes:
        return good(asked) if number else refused({"error": "slow down"}, status, header)

    found = await probed(answers)
    assert found.dialect.name == "exact"
    assert found.told == [f"t answered {status}: asking again in {found.told[0].split()[-2]} s"]


async def test_a_busy_server_is_asked_again_once() -> None:
    asked: list[int] = []

    def answers(_: Fields, number: int) -> bytes:
        asked.append(number)
        return refused({"error": "slow down"}, 429, b"Retry-After: 0\r\n")

    with pytest.raises(Unmeasurable, match=r"429: slow down \(Retry-After: 0\)"):
        await probed(answers)
    assert asked == [0, 1]


async def test_a_server_that_asks_for_much_time_is_not_waited_for() -> None:
    with pytest.raises(Unmeasurable) as caught:
        await probed(lambda *_: refused({"error": "no"}, 503, b"Retry-After: 3600\r\n"))
    assert "Retry-After: 3600; a probe waits for 30 s at most" in str(caught.value)
    assert LONGEST_PAUSE_S < 3600


# ---- replies that go wrong


async def test_what_breaks_off_after_a_token_was_taken() -> None:
    """That is for the cells to show; the length was not seen."""
    half = good({"max_tokens": 16})[:-400]

    async def answer(peer: Peer, number: int) -> None:
        await peer.request()
        await peer.send(half)

    async with raw_server(answer) as server:
        target = Target(spec="", name="t", url=f"{server.url}/v1", model="m")
        async with Probe(target, endpoint(target), "salt", Limits(30.0)) as probe:
            assert not (await probe.find_dialect()).exact_length


@pytest.mark.parametrize("first_s", [None, 0.05])
async def test_the_users_limits_hold_for_probes(first_s: float | None) -> None:
    never = asyncio.Event()

    async def answer(peer: Peer, _: int) -> None:
        await peer.request()
        await never.wait()

    async with raw_server(answer) as server:
        target = Target(spec="", name="t", url=f"{server.url}/v1", model="m")
        limits = Limits(30.0 if first_s else 0.05, first_s)
        async with Probe(target, endpoint(target), "salt", limits) as probe:
            with pytest.raises(Unmeasurable, match="timeout: ") as caught:
                await probe.find_dialect()
        never.set()
    assert ("no first token within 0.05 s" in str(caught.value)) is (first_s is not None)


async def test_a_person_is_told_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmbench.drive.probe.SILENT_S", 0.0)
    slow: list[str] = []

    async def answer(peer: Peer, _: int) -> None:
        asked = json.loads((await peer.request())[1])
        while not slow:
            await asyncio.sleep(0.001)
        await peer.send(good(asked))

    async with raw_server(answer) as server:
        target = Target(spec="", name="t", url=f"{server.url}/v1", model="m")
        probe = Probe(target, endpoint(target), "salt", Limits(30.0), say=slow.append)
        async with probe:
            await probe.find_dialect()
    assert slow == ["waiting for t to answer (--timeout 30)"]


# ---- an API with a ladder of its own


async def test_an_api_brings_its_own_rungs(monkeypatch: pytest.MonkeyPatch) -> None:
    rungs = (
        Dialect("full", "most", {"temperature": 0, "extra": {"counts": True}}),
        Dialect("plain", "most", {}),
    )
    known_apis = {"chat": APIS["chat"]._replace(dialects=rungs)}
    monkeypatch.setattr("llmbench.drive.probe.APIS", known_apis)

    def answers(asked: Fields, _: int) -> bytes:
        known = {"max_tokens": asked["most"]}
        return refused({"error": "temperature?"}) if "temperature" in asked else good(known)

    found = await probed(answers)
    assert (found.dialect.name, found.dialect.leaves) == ("plain", ["counts"])
