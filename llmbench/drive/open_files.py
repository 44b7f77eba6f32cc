"""How many streams a process can have: each is a socket, and a socket is an open file."""

import math

from llmbench.config import Sweep
from llmbench.drive.workers import how_many
from llmbench.errors import UserError
from llmbench.host import raise_file_limit
from llmbench.targets import IN_PROCESS

FOR_THE_REST = 64
"""Open files beside the streams'."""


def check_open_files(sweep: Sweep) -> None:
    """Raise ``UserError`` where a process of ``sweep`` may not open as many files as it needs."""
    allowed = raise_file_limit()
    if allowed is None or all(target.engine in IN_PROCESS for target in sweep.targets()):
        return
    load = max(sweep.loads(), key=lambda each: each.concurrency)
    workers = how_many(sweep.workers, load)
    needed = math.ceil(load.concurrency / workers) + FOR_THE_REST
    if not load.concurrency or needed <= allowed:
        return
    who = "this process" if workers == 1 else f"each of {workers} workers"
    room = allowed - FOR_THE_REST
    fewer = f" or use --workers {math.ceil(load.concurrency / room)}" if room > 0 else ""
    raise UserError(
        f"{_flag(sweep)} {load.concurrency}: {who} may open {allowed:,} files, one a stream; "
        f"raise it (ulimit -n {_power_of_two(2 * needed)}){fewer}"
    )


def _flag(sweep: Sweep) -> str:
    """What the user gave the largest concurrency by."""
    if sweep.search == "concurrency":
        return "--most"
    return "--max-concurrency" if sweep.request_rate else "--concurrency"


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
