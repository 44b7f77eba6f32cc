"""``llmbench budget RUN``: does a voice turn keep within its budget, and for how many users?

What the user gave → a preset filled in → the stored requests of each cell → the report.
"""

import argparse
import csv
import re
import sys
import tomllib
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from llmbench import lists
from llmbench.errors import Unmeasurable, UserError
from llmbench.measure import budget as chances
from llmbench.measure.budget import Stage, read_stage, read_time, sampled_stage
from llmbench.measure.cell import judged
from llmbench.measure.requests import Requests
from llmbench.measure.speech import SPEAKING, Manner
from llmbench.measure.statistics import quantile
from llmbench.measure.summary import summarize
from llmbench.measure.turn_budget import (
    SEED,
    Budget,
    BudgetRow,
    Group,
    Quantiles,
    Spoken,
    budget_row,
    grouped,
    spoken,
)
from llmbench.measure.verdict import INSECURE
from llmbench.plan.lengths import shown
from llmbench.records import Cell, CellFacts
from llmbench.report import svg
from llmbench.report.budget import BudgetReport, StageRow, notes, render
from llmbench.report.budget_picture import render_bars, render_svg
from llmbench.report.budget_verdict import VerdictRow, search_verdict_rows, verdict_rows
from llmbench.store import RunDirectory

if TYPE_CHECKING:
    from llmbench.config import Sweep
    from llmbench.drive.sweep import Runs

GOOD, NOT_MET, NOTHING_MEASURED = 0, 1, 3
DEFAULT_SHARE = "95%"
LEAST_DEADLINE_S = 0.001
MOST_WORDS_PER_MIN = 100_000.0
FORMATS = ("table", "markdown", "csv", "json")

VOICE: dict[str, Any] = {
    "concurrency": [1, 2, 4, 8, 16],
    "turns": 4,
    "think_time": "1s",
    "prompt_tokens": [256],
    "output_tokens": 64,
    "requests": 96,
    "text": "voice",
    "calibrate": False,
}
"""What is measured where there is no run: conversations of a few turns."""

MEASURED = frozenset(VOICE.keys() - {"text", "calibrate"} | {"target", "model", "out"})
"""The keys of a sweep that are flags here too."""

OF_A_SEARCH = ("least", "most")
MOST_USERS = 64

_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")
_SAMPLE = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*(ms|s|)")
_HEAD_UNIT = re.compile(r"(?:.*[\s_(\[])?(ms|s)[)\]]?", re.IGNORECASE)
_UNITS_S = {"ms": 1e-3, "s": 1.0}


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user asked for. The names are the flags' and a preset's keys; ``None`` and empty
    stand for what was not given."""

    budget: str = ""
    stage: dict[str, str] = {}
    share: str = ""
    speak: Annotated[float, Meta(gt=0, le=MOST_WORDS_PER_MIN)] = SPEAKING
    chars: Annotated[int, Meta(ge=1, le=1_000)] = 50
    start_delay: str = ""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command. Only what the user gives is set: the rest is the preset's."""

    def flag(name: str, text: str, **options: Any) -> None:
        parser.add_argument(name, default=argparse.SUPPRESS, help=text, **options)

    parser.add_argument(
        "run_dir",
        type=Path,
        metavar="RUN",
        nargs="?",
        help="a run directory; without one the target is measured first",
    )
    flag("--budget", "how long a turn may take, such as 800ms", metavar="TIME")
    flag(
        "--stage",
        "what another stage of the turn takes: stt=150ms, stt=120ms/300ms (p50/p95), "
        "stt='lognormal(0.15,0.5)' or stt=@samples.csv; repeat for several",
        action="append",
        metavar="NAME=TIME",
    )
    flag(
        "--share",
        f"how many turns have to be in budget (default: {DEFAULT_SHARE.replace('%', '%%')}); "
        "where it is given, exit 1 if no load that was measured reaches it",
        metavar="P%",
    )
    flag("--speak", f"words a minute (default: {SPEAKING:g})", type=float, metavar="N")
    flag("--chars", "what can be spoken before a sentence is whole (default: 50)", type=int)
    flag(
        "--start-delay",
        "how long after its first word a reply begins to be spoken (default: as soon as a chunk "
        "can be)",
        metavar="TIME",
    )
    flag(
        "--preset",
        "voice-strict, voice, chat-reading, agent, or a file like configs/budget-voice.toml",
        metavar="NAME",
    )
    parser.add_argument(
        "--search", action="store_true", help="find the number of users, in a dozen probes at most"
    )
    flag(
        "--least",
        "the fewest users that a search tries (default: 1)",
        type=lists.number,
        metavar="N",
    )
    flag("--most", f"the most (default: {MOST_USERS})", type=lists.number, metavar="N")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the picture to FILE")


def run(args: argparse.Namespace) -> int:
    """The command: print the report, and say by the exit code whether the share is reached."""
    settings = settings_from(args)
    asked = read_budget(settings)
    directory = RunDirectory.open(args.run_dir)
    report = report_of(directory, asked)
    if not report.rows:
        raise UserError(f"{args.run_dir}: no cell was finished")
    if args.svg is not None:
        svg.save(args.svg, render_svg(report))
    answered = any(row.answered for row in report.rows)
    if not answered and args.format in ("table", "markdown"):
        reasons = [reason for row in report.rows for reason in row.reasons]
        raise Unmeasurable("; ".join(dict.fromkeys(reasons)) or "no turn was answered")
    sys.stdout.write(render(report, args.format, render_bars(report)))
    if not answered:
        return NOTHING_MEASURED
    met = any(each.probable is not None for each in report.verdicts)
    return NOT_MET if settings.share and not met else GOOD


def measurement(args: argparse.Namespace) -> "tuple[Sweep, Runs | None]":
    """What is to be measured where there is no run yet, and how; what is wrong with the budget is
    said before."""
    from llmbench.config import load_search, load_sweep
    from llmbench.drive.budget import BudgetRun

    asked, given = read_budget(settings_from(args)), vars(args)
    own = {key: given[key] for key in MEASURED & given.keys()}
    if own.get("turns") == 1:
        own.setdefault("think_time", "")  # ours has nothing to stand between
    if not args.search:
        if stray := [key for key in OF_A_SEARCH if key in given]:
            raise UserError(f"--{stray[0]}: it is for a search: give --search, too")
        return load_sweep(VOICE | own, args.config), None
    # A search chooses its loads, and how many requests they take where the user does not say.
    voice = {key: VOICE[key] for key in VOICE.keys() - {"concurrency", "requests"}}
    ends = {"most": MOST_USERS} | {key: given[key] for key in OF_A_SEARCH if key in given}
    sweep = load_search(voice | own | ends, args.config, by_slo=False)
    return sweep, partial(BudgetRun, asked=asked)


# ---- what the user asked


def settings_from(args: argparse.Namespace) -> Settings:
    """The preset's keys, with the flags that were given over them."""
    given = vars(args)
    values = _preset(given["preset"]) if "preset" in given else {}
    keys = ("budget", "share", "speak", "chars", "start_delay")
    values |= {key: given[key] for key in keys if key in given}
    if "stage" in given:
        values["stage"] = dict(values.get("stage", {})) | _named(given["stage"])
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as problem:
        raise UserError(_said(problem)) from None
    if not settings.budget:
        raise UserError("budget: give --budget, such as --budget 800ms, or --preset voice")
    return settings


def _said(problem: msgspec.ValidationError) -> str:
    """``--speak: expected …`` for msgspec's "Expected … - at `$.speak`"."""
    what, _, where = str(problem).replace("`", "").partition(" - at $.")
    return f"--{where.replace('_', '-')}: {what[0].lower()}{what[1:]}" if where else what


def _named(stages: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for text in stages:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UserError(f"--stage '{shown(text)}': write NAME=TIME, such as stt=150ms")
        if name in named:
            raise UserError(f"--stage {name}: it stands there twice")
        named[name] = value
    return named


def _preset(name: str) -> dict[str, Any]:
    path = _preset_path(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as problem:
        raise UserError(f"{path}: not valid TOML: {problem}") from None
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise UserError(f"--preset {path}: cannot be read: {reason}") from None
    try:
        msgspec.convert(values, Settings)
    except msgspec.ValidationError as problem:
        raise UserError(f"{path}: {_said(problem)}") from None
    stages = values.get("stage", {})
    values["stage"] = {name: _beside(path, text) for name, text in stages.items()}
    return values


def _beside(path: Path, text: str) -> str:
    """A stage of the preset at ``path``, whose file of samples is sought from there."""
    return f"@{path.parent / text[1:]}" if text.startswith("@") else text


def _preset_path(name: str) -> Path:
    """A file as it is written; else ``budget-NAME.toml`` in the user's ``configs``, or in ours."""
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    package = Path(__file__).parent
    folders = (Path("configs"), package / "configs", package.parent / "configs")  # wheel, checkout
    found = [folder / f"budget-{name}.toml" for folder in folders]
    for path in found:
        if path.is_file():
            return path
    known = sorted(
        {
            path.stem.removeprefix("budget-")
            for folder in folders
            for path in folder.glob("budget-*.toml")
        }
    )
    raise UserError(
        f"--preset {shown(name)}: there is none; there are: {', '.join(known)}; "
        f"for one of your own write {found[0]}"
    )


def read_budget(settings: Settings) -> Budget:
    """What the user asked, read and drawn from. Raises ``UserError``."""
    budget_s = _fixed_s(settings.budget, "--budget")
    if not budget_s:
        raise UserError("--budget 0: a turn takes time; write one such as 800ms")
    stages = [_stage(name, text) for name, text in settings.stage.items()]
    spent = chances.sums(stages, chances.generator(SEED))
    median_s = chances.left_s(spent, budget_s, 0.5)
    manner = Manner(
        chars=settings.chars,
        words_per_min=settings.speak,
        start_delay_s=(
            _fixed_s(settings.start_delay, "--start-delay") if settings.start_delay else None
        ),
        first_deadline_s=max(median_s, LEAST_DEADLINE_S),
    )
    return Budget(budget_s, _share(settings.share or DEFAULT_SHARE), stages, spent, manner)


def _fixed_s(text: str, where: str) -> float:
    fixed = read_time(text, where).fixed
    if fixed is None:
        raise UserError(f"{where}: '{shown(text)}': write one time, such as 800ms")
    return fixed


def _share(text: str) -> float:
    found = _SHARE.fullmatch(text.strip())
    share = float(found[1]) / 100 if found else 0.0
    if not 0.0 < share < 1.0:
        raise UserError(f"--share: '{shown(text)}': write a share of the turns, such as 95%")
    return share


def _stage(name: str, text: str) -> Stage:
    if not text.startswith("@"):
        return read_stage(name, text)
    return sampled_stage(name, text, read_samples(Path(text[1:]), f"--stage {name}"))


def read_samples(path: Path, where: str) -> list[float]:
    """The first column of a CSV as seconds: each with its unit (``150ms``), or with the unit in the
    column's head (``stt_ms``, ``seconds (s)``). Raises ``UserError``."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            cells = [
                (number, row[0].strip()) for number, row in enumerate(csv.reader(file), 1) if row
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not CSV in UTF-8"
        raise UserError(f"{where}: {path}: cannot be read: {reason}") from None
    unit = ""
    if cells and not _SAMPLE.fullmatch(cells[0][1]):
        head = _HEAD_UNIT.fullmatch(cells.pop(0)[1])
        unit = head[1].lower() if head else ""
    if not cells:
        raise UserError(f"{where}: {path}: there are no samples in it; write one a line: 150ms")
    return [_sample_s(text, unit, f"{where}: {path}, line {number}") for number, text in cells]


def _sample_s(text: str, unit: str, where: str) -> float:
    found = _SAMPLE.fullmatch(text)
    if found is None:
        raise UserError(f"{where}: '{shown(text)}' is no time; write 150ms")
    unit = found[2] or unit
    if not unit:
        raise UserError(
            f"{where}: '{shown(text)}' has no unit: write 150ms, or name the column in its first "
            "line, such as stt_ms"
        )
    return float(found[1]) * _UNITS_S[unit]


# ---- what the run says to it


def report_of(directory: RunDirectory, asked: Budget) -> BudgetReport:
    """The stored requests of every cell of a run, against what was ``asked``."""
    rows = _rows(directory, asked)
    groups = grouped(rows, asked.share)
    ordered_s = sorted_sums(asked)
    report = BudgetReport(
        budget_ms=1000 * asked.budget_s,
        share=asked.share,
        stages=[_stage_row(stage) for stage in asked.stages],
        stages_ms=Quantiles(p50=1000 * ordered_s[0], p95=1000 * ordered_s[1]),
        left_for_llm_ms=1000 * chances.left_s(asked.spent, asked.budget_s, asked.share),
        manner=asked.manner,
        rows=_by_load(groups) if directory.run.sweep.search else rows,
        verdicts=_verdicts(directory, groups, asked.share),
        notes=[],
    )
    report.notes = notes(report)
    if any(INSECURE in facts.remarks for facts in directory.run.cells):
        report.notes.append(INSECURE)
    return report


def _verdicts(directory: RunDirectory, groups: Sequence[Group], share: float) -> list[VerdictRow]:
    """One for each of ``groups``."""
    sweep = directory.run.sweep
    if not sweep.search:
        return verdict_rows(groups)
    most = max(float(load) for load in sweep.request_rate or sweep.concurrency)
    return search_verdict_rows(groups, share, sweep.least, most)


def _by_load(groups: Sequence[Group]) -> list[BudgetRow]:
    """The rows of a search, which ran them in another order."""
    return [row for group in groups for row in sorted(group.rows, key=lambda row: row.load or 0.0)]


def sorted_sums(asked: Budget) -> tuple[float, float]:
    """The median and the p95 of what the stages take together, in seconds."""
    ordered = asked.spent.total_s.copy()
    ordered.sort()
    return quantile(ordered, 0.5), quantile(ordered, 0.95)


def _stage_row(stage: Stage) -> StageRow:
    p50_s, p95_s = stage.quantile_s(0.5), stage.quantile_s(0.95)
    return StageRow(name=stage.name, asked=stage.text, p50_ms=1000 * p50_s, p95_ms=1000 * p95_s)


def _rows(directory: RunDirectory, asked: Budget) -> list[BudgetRow]:
    """A row a cell; repeats of one cell are one row, with the requests of all."""
    run = directory.run
    facts = {each.cell: each for each in run.cells}
    requests: dict[int, list[Spoken]] = {_row(its): [] for its in facts.values()}
    cells: dict[int, Cell] = {}
    for number, traces in groupby(directory.traces(), key=lambda trace: trace.cell):
        if number in facts:
            its = facts[number]
            found = spoken(run.targets[its.target], traces, asked.manner)
            cell = summarize(
                run.targets[its.target], its, Requests.of(each.request for each in found)
            )
            cells.setdefault(_row(its), judged(cell, its))
            requests[_row(its)] += found
    for its in facts.values():
        if _row(its) not in cells:
            cells[_row(its)] = judged(summarize(run.targets[its.target], its, Requests.of(())), its)
    return [budget_row(cells[row], requests[row], asked) for row in sorted(cells)]


def _row(facts: CellFacts) -> int:
    return facts.cell if facts.row is None else facts.row
