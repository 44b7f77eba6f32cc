"""Find the highest load that meets an objective: each cell is chosen by those before it."""

from msgspec.structs import replace

from llmbench.drive.reach import Reached
from llmbench.drive.sweep import SweepRun
from llmbench.errors import Unmeasurable
from llmbench.measure.capacity import probe
from llmbench.measure.slo import limits_ms
from llmbench.plan.scale import Scale
from llmbench.plan.search import Search
from llmbench.records import CellFacts, Load


class CapacityRun(SweepRun):
    """A search for each target, length, cache and client of its sweep. The sweep's own loads are
    the most that is tried, so that an engine that is started has room for it."""

    async def _measure_plan(
        self, reached: Reached, plan: CellFacts, scales: dict[object, Scale | Unmeasurable]
    ) -> None:
        search = Search(self._sweep.least, _most(plan.load), whole=not plan.load.rate)
        while (load := search.next()) is not None and not self.interrupted:
            facts = replace(plan, cell=len(self._measured), load=self._at(plan.load, load))
            await super()._measure_plan(reached, _reseeded(facts, len(search.probes)), scales)
            found = probe(self.cells[-1], limits_ms(self._sweep.slo))
            search.add(found)
            self._view.say(
                f"{found.load:g}: {found.fate}" + ("" if found.sure else ", within doubt")
            )

    def _at(self, most: Load, load: float) -> Load:
        """``most`` with as much ``load`` in its place, and the requests that go with it."""
        key = "request_rate" if most.rate else "concurrency"
        loads = replace(self._sweep, **{key: [load if most.rate else int(load)]}).loads()
        return next(each for each in loads if each.content == most.content and _alike(each, most))


def _alike(one: Load, other: Load) -> bool:
    return (one.prompt_tokens, one.output_tokens) == (other.prompt_tokens, other.output_tokens)


def _most(load: Load) -> float:
    return float(load.rate) if load.rate else float(load.concurrency)


def _reseeded(facts: CellFacts, probes: int) -> CellFacts:
    """Each probe draws anew: one that confirms another must not be its copy."""
    load = facts.load
    content = replace(load.content, seed=load.content.seed + probes)
    return replace(facts, load=replace(load, content=content))
