"""The flags of the commands. Every default of a sweep lives in the configuration, not here."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmbench import __version__
from llmbench.lists import counts, items, number, pairs, whole, words

WRONG_USAGE = 2
FORMATS = ("table", "markdown", "csv", "json")

Run = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """One line, without the usage that argparse puts before it."""
        self.exit(WRONG_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser(commands: Mapping[str, Run], command: str) -> argparse.ArgumentParser:
    """The parser of all ``commands``; flags that come from elsewhere are made only if ``command``,
    the one that was given, is theirs: what is not imported costs ``--help`` nothing."""
    top = _Parser(
        prog="llmbench",
        description="The ruler for LLM token latency.",
        epilog="exit codes: 0 good; 1 a gate that you set has failed; 2 wrong usage; 3 nothing "
        "could be measured; 4 a cell is invalid or had failures; 130 interrupted",
    )
    top.add_argument("--version", action="version", version=f"llmbench {__version__}")
    below = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run in commands.items():
        doc = (run.__doc__ or "").strip()
        about = doc.partition("\n")[0]
        its: argparse.ArgumentParser = below.add_parser(
            name, help=about[0].lower() + about[1:].rstrip("."), description=doc
        )
        its.set_defaults(run=run)
        if name == command:
            _FLAGS[name](its)
    return top


def _capacity_flags(parser: argparse.ArgumentParser) -> None:
    def flag(name: str, text: str, **options: Any) -> None:
        parser.add_argument(name, default=argparse.SUPPRESS, help=text, **options)

    flag(
        "--by", "search the concurrency (the default) or the rate", choices=("concurrency", "rate")
    )
    flag("--least", "the lightest load (default: 1)", type=number, metavar="N")
    flag("--most", "the heaviest load that is tried (default: 256)", type=number, metavar="N")
    _sweep_flags(parser)


def _sweep_flags(parser: argparse.ArgumentParser) -> None:
    """Only what the user gives is set; every default lives in the configuration."""

    def flag(name: str, text: str, **options: Any) -> None:
        parser.add_argument(name, default=argparse.SUPPRESS, help=text, **options)

    flag(
        "--target",
        "a URL (http://host:8000, with or without /v1) or an engine "
        "(vllm:MODEL, transformers:MODEL, llamacpp:FILE.gguf, onnx:DIR in process; "
        "vllm-server:, transformers-server:, llamacpp-server: over HTTP); "
        "repeat for several; options after '?', as in "
        "'https://host?model=m&key_env=MY_KEY&name=prod'; default: the embedded engine",
        action="append",
        metavar="T",
    )
    flag("--model", "model to ask for; default: the one that the server lists", metavar="M")
    flag("--api", "which API to speak (default: chat)", choices=("chat", "completions"))
    flag(
        "--client",
        "wire (the default), aiohttp, openai; several make a dimension of the grid",
        type=words,
        metavar="C,…",
    )
    flag("--concurrency", "requests in flight (default: 1,8,32)", type=counts, metavar="N,…")
    flag(
        "--batch-size",
        "static batches for engines in process, instead of --concurrency",
        type=counts,
        metavar="N,…",
    )
    flag(
        "--prompt-tokens",
        "prompt lengths, as the server counts them (default: 128; 64 for the embedded engine): "
        "128,1024, normal(512,128), uniform(…), lognormal(…), or with the reply's, as in 128:64",
        type=items,
        metavar="N,…",
    )
    flag(
        "--output-tokens",
        "length of the replies (default: 128; 16 for the embedded engine), or its distribution",
        metavar="N",
    )
    flag(
        "--requests",
        "measured requests a cell (default: 192, or two a stream)",
        type=whole,
        metavar="N",
    )
    flag("--duration", "measure each cell for S seconds instead", type=number, metavar="S")
    flag(
        "--until",
        "measure until TTFT is certain: ci=5%% (of p50), ttft.p95=10%%; --requests is the most",
        metavar="M=P%",
    )
    flag(
        "--repeat",
        "run every cell N times, interleaved, and show how far the runs lie apart",
        type=whole,
        metavar="N",
    )
    flag("--warmup", "requests before each window (default: one a stream)", type=whole, metavar="N")
    _open_loop_flags(flag)
    _content_flags(flag)
    flag("--timeout", "seconds until a request has failed (default: 300)", type=number, metavar="S")
    flag(
        "--first-token-timeout",
        "seconds until a request without a token has failed",
        type=number,
        metavar="S",
    )
    flag(
        "--max-failures",
        "end a cell with more failed requests than N, or than a share of them, as in 20%%",
        metavar="N",
    )
    flag(
        "--max-reply-bytes",
        "bytes of a reply after which it has failed (default: 64 MiB)",
        type=whole,
        metavar="N",
    )
    flag(
        "--api-key-env",
        "environment variable with the API key (default: OPENAI_API_KEY)",
        metavar="NAME",
    )
    flag("--ca-file", "certificates to trust, in PEM, instead of the system's", metavar="FILE")
    flag(
        "--workers",
        "processes that share the streams, or auto (default: 1)",
        type=_workers,
        metavar="N",
    )
    flag(
        "--no-calibrate",
        "do not measure the ruler's own error (a few seconds a load, cached)",
        action="store_false",
        dest="calibrate",
    )
    flag(
        "--agreement",
        "compare greedy replies with those of the most precise target of the same model",
        action="store_true",
    )
    flag(
        "--slo",
        "latency objectives, such as ttft.p95=500ms,itl.p99=50ms, or by name: voice, chat, … "
        "(docs/cost.md)",
        metavar="M.P=T,…",
    )
    flag("--baseline", "show the other targets as ratios to this one", metavar="TARGET")
    flag("--out", "run directory (default: results/<time>-<name>)", metavar="DIR")
    flag("--format", "what to print (default: table)", choices=FORMATS)
    flag(
        "--why",
        "say below the table all there is to say, and how many more requests each ? would take",
        action="store_true",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=None,
        metavar="FILE",
        help="a TOML file with these flags as keys; flags win over it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, the number of requests and the estimated time, and stop",
    )


def _open_loop_flags(flag: Callable[..., None]) -> None:
    flag(
        "--request-rate",
        "an open loop instead of --concurrency: requests a second, such as 2,8,32; ramp(2,32); "
        "steps(2,8,32); or trace for the dataset's own times",
        type=items,
        metavar="R,…",
    )
    flag("--arrivals", "poisson (the default), constant, or gamma(B), bursty below 1", metavar="A")
    flag("--speed", "how many times as fast a trace is replayed", type=number, metavar="X")
    flag(
        "--max-concurrency",
        "most requests in flight with a rate; the others wait, and that counts",
        type=whole,
        metavar="N",
    )
    flag(
        "--grace",
        "seconds to wait for replies after the window (default: 30 with a rate)",
        type=number,
        metavar="S",
    )


def _content_flags(flag: Callable[..., None]) -> None:
    flag("--text", "what prompts are cut from: chat, rag, code, summary, voice, …", metavar="NAME")
    flag("--dataset", "prompts, or a trace, from a file instead (docs/datasets.md)", metavar="FILE")
    flag("--dataset-format", "its format, where that cannot be seen", metavar="NAME")
    flag(
        "--dataset-columns",
        "which of its columns are ours, as in prompt=question,output_tokens=n",
        type=pairs,
        metavar="OURS=ITS,…",
    )
    flag("--skip-broken", "pass over rows that cannot be read", action="store_true")
    flag(
        "--shared-prefix",
        "share of each prompt, from 0 to 1, that all of a cell begin with",
        type=number,
        metavar="X",
    )
    flag(
        "--cache",
        "cold (the default: no two prompts begin alike), warm (all are alike), or both",
        type=words,
        metavar="C,…",
    )
    flag("--turns", "turns of a conversation (default: 1)", type=whole, metavar="N")
    flag("--think-time", "seconds between turns: 2, 500ms, lognormal(2,0.5), …", metavar="T")
    flag(
        "--barge-in",
        "share of the replies, from 0 to 1, that users cut off to say their next turn",
        type=number,
        metavar="X",
    )
    flag(
        "--barge-in-after",
        "seconds from the first token to the cut (default: uniform(0.2,1))",
        metavar="T",
    )
    flag("--natural-stops", "let replies end where the model ends them", action="store_true")
    flag("--seed", "of all that is drawn (default: 0)", type=whole, metavar="N")


def _calibrate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--concurrency",
        type=counts,
        default=[64, 256, 512],
        metavar="N,…",
        help="streams (default: 64,256,512)",
    )
    parser.add_argument(
        "--client",
        type=words,
        default=["wire"],
        metavar="C,…",
        help="wire (the default), aiohttp, openai",
    )
    parser.add_argument(
        "--ttft-ms",
        type=number,
        default=50.0,
        metavar="MS",
        help="the server's time to first token (default: 50)",
    )
    parser.add_argument(
        "--itl-ms",
        type=number,
        default=10.0,
        metavar="MS",
        help="the server's gap between tokens (default: 10)",
    )
    parser.add_argument(
        "--output-tokens",
        type=whole,
        default=200,
        metavar="N",
        help="tokens a reply (default: 200)",
    )
    parser.add_argument(
        "--requests",
        type=whole,
        default=None,
        metavar="N",
        help="measured requests a load (default: 192, or two a stream)",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")


def _workers(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument(
        "--baseline", default=None, metavar="TARGET", help="show the others as ratios to this one"
    )
    parser.add_argument("--stages", action="store_true", help="show where the time goes instead")
    parser.add_argument(
        "--why",
        action="store_true",
        help="say all there is to say below the table, and how many more requests each ? takes",
    )
    parser.add_argument("--cost", action="store_true", help="show what good requests cost instead")
    parser.add_argument(
        "--prices", type=Path, default=None, metavar="FILE", help="your prices (docs/cost.md)"
    )
    parser.add_argument(
        "--slo", default=None, metavar="M.P=T,…", help="other objectives than the run's, or a name"
    )
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="write a picture too: latency against throughput"
    )


def _compare_flags(parser: argparse.ArgumentParser) -> None:
    from llmbench import compare

    compare.add_flags(parser)


def _budget_flags(parser: argparse.ArgumentParser) -> None:
    from llmbench import budget

    budget.add_flags(parser)
    group = parser.add_argument_group(
        "what is measured first where no RUN is given", "as for llmbench sweep; voice turns"
    )

    def flag(name: str, text: str, **options: Any) -> None:
        group.add_argument(name, default=argparse.SUPPRESS, help=text, **options)

    flag("--target", "a URL or an engine; repeat for several", action="append", metavar="T")
    flag("--model", "model to ask for", metavar="M")
    flag("--concurrency", "users at once (default: 1,2,4,8,16)", type=counts, metavar="N,…")
    flag("--turns", "turns of a conversation (default: 4)", type=whole, metavar="N")
    flag("--think-time", "pause between turns (default: 1s)", metavar="T")
    flag("--prompt-tokens", "length of the first prompt (default: 256)", type=items, metavar="N")
    flag("--output-tokens", "length of the replies (default: 64)", type=whole, metavar="N")
    flag("--requests", "requests a load (default: 96)", type=whole, metavar="N")
    flag("--out", "run directory (default: results/<time>-<name>)", metavar="DIR")
    group.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="a sweep's TOML, for all else"
    )


def _truth_server_flags(parser: argparse.ArgumentParser) -> None:
    from llmbench.truth import flags

    flags.add_flags(parser)
    flags.add_server_flags(parser)


def _models_flags(parser: argparse.ArgumentParser) -> None:
    from llmbench.models import cli

    cli.add_flags(parser)


def _doctor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", action="append", default=[], metavar="T", help="ask a URL or an engine, too"
    )
    parser.add_argument("--model", default="", metavar="M", help="the model to ask a target for")
    parser.add_argument(
        "--forget-calibrations",
        action="store_true",
        help="delete the stored calibrations: the next sweep measures its ruler again",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")


def _export_flags(parser: argparse.ArgumentParser) -> None:
    from llmbench import export

    export.add_flags(parser)


_FLAGS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "sweep": _sweep_flags,
    "capacity": _capacity_flags,
    "report": _report_flags,
    "export": _export_flags,
    "compare": _compare_flags,
    "budget": _budget_flags,
    "calibrate": _calibrate_flags,
    "truth-server": _truth_server_flags,
    "models": _models_flags,
    "doctor": _doctor_flags,
}
