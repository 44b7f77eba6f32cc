"""The bytes of a reply and when each send of them is due: (Script, Request, rng) → Plan. Pure.

A stream's finish, usage and ``[DONE]`` events are due with the last token's event, each in a send
of its own; the end of the chunked coding shares the last one's send. The headers share the first
send unless the script parts them.
"""

from collections.abc import Callable
from http import HTTPStatus
from random import Random
from typing import Literal

import msgspec
from msgspec import Struct

from llmbench.truth.chunk_writer import ChunkWriter
from llmbench.truth.script import NS_PER_MS, Refusal, Request, Script, schedule_ns
from llmbench.truth.typed_writers import MessagesWriter, ResponsesWriter
from llmbench.truth.words import Block, Event, Writer, error_detail

Step = tuple[int, bytes, int]
"""(ns from the start of the reply, the bytes of one send, how many events they complete)."""

Ending = Literal["complete", "truncated", "reset", "hung"]


WRITERS: dict[str, Callable[[Script, Request], Writer]] = {
    "chat": ChunkWriter,
    "completions": ChunkWriter,
    "responses": ResponsesWriter,
    "messages": MessagesWriter,
}
"""Who writes the replies of each API."""


class Plan(Struct, frozen=True, kw_only=True):
    """One reply, ready to be sent. Token events are ``first_token`` … ``last_token`` of its events.

    Both are ``None`` where no token was planned. ``keep_alive`` says whether the connection lives
    on after a complete reply.
    """

    steps: list[Step]
    status: int = 200
    first_token: int | None = None
    last_token: int | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    ending: Ending = "complete"
    keep_alive: bool = True


def plan(script: Script, request: Request, rng: Random) -> Plan:
    """Plan the reply to a request for a completion."""
    if script.status != 200:
        retry = f"Retry-After: {script.retry_after_s}\r\n" if script.status == 429 else ""
        refusal = Refusal(script.status, f"The truth server says {script.status}, as told.")
        return refuse(script, refusal, request.keep_alive, retry)
    if script.html:
        page = b"<!doctype html><title>Welcome</title><h1>This is not an API</h1>\n"
        return whole(script, page, "text/html", keep_alive=request.keep_alive)
    return _streamed(script, request, rng) if request.stream else _plain(script, request, rng)


def whole(
    script: Script,
    body: bytes,
    content_type: str = "application/json",
    *,
    status: int = 200,
    keep_alive: bool = True,
    extra: str = "",
    due_ns: int = 0,
) -> Plan:
    """Plan a reply that goes out in one piece, with its length."""
    extra = f"Content-Length: {len(body)}\r\n{extra}"
    head = _head(script, status, content_type, keep_alive, extra)
    keep_alive = keep_alive and not (script.close or script.silent_close)
    return Plan(steps=[(due_ns, head + body, 1)], status=status, keep_alive=keep_alive)


def refuse(script: Script, refusal: Refusal, keep_alive: bool = True, extra: str = "") -> Plan:
    """Plan an HTTP error in OpenAI's shape."""
    detail = error_detail(refusal.status, refusal.message, refusal.code)
    body = msgspec.json.encode({"error": detail})
    return whole(script, body, status=refusal.status, keep_alive=keep_alive, extra=extra)


def _head(script: Script, status: int, content_type: str, keep_alive: bool, extra: str) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    close = "Connection: close\r\n" if script.close or not keep_alive else ""
    head = f"HTTP/1.1 {status} {phrase}\r\nServer: llmbench-truth\r\nContent-Type: {content_type}"
    return f"{head}\r\n{close}{extra}\r\n".encode()


def _plain(script: Script, request: Request, rng: Random) -> Plan:
    """One JSON document, due when a stream's last token would be."""
    writer = WRITERS[request.api](script, request)
    events = -(-writer.tokens // script.tokens_per_event)
    due_ns = schedule_ns(script, events, rng)[-1]
    reply = whole(script, writer.document(), keep_alive=request.keep_alive, due_ns=due_ns)
    return msgspec.structs.replace(
        reply,
        first_token=0,
        last_token=0,
        prompt_tokens=request.prompt_tokens,
        output_tokens=writer.tokens,
    )


def _streamed(script: Script, request: Request, rng: Random) -> Plan:
    writer = WRITERS[request.api](script, request)
    opening, tokens, closing = writer.opening(), writer.token_blocks(), writer.closing()
    dues = schedule_ns(script, len(tokens), rng)
    dues = [dues[0]] * len(opening) + dues + [dues[-1]] * len(closing)
    first, last = len(opening), len(opening) + len(tokens) - 1
    blocks = opening + tokens + closing
    cut, ending = _cut(script, len(blocks))
    if script.error_at is not None and script.error_at <= cut and script.error_at < len(blocks):
        cut, ending = script.error_at + 1, "complete"
        blocks[script.error_at] = [writer.error("The truth server fails mid-stream, as told.")]
    steps = _framed(script, dues[:cut], blocks[:cut], ending == "complete", rng)
    if ending != "complete":
        sent_ns = steps[-1][0] if steps else 0
        steps.append((max(dues[cut], sent_ns), b"", 0))
    return Plan(
        steps=_with_head(script, request, steps),
        first_token=first,
        last_token=last,
        prompt_tokens=request.prompt_tokens,
        output_tokens=writer.tokens,
        ending=ending,
        keep_alive=request.keep_alive
        and not (script.close or script.silent_close or script.no_chunked),
    )


def _cut(script: Script, events: int) -> tuple[int, Ending]:
    """After how many events the stream breaks off, and how. The first break wins."""
    breaks: list[tuple[int | None, Ending]] = [
        (script.truncate_at, "truncated"),
        (script.reset_at, "reset"),
        (script.hang_at, "hung"),
    ]
    return min(
        [(at, ending) for at, ending in breaks if at is not None and at < events],
        default=(events, "complete"),
    )


def _framed(
    script: Script, dues: list[int], blocks: list[Block], complete: bool, rng: Random
) -> list[Step]:
    """Turn the events' JSON into sends: SSE lines, the chunked coding, then the misbehaviours."""
    line = b"\r\n" if script.crlf else b"\n"
    space = b"" if script.no_space else b" "
    before, after = b"data:" + space, line + line

    def framed(event: Event) -> bytes:
        name, data = event
        named = b"event:" + space + name + line if name else b""
        return named + before + data + after

    bodies = [b"".join(map(framed, block)) for block in blocks]
    if script.comments:
        ping = b": ping" + line
        bodies[::2] = [ping + body for body in bodies[::2]]
    if not script.no_chunked:
        bodies = [_chunk(body) for body in bodies]
    steps = [(due, body, 1) for due, body in zip(dues, bodies, strict=True)]
    if script.comments:
        ping += line
        steps = _with_pings(steps, ping if script.no_chunked else _chunk(ping))
    if complete and not script.no_chunked:
        due, body, events = steps[-1]
        steps[-1] = (due, body + b"0\r\n\r\n", events)
    if script.coalesce > 1:
        steps = _coalesced(steps, script.coalesce)
    if script.split_bytes:
        steps = _split(steps, rng, round(script.split_delay_ms * NS_PER_MS))
    return steps


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def _with_pings(steps: list[Step], ping: bytes) -> list[Step]:
    """A lone comment halfway to each event, the first one included."""
    pinged: list[Step] = []
    before = 0
    for step in steps:
        pinged += [((before + step[0]) // 2, ping, 0), step]
        before = step[0]
    return pinged


def _coalesced(steps: list[Step], size: int) -> list[Step]:
    """Join each ``size`` sends into one, due with the last of them."""
    groups = [steps[i : i + size] for i in range(0, len(steps), size)]
    return [
        (group[-1][0], b"".join([body for _, body, _ in group]), sum(n for _, _, n in group))
        for group in groups
    ]


def _split(steps: list[Step], rng: Random, delay_ns: int) -> list[Step]:
    """Cut each send in two, half of the time inside a character; the second completes it."""
    pieces: list[Step] = []
    clear = 0
    for due, body, events in steps:
        inside = [i for i in range(1, len(body)) if body[i] & 0xC0 == 0x80]
        whole_range = range(1, len(body))
        at = rng.choice(inside if inside and rng.random() < 0.5 else whole_range)
        first = max(due, clear)
        clear = first + delay_ns
        pieces += [(first, body[:at], 0), (clear, body[at:], events)]
    return pieces


def _with_head(script: Script, request: Request, steps: list[Step]) -> list[Step]:
    coding = "" if script.no_chunked else "Transfer-Encoding: chunked\r\n"
    kind = "text/event-stream; charset=utf-8"
    head = _head(script, 200, kind, request.keep_alive, coding)
    slow_ns = round(script.slow_headers_ms * NS_PER_MS)
    if script.early_headers or slow_ns:
        late = [(max(due, slow_ns), body, events) for due, body, events in steps]
        return [(slow_ns, head, 0), *late]
    due, body, events = steps[0]
    return [(due, head + body, events), *steps[1:]]
