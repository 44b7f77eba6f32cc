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
from pathlib import Path

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


def for_cell(facts: CellFacts, concurrency: int, gap_ms: float | None) -> Calibration:
    """What the client of a cell is off by on this machine, at its concurrency and event rate.

    ``concurrency`` is how many requests were in flight, ``gap_ms`` the cell's median gap between
    events. A replay lasts a few seconds and is kept in
    the cache, for this version on this machine. A slow cell is replayed faster than it was, so that
    enough events come, and that is no easier on the client.
    """
    fastest_ms = max(FASTEST_GAP_MS, concurrency / MOST_EVENTS_PER_MS)
    gap_ms = min(max(gap_ms or 0.0, fastest_ms), max(SLOWEST_GAP_MS, fastest_ms))
    gap_ms = 2.0 ** round(math.log2(gap_ms), 1)
    path = _cache_path(facts.client, concurrency, gap_ms)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except (OSError, msgspec.DecodeError):
        pass
    script = Script(ttft_ms=20.0, itl_ms=gap_ms, output_tokens=16)
    result = run(facts.client, concurrency, script, duration_s=REPLAY_S)
    ttft, itl = result.errors.ttft.error_ms, result.errors.itl.error_ms
    calibration = Calibration(
        client=facts.client,
        concurrency=concurrency,
        events_per_s=result.tokens_per_s,
        ttft_error_ms={"p50": ttft["p50"], "p95": ttft["p99"], "p99": ttft["p99"]},
        itl_error_ms={"p50": itl["p50"], "p95": itl["p99"], "p99": itl["p99"]},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(calibration))
    except OSError:
        pass  # a cache that cannot be written costs the next run a few seconds
    return calibration


def calibrate_cells(directory: RunDirectory, cells: Sequence[Cell], view: View) -> None:
    """Add a calibration to the facts of each cell that has figures, and store them."""
    known = directory.run.cells
    for number, (facts, cell) in enumerate(zip(known, cells, strict=True)):
        if cell.requests.ok and facts.client != "engine":  # in process there is no wire
            concurrency = _in_flight(facts, cell)
            view.say(f"calibrating {facts.client} at {concurrency} in flight")
            gap_ms = cell.icl_ms.p50 if cell.icl_ms else None
            known[number] = replace(facts, calibration=for_cell(facts, concurrency, gap_ms))
    directory.save_run()


def _in_flight(facts: CellFacts, cell: Cell) -> int:
    """The requests in flight; of an open loop the next power of two above its average."""
    if not facts.load.rate:
        return facts.load.concurrency
    return int(2 ** math.ceil(math.log2(max(cell.in_flight or 1.0, 1.0))))


def _cache_path(client: str, concurrency: int, gap_ms: float) -> Path:
    machine = host.describe()
    key = (
        __version__,
        client,
        concurrency,
        gap_ms,
        os.uname().nodename,
        machine["cpu"],
        machine["cores"],
        machine["packages"].get(client),
    )
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    return cache_folder() / "calibration" / f"{client}-{concurrency}-{name}.json"
