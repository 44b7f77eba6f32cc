"""The flags of the commands. Every default of a sweep lives in the configuration, not here."""

import argparse
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmbench import __version__
from llmbench.apis import NAMES
from llmbench.errors import meant, suggestion
from llmbench.lists import counts, items, number, pairs, whole, words

WRONG_USAGE = 2
FORMATS = ("table", "markdown", "csv", "json")
MOST_COLUMNS = 100

OF_A_REQUEST = (
    "headers",
    "body",
    "query",
    "temperature",
    "top_p",
    "reasoning_effort",
    "system_prompt",
    "auth",
    "insecure",
)
"""What the flags of a request set."""

Run = Callable[[argparse.Namespace], int]
Flag = Callable[..., None]

_PLAINER = {
    r"^argument ": "",
    r"^ambiguous option: ": "ambiguous flag: ",
    r": expected one argument$": " needs a value",
    r": ignored explicit argument .*": " takes no value",
    r"^the following arguments are required: ": "missing: ",
}
"""Words of argparse, and what they say in plain English."""

_ABOUT = """\
Times the token streams of LLM servers (TTFT, ITL, throughput), and shows beside
every number how far off the ruler itself can be.

examples:
  llmbench sweep                            the embedded engine: a first look
  llmbench sweep --target localhost:8000    your server: 1, 8 and 32 in flight
  llmbench capacity --target localhost:8000 --slo ttft.p95=500ms
  llmbench compare results/before results/after

commands:
"""

_EXIT_CODES = """\
exit codes:
  0 good                  3 nothing could be measured
  1 your gate has failed  4 a cell is INVALID or had failures
  2 wrong usage           130 interrupted; what was measured is kept
"""

_SWEEP_EXAMPLES = """\
examples:
  A quick look at a server on this machine:
    llmbench sweep --target localhost:8000

  A hosted API beside a server of your own; the variable MY_KEY holds the key:
    llmbench sweep --target 'https://api.example.com?model=m&key_env=MY_KEY' \\
                   --target 'http://localhost:8000?name=ours'

  A grid, three loads at each of two prompt lengths:
    llmbench sweep --target localhost:8000 \\
                   --concurrency 1,8,32 --prompt-tokens 128,2048

  An open loop of 4 requests a second, until the p95 of TTFT is known to 10%:
    llmbench sweep --target localhost:8000 --request-rate 4 --until ttft.p95=10%
"""

_CAPACITY_EXAMPLES = """\
examples:
  How many requests in flight until one in twenty waits more than half a second:
    llmbench capacity --target localhost:8000 --slo ttft.p95=500ms

  How many requests a second, with the objectives of a chat:
    llmbench capacity --target localhost:8000 --by rate --most 64 --slo chat
"""


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Return the layout of a help: as wide as the terminal, but no wider than one can read."""
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS) - 2
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=width)


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, and what may have been meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_formatter, **options)

    def error(self, message: str) -> Any:
        """Leave with one line, without the usage that argparse puts before it."""
        for theirs, ours in _PLAINER.items():
            message = re.sub(theirs, ours, message)
        self._leave(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse ``args``; a flag that is unknown is the matter of the command it was given to."""
        known, strays = super().parse_known_args(args, namespace)
        if strays:
            self._refuse(strays[0])
        return known, strays

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a command or a value that is none of the choices."""
        if action.choices is None or value in action.choices:
            return
        if action.option_strings:
            what = f"{action.option_strings[0]}: unknown value"
        elif (target := _as_target(value)) and "sweep" in action.choices:
            self._leave(f"a command is missing; did you mean {self.prog} sweep --target {target}?")
        else:
            what = f"unknown {str(action.metavar).lower()}"
        self._leave(f"{what} {value!r}{suggestion(value, action.choices)}")

    def _refuse(self, stray: str) -> None:
        """Refuse a word that nothing takes. What may hold a secret is not repeated."""
        flags = [name for name in self._option_string_actions if name.startswith("--")]
        if stray.startswith("-"):
            name = stray.partition("=")[0]
            what, close = f"unknown flag {name}", meant(name, flags)
        else:
            target = _as_target(stray)
            what = f"unexpected {target or stray!r}"
            close = f"--target {target}" if target and "--target" in flags else ""
        if not close:
            self.error(what)
        self._leave(f"{what}; did you mean {close}?")

    def _leave(self, message: str) -> None:
        self.exit(WRONG_USAGE, f"{self.prog}: {message}\n")


def _as_target(word: str) -> str:
    """Return ``word`` without its secrets if it reads as a target, or else nothing."""
    from llmbench.targets import is_target, shown  # only where something is wrong already

    return shown(word) if is_target(word) else ""


def parser(commands: Mapping[str, Run], command: str) -> argparse.ArgumentParser:
    """Return the parser of all ``commands``. Flags are made only for ``command``, the one that was
    given: what is not imported costs ``--help`` nothing."""
    docs = {name: (run.__doc__ or "").strip() for name, run in commands.items()}
    top = _Parser(
        prog="llmbench",
        usage="llmbench COMMAND [flags]",
        description=_ABOUT + "\n".join(_summary(name, doc) for name, doc in docs.items()),
        epilog=_EXIT_CODES,
    )
    top.add_argument("--version", action="version", version=f"llmbench {__version__}")
    below = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog=top.prog, help=argparse.SUPPRESS
    )
    for name, run in commands.items():
        its: argparse.ArgumentParser = below.add_parser(name, description=docs[name])
        its.set_defaults(run=run)
        if name == command:
            _FLAGS[name](its)
    return top


def _summary(name: str, doc: str) -> str:
    """Return the line of a command in the list of all."""
    about = doc.partition("\n")[0].rstrip(".")
    return f"  {name:<13} {about[0].lower()}{about[1:]}"


def _group(parser: argparse.ArgumentParser, title: str) -> Flag:
    """Return what adds a flag to a new group of ``parser``. Only what the user gives is set; every
    default lives in the configuration."""
    group = parser.add_argument_group(title)

    def flag(name: str, text: str, **options: Any) -> None:
        group.add_argument(name, **({"default": argparse.SUPPRESS} | options), help=text)

    return flag


def _describe(parser: argparse.ArgumentParser, usage: str, examples: str) -> None:
    """Put a short usage and worked examples before the flags."""
    parser.usage = f"%(prog)s {usage}"
    parser.description = f"{parser.description}\n\n{examples}"


def _sweep_flags(parser: argparse.ArgumentParser) -> None:
    _describe(parser, "[flags]", _SWEEP_EXAMPLES)
    _measuring_flags(parser)


def _capacity_flags(parser: argparse.ArgumentParser) -> None:
    _describe(parser, "--slo M.P=T,… [flags]", _CAPACITY_EXAMPLES)
    flag = _group(parser, "the search")
    flag("--by", "vary the concurrency (default) or the rate", choices=("concurrency", "rate"))
    flag("--least", "lightest load to try (default: 1)", type=number, metavar="N")
    flag("--most", "heaviest load to try (default: 256)", type=number, metavar="N")
    _measuring_flags(parser)


def _measuring_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a sweep; the first of each group are those that most people need."""
    _target_flags(_group(parser, "what to measure"))
    _request_flags(_group(parser, "what a request says beside its prompt"))
    _load_flags(_group(parser, "load"))
    _content_flags(_group(parser, "what it says"))
    _stop_flags(_group(parser, "when to stop"))
    _trust_flags(_group(parser, "trust"))
    _output_flags(_group(parser, "output"))


def _target_flags(flag: Flag) -> None:
    flag(
        "--target",
        "a URL or host:port, with or without /v1; or an engine that llmbench starts, in process "
        "(llamacpp:FILE.gguf, vllm:MODEL, transformers:MODEL, onnx:DIR) or as a server "
        "(llamacpp-server:FILE.gguf, vllm-server:MODEL, transformers-server:MODEL). Options "
        "follow a '?', as in 'https://host?model=m&key_env=MY_KEY&name=prod'. Repeat it for "
        "several (default: the embedded engine)",
        action="append",
        metavar="T",
    )
    flag(
        "--model",
        "model to ask for (default: the only one that the server lists); a row for each of several",
        metavar="M,…",
    )
    flag(
        "--config",
        "a TOML file that has these flags as keys; a flag wins over its key",
        type=Path,
        default=None,
        metavar="FILE",
    )
    flag("--api", "API to speak (default: chat)", choices=NAMES)
    flag(
        "--api-key-env",
        "environment variable that holds the API key (default: OPENAI_API_KEY)",
        metavar="NAME",
    )
    flag("--ca-file", "PEM file of the certificates to trust, not the system's", metavar="FILE")
    flag(
        "--client",
        "library that sends the requests: wire (default, llmbench's own), aiohttp, openai; "
        "several are measured one after the other",
        type=words,
        metavar="C,…",
    )


def _request_flags(flag: Flag) -> None:
    flag(
        "--header",
        "a header to send, as 'X-Tier: gold'; ${NAME} in it is an environment variable, {session} "
        "and {nonce} differ by conversation and by request. Repeat it for several "
        "(docs/requests.md)",
        action="append",
        dest="headers",
        metavar="'N: V'",
    )
    flag(
        "--body",
        "JSON to lay over the body, or @FILE; null removes a field of ours",
        action="append",
        metavar="JSON",
    )
    flag("--query", "a parameter for the URL's query", action="append", metavar="N=V")
    flag("--temperature", "temperature to ask for (default: 0)", type=number, metavar="X")
    flag("--top-p", "top_p to ask for", type=number, metavar="X")
    flag("--reasoning-effort", "how long to think: low, medium, high, …", metavar="E")
    flag("--system-prompt", "text that comes before each conversation, or @FILE", metavar="TEXT")
    flag(
        "--auth",
        "how the key is sent: bearer (default), api-key, x-api-key, or the name of another header",
        metavar="A",
    )
    flag(
        "--insecure",
        "accept any TLS certificate; each report says that it was so",
        action="store_true",
    )


def _load_flags(flag: Flag) -> None:
    flag("--concurrency", "requests in flight (default: 1,8,32)", type=counts, metavar="N,…")
    flag(
        "--request-rate",
        "requests a second, sent whether or not others have ended (an open loop): 2,8,32; "
        "ramp(2,32); steps(2,8,32); or trace, for the times in the dataset",
        type=items,
        metavar="R,…",
    )
    flag(
        "--arrivals",
        "spacing of requests at a rate: poisson (default), constant, or gamma(B), which is bursty "
        "where B is below 1",
        metavar="A",
    )
    flag(
        "--max-concurrency",
        "most requests in flight at a rate; the others wait, and their wait counts",
        type=whole,
        metavar="N",
    )
    flag("--speed", "replay a trace X times as fast", type=number, metavar="X")
    flag(
        "--batch-size",
        "prompts in a static batch, for engines in process, instead of --concurrency",
        type=counts,
        metavar="N,…",
    )
    flag(
        "--workers",
        "processes that share the streams, or auto (default: 1)",
        type=_workers,
        metavar="N",
    )


def _content_flags(flag: Flag) -> None:
    flag(
        "--prompt-tokens",
        "prompt lengths, as the server counts them: 128,1024; drawn: normal(512,128), "
        "uniform(…), lognormal(…); or each with its reply's, as in 128:64 (default: 128; 48 for "
        "the embedded engine)",
        type=items,
        metavar="N,…",
    )
    flag(
        "--output-tokens",
        "reply length, or what it is drawn from (default: 128; 12 for the embedded engine)",
        metavar="N",
    )
    flag("--text", "what prompts are cut from: chat, rag, code, summary, voice, …", metavar="NAME")
    flag(
        "--dataset",
        "file, or hf:owner/name, to take the prompts or a trace from (docs/datasets.md)",
        metavar="FILE",
    )
    flag("--dataset-format", "the file's format, where it is not recognized", metavar="NAME")
    flag(
        "--dataset-columns",
        "what the file's columns are, as in prompt=question,output_tokens=n",
        type=pairs,
        metavar="OURS=ITS,…",
    )
    flag("--skip-broken", "leave out rows that cannot be read", action="store_true")
    flag(
        "--cache",
        "cold (default: no two prompts begin alike), warm (all prompts are alike), or both",
        type=words,
        metavar="C,…",
    )
    flag(
        "--shared-prefix",
        "share of each prompt, from 0 to 1, with which all prompts of a cell begin",
        type=number,
        metavar="X",
    )
    flag("--turns", "turns of a conversation (default: 1)", type=whole, metavar="N")
    flag("--think-time", "pause between turns: 2, 500ms, lognormal(2,0.5), …", metavar="T")
    flag(
        "--barge-in",
        "share of replies, from 0 to 1, that users cut off to say their next turn",
        type=number,
        metavar="X",
    )
    flag(
        "--barge-in-after",
        "time from the first token to the cut (default: uniform(0.2,1))",
        metavar="T",
    )
    flag("--natural-stops", "let the model end its replies where it likes", action="store_true")
    flag("--seed", "seed of everything that is drawn (default: 0)", type=whole, metavar="N")


def _stop_flags(flag: Flag) -> None:
    flag(
        "--requests",
        "measured requests a cell (default: as many as fit the time: about 30 s, 20 s for the "
        "embedded engine)",
        type=whole,
        metavar="N",
    )
    flag("--duration", "measure each cell for S seconds instead", type=number, metavar="S")
    flag(
        "--until",
        "measure until TTFT is known this well: ci=5%% (its p50), ttft.p95=10%%; --requests is "
        "then the most",
        metavar="M=P%",
    )
    flag(
        "--warmup",
        "requests before those that are measured (default: one a stream)",
        type=whole,
        metavar="N",
    )
    flag(
        "--start",
        "how the streams of a closed loop begin: spread over time, and set off anew at random\n"
        "before each segment of the window, or together, which keeps them in step",
        choices=("spread", "together"),
    )
    flag(
        "--segments",
        "how often they are set off anew at most (default: 32, as far as there is time)",
        type=whole,
        metavar="N",
    )
    flag(
        "--grace",
        "seconds to wait for the last replies (default: 30 with a rate)",
        type=number,
        metavar="S",
    )
    flag("--timeout", "seconds until a request has failed (default: 300)", type=number, metavar="S")
    flag(
        "--first-token-timeout",
        "seconds until a request without a token has failed",
        type=number,
        metavar="S",
    )
    flag(
        "--max-failures",
        "end a cell when more than N requests have failed, or more than a share, as in 20%%",
        metavar="N",
    )
    flag(
        "--max-reply-bytes",
        "fail a reply that brings more than N bytes (default: 64 MiB)",
        type=whole,
        metavar="N",
    )


def _trust_flags(flag: Flag) -> None:
    flag(
        "--repeat",
        "run every cell N times, in turns, and show how far apart the runs lie",
        type=whole,
        metavar="N",
    )
    flag(
        "--no-calibrate",
        "do not measure the ruler's own error (which takes seconds a load, once)",
        action="store_false",
        dest="calibrate",
    )
    flag(
        "--agreement",
        "compare greedy replies with those of the most precise target of the same model",
        action="store_true",
    )


def _output_flags(flag: Flag) -> None:
    flag("--format", "what to print (default: table)", choices=FORMATS)
    flag("--out", "run directory (default: results/<time>-<name>)", metavar="DIR")
    flag(
        "--slo",
        "latency objectives that make a request good, such as ttft.p95=500ms,itl.p99=50ms, or by "
        "name: voice, chat, … (docs/cost.md)",
        metavar="M.P=T,…",
    )
    flag("--baseline", "show the other targets as ratios to this one", metavar="TARGET")
    flag(
        "--why",
        "say all there is to say below the table, and how many more requests each ? takes",
        action="store_true",
    )
    flag(
        "--dry-run",
        "print the plan, the number of requests and the estimated time, and stop",
        action="store_true",
        default=False,
    )


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
    flag = _group(parser, "without a RUN, what is measured (as for llmbench sweep)")
    flag(
        "--target",
        "a URL, host:port or engine; repeat it for several",
        action="append",
        metavar="T",
    )
    flag("--model", "model to ask for", metavar="M")
    flag("--concurrency", "users at once (default: 1,2,4,8,16)", type=counts, metavar="N,…")
    flag("--turns", "turns of a conversation (default: 4)", type=whole, metavar="N")
    flag("--think-time", "pause between turns (default: 1s)", metavar="T")
    flag("--prompt-tokens", "length of the first prompt (default: 256)", type=items, metavar="N")
    flag("--output-tokens", "length of the replies (default: 64)", type=whole, metavar="N")
    flag("--requests", "requests a load (default: 96)", type=whole, metavar="N")
    flag("--out", "run directory (default: results/<time>-<name>)", metavar="DIR")
    flag("--config", "a sweep's TOML, for all else", type=Path, default=None, metavar="FILE")


def _truth_server_flags(parser: argparse.ArgumentParser) -> None:
    from llmbench.truth import flags

    flags.add_flags(parser)
    flags.add_server_flags(parser)


def _models_flags(parser: argparse.ArgumentParser) -> None:
    from llmbench.models import cli

    cli.add_flags(parser)


def _doctor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="T",
        help="check this URL, host:port or engine, too",
    )
    parser.add_argument("--model", default="", metavar="M", help="the model to ask a target for")
    _request_flags(_group(parser, "what a request says beside its prompt"))
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
