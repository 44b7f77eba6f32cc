"""The commands. Nothing heavy is imported before it is needed: ``--help`` answers at once."""

import argparse
import io
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmbench import __version__
from llmbench.errors import UserError

if TYPE_CHECKING:
    from llmbench.records import Cell
    from llmbench.store import Run

GOOD, WRONG_USAGE, NOTHING_MEASURED, CELL_FAILED, INTERRUPTED = 0, 2, 3, 4, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code says how it went."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(argv[0] if argv else "").parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal without our — and × still gets a table
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except UserError as problem:
        print(f"llmbench: {problem}", file=sys.stderr)
        return problem.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return GOOD
    except KeyboardInterrupt:
        print("llmbench: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as problem:
        print(f"llmbench: {problem}", file=sys.stderr)
        return WRONG_USAGE
    return code


# ── the commands ─────────────────────────────────────────────────────────────────────────────────


def sweep(args: argparse.Namespace) -> int:
    """Measure every target × concurrency × prompt length, and print one table."""
    from llmbench import host
    from llmbench.config import load_sweep
    from llmbench.drive.sweep import SweepRun
    from llmbench.report.live import LiveView
    from llmbench.store import RunDirectory

    settings = load_sweep(_given(args), args.config)
    directory = RunDirectory.create(settings, settings.targets(), host.describe())
    view = LiveView()
    run = SweepRun(directory, view)
    try:
        run.run()
        if settings.calibrate and not run.interrupted:
            from llmbench.truth.calibrate import calibrate_cells

            calibrate_cells(directory, run.cells, view)
    finally:
        directory.save_summary(run.cells)
        _print_cells(directory.run, run.cells, settings.format)
        print(f"evidence: {directory.path}", file=sys.stderr)
    return INTERRUPTED if run.interrupted else _exit_code(run.cells)


def report(args: argparse.Namespace) -> int:
    """Work out every figure again from what a run stored, and print the table."""
    from itertools import groupby

    from llmbench.measure.cell import judged, measure_cell
    from llmbench.plan.grid import grid
    from llmbench.store import RunDirectory

    directory = RunDirectory.open(args.run_dir)
    facts = {each.cell: each for each in directory.run.cells}
    measured = {}
    for number, traces in groupby(directory.traces(), key=lambda trace: trace.cell):
        if number in facts:
            target = directory.run.targets[facts[number].target]
            measured[number] = measure_cell(target, facts[number], traces)
    cells = [
        judged(measured.get(number) or measure_cell(target, each, ()), each)
        for number, each in sorted(facts.items())
        for target in [directory.run.targets[each.target]]
    ]
    if not cells:
        raise UserError(f"{args.run_dir}: no cell was finished")
    with suppress(OSError):  # a read-only run is still worth reading
        directory.save_summary(cells)
    _print_cells(directory.run, cells, args.format)
    planned = len(grid(directory.run.sweep))
    if len(cells) < planned:
        print(f"llmbench: the run did not finish: {len(cells)} of {planned} cells", file=sys.stderr)
        return CELL_FAILED
    return _exit_code(cells)


def calibrate(args: argparse.Namespace) -> int:
    """Measure a server with known send times, and print how far off the ruler is."""
    from llmbench.report.calibration import render_calibration
    from llmbench.report.live import LiveView
    from llmbench.truth.calibrate import run
    from llmbench.truth.script import Script

    script = Script(ttft_ms=args.ttft_ms, itl_ms=args.itl_ms, output_tokens=args.output_tokens)
    view = LiveView()
    runs = []
    for concurrency in args.concurrency:
        for client in args.client:
            view.say(f"measuring {concurrency} streams with {client}")
            runs.append(run(client, concurrency, script, requests=args.requests))
    if args.format == "json":
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(runs)).decode() + "\n")
    else:
        sys.stdout.write(render_calibration(runs))
    return GOOD


def truth_server(args: argparse.Namespace) -> int:
    """Serve streams whose send times are known, and log them."""
    from llmbench.truth.server import run_from

    return run_from(args)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that the user gave, by their names in the configuration."""
    own = {"command", "config", "run"}
    return {key: value for key, value in vars(args).items() if key not in own}


def _print_cells(run: "Run", cells: Sequence["Cell"], style: str) -> None:
    if style == "json":
        from llmbench.store import summary_json

        sys.stdout.write(summary_json(run, list(cells)).decode())
    elif not any(cell.requests.sent for cell in cells):
        for reason in dict.fromkeys(reason for cell in cells for reason in cell.reasons):
            print(f"llmbench: {reason}", file=sys.stderr)
    else:
        from llmbench.report import RENDERERS

        sys.stdout.write(RENDERERS[style](cells))
    sys.stdout.flush()


def _exit_code(cells: Sequence["Cell"]) -> int:
    if not any(cell.requests.ok for cell in cells):
        return NOTHING_MEASURED
    if any(cell.verdict != "valid" or cell.requests.failed for cell in cells):
        return CELL_FAILED
    return GOOD


# ── the flags ────────────────────────────────────────────────────────────────────────────────────


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """One line, without the usage that argparse puts before it."""
        self.exit(WRONG_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser; flags that come from elsewhere are made only if ``command`` is theirs."""
    parser = _Parser(
        prog="llmbench",
        description="The ruler for LLM token latency.",
        epilog="exit codes: 0 good; 2 wrong usage; 3 nothing could be measured; "
        "4 a cell is invalid or had failures; 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"llmbench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _sweep_flags(_command(commands, "sweep", sweep))
    serve = _command(commands, "truth-server", truth_server)
    if command == "truth-server":
        from llmbench.truth import flags as truth_flags

        truth_flags.add_flags(serve)
        truth_flags.add_server_flags(serve)
    _calibrate_flags(_command(commands, "calibrate", calibrate))
    again = _command(commands, "report", report)
    again.add_argument("run_dir", type=Path, metavar="RUN", help="a run directory")
    again.add_argument("--format", choices=_formats(), default="table")
    return parser


def _command(commands: Any, name: str, run: Any) -> argparse.ArgumentParser:
    doc = (run.__doc__ or "").strip()
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=doc[0].lower() + doc[1:].rstrip("."), description=doc
    )
    parser.set_defaults(run=run)
    return parser


def _sweep_flags(parser: argparse.ArgumentParser) -> None:
    """Only what the user gives is set; every default lives in the configuration."""
    from llmbench.lists import counts, words

    def flag(name: str, text: str, **options: Any) -> None:
        parser.add_argument(name, default=argparse.SUPPRESS, help=text, **options)

    flag(
        "--target",
        "a URL (http://host:8000, with or without /v1) or an engine "
        "(llamacpp:FILE.gguf); repeat for several; options after '?', as in "
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
        "--prompt-tokens",
        "prompt lengths, as the server counts them (default: 128; 64 for the embedded engine)",
        type=counts,
        metavar="N,…",
    )
    flag(
        "--output-tokens",
        "length of the replies (default: 128; 16 for the embedded engine)",
        type=int,
        metavar="N",
    )
    flag(
        "--requests",
        "measured requests a cell (default: 72, or two a stream)",
        type=int,
        metavar="N",
    )
    flag("--duration", "measure each cell for S seconds instead", type=float, metavar="S")
    flag("--warmup", "requests before each window (default: one a stream)", type=int, metavar="N")
    flag("--timeout", "seconds until a request has failed (default: 300)", type=float, metavar="S")
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
    flag("--out", "run directory (default: results/<time>-<name>)", metavar="DIR")
    flag("--format", "what to print (default: table)", choices=_formats())
    parser.add_argument(
        "--config",
        type=Path,
        default=None,
        metavar="FILE",
        help="a TOML file with these flags as keys; flags win over it",
    )


def _calibrate_flags(parser: argparse.ArgumentParser) -> None:
    from llmbench.lists import counts, words

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
        type=float,
        default=50.0,
        metavar="MS",
        help="the server's time to first token (default: 50)",
    )
    parser.add_argument(
        "--itl-ms",
        type=float,
        default=10.0,
        metavar="MS",
        help="the server's gap between tokens (default: 10)",
    )
    parser.add_argument(
        "--output-tokens", type=int, default=200, metavar="N", help="tokens a reply (default: 200)"
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=None,
        metavar="N",
        help="measured requests a load (default: 72, or two a stream)",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")


def _workers(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _formats() -> tuple[str, ...]:
    return ("table", "markdown", "csv", "json")
