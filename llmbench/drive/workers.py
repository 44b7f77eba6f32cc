"""Run the streams of one cell in several processes: one plan, one window, one result.

The workers share a board in shared memory, connect, wait for each other, and start together. Each
spools its traces into a part of its own in the run directory. A worker whose parent is gone ends by
itself.
"""

import asyncio
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic_ns
from typing import Any

import msgspec
from msgspec import Struct

from llmbench.drive.board import SLOTS, Board, samples_wanted
from llmbench.drive.clock import Clock
from llmbench.drive.job import Job
from llmbench.drive.open_loop import LEAD_NS
from llmbench.drive.signals import ENDING
from llmbench.plan.arrivals import read_rate
from llmbench.records import Health, Load

LOOK_S = 0.01
LOST = "a worker process ended without a word: killed, or out of memory"
STREAMS_A_WORKER = 256
RATE_A_WORKER = 250


def how_many(asked: int | str, load: Load) -> int:
    """The number of workers; ``auto`` takes one per 256 streams, or per 250 requests a second of
    an open loop, and leaves a core to others."""
    if asked == "auto":
        wanted = load.concurrency / STREAMS_A_WORKER
        if load.rate:
            wanted = max(read_rate(load.rate).values, default=0.0) / RATE_A_WORKER
        asked = min(max((os.cpu_count() or 2) - 1, 1), max(math.ceil(wanted), 1))
    return min(int(asked), load.concurrency) if not load.rate else int(asked)


class Outcome(Struct):
    """What a worker reports: how it fared, and why it stopped the cell, if it did, or broke: by an
    error of the system, with its number and words."""

    health: Health | None = None
    stopped: str = ""
    skipped: str = ""
    remark: str = ""
    broke: tuple[int, str] | None = None


class Workers:
    """One cell, in ``count`` processes; ``inline.Inline`` is the same in one."""

    def __init__(self, job: Job, count: int, folder: Path, zero_ns: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.load = job.facts.load
        self.stopped = ""
        self.remarks: list[str] = []
        self._workers: list[tuple[Any, Connection]] = []
        with _signals_kept_from_children():  # the lock has a tracker, which is one
            slots, lock = context.RawArray("q", SLOTS), context.RLock()
        samples = context.RawArray("d", samples_wanted(self.load))
        self.board = Board(self.load, count, slots, samples, lock)
        for number in range(count):
            ours, theirs = context.Pipe()
            share = job.share(number, count)
            shared = (slots, samples, lock)
            process = context.Process(
                target=_work, args=(share, shared, theirs, str(folder), zero_ns), daemon=True
            )
            with _signals_kept_from_children():
                process.start()
            theirs.close()
            self._workers.append((process, ours))

    async def run(self) -> Health | None:
        """Start the workers together; the sum of how they fared when the cell is over."""
        outcomes = await self._hear_all()
        start_ns = monotonic_ns() + LEAD_NS
        for _, pipe in self._workers:
            with suppress(BrokenPipeError):  # it has ended, and is heard of below
                pipe.send(start_ns)
        outcomes += await self._hear_all()
        for process, _ in self._workers:
            process.join()
        for outcome in outcomes:
            if outcome.broke is not None:
                raise OSError(*outcome.broke)
        self.stopped = self.stopped or next((each.stopped for each in outcomes if each.stopped), "")
        remarks = [self.board.remark, *(each.skipped for each in outcomes)]
        remarks += [each.remark for each in outcomes]
        self.remarks = [each for each in dict.fromkeys(remarks) if each]
        return _sum([outcome.health for outcome in outcomes if outcome.health is not None])

    async def _hear_all(self) -> list[Outcome]:
        return await asyncio.gather(*(self._hear(pipe) for _, pipe in self._workers))

    async def _hear(self, pipe: Connection) -> Outcome:
        while not pipe.poll():
            await asyncio.sleep(LOOK_S)
        try:
            return msgspec.convert(pipe.recv(), Outcome)
        except (EOFError, ConnectionResetError):
            self.board.stop()
            return Outcome(stopped=LOST)

    def interrupt(self, why: str) -> None:
        if not self.board.over:
            self.stopped = why
            self.board.stop()

    def close(self) -> None:
        """End what still runs."""
        for process, pipe in self._workers:
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()


@contextmanager
def _signals_kept_from_children() -> Iterator[None]:
    """A process that is started now never hears of Ctrl-C: its parent does, and stops the board."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _sum(healths: list[Health]) -> Health | None:
    """The process time of all, and the worst of everything else; ``None`` where nobody told."""
    if not healths:
        return None
    return Health(
        cpu_share=sum(each.cpu_share for each in healths),
        cpu_wait_share=max(each.cpu_wait_share for each in healths),
        clock_step_ms=max(each.clock_step_ms for each in healths),
        throttled_ms=max(each.throttled_ms for each in healths),
        collections=max(each.collections for each in healths),
    )


# ── in the worker ────────────────────────────────────────────────────────────────────────────────


def _work(
    job: Job, shared: tuple[Any, Any, Any], pipe: Connection, folder: str, zero_ns: int
) -> None:
    board = Board(job.facts.load, job.parts, *shared)
    try:
        outcome = asyncio.run(_run(job, board, pipe, Path(folder), zero_ns))
    except OSError as problem:
        board.stop()
        outcome = Outcome(broke=(problem.errno or 0, problem.strerror or str(problem)))
    with suppress(OSError):  # the parent may be gone
        pipe.send(msgspec.to_builtins(outcome))


async def _run(job: Job, board: Board, pipe: Connection, folder: Path, zero_ns: int) -> Outcome:
    clock = Clock(zero_ns)
    client = job.client(clock)
    spool = job.spool(folder)
    try:
        await client.open()
        pipe.send({})
        await _until(pipe.poll)
        running = job.loop(client, spool, board, pipe.recv())
        orphaned = asyncio.create_task(_stop_if_orphaned(board))
        health = await running.run(clock)
        orphaned.cancel()
    finally:
        await client.close()
        clock.close()
        spool.close()
    return Outcome(
        health=health,
        stopped=running.stopped,
        skipped=job.feed.remark,
        remark=running.remark,
    )


async def _until(there: Callable[[], bool]) -> None:
    while not there():
        await asyncio.sleep(LOOK_S)


async def _stop_if_orphaned(board: Board) -> None:
    parent = multiprocessing.parent_process()
    while parent is None or os.getppid() == parent.pid:
        await asyncio.sleep(1)
    board.stop()
