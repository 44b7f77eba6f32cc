"""What the user wrote of a target → Target: a URL, an engine, or a server's own command line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from llmbench.apis import APIS, NAMES
from llmbench.errors import UserError, suggestion
from llmbench.records import Price, Target

IN_PROCESS = ("llamacpp", "onnx", "transformers", "vllm")
MANAGED = ("llamacpp-server", "transformers-server", "vllm-server")
ENGINES = IN_PROCESS + MANAGED
SCHEMES = ("http", "https")
COMMAND = "command"
EMBEDDED = "llamacpp-server:"
EMBEDDED_NAME = "llama.cpp (embedded)"

# msgspec wants the names, mypy a type that it can know.
if TYPE_CHECKING:
    ApiName = str
else:
    ApiName = Literal[NAMES]

Positive = Annotated[int, Meta(ge=1, le=10_000_000)]


class TargetTable(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A ``[[target]]`` of a config file. A target in one word, ``URL?name=a&model=b``, has the same
    keys as its options.

    ``target`` is a URL, ``host:port`` or ``engine:model``. With a ``command``, llmbench starts that
    and waits until ``health`` (a path or a URL) answers; ``{port}`` in it stands for a free port.
    ``api_key`` is ``"${NAME}"``: the variable that holds the key.
    """

    target: str = ""
    name: str = ""
    model: str = ""
    api: ApiName | None = None
    key_env: str = ""
    api_key: str = ""
    ca_file: str = ""
    quantization: str | None = None
    dtype: str | None = None
    device: str | None = None
    threads: Positive | None = None
    max_model_len: Positive | None = None
    python: str = ""
    command: list[str] = []
    health: str = ""
    env: dict[str, str] = {}
    price: Price | None = None


class Defaults(Struct, frozen=True):
    """What the sweep says for every target that does not say otherwise."""

    model: str
    api: str
    api_key_env: str
    ca_file: str


_URL = ("name", "model", "api", "key_env", "api_key", "ca_file", "quantization")
_COMMAND = (*_URL, "command", "health", "env")
_FILE = ("name", "api", "threads", "max_model_len", "python")
_ENGINE = (*_FILE, "dtype", "quantization", "device")
_KEYS = {
    "llamacpp": _FILE,
    "llamacpp-server": _FILE,
    "onnx": (*_FILE, "device"),
}
_IN_ONE_WORD = tuple(key for key in dict.fromkeys(_URL + _ENGINE) if key != "api_key")


def read_targets(given: Sequence[str | TargetTable], defaults: Defaults) -> list[Target]:
    """The targets in the order given, each with a name of its own. Raises ``UserError``."""
    if not _VARIABLE.fullmatch(defaults.api_key_env):  # it is stored, whatever the targets are
        raise UserError(f"--api-key-env: {_NAME_OF_A_VARIABLE}")
    targets = [_read(each, defaults) for each in given or [EMBEDDED]]
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"--target: two targets are called {name}; give each a name, as in "
                "'http://host:8000?name=before'"
            )
    return targets


def _read(given: str | TargetTable, defaults: Defaults) -> Target:
    if isinstance(given, str):
        where = f"--target {shown(given.partition('?')[0])}"
        table = _one_word(given)
    else:
        where = f"target {shown(given.target) or given.name}".rstrip()
        table = given
        if "?" in table.target:
            raise UserError(f"{where}: in a table, options are keys of their own, not after a '?'")
    if _is_host_and_port(table.target):
        # A key goes to the port of TLS in no other way.
        secure = table.target.partition("/")[0].endswith(":443")
        table = replace(table, target=f"http{'s' * secure}://{table.target}")
    kind = COMMAND if table.command else _kind(table.target)
    if table.command or kind in SCHEMES:
        _check_keys(table, _COMMAND if table.command else _URL, where)
        return _server(table, kind, defaults, where)
    if kind in ENGINES:
        _check_keys(table, _KEYS.get(kind, _ENGINE), where)
        return _engine(table, kind, defaults, where)
    host = table.target if _HOST_ALONE.fullmatch(table.target) else "host"
    raise UserError(
        f"{where}: neither a URL nor an engine; write http://{host}:8000, or ENGINE:MODEL, where "
        f"ENGINE is one of {', '.join(ENGINES)}"
    )


_HOST_AND_PORT = re.compile(
    r"(\[[^]/@]+\]|[a-z0-9][a-z0-9._-]*):([0-9]+|\{port\})(/.*)?", re.ASCII | re.IGNORECASE
)
_HOST_ALONE = re.compile(
    r"localhost|\[[0-9a-f:]+\]|[0-9]+(\.[0-9]+){3}|([a-z0-9-]+\.)+(?!gguf$)[a-z]{2,}",
    re.ASCII | re.IGNORECASE,
)


def is_target(spec: str) -> bool:
    """Whether ``spec`` reads as a URL, a host with its port, or an engine."""
    place = spec.partition("?")[0]
    return _kind(place) in SCHEMES + ENGINES or _is_host_and_port(place)


def _kind(place: str) -> str:
    """The word before the colon: a scheme, an engine, or a host."""
    return place.partition(":")[0].lower()


def _is_host_and_port(place: str) -> bool:
    """Whether ``place`` is a URL that only lacks its scheme. An engine's word is no host."""
    known = _kind(place) in SCHEMES + ENGINES
    return not known and _HOST_AND_PORT.fullmatch(place) is not None


def _one_word(spec: str) -> TargetTable:
    """``spec`` taken apart. The values of its options are never echoed."""
    place, _, query = spec.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not all(value.isprintable() for value in options.values()):
        raise UserError(f"--target {shown(spec)}: an option has a character that cannot be shown")
    for key in options:
        if key not in _IN_ONE_WORD:
            raise UserError(
                f"--target {shown(place)}: unknown option '{key}'{suggestion(key, _IN_ONE_WORD)}"
            )
    if options.get("api", NAMES[0]) not in NAMES:
        raise UserError(f"--target {shown(place)}: api is {' or '.join(NAMES)}")
    for key in ("threads", "max_model_len"):
        if not re.fullmatch("0*[1-9][0-9]{0,6}", options.get(key, "1")):
            raise UserError(f"--target {shown(place)}: {key} is a whole number from 1")
    return msgspec.convert({"target": place} | options, TargetTable, strict=False)


def _check_keys(table: TargetTable, known: Sequence[str], where: str) -> None:
    """Refuse what means nothing for this kind of target: it would be ignored in silence."""
    for key in table.__struct_fields__:
        if key not in (*known, "target", "price") and getattr(table, key) not in ("", None, [], {}):
            raise UserError(f"{where}: option '{key}' is not for this kind of target")


# ── servers ──────────────────────────────────────────────────────────────────────────────────────


def _server(table: TargetTable, kind: str, defaults: Defaults, where: str) -> Target:
    place = table.target or "http://127.0.0.1:{port}"
    if table.command and not table.health:
        raise UserError(f"{where}: health is missing: the path that answers 200 when it is ready")
    if table.command and "{port}" in place and not _uses_port(table):
        raise UserError(f"{where}: give it a target URL, or {{port}} in its command or env")
    _check_url(place.replace("{port}", "1"), where)
    parts = urlsplit(place.replace("{port}", "0"))
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    default_name = Path(table.command[0]).name if table.command else f"{host}"
    return Target(
        spec=place,
        name=table.name or (f"{default_name}:{parts.port}" if parts.port else default_name),
        engine=kind if table.command else "",
        url=base_url(place),
        model=table.model or defaults.model,
        api=table.api or defaults.api,
        key_env=_key_env(table, defaults, where),
        ca_file=table.ca_file or defaults.ca_file,
        quantization=table.quantization,
        command=table.command,
        health=table.health,
        env=table.env,
        price=table.price,
    )


def _uses_port(table: TargetTable) -> bool:
    return any("{port}" in text for text in (*table.command, *table.env.values()))


def _check_url(place: str, where: str) -> None:
    if place != shown(place):
        raise UserError(
            f"{where}: put no password in a URL; put the key into an environment variable and "
            "name it with key_env"
        )
    try:
        parts = urlsplit(place)
    except ValueError as problem:
        raise UserError(f"{where}: {problem}") from None
    try:
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError:
        raise UserError(f"{where}: the port is not a number up to 65535") from None
    if parts.scheme.lower() not in SCHEMES or not parts.hostname:
        raise UserError(f"{where}: the host is missing; write http://host:8000")


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME_OF_A_VARIABLE = (
    "give the name of an environment variable, such as OPENAI_API_KEY, never the key itself"
)
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _key_env(table: TargetTable, defaults: Defaults, where: str) -> str:
    if table.api_key:
        named = _REFERENCE.fullmatch(table.api_key)
        if named is None or table.key_env:
            raise UserError(
                f'{where}: write api_key = "${{NAME}}", the environment variable that holds the '
                "key, never the key itself (and no key_env beside it)"
            )
        return named[1]
    key_env = table.key_env or defaults.api_key_env
    if not _VARIABLE.fullmatch(key_env):
        raise UserError(f"{where}: key_env: {_NAME_OF_A_VARIABLE}")
    return key_env


_VERSION_SEGMENT = re.compile(r"/v\d+[a-z]*\d*(/|$)")


def base_url(url: str) -> str:
    """The API's base for what the user wrote: ``/v1`` is added unless the path names a version."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    path = (slash + path.partition("?")[0].partition("#")[0]).rstrip("/")
    for end in (*(api.path for api in APIS.values()), "/models"):
        path = path.removesuffix(end)
    if not _VERSION_SEGMENT.search(path):
        path += "/v1"
    return f"{scheme.lower()}://{place}{path}"


# ── engines ──────────────────────────────────────────────────────────────────────────────────────


def _engine(table: TargetTable, kind: str, defaults: Defaults, where: str) -> Target:
    model = table.target.partition(":")[2]
    if not model and not kind.startswith("llamacpp"):
        raise UserError(f"{where}: name the model: {kind}:MODEL, a directory or a hub id")
    api = table.api or defaults.api
    if kind in IN_PROCESS and not APIS[api].in_process:
        known = " or ".join(name for name in NAMES if APIS[name].in_process)
        raise UserError(f"{where}: api: engines in process take {known}; serve it over HTTP")
    return Target(
        spec=table.target,
        name=table.name or _engine_name(table, kind, model),
        engine=kind,
        model=model,
        api=api,
        quantization=table.quantization,
        dtype=table.dtype,
        device=table.device,
        threads=table.threads,
        max_model_len=table.max_model_len,
        python=table.python,
        price=table.price,
    )


def _engine_name(table: TargetTable, kind: str, model: str) -> str:
    """A name that tells apart what a sweep compares: ``vllm SmolLM2-135M-Instruct int8``."""
    if not model:
        return EMBEDDED_NAME if f"{kind}:" == EMBEDDED else "llama.cpp (in process)"
    words = [kind, Path(model).name.removesuffix(".gguf"), table.dtype, table.quantization]
    return " ".join(word for word in words if word)


def shown(spec: str) -> str:
    """``spec`` for a message: without its options, and without a user's name and password."""
    return re.sub(r"^([^/?]*//)?[^/?]*@", r"\1…@", spec.partition("?")[0])
