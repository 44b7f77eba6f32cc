"""What a process must know to run streams of a cell: enough to travel to a worker."""

from collections.abc import Iterable, Iterator

from msgspec import Struct
from msgspec.structs import replace

from llmbench.apis import APIS
from llmbench.apis.dialect import Dialect
from llmbench.drive.client import Client
from llmbench.drive.clock import Clock
from llmbench.drive.endpoint import endpoint
from llmbench.drive.wire import WireClient
from llmbench.plan import prompts
from llmbench.records import Call, CellFacts, Phase, Target, Trace


class Job(Struct, frozen=True, kw_only=True):
    """The streams of a cell that one process runs, and what they send.

    ``words`` is the length of the prompts. It holds no key: a worker reads the environment.
    """

    facts: CellFacts
    target: Target
    dialect: Dialect
    words: int
    salt: str
    timeout_s: float
    streams: list[int]

    def make_call(self, index: int, stream: int, phase: Phase) -> Call:
        """Encode one request, with a nonce of its own."""
        cell, api = self.facts.cell, APIS[self.target.api]
        prompt = prompts.prompt(self.salt, cell, index, self.words)
        body = api.encode(self.target.model, prompt, self.facts.load.output_tokens, self.dialect)
        return Call(cell, index, stream, phase, f"llmbench-{self.salt}-{cell}-{index}", body)

    def traces(self, client: Client, spool: Iterable[Trace]) -> Iterator[Trace]:
        """What was spooled, as it is to be kept: finished by the client, and without the key where
        a server has repeated it. No byte changes its place."""
        where = endpoint(self.target)

        def clean(text: str) -> str:
            return where.redacted(text.encode()).decode()

        for trace in map(client.settle, spool):
            yield replace(
                trace,
                body=where.redacted(trace.body),
                detail=clean(trace.detail),
                headers={name: clean(value) for name, value in trace.headers.items()},
            )

    def client(self, clock: Clock) -> Client:
        """The client of the cell, with a connection for each of the job's streams."""
        where, path = endpoint(self.target), APIS[self.target.api].path
        match self.facts.client:
            case "aiohttp":
                from llmbench.drive.aiohttp_client import AiohttpClient

                return AiohttpClient(where, path, self.timeout_s, clock)
            case "openai":
                from llmbench.drive.openai_client import OpenAIClient

                return OpenAIClient(where, path, self.timeout_s, clock)
            case _:
                return WireClient(where, path, self.streams, self.timeout_s, clock)
