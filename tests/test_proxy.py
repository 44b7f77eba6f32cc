"""Proxies of the environment: which one holds, and the way through it, for every client."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Certificates, Done, Llmbench, Peer, content, finish, port_of, raw_server, sse
from connect_proxy import ConnectProxy, connect_proxy
from test_clients import CLIENTS, Truth, connected, each_client, once, text

from llmbench.cli import main
from llmbench.drive import opening
from llmbench.drive.endpoint import endpoint
from llmbench.drive.proxy import Proxy, proxy_of, way_to
from llmbench.errors import UserError
from llmbench.records import Target

USER, PASSWORD = "jo@corp", "s3cret/pass word"
CREDENTIALS = "jo%40corp:s3cret%2Fpass%20word"
BASIC = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
SAID = " The ruler knows its own"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectProxy]:
    """A proxy that wants a user and password, named for all targets."""
    with connect_proxy() as running:
        monkeypatch.setenv("ALL_PROXY", f"http://{CREDENTIALS}@127.0.0.1:{running.port}")
        yield running


# ── which proxy holds ────────────────────────────────────────────────────────────────────────────

HOLDS: list[tuple[dict[str, str], str, str | None]] = [
    ({}, "http://llm.test", None),
    ({"ALL_PROXY": "http://p:1"}, "", None),  # an engine in process
    ({"HTTP_PROXY": "http://p:3128"}, "http://llm.test", "p:3128"),
    ({"HTTP_PROXY": "http://p:3128"}, "https://llm.test", None),
    ({"HTTPS_PROXY": "http://p:3128/"}, "https://llm.test/v1", "p:3128"),
    ({"https_proxy": "p:3128"}, "https://llm.test/v1", "p:3128"),
    ({"ALL_PROXY": "http://p"}, "https://llm.test", "p:80"),
    ({"all_proxy": "http://[2001:db8::1]:3128"}, "http://llm.test", "[2001:db8::1]:3128"),
    ({"ALL_PROXY": "http://a:1", "HTTP_PROXY": "http://b:2"}, "http://llm.test", "b:2"),
    ({"HTTP_PROXY": "http://a:1", "http_proxy": "http://b:2"}, "http://llm.test", "b:2"),
    ({"HTTP_PROXY": ""}, "http://llm.test", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "llm.test"}, "http://llm.test:8000", None),
    ({"ALL_PROXY": "http://p:1", "no_proxy": "a.b, .test"}, "http://llm.test:8000", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "*"}, "http://llm.test:8000", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "llm.test:8000"}, "http://llm.test:8000", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "llm.test:443"}, "https://llm.test", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "llm.test:8000"}, "http://llm.test:8001", "p:1"),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "lm.test"}, "http://llm.test", "p:1"),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "2001:db8::2"}, "http://[2001:db8::2]:80", None),
    ({"ALL_PROXY": "http://p:1"}, "http://10.0.0.1:8000", "p:1"),
    *(
        ({"ALL_PROXY": "http://p:1", "HTTP_PROXY": "socks5://p:1"}, f"http://{host}:8000", None)
        for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]", "0.0.0.0")
    ),
]


@pytest.mark.parametrize(("environment", "url", "expected"), HOLDS)
def test_which_proxy_holds(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, expected: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_of(url)
    assert (found and found.authority) == expected


REFUSED = {
    "socks5://jo:s3cret@p:1080": "not socks5://",
    "socks5h://p": "not socks5h://",
    "https://jo:s3cret@p:443": "not https://",
    "http://jo:s3cret/more@p:3128": "%40 for @",
    "http://jo:s3@cret/more@p:3128": "%40 for @",
    "http://jo:s3cret#more@p:3128": "%40 for @",
    "http://p:port": "%40 for @",
    "http://[p": "%40 for @",
    "http://": "%40 for @",
    "http://jo:s3cr%C3%A9t@p:3128": "beyond ASCII",
}


@pytest.mark.parametrize("value", REFUSED)
def test_what_is_no_proxy_is_refused_without_repeating_it(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("https_proxy", value)
    with pytest.raises(UserError) as caught:
        proxy_of("https://llm.test")
    said = str(caught.value)
    assert said.startswith("https_proxy: ")
    assert REFUSED[value] in said
    assert "s3" not in said
    assert "\n" not in said


def test_a_proxy_is_shown_without_its_password() -> None:
    shown = Proxy("HTTP_PROXY", "p", 3128, USER, PASSWORD)
    assert repr(shown) == str(shown) == "Proxy('p:3128')"
    assert shown.url == f"http://{CREDENTIALS}@p:3128"
    assert shown.token == BASIC


def test_what_a_proxy_repeats_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{CREDENTIALS}@p:3128")
    where = endpoint(Target(spec="", name="t", url="http://llm.test/v1"))
    said = where.redacted(f"you are {USER} with {PASSWORD} ({BASIC})".encode()).decode()
    assert said == f"you are {USER} with {'*' * len(PASSWORD)} ({'*' * len(BASIC)})"


def test_the_way_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert way_to("http://llm.test") == way_to("http://localhost") == ""
    monkeypatch.setenv("HTTP_PROXY", f"http://{CREDENTIALS}@p:3128")
    monkeypatch.setenv("NO_PROXY", ".corp")
    assert way_to("http://llm.test") == "through the proxy p:3128 (HTTP_PROXY)"
    assert way_to("http://127.0.0.1:8000") == "loopback: no proxy"
    assert way_to("http://llm.corp") == "NO_PROXY: no proxy"
    assert way_to("https://llm.test") == ""


# ── the way through it ───────────────────────────────────────────────────────────────────────────


def served(truth: Truth, certificates: Certificates, scheme: str) -> str:
    """A server that only the proxy can find, under a name that stands for nothing else."""
    tls = certificates.for_host("llm.test") if scheme == "https" else None
    return f"{scheme}://llm.test:{port_of(truth(tls=tls).url)}"


@each_client
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_every_client_goes_through_the_proxy(
    truth: Truth,
    certificates: Certificates,
    proxy: ConnectProxy,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    name: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "for-the-target-alone")
    url = served(truth, certificates, scheme)
    trace = await once(name, url, ca_file=certificates.ca_file)
    assert trace.error == "", trace.detail
    assert text(trace) == SAID
    (seen,) = proxy.seen
    assert seen.headers["proxy-authorization"] == f"Basic {BASIC}"
    if name == "wire" or scheme == "https":
        assert (seen.method, seen.target) == ("CONNECT", url.removeprefix(f"{scheme}://"))
        assert "authorization" not in seen.headers
    if name == "wire":
        assert trace.stamps == "kernel"
        assert trace.connect is not None
        assert trace.connect.proxy_ns > 0
        assert (trace.connect.tls_ns > 0) == (scheme == "https")


@pytest.mark.parametrize("name", CLIENTS)
async def test_the_target_never_sees_what_is_for_the_proxy(proxy: ConnectProxy, name: str) -> None:
    heads: list[str] = []

    async def answer(peer: Peer, _: int) -> None:
        heads.append((await peer.request())[0].lower())
        kind = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        await peer.send(kind + sse(content("a"), finish(), "[DONE]"))

    async with raw_server(answer) as raw:
        trace = await once(name, raw.url.replace("127.0.0.1", "llm.test"))
    assert text(trace) == "a", trace.detail
    (head,) = heads
    assert "proxy-" not in head
    assert f"host: llm.test:{port_of(raw.url)}\r\n" in head
    assert len(proxy.seen) == 1


@pytest.mark.parametrize("status", ["403 Forbidden", "407 Whatever it says", "502 Bad Gateway"])
@each_client
async def test_a_proxy_that_refuses(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates, status: str, name: str
) -> None:
    answer = f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno".encode()
    with connect_proxy(answer) as refusing:
        monkeypatch.setenv("HTTPS_PROXY", refusing.url)
        trace = await once(name, "https://llm.test", ca_file=certificates.ca_file)
    assert trace.error == "proxy", trace.detail
    assert trace.detail.startswith(f"127.0.0.1:{refusing.port}: ")
    assert status[:3] in trace.detail
    if status.startswith("407") and name != "openai":
        assert "407 Proxy Authentication Required" in trace.detail
        assert "HTTPS_PROXY" in trace.detail


ODD = {
    "garbage": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nVia: x\r\n",
    "endless": b"HTTP/1.1 200 OK\r\nVia: " + b"x" * 200_000,
    "more than a head": b"HTTP/1.1 200 OK\r\n\r\nwelcome",
    "hangs": None,
}


@pytest.mark.parametrize("case", ODD)
async def test_a_proxy_that_is_none(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(opening, "CONNECT_TIMEOUT_S", 0.5 if case == "hangs" else 10.0)
    with connect_proxy(ODD[case]) as odd:
        monkeypatch.setenv("HTTP_PROXY", odd.url)
        trace = await once("wire", "http://llm.test")
    assert trace.error == "proxy", trace.detail
    assert trace.detail.startswith(f"127.0.0.1:{odd.port}: ")
    assert "\n" not in trace.detail


@each_client
async def test_a_proxy_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, dead_url: str, name: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", dead_url)
    dead = await once(name, "http://llm.test")
    monkeypatch.setenv("HTTP_PROXY", "http://no-such-host.invalid:3128")
    unknown = await once(name, "http://llm.test")
    for trace, place in ((dead, dead_url[7:]), (unknown, "no-such-host.invalid:3128")):
        assert trace.error == "proxy", trace.detail
        assert trace.detail.startswith(f"{place}: ")


async def test_a_certificate_is_checked_through_the_proxy(
    truth: Truth, certificates: Certificates, proxy: ConnectProxy
) -> None:
    server = truth(tls=certificates.for_host("elsewhere.test"))
    url = f"https://llm.test:{port_of(server.url)}"
    for name in CLIENTS:
        trace = await once(name, url, ca_file=certificates.ca_file)
        assert trace.error == "tls", trace.detail
    assert server.log() == []


@each_client
async def test_the_loopback_is_never_proxied(
    truth: Truth, monkeypatch: pytest.MonkeyPatch, dead_url: str, name: str
) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, dead_url)
    server = truth()
    for host in ("127.0.0.1", "localhost"):
        trace = await once(name, server.url.replace("127.0.0.1", host))
        assert trace.error == "", trace.detail


@each_client
async def test_netrc_is_never_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    lines = "".join(f"machine {host} login jo password s3cret\n" for host in ("127.0.0.1", "p"))
    (tmp_path / ".netrc").write_text(lines)
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    heads: list[str] = []

    async def answer(peer: Peer, _: int) -> None:
        heads.append((await peer.request())[0])
        kind = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        await peer.send(kind + sse(content("a"), finish(), "[DONE]"))

    async with raw_server(answer) as raw, connected(name, raw.url):
        trace = await once(name, raw.url)
    assert text(trace) == "a", trace.detail
    assert "Basic" not in heads[0]


# ── the commands ─────────────────────────────────────────────────────────────────────────────────

FEW = ("--concurrency", 2, "--requests", 4, "--prompt-tokens", 16, "--output-tokens", 5)
FEW = (*FEW, "--warmup", 0, "--no-calibrate", "--format", "json")


def all_came(done: Done) -> int:
    """How many cells there are; every reply of each was good, whatever else the machine did."""
    assert done.code in (0, 4), done.err
    assert [cell["requests"]["ok"] for cell in done.cells] == [4] * len(done.cells), done.out
    return len(done.cells)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_sweep_through_a_proxy(
    truth: Truth,
    certificates: Certificates,
    proxy: ConnectProxy,
    run_llmbench: Llmbench,
    run_dir: Path,
    scheme: str,
) -> None:
    url = served(truth, certificates, scheme)
    clients = ("--client", "wire,aiohttp,openai", "--ca-file", certificates.ca_file)
    done = run_llmbench("sweep", "--target", url, *clients, *FEW, "--workers", 2, "--out", run_dir)
    assert all_came(done) == 3
    wire = done.cells[0]
    assert wire["client"] == "wire"
    assert wire["connect_ms"]["proxy"]["max"] > 0
    assert {seen.headers.get("proxy-authorization") for seen in proxy.seen} == {f"Basic {BASIC}"}
    kept = [path.read_text() for path in run_dir.rglob("*") if path.is_file()]
    assert len(kept) >= 3
    for told in (done.out, done.err, *kept):
        for secret in (PASSWORD, CREDENTIALS, BASIC, "s3cret"):
            assert secret not in told


def test_a_dead_proxy_is_nothing_to_a_local_target(
    truth: Truth, run_llmbench: Llmbench, dead_url: str
) -> None:
    done = run_llmbench(
        *("sweep", "--target", truth().url, *FEW),
        *("--client", "wire,aiohttp,openai"),
        env={"HTTP_PROXY": dead_url, "ALL_PROXY": "socks5://jo:s3cret@p:1080"},
    )
    assert all_came(done) == 3


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 403 No\r\n\r\n", b"SSH-2.0\r\n", b"HTTP/1.1 200\r\n"]
)
def test_a_proxy_without_tunnels_is_known_before_the_load(
    truth: Truth, run_llmbench: Llmbench, answer: bytes
) -> None:
    server = truth()
    with connect_proxy(answer) as refusing:
        url = server.url.replace("127.0.0.1", "llm.test")
        done = run_llmbench("sweep", "--target", url, env={"HTTP_PROXY": refusing.url})
    assert done.code == 3
    (line,) = done.problems
    assert f"(proxy: 127.0.0.1:{refusing.port}: it" in line
    assert server.log() == []


def test_a_proxy_that_only_forwards_serves_the_other_clients(
    truth: Truth, run_llmbench: Llmbench
) -> None:
    url = truth().url.replace("127.0.0.1", "llm.test")
    with connect_proxy(b"HTTP/1.1 403 No\r\n\r\n") as forwarding:
        done = run_llmbench(
            *("sweep", "--target", url, *FEW, "--client", "aiohttp,openai"),
            env={"HTTP_PROXY": forwarding.url},
        )
    assert all_came(done) == 2


def test_a_proxy_that_fails_in_the_middle(truth: Truth, run_llmbench: Llmbench) -> None:
    """Each request opens a connection, and from some time on there are no more."""
    url = truth(close=True).url.replace("127.0.0.1", "llm.test")
    with connect_proxy(most=12) as failing:
        done = run_llmbench(
            *("sweep", "--target", url, *FEW, "--requests", 100),
            env={"HTTP_PROXY": failing.url},
        )
    assert done.code in (3, 4)
    (cell,) = done.cells
    assert cell["requests"]["failures"].keys() == {"proxy"}
    assert "502 Bad Gateway" in cell["requests"]["details"]["proxy"]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_proxy_of_another_kind_is_one_line(run_llmbench: Llmbench, client: str) -> None:
    done = run_llmbench(
        *("sweep", "--target", "http://llm.test:8000", "--client", client),
        env={"ALL_PROXY": "socks5://jo:s3cret@p:1080"},
    )
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "llmbench: ALL_PROXY: a proxy must be an http:// one, not socks5://; name one, or list the "
        "target's host in NO_PROXY\n"
    )
    assert list(run_llmbench.folder.iterdir()) == []


Findings = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def findings(capsys: pytest.CaptureFixture[str]) -> Findings:
    def run(target: str) -> tuple[int, list[dict[str, Any]]]:
        code = main(["doctor", "--format", "json", "--target", f"{target}?name=here"])
        told = capsys.readouterr().out
        assert "s3cret" not in told
        return code, [each for each in json.loads(told) if each["subject"] == "here"]

    return run


def test_doctor_says_which_proxy_holds(
    truth: Truth, proxy: ConnectProxy, findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = truth().url
    code, (way, answer) = findings(url)
    assert (code, way["said"], answer["level"]) == (0, "loopback: no proxy", "good")
    code, (way, answer) = findings(url.replace("127.0.0.1", "llm.test"))
    assert (code, answer["level"]) == (0, "good")
    assert way["said"] == f"through the proxy 127.0.0.1:{proxy.port} (ALL_PROXY)"
    assert proxy.seen[0].method == "CONNECT"
    monkeypatch.setenv("ALL_PROXY", "socks5://jo:s3cret@p")
    code, (answer,) = findings("http://llm.test")
    assert code == 3
    assert answer["said"].startswith("ALL_PROXY: a proxy must be an http:// one")
