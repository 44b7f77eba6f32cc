"""Flags and TOML → Sweep: every default, and every check of what the user wrote."""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from llmbench.errors import UserError
from llmbench.measure.slo import limits_ms
from llmbench.records import Load, Target
from llmbench.targets import IN_PROCESS, Defaults, TargetTable, read_targets, suggestion

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=1e7)]  # infinity has no JSON form
SOME = Meta(min_length=1)


class Sweep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that the user asked for. The names are the flags' and the config file's keys.

    ``target`` is empty for the embedded engine. ``None`` stands for a default that depends on the
    rest: see ``lengths`` and ``loads``. ``duration`` and ``timeout`` are
    seconds.
    """

    target: list[str | TargetTable] = []
    model: str = ""
    api: Literal["chat", "completions"] = "chat"
    client: Annotated[list[Literal["wire", "aiohttp", "openai"]], SOME] = field(
        default_factory=lambda: ["wire"]
    )
    api_key_env: str = "OPENAI_API_KEY"
    ca_file: str = ""
    concurrency: Annotated[list[Count], SOME] = field(default_factory=lambda: [1, 8, 32])
    batch_size: Annotated[list[Count], SOME] | None = None
    prompt_tokens: Annotated[list[Count], SOME] | None = None
    output_tokens: Count | None = None
    requests: Count | None = None
    duration: Seconds | None = None
    warmup: Annotated[int, Meta(ge=0)] | None = None
    timeout: Seconds = 300.0
    workers: Count | Literal["auto"] = 1
    calibrate: bool = True
    agreement: bool = False
    baseline: str = ""
    slo: dict[str, str] = {}
    out: str = ""
    format: Literal["table", "markdown", "csv", "json"] = "table"

    def targets(self) -> list[Target]:
        """The targets in the order given, each with a name of its own."""
        defaults = Defaults(self.model, self.api, self.api_key_env, self.ca_file)
        return read_targets(self.target, defaults)

    def lengths(self) -> tuple[list[int], int]:
        """The prompt lengths and the output length: short ones for the embedded engine."""
        demo = all(
            target.engine.startswith("llamacpp") and not target.model for target in self.targets()
        )
        prompt_tokens = self.prompt_tokens or ([64] if demo else [128])
        return prompt_tokens, self.output_tokens or (16 if demo else 128)

    def loads(self) -> list[Load]:
        """The grid of one target: prompt lengths outside, concurrency (or batch size) inside."""
        prompt_tokens, output_tokens = self.lengths()
        return [
            Load(
                concurrency=at_once,
                prompt_tokens=length,
                output_tokens=output_tokens,
                requests=self._requests(at_once),
                duration_s=self.duration,
                warmup=self._warmup(at_once),
                batch_size=at_once if self.batch_size else None,
            )
            for length in prompt_tokens
            for at_once in self.batch_size or self.concurrency
        ]

    def _requests(self, at_once: int) -> int:
        """72 for the 95% interval of a p95 to exist, and two a stream; whole batches."""
        requests = self.requests or max(72, 2 * at_once)
        return -(-requests // at_once) * at_once if self.batch_size else requests

    def _warmup(self, at_once: int) -> int:
        warmup = at_once if self.warmup is None else self.warmup
        return -(-warmup // at_once) * at_once if self.batch_size else warmup


def load_sweep(flags: dict[str, Any], config: Path | None = None) -> Sweep:
    """The sweep of a config file, where there is one, under the flags that were given.

    Raises ``UserError`` with the file or flag, the key and what would be right.
    """
    settings = _read_toml(config) if config else {}
    _check_keys(settings, config)
    for one, other in (("requests", "duration"), ("concurrency", "batch_size")):
        if {one, other} <= flags.keys():
            raise UserError(f"{_flag(one)} and {_flag(other)}: give one of the two")
        if {one, other} <= settings.keys():
            raise UserError(f"{config}: {one} and {other}: give one of the two")
        if one in flags or other in flags:
            settings = {key: settings[key] for key in settings if key not in (one, other)}
    settings |= flags
    try:
        sweep = msgspec.convert(settings, Sweep)
    except msgspec.ValidationError as problem:
        raise UserError(_where(str(problem), flags, config)) from None
    for key in ("client", "concurrency", "batch_size", "prompt_tokens"):
        listed = getattr(sweep, key) or []
        if len(set(listed)) < len(listed):
            raise UserError(f"{_place(key, flags, config)}: something stands there twice")
    _check_targets(sweep, flags, config)
    return sweep


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


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise UserError(f"--config {path}: cannot be read: {reason}") from None
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise UserError(f"{path}: not valid TOML: {problem}") from None
    listed = ("target", "client", "concurrency", "batch_size", "prompt_tokens")
    return {
        key: [value] if key in listed and not isinstance(value, list) else value
        for key, value in (
            (key, _expanded(value, f"{path}: {key}")) for key, value in settings.items()
        )
    }


_KEPT = ("api_key", "command", "env")
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
    known = Sweep.__struct_fields__
    for key in settings:
        if key not in known:
            raise UserError(f"{config}: unknown key '{key}'{suggestion(key, known)}")


_WORDS = {
    "Expected `str | object`": "expected text or a table",
    " | null`": "`",
    "Expected `int`": "expected a whole number",
    "Expected `float`": "expected a number",
    "Expected `str`": "expected text",
    "Expected `array`": "expected a list",
    "Expected `bool`": "expected true or false",
    "Invalid enum value": "unknown value",
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
    place = _place(key, flags, config)
    item = f", item {int(item) + 1}" if item else ""
    return f"{place}{item}{f', {below}' if below else ''}: {words}"


def _place(key: str, flags: dict[str, Any], config: Path | None) -> str:
    return _flag(key) if key in flags else f"{config}: {key}"


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"
