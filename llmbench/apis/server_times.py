"""Where servers say, in their replies, that the time of a request went.

They do so once, at the end, each in words of its own; we keep llama.cpp's, in which the rest of
llmbench reads them: ``queue_ms``, ``prompt_ms`` (prefill), ``predicted_ms`` (decode).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import msgspec
from msgspec.structs import replace

from llmbench.apis.sse import ServerSentEvent
from llmbench.records import Event

Words = dict[str, tuple[str, ...]]
Decode = Callable[[Sequence[ServerSentEvent]], list[Event]]

LAST_EVENTS = 4
"""Times come with the finish or the usage; an end marker or two may follow."""

_MARKS = (b'"timings"', b'"metrics"', b'"time_info"', b'"perf_metrics"', b'_time"')

_MS = 1e3

# Of each block: its stages, each the sum of what it is made of.
_SECONDS: Words = {
    "queue_ms": ("queue_time",),
    "prompt_ms": ("prompt_time",),
    "predicted_ms": ("completion_time",),
}
_VLLM_MS: Words = {
    "queue_ms": ("queue_time_ms",),
    "prompt_ms": ("time_to_first_token_ms",),  # from when it was scheduled on
    "predicted_ms": ("generation_time_ms",),
}
_FIREWORKS: Words = {
    "tokenize_ms": ("tokenizer-queue-duration", "tokenizer-duration"),
    "queue_ms": ("prefill-queue-duration", "generation-queue-duration"),
    "prompt_ms": ("prefill-duration",),
    "predicted_ms": ("generation-duration",),
}
_LLAMACPP: Words = {
    name: (name,) for name in ("tokenize_ms", "queue_ms", "prompt_ms", "predicted_ms")
}
_STATED = "server-time-to-first-token", "server-processing-time"


def with_server_times(decode: Decode) -> Decode:
    """``decode``, with the times that a reply states put on the event that states them."""

    @wraps(decode)
    def timed(events: Sequence[ServerSentEvent]) -> list[Event]:
        told = decode(events)
        for place in range(max(len(events) - LAST_EVENTS, 0), len(events)):
            if told[place].timings is None and (found := server_times(events[place][1])):
                told[place] = replace(told[place], timings=found)
        return told

    return timed


def server_times(data: bytes) -> dict[str, Any]:
    """The milliseconds by stage that one event states; empty where it states none."""
    if not any(mark in data for mark in _MARKS):
        return {}
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    for block, words, scale in _blocks(document):
        if stages := _stages(block, words, scale):
            return stages
    return {}


def _blocks(document: Any) -> Iterator[tuple[Any, Words, float]]:
    """Each place where a server may state times, with its words and the milliseconds of its unit.
    Responses have theirs inside ``response``."""
    for of in (document, _get(document, "response")):
        yield _get(of, "timings"), _LLAMACPP, 1.0
        yield _get(of, "metrics"), _VLLM_MS, 1.0
        yield _get(of, "time_info"), _SECONDS, _MS  # Cerebras
        yield _get(of, "usage"), _SECONDS, _MS  # Groq
        yield _get(_get(of, "x_groq"), "usage"), _SECONDS, _MS
        yield _fireworks(_get(of, "perf_metrics")), _FIREWORKS, _MS


def _get(of: Any, key: str) -> Any:
    return of.get(key) if isinstance(of, dict) else None


def _fireworks(block: Any) -> Any:
    """``block`` with a prefill and a decode, where it states only the first token and the whole: a
    server without queues of its own."""
    first, whole = (_number(_get(block, key)) for key in _STATED)
    if first is None or "prefill-duration" in block:
        return block
    stated = {"prefill-duration": first}
    if whole is not None and whole >= first:
        stated["generation-duration"] = whole - first
    return stated


def _stages(block: Any, words: Words, scale: float) -> dict[str, float]:
    if not isinstance(block, dict):
        return {}
    found = {}
    for stage, names in words.items():
        parts = [value for name in names if (value := _number(block.get(name))) is not None]
        if parts:
            found[stage] = sum(parts) * scale
    return found


def _number(value: Any) -> float | None:
    """``value`` where it is one, or is one in quotes, and can be a time."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
