"""The bytes of a reply and when each send of them is due: (Script, Request, rng) → Plan. Pure.

A stream's finish, usage and ``[DONE]`` events are due with the last token's event, each in a send
of its own; the end of the chunked coding shares the last one's send. The headers share the first
send unless the script parts them.
"""

from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus
from random import Random
from typing import Any, Literal

import msgspec
from msgspec import Struct

from llmbench.truth.script import (
    NS_PER_MS,
    Refusal,
    Request,
    Script,
    answer_tokens,
    schedule_ns,
)

Step = tuple[int, bytes, int]
"""(ns from the start of the reply, the bytes of one send, how many events they complete)."""

Ending = Literal["complete", "truncated", "reset", "hung"]

# Words need no JSON escapes, so that they can be pasted between quotes.
_WORDS = b" The ruler knows its own error , so you can trust what it reads .".split()
_PLAIN = tuple(word if word in b",." else b" " + word for word in _WORDS)
_FOREIGN = tuple(f" {word}".encode() for word in ("naïve", "光", "Ωmega", "🙂", "señal", "время"))

_TAIL = b',"logprobs":null,"finish_reason":null}]'

_encode = msgspec.json.encode


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
    body = _error(refusal.status, refusal.message, refusal.code)
    return whole(script, body, status=refusal.status, keep_alive=keep_alive, extra=extra)


def _error(status: int, message: str, code: str = "") -> bytes:
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    detail = {"message": message, "type": kind, "param": None, "code": code or None}
    return _encode({"error": detail})


def _head(script: Script, status: int, content_type: str, keep_alive: bool, extra: str) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    close = "Connection: close\r\n" if script.close or not keep_alive else ""
    head = f"HTTP/1.1 {status} {phrase}\r\nServer: llmbench-truth\r\nContent-Type: {content_type}"
    return f"{head}\r\n{close}{extra}\r\n".encode()


def _text(script: Script, start: int, stop: int) -> bytes:
    """The text of the tokens from ``start`` to ``stop``."""
    words = _FOREIGN if script.split_bytes else _PLAIN
    return b"".join([words[i % len(words)] for i in range(start, stop)])


@lru_cache(64)
def _token_fields(script: Script, chat: bool, tokens: int) -> list[bytes]:
    """What the token events of all replies of ``tokens`` tokens share: a choice, from its delta."""
    step = script.tokens_per_event
    starts = range(0, tokens, step)
    return [_field(script, chat, start, min(start + step, tokens), tokens) for start in starts]


def _field(script: Script, chat: bool, start: int, stop: int, tokens: int) -> bytes:
    text = _text(script, start, stop)
    if not chat:
        field = b'"text":"' + text + b'"'
    elif start < script.reasoning_tokens:
        field = b'"delta":{"reasoning_content":"' + text + b'"}'
    elif script.tool_call:
        call = _tool_call(script, start, stop == tokens, text.decode())
        field = b'"delta":' + _encode({"tool_calls": [call]})
    else:
        field = b'"delta":{"content":"' + text + b'"}'
    return field + _TAIL


def _tool_call(script: Script, start: int, last: bool, text: str) -> dict[str, Any]:
    step = script.tokens_per_event
    first = start == -(-script.reasoning_tokens // step) * step
    opening, closing = '{"text":"' if first else "", '"}' if last else ""
    function = {"arguments": opening + text + closing}
    if not first:
        return {"index": 0, "function": function}
    function["name"] = "say"
    return {"index": 0, "id": "call_0", "type": "function", "function": function}


class _Writer:
    """Writes the JSON of one reply as vLLM does, with no more than pasting for each token."""

    def __init__(self, script: Script, request: Request) -> None:
        self.script = script
        self.request = request
        self.chat = request.chat
        self.tokens, self.finish = answer_tokens(script, request)
        if script.tool_call and self.chat:
            self.finish = "tool_calls"
        self.running_usage = request.continuous_usage and not script.missing_usage
        self.envelope = self._envelope(stream=True)
        self.opening = _encode(self.envelope)[:-1] + b',"choices":[{"index":0,'

    def _envelope(self, stream: bool) -> dict[str, Any]:
        if self.chat:
            prefix, kind = "chatcmpl", "chat.completion.chunk" if stream else "chat.completion"
        else:
            prefix, kind = "cmpl", "text_completion"
        return {
            "id": f"{prefix}-{self.request.id}",
            "object": kind,
            "created": self.request.created,
            "model": self.request.model,
        }

    def usage(self, tokens: int) -> dict[str, Any]:
        """The usage object after ``tokens`` tokens."""
        prompt = self.request.prompt_tokens
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + tokens,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": self.script.cached_tokens},
        }
        if self.chat and self.script.reasoning_tokens:
            reasoning = min(tokens, self.script.reasoning_tokens)
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return usage

    def _close(self, tokens: int) -> bytes:
        return b',"usage":' + _encode(self.usage(tokens)) + b"}" if self.running_usage else b"}"

    def role(self) -> bytes:
        """The role-only event."""
        field = b'"delta":{"role":"assistant","content":""}' if self.chat else b'"text":""'
        return self.opening + field + _TAIL + self._close(0)

    def token_events(self) -> list[bytes]:
        """The events that carry tokens, in order."""
        opening, step = self.opening, self.script.tokens_per_event
        fields = _token_fields(self.script, self.chat, self.tokens)
        if not self.running_usage:
            return [opening + field + b"}" for field in fields]
        counts = [min(n, self.tokens) for n in range(step, self.tokens + step, step)]
        return [
            opening + field + self._close(count)
            for field, count in zip(fields, counts, strict=True)
        ]

    def closing_events(self) -> Iterator[bytes]:
        """The finish, the usage and ``[DONE]``."""
        field = b'"delta":{},' if self.chat else b'"text":"",'
        reason = b'"logprobs":null,"finish_reason":"' + self.finish.encode() + b'"}]'
        yield self.opening + field + reason + self._close(self.tokens)
        if self.request.include_usage and not self.script.missing_usage:
            yield _encode(self.envelope | {"choices": [], "usage": self.usage(self.tokens)})
        if not self.script.no_done:
            yield b"[DONE]"

    def document(self) -> bytes:
        """The whole reply as one JSON document."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": self.finish}
        reasoning = min(self.script.reasoning_tokens, self.tokens) if self.chat else 0
        text = _text(self.script, reasoning, self.tokens)
        if not self.chat:
            choice["text"] = text.decode()
        else:
            message: dict[str, Any] = {"role": "assistant", "content": text.decode()}
            if reasoning:
                message["reasoning_content"] = _text(self.script, 0, reasoning).decode()
            if self.script.tool_call:
                call = {"name": "say", "arguments": _encode({"text": text.decode()}).decode()}
                message["content"] = None
                message["tool_calls"] = [{"id": "call_0", "type": "function", "function": call}]
            choice["message"] = message
        reply = self._envelope(stream=False) | {"choices": [choice]}
        if not self.script.missing_usage:
            reply["usage"] = self.usage(self.tokens)
        return _encode(reply)


def _plain(script: Script, request: Request, rng: Random) -> Plan:
    """One JSON document, due when a stream's last token would be."""
    writer = _Writer(script, request)
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
    writer = _Writer(script, request)
    payloads = writer.token_events()
    dues = schedule_ns(script, len(payloads), rng)
    first = 0
    if script.role_first:
        first = 1
        payloads.insert(0, writer.role())
        dues.insert(0, dues[0])
    last = len(payloads) - 1
    payloads.extend(writer.closing_events())
    dues.extend([dues[-1]] * (len(payloads) - len(dues)))
    cut, ending = _cut(script, len(payloads))
    if script.error_at is not None and script.error_at <= cut and script.error_at < len(payloads):
        cut, ending = script.error_at + 1, "complete"
        payloads[script.error_at] = _error(500, "The truth server fails mid-stream, as told.")
    steps = _framed(script, dues[:cut], payloads[:cut], ending == "complete", rng)
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
    script: Script, dues: list[int], payloads: list[bytes], complete: bool, rng: Random
) -> list[Step]:
    """Turn the events' JSON into sends: SSE lines, the chunked coding, then the misbehaviours."""
    line = b"\r\n" if script.crlf else b"\n"
    before, after = b"data:" if script.no_space else b"data: ", line + line
    bodies = [before + payload + after for payload in payloads]
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
