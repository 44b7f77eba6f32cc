"""What must be known of a target before it is timed: its model, its dialect, how it counts prompts.

Nothing here is timed, so aiohttp does it. Every failure is one line that names the target.
"""

import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from msgspec import Struct

from llmbench.apis import APIS, sse
from llmbench.apis.chunks import error_message
from llmbench.apis.dialect import DIALECTS, Dialect
from llmbench.apis.ending import Ending
from llmbench.drive.aiohttp_client import failure, read_all, session, unpacked
from llmbench.drive.endpoint import Endpoint, endpoint
from llmbench.drive.limits import KEPT_BYTES, Limits
from llmbench.drive.redirects import MOST_REDIRECTS, REDIRECTS, followed, may_have_the_key, moved
from llmbench.errors import Unmeasurable, UserError
from llmbench.measure.timeline import decode
from llmbench.plan import prompts
from llmbench.plan.prompts import PLAIN
from llmbench.records import Content, Kind, Message, Reads, Target, Timeline, Trace

PROBE_TIMEOUT_S = 120.0
MOST_GUESSES = 12
MOST_LISTED_BYTES = 4 << 20
"""Of a list of models."""

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

    def __init__(self, target: Target, where: Endpoint, salt: str, limits: Limits) -> None:
        self._target = target
        self._limits = limits
        self._endpoint = where
        self.redirected = ""
        self._salt = salt
        self._asked = 0
        self._api = APIS[target.api]
        self.model = target.model
        self.dialect = DIALECTS[0]
        self.server = ""
        self.first_token_s: float | None = None  # of the first reply, when nothing was warm

    async def __aenter__(self) -> "Probe":
        self._session = self._new_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @property
    def target(self) -> Target:
        return self._target

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    async def find_model(self) -> str:
        """The model to ask for: the user's, else the only one the server lists."""
        if self.model:
            return self.model
        url = f"{self._endpoint.url}/models"
        try:
            async with self._asking("GET", "/models") as reply:
                found = await read_all(reply, MOST_LISTED_BYTES)
                if found is None:
                    raise self._unmeasurable(f"{url} does not end; name the model with --model")
                body = self._endpoint.redacted(found)
                if reply.status in (401, 403):
                    raise self._unmeasurable(self._refusal(reply.status, body))
                listed = _model_ids(body) if reply.status == 200 else []
        except (aiohttp.ClientError, OSError) as problem:
            raise self._unreachable(problem) from None
        if len(listed) == 1:
            self.model = listed[0]
            return self.model
        if listed:
            some = ", ".join(sorted(listed)[:8]) + (", …" if len(listed) > 8 else "")
            raise UserError(
                f"{self._target.name} serves {len(listed)} models, choose one with --model: {some}"
            )
        if reply.status != 200:
            raise self._unmeasurable(
                f"{url} answered {reply.status}: no OpenAI-compatible server, or one that lists no "
                "models: then name one with --model"
            )
        raise self._unmeasurable(f"{url} lists no model; name one with --model")

    async def find_dialect(self) -> Dialect:
        """The most exact dialect that the server takes, tried on a short prompt."""
        problem: Unmeasurable | None = None
        for self.dialect in DIALECTS:
            try:
                await self.ask(self._prompt(8), output_tokens=2)
            except _BadRequest as refusal:
                problem = refusal
            else:
                return self.dialect
        assert problem is not None
        raise problem

    async def fit_prompt(self, wanted: int, content: Content = PLAIN) -> Fit:
        """A prompt that the server counts as ``wanted`` tokens, template and nonce included."""
        return await fit(self._target.name, wanted, lambda words: self.count(words, content))

    async def count(self, words: int, content: Content = PLAIN) -> int | None:
        """The tokens of a prompt of so many words; ``None`` where the server does not count."""
        timeline = await self.ask(self._prompt(words, content), output_tokens=1)
        return timeline.usage.prompt_tokens

    async def greedy(self, prompt: str, output_tokens: int) -> list[str]:
        """The tokens of a greedy reply to ``prompt``, each as its text."""
        trace = await self._exchange(prompt, output_tokens)
        events = self._api.decode(sse.parse(trace.body))
        return [event.text for event in events if event.kind & Kind.GENERATED]

    def _prompt(self, words: int, content: Content = PLAIN) -> str:
        self._asked += 1
        return prompts.prompt(self._salt, -1, self._asked, words, content)

    async def ask(self, prompt: str, *, output_tokens: int) -> Timeline:
        """One request, its reply decoded. Raises ``Unmeasurable`` for anything but a good one."""
        timeline = decode(await self._exchange(prompt, output_tokens), self._api.decode)
        if timeline.failure and timeline.failure != "empty":
            raise self._unmeasurable(f"{self._url}: {timeline.detail}")
        return timeline

    async def _exchange(self, prompt: str, output_tokens: int) -> Trace:
        began_s = time.monotonic()
        said = [Message("user", prompt)]
        body = self._api.encode(self.model, said, output_tokens, self.dialect, PLAIN)
        ending = Ending(self._api.end_marker)
        try:
            path = self._target.path or self._api.path
            async with self._asking("POST", path, body) as reply:
                start = b""
                if not self.first_token_s:
                    start = await self._first_token(reply, began_s, ending)
                rest = await read_all(reply, self._limits.reply_bytes - len(start), ending)
        except (aiohttp.ClientError, OSError) as problem:
            raise self._unreachable(problem) from None
        if rest is None:
            words = self._limits.exceeded(self._limits.reply_bytes + 1, 0)
            raise self._unmeasurable(f"{self._url}: the reply is {words}")
        content = self._endpoint.redacted(start + rest)
        if reply.status in (400, 422):
            raise _BadRequest(f"{self._target.name}: {self._refusal(reply.status, content)}")
        if 300 <= reply.status < 400:
            place = reply.headers.get("Location", "nowhere")
            raise self._unmeasurable(f"{self._url} redirects to {place}: give that as the target")
        if reply.status != 200:
            raise self._unmeasurable(
                self._refusal(reply.status, content, reply.headers.get("Retry-After"))
            )
        self.server = reply.headers.get("Server", "")
        return _as_trace(reply.status, unpacked(reply.headers), content)

    @asynccontextmanager
    async def _asking(
        self, method: str, path: str, body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The reply to a request, which follows redirects with its method and body. Where the API's
        own requests are redirected, all later ones go there at once."""
        url = place = self._endpoint.url + path
        for _ in range(MOST_REDIRECTS + 1):
            asking = self._session.request(method, place, data=body, allow_redirects=False)
            async with asking as reply:
                if reply.status not in REDIRECTS:
                    yield reply
                    return
                location = reply.headers.get("Location", "")
            place = self._place(place, location)
            if target := self._moved(method, place):
                self.redirected = f"{url} redirects to {place}: requests go there at once"
                self._target, self._endpoint = target, endpoint(target)
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
        if self._endpoint.redacted(place.encode()) != place.encode():
            raise self._unmeasurable(f"{url} redirects to {place}, a place that repeats a secret")
        if self._endpoint.key and not may_have_the_key(url, place):
            base = place.removesuffix(self._api.path).removesuffix("/models")
            raise self._unmeasurable(
                f"{url} redirects to {place}, and the key in {self._target.key_env} follows to no "
                f"other host; if it is for that one, give {base} as the target"
            )
        return place

    def _moved(self, method: str, place: str) -> Target | None:
        """The target whose requests go to ``place``; ``None`` where that is about its list of
        models alone."""
        if method == "POST":
            return moved(self._target, place, self._api.path)
        if not place.endswith("/models"):
            return None
        return msgspec.structs.replace(self._target, url=place.removesuffix("/models"))

    def _new_session(self) -> aiohttp.ClientSession:
        timeout_s = min(self._limits.whole_s, PROBE_TIMEOUT_S)
        return session(self._endpoint, timeout_s, one_shot=True)

    async def _first_token(
        self, reply: aiohttp.ClientResponse, began_s: float, ending: Ending
    ) -> bytes:
        """Read until a token is in, and note how long that took, unless much else comes first. Some
        servers send an event that only names the role long before."""
        body = b""
        async for piece in reply.content.iter_any():
            body += piece
            ending.add(piece)
            if any(event.kind & Kind.GENERATED for event in self._api.decode(sse.parse(body))):
                self.first_token_s = time.monotonic() - began_s
                break
            if len(body) > KEPT_BYTES or ending.over:
                break
        return body

    @property
    def _url(self) -> str:
        return self._endpoint.url + (self._target.path or self._api.path)

    def _refusal(self, status: int, body: bytes, retry_after: str | None = None) -> str:
        said = error_message(body)
        hint = ""
        if status in (401, 403):
            unset = "" if self._endpoint.key else ", which is not set"
            hint = f" (the key comes from {self._target.key_env}{unset})"
        elif status == 404:
            hint = f" (model '{self.model}', {self._endpoint.url}{self._api.path})"
        elif status == 407 and self._endpoint.proxy is not None:
            hint = f" (the proxy's user and password come from {self._endpoint.proxy.variable})"
        elif status == 429:
            hint = f" (Retry-After: {retry_after or 'not said'})"
        return f"the server answered {status}: {said}{hint}"

    def _unmeasurable(self, words: str) -> Unmeasurable:
        told = self._endpoint.redacted(words.encode()).decode()  # a server may repeat the key
        return Unmeasurable(f"{self._target.name}: {told}")

    def _unreachable(self, problem: Exception) -> Unmeasurable:
        kind, detail = failure(self._endpoint, problem, replying=False)
        told = self._endpoint.redacted(detail.encode()).decode()
        return unreachable(self._target, self._endpoint, kind, told)


def unreachable(target: Target, endpoint: Endpoint, kind: str, detail: str) -> Unmeasurable:
    """What is said where no request of a ``target`` came through."""
    what = "cannot reach" if kind in ("connect", "dns", "tls", "proxy") else "no reply from"
    return Unmeasurable(f"{target.name}: {what} {endpoint.url} ({kind}: {detail})")


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
            f"has {tokens} (its chat template included)"
        )
    return Fit(words, tokens)


class _BadRequest(Unmeasurable):
    """The server did not take the request: perhaps a plainer dialect will do."""


def _model_ids(body: bytes) -> list[str]:
    try:
        listed = msgspec.json.decode(body)
        return [str(model["id"]) for model in listed["data"]]
    except (msgspec.DecodeError, KeyError, TypeError):
        return []


def _as_trace(status: int, headers: dict[str, str], body: bytes) -> Trace:
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
    )
