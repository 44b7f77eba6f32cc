"""Flags and TOML → Sweep: every default, and every check of what the user wrote."""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta, Struct, field

from llmbench.errors import UserError
from llmbench.records import Load, Target

APIS = ("chat", "completions")
EMBEDDED = "llamacpp:"
TARGET_OPTIONS = ("api", "ca_file", "key_env", "model", "name", "quantization")
ENGINE_OPTIONS = ("name", "threads")
ENGINES = ("llamacpp",)

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=1e7)]  # infinity has no JSON form
SOME = Meta(min_length=1)


class Sweep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that the user asked for. The names are the flags' and the config file's keys.

    ``target`` is empty for the embedded engine. ``None`` stands for a default that depends on the
    rest: see ``lengths`` and ``loads``. ``duration`` and ``timeout`` are
    seconds.
    """

    target: list[str] = []
    model: str = ""
    api: Literal["chat", "completions"] = "chat"
    client: Annotated[list[Literal["wire", "aiohttp", "openai"]], SOME] = field(
        default_factory=lambda: ["wire"]
    )
    api_key_env: str = "OPENAI_API_KEY"
    ca_file: str = ""
    concurrency: Annotated[list[Count], SOME] = field(default_factory=lambda: [1, 8, 32])
    prompt_tokens: Annotated[list[Count], SOME] | None = None
    output_tokens: Count | None = None
    requests: Count | None = None
    duration: Seconds | None = None
    warmup: Annotated[int, Meta(ge=0)] | None = None
    timeout: Seconds = 300.0
    workers: Count | Literal["auto"] = 1
    calibrate: bool = True
    out: str = ""
    format: Literal["table", "markdown", "csv", "json"] = "table"

    def targets(self) -> list[Target]:
        """The targets in the order given, each with a name of its own."""
        targets = [_target(spec, self) for spec in self.target or [EMBEDDED]]
        names = [target.name for target in targets]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"--target: two targets are called {name}; give each a name, as in "
                    "'http://host:8000?name=before'"
                )
        return targets

    def lengths(self) -> tuple[list[int], int]:
        """The prompt lengths and the output length: short ones for the embedded engine."""
        demo = all(target.engine for target in self.targets())
        prompt_tokens = self.prompt_tokens or ([64] if demo else [128])
        return prompt_tokens, self.output_tokens or (16 if demo else 128)

    def loads(self) -> list[Load]:
        """The grid of one target: prompt lengths outside, concurrency inside."""
        prompt_tokens, output_tokens = self.lengths()
        return [
            Load(
                concurrency=concurrency,
                prompt_tokens=length,
                output_tokens=output_tokens,
                # 72 for the 95% interval of a p95 to exist, and two a stream
                requests=self.requests or max(72, 2 * concurrency),
                duration_s=self.duration,
                warmup=concurrency if self.warmup is None else self.warmup,
            )
            for length in prompt_tokens
            for concurrency in self.concurrency
        ]


def load_sweep(flags: dict[str, Any], config: Path | None = None) -> Sweep:
    """The sweep of a config file, where there is one, under the flags that were given.

    Raises ``UserError`` with the file or flag, the key and what would be right.
    """
    settings = _read_toml(config) if config else {}
    _check_keys(settings, config)
    if {"requests", "duration"} <= flags.keys():
        raise UserError("--requests and --duration: give one of the two")
    if {"requests", "duration"} <= settings.keys():
        raise UserError(f"{config}: requests and duration: give one of the two")
    if "requests" in flags or "duration" in flags:
        settings = {key: settings[key] for key in settings if key not in ("requests", "duration")}
    settings |= flags
    try:
        sweep = msgspec.convert(settings, Sweep)
    except msgspec.ValidationError as problem:
        raise UserError(_where(str(problem), flags, config)) from None
    for key in ("client", "concurrency", "prompt_tokens"):
        listed = getattr(sweep, key) or []
        if len(set(listed)) < len(listed):
            raise UserError(f"{_place(key, flags, config)}: something stands there twice")
    sweep.targets()
    return sweep


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
    listed = ("target", "client", "concurrency", "prompt_tokens")
    return {
        key: [value] if key in listed and not isinstance(value, list) else value
        for key, value in settings.items()
    }


def _check_keys(settings: dict[str, Any], config: Path | None) -> None:
    known = Sweep.__struct_fields__
    for key in settings:
        if key not in known:
            raise UserError(f"{config}: unknown key '{key}'{_suggestion(key, known)}")


def _suggestion(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


_WORDS = {
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
    match = re.search(r"(.*) - at `\$\.(\w+)(?:\[(\d+)\])?.*`", problem)
    if match is None:
        return problem
    words, key, item = match.groups()
    for theirs, ours in _WORDS.items():
        words = words.replace(theirs, ours)
    place = _place(key, flags, config)
    return f"{place}{f', item {int(item) + 1}' if item else ''}: {words}"


def _place(key: str, flags: dict[str, Any], config: Path | None) -> str:
    return f"--{key.replace('_', '-')}" if key in flags else f"{config}: {key}"


# ── targets ──────────────────────────────────────────────────────────────────────────────────────


def _target(spec: str, sweep: Sweep) -> Target:
    """One target, from a URL or ``engine:model``, with options after ``?``."""
    kind = spec.partition(":")[0].lower()
    if kind in ENGINES:
        return _engine(spec, kind, sweep)
    if kind not in ("http", "https"):
        raise UserError(
            f"--target {_shown(spec)}: neither a URL nor an engine; write "
            f"http://host:8000, or {' or '.join(f'{engine}:MODEL' for engine in ENGINES)}"
        )
    place, options = _options(spec, TARGET_OPTIONS)
    if place != _shown(place):
        raise UserError(
            f"--target {_shown(place)}: put no password in a URL; put the key into an environment "
            "variable and name it with key_env"
        )
    try:
        parts = urlsplit(place)
    except ValueError as problem:
        raise UserError(f"--target {place}: {problem}") from None
    try:
        port = parts.port
    except ValueError:
        raise UserError(f"--target {place}: the port is not a number up to 65535") from None
    if not parts.hostname:
        raise UserError(f"--target {place}: the host is missing; write http://host:8000")
    api = options.get("api", sweep.api)
    if api not in APIS:
        raise UserError(f"--target {place}: api is {' or '.join(APIS)}, not '{api}'")
    key_env = options.get("key_env", sweep.api_key_env)
    if not _VARIABLE.fullmatch(key_env):
        raise UserError(
            f"--target {place}: key_env (--api-key-env) is the name of an environment variable, "
            "such as OPENAI_API_KEY, never the key itself"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Target(
        spec=place,
        name=options.get("name") or (f"{host}:{port}" if port else host),
        url=_base_url(place),
        model=options.get("model", sweep.model),
        api=api,
        key_env=key_env,
        ca_file=options.get("ca_file", sweep.ca_file),
        quantization=options.get("quantization"),
    )


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VERSION_SEGMENT = re.compile(r"/v\d+[a-z]*\d*(/|$)")


def _base_url(url: str) -> str:
    """The API's base for what the user wrote: ``/v1`` is added unless the path names a version."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    for end in ("/chat/completions", "/completions", "/models"):
        path = path.removesuffix(end)
    if not _VERSION_SEGMENT.search(path):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _engine(spec: str, kind: str, sweep: Sweep) -> Target:
    place, options = _options(spec, ENGINE_OPTIONS)
    if not re.fullmatch("0*[1-9][0-9]{0,4}", options.get("threads", "1")):
        raise UserError(f"--target {place}: threads is a whole number from 1")
    file = place.partition(":")[2]
    return Target(
        spec=spec,
        name=options.get("name") or (Path(file).stem if file else "llama.cpp (embedded)"),
        engine=kind,
        model=file,
        api=sweep.api,
        threads=int(options["threads"]) if "threads" in options else None,
    )


def _options(spec: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """What stands before the ``?``, and the options after it. Values are never echoed."""
    place, _, query = spec.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not all(value.isprintable() for value in options.values()):
        raise UserError(f"--target {_shown(spec)}: an option has a character that cannot be shown")
    for key in options:
        if key not in known:
            raise UserError(
                f"--target {_shown(place)}: unknown option '{key}'{_suggestion(key, known)}"
            )
    return place, options


def _shown(spec: str) -> str:
    """``spec`` for a message: without its options, and without a user's name and password."""
    return re.sub(r"^([^/?]*//)?[^/?]*@", r"\1…@", spec.partition("?")[0])
