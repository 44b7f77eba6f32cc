"""Replies to Responses and to Messages, whose events say their type, as vLLM writes them.

A token is a delta. What opens and closes the parts of a reply goes out with the tokens beside it,
so that only tokens' sends are between the first one's and the last one's.
"""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec

from llmbench.truth.script import Request, Script, answer_tokens
from llmbench.truth.words import Block, Event, text

_encode = msgspec.json.encode

Said = Literal["reasoning", "answer", "tool"]


class Part(NamedTuple):
    """Tokens ``start`` to ``stop`` of a reply, which are all of one kind; its ``place`` in it."""

    place: int
    said: Said
    start: int
    stop: int


def _parts(script: Script, tokens: int) -> list[Part]:
    step = script.tokens_per_event
    thought = min(-(-script.reasoning_tokens // step) * step, tokens)
    last: Said = "tool" if script.tool_call else "answer"
    spans: list[tuple[Said, int, int]] = [("reasoning", 0, thought), (last, thought, tokens)]
    filled = [span for span in spans if span[1] < span[2]]
    return [Part(place, *span) for place, span in enumerate(filled)]


def _pieces(script: Script, part: Part) -> list[str]:
    """The text of each token event of ``part``; that of a tool call is its arguments."""
    step = script.tokens_per_event
    starts = range(part.start, part.stop, step)
    pieces = [text(script, each, min(each + step, part.stop)).decode() for each in starts]
    if part.said == "tool":
        pieces[0] = '{"text":"' + pieces[0]
        pieces[-1] += '"}'
    return pieces


def _event(kind: str, **fields: Any) -> Event:
    return kind.encode(), _encode({"type": kind, **fields})


def _blocks(script: Script, tokens: int, tongue: Any) -> tuple[list[Block], Block]:
    """The blocks of the tokens of a reply in ``tongue``, and what closes its last part."""
    blocks: list[Block] = []
    closed: Block = []
    for part in _parts(script, tokens):
        pieces = _pieces(script, part)
        own = [[tongue.delta(part, piece)] for piece in pieces]
        own[0] = [*closed, *tongue.open(part), *own[0]]
        blocks += own
        closed = tongue.close(part, "".join(pieces))
    return blocks, closed


class _Writer:
    def __init__(self, script: Script, request: Request) -> None:
        self.script = script
        self.request = request
        self.tokens, self.finish = answer_tokens(script, request)

    def _thoughts(self) -> int:
        return min(self.script.reasoning_tokens, self.tokens)

    def _whole(self) -> list[tuple[Part, str]]:
        parts = _parts(self.script, self.tokens)
        return [(part, "".join(_pieces(self.script, part))) for part in parts]


# ── Responses ────────────────────────────────────────────────────────────────────────────────────

_PART = {
    "answer": ("output_text", "text"),
    "reasoning": ("reasoning_text", "text"),
    "tool": ("function_call_arguments", "arguments"),
}


class _ResponsesEvents:
    @staticmethod
    def open(part: Part) -> Block:
        item = _item(part, "", "in_progress")
        added = _event("response.output_item.added", output_index=part.place, item=item)
        return [added, *_content_part("added", part, "")]

    @staticmethod
    def delta(part: Part, piece: str) -> Event:
        more: dict[str, Any] = {"logprobs": []} if part.said == "answer" else {}
        return _event(f"response.{_PART[part.said][0]}.delta", **_where(part), delta=piece, **more)

    @staticmethod
    def close(part: Part, whole: str) -> Block:
        name, key = _PART[part.said]
        item = _item(part, whole, "completed")
        return [
            _event(f"response.{name}.done", **_where(part), **{key: whole}),
            *_content_part("done", part, whole),
            _event("response.output_item.done", output_index=part.place, item=item),
        ]


def _where(part: Part) -> dict[str, Any]:
    place = {"item_id": f"item_{part.place}", "output_index": part.place}
    return place if part.said == "tool" else {**place, "content_index": 0}


def _content_part(step: str, part: Part, said: str) -> Block:
    if part.said == "tool":
        return []
    name = f"response.content_part.{step}"
    return [_event(name, **_where(part), part=_content(part, said))]


def _content(part: Part, said: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": []} if part.said == "answer" else {}
    return {"type": _PART[part.said][0], "text": said, **more}


def _item(part: Part, said: str, status: str) -> dict[str, Any]:
    item: dict[str, Any] = {"id": f"item_{part.place}", "status": status}
    content = [_content(part, said)] if said else []
    match part.said:
        case "answer":
            return {**item, "type": "message", "role": "assistant", "content": content}
        case "reasoning":
            return {**item, "type": "reasoning", "summary": [], "content": content}
        case _:
            call = {"type": "function_call", "call_id": "call_0", "name": "say"}
            return {**item, **call, "arguments": said}


@lru_cache(64)
def _responses_blocks(script: Script, tokens: int) -> tuple[list[Block], Block]:
    return _blocks(script, tokens, _ResponsesEvents)


class ResponsesWriter(_Writer):
    """Writes one reply to Responses."""

    def _response(self, status: str) -> dict[str, Any]:
        over = status in ("completed", "incomplete")
        output = [_item(part, said, "completed") for part, said in self._whole()] if over else []
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": f"resp_{self.request.id}",
            "object": "response",
            "created_at": self.request.created,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "max_output_tokens": self.request.max_tokens,
            "model": self.request.model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": self._usage() if over and not self.script.missing_usage else None,
        }

    def _usage(self) -> dict[str, Any]:
        prompt = self.request.prompt_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.script.cached_tokens},
            "output_tokens": self.tokens,
            "output_tokens_details": {"reasoning_tokens": self._thoughts()},
            "total_tokens": prompt + self.tokens,
        }

    @property
    def _status(self) -> str:
        return "incomplete" if self.finish == "length" else "completed"

    def opening(self) -> list[Block]:
        response = self._response("in_progress")
        names = ("response.created", "response.in_progress")
        return [[_event(name, response=response) for name in names]]

    def token_blocks(self) -> list[Block]:
        return _responses_blocks(self.script, self.tokens)[0]

    def closing(self) -> list[Block]:
        closed = _responses_blocks(self.script, self.tokens)[1]
        end = [] if self.script.no_done else [[self._end()]]
        return [closed, *end]

    def _end(self) -> Event:
        return _event(f"response.{self._status}", response=self._response(self._status))

    def error(self, message: str) -> Event:
        return _event("error", code="server_error", message=message, param=None)

    def document(self) -> bytes:
        return _encode(self._response(self._status))


# ── Messages ─────────────────────────────────────────────────────────────────────────────────────

_BLOCK: dict[str, tuple[dict[str, Any], str, str]] = {
    "answer": ({"type": "text", "text": ""}, "text_delta", "text"),
    "reasoning": (
        {"type": "thinking", "thinking": "", "signature": ""},
        "thinking_delta",
        "thinking",
    ),
    "tool": (
        {"type": "tool_use", "id": "toolu_0", "name": "say", "input": {}},
        "input_json_delta",
        "partial_json",
    ),
}


class _MessagesEvents:
    @staticmethod
    def open(part: Part) -> Block:
        block = _BLOCK[part.said][0]
        return [_event("content_block_start", index=part.place, content_block=block)]

    @staticmethod
    def delta(part: Part, piece: str) -> Event:
        _, kind, key = _BLOCK[part.said]
        delta = {"type": kind, key: piece}
        return _event("content_block_delta", index=part.place, delta=delta)

    @staticmethod
    def close(part: Part, _: str) -> Block:
        return [_event("content_block_stop", index=part.place)]


@lru_cache(64)
def _messages_blocks(script: Script, tokens: int) -> tuple[list[Block], Block]:
    return _blocks(script, tokens, _MessagesEvents)


class MessagesWriter(_Writer):
    """Writes one reply to Messages."""

    @property
    def _reason(self) -> str:
        if self.script.tool_call:
            return "tool_use"
        return "max_tokens" if self.finish == "length" else "end_turn"

    def _input(self) -> dict[str, int]:
        if self.script.missing_usage:
            return {}
        cached = min(self.script.cached_tokens, self.request.prompt_tokens)
        return {
            "input_tokens": self.request.prompt_tokens - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
        }

    def _output(self) -> dict[str, Any]:
        if self.script.missing_usage:
            return {}
        thoughts = {"thinking_tokens": self._thoughts()}
        return {"output_tokens": self.tokens, "output_tokens_details": thoughts}

    def _message(self, **fields: Any) -> dict[str, Any]:
        return {
            "id": f"msg_{self.request.id}",
            "type": "message",
            "role": "assistant",
            "model": self.request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            **fields,
        }

    def opening(self) -> list[Block]:
        usage = self._input() and {**self._input(), "output_tokens": 1}
        return [[_event("message_start", message=self._message(usage=usage))]]

    def token_blocks(self) -> list[Block]:
        return _messages_blocks(self.script, self.tokens)[0]

    def closing(self) -> list[Block]:
        delta = {"stop_reason": self._reason, "stop_sequence": None}
        last = [
            _messages_blocks(self.script, self.tokens)[1],
            [_event("message_delta", delta=delta, usage=self._output())],
        ]
        return last if self.script.no_done else [*last, [_event("message_stop")]]

    def error(self, message: str) -> Event:
        return _event("error", error={"type": "api_error", "message": message})

    def document(self) -> bytes:
        content = []
        for part, said in self._whole():
            block, _, key = _BLOCK[part.said]
            filled = {"input": msgspec.json.decode(said)} if part.said == "tool" else {key: said}
            content.append(block | filled)
        usage = self._input() | self._output()
        message = self._message(content=content, stop_reason=self._reason, usage=usage)
        return _encode(message)
