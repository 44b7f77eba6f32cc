"""Sweep → a run directory: reach each target, run its cells, store each before the next."""

import asyncio
import secrets
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from llmbench import columns, energy
from llmbench.apis import prometheus
from llmbench.drive.board import Board
from llmbench.drive.clock import Clock
from llmbench.drive.inline import Inline
from llmbench.drive.job import Job
from llmbench.drive.limits import Limits
from llmbench.drive.reach import Reached, reach
from llmbench.drive.scales import find_scale, prompt_key
from llmbench.drive.scrape import scrape
from llmbench.drive.signals import heard
from llmbench.drive.workers import Workers, how_many
from llmbench.errors import Unmeasurable
from llmbench.host import raise_file_limit
from llmbench.measure.cell import Measured, measured, report_cells, requests_in
from llmbench.measure.requests import Requests
from llmbench.measure.slo import limits_ms
from llmbench.plan.grid import grid, take_turns
from llmbench.plan.prompts import AGREEMENT_TOKENS, agreement_prompts
from llmbench.plan.scale import Scale
from llmbench.records import Cell, CellFacts, Health, Load, Target, Trace
from llmbench.store import RunDirectory

REFRESH_S = 0.5
GIVE_UP_S = 1.0
INTERRUPTED = "interrupted"
COLD_S = 30.0


class View(Protocol):
    """Shows a person how the run gets on; what is measured does not depend on it."""

    live: bool

    def say(self, line: str) -> None:
        """One line about the run."""

    def wait(self, line: str) -> None:
        """One line on what is waited for, which a log is to have as well."""

    def progress(self, label: str, load: Load, board: Board) -> None:
        """Where the running cell stands."""

    def cell_over(self) -> None:
        """The running cell has ended."""


class Runner(Protocol):
    """One cell under way."""

    load: Load
    board: Board

    @property
    def stopped(self) -> str:
        """Why the cell ended early, where it did."""

    @property
    def remarks(self) -> list[str]:
        """What the cell's reader should know beside that."""

    async def run(self) -> Health | None:
        """Run it to its end; how the client fared, where that is known. Its requests are parts of
        the run directory then. Raises ``OSError`` where the disk is full."""

    def interrupt(self, why: str) -> None:
        """End it now; what is in flight is kept as cancelled."""

    def close(self) -> None:
        """Let go of its files and processes, whatever these are at."""


class SilentView:
    """Shows nothing."""

    live = False

    def say(self, line: str) -> None: ...

    def wait(self, line: str) -> None: ...

    def progress(self, label: str, load: Load, board: Board) -> None: ...

    def cell_over(self) -> None: ...


class SweepRun:
    """One run of a sweep."""

    def __init__(self, directory: RunDirectory, view: View) -> None:
        self._directory = directory
        self._view = view
        self._sweep = directory.run.sweep
        self._salt = secrets.token_hex(8)
        self._clock = Clock()
        self._running: Runner | None = None
        self._task: asyncio.Task[None] | None = None
        self.interrupted = False
        self._measured: list[Measured] = []

    @property
    def path(self) -> Path:
        """Where it is stored."""
        return self._directory.path

    @property
    def cells(self) -> list[Cell]:
        """The rows so far, with their verdicts."""
        run = self._directory.run
        return report_cells(run.targets, run.sweep.slo, self._with_facts())

    @property
    def single_cells(self) -> list[Cell]:
        """The cells so far, one for each that was run."""
        return [each.cell for each in self._measured]

    def _with_facts(self) -> list[Measured]:
        """What was measured, with what has become known of it since (a calibration)."""
        pairs = zip(self._measured, self._directory.run.cells, strict=True)
        return [each._replace(facts=facts) for each, facts in pairs]

    def run(self) -> None:
        """Run every cell; a signal ends the run in good order. Raises ``UserError``."""
        raise_file_limit()  # a stream is a socket
        try:
            with asyncio.Runner() as runner:
                loop = runner.get_loop()

                def interrupt(*_: object) -> None:
                    """Whatever is being done, say that it is the last; the loop does the rest."""
                    again, self.interrupted = self.interrupted, True
                    loop.call_soon_threadsafe(self._give_up if again else self._interrupt)

                with heard(interrupt):
                    runner.run(self._until_interrupted())
        finally:
            self._clock.close()
            with suppress(OSError):  # a full disk; ``running`` tells what was going on
                self._directory.finish(interrupted=self.interrupted)

    async def _until_interrupted(self) -> None:
        self._task = asyncio.create_task(self._measure_targets())
        if self.interrupted:  # before there was a task to cancel
            self._task.cancel()
        try:
            await self._task
        except asyncio.CancelledError:
            if not self.interrupted:
                raise

    def _interrupt(self) -> None:
        """End the running cell and keep what it has."""
        if self._running is not None:
            self._running.interrupt(INTERRUPTED)
        elif self._task is not None:
            self._task.cancel()

    def _give_up(self) -> None:
        """Wait for nothing any longer, be it a worker, an engine or a server's metrics."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            asyncio.get_running_loop().call_later(GIVE_UP_S, self._give_up)

    async def _measure_targets(self) -> None:
        """Run the cells: target by target, or with all targets reached at once where their repeats
        take turns."""
        plans = grid(self._sweep)
        if self._sweep.repeat > 1 and take_turns(self._sweep):
            await self._measure_group(plans)
            return
        for _, its in groupby(plans, key=lambda plan: plan.target):
            await self._measure_group(list(its))
            if self.interrupted:
                return

    async def _measure_group(self, plans: list[CellFacts]) -> None:
        """Reach the targets of ``plans``, and run these in their order."""
        async with AsyncExitStack() as stack:
            reached = {}
            for number in dict.fromkeys(plan.target for plan in plans):
                its = [plan for plan in plans if plan.target == number]
                try:
                    reached[number] = await self._reach(stack, number, its)
                except Unmeasurable as problem:
                    self._skip(its, self._directory.run.targets[number], problem)
            scales: dict[object, Scale | Unmeasurable] = {}
            for plan in plans:
                if plan.target in reached and not self.interrupted:
                    await self._measure_plan(reached[plan.target], plan, scales)

    async def _reach(self, stack: AsyncExitStack, number: int, plans: list[CellFacts]) -> Reached:
        target = self._directory.run.targets[number]
        if target.engine:
            self._view.say(f"starting {target.name}")
        reaching = reach(
            target,
            [plan.load for plan in plans],
            salt=self._salt,
            limits=self._probe_limits,
            folder=self._directory.path,
            progress=self._view.live,
            wire="wire" in self._sweep.client,
            say=self._view.wait,
        )
        reached = await stack.enter_async_context(reaching)
        self._directory.run.targets[number] = await self._with_agreement(reached)
        return reached

    @property
    def _probe_limits(self) -> Limits:
        """Of what is asked before anything is timed; the first token may be a cold model's."""
        first_s = self._sweep.first_token_timeout
        return Limits(
            self._sweep.timeout,
            max(COLD_S, first_s) if first_s else None,
            reply_bytes=self._sweep.max_reply_bytes,
        )

    async def _measure_plan(
        self, reached: Reached, plan: CellFacts, scales: dict[object, Scale | Unmeasurable]
    ) -> None:
        """Run one cell; ``scales`` keeps what was found out of the prompts of those before it."""
        key = (plan.target, prompt_key(plan.load))
        if key not in scales:
            try:
                scales[key] = await find_scale(reached.ask, plan.load)
            except Unmeasurable as problem:
                scales[key] = problem
        scale = scales[key]
        if isinstance(scale, Unmeasurable):
            self._skip([reached.facts(plan)], reached.target, scale)
            return
        try:
            await self._measure_cell(reached, reached.facts(plan), scale)
        except Unmeasurable as problem:
            self._skip([reached.facts(plan)], reached.target, problem)

    async def _with_agreement(self, reached: Reached) -> Target:
        """The target with its greedy replies to the fixed prompts, where they are wanted."""
        provenance = reached.target.provenance
        if not self._sweep.agreement or provenance is None:
            return reached.target
        self._view.say(f"asking {reached.target.name} for its greedy replies")
        greedy = [
            await reached.ask.greedy(prompt, AGREEMENT_TOKENS) for prompt in agreement_prompts()
        ]
        return replace(reached.target, provenance=replace(provenance, greedy=greedy))

    async def _measure_cell(self, reached: Reached, facts: CellFacts, scale: Scale) -> None:
        label = f"cell {facts.cell + 1}/{len(grid(self._sweep))}, {reached.target.name}"
        try:
            self._directory.begin_cell(facts)
            runner, workers = self._runner(reached, facts, scale)
            self._running = runner
            watch = asyncio.create_task(self._watch(label, runner))
            try:
                facts = await self._run_cell(reached, replace(facts, workers=workers), runner)
            finally:
                watch.cancel()
                self._view.cell_over()
                runner.close()
                self._running = None
        except OSError as problem:
            raise self._directory.lost(facts, problem) from None
        self._keep(facts, reached.target, self._directory.part_traces(facts.cell))

    async def _run_cell(self, reached: Reached, facts: CellFacts, runner: Runner) -> CellFacts:
        """Run one cell; what is known of it then."""
        metrics = partial(self._server_metrics, reached)
        try:
            before, joules = await metrics(), energy.read() if reached.is_here else None
            health = await runner.run()
            taken = energy.between(joules, energy.read()) if joules else None
            after = await metrics() if before else ""
        except asyncio.CancelledError:
            if not self.interrupted:
                raise
            remarks = [*facts.remarks, *runner.remarks]
            return replace(facts, stopped=INTERRUPTED, remarks=remarks)
        return replace(
            facts,
            stopped=runner.stopped,
            remarks=[*facts.remarks, *runner.remarks],
            health=health,
            energy=taken,
            memory_bytes=reached.process.memory_bytes() if reached.process else None,
            server_times=prometheus.difference(prometheus.times(before), prometheus.times(after)),
            server_cached=prometheus.newly_cached(
                prometheus.cached(before), prometheus.cached(after)
            ),
        )

    def _runner(self, reached: Reached, facts: CellFacts, scale: Scale) -> tuple[Runner, int]:
        """What runs a cell, and in how many processes."""
        folder = self._directory.path
        job = Job(
            facts=facts,
            target=reached.target,
            dialect=reached.dialect,
            scale=scale,
            salt=self._salt,
            timeout_s=self._sweep.timeout,
            first_token_timeout_s=self._sweep.first_token_timeout,
            reply_bytes=self._sweep.max_reply_bytes,
        )
        workers = how_many(self._sweep.workers, facts.load)
        if reached.hosted is None and workers > 1:
            return Workers(job, workers, folder, self._clock.zero_ns), workers
        return Inline(job, folder, self._clock, reached.hosted), 1

    async def _server_metrics(self, reached: Reached) -> str:
        return await scrape(reached.endpoint) if reached.endpoint is not None else ""

    async def _watch(self, label: str, runner: Runner) -> None:
        while self._view.live:
            self._view.progress(label, runner.load, runner.board)
            await asyncio.sleep(REFRESH_S)

    # ── what is kept ─────────────────────────────────────────────────────────────────────────────

    def _keep(self, facts: CellFacts, target: Target, traces: Iterable[Trace]) -> None:
        found: list[Requests] = []
        span = self._directory.add_cell(
            facts, traces, lambda passing: found.append(self._read(target, passing))
        )
        (requests,) = found
        columns.keep(self._directory, facts.cell, span, requests)
        self._measured.append(measured(target, facts, requests, limits_ms(self._sweep.slo)))
        with suppress(OSError):  # derived: ``llmbench report`` makes it again
            self._directory.save_summary(self.cells)

    def _read(self, target: Target, traces: Iterable[Trace]) -> Requests:
        """What the traces of a cell say, each of which is looked at once."""
        return requests_in(traces, target.api)

    def _skip(self, plans: list[CellFacts], target: Target, problem: Unmeasurable) -> None:
        """Keep the cells of ``plans`` that were not run, with the reason."""
        self._view.say(str(problem))
        kept = {facts.cell for facts in self._directory.run.cells}
        for plan in plans:
            if plan.cell not in kept:
                facts = replace(plan, unmeasured=str(problem))
                self._keep(facts, target, ())


Runs = Callable[[RunDirectory, View], SweepRun]
"""What makes a run of a directory: ``SweepRun``, or one that chooses its cells as it goes."""
