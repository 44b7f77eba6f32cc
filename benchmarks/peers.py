"""llmbench beside its peers: the same load, the same server with known send times, in turn.

    python benchmarks/peers.py --folder ~/peers      # installs 6 GB there the first time

Each tool runs as a user would run it, in an environment of its own, against a truth server on the
same machine (true TTFT 50 ms, 100 tok/s a stream, 200 tokens a reply), at 64, 256 and 512 streams
and four requests a stream. True figures are the server's own log of that very run: each tool is
held against what it was sent. CPU and wall time are the whole command's, memory is its largest
process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from install_vllm import install_vllm
from tabulate import tabulate

from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script

SCRIPT = Script(ttft_ms=50.0, itl_ms=10.0, output_tokens=200)
ROOT = Path(__file__).parents[1]
VERSIONS = {"vllm": "0.32.0", "aiperf": "0.13.0", "guidellm": "0.8.1"}


class Figures(NamedTuple):
    """What a tool reported, in milliseconds; ``None`` where it has no such figure."""

    ttft_p50: float
    ttft_p99: float
    itl_p50: float | None
    itl_p99: float | None


class Refused(Exception):  # noqa: N818
    """llmbench called the cell INVALID, and printed no figure."""


class Tool(NamedTuple):
    name: str
    command: Callable[[str, int, int, Path], list[str]]
    read: Callable[[Path], Figures]
    environment: Path
    start_up: list[str]


def tools(folder: Path) -> list[Tool]:
    """The tools, with their environments under ``folder``."""
    tokenizer = folder / "tokenizer"

    def vllm(url: str, streams: int, requests: int, out: Path) -> list[str]:
        return [
            str(folder / "vllm/bin/vllm"),
            "bench",
            "serve",
            "--backend=openai-chat",
            f"--base-url={url}",
            "--endpoint=/v1/chat/completions",
            "--model=truth",
            f"--tokenizer={tokenizer}",
            "--dataset-name=random",
            "--random-input-len=64",
            "--random-output-len=200",
            f"--num-prompts={requests}",
            "--ignore-eos",
            f"--max-concurrency={streams}",
            "--save-result",
            f"--result-dir={out}",
            "--percentile-metrics=ttft,itl",
            "--metric-percentiles=50,99",
            "--disable-tqdm",
        ]

    def aiperf(url: str, streams: int, requests: int, out: Path) -> list[str]:
        return [
            str(folder / "aiperf/bin/aiperf"),
            "profile",
            "--model=truth",
            f"--url={url}",
            "--endpoint-type=chat",
            "--streaming",
            f"--tokenizer={tokenizer}",
            f"--concurrency={streams}",
            f"--request-count={requests}",
            "--synthetic-input-tokens-mean=64",
            "--output-tokens-mean=200",
            "--extra-inputs=ignore_eos:true",
            f"--artifact-dir={out}",
            "--ui=none",
        ]

    def guidellm(url: str, streams: int, requests: int, out: Path) -> list[str]:
        return [
            str(folder / "guidellm/bin/guidellm"),
            "run",
            "--disable-console-interactive",
            f"--backend=kind=openai_http,target={url},model=truth",
            f"--profile=kind=concurrent,streams={streams}",
            f"--constraint=kind=max_requests,count={requests}",
            f"--tokenizer=kind=huggingface_auto,model={tokenizer}",
            "--data=kind=synthetic_text,prompt_tokens=64,output_tokens=200",
            f"--output=kind=json,path={out / 'guidellm.json'}",
        ]

    def llmbench(url: str, streams: int, requests: int, out: Path) -> list[str]:
        return [
            sys.executable,
            "-m",
            "llmbench",
            "sweep",
            f"--target={url}",
            "--output-tokens=200",
            "--prompt-tokens=64",
            f"--concurrency={streams}",
            f"--requests={requests}",
            "--no-calibrate",
            f"--out={out / 'run'}",
        ]

    return [
        Tool(
            "vllm bench serve",
            vllm,
            read_vllm,
            folder / "vllm",
            [str(folder / "vllm/bin/vllm"), "bench", "serve", "--help"],
        ),
        Tool(
            "AIPerf",
            aiperf,
            read_aiperf,
            folder / "aiperf",
            [str(folder / "aiperf/bin/aiperf"), "profile", "--help"],
        ),
        Tool(
            "GuideLLM",
            guidellm,
            read_guidellm,
            folder / "guidellm",
            [str(folder / "guidellm/bin/guidellm"), "run", "--help"],
        ),
        Tool(
            "llmbench",
            llmbench,
            read_llmbench,
            folder / "llmbench",
            [sys.executable, "-m", "llmbench", "sweep", "--help"],
        ),
    ]


def load(out: Path, pattern: str) -> Any:
    (path,) = out.rglob(pattern)
    return json.loads(path.read_text())


def read_vllm(out: Path) -> Figures:
    said = load(out, "*.json")
    return Figures(*(said[f"p{p}_{name}_ms"] for name in ("ttft", "itl") for p in (50, 99)))


def read_aiperf(out: Path) -> Figures:
    """AIPerf's "inter token latency" is a mean of each request: not the same figure."""
    ttft = load(out, "profile_export_aiperf.json")["time_to_first_token"]
    return Figures(ttft["p50"], ttft["p99"], None, None)


def read_guidellm(out: Path) -> Figures:
    """GuideLLM's ITL is a mean of each request: not the same figure."""
    metrics = load(out, "guidellm.json")["benchmarks"][0]["metrics"]
    ttft = metrics["time_to_first_token_ms"]["successful"]
    return Figures(ttft["median"], ttft["percentiles"]["p99"], None, None)


def read_llmbench(out: Path) -> Figures:
    (cell,) = load(out, "summary.json")["cells"]
    if cell["verdict"] != "valid":
        raise Refused("; ".join(cell["reasons"]))
    ttft, itl = cell["ttft_ms"], cell["itl_ms"]
    return Figures(ttft["p50"], ttft["p99"], itl["p50"], itl["p99"])


def measure(tool: Tool, streams: int) -> list[str]:
    """One run of one tool, as a row of the table."""
    requests = 4 * streams
    with tempfile.TemporaryDirectory() as folder, TruthServer(SCRIPT) as server:
        command = tool.command(server.url, streams, requests, Path(folder))
        began_s = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began_s
        replies = [reply for reply in server.log() if len(reply.token_sent_ns) == 200]
        try:
            said = tool.read(Path(folder))
        except Refused as refusal:
            print(f"{tool.name} at {streams} streams: {refusal}")
            return [str(streams), tool.name, *["INVALID"] * 4]
        except (KeyError, ValueError, OSError) as problem:
            print(f"{tool.name} at {streams} streams: exit status {status}, {problem!r}")
            return [str(streams), tool.name, *["failed"] * 4]
    ttft = np.array([reply.ttft_ns for reply in replies], dtype=float) / 1e6
    gaps = np.concatenate([np.diff(reply.token_sent_ns) for reply in replies]) / 1e6
    tokens = 200 * len(replies)
    cpu_s = usage.ru_utime + usage.ru_stime
    true = (
        np.quantile(ttft, 0.5),
        np.quantile(ttft, 0.99),
        np.quantile(gaps, 0.5),
        np.quantile(gaps, 0.99),
    )
    return [
        str(streams),
        tool.name,
        *(
            f"{value:.2f} / {'—' if read is None else f'{read:.2f}'}"
            for value, read in zip(true, said, strict=True)
        ),
        f"{cpu_s:.1f}",
        f"{cpu_s / tokens * 1e6:.0f}",
        f"{wall_s:.1f}",
        f"{usage.ru_maxrss / 1024:.0f}",
    ]


def footprint(tool: Tool) -> list[str]:
    """Size of the environment, distributions in it, and the median time of --help."""
    times = []
    for _ in range(5):
        began_s = time.monotonic()
        subprocess.run(
            tool.start_up, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        times.append(time.monotonic() - began_s)
    size = sum(path.lstat().st_size for path in tool.environment.rglob("*") if path.is_file())
    distributions = len(list(tool.environment.glob("lib/python*/site-packages/*.dist-info")))
    return [tool.name, f"{size / 1e6:,.0f}", str(distributions), f"{statistics.median(times):.2f}"]


def install(folder: Path) -> None:
    """Make the environments that are not there yet, and a tokenizer for the peers that want one."""
    for name in ("vllm", "aiperf", "guidellm", "llmbench"):
        environment = folder / name
        if (environment / "bin" / name).exists():
            continue
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin/pip"), "install", "-q"]
        if name == "llmbench":
            subprocess.run([*pip, str(ROOT)], check=True)
        elif name == "vllm":
            install_vllm(environment, VERSIONS[name])
        else:
            if name == "guidellm":
                subprocess.run([*pip, "torch==2.13.0"], check=True)
            subprocess.run([*pip, f"{name}=={VERSIONS[name]}"], check=True)
    if not (folder / "tokenizer").exists():
        text = str(ROOT / "prompts" / "lighthouse.txt")
        script = [str(folder / "guidellm/bin/python"), "-c", MAKE_TOKENIZER]
        subprocess.run([*script, str(folder / "tokenizer"), text], check=True)


MAKE_TOKENIZER = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=["<unk>"], initial_alphabet=alphabet)
tokenizer.train([sys.argv[2]], trainer)
PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(sys.argv[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the environments live")
    parser.add_argument("--streams", default="64,256,512")
    args = parser.parse_args()
    folder = args.folder.expanduser().absolute()
    install(folder)
    found = tools(folder)
    rows = [measure(tool, int(streams)) for streams in args.streams.split(",") for tool in found]
    heads = [
        "streams",
        "tool",
        "TTFT p50, ms\ntrue / said",
        "TTFT p99, ms\ntrue / said",
        "ITL p50, ms\ntrue / said",
        "ITL p99, ms\ntrue / said",
        "CPU s",
        "CPU µs\n/token",
        "wall s",
        "MB",
    ]
    print(tabulate(rows, heads, disable_numparse=True))
    print()
    print(
        tabulate(
            [footprint(tool) for tool in found],
            ["tool", "installed, MB", "distributions", "--help, s"],
            disable_numparse=True,
        )
    )


if __name__ == "__main__":
    main()
