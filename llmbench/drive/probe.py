"""What must be known of a target before it is timed: its model, its dialect, how it counts prompts.

Nothing here is timed, so aiohttp does it. Every failure is one line that names the target.
"""

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
from msgspec import Struct
from msgspec.structs import replace
from yarl import URL

from llmbench.apis import APIS, bodies, lenient, sse
from llmbench.apis.chunks import MALFORMED
from llmbench.apis.dialect import Dialect
from llmbench.apis.ending import Ending
from llmbench.apis.ladder import Answer, climb
from llmbench.apis.refusals import Refusal, is_error, read_refusal
from llmbench.apis.request import encode, path_of
from llmbench.drive.aiohttp_client import address, failure, read_all, session, unpacked
from llmbench.drive.endpoint import BEARER, Endpoint, endpoint
from llmbench.drive.limits import KEPT_BYTES, Limits
from llmbench.drive.opening import Failure
from llmbench.drive.redirects import MOST_REDIRECTS, REDIRECTS, followed, may_have_the_key, moved
from llmbench.errors import Unmeasurable, UserError
from llmbench.measure.timeline import decode
from llmbench.plan import prompts
from llmbench.plan.prompts import PLAIN
from llmbench.records import TOO_LARGE, Content, Kind, Message, Reads, Target, Trace
from llmbench.targets import DEPLOYMENT

BUSY = (429, 503, 529)
LONGEST_PAUSE_S = 60.0
"""Of a ``Retry-After`` that is waited for."""

SILENT_S = 5.0
"""After so long without a reply a person is told that one is waited for."""

FEW_TOKENS = 1
"""Of a reply whose prompt is to be counted."""

SHORT_WORDS = 8
ONE_WORD = "\n\nAnswer with the one word: yes."
"""To this a model stops early by itself: a reply of the asked length was made to have it."""

MOST_GUESSES = 12
MOST_LISTED_BYTES = 4 << 20
"""Of a list of models."""

NOT_HTTP = "Bad status line"
"""How aiohttp calls a reply that is not HTTP's."""

LENGTH_TOLERANCE = 0.02


class Fit(Struct, frozen=True):
    """A prompt of the asked length: so many words, which the server counts as ``tokens``.

    ``tokens`` is ``None`` where the server does not count, and the words are a guess.
    """

    words: int
    tokens: int | None


class Probe:
    """Asks one target one thing at a time. Use as an async context manager.

    ``target`` and ``endpoint`` are where its requests go in the end: where the server redirects
    them, it is asked there from then on, and ``redirected`` says so.
    """

    def __init__(
        self,
        target: Target,
        where: Endpoint,
        salt: str,
        limits: Limits,
        *,
        output_tokens: int = 16,
        natural_stops: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``output_tokens`` and ``natural_stops`` are what the cells will ask for; ``say`` tells a
        person what is waited for."""
        self.target = target
        self.endpoint = where
        self.redirected = ""
        self._limits = limits
        self._salt = salt
        self._asked = self._sent = 0
        self._api = APIS[target.api]
        self._output_tokens = output_tokens
        self._counting_tokens = min(FEW_TOKENS, output_tokens)
        self._content = Content(natural_stops=natural_stops)
        self._say = say
        self.model = target.model
        self.dialect = self._api.dialects[0]
        self.server = ""
        self.first_token_s: float | None = None  # of the first reply, when nothing was warm

    async def __aenter__(self) -> "Probe":
        self._session = self._new_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def find_model(self) -> str:
        """The model to ask for: the user's, else the only one the server lists."""
        if self.model:
            return self.model
        url = self.endpoint.url + self._api.models_path
        status, headers, body = await self._list()
        if status in (401, 403, *BUSY):
            raise self._bad_status(status, headers, body)
        if status == 200:
            self._refuse_page(url, headers, body)
        listed = self._api.model_ids(body) if status == 200 else []
        if len(listed) == 1:
            self.model = listed[0]
            return self.model
        if listed:
            some = ", ".join(sorted(listed)[:8]) + (", …" if len(listed) > 8 else "")
            raise UserError(
                f"{self.target.name} serves {len(listed)} models, choose one with --model: {some}"
            )
        if status != 200:
            said = read_refusal(body).said
            raise self._unfound(
                status,
                f"{url} answered {status}{f' ({said})' if said else ''}: no OpenAI-compatible "
                "server, or one that lists no models: then name one with --model",
            )
        raise self._unmeasurable(f"{url} lists no model; name one with --model")

    async def _list(self) -> tuple[int, Mapping[str, str], bytes]:
        """The status, the headers and the body of the list of models."""
        for last in (False, True):
            try:
                listing = self._asking("GET", self._api.models_path)
                async with self._waiting(), listing as reply:
                    body = await read_all(reply, MOST_LISTED_BYTES)
            except (aiohttp.ClientError, OSError) as problem:
                raise self._unreachable(problem) from None
            if last or not await self._paused(reply.status, reply.headers):
                break
        if body is None:
            url = self.endpoint.url + self._api.models_path
            raise self._unmeasurable(f"{url} does not end; name the model with --model")
        return reply.status, reply.headers, self.endpoint.redacted(body)

    async def find_dialect(self) -> Dialect:
        """The richest dialect that the server takes, tried on a short prompt with the length that
        the cells will ask for."""
        ladder = climb(self._api.dialects, exactly=not self._content.natural_stops)
        problem: _NotTaken | None = None
        answer: Answer | None = None
        while True:
            try:
                tried = next(ladder) if answer is None else ladder.send(answer)
            except StopIteration as end:
                if end.value is not None:
                    self.dialect = end.value
                    return self.dialect
                assert problem is not None
                raise problem from None
            try:
                answer = Answer(exact=await self._try(tried.dialect, tried.whole))
            except _NotTaken as refused:
                problem, answer = refused, Answer(refused.refusal)

    async def _try(self, dialect: Dialect, whole: bool) -> bool:
        """Ask in ``dialect``; whether the reply had the asked length because it was made to. Once
        a token has come, what else becomes of the reply is for the cells to show."""
        self.dialect = dialect
        tokens = self._output_tokens
        trace = await self._exchange(self._prompt(SHORT_WORDS) + ONE_WORD, tokens, whole=whole)
        if not self._has_begun(trace.body):
            self._judge(trace)
        timeline = decode(trace, self._api.decode)
        counted = timeline.usage.completion_tokens or timeline.token_ids or len(timeline.at_ns)
        # The generation config of `transformers serve` leaves nothing else to stop for.
        # llama.cpp's Responses name no reason at the limit.
        stopped = timeline.finish in ("", "length") or dialect.generation_config
        forced = dialect.forces_length and not self._content.natural_stops
        return whole and forced and stopped and counted == tokens

    async def fit_prompt(self, wanted: int, content: Content = PLAIN) -> Fit:
        """A prompt that the server counts as ``wanted`` tokens, template and nonce included."""
        return await fit(self.target.name, wanted, lambda words: self.count(words, content))

    async def count(self, words: int, content: Content = PLAIN) -> int | None:
        """The tokens of a prompt of so many words; ``None`` where the server does not count. A
        reply of one token tells, but where so little is refused or says nothing."""
        problem: _BadReply | None = None
        for tokens in dict.fromkeys((self._counting_tokens, self._output_tokens)):
            problem = None
            try:
                trace = await self._exchange(self._prompt(words, content), tokens)
                self._judge(trace)
                if counted := decode(trace, self._api.decode).usage.prompt_tokens:
                    self._counting_tokens = tokens
                    return counted
            except _BadReply as bad:
                problem = bad
        if problem is not None:
            raise problem
        return None

    async def greedy(self, prompt: str, output_tokens: int) -> list[str]:
        """The tokens of a greedy reply to ``prompt``, each as its text."""
        trace = await self._exchange(prompt, output_tokens)
        events = self._api.decode(sse.parse(trace.body))
        return [lenient.clean(each.text) for each in events if each.kind & Kind.GENERATED]

    def _prompt(self, words: int, content: Content = PLAIN) -> str:
        self._asked += 1
        return prompts.prompt(self._salt, -1, self._asked, words, content)

    def _refuse_page(self, url: str, headers: Mapping[str, str], body: bytes) -> None:
        """Raise ``NotThere`` where ``body`` is a page: what else a server has at any path."""
        if bodies.is_page(body):
            kind = headers.get("content-type", "of no stated type")
            words = f"{url}: the reply is {kind}, {bodies.PAGE}"
            raise NotThere(str(self._unmeasurable(words)))

    def _judge(self, trace: Trace) -> None:
        """Raise what is wrong with a reply; that it has no token is nothing wrong."""
        self._refuse_page(self._url, trace.headers, trace.body)
        if (said := self._error_in(trace.body)) is not None:
            refusal = read_refusal(said)
            problem = f"{self._url}: {refusal.said}"
            if refusal.code in (None, 400, 422) or self._names_a_field(refusal):
                raise self._not_taken(problem, refusal)
            raise self._bad_reply(problem)
        timeline = decode(trace, self._api.decode)
        if timeline.failure and timeline.failure != "empty":
            raise self._bad_reply(f"{self._url}: {timeline.detail} ({timeline.failure})")

    def _error_in(self, body: bytes) -> bytes | None:
        """The error in the body of a reply whose status is good."""
        events = sse.parse(body)
        for (_, data, _), event in zip(events, self._api.decode(events), strict=False):
            if event.kind & Kind.ERROR and not event.error.startswith(MALFORMED):
                return data
        return body if is_error(body) else None

    def _names_a_field(self, refusal: Refusal) -> bool:
        return bool(refusal.names([*self.dialect.optional, self.dialect.limit]))

    async def _exchange(self, prompt: str, output_tokens: int, *, whole: bool = True) -> Trace:
        """One request and its reply, or of that the start where ``whole`` is not wanted. A server
        that asks for time is asked again, once. Raises ``Unmeasurable``."""
        target, said = replace(self.target, model=self.model), [Message("user", prompt)]
        self._sent += 1
        body = encode(target, said, output_tokens, self.dialect, self._content, self._marks)
        trace = await self._post(body, whole)
        if await self._paused(trace.status, trace.headers):
            trace = await self._post(body, whole)
        self._look_at_status(trace, output_tokens)
        self.server = trace.headers.get("server", "")
        return trace

    async def _post(self, body: bytes, whole: bool) -> Trace:
        """Send ``body`` and read the reply; what breaks off after a token is kept as it is. Notes
        how long the first token ever took, unless much else comes first: some servers send an event
        that only names the role long before."""
        heard, begun = bytearray(), False
        error = detail = ""
        began_s = time.monotonic()
        limit = asyncio.timeout(self._limits.first_token_s)
        ending = Ending(self._api.end_marker)
        posting = self._asking("POST", path_of(self.target), body)
        try:
            async with self._waiting(), limit, posting as reply:
                async for piece in reply.content.iter_any():
                    heard += piece
                    ending.add(piece)
                    if not begun and (self._has_begun(heard) or len(heard) > KEPT_BYTES):
                        begun = True
                        limit.reschedule(None)
                        if self.first_token_s is None and len(heard) <= KEPT_BYTES:
                            self.first_token_s = time.monotonic() - began_s
                    if ending.over or (begun and not whole):
                        reply.close()
                        break
                    if words := self._limits.exceeded(len(heard), 0):
                        raise Failure(TOO_LARGE, f"the reply is {words}")
        except Failure as problem:
            error, detail = problem.kind, problem.detail
            del heard[KEPT_BYTES:]
        except (aiohttp.ClientError, OSError) as problem:
            error, detail = failure(self.endpoint, problem, replying=bool(heard))
            if limit.expired():
                detail = self._limits.no_first_token.detail
            elif error == "timeout":
                detail += self._said_timeout
        content = self.endpoint.redacted(bytes(heard))
        if error and self._is_over(content):
            error = detail = ""
        if error and not self._has_begun(content) and self._error_in(content) is None:
            if error == TOO_LARGE:
                raise self._unmeasurable(f"{self._url}: {detail}")
            detail = self.endpoint.redacted(detail.encode()).decode()
            raise unreachable(self.target, self.endpoint, error, detail + self._after)
        return _as_trace(reply.status, unpacked(reply.headers), content, error, detail)

    @asynccontextmanager
    async def _asking(
        self, method: str, path: str, body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The reply to a request, which follows redirects with its method and body. Where the API's
        own requests are redirected, all later ones go there at once."""
        url = place = self.endpoint.url + path
        where = address(self.endpoint, path)
        for _ in range(MOST_REDIRECTS + 1):
            asking = self._session.request(
                method, where, data=body, headers=self._headers, allow_redirects=False
            )
            async with asking as reply:
                if reply.status not in REDIRECTS:
                    yield reply
                    return
                location = reply.headers.get("Location", "")
            place = self._place(place, location)
            where = URL(place, encoded=place.isascii())
            if target := self._moved(method, place):
                self.redirected = f"{url} redirects to {place}: requests go there at once"
                self.target, self.endpoint = target, endpoint(target)
                await self._session.close()
                self._session = self._new_session()
        raise self._unmeasurable(
            f"{url} leads to more than {MOST_REDIRECTS} redirects, the last to {place}; give the "
            "URL that answers as the target"
        )

    def _place(self, url: str, location: str) -> str:
        """Where ``url`` redirects to. Raises ``Unmeasurable`` where that is no place to follow to,
        such as another host, which the key is not for."""
        try:
            place = followed(url, location)
        except ValueError:
            words = f"{url} redirects to {location or 'nowhere'}, which is no URL"
            raise self._unmeasurable(words) from None
        if self.endpoint.redacted(place.encode()) != place.encode():
            raise self._unmeasurable(f"{url} redirects to {place}, a place that repeats a secret")
        if (self.endpoint.key or self.endpoint.secrets) and not may_have_the_key(url, place):
            base = place.removesuffix(self._api.path).removesuffix("/models")
            raise self._unmeasurable(
                f"{url} redirects to {place}, and the key in {self.target.key_env} follows to no "
                f"other host; if it is for that one, give {base} as the target"
            )
        return place

    def _moved(self, method: str, place: str) -> Target | None:
        """The target whose requests go to ``place``; ``None`` where that is about its list of
        models alone."""
        if method == "POST":
            return moved(self.target, place, self._api.path)
        if not place.endswith("/models"):
            return None
        return replace(self.target, url=place.removesuffix("/models"))

    def _new_session(self) -> aiohttp.ClientSession:
        return session(self.endpoint, self._limits.whole_s, tolerant=True)

    def _has_begun(self, body: bytes | bytearray) -> bool:
        """Whether a token is in the start of ``body``."""
        events = self._api.decode(sse.parse(bytes(body[:KEPT_BYTES])))
        return any(event.kind & Kind.GENERATED for event in events)

    def _is_over(self, body: bytes) -> bool:
        """Whether ``body`` ends with the mark of its end, whatever came of the connection then."""
        events = self._api.decode(sse.parse(body))
        return bool(events) and bool(events[-1].kind & Kind.DONE)

    @asynccontextmanager
    async def _waiting(self) -> AsyncIterator[None]:
        """Tell a person what is waited for, where that takes long."""
        words = f"waiting for {self.target.name} to answer (--timeout {self._limits.whole_s:g})"
        told = asyncio.get_running_loop().call_later(SILENT_S, self._say, words)
        try:
            yield
        finally:
            told.cancel()

    async def _paused(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether a server that asked for time was given it."""
        pause_s = retry_after_s(headers) if status in BUSY else None
        if pause_s is None or pause_s > self._longest_pause_s:
            return False
        self._say(f"{self.target.name} answered {status}: asking again in {pause_s:.3g} s")
        await asyncio.sleep(pause_s)
        return True

    @property
    def _longest_pause_s(self) -> float:
        return min(LONGEST_PAUSE_S, self._limits.whole_s)

    def _look_at_status(self, trace: Trace, output_tokens: int) -> None:
        """Raise what an HTTP status says."""
        status = trace.status
        if 300 <= status < 400:
            with suppress(ValueError):
                place = followed(self._url, trace.headers.get("location", ""))
                words = f"{self._url} answers {status} and sends to {place}, which is for a page"
                raise self._unmeasurable(f"{words}: is the target's URL that of an API?")
            raise self._unmeasurable(f"{self._url} redirects to nowhere")
        if status == 200:
            return
        refusal = read_refusal(trace.body)
        named = status not in (401, 403, 407, *BUSY) and self._names_a_field(refusal)
        if status not in (400, 422) and not named:
            raise self._bad_status(status, trace.headers, trace.body)
        words = f"the server answered {status}: {refusal.said}"
        if refusal.is_of_amount and refusal.names([each.limit for each in self._api.dialects]):
            words += f" (asked for {output_tokens} tokens, see --output-tokens)"
        elif refusal.is_of_context:
            words += " (see --prompt-tokens and --output-tokens)"
        raise self._not_taken(words, refusal)

    @property
    def _url(self) -> str:
        return self.endpoint.url + path_of(self.target)

    @property
    def _marks(self) -> tuple[str, str]:
        """What the session and the request are called where the user has marks for that."""
        name = f"{self._salt}-probe-{self._sent}"
        return name, name

    @property
    def _headers(self) -> dict[str, str]:
        return self.endpoint.filled(*self._marks)

    def _bad_status(self, status: int, headers: Mapping[str, str], body: bytes) -> Unmeasurable:
        hint = ""
        if status in (401, 403):
            unset = "" if self.endpoint.key else ", which is not set"
            hint = f" (the key comes from {self.target.key_env}{unset}; {self._way_of_key})"
        elif status == 404:
            hint = f" (model '{self.model}', {self._url}: see --model and --target)"
            if DEPLOYMENT.search(self._url) and "api-version" not in self.target.query:
                hint = f"{hint[:-1]}; Azure wants an api-version: --query api-version=2024-10-21)"
        elif status == 413:
            hint = " (see --prompt-tokens and --output-tokens)"
        elif status == 407 and self.endpoint.proxy is not None:
            hint = f" (the proxy's user and password come from {self.endpoint.proxy.variable})"
        elif status in BUSY:
            hint = f" (Retry-After: {headers.get('retry-after', 'not said')})"
            if (pause_s := retry_after_s(headers)) and pause_s > self._longest_pause_s:
                hint = hint[:-1] + f"; a probe waits for {self._longest_pause_s:g} s at most)"
        words = f"the server answered {status}: {read_refusal(body).said}{hint}"
        if status in (404, 405):
            return self._unfound(status, words)
        return self._bad_reply(words)

    def _bad_reply(self, words: str) -> "_BadReply":
        return _BadReply(str(self._unmeasurable(words)))

    def _not_taken(self, words: str, refusal: Refusal) -> "_NotTaken":
        return _NotTaken(str(self._unmeasurable(words)), refusal)

    @property
    def _way_of_key(self) -> str:
        auth = self.endpoint.auth
        name = auth if auth not in ("", BEARER) else " and ".join(self._api.headers("key"))
        return f"it is sent as {name}: --auth and --header say otherwise"

    def _unfound(self, status: int, words: str) -> Unmeasurable:
        """What is said of a refusal by ``status``: nothing may be at that place, but at another."""
        problem = self._unmeasurable(words)
        return NotThere(str(problem)) if status in (404, 405) else problem

    def _unmeasurable(self, words: str) -> Unmeasurable:
        told = self.endpoint.redacted(words.encode()).decode()  # a server may repeat the key
        return Unmeasurable(f"{self.target.name}: {told}{self._after}")

    @property
    def _said_timeout(self) -> str:
        return f": --timeout is {self._limits.whole_s:g} s"

    @property
    def _after(self) -> str:
        return f" ({self.redirected})" if self.redirected else ""

    def _unreachable(self, problem: Exception) -> Unmeasurable:
        kind, detail = failure(self.endpoint, problem, replying=False)
        if kind == "timeout":
            detail += self._said_timeout
        told = self.endpoint.redacted(detail.encode()).decode()
        return unreachable(self.target, self.endpoint, kind, told + self._after)


def unreachable(target: Target, endpoint: Endpoint, kind: str, detail: str) -> Unmeasurable:
    """What is said where no request of a ``target`` came through."""
    what = "cannot reach" if kind in ("connect", "dns", "tls", "proxy") else "no reply from"
    hint = _hint(endpoint, kind, detail)
    return Unmeasurable(f"{target.name}: {what} {endpoint.url} ({kind}: {detail}){hint}")


def _hint(endpoint: Endpoint, kind: str, detail: str) -> str:
    """The flag or the URL that may help, where a connection failed as this one did."""
    if kind == "tls" and "certificate" in detail:
        return "; --ca-file FILE names one to trust, --insecure accepts any"
    if kind == "tls" and endpoint.proxy is None:
        return "; if it does not speak TLS there, write http:// for https://"
    if endpoint.tls is None and (kind == "reset" or NOT_HTTP in detail):
        return "; if it speaks TLS there, write https:// for http://"
    return ""


async def fit(name: str, wanted: int, count: Callable[[int], Awaitable[int | None]]) -> Fit:
    """How many words make a prompt of ``wanted`` tokens for the target ``name``, where ``count``
    says how many tokens so many words are. Raises ``Unmeasurable`` where none do."""
    search = prompts.LengthFit(wanted)
    for _ in range(MOST_GUESSES):
        words = search.guess()
        if words is None:
            break
        tokens = await count(words)
        if tokens is None:
            return Fit(round(wanted * 0.75), None)
        search.add(words, tokens)
    words, tokens = search.best
    if abs(tokens - wanted) > max(LENGTH_TOLERANCE * wanted, 2):
        raise Unmeasurable(
            f"{name}: no prompt of {wanted} tokens can be made: the nearest that the server counts "
            f"has {tokens} (its chat template and any system prompt included)"
        )
    return Fit(words, tokens)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to be given, in the ``headers`` by their small names; ``None``
    where it says none that can be read."""
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            return max(0.0, float(headers[name]) * unit_s)
    with suppress(KeyError, ValueError):
        due = parsedate_to_datetime(headers["retry-after"])
        due = due.replace(tzinfo=due.tzinfo or UTC)
        return max(0.0, (due - datetime.now(UTC)).total_seconds())
    return None


class NotThere(Unmeasurable):
    """Nothing answers at that path of the server."""


class _BadReply(Unmeasurable):
    """The server answered, and not as it should."""


class _NotTaken(_BadReply):
    """The server did not take the request: perhaps a plainer dialect will do."""

    def __init__(self, words: str, refusal: Refusal) -> None:
        super().__init__(words)
        self.refusal = refusal


def _as_trace(status: int, headers: dict[str, str], body: bytes, error: str, detail: str) -> Trace:
    """A reply read at once, as a trace without times."""
    end, zero = array("q", [len(body)]), array("q", [0])
    return Trace(
        cell=-1,
        index=0,
        stream=0,
        phase="warmup",
        sent_ns=0,
        end_ns=0,
        status=status,
        headers={name.lower(): value for name, value in headers.items()},
        stamps="user",
        reads=Reads(end, zero, zero, zero),
        body=body,
        error=error,
        detail=detail,
    )
