"""Target → something that answers: start its engine if it has one, and find out how to ask it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from llmbench.apis import APIS
from llmbench.apis.dialect import Dialect
from llmbench.drive.endpoint import Endpoint, endpoint
from llmbench.drive.limits import Limits
from llmbench.drive.opening import Failure, open_socket
from llmbench.drive.probe import Fit, NotThere, Probe, fit, unreachable
from llmbench.drive.proxy import is_loopback
from llmbench.errors import Unmeasurable
from llmbench.measure.verdict import INSECURE
from llmbench.plan import prompts
from llmbench.plan.prompts import PLAIN
from llmbench.records import CellFacts, Content, Load, Provenance, Target
from llmbench.targets import elsewhere

if TYPE_CHECKING:
    from llmbench.engines.hosted import HostedEngine
    from llmbench.engines.process import EngineProcess

T = TypeVar("T")


class Asker(Protocol):
    """Asks a target what must be known of it before it is timed."""

    async def fit_prompt(self, wanted: int, content: Content = PLAIN) -> Fit:
        """A prompt that the target counts as ``wanted`` tokens, template and nonce included."""

    async def count(self, words: int, content: Content = PLAIN) -> int | None:
        """The tokens of a prompt of so many words; ``None`` where the target does not count."""

    async def greedy(self, prompt: str, output_tokens: int) -> list[str]:
        """The tokens of a greedy reply to ``prompt``, each as its text."""


class Reached(Struct, frozen=True):
    """A target that answers. ``endpoint`` is where, and ``hosted`` the engine that is called in its
    place; ``process`` is that of an engine that llmbench started, and ``redirected`` says where
    the server has its requests go instead of where they were to."""

    target: Target
    endpoint: Endpoint | None
    dialect: Dialect
    ask: Asker
    hosted: "HostedEngine | None"
    process: "EngineProcess | None"
    redirected: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        host = urlsplit(self.target.url).hostname or ""
        return bool(self.target.engine) or is_loopback(host)

    def facts(self, plan: CellFacts) -> CellFacts:
        """``plan`` with what is now known of its target."""
        provenance = self.target.provenance
        return msgspec.structs.replace(
            plan,
            engine=provenance.engine if provenance else "",
            model=self.target.model,
            dialect=self.dialect.name,
            exact_length=self.dialect.exact_length,
            remarks=[*_remarks(self.target, plan.load.content), *filter(None, [self.redirected])],
        )


def _remarks(target: Target, content: Content) -> Iterator[str]:
    """What a reader should know of the way in which a target is asked."""
    if target.insecure and target.url.startswith("https:"):
        yield INSECURE
    if target.system_prompt and content.cache == "cold":
        yield "each prompt begins with the system prompt, which the server may have in its cache"


@asynccontextmanager
async def reach(
    target: Target,
    loads: list[Load],
    *,
    salt: str,
    limits: Limits,
    folder: Path,
    progress: bool,
    wire: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> AsyncIterator[Reached]:
    """Reach ``target`` for as long as entered, by the way of the ``wire`` client too, where that is
    to ask it. ``limits`` are those of the replies to what is asked before anything is timed, in the
    way in which ``loads`` will ask, and ``say`` tells a person what is waited for. Raises
    ``Unmeasurable`` with one line that says why not, and ``UserError`` where only the user can say
    how."""
    async with AsyncExitStack() as stack:
        process = None
        if target.engine:
            from llmbench.engines import running

            engine = await stack.enter_async_context(running(target, loads, folder, progress))
            target, process = engine.target, engine.process
            if engine.hosted is not None:
                ask = HostedAsker(target, engine.hosted, salt)
                dialect = APIS[target.api].dialects[0]
                yield Reached(target, None, dialect, ask, engine.hosted, process)
                return
        where = endpoint(target)
        if wire and where.proxy is not None:
            await _try_tunnel(target, where)
        try:
            found = await _asked(stack, target, loads, salt, limits, say)
        except NotThere as problem:
            plain = elsewhere(target)
            if plain is None:
                raise
            try:
                found = await _asked(stack, plain, loads, salt, limits, say)
            except NotThere:
                raise problem from None
        target, dialect, probe = found
        yield Reached(target, probe.endpoint, dialect, probe, None, process, probe.redirected)


async def _asked(
    stack: AsyncExitStack,
    target: Target,
    loads: Sequence[Load],
    salt: str,
    limits: Limits,
    say: Callable[[str], None],
) -> tuple[Target, Dialect, Probe]:
    """Ask ``target`` what must be known of it. Raises ``NotThere`` where nothing answers there."""
    where = endpoint(target)
    probe = Probe(
        target,
        where,
        salt,
        limits,
        output_tokens=min(load.output_tokens for load in loads),
        natural_stops=all(load.content.natural_stops for load in loads),
        say=say,
    )
    await stack.enter_async_context(probe)
    model = await probe.find_model()
    dialect = await probe.find_dialect()
    known = msgspec.structs.replace(
        probe.target, model=model, provenance=_provenance(target, probe)
    )
    return known, dialect, probe


async def _try_tunnel(target: Target, where: Endpoint) -> None:
    """Open a connection through the proxy as the wire client will: some proxies forward requests
    and open no tunnels. Raises ``Unmeasurable``."""
    try:
        sock, *_ = await open_socket(where)
    except Failure as failure:
        raise unreachable(target, where, failure.kind, failure.detail) from None
    sock.close()


def _provenance(target: Target, probe: Probe) -> Provenance:
    """What is known of the target by now. A first reply is cold only of a server just started."""
    before = target.provenance or Provenance()
    return msgspec.structs.replace(
        before,
        engine=before.engine or probe.server,
        first_token_s=probe.first_token_s if target.engine else None,
    )


class HostedAsker:
    """Asks an engine that is called in process."""

    def __init__(self, target: Target, engine: "HostedEngine", salt: str) -> None:
        self._target = target
        self._engine = engine
        self._salt = salt

    async def fit_prompt(self, wanted: int, content: Content = PLAIN) -> Fit:
        return await fit(self._target.name, wanted, lambda words: self.count(words, content))

    async def count(self, words: int, content: Content = PLAIN) -> int | None:
        prompt = prompts.prompt(self._salt, -1, words, words, content)
        return await self._heard(self._engine.count(self._target.api, prompt))

    async def greedy(self, prompt: str, output_tokens: int) -> list[str]:
        (answer,) = await self._heard(
            self._engine.generate(self._target.api, [prompt], output_tokens)
        )
        if answer.error:
            raise Unmeasurable(f"{self._target.name}: {answer.error}")
        return [text for _, _, text in answer.events]

    async def _heard(self, asked: Awaitable[T]) -> T:
        try:
            return await asked
        except ConnectionError as problem:
            raise Unmeasurable(f"{self._target.name}: {problem}") from None
