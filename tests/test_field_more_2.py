"""More of the field: what users write of URLs, keys and bodies, and replies framed as few are."""

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, bare_cell, chunk, raw_server
from hypothesis import given
from hypothesis import strategies as st
from test_field_network import (
    BODY,
    CHUNKED,
    EVENTS,
    GOOD_REPLY,
    LAST,
    MODELS,
    OK,
    TYPED,
    answering,
    connected,
    exchanged,
    failure,
    good,
    length,
    probing,
    redirect,
    routed,
)
from test_request_fields import target_of

from llmbench.apis.api import model_ids
from llmbench.apis.dialect import DIALECTS
from llmbench.drive.aiohttp_client import tidied
from llmbench.drive.board import Ticket
from llmbench.drive.client import inflated
from llmbench.drive.endpoint import check_environment, endpoint
from llmbench.drive.job import Job
from llmbench.drive.limits import Limits
from llmbench.drive.probe import NotThere, unreachable
from llmbench.drive.reach import reach
from llmbench.errors import Unmeasurable, UserError
from llmbench.measure.verdict import judge
from llmbench.plan.feed import Ask
from llmbench.plan.scale import Scale
from llmbench.records import CellFacts, Content, Counts, Load, Message, Target
from llmbench.targets import elsewhere

LOAD = Load(
    concurrency=1,
    prompt_tokens=1,
    output_tokens=2,
    requests=1,
    duration_s=None,
    warmup=0,
    content=Content(),
)
PAGE = length(b"<!doctype html><title>Chat</title>", b"Content-Type: text/html")

# ── what a request says ──────────────────────────────────────────────────────────────────────────

ROW = {"tools": [{"name": "of the row"}], "tool_choice": "auto"}


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ({}, ROW),
        ({"tools": [{"name": "the user's"}]}, ROW | {"tools": [{"name": "the user's"}]}),
        ({"tools": None}, {"tool_choice": "auto"}),
    ],
)
def test_a_field_of_a_row_and_of_the_user_is_sent_once(
    said: dict[str, Any], sent: dict[str, Any]
) -> None:
    job = Job(
        facts=CellFacts(cell=0, target=0, client="wire", load=LOAD),
        target=Target(spec="", name="t", url="http://h/v1", body=said),
        dialect=DIALECTS[0],
        scale=Scale(),
        salt="s",
        timeout_s=1,
    )
    call = job.make_call(Ticket(0, "measured"), 0, Ask([Message("user", "x")], 1, fields=ROW))
    pairs = json.loads(call.body, object_pairs_hook=list)
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names))
    body = json.loads(call.body)
    assert {name: body[name] for name in ROW if name in body} == sent


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": "other"}, "--body: model cannot be set: --model names it"),
        ({"n": 2}, "--body: n cannot be set: one reply a request is timed"),
        ({"stream": 1}, "--body: stream cannot be set"),
        ({"stream": None}, "--body: stream cannot be set"),
    ],
)
def test_what_would_make_a_report_wrong_is_refused(body: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as said:
        target_of("http://h", body=json.dumps(body))
    assert words in str(said.value)


def test_what_changes_nothing_can_be_said() -> None:
    body = {"stream": True, "n": 1, "model": None}
    assert target_of("http://h", body=json.dumps(body)).body == body


# ── keys and secrets ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ('"sk-1234567890"', "quotes"),
        ("'sk-1234567890'", "quotes"),
        ("Bearer sk-1234567890", "the word Bearer"),
    ],
)
def test_a_key_with_something_around_it(
    monkeypatch: pytest.MonkeyPatch, key: str, what: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError) as said:
        check_environment(Target(spec="", name="t", url="http://h/v1"))
    assert f"OPENAI_API_KEY holds {what} as well: set it to the key alone" in str(said.value)
    assert "sk-" not in str(said.value)


def test_a_secret_is_hidden_as_a_url_spells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODE", "ab/cd+ef=1234")
    where = endpoint(Target(spec="", name="t", url="http://h/v1", query={"code": "${CODE}"}))
    for spelled in ("ab/cd+ef=1234", "ab/cd%2Bef%3D1234", "ab%2Fcd%2Bef%3D1234"):
        assert where.redacted(f"no {spelled}.".encode()) == b"no " + b"*" * len(spelled) + b"."


# ── URLs ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "base"),
    [
        (" http://h/v1\n", "http://h/v1"),
        ("http://h//v1", "http://h/v1"),
        ("http://h/api//", "http://h/api/v1"),
        ("http://h//v1//chat/completions", "http://h/v1"),
        ("https://h/openai/deployments/D", "https://h/openai/deployments/D"),
        ("https://h/openai/deployments/D/", "https://h/openai/deployments/D"),
    ],
)
def test_urls_as_people_put_them_together(url: str, base: str) -> None:
    assert target_of(url).url == base


def test_an_endpoint_may_have_a_slash_too_many() -> None:
    target = target_of("http://h/v1/chat/completions/")
    assert target.path == "/chat/completions/"
    other = elsewhere(target)
    assert other is not None
    assert (other.url, other.path) == ("http://h/v1", "/chat/completions")
    assert elsewhere(other) is None


async def reached(target: Target, folder: Path) -> Target:
    async with reach(
        target, [LOAD], salt="s", limits=Limits(PATIENCE_S), folder=folder, progress=False
    ) as found:
        return found.target


@pytest.mark.parametrize("model", ["", "m"])
async def test_a_page_at_v1_is_nothing_there(tmp_path: Path, model: str) -> None:
    """As of servers that have their own pages at any path they do not know."""
    asked: list[tuple[str, bytes]] = []
    routes = {"POST /api/chat/completions": GOOD_REPLY, "GET /api/models": MODELS}
    async with raw_server(routed(asked, routes, PAGE)) as raw:
        target = target_of(f"{raw.url}/api", model=model)
        assert (await reached(target, tmp_path)).url == f"{raw.url}/api"


async def test_nothing_but_pages(tmp_path: Path) -> None:
    async with raw_server(routed([], {}, PAGE)) as raw:
        with pytest.raises(NotThere, match="/v1/models: the reply is text/html, a web page"):
            await reached(target_of(raw.url), tmp_path)


async def test_a_deployment_without_its_version() -> None:
    gone = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
    async with (
        raw_server(routed([], {}, gone)) as raw,
        probing(f"{raw.url}/openai/deployments/D", model="D") as probe,
    ):
        with pytest.raises(NotThere, match="Azure wants an api-version: --query"):
            await probe.find_dialect()


# ── the network ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "kind", "detail", "hint"),
    [
        ("https://h", "tls", "the certificate was not accepted: x", "; --ca-file FILE names one"),
        ("https://h", "tls", "WRONG_VERSION_NUMBER", "; if it does not speak TLS there, write"),
        ("http://h", "reset", "Connection reset by peer", "; if it speaks TLS there, write https"),
        ("http://h", "protocol", "Bad status line", "; if it speaks TLS there, write https"),
        ("http://h", "protocol", "no such encoding", ""),
        ("https://h", "reset", "Connection reset by peer", ""),
    ],
)
def test_what_helps_is_said(url: str, kind: str, detail: str, hint: str) -> None:
    target = Target(spec="", name="t", url=url)
    said = str(unreachable(target, endpoint(target), kind, detail))
    assert said.partition(f"{detail})")[2].startswith(hint)
    assert bool(hint) == (not said.endswith(")"))


async def test_a_redirect_is_named_when_its_place_does_not_answer(dead_url: str) -> None:
    async with (
        raw_server(routed([], {}, redirect(f"{dead_url}/v1/chat/completions"))) as raw,
        probing(raw.url, model="m") as probe,
    ):
        with pytest.raises(Unmeasurable, match=f"{raw.url}/v1/chat/completions redirects to"):
            await probe.find_dialect()


async def test_a_redirect_to_a_page() -> None:
    async with (
        raw_server(routed([], {}, redirect("/login", 303))) as raw,
        probing(raw.url, model="m") as probe,
    ):
        with pytest.raises(Unmeasurable, match=f"answers 303 and sends to {raw.url}/login"):
            await probe.find_dialect()


LENGTH_TOO = TYPED + b"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
BARE = CHUNKED.replace(b"\r", b"")
CLOSING = TYPED + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY + b"\r\n"
ODD = {
    "length-and-chunks": LENGTH_TOO + chunk(BODY) + LAST,
    "bare-line-feeds": BARE + chunk(BODY) + LAST,
    "more-after-the-end": CLOSING,
}


@pytest.mark.parametrize("odd", ODD)
async def test_framings_that_few_servers_have(odd: str) -> None:
    async with raw_server(answering(ODD[odd], then="next")) as raw:
        async with probing(raw.url, model="m") as probe:
            await probe.find_dialect()
        async with connected(raw.url, "wire") as client:
            good(await exchanged(client))


@given(st.binary(max_size=80), st.booleans())
def test_only_a_head_is_tidied(body: bytes, chunked: bool) -> None:
    lines = OK + b"Content-Length: 3\r\n" + b"transfer-encoding: Chunked\r\n" * chunked + b"\r\n"
    kept = lines.replace(b"Content-Length: 3\r\n", b"") if chunked else lines
    assert tidied(lines + body) == kept + body
    assert tidied(lines.replace(b"\r", b"") + body) == kept + body
    assert tidied(lines[:-2]) == lines[:-2]


# ── compressed replies ───────────────────────────────────────────────────────────────────────────


def flushed(packer: Any) -> list[bytes]:
    """The events, each packed so that it can be read when it comes."""
    packed = [packer.compress(each) + packer.flush(zlib.Z_SYNC_FLUSH) for each in EVENTS]
    return [*packed[:-1], packed[-1] + packer.flush()]


PACKED: dict[str, Callable[[], Sequence[bytes]]] = {
    "gzip": lambda: flushed(zlib.compressobj(wbits=31)),
    "GZIP": lambda: list(map(gzip.compress, EVENTS)),  # a member each
    "x-gzip": lambda: flushed(zlib.compressobj(wbits=31)),
    "deflate": lambda: flushed(zlib.compressobj()),
    "Deflate": lambda: flushed(zlib.compressobj(wbits=-15)),
}


@pytest.mark.parametrize("encoding", PACKED)
async def test_the_wire_client_undoes_what_nobody_asked_for(encoding: str) -> None:
    head = CHUNKED[:-2] + b"Content-Encoding: %b\r\n\r\n" % encoding.encode()
    reply = head + b"".join(map(chunk, PACKED[encoding]())) + LAST
    async with (
        raw_server(answering(reply, then="next")) as raw,
        connected(raw.url, "wire") as client,
    ):
        trace = await exchanged(client)
    good(trace)
    assert trace.body == BODY
    assert trace.reads.end[-1] == len(BODY)


async def test_what_cannot_be_undone_is_named() -> None:
    reply = length(b"\x0b\x02", b"Content-Type: text/event-stream", b"Content-Encoding: br")
    async with (
        raw_server(answering(reply, then="next")) as raw,
        connected(raw.url, "wire") as client,
    ):
        kind, detail = failure(await exchanged(client))
    assert kind == "not-a-stream"
    assert "br-encoded" in detail


@pytest.mark.parametrize("encoding", PACKED)
@given(cuts=st.lists(st.integers(0, 400), max_size=6))
def test_each_piece_is_undone_by_itself(encoding: str, cuts: list[int]) -> None:
    packed = b"".join(PACKED[encoding]())
    ends = [0, *sorted(min(cut, len(packed)) for cut in cuts), len(packed)]
    pieces = [packed[a:b] for a, b in pairwise(ends)]
    found = inflated(pieces, encoding, len(BODY))
    assert found is not None
    assert len(found) == len(pieces)
    assert b"".join(found) == BODY
    assert inflated(pieces, encoding, len(BODY) - 1) is None


@given(st.binary(max_size=60))
def test_what_is_not_compressed_stays_as_it_is(body: bytes) -> None:
    assert inflated([body], "identity", 99) is None
    inflated([body], "gzip", 99)
    inflated([body], "deflate", 99)


async def test_the_sdk_says_what_it_could_not_read() -> None:
    """An event without data ends the reply of an application on it."""
    reply = length(b"data:\n\n" + BODY, b"Content-Type: text/event-stream")
    async with (
        raw_server(answering(reply, then="next")) as raw,
        connected(raw.url, "openai") as client,
    ):
        kind, detail = failure(await exchanged(client))
    assert kind == "malformed"
    assert detail.startswith("the SDK cannot read the reply: ")


def test_nothing_is_said_of_prompts_where_no_request_succeeded() -> None:
    cell = bare_cell(token_source="usage", requests=Counts(sent=2, ok=0, failed=2))
    judge(cell, CellFacts(cell=0, target=0, client="wire", load=LOAD))
    assert not [note for note in cell.notes if "prompt tokens" in note]


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'[{"id": "a"}, {"id": "b"}]', ["a", "b"]),
        (b'{"models": [{"name": "a"}]}', ["a"]),
        (b'{"data": ["a"], "models": [{"name": "b"}]}', ["a"]),
        (b'{"data": [{"id": "a"}, {"id": "a"}]}', ["a"]),
        (b'{"data": [{"id": 5, "name": "x"}]}', ["5"]),
        (b'{"data": null}', []),
        (b"null", []),
        (b"7", []),
        (b"\xff", []),
    ],
)
def test_lists_of_models_as_they_come(body: bytes, ids: list[str]) -> None:
    assert model_ids(body) == ids


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"query": ["sid={session}"]}, "--query sid: {session} and {nonce} are for headers"),
        ({"body": '{"user": "${USER}"}'}, "--body: ${USER}: variables are read in headers"),
        ({"body": '{"a": [{"b": "${USER}"}]}'}, "--body: ${USER}: variables are read"),
    ],
)
def test_what_would_be_sent_as_it_is_written_is_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refusal:
        target_of("http://h", **said)
    assert words in str(refusal.value)


async def test_a_context_that_is_too_small_names_the_flags() -> None:
    full = {"error": {"message": "This model's maximum context length is 16 tokens."}}
    said = json.dumps(full).encode()
    reply = b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % len(said) + said
    async with raw_server(routed([], {}, reply)) as raw, probing(raw.url, model="m") as probe:
        with pytest.raises(Unmeasurable, match=r"16 tokens\. \(see --prompt-tokens and"):
            await probe.find_dialect()


async def test_a_body_that_is_not_compressed_as_it_says() -> None:
    lie = length(BODY, b"Content-Type: text/event-stream", b"Content-Encoding: gzip")
    async with raw_server(answering(lie, then="next")) as raw, probing(raw.url, model="m") as probe:
        with pytest.raises(Unmeasurable, match="cannot be read: Can not decode content-encoding"):
            await probe.find_dialect()
