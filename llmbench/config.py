"""Flags and TOML → Sweep: every default, and every check of what the user wrote."""

import math
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from llmbench.apis import NAMES
from llmbench.apis.body import layered
from llmbench.checks import BARGE_IN_AFTER, check_load, dataset_format
from llmbench.errors import UserError, suggestion
from llmbench.headers import all_hidden, overlaid
from llmbench.measure.slo import limits_ms, read_slo
from llmbench.plan.arrivals import Rate, read_arrivals, read_rate
from llmbench.plan.lengths import Length, read_length, read_lengths, read_seconds
from llmbench.plan.prompts import DEFAULT_TEXT
from llmbench.plan.segments import MOST as MOST_SEGMENTS
from llmbench.plan.until import LOOKS
from llmbench.records import Content, Load, Target
from llmbench.said import read_said
from llmbench.targets import (
    IN_PROCESS,
    ApiName,
    Defaults,
    TargetTable,
    Temperature,
    TopP,
    read_targets,
)

MOST_STREAMS = 1_000_000
Count = Annotated[int, Meta(ge=1, le=MOST_STREAMS)]
Seconds = Annotated[float, Meta(gt=0, le=1e7)]  # infinity has no JSON form
SOME = Meta(min_length=1)

FEWEST_REQUESTS = 192
"""Of a search's probes, and at the last look of ``until``."""

BUDGET_S, EMBEDDED_BUDGET_S = 30.0, 20.0
"""The time of a cell, where nobody says how much to measure."""

GRACE_BUDGETS = 2
"""After so many times its time a closed loop's cell waits no longer for replies."""

LENGTHS, EMBEDDED_LENGTHS = (128, 128), (48, 12)
"""Tokens of a prompt and of a reply."""

REPEATS_BUDGET_S, LEAST_BUDGET_S = 60.0, 10.0
"""All repeats of a cell share so much time, and each has at least so much."""

OPEN_LOOP_WARMUP_S = 2.0
OPEN_LOOP_GRACE_S = 30.0
LEAST_WARMUP = 8
FEWEST_SESSIONS = 6
"""An open loop has at least these, whatever its rate: of fewer requests no median is known."""

MOST_REQUESTS = 1_000_000
LISTED = (
    "target",
    "client",
    "concurrency",
    "batch_size",
    "prompt_tokens",
    "request_rate",
    "cache",
)
"""The keys that hold lists; one value alone will do."""

CHOICES = {
    "client": ("wire", "aiohttp", "openai"),
    "cache": ("cold", "warm"),
    "api": NAMES,
    "format": ("table", "markdown", "csv", "json"),
    "start": ("spread", "together"),
}

EXCLUSIVE = (
    ("requests", "duration"),
    ("until", "duration"),
    ("concurrency", "batch_size"),
    ("concurrency", "request_rate"),
    ("batch_size", "request_rate"),
)
"""Pairs of which only one can be given."""


class Sweep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that the user asked for. The names are the flags' and the config file's keys.

    ``target`` is empty for the embedded engine. ``None`` stands for a default that depends on the
    rest: see ``lengths`` and ``loads``. ``duration`` and ``timeout`` are
    seconds. ``search`` and ``together`` (all targets run at once, and their repeats take turns) are
    set by commands.
    """

    target: list[str | TargetTable] = []
    model: str = ""
    api: ApiName = NAMES[0]
    client: Annotated[list[Literal["wire", "aiohttp", "openai"]], SOME] = field(
        default_factory=lambda: ["wire"]
    )
    api_key_env: str = "OPENAI_API_KEY"
    ca_file: str = ""
    auth: str = ""
    insecure: bool = False
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    body: dict[str, Any] = {}
    temperature: Temperature | None = None
    top_p: TopP | None = None
    reasoning_effort: str = ""
    system_prompt: str = ""
    concurrency: Annotated[list[Count], SOME] = field(default_factory=lambda: [1, 8, 32])
    batch_size: Annotated[list[Count], SOME] | None = None
    prompt_tokens: Annotated[list[Count | str], SOME] | None = None
    output_tokens: Count | str | None = None
    requests: Count | None = None
    duration: Seconds | None = None
    until: str = ""
    warmup: Annotated[int, Meta(ge=0)] | None = None
    request_rate: Annotated[list[float | str], SOME] | None = None
    arrivals: str = "poisson"
    speed: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    max_concurrency: Count | None = None
    grace: Seconds | None = None
    start: Literal["spread", "together"] = "spread"
    segments: Annotated[int, Meta(ge=0, le=1000)] | None = None
    dataset: str = ""
    dataset_format: str = ""
    dataset_columns: dict[str, str] = {}
    skip_broken: bool = False
    text: str = DEFAULT_TEXT
    shared_prefix: Annotated[float, Meta(ge=0, le=1)] = 0.0
    cache: Annotated[list[Literal["cold", "warm"]], SOME] = field(default_factory=lambda: ["cold"])
    turns: Annotated[int, Meta(ge=1, le=1000)] = 1
    think_time: float | str = ""
    natural_stops: bool = False
    barge_in: Annotated[float, Meta(ge=0, le=1)] = 0.0
    barge_in_after: float | str = BARGE_IN_AFTER
    seed: Annotated[int, Meta(ge=0)] = 0
    repeat: Annotated[int, Meta(ge=1, le=1000)] = 1
    timeout: Seconds = 300.0
    first_token_timeout: Seconds | None = None
    max_failures: int | str = ""
    max_reply_bytes: Annotated[int, Meta(ge=1024, le=1 << 40)] = 64 << 20
    workers: Count | Literal["auto"] = 1
    calibrate: bool = True
    agreement: bool = False
    baseline: str = ""
    slo: dict[str, str] = {}
    search: Literal["", "concurrency", "rate"] = ""
    together: bool = False
    least: Annotated[float, Meta(gt=0)] = 1.0
    out: str = ""
    format: Literal["table", "markdown", "csv", "json"] = "table"
    why: bool = False

    def targets(self) -> list[Target]:
        """The targets in the order given, each with a name of its own."""
        named = {key: getattr(self, key) for key in Defaults.__struct_fields__}
        return read_targets(self.target, Defaults(**named))

    def recorded(self) -> "Sweep":
        """The sweep as it may be stored: of headers, the names and the variables."""
        tables = [
            each if isinstance(each, str) else replace(each, headers=all_hidden(each.headers))
            for each in self.target
        ]
        return replace(self, target=tables, headers=all_hidden(self.headers))

    def lengths(self) -> list[tuple[Length, Length]]:
        """The lengths of prompts and replies: short ones for the embedded engine."""
        prompt, reply = EMBEDDED_LENGTHS if self.is_embedded else LENGTHS
        replies = read_length(str(self.output_tokens or reply), "--output-tokens")
        prompts = ",".join(map(str, self.prompt_tokens or [prompt]))
        return [(prompt, own or replies) for prompt, own in read_lengths(prompts)]

    @property
    def is_embedded(self) -> bool:
        """Whether all that is measured is the embedded engine with its small model."""
        return all(
            target.engine.startswith("llamacpp") and not target.model for target in self.targets()
        )

    @property
    def budget_s(self) -> float | None:
        """The time of each cell's window, where nobody says how much to measure. The probes of a
        search are sized by what it has seen."""
        if self.requests or self.duration or self.until or self.search:
            return None
        whole_s = EMBEDDED_BUDGET_S if self.is_embedded else BUDGET_S
        if self.repeat == 1:
            return whole_s
        return min(whole_s, max(REPEATS_BUDGET_S / self.repeat, LEAST_BUDGET_S))

    def loads(self) -> list[Load]:
        """The grid of one target: lengths outside, then cold and warm, the load inside."""
        return [
            load
            for prompt, reply in self.lengths()
            for cache in self.cache
            for load in self._of_lengths(prompt, reply, cache)
        ]

    def _of_lengths(
        self, prompt: Length, reply: Length, cache: Literal["cold", "warm"]
    ) -> Iterator[Load]:
        content = Content(
            text=self.text,
            dataset=self.dataset,
            format=self.dataset_format,
            columns=self.dataset_columns,
            skip_broken=self.skip_broken,
            prompt_lengths="" if prompt.fixed else str(prompt),
            output_lengths="" if reply.fixed else str(reply),
            shared_prefix=self.shared_prefix,
            cache=cache,
            turns=self.turns,
            think_time=str(read_seconds(str(self.think_time))) if self.think_time != "" else "",
            natural_stops=self.natural_stops,
            barge_in=self.barge_in,
            barge_in_after=str(read_seconds(str(self.barge_in_after))) if self.barge_in else "",
            seed=self.seed,
        )
        load = Load(
            concurrency=self.max_concurrency or 0,
            prompt_tokens=prompt.mean,
            output_tokens=reply.mean,
            requests=MOST_REQUESTS,
            duration_s=self.duration,
            warmup=0,
            grace_s=self._grace_s,
            budget_s=self.budget_s,
            until=self.until,
            max_failures=str(self.max_failures),
            content=content,
        )
        if self.request_rate:
            for rate in self.request_rate:
                yield self._open_loop(load, read_rate(str(rate)))
            return
        for at_once in self.batch_size or self.concurrency:
            yield replace(
                load,
                concurrency=at_once,
                requests=self._requests(at_once),
                warmup=self._warmup(at_once),
                batch_size=at_once if self.batch_size else None,
                start=self.start,
                segments=self._segments(at_once),
            )

    def _segments(self, at_once: int) -> int:
        """How many segments a closed loop's window has at most. Batches, conversations, streams
        that are to march in step, and a single one, have none."""
        if self.batch_size or self.turns > 1 or self.start == "together" or at_once == 1:
            return 0
        return MOST_SEGMENTS if self.segments is None else self.segments

    @property
    def _grace_s(self) -> float | None:
        """How long replies are waited for: a cell with a time of its own ends, whatever hangs."""
        return GRACE_BUDGETS * self.budget_s if self.budget_s and not self.grace else self.grace

    def _open_loop(self, load: Load, rate: Rate) -> Load:
        """As many requests as come in the cell's time, after two seconds of warm-up; a trace is
        played from its first row to its last. Only under a constant rate figures can be enough."""
        budget_s = self.budget_s if rate.kind == "constant" else None
        if rate.mean is None:
            requests, warmup = MOST_REQUESTS, 0
        else:
            asked_s = BUDGET_S if self.budget_s is None else self.budget_s
            requests = max(math.ceil(asked_s * rate.mean), FEWEST_SESSIONS)
            if self.until or self.search:
                requests = max(requests, FEWEST_REQUESTS) * self._looks()
            warmup = math.ceil(OPEN_LOOP_WARMUP_S * rate.values[0])
            warmup = max(warmup, LEAST_WARMUP if self.budget_s is None else 1)
        return replace(
            load,
            requests=self.requests or requests,
            budget_s=budget_s,
            warmup=warmup if self.warmup is None else self.warmup,
            rate=str(rate),
            arrivals=str(read_arrivals(self.arrivals)),
            speed=self.speed,
            grace_s=OPEN_LOOP_GRACE_S if self.grace is None else self.grace,
        )

    def _requests(self, at_once: int) -> int:
        """What was asked for, or what the time allows; in whole batches. A search has the 72 that a
        p95 needs and more, since requests depend on each other, and two a stream at least."""
        if self.budget_s is not None:
            return MOST_REQUESTS
        requests = self.requests or max(FEWEST_REQUESTS, 2 * at_once) * self._looks()
        return -(-requests // at_once) * at_once if self.batch_size else requests

    def _looks(self) -> int:
        """How many times as many requests the last of the looks of ``until`` has as the first."""
        return 2 ** (LOOKS - 1) if self.until else 1

    def _warmup(self, at_once: int) -> int:
        warmup = at_once if self.warmup is None else self.warmup
        return -(-warmup // at_once) * at_once if self.batch_size else warmup


def load_sweep(flags: dict[str, Any], config: Path | None = None) -> Sweep:
    """The sweep of a config file, where there is one, under the flags that were given.

    Raises ``UserError`` with the file or flag, the key and what would be right.
    """
    return _sweep_of(_read_toml(config), flags, config)


def _sweep_of(settings: dict[str, Any], flags: dict[str, Any], config: Path | None) -> Sweep:
    """The sweep of a file's ``settings`` under ``flags``."""
    _check_keys(settings, config)
    for one, other in EXCLUSIVE:
        if {one, other} <= flags.keys():
            raise UserError(f"{_flag(one)} and {_flag(other)}: give one of the two")
        if {one, other} <= settings.keys():
            raise UserError(f"{config}: {one} and {other}: give one of the two")
        if one in flags or other in flags:
            settings = {key: settings[key] for key in settings if key not in (one, other)}
    settings = _laid_over(
        read_said(settings, lambda key: f"{config}: {key}"), read_said(flags, _flag)
    )
    if isinstance(slo := settings.get("slo"), str):
        settings["slo"] = read_slo(slo, _place("slo", flags, config))
    try:
        sweep = msgspec.convert(settings, Sweep)
    except msgspec.ValidationError as problem:
        raise UserError(_where(str(problem), flags, config)) from None
    for key in LISTED[1:]:
        listed = getattr(sweep, key) or []
        if len(set(listed)) < len(listed):
            raise UserError(f"{_place(key, flags, config)}: something stands there twice")
    _check_targets(sweep, flags, config)

    def place(key: str) -> str:
        return _place(key, flags, config)

    check_load(sweep, place)
    return replace(sweep, dataset_format=dataset_format(sweep, place))


def _laid_over(settings: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """``settings`` under ``flags``: a flag wins over its key; tables are laid over each other."""
    found = settings | flags
    for key in ("headers", "query", "body"):
        mine, its = settings.get(key), flags.get(key)
        if isinstance(mine, dict) and isinstance(its, dict):
            found[key] = overlaid(mine, its) if key == "headers" else layered(mine, its)
    return found


def load_search(flags: dict[str, Any], config: Path | None = None, *, by_slo: bool = True) -> Sweep:
    """The sweep of a search for capacity: its one load is the most that is tried. It goes by the
    objectives, which must be there, unless ``by_slo`` is false."""
    settings = _read_toml(config)
    by, most = _search_of(settings | flags, flags, config)
    settings, flags = _without_search(settings), _without_search(flags)
    key = "request_rate" if by == "rate" else "concurrency"
    for other in ("concurrency", "request_rate", "batch_size"):
        if other in flags:
            raise UserError(f"{_flag(other)}: a search chooses its loads; give --least and --most")
    its = {key: [most if by == "rate" else int(most)], "search": by}
    sweep = _sweep_of(settings, flags | its, config)
    if sweep.repeat > 1:
        raise UserError(f"{_place('repeat', flags, config)}: a search confirms its loads by itself")
    if by == "concurrency" and sweep.least != int(sweep.least):
        place = _place("least", flags, config)
        raise UserError(f"{place} {sweep.least:g}: requests in flight are a whole number")
    if by_slo and not sweep.slo:
        raise UserError("--slo: say what is to be met, such as --slo ttft.p95=500ms")
    if sweep.least >= most:
        raise UserError(f"--least {sweep.least:g}: must be less than --most {most:g}")
    return sweep


def _without_search(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings`` without those that a search has and a sweep has not."""
    return {key: value for key, value in settings.items() if key not in ("by", "most")}


def _search_of(
    settings: dict[str, Any], flags: dict[str, Any], config: Path | None
) -> tuple[str, float]:
    """What a search varies, and up to where."""
    by, most = settings.get("by", "concurrency"), settings.get("most", 256.0)
    if by not in ("concurrency", "rate"):
        raise UserError(f"{_place('by', flags, config)}: expected concurrency or rate")
    place = _place("most", flags, config)
    if not isinstance(most, int | float) or isinstance(most, bool) or not 0 < most < math.inf:
        raise UserError(f"{place}: expected a number above 0")
    if by == "concurrency" and (most != int(most) or most > MOST_STREAMS):
        raise UserError(
            f"{place} {most:g}: requests in flight are a whole number, at most {MOST_STREAMS:,}"
        )
    return by, float(most)


def _check_targets(sweep: Sweep, flags: dict[str, Any], config: Path | None) -> None:
    try:
        targets = sweep.targets()
    except UserError as problem:
        if config is None or "target" in flags:
            raise
        raise UserError(f"{config}: {str(problem).removeprefix('--')}") from None
    limits_ms(sweep.slo, _place("slo", flags, config))
    if sweep.batch_size:
        place = _place("batch_size", flags, config)
        for target in targets:
            if target.engine not in IN_PROCESS:
                raise UserError(
                    f"{place}: {target.name} is a server; static batches are for the engines that "
                    f"are called in process: {', '.join(IN_PROCESS)}"
                )
    if sweep.baseline and sweep.baseline not in (names := [target.name for target in targets]):
        raise UserError(
            f"{_place('baseline', flags, config)}: no target is called '{sweep.baseline}'"
            f"{suggestion(sweep.baseline, names)}"
        )


def _read_toml(path: Path | None) -> dict[str, Any]:
    """What the file at ``path`` says; nothing where there is none."""
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise UserError(f"--config {path}: cannot be read: {reason}") from None
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise UserError(f"{path}: not valid TOML: {problem}") from None
    return {
        key: [value] if key in LISTED and not isinstance(value, list) else value
        for key, value in (
            (key, value if key in _KEPT else _expanded(value, f"{path}: {key}"))
            for key, value in settings.items()
        )
    }


_KEPT = ("api_key", "command", "env", "headers", "query")
"""What may hold a secret is expanded when it is used, and stored as it was written."""


def _expanded(value: Any, where: str) -> Any:
    """``value`` with each ``${NAME}`` in its texts replaced by that environment variable."""
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: environment(match[1], where), value)
    if isinstance(value, list):
        return [_expanded(item, where) for item in value]
    if isinstance(value, dict):
        return {
            key: item if key in _KEPT else _expanded(item, f"{where}.{key}")
            for key, item in value.items()
        }
    return value


def environment(name: str, where: str) -> str:
    """The environment variable ``name``. Raises ``UserError`` where it is not set."""
    if name not in os.environ:
        raise UserError(f"{where}: the environment variable {name} is not set")
    return os.environ[name]


def _check_keys(settings: dict[str, Any], config: Path | None) -> None:
    known = [key for key in Sweep.__struct_fields__ if key not in ("search", "together")]
    for key in settings:
        if key not in known:
            raise UserError(f"{config}: unknown key '{key}'{suggestion(key, known)}")


_WORDS = {
    "Expected `str | object`": "expected text or a table",
    "Expected `int | str`": "expected a whole number or text",
    "Expected `float | str`": "expected a number or text",
    " | null`": "`",
    "Expected `int`": "expected a whole number",
    "Expected `float`": "expected a number",
    "Expected `str`": "expected text",
    "Expected `array`": "expected a list",
    "Expected `bool`": "expected true or false",
    "Invalid enum value": "unknown value",
    "Expected `object`": "expected a table",
    "Expected `": "expected `",
}


def _where(problem: str, flags: dict[str, Any], config: Path | None) -> str:
    """msgspec's words, with the flag or the file's key in place of its path."""
    match = re.search(r"(.*) - at `\$\.(\w+)(?:\[(\d+)\])?(?:\.(\w+))?.*`", problem)
    if match is None:
        return problem
    words, key, item, below = match.groups()
    if unknown := re.match("Object contains unknown field `(.*)`", words):
        words = f"unknown key '{unknown[1]}'{suggestion(unknown[1], TargetTable.__struct_fields__)}"
    for theirs, ours in _WORDS.items():
        words = words.replace(theirs, ours)
    if words.startswith("unknown value") and (choices := CHOICES.get(below or key)):
        words += f"; there are {', '.join(choices)}"
    place = _place(key, flags, config)
    item = f", item {int(item) + 1}" if item else ""
    return f"{place}{item}{f', {below}' if below else ''}: {words}"


def _place(key: str, flags: dict[str, Any], config: Path | None) -> str:
    return _flag(key) if key in flags else f"{config}: {key}"


def _flag(key: str) -> str:
    return "--header" if key == "headers" else f"--{key.replace('_', '-')}"
