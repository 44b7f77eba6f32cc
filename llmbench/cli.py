"""The commands. Nothing heavy is imported before it is needed: ``--help`` answers at once."""

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmbench.errors import UserError
from llmbench.flags import WRONG_USAGE, parser

if TYPE_CHECKING:
    from llmbench.config import Sweep
    from llmbench.datasets.survey import Survey
    from llmbench.drive.sweep import Runs, SweepRun
    from llmbench.measure.cell import Measured
    from llmbench.measure.cost import Costed
    from llmbench.prices import ListedPrice
    from llmbench.records import Cell
    from llmbench.store import Run, RunDirectory

GOOD, NOTHING_MEASURED, CELL_FAILED, INTERRUPTED = 0, 3, 4, 130
IN_WORDS = ("table", "markdown")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code says how it went."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser(COMMANDS, next((word for word in argv if word in COMMANDS), "")).parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal without our — and × still gets a table
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except UserError as problem:
        _complain(problem)
        return problem.exit_code
    except BrokenPipeError:
        _let_go_of_output()
        return GOOD
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except OSError as problem:
        _complain(problem)
        return WRONG_USAGE
    return code


def _complain(problem: object) -> None:
    """Say on stderr, if somebody is there to read it, what ends the command."""
    try:
        print(f"llmbench: {problem}", file=sys.stderr)
    except OSError:
        _let_go_of_output()


def _let_go_of_output() -> None:
    """Write to nowhere from now on: a terminal or a pipe is gone, and what is left in the streams
    would be an error once more when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)


# ── the commands ─────────────────────────────────────────────────────────────────────────────────


def sweep(args: argparse.Namespace) -> int:
    """Measure targets side by side, at each load and prompt length."""
    from llmbench.config import load_sweep

    settings = load_sweep(_given(args), args.config)
    if args.dry_run:
        from llmbench.report.plan import render_plan

        sys.stdout.write(render_plan(settings, _survey(settings)))
        _show_requests(settings)
        return GOOD
    run = _measure(settings)
    if run.interrupted:
        return INTERRUPTED
    if not settings.target:
        _say_what_is_here(settings.format)
    return _exit_code(run.cells)


def _show_requests(settings: "Sweep") -> None:
    """Print the first request of each target."""
    from llmbench.drive.preview import previews
    from llmbench.report.plan import render_request

    for each in previews(settings):
        sys.stdout.write(render_request(each.target, each.url, each.headers, each.body))


def _say_what_is_here(style: str) -> None:
    """Tell which servers of this machine could be measured, apart from what machines read."""
    import asyncio

    from llmbench.drive import discovery

    if servers := asyncio.run(discovery.servers_here()):
        stream = sys.stdout if style in IN_WORDS else sys.stderr
        print(discovery.invitation(servers), file=stream)


def _survey(settings: "Sweep") -> "Survey | None":
    """What is in the dataset of a sweep, where it has one."""
    from llmbench.checks import is_traced
    from llmbench.datasets import open_dataset
    from llmbench.datasets.survey import survey

    if not settings.dataset:
        return None
    return survey(
        open_dataset(
            settings.dataset,
            settings.dataset_format,
            settings.dataset_columns,
            settings.skip_broken,
            timed=is_traced(settings),
        )
    )


def _measure(settings: "Sweep", runner: "Runs | None" = None, *, quiet: bool = False) -> "SweepRun":
    """Run a sweep, or what ``runner`` makes of it, store it, and print its table, unless ``quiet``,
    whatever becomes of it."""
    from llmbench import host
    from llmbench.drive.endpoint import check_environment
    from llmbench.drive.open_files import check_open_files
    from llmbench.drive.signals import heard
    from llmbench.drive.sweep import SweepRun
    from llmbench.report.live import LiveView
    from llmbench.report.plan import announcement
    from llmbench.store import RunDirectory

    targets = settings.targets()
    for target in targets:
        check_environment(target)
    check_open_files(settings)
    directory = RunDirectory.create(settings, targets, host.describe())
    view = LiveView()
    view.say(announcement(settings))
    run = (runner or SweepRun)(directory, view)
    began_s = time.monotonic()
    with heard(signal.default_int_handler):  # also while it is calibrated, and the table is made
        try:
            run.run()
            if settings.calibrate and not run.interrupted:
                from llmbench.truth.calibrate import calibrate_cells

                elapsed_s = time.monotonic() - began_s
                calibrate_cells(directory, run.single_cells, view, elapsed_s)
        finally:
            with suppress(OSError):  # a full disk; ``llmbench report`` makes it again
                directory.save_summary(run.cells)
            _show(run, directory, settings, quiet=quiet)
    return run


def _show(run: "SweepRun", directory: "RunDirectory", settings: "Sweep", *, quiet: bool) -> None:
    """Print the table of a run that has ended, and where the evidence is."""
    try:
        if not quiet:
            _print_cells(
                directory.run, run.cells, settings.format, settings.baseline, why=settings.why
            )
        print(f"evidence: {directory.path}", file=sys.stderr)
        if run.interrupted and run.single_cells:
            _say_what_is_missing(settings, len(run.single_cells))
    except OSError:
        if not run.interrupted:
            raise
        _let_go_of_output()  # the terminal is gone, which is what interrupted it


def _say_what_is_missing(sweep: "Sweep", cells: int) -> bool:
    """Whether a run has fewer cells than planned, which is said."""
    from llmbench.plan.grid import grid

    planned = 0 if sweep.search else len(grid(sweep))
    if cells < planned:
        print(f"llmbench: the run did not finish: {cells} of {planned} cells", file=sys.stderr)
    return cells < planned


def capacity(args: argparse.Namespace) -> int:
    """Find the highest load that still meets your objectives."""
    from llmbench.config import load_search
    from llmbench.drive.capacity import CapacityRun

    settings = load_search(_given(args), args.config)
    if args.dry_run:
        from llmbench.report.plan import render_search

        sys.stdout.write(render_search(settings))
        _show_requests(settings)
        return GOOD
    run = _measure(settings, CapacityRun)
    return INTERRUPTED if run.interrupted else _exit_code(run.cells)


def report(args: argparse.Namespace) -> int:
    """Work out the figures of a stored run again, and print them."""
    from llmbench.measure.cell import report_cells
    from llmbench.measure.slo import limits_ms, read_slo
    from llmbench.prices import read_prices
    from llmbench.report.comparison import check_baseline
    from llmbench.store import RunDirectory

    directory = RunDirectory.open(args.run_dir)
    run = directory.run
    check_baseline([target.name for target in run.targets], args.baseline)
    if args.cost and args.prices is None:
        raise UserError("--cost: give your prices too: --prices prices.toml (docs/cost.md)")
    if args.prices is not None and not args.cost:
        raise UserError("--prices: they are for --cost: llmbench report RUN --cost --prices FILE")
    prices = [] if args.prices is None else read_prices(args.prices)
    slo = run.sweep.slo if args.slo is None else read_slo(args.slo)
    runs = _measured_again(directory, limits_ms(slo, "--slo"))
    cells = report_cells(run.targets, slo, runs)
    if not cells:
        raise UserError(f"{args.run_dir}: no cell was finished")
    if args.slo is None and not directory.is_live:  # what if is no fact of the run
        with suppress(OSError):  # a read-only run is still worth reading
            directory.save_summary(cells)
    rows = _costed(cells, prices)
    if args.svg is not None:
        from llmbench.report import svg
        from llmbench.report.frontier import render_frontier

        svg.save(args.svg, render_frontier(rows))
    _print_report(args, run, rows)
    missing = _say_what_is_missing(run.sweep, len(runs))
    return CELL_FAILED if missing else _exit_code(cells)


def _measured_again(
    directory: "RunDirectory", limits_ms: "Mapping[str, float]"
) -> "list[Measured]":
    """Every cell of a run from its stored requests."""
    from llmbench.evidence import requests_by_cell
    from llmbench.measure.cell import measured
    from llmbench.measure.requests import Requests

    targets, facts = directory.run.targets, {each.cell: each for each in directory.run.cells}
    found = {}
    for number, requests in requests_by_cell(directory):
        its = facts[number]
        found[number] = measured(targets[its.target], its, requests, limits_ms)
    none = Requests.of(())
    return [
        found.get(number) or measured(targets[its.target], its, none, limits_ms)
        for number, its in sorted(facts.items())
    ]


def _costed(cells: Sequence["Cell"], prices: "Sequence[ListedPrice]") -> "list[Costed]":
    from llmbench.measure.cost import costed
    from llmbench.prices import price_of
    from llmbench.records import Billed

    return [
        costed(
            cell, price_of(prices, cell.target, cell.model), cell.goodput, cell.billed or Billed()
        )
        for cell in cells
    ]


def _print_report(args: argparse.Namespace, run: "Run", rows: "Sequence[Costed]") -> None:
    cells = [row.cell for row in rows]
    if args.stages and args.format in IN_WORDS:  # the others have them in any case
        from llmbench.report.stages import render_stages

        sys.stdout.write(render_stages(cells, args.format))
    elif args.cost:
        from llmbench.report.cost import render_cost

        sys.stdout.write(render_cost(rows, args.format))
    else:
        baseline = run.sweep.baseline if args.baseline is None else args.baseline
        _print_cells(run, cells, args.format, baseline, why=args.why)


def budget(args: argparse.Namespace) -> int:
    """Check spoken turns against a time budget, by number of users."""
    from llmbench import budget

    if args.run_dir is not None and args.search:
        raise UserError("--search: it measures; give no RUN, or no --search")
    if args.run_dir is None:
        settings, runner = budget.measurement(args)
        run = _measure(settings, runner, quiet=True)
        if run.interrupted:
            return INTERRUPTED
        args.run_dir = run.path
    return budget.run(args)


def export(args: argparse.Namespace) -> int:
    """Write a stored run as Parquet, CSV, gauges or MLflow runs."""
    from llmbench import export

    return export.run(args)


def compare(args: argparse.Namespace) -> int:
    """Tell whether runs differ beyond chance, and gate a CI by it."""
    from llmbench import compare

    if args.ab:
        compare.read_rules(args)  # what is wrong with them is said before anything is measured
        run = _measure(compare.measurement(args), quiet=True)
        args.runs = [str(run.path)]
        code = compare.run(args)
        return INTERRUPTED if run.interrupted else code
    return compare.run(args)


def calibrate(args: argparse.Namespace) -> int:
    """Measure llmbench's own error, at a server of known send times."""
    from llmbench.report.calibration import render_calibration
    from llmbench.report.live import LiveView
    from llmbench.truth.calibrate import ENOUGH_TO_KEEP, keep, run
    from llmbench.truth.script import Script

    script = Script(ttft_ms=args.ttft_ms, itl_ms=args.itl_ms, output_tokens=args.output_tokens)
    view = LiveView()
    runs = []
    for concurrency in args.concurrency:
        for client in args.client:
            view.say(f"measuring {concurrency} streams with {client}")
            runs.append(run(client, concurrency, script, requests=args.requests))
            if runs[-1].errors.ttft.n >= ENOUGH_TO_KEEP:
                keep(runs[-1], script.itl_ms)
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


def models(args: argparse.Namespace) -> int:
    """Make variants of a model: other quantizations, other formats."""
    from llmbench.models import cli

    return cli.run(args)


def doctor(args: argparse.Namespace) -> int:
    """Check whether this machine can measure and targets answer."""
    from llmbench import doctor

    return doctor.run(args)


COMMANDS = {
    "sweep": sweep,
    "capacity": capacity,
    "compare": compare,
    "budget": budget,
    "report": report,
    "export": export,
    "doctor": doctor,
    "calibrate": calibrate,
    "models": models,
    "truth-server": truth_server,
}


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that the user gave, by their names in the configuration."""
    own = {"command", "config", "dry_run", "run"}
    return {key: value for key, value in vars(args).items() if key not in own}


def _print_cells(
    run: "Run", cells: Sequence["Cell"], style: str, baseline: str, *, why: bool = False
) -> None:
    """Print the rows of a run; what stands below them in few lines, unless it is asked ``why``."""
    if style == "json":
        from llmbench.store import summary_json

        sys.stdout.write(summary_json(run, list(cells)).decode())
    elif not any(cell.requests.sent for cell in cells):
        for reason in dict.fromkeys(reason for cell in cells for reason in cell.reasons):
            print(f"llmbench: {reason}", file=sys.stderr)
    else:
        from llmbench.report import RENDERERS
        from llmbench.report.notes import MOST_LINES

        found, cells = cells, _in_order(run, cells)
        ran = any(cell.target == baseline for cell in cells)  # an interrupted run may end before
        answer = _answer(run, found, style) if style in IN_WORDS else ""
        # The machine has a line too, and servers that are here where no target was given.
        others = 1 + (not run.sweep.target) + answer.count("\n")
        most = None if why else MOST_LINES - others
        sys.stdout.write(RENDERERS[style](cells, baseline if ran else None, most))
        if style in IN_WORDS:
            from llmbench.report.provenance import render_provenance
            from llmbench.report.turns import render_turns

            sys.stdout.write(render_turns(cells, style))
            if why:
                from llmbench.report.why import render_why

                sys.stdout.write(render_why(cells, style))
            sys.stdout.write(render_provenance(run.host, run.targets, style))
        sys.stdout.write(answer)
    sys.stdout.flush()


def _in_order(run: "Run", cells: Sequence["Cell"]) -> Sequence["Cell"]:
    """The cells as they are shown: of a search from the lightest load to the heaviest."""
    if not run.sweep.search:
        return cells
    from llmbench.report.capacity import in_order

    return in_order(cells)


def _answer(run: "Run", cells: Sequence["Cell"], style: str) -> str:
    """What a search found, which is the last that is said; empty of a sweep."""
    if not run.sweep.search:
        return ""
    from llmbench.report.capacity import render_capacity
    from llmbench.store import capacities

    return render_capacity(capacities(run, cells), style)


def _exit_code(cells: Sequence["Cell"]) -> int:
    if not any(cell.requests.ok for cell in cells):
        return NOTHING_MEASURED
    if any(cell.verdict != "valid" or cell.requests.failed for cell in cells):
        return CELL_FAILED
    return GOOD
