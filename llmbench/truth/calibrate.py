"""Measure a server with known send times, and see how far off the ruler is.

The same sweep as any other, against a truth server on this machine, in a directory that is thrown
away; then every stamp is held against the server's own log.
"""

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from llmbench import __version__, host
from llmbench.apis import APIS
from llmbench.cache import cache_folder
from llmbench.config import FEWEST_REQUESTS, Sweep
from llmbench.drive.sweep import SilentView, SweepRun, View
from llmbench.errors import Unmeasurable
from llmbench.measure.timeline import decode
from llmbench.records import Calibration, Cell, CellFacts, Verdict
from llmbench.store import RunDirectory
from llmbench.truth.errors import Errors, compare
from llmbench.truth.log import Reply
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script


class CalibrationRun(Struct, frozen=True, kw_only=True):
    """One client at one load, against known send times. Errors are of single stamps.

    ``cpu_us_per_token`` is what the whole process took, decoding included.
    """

    client: str
    concurrency: int
    tokens_per_s: float
    errors: Errors
    cpu_us_per_token: float
    shared_reads: float
    verdict: Verdict
    reasons: list[str]


def run(
    client: str,
    concurrency: int,
    script: Script,
    *,
    requests: int | None = None,
    duration_s: float | None = None,
) -> CalibrationRun:
    """Measure a truth server that plays ``script``. Raises ``Unmeasurable`` if nothing came."""
    if requests is None and duration_s is None:
        requests = max(FEWEST_REQUESTS, 2 * concurrency)
    with tempfile.TemporaryDirectory(prefix="llmbench-") as folder, TruthServer(script) as server:
        sweep = Sweep(
            target=[server.url],
            client=[client],  # type: ignore[list-item]  # checked where the user gave it
            concurrency=[concurrency],
            prompt_tokens=[64],
            output_tokens=script.output_tokens,
            requests=requests,
            duration=duration_s,
            out=str(Path(folder) / "run"),
            calibrate=False,
        )
        directory = RunDirectory.create(sweep, sweep.targets(), {})
        began_s = time.process_time()
        sweeping = SweepRun(directory, SilentView())
        sweeping.run()
        cpu_s = time.process_time() - began_s
        if sweeping.interrupted:
            raise KeyboardInterrupt
        (cell,) = sweeping.cells
        if not cell.requests.ok:
            raise Unmeasurable(f"calibration: {'; '.join(cell.reasons)}")
        log = {reply.request_id: reply for reply in server.log()}
        return _result(cell, directory, log, cpu_s)


def _result(
    cell: Cell, directory: RunDirectory, log: dict[str, Reply], cpu_s: float
) -> CalibrationRun:
    decode_event = APIS[cell.api].decode
    tokens, measured = 0, []
    for trace in directory.traces():
        timeline = decode(trace, decode_event)
        tokens += len(timeline.at_ns)
        if trace.phase == "measured" and not timeline.failure:
            measured.append((trace.request_id, timeline))
    return CalibrationRun(
        client=cell.client,
        concurrency=cell.concurrency or 0,
        tokens_per_s=cell.otps or 0.0,
        errors=compare(measured, log),
        cpu_us_per_token=cpu_s / max(tokens, 1) * 1e6,
        shared_reads=cell.ruler.coalesced_share or 0.0,
        verdict=cell.verdict,
        reasons=cell.reasons,
    )


# ── in every sweep ───────────────────────────────────────────────────────────────────────────────

REPLAY_S = 1.5
FASTEST_GAP_MS = 2.0
SLOWEST_GAP_MS = 20.0
MOST_EVENTS_PER_MS = 40.0  # what the truth server keeps up with on a slow core

TAKES_S = 4.0
"""About how long one calibration takes: a server to start, streams to open, and the replay."""

SHARE = 0.1
"""Of the run's own time, at most so much goes into calibrating."""

ENOUGH_TO_KEEP = 100
"""Requests of ``llmbench calibrate`` that tell enough to be relied on by sweeps."""

HARMLESS_MS = 0.5
"""Where a client under a heavier load was off by no more than this, a lighter one needs no
calibration of its own."""


class Need(NamedTuple):
    """The load that a cell put on its client. A slow cell is replayed faster than it was, so that
    enough events come, and that is no easier on the client."""

    client: str
    concurrency: int
    gap_ms: float

    @property
    def events_per_s(self) -> float:
        return self.concurrency / self.gap_ms * 1e3


def calibrate_cells(
    directory: RunDirectory, cells: Sequence[Cell], view: View, elapsed_s: float
) -> None:
    """Add a calibration to the facts of each cell that has figures, and store them.

    What this machine has been calibrated for costs nothing. Else the heaviest loads come first,
    for they may do for lighter ones, as long as a tenth of the ``elapsed_s`` that the run took
    lasts.
    """
    facts = directory.run.cells
    needs = {
        number: _need(each, cell)
        for number, (each, cell) in enumerate(zip(facts, cells, strict=True))
        if cell.requests.ok and each.client != "engine"  # in process there is no wire
    }
    left_s = SHARE * elapsed_s
    known = _stored()
    for number in sorted(needs, key=lambda each: needs[each].events_per_s, reverse=True):
        need = needs[number]
        found = _covering(need, known)
        if found is None and left_s >= TAKES_S:
            view.say(f"calibrating {need.client} at {need.concurrency} in flight")
            began_s = time.monotonic()
            found = measure(need)
            known.append(found)
            left_s -= time.monotonic() - began_s
        if found is not None:
            facts[number] = replace(facts[number], calibration=found)
    directory.save_run()


def _need(facts: CellFacts, cell: Cell) -> Need:
    """What the client of a cell had to do; of an open loop the next power of two above the requests
    in flight on average."""
    concurrency = facts.load.concurrency
    if facts.load.rate:
        concurrency = int(2 ** math.ceil(math.log2(max(cell.in_flight or 1.0, 1.0))))
    gap_ms = cell.icl_ms.estimate("p50") if cell.icl_ms else None
    fastest_ms = max(FASTEST_GAP_MS, concurrency / MOST_EVENTS_PER_MS)
    gap_ms = min(max(gap_ms or 0.0, fastest_ms), max(SLOWEST_GAP_MS, fastest_ms))
    return Need(facts.client, concurrency, 2.0 ** round(math.log2(gap_ms), 1))


def _covering(need: Need, known: Sequence[Calibration]) -> Calibration | None:
    """The calibration of that very load, or of the lightest that is heavier and harmless."""
    its = [each for each in known if each.client == need.client]
    for each in its:
        if each.concurrency == need.concurrency and each.gap_ms == need.gap_ms:
            return each
    heavier = [
        each
        for each in its
        if each.concurrency >= need.concurrency
        and each.events_per_s >= need.events_per_s
        and max(*each.ttft_error_ms.values(), *each.itl_error_ms.values()) <= HARMLESS_MS
    ]
    return min(heavier, key=lambda each: each.events_per_s, default=None)


def measure(need: Need) -> Calibration:
    """Measure what a client is off by under that load, and keep it for this version of llmbench on
    this machine. It takes a few seconds."""
    script = Script(ttft_ms=20.0, itl_ms=need.gap_ms, output_tokens=16)
    result = run(need.client, need.concurrency, script, duration_s=REPLAY_S)
    return keep(result, need.gap_ms)


def keep(result: CalibrationRun, gap_ms: float) -> Calibration:
    """The calibration that came of a run with gaps of ``gap_ms``, which is stored."""
    ttft, itl = result.errors.ttft.error_ms, result.errors.itl.error_ms
    calibration = Calibration(
        client=result.client,
        concurrency=result.concurrency,
        gap_ms=gap_ms,
        events_per_s=result.tokens_per_s,
        ttft_error_ms={"p50": ttft["p50"], "p95": ttft["p99"], "p99": ttft["p99"]},
        itl_error_ms={"p50": itl["p50"], "p95": itl["p99"], "p99": itl["p99"]},
    )
    path = _folder() / f"{result.client}-{result.concurrency}-{gap_ms:.3g}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(calibration))
    except OSError:
        pass  # a cache that cannot be written costs the next run a few seconds
    return calibration


def _stored() -> list[Calibration]:
    """What this version of llmbench has been calibrated for on this machine."""
    found = []
    for path in sorted(_folder().glob("*.json")):
        with suppress(OSError, msgspec.DecodeError):
            found.append(msgspec.json.decode(path.read_bytes(), type=Calibration))
    return found


def _folder() -> Path:
    machine = host.describe()
    packages = [machine["packages"].get(client) for client in ("aiohttp", "openai")]
    key = (__version__, os.uname().nodename, machine["cpu"], machine["cores"], *packages)
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    return cache_folder() / "calibration" / name
