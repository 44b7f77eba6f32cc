"""Does llmbench read what the official SDK reads? Streams that are made up, and mutations of them.

    python benchmarks/fuzz.py [--count 10000] [--seed 1] [--processes 2]

Each stream is one that some server might send, or such a one with a byte position cut, split,
doubled or changed. The ``openai`` SDK's own decoder is the oracle: what it reads as text is read as
the same text; of what it gives up on, what it had read until then is how the text begins. Any reads
of the socket give the same events, and nothing raises or takes longer than SLOW_S. The exit code is
1 where anything else comes out; the stream is printed then, with the seed that makes it again.
"""

import argparse
import json
import os
import random
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice, product
from multiprocessing import get_context
from typing import Any, NamedTuple

from openai import Stream
from openai._streaming import SSEDecoder

from llmbench.apis import APIS, sse
from llmbench.measure.metrics import measure
from llmbench.measure.requests import Requests
from llmbench.measure.timeline import decode
from llmbench.records import Event, Kind, Reads, Trace

SLOW_S = 5.0
"""A machine that does other things may take as long as that over a few kilobytes."""

BATCH = 500
MUTANTS = 19
"""Of each stream that is made up, where positions are drawn: in every other batch. The others take
one stream after the other through every position."""

WORDS = (
    "Hi",
    " there",
    "",
    " ",
    "é",
    "光",
    "🙂",
    "\n\n",
    "data: x",
    '"',
    "\\",
    "\u2028",
    "\x0b",
    "a" * 300,
)


class Reply(NamedTuple):
    """One reply: its bytes, and what was done to make it."""

    body: bytes
    made: str


# ── streams that some server might send ──────────────────────────────────────────────────────────


class Server:
    """Habits, drawn once a stream; ``body`` is one reply."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._end = chance.choice([b"\n", b"\n", b"\n", b"\r\n", b"\r"])
        self._space = chance.choice([b" ", b" ", b""])
        self._ascii = chance.random() < 0.5
        self._usage = chance.choice(["none", "end", "every", "choice", "groq", "own"])
        self._odd = chance.random() < 0.5

    def body(self) -> bytes:
        pieces = [self._event(self._role())] if self._chance.random() < 0.7 else []
        for number in range(self._chance.randrange(12)):
            pieces.append(self._between())
            pieces.append(self._event(self._chunk(number)))
        if self._chance.random() < 0.9:
            pieces.append(self._event(self._finish()))
        if self._usage == "end":
            pieces.append(self._event({"choices": [], "usage": self._counts(9)}))
        if self._chance.random() < 0.85:
            pieces.append(b"data:" + self._space + b"[DONE]" + 2 * self._end)
        if self._chance.random() < 0.05:
            pieces.append(self._event(self._chunk(1)))
        return b"".join(pieces)

    def _event(self, document: Any) -> bytes:
        text = json.dumps(document, ensure_ascii=self._ascii)
        data = text.encode("utf-8", "surrogatepass" if self._ascii else "replace")
        name = b"event: message" + self._end if self._chance.random() < 0.05 else b""
        return name + b"data:" + self._space + data + 2 * self._end

    def _between(self) -> bytes:
        if self._chance.random() < 0.85:
            return b""
        return self._chance.choice([b": ping", b":", b"retry: 5", b"foo: bar"]) + self._end

    def _role(self) -> Any:
        return {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}

    def _chunk(self, number: int) -> Any:
        choice: dict[str, Any] = {"index": 0, "delta": self._delta(), "finish_reason": None}
        document: dict[str, Any] = {
            "id": "1",
            "object": "chat.completion.chunk",
            "choices": [choice],
        }
        if self._usage == "every":
            document["usage"] = self._counts(number + 1)
        elif self._usage == "own":
            document["usage"] = self._counts(1)
        return document

    def _delta(self) -> dict[str, Any]:
        word = self._chance.choice(WORDS)
        if not self._odd:
            return {"content": word}
        return self._chance.choice(
            [
                {"content": word},
                {"content": self._chance.choice([6, 0.5, 10**20])},
                {"content": self._chance.choice(["\ud83d", "\ude00"])},
                {"content": None},
                {"reasoning_content": word, "content": None},
                {"reasoning": word},
                {"reasoning_details": [{"type": "reasoning.text", "text": word}]},
                {"tool_calls": [{"index": 0, "function": {"arguments": word}}]},
                {},
            ]
        )

    def _finish(self) -> Any:
        reason = self._chance.choice(["stop", "length", "abort", "content_filter", ""])
        choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": reason}
        document: dict[str, Any] = {"choices": [choice]}
        if self._usage == "choice":
            choice["usage"] = self._counts(9)
        if self._usage == "groq":
            document["x_groq"] = {"id": "1", "usage": self._counts(9)}
        return document

    def _counts(self, tokens: int) -> dict[str, Any]:
        said = self._chance.choice([tokens, tokens, tokens, 0, None, float(tokens), -1])
        details = self._chance.choice([None, {}, {"reasoning_tokens": 3}])
        return {"prompt_tokens": 7, "completion_tokens": said, "completion_tokens_details": details}


def mutants(body: bytes, chance: random.Random, *, every: bool) -> Iterator[Reply]:
    """``body`` with ``every`` one of its byte positions cut, split, doubled and changed, in turn,
    or with one that is drawn, without end."""
    ways: dict[str, Callable[[int], bytes]] = {
        "ends at": lambda at: body[:at],
        "without byte": lambda at: body[:at] + body[at + 1 :],
        "split by LF at": lambda at: body[:at] + b"\n" + body[at:],
        "split by blank line at": lambda at: body[:at] + b"\n\n" + body[at:],
        "doubled byte": lambda at: body[: at + 1] + body[at:],
        "doubled up to": lambda at: body[:at] + body,
        "changed byte": lambda at: body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :],
    }
    if every:
        for how, at in product(ways, range(len(body))):
            yield Reply(ways[how](at), f"{how} {at}")
        return
    while body:
        how = chance.choice(list(ways))
        at = chance.randrange(len(body))
        yield Reply(ways[how](at), f"{how} {at}")


def streams(seed: int, number: int) -> Iterator[Reply]:
    """The streams of batch ``number``, without end."""
    chance = random.Random(f"{seed}/{number}")
    while True:
        body = Server(chance).body()
        yield Reply(body, "as made")
        every = number % 2 == 1
        yield from islice(mutants(body, chance, every=every), None if every else MUTANTS)


# ── the oracle ───────────────────────────────────────────────────────────────────────────────────


class _Response:
    """As much of a response as the SDK's stream asks for."""

    http_version = "HTTP/1.1"
    request = None

    def __init__(self, body: bytes) -> None:
        self._body = body

    def iter_bytes(self) -> Iterator[bytes]:
        yield self._body

    def close(self) -> None: ...


class _Client:
    """As much of a client: it hands over the documents as they are."""

    def _make_sse_decoder(self) -> SSEDecoder:
        return SSEDecoder()

    def _process_response_data(self, *, data: Any, cast_to: Any, response: Any) -> Any:
        return data


def sdk_text(body: bytes) -> tuple[str, bool]:
    """The answer that an application on the SDK sees, and whether it saw the stream's end."""
    said = ""
    oracle: Any = Stream(cast_to=object, response=_Response(body), client=_Client())  # type: ignore
    try:
        for document in oracle:
            for choice in document["choices"]:
                content = (choice.get("delta") or {}).get("content")
                said += content if isinstance(content, str) else _number(content)
    except Exception:
        return said, False
    return said, True


def _number(content: Any) -> str:
    is_number = isinstance(content, int | float) and not isinstance(content, bool)
    return str(content) if is_number else ""


# ── what is held against it ──────────────────────────────────────────────────────────────────────


def trace_of(body: bytes, cuts: list[int]) -> Trace:
    """``body`` as it was read in pieces that end at ``cuts``."""
    ends = sorted({*cuts, len(body)} - {0})
    at_ns = array("q", (1_000_000 * (n + 1) for n in range(len(ends))))
    none = array("q", [0] * len(ends))
    return Trace(
        cell=0,
        index=0,
        stream=0,
        phase="measured",
        sent_ns=0,
        end_ns=1_000_000 * (len(ends) + 1),
        status=200,
        headers={"content-type": "text/event-stream"},
        reads=Reads(array("q", ends), at_ns, none, none),
        body=body,
    )


def answer(body: bytes) -> str:
    events: list[Event] = APIS["chat"].decode(sse.parse(body))
    return "".join(each.answer for each in events if each.kind & Kind.ANSWER)


def problem(stream: Reply, chance: random.Random) -> str:
    """What is wrong with how ``stream`` is read; nothing if it is right."""
    body = stream.body
    began_s = time.monotonic()
    try:
        text = answer(body)
        whole = decode(trace_of(body, []), APIS["chat"].decode)
        cuts = [chance.randrange(len(body) + 1) for _ in range(chance.randrange(8))]
        trace = trace_of(body, cuts)
        pieces = decode(trace, APIS["chat"].decode)
        request = measure(trace, pieces)
        Requests.of([request])
    except Exception as raised:
        return f"raised {type(raised).__name__}: {raised}"
    if (took_s := time.monotonic() - began_s) > SLOW_S:
        return f"took {took_s:.1f} s"
    told = [
        (each.failure, each.detail, each.finish, each.chars, each.usage) for each in (whole, pieces)
    ]
    if told[0] != told[1] or len(whole.at_ns) != len(pieces.at_ns):
        return f"read in pieces it is {told[1]}, else {told[0]}"
    expected, ended = sdk_text(body)
    if text == expected or (not ended and text.startswith(expected)):
        return ""
    return f"read as {text!r}, by the SDK as {expected!r}"


def batch(seed: int, number: int, count: int) -> list[tuple[Reply, str]]:
    """The streams of a batch that went wrong, and how."""
    chance = random.Random(f"reads {seed}/{number}")
    found = ((each, problem(each, chance)) for each in islice(streams(seed, number), count))
    return [(each, words) for each, words in found if words]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="streams in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    sizes = [min(BATCH, args.count - done) for done in range(0, args.count, BATCH)]
    began_s = time.monotonic()
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        seeds, numbers = [args.seed] * len(sizes), range(len(sizes))
        wrong = [each for found in pool.map(batch, seeds, numbers, sizes) for each in found]
    for stream, words in wrong[:20]:
        print(f"{stream.made}: {words}\n  {stream.body!r}")
    took_s = time.monotonic() - began_s
    print(f"{args.count:,} streams of seed {args.seed}: {len(wrong)} went wrong ({took_s:.0f} s)")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
