"""The chunks of chat and completions streams, which differ in one field, and their errors.

What is as OpenAI's own servers send it is decoded into structs. Whatever else the official SDKs put
up with is brought into the same shape first, see ``lenient``.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Struct

from llmbench.apis import lenient
from llmbench.apis.sse import ServerSentEvent
from llmbench.records import Event, Kind, Usage


class _Delta(Struct, gc=False):
    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    reasoning_details: list[Any] | None = None
    tool_calls: list[Any] | None = None
    function_call: dict[str, Any] | None = None


class _Choice(Struct, gc=False):
    """Chat puts what it says into ``delta``, completions into ``text``. Tokens without a text (an
    end token, half a character) show in ``token_ids``, or in the ``token_count`` of an engine in
    process."""

    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    native_finish_reason: str | None = None
    token_ids: list[int] | None = None
    token_count: int | None = None
    usage: Usage | None = None
    error: Any = None


class _Groq(Struct, gc=False):
    usage: Usage | None = None
    error: Any = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    object: Any = None
    timings: Any = None
    x_groq: _Groq | None = None


_DECODER = msgspec.json.Decoder(_Chunk)

# Looked up for every event.
_ROLE, _REASONING, _ANSWER, _TOOL = Kind.ROLE, Kind.REASONING, Kind.ANSWER, Kind.TOOL
_USAGE, _FINISH, _GENERATED = Kind.USAGE, Kind.FINISH, Kind.GENERATED

DONE = b"[DONE]"
MALFORMED = "malformed chunk: "

QUOTED_CHARS = 120

WORDLESS = "the server sent an error without words"

SIGNS_OF_LIFE = frozenset(("ping", "keepalive", "keep-alive", "heartbeat"))
"""Names of events that need not be JSON."""

_NOTHING = Event(0)


class _StreamError(Exception):
    """A chunk says that something went wrong."""


class _BareError(Exception):
    """A chunk has neither choices nor usage: it may be an error that does not call itself one."""


_ODD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _BareError)
"""What the structs cannot hold, or do not tell."""


def decode(data: bytes, name: str = "") -> Event:
    """What one event carries. Reasoning and tool calls are generated tokens too."""
    if data.startswith(DONE):
        return Event(Kind.DONE)
    if name == "error":
        return _error(data)
    try:
        return _event(_DECODER.decode(data))
    except _StreamError:
        return _error(data)
    except _ODD:
        return _decode_leniently(data, name)


def decode_all(events: Sequence[ServerSentEvent]) -> list[Event]:
    """``decode`` for each of a reply's ``events``: their JSON is parsed in one go, or one by one
    where any of it is out of the ordinary. The reply is over at ``[DONE]``: of what follows only an
    error counts."""
    done = bool(events) and events[-1][1] == DONE
    plain = events[:-1] if done else events
    lines = b"\n".join([data for _, data, _ in plain])
    if lines.count(b"\n") + 1 == len(plain) and not any(map(_NAME, plain)):
        try:
            chunks = _DECODER.decode_lines(lines)
            if len(chunks) == len(plain):
                told = list(map(_event, chunks))
                return [*told, Event(Kind.DONE)] if done else told
        except (*_ODD, _StreamError):
            pass
    told = [decode(data, name) for _, data, name in events]
    end = next((number for number, each in enumerate(told) if each.kind & Kind.DONE), len(told))
    return told[: end + 1] + [each if _is_own_error(each) else _NOTHING for each in told[end + 1 :]]


_NAME = itemgetter(2)


def _is_own_error(event: Event) -> bool:
    """Whether the server says so itself."""
    return bool(event.kind & Kind.ERROR) and not event.error.startswith(MALFORMED)


def _event(chunk: _Chunk, looked_at: bool = False) -> Event:
    """What ``chunk`` carries. Raises ``_StreamError`` for an error, and, unless its document was
    ``looked_at``, ``_BareError``."""
    if chunk.error or chunk.object == "error":
        raise _StreamError
    kind, thought, answer, finish, ending, tokens = 0, "", "", "", "", None
    choices, usage, timings = chunk.choices, chunk.usage, chunk.timings
    if not choices and usage is None and not looked_at:
        raise _BareError
    for choice in choices or ():
        delta = choice.delta
        if delta is None:
            if choice.text:
                kind |= _ANSWER
                answer += choice.text
        else:
            if delta.role:
                kind |= _ROLE
            if reasoning := delta.reasoning_content or delta.reasoning or delta.thinking:
                kind |= _REASONING
                thought += reasoning
            elif delta.reasoning_details and (told := lenient.details(delta.reasoning_details)):
                kind |= _REASONING
                thought += told
            if content := delta.content or delta.refusal:
                kind |= _ANSWER
                answer += content
            if delta.tool_calls or delta.function_call:
                kind |= _TOOL
        if choice.finish_reason:
            kind |= _FINISH
            finish = choice.finish_reason
            ending = choice.native_finish_reason or ""
        if choice.token_ids is not None:
            tokens = len(choice.token_ids)
        elif choice.token_count is not None:
            tokens = choice.token_count
        if tokens and not kind & _GENERATED:
            kind |= _ANSWER
        if choice.error:
            raise _StreamError
        if usage is None:
            usage = choice.usage
    if chunk.x_groq is not None:
        if chunk.x_groq.error:
            raise _StreamError
        usage = usage or chunk.x_groq.usage
    if usage is not None:
        kind |= _USAGE
    if timings is not None and not isinstance(timings, dict):
        timings = None
    if not thought:
        return Event(kind, answer, tokens, usage, finish, "", timings, 0, ending)
    split = len(thought) if answer else 0
    return Event(kind, thought + answer, tokens, usage, finish, "", timings, split, ending)


def _decode_leniently(data: bytes, name: str) -> Event:
    """``decode`` for what the structs do not hold: any number of documents, of any types."""
    text = data.decode("utf-8", "replace")  # as the standard has it
    if not text.strip():
        return _NOTHING
    try:
        documents, done = lenient.documents(text)
        told = [_event(_chunk(each), looked_at=True) for each in documents]
    except _StreamError:
        return _error(data)
    except (ValueError, msgspec.MsgspecError, RecursionError) as problem:
        if name in SIGNS_OF_LIFE:
            return _NOTHING
        return Event(Kind.ERROR, error=f"{MALFORMED}{problem}{quoted(text)}")
    return merged([*told, Event(Kind.DONE)] if done else told)


def quoted(text: str) -> str:
    """The beginning of what was sent where JSON is usual, if it is words for people."""
    words = " ".join(text.split())[:QUOTED_CHARS]
    return f": {words}" if words[:1].isalpha() and " " in words and words.isprintable() else ""


def _chunk(document: Any) -> _Chunk:
    """``document`` in the usual types. Raises ``ValueError``, and ``_StreamError``."""
    if lenient.states_error(document):
        raise _StreamError
    return msgspec.convert(lenient.chunk(document), _Chunk)


def merged(events: Iterable[Event]) -> Event:
    """What several documents of one event carry together."""
    kind, thought, answer, finish, ending = 0, "", "", "", ""
    tokens: int | None = None
    usage: Usage | None = None
    timings: dict[str, Any] | None = None
    for each in events:
        kind |= each.kind
        its = each.answer
        thought += each.text[: len(each.text) - len(its)]
        answer += its
        if each.tokens is not None:
            tokens = (tokens or 0) + each.tokens
        usage, timings = each.usage or usage, each.timings or timings
        finish, ending = each.finish or finish, each.ending or ending
    split = len(thought) if answer else 0
    return Event(kind, thought + answer, tokens, usage, finish, "", timings, split, ending)


def _error(data: bytes) -> Event:
    return Event(Kind.ERROR, error=error_message(data) or WORDLESS)


def error_message(body: bytes) -> str:
    """One line of what a server said went wrong: out of the JSON shapes in use, or its text."""
    said: Any = body.decode("utf-8", "replace")
    with suppress(ValueError, RecursionError):
        found, _ = lenient.documents(said)
        said = next(filter(lenient.states_error, found), found[0] if found else said)
    line = " ".join("".join(char if char.isprintable() else " " for char in _words(said)).split())
    return line if len(line) <= 200 else line[:199] + "…"


def _words(said: Any) -> str:
    """What ``said`` says went wrong, wherever it says so."""
    if (inner := lenient.error_within(said)) is not None:
        said = {"error": inner}
    for key in ("error", "errors", "base_resp", "message", "detail"):
        if isinstance(said, list) and said:
            said = said[0]
        if isinstance(said, dict) and said.get(key):
            said = said[key]
    if isinstance(said, list) and said:
        said = said[0]
    if isinstance(said, dict):
        said = next(filter(None, map(said.get, _WORDS)), said)
    return str(said)


_WORDS = ("message", "msg", "error_msg", "status_msg", "type")
"""Where an error has its words, the likelier first."""
