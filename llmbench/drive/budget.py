"""Find how many users keep their turns in a budget: the search for capacity, by whole turns."""

from collections.abc import Iterable

from llmbench.drive.capacity import CapacityRun
from llmbench.drive.sweep import View
from llmbench.measure.requests import Requests
from llmbench.measure.turn_budget import Budget, Spoken, beyond_budget, budget_row, spoken
from llmbench.plan.search import Beyonds
from llmbench.records import CellFacts, Target, Trace
from llmbench.store import RunDirectory


class BudgetRun(CapacityRun):
    """A search by the share of turns that are not in the budget that was ``asked``."""

    def __init__(self, directory: RunDirectory, view: View, asked: Budget) -> None:
        super().__init__(directory, view)
        self._asked = asked
        self._replies: list[Spoken] = []
        self._late: Beyonds = {}

    def _keep(self, facts: CellFacts, target: Target, traces: Iterable[Trace]) -> None:
        super()._keep(facts, target, traces)
        row = budget_row(self.cells[-1], self._replies, self._asked)
        self._late = beyond_budget(row, self._asked.share)

    def _read(self, target: Target, traces: Iterable[Trace]) -> Requests:
        self._replies = spoken(target, traces, self._asked.manner)
        return Requests.of(each.request for each in self._replies)

    def _beyond(self) -> Beyonds:
        return self._late
