"""The value types that every room shares, in the order in which data flows through them.

    Sweep ─plan→ Call* ─drive→ Trace* ─store→ │disk│ ─decode→ Timeline* ─measure→ RequestMetrics*
    ─summarize→ Cell ─render→ text

Integers of nanoseconds carry ``_ns`` and count from the run's own monotonic zero unless they say
otherwise; floats are seconds (``_s``); milliseconds exist only in a ``Cell`` (``_ms``), for people.
"""

from array import array
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

# msgspec wants the bare class, mypy its item type.
if TYPE_CHECKING:
    Integers = array[int]
    Singles = array[float]
else:
    Integers = Singles = array

Phase = Literal["warmup", "measured", "cooldown"]
Stamps = Literal["kernel", "user", "engine"]
Reopened = Literal["", "closed", "unfinished", "resent"]
Verdict = Literal["valid", "partial", "invalid"]

TEXT_FORMATS = ("openai", "sharegpt", "text")
"""Datasets whose rows say what to ask; those of others may say only how long it is."""

TRACE = "trace"
"""The rate of a load whose requests are due when the rows of its dataset say."""


class ModelFile(Struct, frozen=True, omit_defaults=True):
    """One file of a model. ``sha256`` is ``None`` where it was too large to hash."""

    name: str
    bytes: int
    sha256: str | None = None


class Provenance(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a target turned out to be, once it ran. What nobody said is ``None`` or empty.

    ``versions`` are those of the libraries behind it. ``load_s`` is how long the engine took to
    load (a managed server: to be ready), ``first_token_s`` how long the first token of the first
    reply took after that, cold. ``weights_bytes`` is the size of the weights in memory.
    ``greedy`` holds the tokens of its greedy replies to the fixed prompts, for the agreement.
    """

    engine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    load_s: float | None = None
    first_token_s: float | None = None
    weights_bytes: int | None = None
    files: list[ModelFile] = field(default_factory=list)
    revision: str | None = None
    greedy: list[list[str]] = field(default_factory=list)


class Price(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a target costs, in the user's currency: for a million tokens, or an hour of it."""

    input: float = 0.0
    output: float = 0.0
    cached: float | None = None
    hour: float | None = None


class Target(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing to measure: an endpoint, or an engine that llmbench starts.

    ``spec`` is what the user wrote. ``url`` is the API's base, such as ``http://host:8000/v1``;
    that of a server which llmbench starts is filled in when it runs, and an engine that is called
    in process has none. ``key_env`` names the variable that holds the API key: the key itself is
    never stored; ``auth`` is ``bearer`` or the header that carries it, empty for the API's own way.
    ``path`` is where to post below ``url``, where the user's
    URL or a redirect says so. ``headers``, ``query``,
    ``body`` (fields laid over ours) and a ``system_prompt`` are what the user adds to requests;
    headers and query may name environment variables. An ``insecure`` one may have any certificate.
    ``python`` is the interpreter to run the engine with. ``command``, ``health`` and
    ``env`` are those of a server with a command line of its own. ``provenance`` is filled in when
    the target runs.
    """

    spec: str
    name: str
    url: str = ""
    path: str = ""
    engine: str = ""
    model: str = ""
    api: str = "chat"
    key_env: str = "OPENAI_API_KEY"
    ca_file: str = ""
    auth: str = ""
    insecure: bool = False
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    body: dict[str, Any] = {}
    system_prompt: str = ""
    quantization: str | None = None
    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    max_model_len: int | None = None
    python: str = ""
    command: list[str] = field(default_factory=list)
    health: str = ""
    env: dict[str, str] = field(default_factory=dict)
    price: Price | None = None
    provenance: Provenance | None = None


class Message(Struct, frozen=True, omit_defaults=True):
    """One message of a conversation, in the words of the OpenAI API.

    ``content`` is a text, or a list of parts (texts, images, audio) as the API takes them; it is
    ``None`` where the model only called tools.
    """

    role: str
    content: str | list[dict[str, Any]] | None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The words of ``content``, without what is no text."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text") or "") for part in self.content)
        return self.content or ""

    @property
    def is_plain(self) -> bool:
        """Whether the message is a text and nothing else."""
        return isinstance(self.content, str) and not self.tool_calls and not self.tool_call_id


class Sample(Struct, frozen=True, kw_only=True):
    """One row of a dataset or a trace: what to say, or how long it is, and when.

    ``messages`` end with the user's, or with a tool's. ``fields`` go into the request beside them:
    the tools that the model may call. A row that has lengths and no text has ``prompt_tokens``;
    ``blocks`` then names the blocks of ``block_tokens`` that its prompt is made of, equal ids being
    equal text. ``output_tokens`` is the length of the reply. ``at_s`` is when the request is due,
    from the first row of the file, and ``guessed_unit`` the unit that the file's times are taken to
    have where it does not say. What a row does not say is ``None`` or empty.
    """

    messages: list[Message] = []
    fields: dict[str, Any] = {}
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    at_s: float | None = None
    guessed_unit: str = ""
    blocks: list[int] = []
    block_tokens: int = 512


class Content(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the requests of a cell say.

    Synthetic prompts are cut from the ``text`` of that name; with a ``dataset`` its rows are played
    in order, and again from the start where they run out. ``prompt_lengths`` and
    ``output_lengths`` are the distributions that lengths are drawn from, empty for fixed ones.
    ``shared_prefix`` is the share of a prompt that all of a cell have in common. A session has
    ``turns`` turns, with a ``think_time`` (seconds, a distribution) between a reply and the next.
    ``barge_in`` is the share of its replies, but for the last, that the user cuts off,
    ``barge_in_after`` (seconds, a distribution) after their first token.
    """

    text: str = "lighthouse"
    dataset: str = ""
    format: str = ""
    columns: dict[str, str] = {}
    skip_broken: bool = False
    prompt_lengths: str = ""
    output_lengths: str = ""
    shared_prefix: float = 0.0
    cache: Literal["cold", "warm"] = "cold"
    turns: int = 1
    think_time: str = ""
    natural_stops: bool = False
    barge_in: float = 0.0
    barge_in_after: str = ""
    seed: int = 0

    @property
    def shares_prefixes(self) -> bool:
        """Whether requests begin alike on purpose, and a server may use what it has cached."""
        return (
            self.cache == "warm"
            or self.turns > 1
            or self.shared_prefix > 0
            or self.format == "mooncake"
        )


class Load(Struct, frozen=True, kw_only=True):
    """How one cell is loaded: by a closed loop that keeps ``concurrency`` requests in flight, or,
    with a ``rate``, by an open loop whose requests are due on a clock of their own.

    ``rate`` is requests a second, constant or changing (see ``plan/arrivals``), or ``trace`` for
    the times of the dataset, ``speed`` times as fast; ``arrivals`` says how they scatter about it.
    An open loop has at most ``concurrency`` requests in flight, any number where that is 0.

    The cell ends when ``requests`` have been measured or, where ``duration_s`` is set, when the
    window is that old. ``warmup`` requests come before the window and are never counted.
    ``prompt_tokens`` and ``output_tokens`` are the lengths asked for, on average. With a
    ``batch_size`` the requests go out as static batches of that size, which is then the
    concurrency too. ``grace_s`` is how long after its window a cell waits for replies. ``until``
    is a precision that ends the window, and ``max_failures`` what ends the cell. With a
    ``budget_s`` nobody said how much to measure: the window, with the replies that are waited for,
    is about that long, or as long as it takes for figures that are good enough.

    The streams of a closed loop ``start`` spread over time, or ``together``. Its window is cut into
    at most so many ``segments`` (see ``plan/segments``), before each of which every stream is set
    off anew at a random moment; where that is 0 they never are.
    """

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    requests: int
    duration_s: float | None
    warmup: int
    batch_size: int | None = None
    rate: str = ""
    arrivals: str = ""
    speed: float = 1.0
    grace_s: float | None = None
    until: str = ""
    max_failures: str = ""
    budget_s: float | None = None
    start: Literal["spread", "together"] = "spread"
    segments: int = 0
    content: Content = Content()


class Health(Struct, frozen=True, kw_only=True):
    """How the client's process fared while a cell ran. Shares are of the wall time.

    ``cpu_wait_share`` is how long it was ready to run and got no core. ``clock_step_ms`` is the
    largest step of the system's clock, ``throttled_ms`` how long its control group was held back,
    ``collections`` how often the garbage collector ran.
    """

    cpu_share: float
    cpu_wait_share: float
    clock_step_ms: float
    throttled_ms: float
    collections: int


class Calibration(Struct, frozen=True, kw_only=True):
    """What a client was off by, in ms at ``p50``, ``p95`` and ``p99``, against known send times: of
    ``concurrency`` streams with ``gap_ms`` between the events of each."""

    client: str
    concurrency: int
    events_per_s: float
    ttft_error_ms: dict[str, float]
    itl_error_ms: dict[str, float]
    gap_ms: float | None = None


class ServerTime(Struct, frozen=True):
    """What a server's own counters say of one stage in one cell: seconds, over so many requests."""

    seconds: float
    requests: float


class CachedTokens(Struct, frozen=True):
    """What a server's own counters say of its prefix cache in one cell: prompt tokens that were
    looked up, and those of them that were there."""

    hits: float
    queries: float


class Energy(Struct, frozen=True, kw_only=True):
    """What ``gpus`` GPUs took together in ``seconds``, idle ones among them; nothing else counts:
    no CPU, no memory of the machine, no power supply."""

    joules: float
    seconds: float
    gpus: int


class CellFacts(Struct, frozen=True, kw_only=True):
    """What is known of a cell beside its requests: the plan, the server's answers, how it ended.

    Where cells are run several times, those of one ``row`` are repeats of each other, and
    ``repeat`` counts them. ``target`` is an index into the sweep's targets, ``stored`` how many
    requests were written down. ``unmeasured`` says why there are no requests, ``stopped`` why there
    are fewer than planned; both are empty for a cell that ran its course. ``remarks`` are what else
    its reader should know, such as rows of a dataset that were passed over. ``memory_bytes`` is
    what the engine's processes held when it ended; ``server_times`` are by stage and
    ``server_cached`` of its prefix cache, from the server's metrics before and after. ``energy`` is
    what this machine's GPUs took from before the cell to after it. ``body`` and ``system_prompt``
    are the target's: they are a part of the work.
    """

    cell: int
    target: int
    client: str
    load: Load
    row: int | None = None
    repeat: int = 0
    engine: str = ""
    model: str = ""
    body: dict[str, Any] = {}
    system_prompt: str = ""
    server: str = ""
    dialect: str = ""
    exact_length: bool = False
    workers: int = 1
    stored: int | None = None
    unmeasured: str = ""
    stopped: str = ""
    remarks: list[str] = []
    memory_bytes: int | None = None
    server_times: dict[str, ServerTime] = field(default_factory=dict)
    server_cached: CachedTokens | None = None
    energy: Energy | None = None
    health: Health | None = None
    calibration: Calibration | None = None


class Call(Struct, frozen=True):
    """One request, encoded before its clock starts. ``body`` is the JSON document to post.

    ``headers`` are those that differ from request to request. ``due_ns`` is when it is to be sent,
    in an open loop (see ``Trace``), and ``cut_after_s`` how long after its first token the reply is
    to be cut off, where it is. ``exact_tokens`` is how many tokens the reply has where the server
    keeps to exact lengths, else 0.
    """

    cell: int
    index: int
    stream: int
    phase: Phase
    request_id: str
    body: bytes
    session: int = 0
    turn: int = 0
    due_ns: int | None = None
    cut_after_s: float | None = None
    segment: int = 0
    exact_tokens: int = 0
    headers: dict[str, str] = {}


class Connect(Struct, frozen=True, omit_defaults=True):
    """What it took to open one connection, in nanoseconds; stages that did not happen are 0.

    Where it leads through a proxy, ``dns_ns`` and ``tcp_ns`` are those of the proxy, and
    ``proxy_ns`` is how long that took to open a tunnel to the target. ``reopened`` says why a
    stream had to open one between two requests, where it did: the server had ``closed`` the one
    before, left its reply ``unfinished`` after the end marker, or closed it just as a request was
    sent, which never arrived and was ``resent``. ``wait_ns`` is how long the request whose turn it
    was then waited for the new one.
    """

    dns_ns: int = 0
    tcp_ns: int = 0
    tls_ns: int = 0
    proxy_ns: int = 0
    reopened: Reopened = ""
    wait_ns: int = 0

    @property
    def total_ns(self) -> int:
        return self.dns_ns + self.tcp_ns + self.proxy_ns + self.tls_ns


class Reads(Struct, frozen=True):
    """The reads of a socket that brought one reply, as columns with one item a read.

    ``end`` is how many bytes of the reply's body had arrived after it. ``at_ns`` is the stamp of
    its last segment, from ``Trace.sent_ns``. ``lag_ns`` is how much later the process read it
    (0 without kernel stamps). ``slack_ns`` is how much earlier than ``at_ns`` the read's *first*
    byte can have arrived: the client had last found the socket empty that long before the stamp.
    Events that share a read are known to within it.
    """

    end: Integers
    at_ns: Integers
    lag_ns: Integers
    slack_ns: Integers


def no_reads() -> Reads:
    """The reads of a reply that never came."""
    return Reads(array("q"), array("q"), array("q"), array("q"))


TOO_LARGE = "too-large"
"""The failure of a reply that went beyond its limit: only its beginning was kept."""


class Trace(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request as it was seen: the bytes of the reply, and when they came. The evidence.

    ``end_ns`` is when the exchange was over, from ``sent_ns``. ``send_ns`` is how long the call
    that sent the request took: it left then (0 where unknown). ``due_ns`` is when an open loop
    had it due, from the run's zero like ``sent_ns``, and ``queued_ns`` for how long after that it
    waited because as many as may be were in flight. ``session`` and ``turn`` (from 0) place it in
    its conversation, and ``segment`` in its cell's window. ``cut_ns`` is when the user cut the
    reply off, from ``sent_ns``, and ``stop_ns`` how long the server went on sending after that
    (``None`` if longer than the client had patience for): what came then was for nobody. ``error``
    is the kind of failure that the transport saw (``reset``, ``timeout``, …) and ``detail`` its
    words; what the reply itself says is decoded later. ``exact_tokens`` is as in ``Call``.
    """

    cell: int
    index: int
    stream: int
    phase: Phase
    sent_ns: int
    end_ns: int
    session: int = 0
    turn: int = 0
    due_ns: int | None = None
    queued_ns: int = 0
    cut_ns: int | None = None
    stop_ns: int | None = None
    segment: int = 0
    exact_tokens: int = 0
    request_id: str = ""
    send_ns: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    connect: Connect | None = None
    error: str = ""
    detail: str = ""
    stamps: Stamps = "kernel"
    reads: Reads = field(default_factory=no_reads)
    body: bytes = b""


class Kind:
    """What one event of a stream carries, as bits: an event may carry several things.

    Plain integers, for ``enum.IntFlag`` costs a microsecond an event.
    """

    ROLE = 1
    REASONING = 2
    ANSWER = 4
    TOOL = 8
    USAGE = 16
    FINISH = 32
    ERROR = 64
    DONE = 128
    GENERATED = REASONING | ANSWER | TOOL


TokenCount = Annotated[int, Meta(ge=0, le=1_000_000_000)]


class PromptDetails(Struct, frozen=True, gc=False):
    cached_tokens: TokenCount | None = None


class CompletionDetails(Struct, frozen=True, gc=False):
    reasoning_tokens: TokenCount | None = None


class Usage(Struct, frozen=True, gc=False):
    """Token counts as the server states them, in its own words; ``None`` where it does not."""

    prompt_tokens: TokenCount | None = None
    completion_tokens: TokenCount | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    total_tokens: TokenCount | None = None
    prompt_cache_hit_tokens: TokenCount | None = None
    cache_read_input_tokens: TokenCount | None = None
    cached: TokenCount | None = field(default=None, name="cached_tokens")
    reasoning: TokenCount | None = field(default=None, name="reasoning_tokens")

    @property
    def cached_tokens(self) -> int | None:
        details = self.prompt_tokens_details
        return _first_known(
            details.cached_tokens if details else None,
            self.cached,
            self.prompt_cache_hit_tokens,
            self.cache_read_input_tokens,
        )

    @property
    def reasoning_tokens(self) -> int | None:
        details = self.completion_tokens_details
        return _first_known(details.reasoning_tokens if details else None, self.reasoning)


def _first_known(*counts: int | None) -> int | None:
    return next((count for count in counts if count is not None), None)


class Event(Struct, frozen=True, gc=False):
    """One decoded event. ``tokens`` is how many tokens it carries, where its own ids tell.

    ``text`` is all that was generated; where that is reasoning and answer, its first ``thought``
    characters are the reasoning. ``timings`` is where the server says that the reply's time went,
    in llama.cpp's words. ``ending`` is what it says of the end beside its ``finish`` reason: the
    reason in the words of the model's own provider, or a message.
    """

    kind: int
    text: str = ""
    tokens: int | None = None
    usage: Usage | None = None
    finish: str = ""
    error: str = ""
    timings: dict[str, Any] | None = None
    thought: int = 0
    ending: str = ""

    @property
    def answer(self) -> str:
        """The text without the reasoning."""
        return self.text[self.thought :] if self.kind & Kind.ANSWER else ""


class Timeline(Struct, frozen=True, kw_only=True):
    """One reply, decoded: its content events with their times, and how the stream ended.

    Times are nanoseconds from ``sent_ns``; the arrays run in parallel, one item a content event.
    ``slack_ns`` bounds how much earlier the event can have arrived (see ``Reads``); it is 0 for an
    event that had a read to itself. ``lag_ns`` is how late the event's read was.
    ``running_tokens`` is the server's running count of output tokens at each event, where it keeps
    one, and ``token_ids`` how many ids its events carried. ``usage`` has reasoning inside the
    completion's tokens and what was cached inside the prompt's, wherever the server counts them.
    ``hidden_tokens`` is how many of the completion's no event brought, ``None`` where some are
    missing and nobody knows how many. ``head_chars`` of the ``chars`` came with the first event.
    ``failure`` names the kind of failure, and is empty for a good reply. ``stages_ms`` is where the
    server says that the time went.
    """

    first_event_ns: int | None = None
    first_answer_ns: int | None = None
    at_ns: Integers
    slack_ns: Integers
    lag_ns: Integers
    running_tokens: Integers | None = None
    token_ids: int | None = None
    hidden_tokens: int | None = 0
    chars: int = 0
    head_chars: int = 0
    usage: Usage = Usage()
    finish: str = ""
    stages_ms: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    detail: str = ""


UNKNOWN_TOKENS = -1
"""Of hidden tokens: there are some, and nobody knows how many."""


class RequestMetrics(Struct, frozen=True, kw_only=True):
    """One request's figures; ``None`` where nothing tells. Those of a cell are kept as a table, see
    ``measure/requests``.

    ``ttfr_s``, ``ttft_s``, ``ttfat_s`` and ``e2e_s`` count from ``start_ns``. A failed request has
    none of them, and one that was cut off (``cancelled``) those that it lived to see. ``tokens`` is
    the output length from the best source there is, which ``token_source`` names. ``hidden_tokens``
    of them came in no event, ``UNKNOWN_TOKENS`` where nobody knows how many. ``head_share`` is the
    share of the others, but for the first, that is taken to have come with the first event, where
    no running count tells.

    A reply that the user ``cut`` off is as good as what came until then, but for its end-to-end
    latency; ``stop_s`` is how long the server went on sending after that, ``None`` where its end
    was not seen.

    The reply had ``events`` content events, the first ``first_ns`` and the last ``last_ns`` after
    ``sent_ns``, and ``gaps_s`` between them. Those are of 24 bits: 0.6 ns at 10 ms, less than any
    stamp resolves. ``counted`` says that the server kept a running count of tokens; ``steps`` is by
    how much it rose at each event after the first, where that was not always 1.

    A good reply has the ruler's evidence: ``lag_ms``, how late each read was, at most 65 s (the
    table keeps 11 bits of these); ``shared`` of the events shared a read with a later one, and may
    be ``slack_ms`` (as coarse, rounded up) older than they look, an item an event where any is.
    ``late_slack_ms`` is the same of reads that the client was late for (``measure/ruler``), and 0
    for the others.
    """

    phase: Phase
    index: int = 0
    session: int = 0
    turn: int = 0
    run: int = 0
    segment: int = 0
    sent_ns: int
    end_ns: int
    send_ns: int = 0
    due_ns: int | None = None
    queued_ns: int = 0
    failure: str = ""
    detail: str = ""
    finish: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    tokens: int
    token_source: str
    hidden_tokens: int = 0
    chars: int = 0
    head_share: float | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)
    ttfr_s: float | None = None
    ttft_s: float | None = None
    ttfat_s: float | None = None
    e2e_s: float | None = None
    tpot_s: float | None = None
    cut: bool = False
    stop_s: float | None = None
    events: int
    first_ns: int | None = None
    last_ns: int | None = None
    gaps_s: Singles
    counted: bool = False
    steps: Integers | None = None
    lag_ms: Singles
    shared: int = 0
    slack_ms: Singles | None = None
    late_slack_ms: Singles | None = None
    stamps: Stamps
    connect: Connect | None = None

    @property
    def start_ns(self) -> int:
        """When the user's clock started: when it was due, or sent in a closed loop."""
        return self.sent_ns if self.due_ns is None else self.due_ns

    @property
    def late_s(self) -> float:
        """How long after its start it was sent; negative where it was early."""
        return (self.sent_ns - self.start_ns) / 1e9


class Estimate(Struct, frozen=True):
    """A quantile whose sample carries no 95% interval: what it is in the sample, and the bounds
    (each by itself holds in 97.5% of samples) that the sample does carry.

    ``value`` is ``None`` where the quantile lies beyond what was seen before requests were cut off.
    """

    value: float | None
    at_least: float | None = None
    at_most: float | None = None


class Block(Struct, kw_only=True):
    """One distribution. ``n`` counts samples; a quantile too rare for its sample is ``None``, and
    ``estimates`` has what is known of it.

    Quantiles count a failed request as +∞, and one that was cut off as at least as slow as it was
    seen to be; ``mean``, ``min`` and ``max`` are of what is known. ``ci95`` holds the 95% interval
    of each quantile that is shown; for those in ``ci95_is_range`` it is the range of all samples,
    which are within a few percent of each other. ``p1`` and ``p5`` exist where the slow side of a
    distribution is its low one. ``worth`` is how many independent samples the ``n`` are worth at
    each quantile, shown or not, where that is fewer.
    """

    n: int
    mean: float | None = None
    min: float | None = None
    p1: float | UnsetType | None = UNSET
    p5: float | UnsetType | None = UNSET
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None
    ci95: dict[str, tuple[float, float]] = field(default_factory=dict)
    ci95_is_range: list[str] = field(default_factory=list)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    worth: dict[str, float] = field(default_factory=dict)

    def estimate(self, name: str) -> float | None:
        """Return quantile ``name``, or its estimate where the sample carries no interval for it."""
        value: float | None = getattr(self, name)
        if value is None and name in self.estimates:
            return self.estimates[name].value
        return value

    def bounds(self, name: str) -> tuple[float | None, float | None]:
        """Return what statistic ``name`` is at least and at most, as far as the sample tells."""
        if name in self.ci95:
            return self.ci95[name]
        if name in self.estimates:
            return self.estimates[name].at_least, self.estimates[name].at_most
        value: float | None = getattr(self, name)
        return value, value


class Counts(Struct, kw_only=True):
    """What became of the measured requests: sent = ok + failed + cancelled (by the user).

    ``failures`` counts them by kind, and ``details`` has the words of the first of each kind.
    """

    sent: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)


class Ruler(Struct, kw_only=True):
    """What the ruler says of itself in this cell: how far each shown quantile can be off, in ms.

    Errors are ``None`` where nothing tells (user-space stamps without a calibration).
    ``read_lag_ms`` is how late the process read what the kernel had stamped, ``coalesced_share``
    the content events that shared a read, ``end_lag_ms`` how late the ends of replies were read on
    average: that long a stream stood idle before its next request.
    """

    stamps: str | None = None
    ttft_error_ms: dict[str, float] | None = None
    itl_error_ms: dict[str, float] | None = None
    read_lag_ms: dict[str, float] | None = None
    coalesced_share: float | None = None
    end_lag_ms: float | None = None
    calibrated: bool = False


class Segment(Struct, frozen=True, kw_only=True):
    """One segment of a closed loop's window: how long it was open, and how many output tokens and
    requests came in it (a request at its edge counts by the part that lies inside)."""

    seconds: float
    tokens: float
    requests: float


class Range(Struct, frozen=True):
    """The least, the median and the greatest of some counts."""

    min: int
    p50: int
    max: int


class Objective(Struct, frozen=True):
    """One latency objective and whether it was met; ``None`` where nobody knows."""

    limit_ms: float
    value_ms: float | None
    met: bool | None


class Beyond(Struct, frozen=True):
    """What a cell saw of one objective: the ``share`` of its ``n`` requests (or gaps between
    tokens) that were beyond the limit, where ``allowed`` may be. They are ``worth`` so many
    independent ones."""

    share: float
    n: int
    worth: float
    allowed: float


class Turn(Struct, kw_only=True):
    """The requests of one turn (from 1) of a cell's conversations."""

    turn: int
    ttft_ms: Block
    prompt_tokens: Range | None = None
    cached_share: float | None = None


class BargeIn(Struct, kw_only=True):
    """What came of the replies that users cut off: ``cut`` of them. ``stop_ms`` is how long the
    server went on sending; one that had not stopped when the client lost patience counts as +∞.
    ``next_ttft_ms`` is TTFT of the turns after them, ``other_ttft_ms`` that of the turns after a
    reply that was heard to its end.
    """

    cut: int
    stop_ms: Block | None = None
    next_ttft_ms: Block | None = None
    other_ttft_ms: Block | None = None


class Repeats(Struct, kw_only=True):
    """The runs that a row is made of, in order: how far they lie apart."""

    runs: int
    ttft_p50_ms: list[float | None]
    itl_p50_ms: list[float | None]
    otps: list[float | None]


class LengthBin(Struct, kw_only=True):
    """The requests of a cell whose replies had a length within ``output_tokens``."""

    output_tokens: Range
    tpot_ms: Block


class Cost(Struct, frozen=True):
    """What a cell's requests cost, in the currency of the target's price."""

    per_1k_requests: float
    per_1m_output_tokens: float


class Goodput(Struct, frozen=True, kw_only=True):
    """What became of the measured requests by the limits, in ms, on each: issued = good + bad +
    unknown (cut off within the limits). Without limits every success is good.

    ``share`` is good ÷ (good + bad), with its 95% interval; ``per_s`` are good requests a second
    and ``tokens_per_s`` the output tokens of good requests a second, over the cell's window.
    ``tokens`` is how many those requests had.
    """

    limits_ms: dict[str, float]
    good: int
    bad: int
    unknown: int
    tokens: int
    share: float | None = None
    ci95: tuple[float, float] | None = None
    per_s: float | None = None
    tokens_per_s: float | None = None


class Billed(Struct, frozen=True, kw_only=True):
    """The tokens of all measured attempts, as the server counted them; ``uncounted`` attempts had
    no count, and may have been billed for all that."""

    attempts: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class Capacity(Struct, frozen=True, kw_only=True):
    """The answer of one search: the highest ``load`` (requests in flight, or a second where it went
    ``by`` rate) that meets every limit, ``None`` where none did; ``ci95`` is its 95% interval.

    ``open_end`` says why no load missed, where none did: the answer is then a lower bound, and not
    ``sure`` where too few requests met the limits; or why the search ended before it was done.
    ``otps`` and ``otps_per_user`` (p50) are of the cell that ran closest to it.
    """

    target: str
    client: str
    cache: str | None
    prompt_tokens: int
    by: str
    limits_ms: dict[str, float]
    load: float | None
    ci95: tuple[float, float] | None
    open_end: str | None
    probes: int
    sure: bool = True
    otps: float | None = None
    otps_per_user: float | None = None


class Cell(Struct, kw_only=True):
    """One row of the result: a target at one load. The JSON contract; keys are only ever added.

    ``untimed`` has the figures that the client could not time well enough to be shown, such as
    ``ttft.p95``, each with how far off it can be, in ms. ``reopened`` counts the requests for which
    a stream had to open a connection anew, by why (see ``Connect``), and ``opening`` is how many
    streams did so at a time, on average, in which they had no request in flight.
    """

    target: str
    engine: str | None
    model: str | None
    quantization: str | None
    api: str
    client: str
    concurrency: int | None
    request_rate: float | None
    prompt_tokens: int
    output_tokens: int
    requests: Counts
    ttft_ms: Block | None = None
    ttfr_ms: Block | None = None
    ttfat_ms: Block | None = None
    itl_ms: Block | None = None
    itl_request_mean_ms: Block | None = None
    icl_ms: Block | None = None
    tpot_ms: Block | None = None
    e2e_ms: Block | None = None
    otps_per_user: Block | None = None
    otps_end_to_end: Block | None = None
    otps: float | None = None
    otps_ci95: tuple[float, float] | None = None
    requests_per_s: float | None = None
    requests_per_s_ci95: tuple[float, float] | None = None
    chars_per_s: float | None = None
    window_s: float | None = None
    segments: list[Segment] | None = None
    in_step: float | None = None
    in_flight: float | None = None
    opening: float | None = None
    reopened: dict[str, int] | None = None
    ttft_drift: float | None = None
    measured_prompt_tokens: Range | None = None
    measured_output_tokens: Range | None = None
    token_source: str | None = None
    tokens_per_event: float | None = None
    hidden_tokens: Range | None = None
    itl_imputed_share: float | None = None
    burst_index: float | None = None
    delayed_ack_share: float | None = None
    cached_share: float | None = None
    cache: str | None = None
    connect_ms: dict[str, Block] | None = None
    batch_size: int | None = None
    device: str | None = None
    disk_mb: float | None = None
    memory_mb: float | None = None
    load_s: float | None = None
    first_token_s: float | None = None
    agreement: float | None = None
    slo: dict[str, Objective] | None = None
    beyond: dict[str, Beyond] | None = None
    cost: Cost | None = None
    stages_ms: dict[str, float] | None = None
    stages_source: str | None = None
    arrivals: str | None = None
    rate: str | None = None
    ttft_from_sent_ms: Block | None = None
    e2e_from_sent_ms: Block | None = None
    dispatch_lag_ms: Block | None = None
    queue_wait_ms: Block | None = None
    arrivals_per_s: float | None = None
    warmup_removed: int = 0
    settled: bool | None = None
    in_flight_growth: float | None = None
    text: str | None = None
    dataset: str | None = None
    prompt_lengths: str | None = None
    output_lengths: str | None = None
    cache_asked: str | None = None
    cached_share_source: str | None = None
    turns: list[Turn] | None = None
    barge_in: BargeIn | None = None
    tpot_by_length: list[LengthBin] | None = None
    repeats: Repeats | None = None
    goodput: Goodput | None = None
    billed: Billed | None = None
    energy_gpu_only: Energy | None = None
    joules_per_token_gpu_only: float | None = None
    untimed: dict[str, float] = field(default_factory=dict)
    ruler: Ruler = field(default_factory=Ruler)
    verdict: Verdict = "valid"
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
