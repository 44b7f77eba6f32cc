"""What it takes to plan prompts and to begin a large file: seconds, and peak memory.

    python benchmarks/planning.py [--prompts 100000] [--tokens 8000] [--megabytes 1000]

Each line is a process of its own. A prompt is made as a cell makes it, with its request encoded; a
token is taken for three quarters of a word. The file is a ShareGPT dump: one JSON array.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from llmbench.apis import APIS
from llmbench.apis.dialect import DIALECTS
from llmbench.datasets import open_dataset
from llmbench.plan.feed import Feed
from llmbench.plan.scale import Scale
from llmbench.records import Content, Load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=8_000)
    parser.add_argument("--megabytes", type=int, default=1_000)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        PARTS[args.part[0]](args, args.part[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dump.json"
        dump(file, args.megabytes)
        for part in PARTS:
            subprocess.run([sys.executable, *sys.argv, "--part", part, str(file)], check=True)


def fixed(args: argparse.Namespace, _: str) -> None:
    plan(args, Content(), f"{args.prompts:,} prompts of {args.tokens:,} tokens")


def drawn(args: argparse.Namespace, _: str) -> None:
    law = f"normal({args.tokens},{args.tokens // 4})"
    content = Content(prompt_lengths=law, shared_prefix=0.5)
    plan(args, content, f"{args.prompts:,} of {law}, half shared")


def plan(args: argparse.Namespace, content: Content, what: str) -> None:
    load = Load(
        concurrency=1,
        prompt_tokens=args.tokens,
        output_tokens=128,
        requests=args.prompts,
        duration_s=None,
        warmup=0,
        content=content,
    )
    feed, encode = Feed(load, 0, "salt", Scale()), APIS["chat"].encode
    began_s, size = time.perf_counter(), 0
    for number in range(args.prompts):
        session = feed.session(number)
        assert session is not None
        (ask,) = session.asks
        size += len(encode("m", ask.messages, ask.output_tokens, DIALECTS[0], content))
    told(f"{what}: {size / 1e9:.1f} GB encoded", began_s)


def first_rows(_: argparse.Namespace, file: str) -> None:
    began_s = time.perf_counter()
    rows = open_dataset(file)
    first = sum(1 for _ in islice(rows, 100))
    told(f"the first {first} rows of {Path(file).stat().st_size / 1e6:,.0f} MB", began_s)


def all_rows(_: argparse.Namespace, file: str) -> None:
    began_s = time.perf_counter()
    told(f"all {sum(1 for _ in open_dataset(file)):,} rows", began_s)


PARTS = {"fixed": fixed, "drawn": drawn, "first": first_rows, "all": all_rows}


def told(what: str, began_s: float) -> None:
    took_s = time.perf_counter() - began_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {took_s:.2f} s, peak {peak_mb:.0f} MB", flush=True)


def dump(file: Path, megabytes: int) -> None:
    said = [{"from": "human", "value": "word " * 300}, {"from": "gpt", "value": "word " * 300}]
    row = json.dumps({"id": "x", "conversations": said})
    with file.open("w") as out:
        out.write("[" + row)
        for _ in range(megabytes * 1_000_000 // (len(row) + 2)):
            out.write(",\n" + row)
        out.write("]")


if __name__ == "__main__":
    main()
