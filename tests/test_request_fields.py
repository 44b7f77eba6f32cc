"""What a user says in a request: each client sends it, compare looks at it, no secret is kept."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    Answer,
    Asked,
    Certificates,
    Done,
    InProcess,
    Llmbench,
    ThreadedServer,
    sse,
)
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from test_compare import ONE
from test_config import refusal

from llmbench.apis.body import filled_in, layered, with_fields
from llmbench.apis.request import with_system
from llmbench.config import load_sweep
from llmbench.drive.endpoint import endpoint
from llmbench.errors import UserError
from llmbench.headers import hidden
from llmbench.measure.likeness import differences
from llmbench.records import Message, Target
from llmbench.targets import elsewhere
from llmbench.truth.process import TruthServer

Threaded = Callable[[Callable[[Asked], Answer]], ThreadedServer]

STREAM = "text/event-stream"
SECRET = "5ecret-0123456789"
SMALL = (
    *("--no-calibrate", "--prompt-tokens", 24, "--output-tokens", 4, "--warmup", 0),
    *("--requests", 4, "--concurrency", 1, "--format", "json"),
)


def targets_of(*specs: Any, **flags: Any) -> list[Target]:
    return load_sweep({"target": list(specs)} | flags).targets()


def target_of(spec: Any, **flags: Any) -> Target:
    (target,) = targets_of(spec, **flags)
    return target


def good(asked: Asked) -> Answer:
    words = sum(len(each["content"].split()) for each in asked.document["messages"])
    tokens = asked.document["max_tokens"]
    text = {"index": 0, "delta": {"content": " w"}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": "length"}
    usage = {"prompt_tokens": words + 5, "completion_tokens": tokens, "total_tokens": 0}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    last = head | {"choices": [end], "usage": usage}
    return 200, STREAM, sse(*[head | {"choices": [text]}] * tokens, last, "[DONE]")


@pytest.fixture
def sweep(run_llmbench: Llmbench, run_dir: Path) -> Callable[..., Done]:
    def run(url: str, *args: object, env: dict[str, str] | None = None) -> Done:
        return run_llmbench("sweep", "--target", url, "--out", run_dir, *SMALL, *args, env=env)

    return run


def good_cell(done: Done, number: int = 0) -> dict[str, Any]:
    """A cell in which no request failed."""
    cell = done.cells[number]
    assert cell["requests"]["sent"], cell["reasons"]
    assert not cell["requests"]["failed"], cell["requests"]
    return cell


def timed(server: ThreadedServer) -> list[Asked]:
    return [each for each in server.asked if "x-request-id" in each.headers]


def everything(done: Done, run_dir: Path) -> str:
    files = [path.read_text("utf-8", "replace") for path in run_dir.rglob("*") if path.is_file()]
    return "\n".join([done.out, done.err, *files])


# ---- through each client, to a server


@pytest.mark.parametrize("client", ["wire", "aiohttp", "openai"])
def test_all_that_can_be_said_at_once(
    threaded: Threaded, sweep: Callable[..., Done], run_dir: Path, client: str
) -> None:
    server = threaded(good)
    done = sweep(
        f"{server.url}/inference/chat/completions/?api-version=2024-10-21&model=m&auth=api-key",
        *("--client", client, "--temperature", 0.7, "--top-p", 0.9, "--reasoning-effort", "low"),
        *("--header", "X-Team: ${OUR_TEAM}", "--header", "X-Sticky: s-{session}/{nonce}"),
        *("--header", "x-plain: a b", "--system-prompt", "Be brief.", "--query", "a=1/2 3"),
        *("--body", '{"prompt_cache_key": "{session}", "chat_template_kwargs": {"x": false}}'),
        *("--body", '{"stream_options": {"continuous_usage_stats": null, "y": 1}}'),
        env={"OPENAI_API_KEY": SECRET, "OUR_TEAM": "ours"},
    )
    good_cell(done)
    assert server.asked
    for asked in server.asked:
        assert asked.path == "/inference/chat/completions/?a=1/2%203&api-version=2024-10-21"
        assert asked.headers["api-key"] == SECRET
        assert "authorization" not in asked.headers
        assert (asked.headers["x-team"], asked.headers["x-plain"]) == ("ours", "a b")
        said = asked.document
        assert said["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (said["temperature"], said["top_p"], said["reasoning_effort"]) == (0.7, 0.9, "low")
        assert said["chat_template_kwargs"] == {"x": False}
        assert said["stream_options"] == {"include_usage": True, "y": 1}
        assert asked.headers["x-sticky"].startswith(f"s-{said['prompt_cache_key']}/")
    sticky = [each.headers["x-sticky"] for each in server.asked]
    assert len(set(sticky)) == len(sticky)
    stored = json.loads((run_dir / "run.json").read_text())
    assert stored["targets"][0]["headers"] == {
        "X-Team": "${OUR_TEAM}",
        "X-Sticky": "…{session}…{nonce}",
        "x-plain": "…",
    }
    assert stored["sweep"]["headers"] == stored["targets"][0]["headers"]
    assert stored["cells"][0]["body"]["temperature"] == 0.7
    assert stored["cells"][0]["system_prompt"] == "Be brief."
    assert SECRET not in everything(done, run_dir)


def test_a_session_keeps_its_mark_and_a_request_does_not(
    threaded: Threaded, sweep: Callable[..., Done]
) -> None:
    server = threaded(good)
    done = sweep(
        f"{server.url}?model=m",
        *("--turns", 2, "--header", "X-Session: {session}", "--workers", 2, "--concurrency", 2),
        *("--body", '{"user": "{nonce}", "metadata": {"ids": ["{session}"]}}'),
    )
    good_cell(done)
    sessions: dict[str, list[int]] = {}
    for asked in timed(server):
        assert asked.document["metadata"] == {"ids": [asked.headers["x-session"]]}
        count = len(asked.document["messages"])
        sessions.setdefault(asked.headers["x-session"], []).append(count)
    assert {tuple(turns) for turns in sessions.values()} <= {(1, 3), (1,)}
    assert (1, 3) in {tuple(turns) for turns in sessions.values()}
    nonces = [asked.document["user"] for asked in server.asked]
    assert len(set(nonces)) == len(nonces)


@pytest.mark.parametrize("client", ["wire", "aiohttp", "openai"])
def test_azure_without_a_model(threaded: Threaded, sweep: Callable[..., Done], client: str) -> None:
    def azure(asked: Asked) -> Answer:
        if asked.headers.get("api-key") != SECRET or "authorization" in asked.headers:
            return 401, "application/json", b'{"error": {"message": "no key"}}'
        return good(asked)

    server = threaded(azure)
    place = "/openai/deployments/my%2Dd/chat/completions?api-version=2024-10-21"
    flags = ("--client", client, "--header", "api-key: ${AZURE_KEY}")
    done = sweep(server.url + place, *flags, env={"AZURE_KEY": SECRET, "OPENAI_API_KEY": "another"})
    assert good_cell(done)["model"] == "my-d"
    assert {asked.path for asked in server.asked} == {place}


def test_a_key_that_is_refused_says_how_it_was_sent(
    threaded: Threaded, sweep: Callable[..., Done]
) -> None:
    server = threaded(lambda _: (401, "application/json", b"{}"))
    done = sweep(f"{server.url}?model=m", "--auth", "x-key", env={"OPENAI_API_KEY": SECRET})
    assert done.code == 3
    assert "sent as x-key: --auth and --header say otherwise" in done.cells[0]["reasons"][0]


@pytest.mark.parametrize("client", ["wire", "openai"])
def test_the_users_authorization_wins(
    threaded: Threaded, sweep: Callable[..., Done], run_dir: Path, client: str
) -> None:
    """And a server that repeats what is in it finds no way into the run directory."""

    def repeat(asked: Asked) -> Answer:
        if "x-request-id" in asked.headers:
            return 500, "application/json", json.dumps(asked.headers).encode()
        return good(asked)

    server = threaded(repeat)
    flags = ("--client", client, "--header", f"authorization: Token {SECRET}")
    env = {"OPENAI_API_KEY": "another-key", "MY_TENANT": "tenant-0123456789"}
    done = sweep(f"{server.url}?model=m", *flags, "--header", "X-T: ${MY_TENANT}", env=env)
    assert done.code != 0
    assert timed(server)
    assert {each.headers["authorization"] for each in server.asked} == {f"Token {SECRET}"}
    left = everything(done, run_dir)
    assert not [secret for secret in (SECRET, "another-key", "tenant-0123456789") if secret in left]


@pytest.mark.parametrize("path", ["", "/api/x"])
def test_without_v1_where_nothing_is_there(
    threaded: Threaded, sweep: Callable[..., Done], run_dir: Path, path: str
) -> None:
    def plain(asked: Asked) -> Answer:
        if "/v1/" in asked.path:
            return 404, "text/plain", b"nothing here"
        return good(asked)

    server = threaded(plain)
    done = sweep(f"{server.url}{path}?model=m")
    good_cell(done)
    assert {each.path for each in timed(server)} == {f"{path}/chat/completions"}
    stored = json.loads((run_dir / "run.json").read_text())
    assert stored["targets"][0]["url"] == f"{server.url}{path}"


def test_a_model_that_is_not_there_is_said_of_v1(
    threaded: Threaded, sweep: Callable[..., Done]
) -> None:
    server = threaded(lambda asked: (404, "application/json", b'{"error": {"message": "who?"}}'))
    done = sweep(f"{server.url}?model=m")
    assert done.code == 3
    assert f"404: who? (model 'm', {server.url}/v1/chat/completions:" in done.cells[0]["reasons"][0]


def test_several_models_of_a_server(threaded: Threaded, sweep: Callable[..., Done]) -> None:
    server = threaded(good)
    done = sweep(f"{server.url}?name=s", "--model", "base,lora/a")
    assert [(each["target"], each["model"]) for each in done.cells] == [
        ("s base", "base"),
        ("s lora/a", "lora/a"),
    ]
    assert {each.document["model"] for each in timed(server)} == {"base", "lora/a"}


@pytest.mark.parametrize("client", ["wire", "aiohttp", "openai"])
def test_an_insecure_run_says_so(
    truth: Callable[..., TruthServer],
    certificates: Certificates,
    run_llmbench: Llmbench,
    run_dir: Path,
    client: str,
) -> None:
    server = truth(tls=certificates.for_host("elsewhere"))
    url = server.url.replace("localhost", "127.0.0.1")
    flags = ("--target", url, "--client", client, "--out", run_dir, *SMALL)
    refused = run_llmbench("sweep", *flags, "--out", run_dir.with_name("no"))
    assert "(tls: the certificate was not accepted" in refused.cells[0]["reasons"][0]
    done = run_llmbench("sweep", *flags, "--insecure")
    assert "no TLS certificate was verified (--insecure)" in done.cells[0]["notes"]
    report = run_llmbench("report", run_dir)
    assert "no TLS certificate was verified (--insecure)" in report.out


# ---- a dry run


def test_a_dry_run_prints_the_request(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", SECRET)
    done = in_process(
        *("sweep", "--dry-run", "--target", "https://h?v=1&key_env=OUR_KEY&model=m&name=one"),
        *("--target", "https://x.openai.azure.com?model=d&key_env=OUR_KEY"),
        *("--header", f"X-Token: {SECRET}", "--header", "X-Org: ${OUR_ORG}"),
        *("--body", '{"user": "u-{nonce}"}', "--temperature", "0.5"),
    )
    assert done.code == 0
    assert SECRET not in done.out + done.err
    first, second = done.out.split("\nfirst request of ")[1:]
    assert first.startswith("one (")
    assert "\nPOST https://h/v1/chat/completions?v=1\n" in first
    assert "\nAuthorization: Bearer ${OUR_KEY}\n" in first
    assert "\nX-Token: …\nX-Org: ${OUR_ORG}\n" in first
    assert "\nPOST https://x.openai.azure.com/openai/v1/chat/completions\n" in second
    assert "\napi-key: ${OUR_KEY}\n" in second
    said = json.loads(first.strip().splitlines()[-1])
    assert (said["model"], said["user"], said["temperature"]) == ("m", "u-dry-run-0-0", 0.5)
    assert len(json.dumps(said)) < 600


# ---- targets


@pytest.mark.parametrize(
    ("url", "base", "path", "api"),
    [
        ("http://h/v1/chat/completions", "http://h/v1", "/chat/completions", "chat"),
        ("http://h/a/chat/completions/", "http://h/a", "/chat/completions/", "chat"),
        ("http://h/completions", "http://h", "/completions", "completions"),
        ("h:1/x/v3/completions", "http://h:1/x/v3", "/completions", "completions"),
        ("http://h/v1", "http://h/v1", "", "chat"),
        ("http://h/completions-v2", "http://h/completions-v2/v1", "", "chat"),
    ],
)
def test_a_url_that_names_its_endpoint(url: str, base: str, path: str, api: str) -> None:
    target = target_of(url)
    assert (target.url, target.path, target.api) == (base, path, api)
    assert elsewhere(target) is None or path in ("", "/chat/completions/")


def test_an_endpoint_that_is_another_api() -> None:
    said = refusal({"target": ["http://h/completions?api=chat"]})
    assert "the URL names the API completions, and api says chat" in said
    assert target_of("http://h/completions", api="chat").api == "completions"


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("http://h", "http://h"),
        ("http://h/api/x/", "http://h/api/x"),
        ("h:80", "http://h:80"),
        ("http://h/v1", None),
        ("http://h/v2/models", None),
        ("http://h/chat/completions", None),
        ("vllm:m", None),
        ("vllm-server:m", None),
    ],
)
def test_where_else_to_look(url: str, plain: str | None) -> None:
    other = elsewhere(target_of(url))
    assert (other and other.url) == plain


def test_parameters_of_a_url_are_sent() -> None:
    target = target_of("http://h?api-version=2024-10-21&model=m&a=&query.name=x&query.key=${K}")
    assert target.query == {"api-version": "2024-10-21", "a": "", "name": "x", "key": "${K}"}
    assert (target.model, target.name) == ("m", "h")
    assert target_of("http://h?b=2", query=["a=1", "b=1"]).query == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("http://h?modle=x", "did you mean 'model'? write query.modle=… to send it"),
        ("http://h?token=5ecret", "'token'; write query.token=${NAME}, an environment variable"),
        ("http://h?query.token=5ecret", "query token: a secret comes from an environment variable"),
        ("http://h?a=1&a=2", "the query parameter 'a' stands there twice"),
        ("http://h?headers=x", "unknown option 'headers'"),
        ("http://h?%1b=x", "a character that cannot be shown"),
        ("vllm:m?api-version=1", "unknown option 'api-version'"),
        ("http://h?auth=a b", "auth is bearer, or the name of a header"),
        ("http://h?temperature=hot", "temperature is a number"),
        ("http://h?insecure=yes", "insecure is true or false"),
    ],
)
def test_what_is_not_sent(spec: str, words: str) -> None:
    said = refusal({"target": [spec]})
    assert said.startswith("--target ")
    assert words in said
    assert "5ecret" not in said


@pytest.mark.parametrize(
    ("url", "auth"),
    [
        ("https://r.openai.azure.com/openai/v1", "api-key"),
        ("https://R.OpenAI.Azure.com", "api-key"),
        ("https://r.cognitiveservices.azure.com/openai", "api-key"),
        ("https://r.services.ai.azure.com/models", "api-key"),
        ("https://r.openai.azure.com?auth=Bearer", "bearer"),
        ("https://r.azure.com.example", ""),
        ("https://api.openai.com", ""),
    ],
)
def test_how_the_key_is_sent(url: str, auth: str) -> None:
    assert target_of(url).auth == auth


def test_tables_are_laid_over_what_is_said_for_all(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text('{"a": {"x": 1, "y": 2}, "b": null}')
    (tmp_path / "system.txt").write_text("Be brief.")
    path = tmp_path / "c.toml"
    path.write_text(f"""
        body = "@{tmp_path}/body.json"
        headers = {{ "X-A" = "1", "X-B" = "${{NOT_SET}}" }}
        temperature = 0.5
        [[target]]
        target = "http://h?api-version=1"
        query = {{ other = "2" }}
        headers = {{ x-a = "2" }}
        body = {{ a = {{ y = 3 }} }}
        temperature = 0.0
        system_prompt = "@{tmp_path}/system.txt"
        auth = "x-api-key"
        insecure = true
    """)
    (target,) = load_sweep({"headers": ["X-C: 3"], "top_p": 0.5}, path).targets()
    assert target.headers == {"X-B": "${NOT_SET}", "X-C": "3", "x-a": "2"}
    assert target.query == {"api-version": "1", "other": "2"}
    assert target.body == {"temperature": 0.0, "top_p": 0.5, "a": {"x": 1, "y": 3}, "b": None}
    assert target.system_prompt == "Be brief."
    assert (target.auth, target.insecure) == ("x-api-key", True)


def test_reasoning_effort_in_the_words_of_the_api() -> None:
    target = target_of("http://h", reasoning_effort="high")
    assert target.body == {"reasoning_effort": "high"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"headers": ["X-Tier gold"]}, "--header: a colon is missing"),
        ({"headers": ["X Tier: 5ecret"]}, "--header: that is no name of a header"),
        ({"headers": ["X: 5ecret\r\nY: 1"]}, "--header X: its value has a character"),
        ({"headers": ["X: ü5ecret"]}, "--header X: its value has a character"),
        ({"headers": ["content-length: 5"]}, "--header content-length: it follows from the body"),
        ({"headers": ["Content-Type: text/plain"]}, "the body is JSON"),
        ({"headers": ["Accept-Encoding: gzip"]}, "a compressor would hold tokens back"),
        ({"headers": ["X-Request-Id: 1"]}, "llmbench numbers its requests with it"),
        ({"body": ["{"]}, "--body: not JSON: "),
        ({"body": ["[1]"]}, "--body: a JSON object is expected"),
        ({"body": ['{"a": NaN}']}, "--body: not JSON: NaN is no number of JSON"),
        ({"body": ["@/nowhere/b.json"]}, "--body @/nowhere/b.json: cannot be read: No such file"),
        ({"body": ['{"stream": false}']}, "stream cannot be set: only streams are timed"),
        ({"body": ['{"messages": []}']}, "messages cannot be set"),
        ({"query": ["api-version"]}, "--query: write it like api-version=2024-10-21"),
        ({"query": ["key=5ecret"]}, "--query key: a secret comes from an environment variable"),
        ({"system_prompt": "@/nowhere/s"}, "--system-prompt @/nowhere/s: cannot be read"),
        ({"top_p": 2.0}, "--top-p"),
        ({"insecure": True, "ca_file": "c"}, "--insecure: nothing is verified then"),
        ({"target": ["vllm:m"], "temperature": 1.0}, "--temperature: vllm m is called in process"),
        ({"temperature": 1.0, "agreement": True}, "--agreement: its replies are greedy, and h is"),
        ({"target": ["vllm:m"], "headers": ["A: b"]}, "--header: vllm m is called in process"),
    ],
)
def test_what_cannot_be_said(flags: dict[str, Any], words: str) -> None:
    said = refusal({"target": ["http://h"]} | flags)
    assert words in said
    assert "5ecret" not in said


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("headers = 5", "headers: expected a table"),
        ('headers = { "A" = 5 }', "headers: expected text"),
        ("query = { a = 1 }", "query: expected text"),
        ("body = 5", "body: expected a table"),
        ('[[target]]\ntarget = "http://h"\nheaders = { "Te" = "x" }', "headers Te: it is about"),
        ('[[target]]\ntarget = "http://h"\ntop_p = 2', "top_p"),
        ('[[target]]\ntarget = "vllm:m"\nbody = { a = 1 }', "option 'body' is not for this kind"),
    ],
)
def test_what_cannot_be_said_in_a_file(tmp_path: Path, lines: str, words: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(lines)
    said = refusal({}, path)
    assert said.startswith(f"{path}: ")
    assert words in said


def test_a_managed_server_is_asked_over_http() -> None:
    target = target_of("vllm-server:m", temperature=1.0, headers=["A: b"])
    assert (target.body, target.headers) == ({"temperature": 1.0}, {"A": "b"})


# ---- headers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", ""),
        ("gold", "…"),
        ("Bearer ${TOKEN}", "…${TOKEN}"),
        ("{session}-{nonce}", "{session}…{nonce}"),
        ("${A}${B}", "${A}${B}"),
        ("${not a name}", "…"),
    ],
)
def test_what_is_shown_of_a_header(value: str, shown: str) -> None:
    assert hidden(value) == shown


def test_headers_of_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    monkeypatch.setenv("TENANT", " t-0123456789 ")
    own = {"user-agent": "", "X-T": "a ${TENANT}", "S": "{session}", "Cookie": "c=0123456789"}
    target = Target(spec="", name="t", url="http://h/v1", headers=own, query={"k": "${TENANT}"})
    where = endpoint(target)
    assert where.headers() == {
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "Authorization": "Bearer sk-0123456789",
        "X-T": "a t-0123456789",
        "Cookie": "c=0123456789",
    }
    assert where.filled("s1", "n1") == {"S": "s1"}
    assert where.url_of("/models") == "http://h/v1/models?k=t-0123456789"
    said = b"sk-0123456789 t-0123456789 c=0123456789 a gold"
    assert re.fullmatch(rb"\*{13} \*{12} \*{12} a gold", where.redacted(said))
    assert "0123456789" not in repr(where)


def test_a_variable_that_is_not_set() -> None:
    target = Target(spec="", name="t", url="http://h/v1", headers={"X": "${NOT_SET_AT_ALL}"})
    with pytest.raises(UserError, match="t: the environment variable NOT_SET_AT_ALL is not set"):
        endpoint(target)


# ---- bodies

leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=1), inner),
    max_leaves=8,
)
tables = st.dictionaries(st.text("ab", max_size=1), values, max_size=3)


def patch(document: Any, over: Any) -> Any:
    """The algorithm as RFC 7396 has it in its section 2."""
    if not isinstance(over, dict):
        return over
    found = dict(document) if isinstance(document, dict) else {}
    for name in over:
        if over[name] is None:
            found.pop(name, None)
        else:
            found[name] = patch(found.get(name), over[name])
    return found


@given(tables, tables)
def test_fields_are_laid_over_a_body_as_the_standard_says(
    ours: dict[str, Any], own: dict[str, Any]
) -> None:
    assert json.loads(with_fields(json.dumps(ours).encode(), own)) == patch(ours, own)


@given(tables, tables, tables)
def test_layers_can_be_laid_together_first(
    ours: dict[str, Any], all_: dict[str, Any], own: dict[str, Any]
) -> None:
    body = json.dumps(ours).encode()
    twice = with_fields(with_fields(body, all_), own)
    once = json.loads(with_fields(body, layered(all_, own)))
    if not conflicts(all_, own):
        assert once == json.loads(twice)


def conflicts(under: dict[str, Any], over: dict[str, Any]) -> bool:
    """Whether a table stands over what is no table: there a second patch starts from nothing."""
    return any(
        isinstance(value, dict)
        and name in under
        and (not isinstance(under[name], dict) or conflicts(under[name], value))
        for name, value in over.items()
    )


def test_no_fields_leave_a_body_as_it_is() -> None:
    assert with_fields(b'{"a":  1}', {}) == b'{"a":  1}'


def test_marks_in_a_body() -> None:
    body = {"a": ["{session}", 1, {"b": "x{nonce}{nonce}"}], "c": None, "{nonce}": "d"}
    filled = {"a": ["s", 1, {"b": "xnn"}], "c": None, "{nonce}": "d"}
    assert filled_in(body, "s", "n") == filled


def test_a_system_prompt_takes_the_place_of_a_rows() -> None:
    row = [Message("system", "a"), Message("user", "b")]
    assert with_system(row, "") == row
    assert with_system(row, "c") == [Message("system", "c"), Message("user", "b")]
    assert with_system(row[1:], "c") == [Message("system", "c"), Message("user", "b")]


# ---- what makes two runs alike


def test_other_fields_are_other_work() -> None:
    def with_(**facts: Any) -> Any:
        return ONE._replace(facts=replace(ONE.facts, **facts))

    one, other = with_(body={"a": 1, "b": 2}), with_(body={"b": 2, "a": 1})
    assert differences(one, other) == []
    assert differences(ONE, one) == ['request fields none against {"a":1,"b":2}']
    told = differences(with_(system_prompt="x" * 99 + "1"), with_(system_prompt="x" * 99 + "2"))
    assert len(told) == 1
    assert told[0].startswith("system prompt xxx")
    assert len(set(re.findall("CRC [0-9a-f]{8}", told[0]))) == 2
