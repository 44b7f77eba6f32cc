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
CLIENTS = ("wire", "aiohttp", "openai")
FORMATS = ("table", "markdown", "csv", "json")
EMBEDDED = "llamacpp:"
TARGET_OPTIONS = ("api", "ca_file", "key_env", "model", "name", "quantization")
ENGINE_OPTIONS = ("name", "threads")
ENGINES = ("llamacpp",)

Count = Annotated[int, Meta(ge=1)]


class Sweep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that the user asked for. The names are the flags' and the config file's keys.

    ``target`` is empty for the embedded engine. ``None`` stands for a default that depends on the
    rest: see ``lengths``, ``requests_of`` and ``warmup_of``. ``duration`` and ``timeout`` are
    seconds.
    """

    target: list[str] = []
    model: str = ""
    api: Literal["chat", "completions"] = "chat"
    client: list[Literal["wire", "aiohttp", "openai"]] = field(default_factory=lambda: ["wire"])
    api_key_env: str = "OPENAI_API_KEY"
    ca_file: str = ""
    concurrency: list[Count] = field(default_factory=lambda: [1, 8, 32])
    prompt_tokens: list[Count] | None = None
    output_tokens: Count | None = None
    requests: Count | None = None
    duration: Annotated[float, Meta(gt=0)] | None = None
    warmup: Annotated[int, Meta(ge=0)] | None = None
    timeout: Annotated[float, Meta(gt=0)] = 300.0
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
        return prompt_tokens, self.output_tokens or (32 if demo else 128)

    def loads(self) -> list[Load]:
        """The grid of one target: prompt lengths outside, concurrency inside."""
        prompt_tokens, output_tokens = self.lengths()
        return [
            Load(
                concurrency=concurrency,
                prompt_tokens=length,
                output_tokens=output_tokens,
                # enough for the 95% interval of a p95 to exist (72), and two a stream
                requests=self.requests or max(80, 2 * concurrency),
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
    settings |= flags
    if "requests" in flags and "duration" in flags:
        raise UserError("--requests and --duration: give one of the two")
    _check_keys(settings, config)
    try:
        sweep = msgspec.convert(settings, Sweep)
    except msgspec.ValidationError as problem:
        raise UserError(_where(str(problem), flags, config)) from None
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


def _where(problem: str, flags: dict[str, Any], config: Path | None) -> str:
    """msgspec's words, with the flag or the file's key in place of its path."""
    match = re.search(r"(.*) - at `\$\.(\w+)(?:\[(\d+)\])?.*`", problem)
    if match is None:
        return problem
    words, key, item = match.groups()
    words = words.replace("Expected `", "expected `").replace("Invalid enum value", "unknown value")
    place = f"--{key.replace('_', '-')}" if key in flags else f"{config}: {key}"
    return f"{place}{f', item {int(item) + 1}' if item else ''}: {words}"


# ── targets ──────────────────────────────────────────────────────────────────────────────────────


def _target(spec: str, sweep: Sweep) -> Target:
    """One target, from a URL or ``engine:model``, with options after ``?``."""
    kind = spec.partition(":")[0]
    if kind in ENGINES:
        return _engine(spec, kind, sweep)
    if kind not in ("http", "https"):
        raise UserError(
            f"--target {_without_options(spec)}: neither a URL nor an engine; write "
            f"http://host:8000, or {' or '.join(f'{engine}:MODEL' for engine in ENGINES)}"
        )
    place, options = _options(spec, TARGET_OPTIONS)
    parts = urlsplit(place)
    try:
        port = parts.port
    except ValueError:
        raise UserError(f"--target {place}: the port is not a number up to 65535") from None
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"--target {parts.scheme}://…@{parts.hostname}: put no password in a URL; put the key "
            "into an environment variable and name it with key_env"
        )
    if not parts.hostname:
        raise UserError(f"--target {place}: the host is missing; write http://host:8000")
    api = options.get("api", sweep.api)
    if api not in APIS:
        raise UserError(f"--target {place}: api is {' or '.join(APIS)}, not '{api}'")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Target(
        spec=place,
        name=options.get("name") or (f"{host}:{port}" if port else host),
        url=_base_url(place),
        model=options.get("model", sweep.model),
        api=api,
        key_env=options.get("key_env", sweep.api_key_env),
        ca_file=options.get("ca_file", sweep.ca_file),
        quantization=options.get("quantization"),
    )


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
    if not options.get("threads", "1").isdigit() or options.get("threads") == "0":
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
    for key in options:
        if key not in known:
            raise UserError(f"--target {place}: unknown option '{key}'{_suggestion(key, known)}")
    return place, options


def _without_options(spec: str) -> str:
    return spec.partition("?")[0]
