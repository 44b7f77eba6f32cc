"""The value types that every room shares, in the order in which data flows through them.

    Sweep ─plan→ Call* ─drive→ Trace* ─store→ │disk│ ─decode→ Timeline* ─measure→ RequestMetrics*
    ─summarize→ Cell ─render→ text

Integers of nanoseconds carry ``_ns`` and count from the run's own monotonic zero unless they say
otherwise; floats are seconds (``_s``); milliseconds exist only in a ``Cell`` (``_ms``), for people.
"""

from enum import IntFlag
from typing import Literal

from msgspec import Struct, field

Phase = Literal["warmup", "measured", "cooldown"]
Stamps = Literal["kernel", "user"]
Verdict = Literal["valid", "partial", "invalid"]


class Target(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing to measure: an endpoint, or an engine that llmbench starts.

    ``spec`` is what the user wrote. ``url`` is the API's base, such as ``http://host:8000/v1``; an
    engine's is filled in when it runs. ``key_env`` names the variable that holds the API key: the
    key itself is never stored.
    """

    spec: str
    name: str
    url: str = ""
    engine: str = ""
    model: str = ""
    api: str = "chat"
    key_env: str = "OPENAI_API_KEY"
    ca_file: str = ""
    quantization: str | None = None


class Load(Struct, frozen=True, kw_only=True):
    """How one cell is loaded: a closed loop that keeps ``concurrency`` requests in flight.

    The cell ends when ``requests`` have been measured or, where ``duration_s`` is set, when the
    window is that old. ``warmup`` requests come before the window and are never counted.
    """

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    requests: int
    duration_s: float | None
    warmup: int


class Call(Struct, frozen=True):
    """One request, encoded before its clock starts. ``body`` is the JSON document to post."""

    index: int
    path: str
    body: bytes


class Connect(Struct, frozen=True, omit_defaults=True):
    """What it took to open one connection, in nanoseconds; stages that did not happen are 0."""

    dns_ns: int = 0
    tcp_ns: int = 0
    tls_ns: int = 0


class Read(Struct, frozen=True, array_like=True):
    """One read of a socket.

    ``end`` is how many bytes of the reply's body had arrived after it. ``at_ns`` is the stamp of
    its last segment, from ``Trace.sent_ns``. ``lag_ns`` is how much later the process read it
    (0 without kernel stamps). ``slack_ns`` is how much earlier than ``at_ns`` the read's *first*
    byte can have arrived: the client polled the socket that long before the stamp, and it was
    empty. Events that share a read are known to within it.
    """

    end: int
    at_ns: int
    lag_ns: int
    slack_ns: int


class Trace(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request as it was seen: the bytes of the reply, and when they came. The evidence.

    ``error`` is what the transport said (``connection refused``); what the reply itself says is
    decoded later. ``end_ns`` is when the exchange was over, from ``sent_ns``. ``prompt_tokens`` and
    ``output_tokens`` are what was asked for.
    """

    cell: int
    index: int
    stream: int
    phase: Phase
    sent_ns: int
    end_ns: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    connect: Connect | None = None
    error: str = ""
    stamps: Stamps = "kernel"
    reads: list[Read] = field(default_factory=list)
    body: bytes = b""


class Kind(IntFlag):
    """What one event of a stream carries; an event may carry several things."""

    NONE = 0
    ROLE = 1
    REASONING = 2
    ANSWER = 4
    TOOL = 8
    USAGE = 16
    FINISH = 32
    ERROR = 64
    DONE = 128


GENERATED = Kind.REASONING | Kind.ANSWER | Kind.TOOL
"""Events with any of these carry generated tokens."""


class Usage(Struct, frozen=True):
    """Token counts as the server states them; ``None`` where it does not."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


class Event(Struct, frozen=True):
    """One decoded event. ``tokens`` is how many tokens it carries, where its own ids tell."""

    kind: Kind
    text: str = ""
    tokens: int | None = None
    usage: Usage | None = None
    finish: str = ""
    error: str = ""


class Timeline(Struct, frozen=True, kw_only=True):
    """One reply, decoded: the generated events and their times, and how the stream ended.

    Times are nanoseconds from ``sent_ns``. ``slack_ns[i]`` bounds how much earlier event ``i`` can
    have arrived (see ``Read``); it is 0 for an event that had a read to itself.
    ``cumulative_tokens[i]`` is the server's running count at event ``i``, where it keeps one.
    """

    trace: Trace
    first_event_ns: int | None = None
    at_ns: list[int] = field(default_factory=list)
    slack_ns: list[int] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    cumulative_tokens: list[int] | None = None
    text_chars: int = 0
    usage: Usage | None = None
    finish: str = ""
    done: bool = False
    failure: str = ""
    detail: str = ""


class RequestMetrics(Struct, frozen=True, kw_only=True):
    """One request's figures, in seconds from ``sent``; ``None`` where the reply does not tell.

    ``failure`` names the kind of failure, and is empty for a good reply. ``tokens`` is the output
    length from the best source there is, which ``token_source`` names. ``icl_s`` are the gaps
    between content events, ``slack_s`` the reach of the uncertainty of each generated event.
    """

    phase: Phase
    sent_s: float
    end_s: float
    failure: str = ""
    detail: str = ""
    ttfr_s: float | None = None
    ttft_s: float | None = None
    ttfat_s: float | None = None
    e2e_s: float | None = None
    tpot_s: float | None = None
    tokens: int | None = None
    token_source: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    chars: int = 0
    connect: Connect | None = None
