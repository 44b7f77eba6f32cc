"""Replies to chat and to completions, which differ in one field, as vLLM writes them."""

from functools import lru_cache
from typing import Any

import msgspec

from llmbench.truth.script import Request, Script, answer_tokens
from llmbench.truth.words import Block, Event, error_detail, text

_TAIL = b',"logprobs":null,"finish_reason":null}]'

_encode = msgspec.json.encode


@lru_cache(64)
def _token_fields(script: Script, chat: bool, tokens: int) -> list[bytes]:
    """What the token events of all replies of ``tokens`` tokens share: a choice, from its delta."""
    step = script.tokens_per_event
    starts = range(0, tokens, step)
    return [_field(script, chat, start, min(start + step, tokens), tokens) for start in starts]


def _field(script: Script, chat: bool, start: int, stop: int, tokens: int) -> bytes:
    said = text(script, start, stop)
    if not chat:
        field = b'"text":"' + said + b'"'
    elif start < script.reasoning_tokens:
        field = b'"delta":{"reasoning_content":"' + said + b'"}'
    elif script.tool_call:
        call = _tool_call(script, start, stop == tokens, said.decode())
        field = b'"delta":' + _encode({"tool_calls": [call]})
    else:
        field = b'"delta":{"content":"' + said + b'"}'
    return field + _TAIL


def _tool_call(script: Script, start: int, last: bool, said: str) -> dict[str, Any]:
    step = script.tokens_per_event
    first = start == -(-script.reasoning_tokens // step) * step
    opening, closing = '{"text":"' if first else "", '"}' if last else ""
    function = {"arguments": opening + said + closing}
    if not first:
        return {"index": 0, "function": function}
    function["name"] = "say"
    return {"index": 0, "id": "call_0", "type": "function", "function": function}


class ChunkWriter:
    """Writes the JSON of one reply as vLLM does, with no more than pasting for each token."""

    def __init__(self, script: Script, request: Request) -> None:
        self.script = script
        self.request = request
        self.chat = request.api == "chat"
        self.tokens, self.finish = answer_tokens(script, request)
        if script.tool_call and self.chat:
            self.finish = "tool_calls"
        self.running_usage = request.continuous_usage and not script.missing_usage
        self.envelope = self._envelope(stream=True)
        self._start = _encode(self.envelope)[:-1] + b',"choices":[{"index":0,'

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

    def opening(self) -> list[Block]:
        """The role-only event, where it is wanted."""
        if not self.script.role_first:
            return []
        field = b'"delta":{"role":"assistant","content":""}' if self.chat else b'"text":""'
        return [[(b"", self._start + field + _TAIL + self._close(0))]]

    def token_blocks(self) -> list[Block]:
        start, step = self._start, self.script.tokens_per_event
        fields = _token_fields(self.script, self.chat, self.tokens)
        if not self.running_usage:
            return [[(b"", start + field + b"}")] for field in fields]
        counts = [min(n, self.tokens) for n in range(step, self.tokens + step, step)]
        return [
            [(b"", start + field + self._close(count))]
            for field, count in zip(fields, counts, strict=True)
        ]

    def closing(self) -> list[Block]:
        """The finish, the usage and ``[DONE]``."""
        field = b'"delta":{},' if self.chat else b'"text":"",'
        reason = b'"logprobs":null,"finish_reason":"' + self.finish.encode() + b'"}]'
        last = [self._start + field + reason + self._close(self.tokens)]
        if self.request.include_usage and not self.script.missing_usage:
            last.append(_encode(self.envelope | {"choices": [], "usage": self.usage(self.tokens)}))
        if not self.script.no_done:
            last.append(b"[DONE]")
        return [[(b"", data)] for data in last]

    def error(self, message: str) -> Event:
        return b"", _encode({"error": error_detail(500, message)})

    def document(self) -> bytes:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": self.finish}
        reasoning = min(self.script.reasoning_tokens, self.tokens) if self.chat else 0
        said = text(self.script, reasoning, self.tokens).decode()
        if not self.chat:
            choice["text"] = said
        else:
            message: dict[str, Any] = {"role": "assistant", "content": said}
            if reasoning:
                message["reasoning_content"] = text(self.script, 0, reasoning).decode()
            if self.script.tool_call:
                call = {"name": "say", "arguments": _encode({"text": said}).decode()}
                message["content"] = None
                message["tool_calls"] = [{"id": "call_0", "type": "function", "function": call}]
            choice["message"] = message
        reply = self._envelope(stream=False) | {"choices": [choice]}
        if not self.script.missing_usage:
            reply["usage"] = self.usage(self.tokens)
        return _encode(reply)
