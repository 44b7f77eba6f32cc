"""A comparison of runs as text: a table, Markdown, JSON, and JUnit's XML for a CI."""

import math
from collections.abc import Callable, Iterable, Sequence
from string import ascii_uppercase
from xml.etree import ElementTree as Xml

import msgspec
import tabulate
from msgspec import Struct

from llmbench import __version__
from llmbench.measure.claims import percent
from llmbench.measure.compare import METRICS, ONE_HAS, Estimate, Result
from llmbench.measure.failures import Failures
from llmbench.measure.gate import Outcome
from llmbench.measure.verdict import INSECURE
from llmbench.records import Load
from llmbench.report.columns import digits, plus_minus
from llmbench.report.table import WIDTH, grid, wrapped

SCHEMA = "llmbench.compare/1"
MATRIX_COLUMNS = 7
"""Runs beside the baseline that a matrix has room for; more have another below it."""

DIFFERS, SAME = "*", "="
"""What stands behind a ratio of a matrix."""


class Pair(Struct, kw_only=True):
    """One load of one run against the baseline's. ``differs`` is what makes them other work, and
    ``failures`` are the baseline's and the run's."""

    run: str
    load: str
    differs: list[str]
    results: list[Result]
    left_out: dict[str, str]
    failures: tuple[Failures, Failures]
    rules: list[Outcome]


class Comparison(Struct, kw_only=True):
    """What ``--format json`` prints. ``unmatched`` are the cells that have no partner.

    ``runs`` are the baseline and the others as they were named, several of one side together; of
    the ``insecure`` ones no certificate was verified.
    """

    schema: str = SCHEMA
    llmbench: str = __version__
    baseline: str
    runs: list[str]
    margin: float
    pairs: list[Pair]
    unmatched: list[str]
    insecure: list[str] = []


def load_words(load: Load) -> str:
    """A load in a few words: ``8 in flight, prompts of 128, replies of 64``."""
    if load.batch_size:
        size = f"batches of {load.batch_size}"
    elif load.rate:
        size = f"{load.rate} req/s" if load.rate[0].isdigit() else load.rate
    else:
        size = f"{load.concurrency} in flight"
    content = load.content
    prompts = content.prompt_lengths or str(load.prompt_tokens)
    replies = content.output_lengths or str(load.output_tokens)
    kind = ", warm cache" if content.cache == "warm" else ""
    kind += f", {content.turns} turns" if content.turns > 1 else ""
    return f"{size}, prompts of {prompts}, replies of {replies}{kind}"


def render_json(comparison: Comparison) -> str:
    return msgspec.json.format(msgspec.json.encode(comparison), indent=2).decode() + "\n"


def render_table(comparison: Comparison) -> str:
    """The comparison for a terminal, within 100 columns."""
    parts = ["\n".join(map(wrapped, [*_names(comparison), *_single(comparison)]))]
    for head, heads, rows in _tables(comparison):
        drawn = grid([f"{each}\n" for each in heads], rows, gap=2, left=_left(comparison))
        if max(map(len, drawn.splitlines())) > WIDTH:
            drawn = grid([f"{each}\n" for each in heads], rows, gap=1, left=_left(comparison))
        lines = [line.rstrip() for line in drawn.replace(_NO_MARK, " ").splitlines()]
        parts.append("\n".join((head, *(line for line in lines if line))))
    parts.append("\n".join(wrapped(line) for line in _notes(comparison)))
    return "\n\n".join(parts) + "\n"


def render_markdown(comparison: Comparison) -> str:
    """The same for a pull request."""
    parts = ["\n".join(f"- {line}" for line in [*_names(comparison), *_single(comparison)])]
    for head, heads, rows in _tables(comparison):
        left = _left(comparison)
        table = tabulate.tabulate(
            [[text.replace("|", "\\|").replace(_NO_MARK, "") for text in row] for row in rows],
            headers=heads,
            tablefmt="github",
            disable_numparse=True,
            colalign=["left"] * left + ["right"] * (len(heads) - left),
        )
        parts.append(f"**{head}**\n\n{table}")
    parts.append("\n".join(f"- {line}" for line in _notes(comparison)))
    return "\n\n".join(parts) + "\n"


def render_junit(comparison: Comparison) -> str:
    """One test case a rule and load: what is not known is skipped, and says why."""
    suite = Xml.Element("testsuite", name="llmbench compare")
    fates = []
    for pair in comparison.pairs:
        for each in pair.rules:
            place = f"{pair.run}: {pair.load}"
            case = Xml.SubElement(suite, "testcase", classname=place, name=each.rule)
            fates.append(each.fate)
            if each.fate == "failed":
                Xml.SubElement(case, "failure", message=each.words)
            elif each.fate == "not known":
                Xml.SubElement(case, "skipped", message=f"not known: {each.words}")
    for words in comparison.unmatched:  # no rule was held against it
        case = Xml.SubElement(suite, "testcase", classname="not compared", name=words)
        Xml.SubElement(case, "skipped", message=f"not known: {words}")
        fates.append("not known")
    suite.set("tests", str(len(fates)))
    suite.set("failures", str(fates.count("failed")))
    suite.set("skipped", str(fates.count("not known")))
    whole = Xml.Element("testsuites")
    whole.append(suite)
    Xml.indent(whole)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(whole, "unicode") + "\n"


RENDERERS: dict[str, Callable[[Comparison], str]] = {
    "table": render_table,
    "markdown": render_markdown,
    "json": render_json,
    "junit": render_junit,
}

# ── the tables ───────────────────────────────────────────────────────────────────────────────────

Table = tuple[str, list[str], list[list[str]]]
"""What it is of, the heads of its columns, and its rows."""

# Stands where others of the column have a mark; a space would be stripped.
_NO_MARK = "\2"


def _is_matrix(comparison: Comparison) -> bool:
    return len(comparison.runs) > 2


def _left(comparison: Comparison) -> int:
    """How many columns are words."""
    return 1 if _is_matrix(comparison) else 2


def _tables(comparison: Comparison) -> list[Table]:
    if _is_matrix(comparison):
        return _matrices(comparison)
    heads = ["metric", "B is", "A", "B", "B ÷ A"]
    return [
        (pair.load, heads, list(map(_row, _shown(pair))))
        for pair in comparison.pairs
        if pair.results
    ]


def _shown(pair: Pair) -> list[Result]:
    """TPOT is left to the JSON where there is ITL: a request's mean ITL is nearly the same."""
    names = {each.metric for each in pair.results}
    return [
        each
        for each in pair.results
        if each.metric.replace("tpot", "itl") not in names - {each.metric}
    ]


def _row(result: Result) -> list[str]:
    low, high = result.ci95
    return [
        _metric(result.metric),
        result.verdict.words if result.verdict else "",
        _figure(result.baseline),
        _figure(result.other),
        f"{digits(result.ratio)} [{digits(low)}, {digits(high)}]",
    ]


def _metric(name: str) -> str:
    return {"otps": "tok/s", "requests_per_s": "req/s"}.get(name, f"{name} ms")


def _figure(estimate: Estimate) -> str:
    low, high = estimate.ci95
    if math.isinf(estimate.value):
        return digits(estimate.value)
    reach = plus_minus(estimate.value, (high - low) / 2) if math.isfinite(high - low) else " ±∞"
    return f"{digits(estimate.value)}{reach}"


def _matrices(comparison: Comparison) -> list[Table]:
    """A matrix a load: the baseline's figures, and the ratios of the other runs to them."""
    letters = dict(zip(comparison.runs, _letters(len(comparison.runs)), strict=True))
    others = comparison.runs[1:]
    tables: list[Table] = []
    for load in dict.fromkeys(pair.load for pair in comparison.pairs):
        by_run = {
            pair.run: {each.metric: each for each in _shown(pair)}
            for pair in comparison.pairs
            if pair.load == load
        }
        metrics = list(dict.fromkeys(metric for its in by_run.values() for metric in its))
        for first in range(0, len(others), MATRIX_COLUMNS):
            some = others[first : first + MATRIX_COLUMNS]
            rows = [
                _matrix_row(metric, [by_run.get(run, {}) for run in some], by_run)
                for metric in metrics
            ]
            tables.append((load, ["metric", "A", *(f"{letters[run]} ÷ A" for run in some)], rows))
    return tables


def _matrix_row(
    metric: str, some: Sequence[dict[str, Result]], by_run: dict[str, dict[str, Result]]
) -> list[str]:
    known = next(its[metric] for its in by_run.values() if metric in its)
    ratios = [its.get(metric) for its in some]
    return [_metric(metric), _figure(known.baseline), *map(_marked, ratios)]


def _marked(result: Result | None) -> str:
    if result is None or result.verdict is None:
        return f"—{_NO_MARK}"
    marks = {"slower": DIFFERS, "faster": DIFFERS, "same": SAME, "unknown": _NO_MARK}
    return digits(result.ratio) + marks[result.verdict.kind]


def _letters(count: int) -> list[str]:
    """A, B, … Z, and what comes after in numbers."""
    return [*ascii_uppercase, *map(str, range(27, count + 1))][:count]


# ── what stands around them ──────────────────────────────────────────────────────────────────────


def _names(comparison: Comparison) -> list[str]:
    letters = _letters(len(comparison.runs))
    return [f"{letter}: {run}" for letter, run in zip(letters, comparison.runs, strict=True)]


def _single(comparison: Comparison) -> list[str]:
    """What no interval knows where a side is one run."""
    runs = [
        each.runs
        for pair in comparison.pairs
        for result in pair.results
        for each in (result.baseline, result.other)
    ]
    if min(runs, default=2) > 1:
        return []
    return [
        "one run a side: what changes from run to run is in no interval (several of one: RUN,RUN)"
    ]


def _notes(comparison: Comparison) -> list[str]:
    return [
        *_rule_lines(comparison),
        *_failed(comparison),
        *_differing(comparison),
        *_left_out(comparison),
        *(f"{each}: {INSECURE}" for each in comparison.insecure),
        *(f"not compared: {each}" for each in comparison.unmatched),
        *_methods(comparison),
    ]


def _place(comparison: Comparison, pair: Pair) -> str:
    return f"{pair.run}, {pair.load}" if _is_matrix(comparison) else pair.load


def _rule_lines(comparison: Comparison) -> list[str]:
    words = {"failed": "FAILED", "passed": "passed", "not known": "not known (does not fail)"}
    return [
        f"{words[each.fate]}: {each.rule} at {_place(comparison, pair)}: {each.words}"
        for pair in comparison.pairs
        for each in pair.rules
    ]


def _failed(comparison: Comparison) -> list[str]:
    """What failed on either side, where anything did."""
    letters = dict(zip(comparison.runs, _letters(len(comparison.runs)), strict=True))
    lines = []
    for pair in comparison.pairs:
        sides = zip(("A", letters[pair.run]), pair.failures, strict=True)
        if any(each.failed for each in pair.failures):
            told = ", ".join(f"{letter} {_of_n(each)}" for letter, each in sides)
            lines.append(f"failed requests at {pair.load}: {told}")
    return lines


def _of_n(failures: Failures) -> str:
    low, high = failures.ci95
    share = f" ({failures.share:.1%} [{low:.1%}, {high:.1%}])" if failures.failed else ""
    return f"{failures.failed} of {failures.n}{share}"


def _differing(comparison: Comparison) -> list[str]:
    return [
        f"other work, compared all the same, at {_place(comparison, pair)}: "
        + "; ".join(pair.differs)
        for pair in comparison.pairs
        if pair.differs
    ]


def _left_out(comparison: Comparison) -> list[str]:
    """One line for each reason, with all that it holds for."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for pair in comparison.pairs:
        for metric, words in pair.left_out.items():
            why, _, count = words.partition(ONE_HAS)
            found.setdefault((_place(comparison, pair), why), {})[metric] = count
    alike: dict[tuple[str, str], dict[str, list[int]]] = {}
    for (place, why), its in found.items():
        which = "all" if len(its) == len(METRICS) else ", ".join(its)
        alike.setdefault((which, why), {})[place] = [int(each) for each in its.values() if each]
    return [
        f"not compared, {which} at {'; '.join(places)}: {why}{_one_has(places.values())}"
        for (which, why), places in alike.items()
    ]


def _one_has(counts: Iterable[Sequence[int]]) -> str:
    """How many the poorest side has, from the fewest to the most."""
    every = sorted(each for its in counts for each in its)
    if not every:
        return ""
    ends = dict.fromkeys((every[0], every[-1]))
    return ONE_HAS + " to ".join(map(str, ends))


def _methods(comparison: Comparison) -> list[str]:
    """What was tested and how; nothing where there is no result."""
    results = [each for pair in comparison.pairs for each in pair.results]
    if not results:
        return []
    tested = ", ".join(
        dict.fromkeys(_metric(each.metric).removesuffix(" ms") for each in results if each.headline)
    )
    lines = [
        f"tested for a difference: {tested or 'nothing'}, at all loads together (Holm; 5% of equal "
        "runs at most are called different); the other metrics only where one of these differs",
        "[ ]: 95% interval of the ratio alone: it may exclude 1 where all tests together claim "
        "nothing; ±: half of a figure's own; itl: a request's mean; more requests: on each side",
    ]
    if _is_matrix(comparison):
        lines[1] = (
            f"{DIFFERS}: differs from A beyond chance; {SAME}: same within "
            f"{percent(comparison.margin)}%; ±: half of the 95% interval; itl: a request's mean"
        )
    return lines
