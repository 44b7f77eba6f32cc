"""Target → something that answers: start its engine if it has one, and find out how to ask it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from llmbench.apis.dialect import Dialect
from llmbench.drive.endpoint import Endpoint, endpoint
from llmbench.drive.probe import Probe
from llmbench.records import CellFacts, Load, Target


class Reached(Struct, frozen=True):
    """A target that answers. ``engine`` is what the server or engine calls itself."""

    target: Target
    endpoint: Endpoint
    dialect: Dialect
    engine: str
    probe: Probe

    def facts(self, plan: CellFacts) -> CellFacts:
        """``plan`` with what is now known of its target."""
        return msgspec.structs.replace(
            plan,
            engine=self.engine,
            model=self.target.model,
            dialect=self.dialect.name,
            exact_length=self.dialect.exact_length,
        )


@asynccontextmanager
async def reach(
    target: Target,
    loads: list[Load],
    *,
    salt: str,
    timeout_s: float,
    folder: Path,
    progress: bool,
) -> AsyncIterator[Reached]:
    """Reach ``target`` for as long as entered. Raises ``Unmeasurable`` with one line that says why
    not, and ``UserError`` where only the user can say how."""
    async with AsyncExitStack() as stack:
        engine = ""
        if target.engine:
            from llmbench.engines import running

            target, engine = await stack.enter_async_context(
                running(target, loads, folder, progress)
            )
        where = endpoint(target)
        probe = await stack.enter_async_context(Probe(target, where, salt, timeout_s))
        model = await probe.find_model()
        dialect = await probe.find_dialect()
        yield Reached(
            target=msgspec.structs.replace(target, model=model),
            endpoint=where,
            dialect=dialect,
            engine=engine or probe.server,
            probe=probe,
        )
