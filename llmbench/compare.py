"""``llmbench compare``: stored runs side by side, and the gate of a CI."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmbench import lists
from llmbench.errors import Unmeasurable, UserError

if TYPE_CHECKING:
    from llmbench.config import Sweep
    from llmbench.measure.gate import Rule
    from llmbench.measure.likeness import Side, Stored
    from llmbench.report.compare import Pair

GOOD, GATE_FAILED = 0, 1
RUNS_A_SIDE, LEAST_RUNS_A_SIDE = 4, 2
MEASURED = (
    *("model", "concurrency", "request_rate", "prompt_tokens", "output_tokens"),
    *("requests", "duration", "repeat", "out"),
)
FORMATS = ("table", "markdown", "json", "junit")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run directories, the baseline first; several runs of one side as RUN,RUN; of one run "
        "alone its targets are compared; with --ab targets, as for llmbench sweep",
    )
    parser.add_argument(
        "--ab", action="store_true", help="measure the targets first, in turns: A B B A"
    )
    parser.add_argument(
        "--baseline",
        default=None,
        metavar="RUN",
        help="the one to compare with, if not the first: a run, or of one run a target's name",
    )
    parser.add_argument(
        "--margin",
        default="3%",
        metavar="P%",
        help="what is no difference that matters (default: 3%%)",
    )
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="RULE",
        help="exit with 1 where this is so beyond chance: 'ttft.p95 > +5%%', 'otps < -5%%', "
        "'ttft.p95 > 500ms'; repeat for several",
    )
    parser.add_argument(
        "--single",
        action="store_true",
        help="let --fail-if judge by one run a side, which cannot tell a change of the server from "
        "what changes from run to run",
    )
    parser.add_argument(
        "--anyway", action="store_true", help="compare runs that did other work, too"
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    _add_measured_flags(parser)


def _add_measured_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --ab, what is measured", "as for llmbench sweep")

    def flag(name: str, text: str, **options: Any) -> None:
        group.add_argument(name, default=argparse.SUPPRESS, help=text, **options)

    flag("--model", "model to ask for", metavar="M")
    flag("--concurrency", "requests in flight (default: 8)", type=lists.counts, metavar="N,…")
    flag("--request-rate", "requests a second instead", type=lists.items, metavar="R,…")
    flag("--prompt-tokens", "prompt lengths", type=lists.items, metavar="N,…")
    flag("--output-tokens", "length of the replies", metavar="N")
    flag(
        "--requests",
        "requests a run (default: what comes in a minute for all runs of a target)",
        type=lists.whole,
        metavar="N",
    )
    flag("--duration", "measure each run for S seconds instead", type=lists.number, metavar="S")
    flag("--repeat", f"runs of each target (default: {RUNS_A_SIDE})", type=lists.whole, metavar="N")
    flag("--out", "run directory (default: results/<time>-<name>)", metavar="DIR")
    group.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="a sweep's TOML, for all else"
    )


def measurement(args: argparse.Namespace) -> "Sweep":
    """The sweep of an A/B test: all targets at once, every cell several times, in turns."""
    from llmbench.config import load_sweep

    given = {key: vars(args)[key] for key in MEASURED if key in vars(args)}
    if not {"concurrency", "request_rate"} & given.keys() and args.config is None:
        given["concurrency"] = [8]
    if len(args.runs) < 2 and args.config is None:
        raise UserError("compare --ab: give two targets or more, the baseline first")
    fixed = {"target": list(args.runs), "together": True}
    sweep = load_sweep({"repeat": RUNS_A_SIDE} | given | fixed, args.config)
    if sweep.repeat < LEAST_RUNS_A_SIDE:
        raise UserError(f"--repeat {sweep.repeat}: to take turns takes {LEAST_RUNS_A_SIDE} or more")
    _in_order([target.name for target in sweep.targets()], args.baseline)
    return sweep


def read_rules(args: argparse.Namespace) -> "tuple[float, list[Rule]]":
    """The margin and the rules of the gate. Raises ``UserError``."""
    from llmbench.measure import gate

    rules = [gate.read_rule(text) for text in args.fail_if]
    if args.format == "junit" and not rules:
        raise UserError("--format junit: it has a test case for each --fail-if, and there is none")
    return _margin(args.margin), rules


def run(args: argparse.Namespace) -> int:
    """Compare stored runs: by what factor B differs from A, and whether it is beyond chance."""
    from llmbench.measure import gate
    from llmbench.measure.claims import decide
    from llmbench.report.compare import RENDERERS, Comparison

    margin, rules = read_rules(args)
    base, *others = _groups(args.runs, args.baseline)
    if not args.single and any(rule.metric != gate.FAILED for rule in rules):
        _refuse_single([base, *others])
    names = [base.name, *(other.name for other in others)]
    pairs: list[Pair] = []
    unmatched: list[str] = []
    for other in others:
        its, missing = _compare(base, other, rules)
        decide([result for pair in its for result in pair.results], margin)
        pairs += its
        unmatched += missing
    if not args.anyway:
        _refuse_other_work(pairs)
    if not any(pair.results for pair in pairs):
        raise Unmeasurable(f"nothing to compare: {_why_nothing(pairs, unmatched)}")
    comparison = Comparison(
        baseline=names[0],
        runs=names,
        margin=margin,
        pairs=pairs,
        unmatched=unmatched,
        insecure=[each.name for each in (base, *others) if _is_insecure(each)],
    )
    sys.stdout.write(RENDERERS[args.format](comparison))
    outcomes = [outcome for pair in pairs for outcome in pair.rules]
    return GATE_FAILED if gate.failed(outcomes) else GOOD


def _refuse_single(groups: "Sequence[Group]") -> None:
    """A gate that fails by what one run happened to be is no gate."""
    alone = [each.name for each in groups if len(each.runs) == 1]
    if alone:
        raise UserError(
            f"--fail-if: {alone[0]} is one run, and what changes from run to run is not known; "
            "give several of each side, spread over time (RUN,RUN, or sweep --repeat), or --single"
        )


def _margin(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = 0.0
    if not text.strip().endswith("%") or not 0 < share < 1:
        raise UserError(f"--margin {text}: write a percentage between 0 and 100, such as 3%")
    return share


def _in_order(runs: Sequence[str], baseline: str | None) -> list[str]:
    """The names of the runs, the baseline's first."""
    if len(runs) < 2:
        raise UserError("compare: give two runs or more, the baseline first")
    if len(set(runs)) < len(runs):
        twice = next(each for number, each in enumerate(runs) if each in runs[:number])
        raise UserError(f"compare: {twice}: named twice; a run is the same as itself")
    if baseline is None:
        return list(runs)
    if baseline not in runs:
        raise UserError(f"--baseline {baseline}: none of the runs; there are: {', '.join(runs)}")
    return [baseline, *(each for each in runs if each != baseline)]


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


class Group(NamedTuple):
    """The runs of one side, each with its cells; the repeats of one run are runs of their own."""

    name: str
    runs: "list[list[Stored]]"


def _is_insecure(group: Group) -> bool:
    """Whether certificates were not verified in any of its runs."""
    from llmbench.measure.verdict import INSECURE

    return any(INSECURE in each.facts.remarks for run in group.runs for each in run)


def _groups(runs: Sequence[str], baseline: str | None) -> list[Group]:
    """The sides, the baseline's first: runs or, of one run alone, its targets."""
    if len(runs) > 1:
        names = _in_order(runs, baseline)
        _refuse_twice([path for name in names for path in _paths(name)])
        return [_read(name) for name in names]
    _refuse_twice(_paths(runs[0]))
    whole = _read(runs[0])
    # As the user named them: cells are run in turns, and whose was first is chance.
    numbers = {each.facts.target: each.cell.target for its in whole.runs for each in its}
    targets = list(dict.fromkeys(name for _, name in sorted(numbers.items())))
    if len(targets) < 2:
        raise UserError(f"compare: {runs[0]} has one target; give two runs or more, or --ab")
    return [_of_target(whole, target) for target in _in_order(targets, baseline)]


def _of_target(whole: Group, target: str) -> Group:
    runs = [[each for each in its if each.cell.target == target] for its in whole.runs]
    return Group(target, [its for its in runs if its])


def _read(name: str) -> Group:
    """The runs that ``name`` names: one directory, or several with commas between."""
    runs: list[list[Stored]] = []
    for path in _paths(name):
        cells = _cells(path)
        repeats = sorted({each.facts.repeat for each in cells})
        runs += [[each for each in cells if each.facts.repeat == number] for number in repeats]
    return Group(name, runs)


def _paths(name: str) -> list[Path]:
    parts = [name] if Path(name).exists() else [part for part in name.split(",") if part]
    return [Path(part) for part in parts or [name]]


def _refuse_twice(paths: Sequence[Path]) -> None:
    """A run that counts twice passes for two that agree."""
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UserError(f"compare: {path}: the run is named twice")
        seen.add(path.resolve())


def _cells(path: Path) -> "list[Stored]":
    """Every cell of a run, as ``llmbench report`` would show it, with its requests."""
    from llmbench.evidence import requests_by_cell
    from llmbench.measure.cell import judged
    from llmbench.measure.likeness import Stored
    from llmbench.measure.requests import Requests
    from llmbench.measure.summary import summarize
    from llmbench.store import RunDirectory

    directory = RunDirectory.open(path)
    facts = {each.cell: each for each in directory.run.cells}
    if not facts:
        raise Unmeasurable(f"{path}: no cell was finished")
    requests = dict(requests_by_cell(directory))
    cells = []
    for number, its in sorted(facts.items()):
        seen = requests.get(number, Requests.of(()))
        cell = summarize(directory.run.targets[its.target], its, seen)
        cells.append(Stored(its, judged(cell, its), seen))
    return cells


# ── comparing ────────────────────────────────────────────────────────────────────────────────────


def _compare(base: Group, other: Group, rules: "Sequence[Rule]") -> "tuple[list[Pair], list[str]]":
    """The pairs of cells of two sides, and in words the cells that have no partner."""
    from llmbench.measure.compare import compare_cells
    from llmbench.measure.gate import check
    from llmbench.measure.likeness import differences, matched
    from llmbench.report.compare import Pair

    found, left, right = matched(base.runs[0], other.runs[0])
    cells = [mine for mine, _ in found]
    pairs, invalid = [], []
    for mine, its in found:
        whole = _side(mine, base), _side(its, other)
        load = _load_of(mine, cells)
        invalid += [line for side in whole for line in _invalid(side, load)]
        sides = _valid(whole[0]), _valid(whole[1])
        told = [line for side in sides for each in side.stored for line in differences(mine, each)]
        compared = compare_cells(*sides)
        pairs.append(
            Pair(
                run=other.name,
                load=load,
                differs=list(dict.fromkeys(told)),
                results=compared.results,
                left_out=compared.left_out,
                failures=compared.failures,
                rules=[check(rule, compared) for rule in rules],
            )
        )
    missing = [
        f"{_load_of(each, alone)}: in {has} alone"
        for has, alone in ((base.name, left), (other.name, right))
        for each in alone
    ]
    return pairs, invalid + missing


def _side(first: "Stored", group: Group) -> "Side":
    """The cell ``first`` of the first run of ``group`` with the same cell of its other runs."""
    from llmbench.measure.likeness import Side, matched

    partners = [
        its
        for other in group.runs[1:]
        for mine, its in matched(group.runs[0], other)[0]
        if mine is first
    ]
    return Side([first, *partners])


def _valid(side: "Side") -> "Side":
    """``side`` without the runs of it that are INVALID; as it is where none would be left."""
    kept = [each for each in side.stored if each.cell.verdict != "invalid"]
    return side._replace(stored=kept or side.stored)


def _invalid(side: "Side", load: str) -> list[str]:
    """What to say of the runs that ``_valid`` leaves out."""
    kept = {id(each) for each in _valid(side).stored}
    return [
        f"{load}, one of {len(side.stored)} runs of {each.cell.target}, INVALID: "
        + "; ".join(each.cell.reasons)
        for each in side.stored
        if id(each) not in kept
    ]


def _load_of(stored: "Stored", among: "Sequence[Stored]") -> str:
    """The load of a cell in words, with what tells it from others at the same load."""
    from llmbench.report.compare import load_words

    words = load_words(stored.facts.load)
    if len({each.facts.client for each in among}) > 1:
        words += f", via {stored.facts.client}"
    if len({each.cell.target for each in among}) > 1:
        words = f"{stored.cell.target} at {words}"
    return words


def _refuse_other_work(pairs: "Sequence[Pair]") -> None:
    told = [f"at {pair.load}: {'; '.join(pair.differs)}" for pair in pairs if pair.differs]
    if told:
        raise UserError(
            f"these runs did other work, {'. '.join(dict.fromkeys(told))}. "
            "--anyway compares them all the same"
        )


def _why_nothing(pairs: "Sequence[Pair]", unmatched: Sequence[str]) -> str:
    reasons = [why for pair in pairs for why in pair.left_out.values()] or list(unmatched)
    return "; ".join(dict.fromkeys(reasons)) or "the runs have no cell in common"
