"""Find the highest load that meets an objective: each cell is chosen by those before it."""

from functools import partial

from msgspec.structs import replace

from llmbench.drive.reach import Reached
from llmbench.drive.sweep import SweepRun
from llmbench.errors import Unmeasurable
from llmbench.measure.capacity import beyonds
from llmbench.plan.scale import Scale
from llmbench.plan.search import Beyonds, Search
from llmbench.records import CellFacts, Load


class CapacityRun(SweepRun):
    """A search for each target, length, cache and client of its sweep. The sweep's own loads are
    the most that is tried, so that an engine that is started has room for it."""

    async def _measure_plan(
        self, reached: Reached, plan: CellFacts, scales: dict[object, Scale | Unmeasurable]
    ) -> None:
        search = Search(self._sweep.least, _most(plan.load), whole=not plan.load.rate)
        while (load := search.next()) is not None and not self.interrupted:
            asked = self._at(plan.load, load, search.requests)
            facts = replace(plan, cell=len(self._measured), load=asked)
            await super()._measure_plan(reached, _reseeded(facts, len(search.probes)), scales)
            search.add(load, self._beyond())
            self._view.say(f"{load:g}: {search.probes[-1].fate}")

    def _beyond(self) -> Beyonds:
        """How much of the last cell is beyond what is allowed."""
        return beyonds(self.cells[-1])

    def _at(self, most: Load, load: float, requests: int) -> Load:
        """``most`` with as much ``load`` in its place, and the requests that go with it: at least
        so many ``requests`` where the user leaves it to us."""
        sweep = self._sweep
        key = "request_rate" if most.rate else "concurrency"
        at = replace(sweep, **{key: [load if most.rate else int(load)]})
        alike = partial(_alike, most)
        found = next(each for each in at.loads() if alike(each))
        left_to_us = sweep.requests is None and sweep.duration is None and not sweep.until
        if left_to_us and found.requests < requests:
            at = replace(at, requests=requests)
            found = next(each for each in at.loads() if alike(each))
        return found


def _alike(one: Load, other: Load) -> bool:
    lengths = (one.prompt_tokens, one.output_tokens) == (other.prompt_tokens, other.output_tokens)
    return lengths and one.content == other.content


def _most(load: Load) -> float:
    return float(load.rate) if load.rate else float(load.concurrency)


def _reseeded(facts: CellFacts, probes: int) -> CellFacts:
    """Each probe draws anew: one that confirms another must not be its copy."""
    load = facts.load
    content = replace(load.content, seed=load.content.seed + probes)
    return replace(facts, load=replace(load, content=content))
