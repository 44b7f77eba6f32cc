"""How long does ``llmbench report`` take, and how much memory? Runs of one cell, ever larger.

    python benchmarks/report_speed.py [--requests 5000,20000] [--tokens 16] [--stages]

The requests are synthetic, as a vLLM server would answer at 64 in flight, each with latencies and a
nonce of its own. "decoded" is a report from the evidence alone, and "again" the one after it, from
the columns that the first has kept; a sweep keeps them too, so its reports are like the second.
``--stages`` also says where the time of a single process goes.
"""

import argparse
import cProfile
import io
import json
import os
import pstats
import random
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from llmbench.config import Sweep
from llmbench.records import CellFacts, Load, Reads, Target, Trace
from llmbench.store import RunDirectory

STREAMS = 64
TTFT_NS, ITL_NS = 50_000_000, 10_000_000
HEADERS = {"content-type": "text/event-stream; charset=utf-8", "server": "uvicorn"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", default="5000,20000", metavar="N,…")
    parser.add_argument("--tokens", type=int, default=16, metavar="N")
    parser.add_argument("--stages", action="store_true")
    args = parser.parse_args()
    heads = ["requests", "evidence MB", "decoded s", "peak MB", "again s", "peak MB", "columns MB"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, count in enumerate(map(int, args.requests.split(","))):
            run_dir = make(Path(folder) / str(number), count, args.tokens)
            command = [sys.executable, "-m", "llmbench", "report", str(run_dir)]
            figures = [(run_dir / "requests.jsonl").stat().st_size / 1e6]
            figures += [*timed(command), *timed(command)]
            figures += [sum(each.stat().st_size for each in run_dir.glob("columns/*")) / 1e6]
            digits = (0, 1, 0, 1, 0, 0)
            told = [f"{each:.{its}f}" for each, its in zip(figures, digits, strict=True)]
            rows.append([f"{count:,}", *told])
        print(tabulate(rows, heads, disable_numparse=True, stralign="right"))
        if args.stages:
            print(profile(run_dir))


def make(folder: Path, count: int, tokens: int) -> Path:
    """A run directory with one cell of ``count`` measured requests."""
    target = Target(spec="http://h:8000", name="h:8000", url="http://h:8000/v1", model="m")
    sweep = Sweep(out=str(folder), concurrency=[STREAMS])
    directory = RunDirectory.create(sweep, [target], {"cpu": "synthetic"})
    load = Load(
        concurrency=STREAMS,
        prompt_tokens=128,
        output_tokens=tokens,
        requests=count,
        duration_s=None,
        warmup=0,
    )
    facts = CellFacts(cell=0, target=0, client="wire", load=load, model="m", exact_length=True)
    directory.add_cell(facts, traces(count, tokens))
    directory.finish(interrupted=False)
    return folder


def traces(count: int, tokens: int) -> Iterator[Trace]:
    draw = random.Random(0)
    free_ns = [0] * STREAMS
    pieces = [chunk(number, tokens) for number in range(tokens)]
    body = b"".join([*pieces, b"data: [DONE]\n\n"])
    ends = array("q")
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    ends[-1] = len(body)
    for index in range(count):
        stream = index % STREAMS
        at_ns = array("q")
        now_ns = int(TTFT_NS * draw.lognormvariate(0, 0.2))
        for _ in range(tokens):
            at_ns.append(now_ns)
            now_ns += int(ITL_NS * draw.lognormvariate(0, 0.1))
        lag_ns = array("q", [draw.randrange(10_000, 40_000) for _ in range(tokens)])
        sent_ns, free_ns[stream] = free_ns[stream], free_ns[stream] + at_ns[-1]
        yield Trace(
            cell=0,
            index=index,
            stream=stream,
            phase="measured",
            sent_ns=sent_ns,
            end_ns=at_ns[-1],
            request_id=f"{index:032x}",
            send_ns=20_000,
            status=200,
            headers=HEADERS,
            reads=Reads(ends, at_ns, lag_ns, array("q", bytes(8 * tokens))),
            body=body,
        )


def chunk(number: int, tokens: int) -> bytes:
    """A chunk of vLLM's with its running count of tokens."""
    document = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "delta": {"content": " lighthouse"},
                "logprobs": None,
                "finish_reason": "length" if number == tokens - 1 else None,
            }
        ],
        "usage": {
            "prompt_tokens": 128,
            "total_tokens": 129 + number,
            "completion_tokens": number + 1,
        },
    }
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def timed(command: list[str]) -> tuple[float, float]:
    """Wall seconds, and the largest resident set of any of its processes in MB."""
    began_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 4):
        sys.exit("the report failed")
    return time.monotonic() - began_s, usage.ru_maxrss * 1024 / 1e6


def profile(run_dir: Path) -> str:
    """Seconds by function, the functions below included, under the profiler (which adds to it)."""
    from llmbench.cli import main as command

    watch, words, stdout = cProfile.Profile(), io.StringIO(), sys.stdout
    sys.stdout = io.StringIO()
    try:
        watch.runcall(command, ["report", str(run_dir)])
    finally:
        sys.stdout = stdout
    pstats.Stats(watch, stream=words).sort_stats("cumulative").print_stats("llmbench", 30)
    return words.getvalue()


if __name__ == "__main__":
    main()
