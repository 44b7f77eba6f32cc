"""The truth server, from its pure schedule to the bytes that a raw socket sees."""

import argparse
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from conftest import PATIENCE_S, until

from llmbench.truth import flags
from llmbench.truth.log import parse_log
from llmbench.truth.process import TruthServer
from llmbench.truth.replies import Plan, plan
from llmbench.truth.script import Refusal, Request, Script, read_request, schedule_ns

MS = 1_000_000
QUICK = {"ttft_ms": 2.0, "itl_ms": 1.0, "output_tokens": 5}
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def quick(**fields: Any) -> Script:
    return Script(**(QUICK | fields))


# ---- the pure part


def planned(script: Script, **fields: Any) -> Plan:
    facts = {"id": "1", "model": "m", "prompt_tokens": 11, "stream": True}
    return plan(script, Request(**(facts | fields)), Random(0))


def offsets(script: Script) -> list[float]:
    return [due / MS for due, _, _ in planned(script).steps]


def test_the_schedule_is_exact() -> None:
    assert schedule_ns(Script(), 3, Random(0)) == [50 * MS, 60 * MS, 70 * MS]
    assert schedule_ns(Script(ttft_ms=0.5, itl_ms=0), 2, Random(0)) == [MS // 2] * 2


def test_a_stall_delays_all_that_follows() -> None:
    script = Script(ttft_ms=5, itl_ms=1, stall_every=2, stall_ms=10)
    assert schedule_ns(script, 5, Random(0)) == [5 * MS, 16 * MS, 17 * MS, 28 * MS, 29 * MS]


def test_jitter_moves_each_gap_within_its_bounds_and_never_back() -> None:
    dues = schedule_ns(Script(jitter_ms=4), 500, Random(1))
    gaps = [after - before for before, after in pairwise(dues)]
    assert dues[0] == 50 * MS
    assert 6 * MS - 1 <= min(gaps) < 7 * MS
    assert 13 * MS < max(gaps) <= 14 * MS + 1
    wild = schedule_ns(Script(jitter_ms=50), 500, Random(1))
    assert wild == sorted(wild)


def test_finish_and_done_share_the_last_tokens_tick() -> None:
    assert offsets(quick()) == [2, 3, 4, 5, 6, 6, 6]


def test_tokens_per_event_leaves_the_remainder_to_the_last() -> None:
    reply = planned(quick(tokens_per_event=2), include_usage=True)
    assert (reply.first_token, reply.last_token, reply.output_tokens) == (0, 2, 5)
    assert [due / MS for due, _, _ in reply.steps] == [2, 3, 4, 4, 4, 4]


def test_the_role_comes_before_the_first_token() -> None:
    reply = planned(quick(role_first=True))
    assert (reply.first_token, reply.last_token) == (1, 5)
    assert b'"role":"assistant"' in reply.steps[0][1]


def test_coalesced_events_are_due_with_their_last() -> None:
    steps = planned(quick(coalesce=3)).steps
    assert [(due / MS, events) for due, _, events in steps] == [(4, 3), (6, 3), (6, 1)]


def test_split_events_are_completed_by_the_second_piece() -> None:
    steps = planned(quick(split_bytes=True, split_delay_ms=0.25)).steps
    assert [events for _, _, events in steps] == [0, 1] * 7
    dues = [due for due, _, _ in steps]
    assert dues == sorted(dues)
    assert {after - before for before, after in zip(dues[::2], dues[1::2], strict=True)} == {
        MS // 4
    }
    assert any(data[0] & 0xC0 == 0x80 for _, data, _ in steps)  # a cut inside a character


def test_a_break_comes_when_the_next_event_was_due() -> None:
    reply = planned(quick(truncate_at=2))
    assert reply.ending == "truncated"
    assert [(due / MS, events) for due, _, events in reply.steps] == [(2, 1), (3, 1), (4, 0)]
    assert planned(quick(hang_at=4, reset_at=3)).ending == "reset"
    assert planned(quick(hang_at=99)).ending == "complete"


def test_headers_go_with_the_first_send_unless_told() -> None:
    assert offsets(quick(early_headers=True))[:2] == [0, 2]
    assert offsets(quick(slow_headers_ms=4))[:5] == [4, 4, 4, 4, 5]


def test_the_prompt_is_counted_in_words() -> None:
    parts = [{"type": "text", "text": "a b"}, {"type": "image_url"}]
    messages = [{"role": "user", "content": "one two"}, {"role": "user", "content": parts}]
    assert read("chat", messages=messages).prompt_tokens == 14
    assert read("completions", prompt=["a b", "c"]).prompt_tokens == 3
    assert read("completions", prompt=[1, 2, 3, 4]).prompt_tokens == 4


def read(api: str, script: Script | None = None, **fields: Any) -> Request:
    return read_request(script or Script(), api, json.dumps(fields).encode(), request_id="1")


@pytest.mark.parametrize(
    "fields", [{"messages": "hi"}, {}, {"messages": [], "max_tokens": 0}, {"messages": [1]}]
)
def test_bad_requests_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        read("chat", **fields)


def test_flags_make_the_script_again() -> None:
    script = Script(
        model="a b", ttft_ms=1.5, crlf=True, truncate_at=0, max_parallel=3, api_key_env="K"
    )
    parser = argparse.ArgumentParser()
    flags.add_flags(parser)
    assert flags.script_from(parser.parse_args(flags.flags_for(script))) == script
    assert flags.script_from(parser.parse_args([])) == Script()
    assert "--slow-headers-ms MS" in parser.format_help()


@pytest.mark.parametrize("flag", ["--ttft-ms=-1", "--coalesce=0", "--error-at=x", "--status=99"])
def test_a_bad_flag_is_named(flag: str) -> None:
    parser = argparse.ArgumentParser()
    flags.add_flags(parser)
    with pytest.raises(ValueError, match=flag.split("=")[0]):
        flags.script_from(parser.parse_args([flag]))


# ---- real sockets


@pytest.fixture
def start() -> Iterator[Callable[..., TruthServer]]:
    started: list[TruthServer] = []

    def begin(script: Script | None = None, **options: Any) -> TruthServer:
        started.append(TruthServer(script or quick(), **options))
        return started[-1].__enter__()

    yield begin
    for server in started:
        assert server.stop() == 0


def dial(server: TruthServer) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S)


def post(path: str = CHAT, head: str = "", **fields: Any) -> bytes:
    prompt: dict[str, Any] = {"prompt": "hi"}
    if path == CHAT:
        prompt = {"messages": [{"role": "user", "content": "hi"}]}
    body = json.dumps({"model": "m", "stream": True} | prompt | fields).encode()
    start = f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n{head}\r\n"
    return start.encode() + body


def exchange(server: TruthServer, *requests: bytes) -> bytes:
    """Send the requests at once, and read until the server closes."""
    with dial(server) as sock:
        sock.sendall(b"".join(requests))
        return drain(sock)


def drain(sock: socket.socket) -> bytes:
    got = b""
    while data := sock.recv(65536):
        got += data
    return got


def read_until(sock: socket.socket, mark: bytes, count: int = 1) -> bytes:
    got = b""
    while got.count(mark) < count:
        data = sock.recv(65536)
        assert data, f"closed after {got!r}"
        got += data
    return got


CLOSE = "Connection: close\r\n"
LAST = b"0\r\n\r\n"


def body_of(reply: bytes) -> bytes:
    head, _, body = reply.partition(b"\r\n\r\n")
    if b"Transfer-Encoding: chunked" not in head:
        return body
    chunks = []
    at = 0
    while at < len(body):
        start = body.index(b"\r\n", at) + 2
        end = start + int(body[at:start], 16)
        chunks.append(body[start:end])
        at = end + 2
    return b"".join(chunks)


def events_of(reply: bytes) -> list[Any]:
    lines = body_of(reply).replace(b"\r\n", b"\n").decode().split("\n")
    data = [line[5:].strip() for line in lines if line.startswith("data:")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def ask(server: TruthServer, path: str = CHAT, **fields: Any) -> list[Any]:
    return events_of(exchange(server, post(path, CLOSE, **fields)))


def texts(events: list[Any], name: str = "content") -> list[str]:
    chunks = [event for event in events if isinstance(event, dict) and event.get("choices")]
    return [c["choices"][0]["delta"][name] for c in chunks if name in c["choices"][0]["delta"]]


def test_a_stream_looks_like_vllms(start: Callable[..., TruthServer]) -> None:
    events = ask(start(), max_tokens=3, stream_options={"include_usage": True})
    first, *_, finish, usage, done = events
    assert len(events) == 6
    assert {"id", "object", "created", "model", "choices"} == set(first)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"content": " The"}
    assert finish["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 11
    assert usage["usage"]["completion_tokens"] == 3
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert done == "[DONE]"


def test_completions_and_running_usage(start: Callable[..., TruthServer]) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = ask(start(), TEXT, max_tokens=3, stream_options=options)
    assert [event["choices"][0]["text"] for event in events[:3]] == [" The", " ruler", " knows"]
    assert [event["usage"]["completion_tokens"] for event in events[:-1]] == [1, 2, 3, 3, 3]


def test_without_stream_it_is_one_document(start: Callable[..., TruthServer]) -> None:
    server = start()
    reply = json.loads(body_of(exchange(server, post(head=CLOSE, stream=False, max_tokens=2))))
    assert reply["choices"][0]["message"]["content"] == " The ruler"
    assert reply["usage"]["total_tokens"] == 13
    (logged,) = server.log()
    assert logged.ttft_ns is not None
    assert logged.ttft_ns >= 3 * MS


def test_models_health_and_what_is_not_there(start: Callable[..., TruthServer]) -> None:
    server = start(quick(model="m7"))
    get = "GET {} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    models = exchange(server, get.format("/v1/models").encode())
    assert json.loads(body_of(models))["data"][0]["id"] == "m7"
    assert exchange(server, get.format("/health").encode()).startswith(b"HTTP/1.1 200 ")
    assert exchange(server, get.format("/v1/x").encode()).startswith(b"HTTP/1.1 404 ")
    assert exchange(server, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_the_log_tells_the_true_times(start: Callable[..., TruthServer], tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    script = Script(ttft_ms=20, itl_ms=3, role_first=True)
    server = start(script, log_path=path)
    before = time.monotonic_ns()
    ask(server, max_tokens=4)
    wait_for_log(server, 1)
    after = time.monotonic_ns()
    exchange(server, post(head=CLOSE + "X-Request-Id: mine\r\n", max_tokens=4))
    first, second = server.log()
    assert (first.number, first.request_id, second.request_id) == (0, "1", "mine")
    assert first.ended == "complete"
    assert before <= first.received_ns == first.started_ns <= first.sent_ns[0]
    assert first.ended_ns <= after
    assert len(first.sent_ns) == 1 + 4 + 2
    assert len(first.token_sent_ns) == 4
    dues = schedule_ns(script, 4, Random(0))
    late = [at - first.started_ns - due for at, due in zip(first.token_sent_ns, dues, strict=True)]
    assert min(late) >= 0
    assert first.late_ns >= max(late)
    assert first.ttft_ns == first.token_sent_ns[0] - first.received_ns
    if sys.platform == "linux":
        assert first.stamps == "kernel"
    assert [reply.number for reply in server.log(since=1)] == [1]
    server.reset()
    assert server.log() == []
    server.stop()
    assert parse_log(path.read_bytes()) == [first, second]


def test_keep_alive_and_pipelining(start: Callable[..., TruthServer]) -> None:
    server = start()
    with dial(server) as sock:
        for _ in range(2):
            sock.sendall(post())
            assert read_until(sock, LAST).count(b"data:") == 7
        sock.sendall(post(max_tokens=1) * 3)
        assert read_until(sock, LAST, 3).count(b"data: [DONE]") == 3
    replies = server.log()
    assert [reply.connection for reply in replies] == [1] * 5
    one, two, three = replies[2:]
    assert one.received_ns == three.received_ns
    assert one.ended_ns <= two.started_ns <= two.sent_ns[0] <= three.started_ns


def test_a_client_that_leaves_cancels_its_reply(start: Callable[..., TruthServer]) -> None:
    server = start(quick(itl_ms=20, output_tokens=1000))
    with dial(server) as sock:
        sock.sendall(post())
        read_until(sock, b"data:", 2)
    (reply,) = wait_for_log(server, 1)
    assert reply.ended == "disconnected"
    assert 2 <= len(reply.sent_ns) < 900


def wait_for_log(server: TruthServer, count: int) -> list[Any]:
    until(lambda: len(server.log()) >= count)
    return server.log()


def test_a_slow_reader_gets_every_byte(start: Callable[..., TruthServer]) -> None:
    server = start(quick(itl_ms=0, output_tokens=30_000, tokens_per_event=10))
    with dial(server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sock.sendall(post(head=CLOSE, max_tokens=300_000))
        until(lambda: is_full(sock))
        reply = drain(sock)
    assert len(events_of(reply)) == 30_002
    (logged,) = server.log()
    assert logged.blocked > 0
    assert list(logged.sent_ns) == sorted(logged.sent_ns)
    assert len(logged.sent_ns) == 30_002


def is_full(sock: socket.socket) -> bool:
    """Whether nothing more has come for a second."""

    def waiting() -> int:
        return len(sock.recv(1 << 24, socket.MSG_PEEK))

    before = waiting()
    time.sleep(1.0)
    return waiting() == before


def test_max_parallel_serves_in_the_order_of_arrival(start: Callable[..., TruthServer]) -> None:
    server = start(quick(max_parallel=1, ttft_ms=500))
    socks = [dial(server) for _ in range(4)]
    for index, sock in enumerate(socks):
        sock.sendall(post(head=f"X-Request-Id: {index}\r\n"))
        time.sleep(0.005)
    socks.pop(1).close()
    for sock in socks:
        read_until(sock, LAST)
        sock.close()
    replies = server.log()
    (gone,) = [reply for reply in replies if reply.ended != "complete"]
    replies.remove(gone)
    assert (gone.request_id, gone.ended, list(gone.sent_ns)) == ("1", "disconnected", [])
    assert [reply.request_id for reply in replies] == ["0", "2", "3"]
    for before, after in pairwise(replies):
        assert after.started_ns >= before.sent_ns[-1]
        assert after.ttft_ns > after.token_sent_ns[0] - after.started_ns


# ---- misbehaviours, at the byte level


def raw(server: TruthServer, path: str = CHAT, head: str = CLOSE, **fields: Any) -> bytes:
    return exchange(server, post(path, head, **fields))


def test_line_ends_spaces_and_comments(start: Callable[..., TruthServer]) -> None:
    body = body_of(raw(start(quick(crlf=True, no_space=True, comments=True))))
    assert body.startswith(b': ping\r\n\r\n: ping\r\ndata:{"id"')
    assert body.endswith(b"data:[DONE]\r\n\r\n")
    assert b"\n" not in body.replace(b"\r\n", b"")
    assert body.count(b": ping\r\n\r\n") == 7


def test_split_text_survives(start: Callable[..., TruthServer]) -> None:
    server = start(quick(split_bytes=True, split_delay_ms=0.5, coalesce=2))
    assert texts(ask(server)) == [" naïve", " 光", " Ωmega", " 🙂", " señal"]
    assert len(server.log()[0].sent_ns) == 7


def test_reasoning_then_answer(start: Callable[..., TruthServer]) -> None:
    events = ask(start(quick(reasoning_tokens=2)), stream_options={"include_usage": True})
    assert texts(events, "reasoning_content") == [" The", " ruler"]
    assert texts(events) == [" knows", " its", " own"]
    assert events[-2]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_a_tool_call_adds_up(start: Callable[..., TruthServer]) -> None:
    events = ask(start(quick(tool_call=True)))
    calls = [call for (call,) in texts(events, "tool_calls")]
    assert calls[0]["function"]["name"] == "say"
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(arguments) == {"text": " The ruler knows its own"}
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_what_can_be_missing(start: Callable[..., TruthServer]) -> None:
    server = start(quick(missing_usage=True, no_done=True, early_stop=2))
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = ask(server, stream_options=options)
    assert len(events) == 3
    assert not any("usage" in event for event in events)
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_an_error_in_the_stream(start: Callable[..., TruthServer]) -> None:
    events = ask(start(quick(error_at=2)))
    assert len(events) == 3
    assert events[2]["error"]["type"] == "server_error"


def test_a_truncated_stream(start: Callable[..., TruthServer]) -> None:
    server = start(quick(truncate_at=2))
    reply = raw(server, head="")
    assert reply.count(b"data:") == 2
    assert not reply.endswith(LAST)
    assert server.log()[0].ended == "truncated"
    assert len(server.log()[0].sent_ns) == 2


def test_a_reset_stream(start: Callable[..., TruthServer]) -> None:
    server = start(quick(reset_at=2))
    with dial(server) as sock:
        sock.sendall(post())
        read_until(sock, b"data:", 2)
        with pytest.raises(ConnectionResetError):
            sock.recv(65536)
    assert server.log()[0].ended == "reset"


def test_a_hung_stream(start: Callable[..., TruthServer]) -> None:
    server = start(quick(hang_at=2))
    with dial(server) as sock:
        sock.sendall(post())
        read_until(sock, b"data:", 2)
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(65536)
        assert server.log() == []
    assert wait_for_log(server, 1)[0].ended == "hung"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, "rate_limit_error"), (500, "server_error"), (404, "invalid_request_error")],
)
def test_error_statuses(start: Callable[..., TruthServer], status: int, kind: str) -> None:
    server = start(quick(status=status, retry_after_s=7))
    reply = raw(server)
    assert reply.startswith(f"HTTP/1.1 {status} ".encode())
    assert (b"Retry-After: 7\r\n" in reply) == (status == 429)
    assert json.loads(body_of(reply))["error"]["type"] == kind
    (logged,) = server.log()
    assert (logged.status, logged.ttft_ns) == (status, None)


def test_a_page_instead_of_a_stream(start: Callable[..., TruthServer]) -> None:
    reply = raw(start(quick(html=True)))
    assert b"200 OK" in reply
    assert b"Content-Type: text/html\r\n" in reply


def test_ways_to_close(start: Callable[..., TruthServer]) -> None:
    announced = raw(start(quick(close=True)), head="")
    assert b"Connection: close\r\n" in announced
    silent = raw(start(quick(silent_close=True)), head="")
    assert b"Connection: close" not in silent
    assert silent.endswith(LAST)
    bare = raw(start(quick(no_chunked=True)), head="")
    assert b"Transfer-Encoding" not in bare
    assert bare.endswith(b"data: [DONE]\n\n")


def test_early_headers_come_alone(start: Callable[..., TruthServer]) -> None:
    server = start(quick(early_headers=True, hang_at=0))
    with dial(server) as sock:
        sock.sendall(post())
        assert read_until(sock, b"\r\n\r\n").endswith(b"chunked\r\n\r\n")


def test_refusals(start: Callable[..., TruthServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTH_KEY", "secret")
    script = quick(context_limit=20, reject_unknown=True, api_key_env="TRUTH_KEY", no_models=True)
    server = start(script)
    key = CLOSE + "Authorization: Bearer secret\r\n"
    assert raw(server).startswith(b"HTTP/1.1 401 ")
    assert b"maximum context length is 20 tokens" in raw(server, head=key, max_tokens=10)
    assert b"Unknown parameter: 'ignore_eos'" in raw(server, head=key, ignore_eos=True)
    nested = raw(server, head=key, stream_options={"continuous_usage_stats": True})
    assert nested.startswith(b"HTTP/1.1 400 ")
    assert len(events_of(raw(server, head=key, max_tokens=9))) == 11
    models = f"GET /v1/models HTTP/1.1\r\nHost: t\r\n{key}\r\n".encode()
    assert exchange(server, models).startswith(b"HTTP/1.1 404 ")


def test_tls(start: Callable[..., TruthServer], tmp_path: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    names = str(tmp_path / "chain.pem"), str(tmp_path / "key.pem")
    made.cert_chain_pems[0].write_to_path(names[0])
    made.private_key_pem.write_to_path(names[1])
    server = start(quick(), tls=names)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with dial(server) as plain, context.wrap_socket(plain, server_hostname="localhost") as sock:
        sock.sendall(post(max_tokens=3))
        read_until(sock, LAST)
        sock.sendall(post(head=CLOSE, max_tokens=3))
        assert len(events_of(drain(sock))) == 5
    assert [reply.ended for reply in server.log()] == ["complete"] * 2


# ---- the process


def test_a_signal_ends_it_cleanly_and_the_log_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with TruthServer(quick(output_tokens=10_000), log_path=path) as server, dial(server) as sock:
        sock.sendall(post())
        read_until(sock, b"data:")
        os.kill(server.pid, signal.SIGTERM)
        assert server.stop() == 0
    (reply,) = parse_log(path.read_bytes())
    assert reply.ended == "shutdown"


def test_what_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="NO_SUCH_KEY is not set"):
        TruthServer(Script(api_key_env="NO_SUCH_KEY")).__enter__()
    command = [sys.executable, "-m", "llmbench.truth.server", "--itl-ms=no"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("truth-server: --itl-ms: ")


def test_a_reset_by_the_client_is_survived(start: Callable[..., TruthServer]) -> None:
    server = start(quick(output_tokens=1000))
    with dial(server) as sock:
        sock.sendall(post())
        read_until(sock, b"data:")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert wait_for_log(server, 1)[0].ended == "disconnected"
    assert len(ask(server, max_tokens=1)) == 3
    assert server.cpu_s() > 0
