"""What a sweep would do, before it does it."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import tabulate

from llmbench.config import Sweep
from llmbench.datasets.survey import Spread, Survey
from llmbench.plan.arrivals import read_rate
from llmbench.plan.grid import grid
from llmbench.plan.lengths import read_seconds
from llmbench.plan.search import LEAST_REQUESTS, MOST_PROBES, MOST_REQUESTS
from llmbench.plan.segments import COST_TURNS, SENT_TURNS, by_requests
from llmbench.plan.until import ENOUGH, FEWEST_A_STREAM, LOOKS
from llmbench.records import TRACE, CellFacts, Load
from llmbench.report.table import wrapped

GUESSED_TOKEN_S = 0.025
GUESSED_FIRST_TOKEN_S = 0.5
START_S, EMBEDDED_START_S = 30.0, 5.0
"""Nobody knows a target's speed before it has run: the estimate states these guesses."""


SHOWN_TEXT = 60
"""Characters of a long text in the body of a request that is shown."""


def render_plan(sweep: Sweep, found: Survey | None = None) -> str:
    """The cells of ``sweep``, one a line, with their number of requests and their guessed time.

    ``found`` is what its dataset holds, where it has one.
    """
    targets, cells = sweep.targets(), grid(sweep)
    at_once = "req/s" if sweep.request_rate else "batch" if sweep.batch_size else "conc."
    rows = [
        {
            "target": targets[cell.target].name,
            "client": cell.client,
            at_once: cell.load.rate or cell.load.batch_size or cell.load.concurrency,
            **({"cache": cell.load.content.cache} if sweep.cache != ["cold"] else {}),
            "prompt": "file"
            if cell.load.content.dataset
            else _length(cell.load.prompt_tokens, cell.load.content.prompt_lengths),
            "output": "file"
            if found is not None and found.output_tokens
            else _length(cell.load.output_tokens, cell.load.content.output_lengths),
            "requests": _requests(cell, found),
            "about": duration(seconds(cell, found)),
        }
        for cell in cells
    ]
    table = tabulate.tabulate(
        [list(row.values()) for row in rows],
        list(rows[0]),
        disable_numparse=True,
        colalign=("left", "left", *["right"] * (len(rows[0]) - 2)),
    )
    below = (*_summary(sweep, cells, found), *_content(cells), *_surveyed(found))
    return "\n".join((table, *map(wrapped, below))) + "\n"


def render_request(name: str, url: str, headers: Mapping[str, str], body: bytes) -> str:
    """The request that a target of that ``name`` is sent first; of long texts the beginning."""
    lines = [f"{key}: {value}" for key, value in headers.items()]
    text = msgspec.json.encode(_shortened(msgspec.json.decode(body))).decode()
    about = f"first request of {name} (a run leaves out fields that its server refuses):"
    return "\n".join(("", about, f"POST {url}", *lines, "", text, ""))


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if isinstance(value, str) and len(value) > SHOWN_TEXT + 20:
        return f"{value[:SHOWN_TEXT]}… ({len(value):,} characters)"
    return value


def render_search(sweep: Sweep) -> str:
    """What a search for capacity would do: its loads are not known before it has run."""
    by = "requests a second" if sweep.request_rate else "requests in flight"
    most = max(map(float, sweep.request_rate or sweep.concurrency))
    targets = ", ".join(target.name for target in sweep.targets())
    heaviest = max(seconds(cell) for cell in grid(sweep))
    told = f"at most {MOST_PROBES} loads of {targets}, from {sweep.least:g} to {most:g} {by}"
    told += f"; the heaviest takes about {duration(heaviest)}"
    if sweep.requests is None and sweep.duration is None:
        told += (
            f", and where the edge is near each has {LEAST_REQUESTS:,} to {MOST_REQUESTS:,} "
            "requests, unless --requests or --duration says how many"
        )
    return wrapped(told) + "\n"


def _length(mean: int, drawn: str) -> str:
    return f"~{mean}" if drawn else str(mean)


def _content(cells: list[CellFacts]) -> list[str]:
    """What lengths are drawn from, and what requests say where that is not the default."""
    lines = []
    for content in (cell.load.content for cell in cells):
        if content.prompt_lengths:
            lines.append(f"prompts of {content.prompt_lengths} tokens")
        if content.output_lengths:
            lines.append(f"replies of {content.output_lengths} tokens")
        if content.dataset:
            lines.append(f"requests and their lengths from {content.dataset} ({content.format})")
        if content.turns > 1:
            think = f", thinking {content.think_time} s between" if content.think_time else ""
            lines.append(f"conversations of {content.turns} turns{think}")
        if content.barge_in:
            after = f"{content.barge_in_after} s after their first token"
            lines.append(f"{content.barge_in:.0%} of the replies are cut off {after}")
    lines += [
        f"a cell ends earlier, at one of {LOOKS} looks, when {load.until} is reached"
        for load in (cell.load for cell in cells)
        if load.until
    ]
    return list(dict.fromkeys(lines))


def _surveyed(found: Survey | None) -> list[str]:
    """What the dataset holds."""
    if found is None:
        return []
    parts = [f"{found.rows:,} {'row' if found.rows == 1 else 'rows'}"]
    if found.span_s is not None:
        parts[0] += f", over {duration(found.span_s)} of its own clock"
        if found.guessed_unit:
            parts[0] += f" (its times are taken for {found.guessed_unit})"
    for what, spread in (("prompts", found.prompt_tokens), ("replies", found.output_tokens)):
        if spread is not None:
            parts.append(f"{what} of {_spread(spread)}")
    return ["the file has " + "; ".join(parts)]


def _spread(spread: Spread) -> str:
    if spread.min == spread.max:
        return f"{spread.min:,} tokens"
    return f"{spread.min:,} to {spread.max:,} tokens, {spread.mean:,.0f} on average"


def _summary(sweep: Sweep, cells: list[CellFacts], found: Survey | None) -> list[str]:
    starting = [target.name for target in sweep.targets() if target.engine]
    requests = sum(_measured(cell.load, found) + _beside(cell.load, False) for cell in cells)
    budgets_s = {cell.load.budget_s for cell in cells} - {None}
    by_time = bool(budgets_s) or any(cell.load.duration_s is not None for cell in cells)
    beside = "warm-up and what lies between segments"
    if not any(map(_anew, (cell.load for cell in cells))):
        beside = "warm-up"
    sent = "by time" if by_time else f"{requests:,} requests with {beside}"
    lines = [f"{_counted(cells)}, {sent}, about {duration(total_s(sweep, cells, found))}"]
    if budgets_s:
        spans = " or ".join(
            f"{each:g} s ({2 * each:g} s of slow replies)"
            for each in sorted(filter(None, budgets_s))
        )
        lines.append(
            f"a cell ends after {spans}, or sooner, when TTFT p50 and tok/s are known to within "
            f"±{ENOUGH:.0%}; --requests, --duration or --until say otherwise"
        )
    if not by_time:
        lines.append(
            f"guessed with {GUESSED_FIRST_TOKEN_S:g} s to the first token and "
            f"{GUESSED_TOKEN_S * 1e3:g} ms a token; a slow engine takes longer"
        )
    if starting:
        lines.append(f"starts {', '.join(starting)}: {_start_s(sweep):g} s each in the estimate")
    return lines


def announcement(sweep: Sweep) -> str:
    """What a sweep says before it starts: ``3 cells, about 75 s``; nothing where nobody knows."""
    if sweep.search:
        return ""
    cells = grid(sweep)
    whole_s = total_s(sweep, cells)
    return _counted(cells) + ("" if math.isnan(whole_s) else f", about {duration(whole_s)}")


def total_s(sweep: Sweep, cells: list[CellFacts], found: Survey | None = None) -> float:
    """About how long all ``cells`` take, with starting what is to be started."""
    starts_s = _start_s(sweep) * sum(bool(target.engine) for target in sweep.targets())
    return starts_s + sum(seconds(cell, found) for cell in cells)


def _start_s(sweep: Sweep) -> float:
    return EMBEDDED_START_S if sweep.is_embedded else START_S


def _counted(cells: list[CellFacts]) -> str:
    return f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}"


def _requests(cell: CellFacts, found: Survey | None) -> str:
    load = cell.load
    by_time = load.duration_s is not None or (load.budget_s is not None and not load.rate)
    return f"{'by time' if by_time else _measured(load, found)} + {_beside(load, by_time)}"


def _beside(load: Load, by_time: bool) -> int:
    """The requests that are not measured: the warm-up, and what lies between segments."""
    if by_time:
        return load.warmup
    return load.warmup + round(_anew(load) * SENT_TURNS * load.concurrency)


def _anew(load: Load) -> int:
    """How often the streams of a load that is counted are set off anew, if more than once."""
    if not load.segments or load.rate:
        return 0
    segments = by_requests(load.requests, load.concurrency, load.segments).most
    return segments if segments > 1 else 0


def _measured(load: Load, found: Survey | None) -> int:
    """The measured requests of a cell: as many as were asked for, or as a trace has."""
    if load.rate == TRACE and found is not None:
        return max(min(load.requests, found.rows - load.warmup), 0)
    return load.requests


def seconds(cell: CellFacts, found: Survey | None = None) -> float:
    """About how long ``cell`` takes: its rounds of requests, or the asked duration after them."""
    load = cell.load
    stated = found.output_tokens if found is not None else None
    reply_s = GUESSED_FIRST_TOKEN_S + GUESSED_TOKEN_S * (
        stated.mean if stated is not None else load.output_tokens
    )
    if load.rate:
        return _open_loop_s(load, found) + reply_s
    content = load.content
    if content.think_time:
        reply_s += read_seconds(content.think_time).mean * (content.turns - 1) / content.turns
    warmup_s = -(-load.warmup // load.concurrency) * reply_s
    if load.duration_s is not None:
        return warmup_s + load.duration_s + reply_s
    if load.budget_s is not None:
        fewest_s = min(FEWEST_A_STREAM * reply_s, 2 * load.budget_s)
        return warmup_s + max(load.budget_s, fewest_s)
    turns = -(-load.requests // load.concurrency) + _anew(load) * COST_TURNS
    return warmup_s + turns * reply_s


def _open_loop_s(load: Load, found: Survey | None) -> float:
    """How long the requests of an open loop take to arrive; those of a trace as its rows say, if
    the first of them are like all."""
    rate = read_rate(load.rate)
    if rate.mean is None:
        if found is None or found.span_s is None:
            return load.duration_s or math.nan
        share = min((load.requests + load.warmup) / found.rows, 1.0)
        return min(found.span_s * share / load.speed, load.duration_s or math.inf)
    return load.warmup / rate.values[0] + (load.duration_s or load.requests / rate.mean)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``; ``?`` where nobody knows."""
    if math.isnan(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
