"""Where a request's time goes: what servers' metrics and replies say, worked out by hand."""

import asyncio
import re
import ssl
import unicodedata
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Certificates, Peer, chunk, raw_server
from hypothesis import given
from hypothesis import strategies as st

from llmbench.apis.prometheus import cached, difference, newly_cached, times
from llmbench.drive import scrape as scraping
from llmbench.drive.endpoint import Endpoint, endpoint
from llmbench.drive.scrape import scrape
from llmbench.measure.requests import Requests
from llmbench.measure.stages import stages
from llmbench.records import (
    Block,
    CachedTokens,
    Cell,
    CellFacts,
    Counts,
    Estimate,
    Load,
    Phase,
    RequestMetrics,
    ServerTime,
    Target,
)
from llmbench.report.stages import render_stages

DATA = Path(__file__).parent / "data"
VLLM_BEFORE = (DATA / "vllm_metrics_before.txt").read_text()  # vLLM 0.32, shortened
VLLM = (DATA / "vllm_metrics_after.txt").read_text()  # 7 requests later
LLAMACPP = (DATA / "llamacpp_metrics.txt").read_text()  # llama.cpp b11549
SGLANG = """\
# HELP sglang:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE sglang:time_to_first_token_seconds histogram
sglang:time_to_first_token_seconds_sum{model_name="m"} 3.0
sglang:time_to_first_token_seconds_bucket{le="0.001",model_name="m"} 0.0
sglang:time_to_first_token_seconds_count{model_name="m"} 10.0
sglang:e2e_request_latency_seconds_sum{model_name="m"} 20.0
sglang:e2e_request_latency_seconds_count{model_name="m"} 10.0
sglang:queue_time_seconds_sum{model_name="m",tp_rank="0"} 0.5
sglang:queue_time_seconds_count{model_name="m",tp_rank="0"} 10.0
"""


def vllm(seconds: float, requests: float, stage: str = "queue", labels: str = "") -> str:
    name = f"vllm:request_{stage}_time_seconds"
    return f"{name}_sum{labels} {seconds}\n{name}_count{labels} {requests}\n"


# ── the text of /metrics ─────────────────────────────────────────────────────────────────────────


def test_a_real_text_of_vllm() -> None:
    assert times(VLLM) == {
        "queue": ServerTime(0.0001301829997828463, 7.0),
        "prefill": ServerTime(0.7411789420020796, 7.0),
        "decode": ServerTime(5.341862925000896, 7.0),
        "ttft": ServerTime(0.9764704704284668, 7.0),
        "e2e": ServerTime(6.302886724472046, 7.0),
    }
    assert set(times(VLLM_BEFORE).values()) == {ServerTime(0.0, 0.0)}
    assert difference(times(VLLM_BEFORE), times(VLLM)) == times(VLLM)


def test_a_text_of_sglang() -> None:
    assert times(SGLANG) == {
        "queue": ServerTime(0.5, 10.0),
        "ttft": ServerTime(3.0, 10.0),
        "e2e": ServerTime(20.0, 10.0),
    }


def test_llamacpp_counts_no_requests() -> None:
    assert "llamacpp:prompt_seconds_total 11.0667" in LLAMACPP
    assert times(LLAMACPP) == {}


def test_the_engines_behind_one_server_are_added_up() -> None:
    text = vllm(1.5, 3, labels='{engine="0",model_name="m"}')
    text += vllm(2.5, 5, labels='{engine="1",model_name="{ \\"m\\" 9"}')
    assert times(text) == {"queue": ServerTime(4.0, 8.0)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!doctype html><p>not found</p>",
        '{"error": "no"}',
        "vllm:request_queue_time_seconds_sum 1.0\n",  # no count
        "vllm:request_queue_time_seconds_sum\nvllm:request_queue_time_seconds_count 1\n",
        'vllm:request_queue_time_seconds_sum{"} 1\nvllm:request_queue_time_seconds_count 1\n',
        "my_vllm:request_queue_time_seconds_sum 1\nmy_vllm:request_queue_time_seconds_count 1\n",
    ],
)
def test_a_text_that_says_nothing(text: str) -> None:
    assert times(text) == {}


def test_a_malformed_line_costs_itself_only() -> None:
    text = 'vllm:request_decode_time_seconds_sum{a="b" 1\n}}{{ "\n' + vllm(1.0, 2)
    assert times(text) == {"queue": ServerTime(1.0, 2.0)}


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert times(text) == {}


@given(
    st.sampled_from(("sum", "count")),
    st.text(alphabet='{}"\\,=# \t\r_1e+-.NaInf', max_size=20),
)
def test_any_line_after_a_name_is_read(suffix: str, rest: str) -> None:
    name = f"vllm:request_queue_time_seconds_{suffix}"
    found = times(f"{name}{rest}\n" + vllm(1.0, 2, "decode"))
    assert found == {"decode": ServerTime(1.0, 2.0)}


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_difference_of_counters_that_grow(
    seconds: float, more_seconds: float, requests: int, more: int
) -> None:
    before = times(vllm(seconds, requests))
    after = times(vllm(seconds + more_seconds, requests + more))
    grown = ServerTime(seconds + more_seconds - seconds, float(more))
    assert difference(before, after) == ({"queue": grown} if more else {})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (vllm(5, 9) + vllm(5, 9, "decode"), vllm(1, 2) + vllm(9, 2, "decode")),  # restarted
        (vllm(5, 9) + vllm(5, 9, "decode"), vllm(1, 12) + vllm(9, 12, "decode")),
        (vllm(5, 9), vllm(6, 8)),
        (vllm(5, 9), ""),
        ("", vllm(5, 9)),  # nobody knows what it was before
        (vllm(5, 9), vllm(5, 9)),
        (vllm(5, 9), vllm(float("nan"), 10)),
        (vllm(5, 9), vllm(float("inf"), 10)),
    ],
)
def test_no_difference(before: str, after: str) -> None:
    assert difference(times(before), times(after)) == {}


# ── the mean of each stage ───────────────────────────────────────────────────────────────────────


def request(e2e_ms: float, phase: Phase = "measured", **stages_ms: float) -> RequestMetrics:
    none = array("f")
    return RequestMetrics(
        phase=phase,
        sent_ns=0,
        end_ns=0,
        tokens=1,
        token_source="usage",
        stages_ms=stages_ms,
        events=1,
        first_ns=0,
        last_ns=round(e2e_ms * 1e6),
        gaps_s=none,
        lag_ms=none,
        stamps="kernel",
    )


def facts(concurrency: int = 1, **server_times: ServerTime) -> CellFacts:
    load = Load(
        concurrency=concurrency,
        prompt_tokens=1,
        output_tokens=1,
        requests=1,
        duration_s=None,
        warmup=0,
    )
    return CellFacts(cell=0, target=0, client="wire", load=load, server_times=server_times)


def test_the_timings_of_the_replies() -> None:
    good = [request(100, prefill=30, decode=60), request(200, prefill=50, decode=120)]
    says = {"e2e": 150.0, "prefill": 40.0, "decode": 90.0, "other": 20.0}
    found = stages(Requests.of(good), facts())
    assert found == (pytest.approx(says), "timings")
    assert found is not None
    assert list(found[0]) == list(says)


def test_the_stages_of_an_engine_in_process() -> None:
    good = [request(100, tokenize=1, queue=2, prefill=30, decode=60), request(100, decode=90)]
    found = stages(Requests.of(good), facts())
    says = {"e2e": 100, "tokenize": 0.5, "queue": 1, "prefill": 15, "decode": 75, "other": 8.5}
    assert found == (pytest.approx(says), "timings")


def test_timings_go_before_metrics_if_every_reply_has_them() -> None:
    queue = ServerTime(0.02, 2.0)
    all_told = [request(100, prefill=30), request(100, prefill=30)]
    found = stages(Requests.of(all_told), facts(queue=queue))
    assert found == (pytest.approx({"e2e": 100, "prefill": 30, "other": 70}), "timings")
    one_told = [request(100, prefill=30), request(100)]
    found = stages(Requests.of(one_told), facts(queue=queue))
    assert found == (pytest.approx({"e2e": 100, "queue": 10, "other": 90}), "metrics")


def test_the_metrics_of_vllm() -> None:
    spent = difference(times(VLLM_BEFORE), times(VLLM))
    found = stages(Requests.of([request(950.0)] * 7), facts(**spent))
    says = {
        "e2e": 950.0,
        "queue": 0.01859757,
        "prefill": 105.88270600,
        "decode": 763.12327500,
        "other": 80.97542142,
        "server_e2e": 900.41238921,
    }
    assert found == (pytest.approx(says), "metrics")


def test_the_metrics_of_a_server_that_times_first_and_last_tokens() -> None:
    found = stages(Requests.of([request(2100)] * 10), facts(**times(SGLANG)))
    says = {"queue": 50, "prefill": 250, "decode": 1700, "other": 100}
    assert found == (pytest.approx({"e2e": 2100, "server_e2e": 2000} | says), "metrics")


def test_timings_are_of_the_measured_requests_and_metrics_of_all() -> None:
    warm = [request(300, "warmup", decode=200), request(500, "cooldown")]
    found = stages(Requests.of([*warm, request(100, decode=80)]), facts(queue=ServerTime(0.3, 3)))
    assert found == (pytest.approx({"e2e": 100, "decode": 80, "other": 20}), "timings")
    found = stages(Requests.of([*warm, request(100)]), facts(queue=ServerTime(0.3, 3)))
    assert found == (pytest.approx({"e2e": 300, "queue": 100, "other": 200}), "metrics")


@pytest.mark.parametrize(("requests", "shown"), [(15, False), (16, True), (24, True), (25, False)])
def test_metrics_of_other_requests_are_not_shown(requests: int, shown: bool) -> None:
    spent = ServerTime(0.001 * requests, requests)
    found = stages(Requests.of([request(10)] * 20), facts(4, queue=spent))
    says = ({"e2e": 10, "queue": 1, "other": 9}, "metrics")
    assert found == ((pytest.approx(says[0]), says[1]) if shown else None)


@pytest.mark.parametrize(
    ("e2e_ms", "sum_ms", "other_ms"),
    [
        (10, 10.9, 0),  # within a millisecond
        (10, 11.2, -1.2),
        (1000, 1019, 0),  # within 2%
        (1000, 1021, -21),
        (1000, 999, 1),
    ],
)
def test_a_rest_below_zero_is_noise_or_shown(e2e_ms: float, sum_ms: float, other_ms: float) -> None:
    found = stages(Requests.of([request(e2e_ms, decode=sum_ms)]), facts())
    assert found is not None
    assert found[0]["other"] == pytest.approx(other_ms)


def test_nobody_says() -> None:
    assert stages(Requests.of([]), facts(queue=ServerTime(1, 1))) is None
    assert stages(Requests.of([request(10)]), facts()) is None
    assert stages(Requests.of([request(10)]), facts(e2e=ServerTime(1, 1))) is None
    assert stages(Requests.of([request(10)]), facts(queue=ServerTime(0, 0))) is None


# ── reading /metrics ─────────────────────────────────────────────────────────────────────────────


def at(url: str, **fields: Any) -> Endpoint:
    return endpoint(Target(spec="t", name="t", url=url, **fields))


def answering(
    replies: dict[str, bytes], asked: list[str] | None = None
) -> Callable[[Peer, int], Awaitable[None]]:
    """Answer each path with its reply, others with 404; each request head goes to ``asked``."""

    async def answer(peer: Peer, _: int) -> None:
        head = (await peer.reader.readuntil(b"\r\n\r\n")).decode()
        if asked is not None:
            asked.append(head)
        await peer.send(replies.get(head.split()[1], reply("404 Not Found", b"{}")))

    return answer


def reply(status: str, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


GOOD = reply("200 OK", VLLM.encode(), "Content-Type: text/plain; version=0.0.4")


async def test_metrics_stand_beside_the_api() -> None:
    asked: list[str] = []
    async with raw_server(answering({"/metrics": GOOD}, asked)) as server:
        assert times(await scrape(at(f"{server.url}/v1"))) == times(VLLM)
    assert [head.split()[:2] for head in asked] == [["GET", "/metrics"]]
    assert "\r\nAccept: text/plain\r\n" in asked[0]
    assert "authorization" not in asked[0].lower()


async def test_metrics_below_the_path_of_the_api_go_first() -> None:
    other = reply("200 OK", SGLANG.encode())
    async with raw_server(answering({"/a/b/metrics": GOOD, "/metrics": other})) as server:
        assert times(await scrape(at(f"{server.url}/a/b/v1"))) == times(VLLM)
        assert times(await scrape(at(f"{server.url}/c/v1"))) == times(SGLANG)


async def test_the_key_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-key")
    asked: list[str] = []
    async with raw_server(answering({"/metrics": GOOD}, asked)) as server:
        await scrape(at(f"{server.url}/v1"))
    assert "\r\nAuthorization: Bearer a-secret-key\r\n" in asked[0]


async def test_metrics_over_tls(certificates: Certificates) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.for_host("localhost"))
    async with raw_server(answering({"/metrics": GOOD}), tls=context) as server:
        url = f"{server.url}/v1"
        assert times(await scrape(at(url, ca_file=certificates.ca_file))) == times(VLLM)
        assert times(await scrape(at(url))) == {}  # an authority that nobody here vouches for


async def test_a_redirect_is_not_followed() -> None:
    elsewhere: list[str] = []
    async with raw_server(answering({"/metrics": GOOD}, elsewhere)) as other:
        moved = reply("302 Found", b"", f"Location: {other.url}/metrics")
        async with raw_server(answering({"/metrics": moved})) as server:
            assert times(await scrape(at(f"{server.url}/v1"))) == {}
    assert elsewhere == []


@pytest.mark.parametrize(
    "answer",
    [
        reply("404 Not Found", VLLM.encode()),
        reply("401 Unauthorized", VLLM.encode()),
        reply("200 OK", b"\xff\xfe\x00 not text"),
        reply("200 OK", b""),
        GOOD[:-100],  # cut off
        reply("200 OK", VLLM.encode(), "Content-Encoding: gzip"),  # a lie
        b"what is this\r\n\r\n",
        b"",
    ],
)
async def test_what_is_no_text_of_metrics_says_nothing(answer: bytes) -> None:
    async with raw_server(answering({"/metrics": answer})) as server:
        assert times(await scrape(at(f"{server.url}/v1"))) == {}


async def test_a_server_that_never_answers_or_never_ends() -> None:
    async def silent(peer: Peer, number: int) -> None:
        if number == 2:
            await peer.send(GOOD[:-100])
        while await peer.reader.read(4096):
            pass  # until the client gives up

    async with raw_server(silent) as server:
        for _ in range(2):
            async with asyncio.timeout(PATIENCE_S):
                assert times(await scrape(at(f"{server.url}/v1"), timeout_s=0.2)) == {}
        assert server.connections == 2


async def test_no_server(dead_url: str) -> None:
    assert times(await scrape(at(f"{dead_url}/v1"))) == {}
    assert times(await scrape(at("http://no-such-host.invalid/v1"), timeout_s=3)) == {}


async def test_a_huge_body_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraping, "MOST_BYTES", 1 << 20)
    sent = 0

    async def endless(peer: Peer, _: int) -> None:
        nonlocal sent
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        peer.writer.write(chunk(VLLM.encode()))
        while sent < 1 << 28:
            peer.writer.write(chunk(b"#" * (1 << 16)))
            await peer.writer.drain()
            sent += 1 << 16

    async with raw_server(endless) as server:
        async with asyncio.timeout(PATIENCE_S):
            assert times(await scrape(at(f"{server.url}/v1"), timeout_s=PATIENCE_S)) == {}
    assert 1 << 20 <= sent < 1 << 26


async def test_a_large_text_is_read() -> None:
    text = VLLM + "".join(f'other_total{{n="{n}"}} {n}\n' for n in range(50_000))
    async with raw_server(answering({"/metrics": reply("200 OK", text.encode())})) as server:
        assert times(await scrape(at(f"{server.url}/v1"), timeout_s=PATIENCE_S)) == times(VLLM)


# ── the report ───────────────────────────────────────────────────────────────────────────────────

CONNECT = {name: Block(n=8, p50=ms) for name, ms in (("dns", 0.25), ("tcp", 0.5), ("tls", 2.5))}
TOLD = {"e2e": 1000.0, "queue": 12.3, "prefill": 100.0, "decode": 830.0, "other": 57.7}


def cell(target: str = "h:8000", concurrency: int = 8, **fields: Any) -> Cell:
    known = {
        "target": target,
        "engine": None,
        "model": "m",
        "quantization": None,
        "api": "chat",
        "client": "wire",
        "concurrency": concurrency,
        "request_rate": None,
        "prompt_tokens": 128,
        "output_tokens": 64,
        "requests": Counts(sent=80, ok=80),
        "connect_ms": CONNECT,
        "stages_ms": TOLD,
        "stages_source": "metrics",
    }
    return Cell(**(known | fields))


def rows(cells: list[Cell]) -> list[list[str]]:
    """The rows of the table, without heads and notes."""
    lines = render_stages(cells, "markdown").splitlines()[2 : 2 + len(cells)]
    return [[each.strip() for each in line.split("|")[1:-1]] for line in lines]


def heads(cells: list[Cell]) -> list[str]:
    """The columns after those that say the load."""
    head = render_stages(cells, "markdown").splitlines()[0]
    return [each.strip() for each in head.split("|")[4:-1]]


def test_a_row() -> None:
    figures = ["0.25", "0.50", "2.50", "42.0", "1,000", "12.3", "100", "830", "57.7"]
    row = cell(ttft_ms=Block(n=80, mean=42.0))
    assert rows([row]) == [["h:8000", "8", "128", *figures, "decode 83%", "metrics"]]


def test_every_stage_is_a_column() -> None:
    ms = {"e2e": 10.0, "tokenize": 1.0, "queue": 2.0, "prefill": 4.0, "decode": 3.0, "other": 0.0}
    (row,) = rows([cell(stages_ms=ms, stages_source="timings", connect_ms=None)])
    figures = ["10.0", "1.00", "2.00", "4.00", "3.00", "0.00"]
    assert row[3:] == ["—", *figures, "prefill 40%", "timings"]


def test_a_server_that_tells_nothing_has_the_clients_stages() -> None:
    e2e, ttft = Block(n=80, mean=400.0), Block(n=80, mean=90.0)
    silent = cell(stages_ms=None, stages_source=None, ttft_ms=ttft, e2e_ms=e2e)
    assert heads([silent]) == ["DNS ms", "TCP ms", "TLS ms", "TTFT ms", "e2e ms"]
    assert rows([silent])[0][3:] == ["0.25", "0.50", "2.50", "90.0", "400"]
    text = render_stages([silent], "table")
    assert "h:8000 at 8: no stages of the server: " in text
    assert "other: " not in text
    # From when it was sent, and not from when it was due.
    late = {"ttft_from_sent_ms": Block(n=80, mean=9.0), "e2e_from_sent_ms": Block(n=80, mean=40.0)}
    assert rows([cell(stages_ms=None, ttft_ms=ttft, e2e_ms=e2e, **late)])[0][6:8] == [
        "9.00",
        "40.0",
    ]


def test_connecting_shows_the_stages_that_there_were() -> None:
    """Without TLS there is none, and a proxy only where there was one. Few connections will do for
    a median."""
    few = {"dns": 0.25, "tcp": 0.5, "tls": 0.0, "proxy": 12.0}
    known = {name: Block(n=2, estimates={"p50": Estimate(ms)}) for name, ms in few.items()}
    assert heads([cell(connect_ms=known, stages_ms=None)])[:3] == ["DNS ms", "TCP ms", "proxy ms"]
    assert rows([cell(connect_ms=known)])[0][3:6] == ["0.25", "0.50", "12.0"]
    assert heads([cell(connect_ms=None, stages_ms=None)]) == ["TTFT ms", "e2e ms"]


@pytest.mark.parametrize("style", ["table", "markdown"])
def test_no_figure_of_an_invalid_cell(style: str) -> None:
    ms = dict.fromkeys(TOLD | {"server_e2e": 0}, 777.0)
    connect = dict.fromkeys(CONNECT, Block(n=8, p50=777.0))
    wrong = cell(
        verdict="invalid", reasons=["the client was late"], stages_ms=ms, connect_ms=connect
    )
    text = render_stages([wrong, cell(concurrency=1)], style)
    assert "777" not in text
    assert "2,331" not in text
    assert "h:8000 at 8: INVALID, the client was late" in text
    assert rows([wrong])[0][3:] == ["✗", "✗", "✗", "—", "✗"]


def test_a_server_that_accounts_for_too_much() -> None:
    text = render_stages([cell(stages_ms=TOLD | {"other": -57.7})], "table")
    assert "-57.70" in text
    assert "h:8000 at 8: the server accounts for more time than the client saw" in text


def test_what_passed_in_the_server_beside_its_stages() -> None:
    cells = [cell(stages_ms=TOLD | {"server_e2e": 945.4}), cell(concurrency=16)]
    text = render_stages(cells, "markdown")
    assert "none of its stages: h:8000 at 8: 3.10\n" in text


def test_the_sources_are_explained() -> None:
    metrics = render_stages([cell()], "markdown")
    assert "- metrics: " in metrics
    assert "- timings: " not in metrics
    timings = render_stages([cell(stages_source="timings")], "markdown")
    assert "- timings: " in timings
    assert "- metrics: " not in timings


def test_markdown() -> None:
    head, rule, row, _, *below = render_stages([cell()], "markdown").splitlines()
    assert re.split(r" *\| *", head)[1:5] == ["target", "conc.", "prompt tokens", "DNS ms"]
    assert set(rule) <= set("|-:")
    assert row.count("|") == head.count("|")
    assert all(line.startswith("- ") for line in below)


@pytest.mark.parametrize("name", ["h:8000", "a-host-with-a-long-name.example.com:8000", "名" * 40])
def test_the_table_fits_a_terminal(name: str) -> None:
    ms = dict.fromkeys(("e2e", "tokenize", "queue", "prefill", "decode", "other"), 123_456.0)
    cells = [
        cell(name, 512, stages_ms=ms, stages_source="timings"),
        cell("b", 1, stages_ms=ms | {"server_e2e": 123_456.0}, client="aiohttp"),
        cell("c", 2, stages_ms=None, verdict="invalid", reasons=["long words " * 20]),
    ]
    for line in render_stages(cells, "table").splitlines():
        assert sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line) <= 100


# ── the prefix cache ─────────────────────────────────────────────────────────────────────────────


def cache_metrics(hits: float, queries: float) -> str:
    return "\n".join(
        f'vllm:prefix_cache_{what}_total{{engine="{engine}"}} {count / 2}'
        for what, count in (("hits", hits), ("queries", queries))
        for engine in (0, 1)
    )


def test_the_counters_of_a_prefix_cache() -> None:
    assert cached(cache_metrics(30, 100)) == CachedTokens(30, 100)
    assert cached(vllm(1.0, 2)) is None
    before, after = cached(cache_metrics(30, 100)), cached(cache_metrics(90, 200))
    assert newly_cached(before, after) == CachedTokens(60, 100)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", cache_metrics(1, 2)),
        (cache_metrics(1, 2), ""),
        (cache_metrics(1, 2), cache_metrics(1, 2)),  # nothing was looked up
        (cache_metrics(5, 9), cache_metrics(1, 20)),  # a restart
        (cache_metrics(0, 1), cache_metrics(9, 5)),  # more found than looked up
    ],
)
def test_counters_that_say_nothing(before: str, after: str) -> None:
    assert newly_cached(cached(before), cached(after)) is None
