"""The first request of each target, made as it would be sent, and not sent."""

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from llmbench.apis.dialect import DIALECTS
from llmbench.apis.request import path_of
from llmbench.config import Sweep
from llmbench.drive.board import Ticket
from llmbench.drive.endpoint import shown_headers, shown_url
from llmbench.drive.job import Job
from llmbench.headers import overlaid
from llmbench.plan.grid import grid
from llmbench.plan.scale import Scale
from llmbench.targets import IN_PROCESS


class Preview(Struct, frozen=True):
    """One request of the ``target`` of that name; its headers hold no secret."""

    target: str
    url: str
    headers: dict[str, str]
    body: bytes


def previews(sweep: Sweep) -> Iterator[Preview]:
    """The first request of each target that is asked over HTTP. Nothing is asked for it: the model
    and the dialect are known when a run begins, and so is how many words make the tokens."""
    targets, seen = sweep.targets(), set()
    for facts in grid(sweep):
        target = targets[facts.target]
        if facts.target in seen or target.engine in IN_PROCESS:
            continue
        seen.add(facts.target)
        asked = replace(target, model=target.model or "(the only one that is listed)", headers={})
        job = Job(
            facts=facts,
            target=asked,
            dialect=DIALECTS[0],
            scale=Scale(),
            salt="dry-run",
            timeout_s=sweep.timeout,
        )
        session = job.session(0)
        if session is None:
            continue
        call = job.make_call(Ticket(0, "measured"), 0, session.asks[0])
        headers = overlaid(shown_headers(target), {"X-Request-Id": call.request_id})
        yield Preview(target.name, shown_url(target, path_of(target)), headers, call.body)
