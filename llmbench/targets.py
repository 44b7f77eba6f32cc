"""What the user wrote of a target → Target: a URL, an engine, or a server's own command line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from llmbench.apis import APIS, NAMES
from llmbench.apis.body import layered
from llmbench.errors import UserError, meant, suggestion
from llmbench.headers import check_parameter, is_header_name, is_secret, overlaid
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
Temperature = Annotated[float, Meta(ge=0, le=1000)]
TopP = Annotated[float, Meta(ge=0, le=1)]


class TargetTable(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A ``[[target]]`` of a config file. A target in one word, ``URL?name=a&model=b``, has the same
    keys as its options.

    ``target`` is a URL, ``host:port`` or ``engine:model``. With a ``command``, llmbench starts that
    and waits until ``health`` (a path or a URL) answers; ``{port}`` in it stands for a free port.
    ``api_key`` is ``"${NAME}"``: the variable that holds the key. ``headers``, ``query`` and
    ``body`` are laid over those of all targets.
    """

    target: str = ""
    name: str = ""
    model: str = ""
    api: ApiName | None = None
    key_env: str = ""
    api_key: str = ""
    ca_file: str = ""
    auth: str = ""
    insecure: bool | None = None
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    body: dict[str, Any] = {}
    temperature: Temperature | None = None
    top_p: TopP | None = None
    reasoning_effort: str = ""
    system_prompt: str = ""
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
    auth: str = ""
    insecure: bool = False
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    body: dict[str, Any] = {}
    temperature: float | None = None
    top_p: float | None = None
    reasoning_effort: str = ""
    system_prompt: str = ""


_PLAIN = ("temperature", "top_p", "reasoning_effort")
SAID = ("headers", "query", "body", "system_prompt", *_PLAIN)
"""What a target that is asked over HTTP has to say in its requests."""

_PLACE = ("key_env", "api_key", "ca_file", "auth", "insecure")
_URL = ("name", "model", "api", *_PLACE, "quantization", *SAID)
_COMMAND = (*_URL, "command", "health", "env")
_FILE = ("name", "api", "threads", "max_model_len", "python")
_ENGINE = (*_FILE, "dtype", "quantization", "device")
_KEYS = {
    "llamacpp": _FILE,
    "llamacpp-server": _FILE,
    "onnx": (*_FILE, "device"),
}
_TABLES = ("api_key", "headers", "query", "body", "system_prompt")
_IN_ONE_WORD = tuple(key for key in dict.fromkeys(_URL + _ENGINE) if key not in _TABLES)


def read_targets(given: Sequence[str | TargetTable], defaults: Defaults) -> list[Target]:
    """The targets in the order given, each with a name of its own. Raises ``UserError``."""
    if not _VARIABLE.fullmatch(defaults.api_key_env):  # it is stored, whatever the targets are
        raise UserError(f"--api-key-env: {_NAME_OF_A_VARIABLE}")
    targets = [target for each in given or [EMBEDDED] for target in _read(each, defaults)]
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"--target: two targets are called {name}; give each a name, as in "
                "'http://host:8000?name=before'"
            )
    return targets


def _read(given: str | TargetTable, defaults: Defaults) -> list[Target]:
    """What was ``given``: one target, or one for each of several models of a server."""
    if isinstance(given, str):
        given = given.strip()
        where = f"--target {shown(given.partition('?')[0])}"
        table = _one_word(given)
    else:
        where = f"target {shown(given.target) or given.name}".rstrip()
        place, _, query = given.target.partition("?")
        options, sent = _sorted_options(place, query, where)
        if options:
            raise UserError(f"{where}: in a table, options are keys of their own, not after a '?'")
        table = replace(given, target=place, query=sent | given.query)
    if _is_host_and_port(table.target):
        # A key goes to the port of TLS in no other way.
        secure = table.target.partition("/")[0].endswith(":443")
        table = replace(table, target=f"http{'s' * secure}://{table.target}")
    kind = COMMAND if table.command else _kind(table.target)
    if table.command or kind in SCHEMES:
        _check_keys(table, _COMMAND if table.command else _URL, where)
        return _server(table, kind, defaults, where)
    if kind in ENGINES:
        said = SAID if kind in MANAGED else ()
        _check_keys(table, (*_KEYS.get(kind, _ENGINE), *said), where)
        return [_engine(table, kind, defaults, where)]
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
    where = f"--target {shown(place)}"
    options, sent = _sorted_options(place, query, where)
    if options.get("api", NAMES[0]) not in NAMES:
        raise UserError(f"{where}: api is {' or '.join(NAMES)}")
    for key in ("threads", "max_model_len"):
        if not re.fullmatch("0*[1-9][0-9]{0,6}", options.get(key, "1")):
            raise UserError(f"{where}: {key} is a whole number from 1")
    for key in ("temperature", "top_p"):
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", options.get(key, "1")):
            raise UserError(f"{where}: {key} is a number, such as 0.7")
    if options.get("insecure", "true") not in ("true", "false"):
        raise UserError(f"{where}: insecure is true or false")
    given = {"target": place, "query": sent} | options
    return msgspec.convert(given, TargetTable, strict=False)


def _sorted_options(place: str, query: str, where: str) -> tuple[dict[str, str], dict[str, str]]:
    """What stands after the '?' of ``place``: options of the target, and parameters that are sent.

    ``query.NAME`` is always sent, as ``NAME``. Any other name that is no option is sent too, but
    not one that is spelled much like an option, or that sounds like a secret.
    """
    options: dict[str, str] = {}
    sent: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if not (key.isprintable() and value.isprintable()):
            raise UserError(f"{where}: an option has a character that cannot be shown")
        name = key.removeprefix("query.")
        is_url = _kind(place) in SCHEMES or _is_host_and_port(place)
        if key in _IN_ONE_WORD:
            options[key] = value
        elif not is_url or (name == key and not _is_parameter(key)):
            raise UserError(f"{where}: unknown option '{key}'{_meant(key, is_url)}")
        elif name in sent:
            raise UserError(f"{where}: the query parameter '{name}' stands there twice")
        else:
            check_parameter(name, value, f"{where}: query")
            sent[name] = value
    return options, sent


def _is_parameter(key: str) -> bool:
    """Whether ``key`` can be nothing but the server's: a slip of the pen is no parameter."""
    known = {*_IN_ONE_WORD, *TargetTable.__struct_fields__}
    return key not in known and not is_secret(key) and not meant(key, _IN_ONE_WORD)


def _meant(key: str, is_url: bool) -> str:
    if not is_url or key in TargetTable.__struct_fields__:
        return suggestion(key, _IN_ONE_WORD)
    close = meant(key, _IN_ONE_WORD)
    option = f"; did you mean '{close}'?" if close else ";"
    value = "${NAME}, an environment variable" if is_secret(key) else "…"
    return f"{option} write query.{key}={value} to send it to the server"


def _check_keys(table: TargetTable, known: Sequence[str], where: str) -> None:
    """Refuse what means nothing for this kind of target: it would be ignored in silence."""
    for key in table.__struct_fields__:
        if key not in (*known, "target", "price") and getattr(table, key) not in ("", None, [], {}):
            raise UserError(f"{where}: option '{key}' is not for this kind of target")


# ── servers ──────────────────────────────────────────────────────────────────────────────────────


def _server(table: TargetTable, kind: str, defaults: Defaults, where: str) -> list[Target]:
    place = table.target or "http://127.0.0.1:{port}"
    if table.command and not table.health:
        raise UserError(f"{where}: health is missing: the path that answers 200 when it is ready")
    if table.command and "{port}" in place and not _uses_port(table):
        raise UserError(f"{where}: give it a target URL, or {{port}} in its command or env")
    _check_url(place.replace("{port}", "1"), where)
    parts = urlsplit(place.replace("{port}", "0"))
    if _AZURE.fullmatch(parts.hostname or "") and parts.path in ("", "/"):
        place = f"{place.rstrip('/')}/openai/v1"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    default_name = Path(table.command[0]).name if table.command else f"{host}"
    named_path, named_api = _endpoint(place)
    if table.api and named_api and table.api != named_api:
        raise UserError(f"{where}: the URL names the API {named_api}, and api says {table.api}")
    api = named_api or table.api or defaults.api
    target = Target(
        spec=place,
        name=table.name or (f"{default_name}:{parts.port}" if parts.port else default_name),
        engine=kind if table.command else "",
        url=base_url(place),
        path=named_path,
        api=api,
        auth=_auth(table, defaults, parts.hostname or "", where),
        insecure=defaults.insecure if table.insecure is None else table.insecure,
        key_env=_key_env(table, defaults, where),
        ca_file=table.ca_file or defaults.ca_file,
        quantization=table.quantization,
        command=table.command,
        health=table.health,
        env=table.env,
        price=table.price,
        **_said(table, defaults, api),
    )
    models = [each.strip() for each in (table.model or defaults.model).split(",") if each.strip()]
    if len(models) < 2:
        return [replace(target, model=models[0] if models else _deployment(parts.path))]
    return [replace(target, model=model, name=f"{target.name} {model}") for model in models]


def _said(table: TargetTable, defaults: Defaults, api: str) -> dict[str, Any]:
    """What the user adds to the requests of a target: what its table says is laid over the rest."""
    body: dict[str, Any] = {}
    for each in (defaults, table):
        body = layered(layered(body, _plain_fields(each, api)), each.body)
    return {
        "headers": overlaid(defaults.headers, table.headers),
        "query": defaults.query | table.query,
        "body": body,
        "system_prompt": table.system_prompt or defaults.system_prompt,
    }


def _plain_fields(said: TargetTable | Defaults, api: str) -> dict[str, Any]:
    """The fields that have flags of their own, in the words of the API."""
    fields = {key: value for key in _PLAIN if (value := getattr(said, key)) not in (None, "")}
    effort = fields.pop("reasoning_effort", "")
    if not effort:
        return fields
    match api:
        case "responses":
            return fields | {"reasoning": {"effort": effort}}
        case "messages":
            return fields | {"output_config": {"effort": effort}}
    return fields | {"reasoning_effort": effort}


_AZURE = re.compile(r"(.+\.)?(openai|cognitiveservices|services\.ai)\.azure\.(com|us|cn)")
DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)(/|$)")


def _auth(table: TargetTable, defaults: Defaults, host: str, where: str) -> str:
    """How the key is sent; empty for the API's own way."""
    auth = table.auth or defaults.auth or ("api-key" if _AZURE.fullmatch(host) else "")
    if auth and not is_header_name(auth):
        raise UserError(f"{where}: auth is bearer, or the name of a header such as x-api-key")
    return auth.lower() if auth.lower() == "bearer" else auth


def _deployment(path: str) -> str:
    """The deployment that a path of Azure's names: the server asks for no other model."""
    found = DEPLOYMENT.search(path)
    return unquote(found[1]) if found else ""


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


def _endpoint(url: str) -> tuple[str, str]:
    """The path and the API that ``url`` names at its end; both empty where it names none."""
    path = _path(url)
    ends = {api.path: name for name, api in APIS.items()}
    for end in sorted(ends, key=len, reverse=True):  # one may be the end of another
        if path.rstrip("/").endswith(end):
            return path[len(path.rstrip("/")) - len(end) :], ends[end]
    return "", ""


def _path(url: str) -> str:
    _, slash, path = url.partition("://")[2].partition("/")
    # An empty segment is what is left of a base that ended in a slash.
    return re.sub("/{2,}", "/", slash + path.partition("?")[0].partition("#")[0])


def base_url(url: str) -> str:
    """The API's base for what the user wrote. ``/v1`` is added unless the path names a version, a
    deployment of Azure's, or its endpoint."""
    scheme, _, rest = url.partition("://")
    place, path = rest.partition("/")[0], _path(url)
    if end := _endpoint(url)[0]:
        return f"{scheme.lower()}://{place}{path.removesuffix(end)}"
    path = path.rstrip("/").removesuffix("/models")
    if not (_VERSION_SEGMENT.search(path) or DEPLOYMENT.search(path)):
        path += "/v1"
    return f"{scheme.lower()}://{place}{path}"


def elsewhere(target: Target) -> Target | None:
    """``target`` where it may be if nothing answers: at the base that its user wrote, where ``/v1``
    was added to that; without the slash that an endpoint of the user's ends in."""
    if target.path.endswith("/"):
        return replace(target, path=target.path.rstrip("/"))
    written = _path(target.spec).rstrip("/").removesuffix("/models")
    is_url = "://" in target.spec and not target.path
    if not is_url or _VERSION_SEGMENT.search(written) or not target.url.endswith("/v1"):
        return None
    return replace(target, url=target.url.removesuffix("/v1"))


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
        **(_said(table, defaults, api) if kind in MANAGED else {}),
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
