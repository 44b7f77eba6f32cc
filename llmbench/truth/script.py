"""What the truth server does: the schedule, the misbehaviours, and the reading of a request. Pure.

Milliseconds are what people type, so the script's fields carry ``_ms``; everything computed from
them is integers of nanoseconds.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from llmbench.apis import NAMES

CHAT_OVERHEAD_TOKENS = 10
NS_PER_MS = 1_000_000

_OPENAI = """
    model messages prompt stream stream_options max_tokens max_completion_tokens temperature top_p
    n stop seed user frequency_penalty presence_penalty logit_bias logprobs top_logprobs
    response_format tools tool_choice parallel_tool_calls reasoning_effort metadata store suffix
    echo best_of modalities prediction service_tier safety_identifier prompt_cache_key verbosity
    include_usage include_obfuscation
"""


_FIELDS = {
    "chat": _OPENAI,
    "completions": _OPENAI,
    "responses": """
        model input instructions stream stream_options max_output_tokens temperature top_p store
        include reasoning text tools tool_choice parallel_tool_calls metadata service_tier user
        truncation previous_response_id background include_obfuscation prompt_cache_key
    """,
    "messages": """
        model messages system stream max_tokens temperature top_p top_k stop_sequences metadata
        thinking tools tool_choice service_tier output_config cache_control
    """,
}
"""What a strict server of each API knows."""


def _ms(text: str) -> Meta:
    return Meta(ge=0, le=86_400_000, description=text)


def _count(text: str, least: int = 0) -> Meta:
    return Meta(ge=least, le=1_000_000_000, description=text)


def _say(text: str) -> Meta:
    return Meta(description=text)


_Place = Annotated[int, Meta(ge=0, le=1_000_000_000)]


class Script(Struct, frozen=True, kw_only=True):
    """The schedule of every reply, and how the server misbehaves. The fields are the CLI's flags.

    ``*_at=N`` acts after N events of the stream (0: right after the headers), at the time when the
    next one was due; ``None`` is never.
    """

    model: Annotated[str, _say("the model that /v1/models lists")] = "truth"
    seed: Annotated[int, _count("of the jitter and of the cuts")] = 0
    ttft_ms: Annotated[float, _ms("from the request's receipt to the first token's event")] = 50.0
    itl_ms: Annotated[float, _ms("between one token event and the next")] = 10.0
    jitter_ms: Annotated[float, _ms("each gap between events varies uniformly by ± this")] = 0.0
    output_tokens: Annotated[int, _count("where the request sets no limit", 1)] = 200
    tokens_per_event: Annotated[int, _count("tokens in each event", 1)] = 1
    stall_every: Annotated[int, _count("every N-th token event is late by the stall; 0: none")] = 0
    stall_ms: Annotated[float, _ms("how late; what follows shifts with it")] = 0.0
    max_parallel: Annotated[int, _count("replies at once, the others wait in line; 0: any")] = 0
    early_stop: Annotated[int, _count("answers stop by themselves after N tokens; 0: no")] = 0
    cached_tokens: Annotated[int, _count("cached prompt tokens that usage states")] = 0

    role_first: Annotated[bool, _say("a role-only event comes first, with the first token")] = False
    reasoning_tokens: Annotated[int, _count("the first N tokens are reasoning_content")] = 0
    tool_call: Annotated[bool, _say("the answer is a tool call")] = False
    missing_usage: Annotated[bool, _say("usage is never sent")] = False
    no_done: Annotated[bool, _say("the stream ends without [DONE]")] = False

    coalesce: Annotated[int, _count("events in one send", 1)] = 1
    split_bytes: Annotated[bool, _say("events go out in two pieces; text is non-ASCII")] = False
    split_delay_ms: Annotated[float, _ms("between the two pieces")] = 1.0
    crlf: Annotated[bool, _say("lines of the stream end with CR LF")] = False
    comments: Annotated[bool, _say("': ping' lines in the stream, from before its start")] = False
    no_space: Annotated[bool, _say("no space after 'data:'")] = False

    error_at: Annotated[_Place | None, _say("an error event after N events ends it")] = None
    truncate_at: Annotated[_Place | None, _say("close mid-stream after N events")] = None
    reset_at: Annotated[_Place | None, _say("reset the connection after N events")] = None
    hang_at: Annotated[_Place | None, _say("send nothing more after N events")] = None
    deaf_ms: Annotated[float, _ms("goes on for so long when a client has closed its side")] = 0.0
    status: Annotated[int, Meta(ge=200, le=599, description="every reply's HTTP status")] = 200
    retry_after_s: Annotated[int, _count("the Retry-After of status 429")] = 1
    html: Annotated[bool, _say("answer 200 with an HTML page")] = False

    early_headers: Annotated[bool, _say("headers are sent at once, before the tokens")] = False
    slow_headers_ms: Annotated[float, _ms("headers are sent this late, on their own")] = 0.0
    close: Annotated[bool, _say("close after each reply, announced")] = False
    silent_close: Annotated[bool, _say("close after each reply, unannounced")] = False
    no_chunked: Annotated[bool, _say("no chunked coding: the close ends the reply")] = False
    no_models: Annotated[bool, _say("404 for /v1/models")] = False
    context_limit: Annotated[int, _count("400 for prompt and output over N tokens; 0: no")] = 0
    reject_unknown: Annotated[bool, _say("400 for fields that OpenAI does not know")] = False
    api_key_env: Annotated[str, _say("variable with the key that requests must carry")] = ""


class Request(Struct, frozen=True, kw_only=True):
    """What one request asks for; ``id`` names it in the reply and ``created`` dates it."""

    id: str
    api: str = NAMES[0]
    model: str
    prompt_tokens: int
    max_tokens: int | None = None
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    created: int = 0
    keep_alive: bool = True


class Refusal(Exception):  # noqa: N818  a reply, not a fault of ours
    """The request is answered with an HTTP error in OpenAI's shape."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


def read_request(
    script: Script,
    api: str,
    body: bytes,
    *,
    request_id: str,
    created: int = 0,
    keep_alive: bool = True,
) -> Request:
    """Read a request's JSON ``body``; raise ``Refusal`` if the script or the shape forbids it."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(fields, dict):
        raise Refusal(400, "The body of the request must be a JSON object.")
    options = fields.get("stream_options")
    if not isinstance(options, dict):
        options = {}
    if script.reject_unknown:
        _refuse_unknown([*fields, *options], _FIELDS[api].split())
    request = Request(
        id=request_id,
        api=api,
        model=str(fields.get("model") or script.model),
        prompt_tokens=prompt_tokens(fields, api),
        max_tokens=_limit(fields),
        stream=fields.get("stream") is True,
        include_usage=options.get("include_usage") is True,
        continuous_usage=options.get("continuous_usage_stats") is True,
        created=created,
        keep_alive=keep_alive,
    )
    _refuse_too_long(script, request)
    return request


_LIMITS = ("max_output_tokens", "max_completion_tokens", "max_tokens")


def _limit(fields: Mapping[str, Any]) -> int | None:
    name = next((name for name in _LIMITS if fields.get(name) is not None), "")
    if not name:
        return None
    limit = fields[name]
    if type(limit) is not int or not 1 <= limit <= 1_000_000:
        raise Refusal(400, f"{name} must be from 1 to 1000000, got {limit!r}.", "invalid_value")
    return limit


def _refuse_unknown(names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise Refusal(400, f"Unknown parameter: '{name}'.", "unknown_parameter")


def _refuse_too_long(script: Script, request: Request) -> None:
    wanted, output = script.context_limit, requested_tokens(script, request)
    total = request.prompt_tokens + output
    if wanted and total > wanted:
        raise Refusal(
            400,
            f"This model's maximum context length is {wanted} tokens. However, you requested "
            f"{total} tokens ({request.prompt_tokens} in the messages, {output} in the "
            "completion). Please reduce the length of the messages or completion.",
            "context_length_exceeded",
        )


def prompt_tokens(fields: Mapping[str, Any], api: str) -> int:
    """Count the prompt: its words or token ids, and a fixed overhead where there is a template."""
    if api == "completions":
        return _words(fields.get("prompt"))
    key = "input" if api == "responses" else "messages"
    messages = fields.get(key)
    if key == "input" and isinstance(messages, str):
        messages = [{"content": messages}]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Refusal(400, f"'{key}' must be a list of objects.", "invalid_type")
    said = [fields.get("instructions"), fields.get("system")]
    said += [message.get("content") for message in messages]
    return CHAT_OVERHEAD_TOKENS + sum(map(_words, said))


def _words(content: object) -> int:
    match content:
        case str():
            return len(content.split())
        case int():
            return 1
        case list():
            return sum(map(_words, content))
        case {"text": str(text)}:
            return len(text.split())
        case _:
            return 0


def requested_tokens(script: Script, request: Request) -> int:
    """How many tokens the request allows."""
    return script.output_tokens if request.max_tokens is None else request.max_tokens


def answer_tokens(script: Script, request: Request) -> tuple[int, str]:
    """How many tokens the reply has, and its finish_reason."""
    allowed = requested_tokens(script, request)
    if 0 < script.early_stop < allowed:
        return script.early_stop, "stop"
    return allowed, "length"


def schedule_ns(script: Script, events: int, rng: Random) -> list[int]:
    """When each of ``events`` token events is due, from the start of the reply; never falls."""
    itl_ns = script.itl_ms * NS_PER_MS
    gaps = [itl_ns] * events
    if script.jitter_ms:
        jitter_ns = script.jitter_ms * NS_PER_MS
        gaps = [max(0.0, itl_ns + rng.uniform(-jitter_ns, jitter_ns)) for _ in gaps]
    gaps[:1] = [script.ttft_ms * NS_PER_MS]
    if script.stall_every:
        last = script.stall_every - 1
        for index in range(last, events, script.stall_every):
            gaps[index] += script.stall_ms * NS_PER_MS
    return [round(due) for due in accumulate(gaps)]
