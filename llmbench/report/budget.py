"""A voice turn against its budget: the tables, and up to how many users it keeps."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import tabulate
from msgspec import Struct

from llmbench.measure.speech import Manner
from llmbench.measure.turn_budget import BudgetRow, Quantiles
from llmbench.records import Block
from llmbench.report.budget_verdict import VerdictRow, count_of, percent, unit_of
from llmbench.report.columns import NOT_MEASURED, digits
from llmbench.report.table import WIDTH, grid, wrapped

SCHEMA = "llmbench.budget/1"
WIDEST_NAME = 24
NOTABLE_ERROR = 0.005
"""The share of the budget beyond which the ruler's own error is told."""


class Column(NamedTuple):
    """``head`` is the title, its unit on a second line. Where there is no room for all columns,
    those with the highest ``spare`` are left out first, and those without one never."""

    head: str
    text: Callable[[BudgetRow], str]
    spare: int = 0


class StageRow(Struct, kw_only=True):
    """One stage of a turn, in ms; ``asked`` is what the user wrote."""

    name: str
    asked: str
    p50_ms: float
    p95_ms: float


class BudgetReport(Struct, kw_only=True):
    """What ``llmbench budget --format json`` prints. Keys are only ever added.

    ``left_for_llm_ms`` is what the stages leave of the budget at the asked share. ``groups`` are
    the rows, apart by all but their load.
    """

    schema: str = SCHEMA
    budget_ms: float
    share: float
    stages: list[StageRow]
    stages_ms: Quantiles
    left_for_llm_ms: float
    manner: Manner
    rows: list[BudgetRow]
    verdicts: list[VerdictRow]
    notes: list[str]


# ---- the whole


def render(report: BudgetReport, style: str, bars: str = "") -> str:
    """``report`` as ``table``, ``markdown``, ``json`` or ``csv``; ``bars`` is a picture of it."""
    if style == "json":
        return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"
    if style == "csv":
        return _csv(report)
    markdown = style == "markdown"
    draw = _markdown if markdown else _terminal
    parts = [
        "\n".join(_lines(_opening(report), markdown)),
        draw([*load_columns(report.rows), *_turn_columns(report)], report.rows),
        "\n".join(_lines([each.says for each in report.verdicts], markdown)),
        f"```\n{bars}```" if markdown and bars else bars,
        draw([*load_columns(report.rows), *_speech_columns(report.rows)], report.rows),
        _by_turn(report.rows, draw=_markdown_grid if markdown else _terminal_grid),
        "\n".join(_lines(report.notes, markdown)),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _lines(lines: Sequence[str], markdown: bool) -> list[str]:
    return [f"- {line}" if markdown else wrapped(line) for line in lines]


def _terminal(chosen: Sequence[Column], rows: Sequence[BudgetRow]) -> str:
    """As many columns as there is room for, and the names of those left out below them."""
    kept, left_out = list(chosen), []
    while True:
        table = _terminal_grid([each.head for each in kept], _texts(kept, rows))
        spare = max(kept, key=lambda column: column.spare)
        if _fits(table) or not spare.spare:
            break
        kept.remove(spare)
        left_out.append(spare.head.replace("\n", " "))
    return table + (f"\nno room for: {', '.join(left_out)}" if left_out else "")


def _fits(table: str) -> bool:
    return max(map(len, table.splitlines())) <= WIDTH


def _markdown(chosen: Sequence[Column], rows: Sequence[BudgetRow]) -> str:
    return _markdown_grid([each.head for each in chosen], _texts(chosen, rows))


def _texts(chosen: Sequence[Column], rows: Sequence[BudgetRow]) -> list[list[str]]:
    return [[column.text(row) for column in chosen] for row in rows]


def _terminal_grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = grid(heads, rows, gap=2)
    return table if _fits(table) else grid(heads, rows, gap=1)


def _markdown_grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate.tabulate(
        [[text.replace("|", "\\|") for text in row] for row in rows],
        [head.replace("\n", " ").strip() for head in heads],
        tablefmt="github",
        disable_numparse=True,
        colalign=["left", *["right"] * (len(heads) - 1)],
    )


# ---- words


def _opening(report: BudgetReport) -> list[str]:
    parts = [f"{stage.name} {stage.asked}" for stage in report.stages]
    stages = f"; stages: {', '.join(parts)}" if parts else "; no stages beside the LLM"
    left = report.left_for_llm_ms
    if left > 0:
        rest = f"left for the LLM at {percent(report.share)}: {signed(left)} ms"
    else:
        rest = f"nothing is left for the LLM at {percent(report.share)}: {signed(left)} ms"
    together = ""
    if len(parts) > 1 and report.stages_ms.p50 != report.stages_ms.p95:
        together = (
            f"; together p50 {milliseconds(report.stages_ms.p50)}, "
            f"p95 {milliseconds(report.stages_ms.p95)} ms"
        )
    return [f"budget {digits(report.budget_ms)} ms{stages}{together}; {rest}"]


def notes(report: BudgetReport) -> list[str]:
    """What the figures mean, and what is odd about them."""
    manner = report.manner
    begin = (
        "as soon as a chunk can be spoken"
        if manner.start_delay_s is None
        else f"{digits(1000 * manner.start_delay_s)} ms after the first word"
    )
    chars = f"{manner.chars} character{'s' * (manner.chars > 1)}"
    invalid: dict[str, list[str]] = {}
    for row in report.rows:
        if row.verdict == "invalid":
            for reason in row.reasons:
                invalid.setdefault(reason, []).append(row_name(row, report.rows))
    lines = [f"{', '.join(names)}: INVALID, {reason}" for reason, names in invalid.items()]
    lines += [
        f"{row_name(row, report.rows)}: {row.turns - row.answered} of {row.turns} turns were never "
        "answered, and count as never in budget"
        for row in report.rows
        if row.answered < row.turns
    ]
    lines += [
        f"{row_name(row, report.rows)}: the ruler can be off by {digits(error_ms)} ms at p95, "
        f"{percent(error_ms / report.budget_ms)} of the budget"
        for row in report.rows
        if row.verdict != "invalid"
        and (error_ms := (row.ttsc_error_ms or {}).get("p95", 0.0))
        > NOTABLE_ERROR * report.budget_ms
    ]
    return [
        *lines,
        f"TTSC: to the first chunk that can be spoken, a whole sentence or {chars}; turn: stages "
        "and TTSC, added by Monte Carlo",
        f"stalls: at {manner.words_per_min:g} words/min, the voice begins {begin}; start delay: "
        "the least after the first word without a stall",
        f"fluidity (Etalon, arXiv 2407.07000): share of deadlines met, "
        f"{digits(1000 * manner.first_deadline_s)} ms for the first piece, "
        f"{digits(1000 * manner.token_deadline_s)} ms for each later one",
    ]


# ---- columns


def load_columns(rows: Sequence[BudgetRow]) -> list[Column]:
    """What tells the rows apart."""
    chosen: list[Column] = []
    if len({row.target for row in rows}) > 1:
        chosen.append(Column("target", lambda row: shortened(row.target)))
    if len({row.client for row in rows}) > 1:
        same = len({(row.target, row.client) for row in rows}) == len({row.target for row in rows})
        chosen.append(Column("client", lambda row: row.client, spare=9 * same))
    if any(row.arrivals is not None for row in rows):
        chosen.append(Column("asked\nreq/s", _rate))
    if any(row.arrivals is None for row in rows):
        chosen.append(Column("users", _users))
    if len({row.prompt_tokens for row in rows}) > 1:
        chosen.append(Column("prompt\ntokens", lambda row: str(row.prompt_tokens)))
    if len({row.cache_asked for row in rows}) > 1:
        chosen.append(Column("cache", lambda row: row.cache_asked or ""))
    return chosen


def _users(row: BudgetRow) -> str:
    return "" if row.arrivals is not None else str(row.concurrency or "")


def _rate(row: BudgetRow) -> str:
    if row.arrivals is None:
        return ""
    return "trace" if row.request_rate is None else f"{row.request_rate:g}"


def row_name(row: BudgetRow, rows: Sequence[BudgetRow]) -> str:
    """The load of ``row`` in words, with its target and lengths where these differ."""
    rate = "trace" if row.request_rate is None else f"{row.request_rate:g} req/s"
    words = [rate if row.arrivals is not None else count_of(row.concurrency, unit_of(row))]
    if len({each.prompt_tokens for each in rows}) > 1:
        words.append(f"/{row.prompt_tokens}")
    if len({each.cache_asked for each in rows}) > 1:
        words.append(row.cache_asked or "")
    if len({each.client for each in rows}) > 1:
        words.insert(0, row.client)
    if len({each.target for each in rows}) > 1:
        words.insert(0, shortened(row.target))
    return " ".join(words)


def _turn_columns(report: BudgetReport) -> list[Column]:
    left, stalled = f"left ms\nat {percent(report.share)}", "stalled\n% of turns"
    return [
        Column("turns", lambda row: str(row.turns)),
        Column("TTSC ms\np50", _of("ttsc_ms", "p50")),
        Column("TTSC ms\np95", _of("ttsc_ms", "p95")),
        Column("turn ms\np50", _of("turn_ms", "p50"), spare=2),
        Column("turn ms\np95", _of("turn_ms", "p95"), spare=1),
        Column("in budget\n%", lambda row: _percent(row, row.in_budget)),
        Column("95%\ninterval", _interval),
        Column(left, lambda row: _shown(row, row.left_ms, signed), spare=1),
        Column(stalled, lambda row: _percent(row, row.stalled_share)),
    ]


def _speech_columns(rows: Sequence[BudgetRow]) -> list[Column]:
    """The tool call only where there is one."""
    columns = [
        Column("sentence\nms p50", _of("first_sentence_ms", "p50")),
        Column("sentence\nms p95", _of("first_sentence_ms", "p95"), spare=3),
        Column("start delay\nms p95", _of("start_delay_ms", "p95")),
        Column("stalls", lambda row: _shown(row, row.stalls, str)),
        Column("stalled\nms p95", _of("stalled_ms", "p95")),
        Column("pause\nms p95", _of("longest_pause_ms", "p95"), spare=2),
        Column("fluidity\np50", _of("fluidity", "p50")),
    ]
    if any(row.first_tool_ms is not None for row in rows):
        columns.append(Column("tool call\nms p50", _of("first_tool_ms", "p50"), spare=4))
    return columns


def _of(name: str, quantile: str) -> Callable[[BudgetRow], str]:
    def text(row: BudgetRow) -> str:
        block: Block | Quantiles | None = getattr(row, name)
        return _shown(row, getattr(block, quantile, None), digits)

    return text


def _shown(row: BudgetRow, value: Any, write: Callable[[Any], str]) -> str:
    return NOT_MEASURED if value is None or row.verdict == "invalid" else write(value)


def _percent(row: BudgetRow, share: float | None) -> str:
    return _shown(row, share, lambda known: f"{100 * known:.1f}")


def _interval(row: BudgetRow) -> str:
    return _shown(row, row.in_budget_ci95, lambda ci: f"{100 * ci[0]:.1f}–{100 * ci[1]:.1f}")


def _by_turn(rows: Sequence[BudgetRow], draw: Callable[..., str]) -> str:
    """TTFT and TTSC by turn, as the context grows; empty where there are no later turns."""
    heads = ["load", "turn", "requests", "prompt\ntokens"]
    heads += ["TTFT ms\np50", "TTFT ms\np95", "TTSC ms\np50", "TTSC ms\np95", "in budget\n%"]
    lines = [
        [
            row_name(row, rows) if turn.turn == 1 else "",
            str(turn.turn),
            str(turn.ttsc_ms.n),
            NOT_MEASURED if turn.prompt_tokens is None else str(turn.prompt_tokens.p50),
            *(
                _shown(row, value, digits)
                for block in (turn.ttft_ms, turn.ttsc_ms)
                for value in (block.p50, block.p95)
            ),
            _percent(row, turn.in_budget),
        ]
        for row in rows
        for turn in row.by_turn
    ]
    return draw(heads, lines) if lines else ""


# ---- figures


def milliseconds(value: float | None) -> str:
    return NOT_MEASURED if value is None else digits(value)


def signed(value: float) -> str:
    """``digits`` of a figure that may be negative."""
    return f"-{digits(-value)}" if value < 0 and not math.isnan(value) else digits(value)


def shortened(name: str, width: int = WIDEST_NAME) -> str:
    """Cut out of the middle: names differ at their ends more than there."""
    if len(name) <= width:
        return name
    half = (width - 1) // 2
    return f"{name[: width - 1 - half]}…{name[-half:]}"


# ---- CSV


def _csv(report: BudgetReport) -> str:
    """One row a cell, nested keys joined by dots; what was not measured is empty."""
    rows = [
        {
            "budget_ms": report.budget_ms,
            "share": report.share,
            "left_for_llm_ms": report.left_for_llm_ms,
        }
        | _flat({key: value for key, value in msgspec.to_builtins(row).items() if key != "by_turn"})
        for row in report.rows
    ]
    out = io.StringIO()
    header = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(out, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(value: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{path}{key}.")
        else:
            flat[path + key] = "; ".join(map(str, item)) if isinstance(item, list | tuple) else item
    return flat
