"""``llmbench doctor``: can this machine measure, and what would it take?

Each examination looks at one thing and returns what it found. None takes longer than a second but
those of targets, which are asked for a few replies.
"""

import argparse
import asyncio
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from llmbench import host
from llmbench.apis import APIS
from llmbench.cache import cache_folder
from llmbench.config import load_sweep
from llmbench.drive.clock import ANCILLARY_BYTES, Clock, stamp_segments
from llmbench.drive.limits import Limits
from llmbench.drive.proxy import way_to
from llmbench.drive.reach import Reached, reach
from llmbench.errors import UserError
from llmbench.flags import OF_A_REQUEST
from llmbench.records import Load, Target

GOOD, CANNOT_MEASURE, UNREACHABLE = 0, 4, 3
BUSY_SHARE = 0.2
WATCHED_S = 0.5
NAPS, NAP_S, LATE_MS = 200, 0.001, 2.0
SLOW_CLOCKS = ("hpet", "acpi_pm", "refined-jiffies")
FEW_FILES = 4096
LITTLE_DISK_GB = 2.0
ENGINES = {
    "llama.cpp": ("xllamacpp", "local"),
    "vLLM": ("vllm", "vllm"),
    "Transformers": ("transformers", "transformers"),
    "ONNX Runtime GenAI": ("onnxruntime_genai", "onnx"),
}
"""The module and the extra of each."""


class Finding(Struct, frozen=True):
    """What was found of a ``subject``; ``advice`` says what to do about it. ``info`` is neither
    good nor bad, ``note`` can bend some figures, and with ``bad`` none is true."""

    subject: str
    level: Literal["good", "info", "note", "bad"]
    said: str
    advice: str = ""


def run(args: argparse.Namespace) -> int:
    """Examine the machine, then the targets; say it all, and by the exit code what is bad."""
    from llmbench.report.doctor import render

    keys = ("target", "model", *OF_A_REQUEST)
    given = {key: vars(args)[key] for key in keys if vars(args).get(key)}
    settings = load_sweep(given | {"concurrency": [1]}, None) if args.target else None
    host.raise_file_limit()
    found = [each for examine in EXAMINATIONS for each in examine()]
    found += calibrations(forget=args.forget_calibrations)
    asked: list[Finding] = []
    if settings:
        for target in settings.targets():
            asked += [*way(target), *asyncio.run(answers(target, settings.loads()))]
    if args.format == "json":
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found + asked)) + b"\n")
    else:
        sys.stdout.write(render(found + asked))
    if any(each.level == "bad" for each in asked):
        return UNREACHABLE
    return CANNOT_MEASURE if any(each.level == "bad" for each in found) else GOOD


# ── the machine ──────────────────────────────────────────────────────────────────────────────────


def stamps() -> Iterator[Finding]:
    """Does the kernel stamp what comes from a socket, and does the stamp lie where it must?"""
    clock = Clock()
    try:
        between = _stamped(clock)
    finally:
        clock.close()
    if between is None:
        yield Finding(
            "stamps",
            "bad" if sys.platform == "linux" else "note",
            "the kernel stamps nothing: latencies are taken when this process reads",
            "measure on Linux, 64 bits; ± is not known without a calibration",
        )
    elif not between:
        yield Finding(
            "stamps",
            "bad",
            "the kernel's stamps do not lie between the sending and the reading",
            "is a clock being set? look at chronyc tracking or timedatectl",
        )
    else:
        yield Finding("stamps", "good", "the kernel stamps each segment as it comes")


def _stamped(clock: Clock) -> bool | None:
    """Whether a stamp on the loopback lies between sending and reading; ``None`` without one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = socket.create_connection(listener.getsockname())
        sender, _ = listener.accept()
        with receiver, sender:
            if not stamp_segments(receiver):
                return None
            time.sleep(0.05)  # the kernel turns stamping on some time after it was asked to
            sent_ns = time.monotonic_ns()
            sender.sendall(b"x")
            _, ancillary, _, _ = receiver.recvmsg(16, ANCILLARY_BYTES)
            read_ns = time.monotonic_ns()
    if not ancillary:
        return None
    (stamp_ns,) = clock.from_kernel(ancillary[0][2])
    return bool(sent_ns - 50_000 <= stamp_ns <= read_ns + 50_000)


def clock_source() -> Iterator[Finding]:
    """A clock that is read through a device takes microseconds a look."""
    try:
        path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        source = path.read_text().strip()
    except OSError:
        return
    slow = source in SLOW_CLOCKS
    advice = "boot with clocksource=tsc, if the machine's is stable" if slow else ""
    yield Finding("clock", "note" if slow else "good", source + (", slow" if slow else ""), advice)


def cores() -> Iterator[Finding]:
    """How many there are, how many are allowed, and how much of them something else takes."""
    machine = host.describe()
    count, limit = machine["cores"], machine["cpu_limit"]
    said = f"{count} of {machine['cores_total']}, {machine['cpu']}"
    if count == 1:
        yield Finding("cores", "note", said, "a server on this machine would share it")
    else:
        yield Finding("cores", "good", said)
    if limit is not None and limit < count:
        yield Finding(
            "cores",
            "note",
            f"the control group allows {limit:g} cores' worth of time",
            "its throttling stops this process for milliseconds: raise cpu.max",
        )
    if (governor := machine["governor"]) not in (None, "performance", "schedutil"):
        yield Finding(
            "cores", "note", f"governor {governor}", "cpupower frequency-set -g performance"
        )
    busy = _busy_share()
    if busy is not None:
        loud = busy > BUSY_SHARE
        yield Finding(
            "load",
            "note" if loud else "good",
            f"{busy:.0%} of the cores are in use",
            "something else runs here: end it, or measure from another machine" if loud else "",
        )


def _busy_share() -> float | None:
    """The share of all cores' time that is not idle, over half a second."""
    before = _cpu_times()
    time.sleep(WATCHED_S)
    after = _cpu_times()
    if not before or not after or sum(after) == sum(before):
        return None
    idle = (after[3] + after[4]) - (before[3] + before[4])
    return 1 - idle / (sum(after) - sum(before))


def _cpu_times() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal of all cores, in ticks (proc(5))."""
    try:
        return [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return []


def waking() -> Iterator[Finding]:
    """How late this process wakes from naps of 1 ms: an open loop sends that late."""
    late_ms = []
    for _ in range(NAPS):
        due_s = time.perf_counter() + NAP_S
        time.sleep(NAP_S)
        late_ms.append((time.perf_counter() - due_s) * 1e3)
    p99 = sorted(late_ms)[int(NAPS * 0.99) - 1]
    late = p99 > LATE_MS
    yield Finding(
        "waking",
        "note" if late else "good",
        f"p99 {p99:.2f} ms late",
        "requests of an open loop leave that late; a quieter machine, or one of its own"
        if late
        else "",
    )


def files() -> Iterator[Finding]:
    """A stream is a socket, and a socket is a file."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most >= FEW_FILES:
        yield Finding("open files", "good", f"{most:,} may be open: that many streams, less a few")
    else:
        yield Finding(
            "open files", "note", f"{most:,} may be open", "more streams: ulimit -Hn 65536"
        )


def disk() -> Iterator[Finding]:
    """Where run directories go by default."""
    folder = Path("results") if Path("results").is_dir() else Path()
    free_gb = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        yield Finding("disk", "note", f"{folder.resolve()} cannot be written", "give --out DIR")
    elif free_gb < LITTLE_DISK_GB:
        advice = "10 million tokens take some 4 GB; give --out DIR"
        yield Finding("disk", "note", f"{free_gb:.1f} GB free in {folder.resolve()}", advice)
    else:
        yield Finding("disk", "good", f"{free_gb:,.0f} GB free in {folder.resolve()}")


def gpus() -> Iterator[Finding]:
    found = host.describe()["gpus"]
    for gpu in found:
        yield Finding(
            "GPU", "good", f"{gpu['name']}, {gpu['memory_gb']} GB, driver {gpu['driver']}"
        )
    if not found:
        seen = shutil.which("nvidia-smi") is not None and find_spec("pynvml") is None
        advice = "pip install 'llmbench[gpu]' to see it, and its energy" if seen else ""
        yield Finding("GPU", "note" if seen else "info", "none is seen", advice)


def engines() -> Iterator[Finding]:
    """What is installed beside llmbench; nothing is imported, for that takes seconds."""
    for name, (module, extra) in ENGINES.items():
        there = find_spec(module) is not None
        said = "installed" if there else f"not here; pip install 'llmbench[{extra}]'"
        yield Finding(name, "good" if there else "info", said)


def keys() -> Iterator[Finding]:
    """Whether the usual variable is set; never what it holds."""
    there = "set" if os.environ.get("OPENAI_API_KEY") else "not set; key_env=NAME names another"
    yield Finding("API key", "info", f"OPENAI_API_KEY is {there}")


EXAMINATIONS: tuple[Callable[[], Iterator[Finding]], ...] = (
    stamps,
    clock_source,
    cores,
    waking,
    files,
    disk,
    gpus,
    engines,
    keys,
)


def calibrations(*, forget: bool) -> Iterator[Finding]:
    """Those in the cache; one that was taken on a busy day widens every ± until it is forgotten."""
    folder = cache_folder() / "calibration"
    stored = sorted(folder.rglob("*.json")) if folder.is_dir() else []
    if not forget:
        advice = "llmbench calibrate measures how far off this machine's stamps are"
        if stored:
            advice = "--forget-calibrations measures them again"
        yield Finding("calibrations", "info", f"{len(stored)} in {folder}", advice)
        return
    try:
        for file in stored:
            file.unlink(missing_ok=True)
    except OSError as problem:
        raise UserError(f"--forget-calibrations: {file}: {problem.strerror}") from None
    yield Finding("calibrations", "info", f"{len(stored)} forgotten in {folder}")


# ── targets ──────────────────────────────────────────────────────────────────────────────────────


def way(target: Target) -> Iterator[Finding]:
    """Which proxy of the environment a URL is reached through; one that cannot be used is said
    when the target is asked."""
    with suppress(UserError):
        if not target.engine and (said := way_to(target.url)):
            yield Finding(target.name, "info", said)


async def answers(target: Target, loads: list[Load]) -> list[Finding]:
    """Whether a target answers, and how it is to be asked."""
    began_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="llmbench-") as folder:
            reaching = reach(
                target,
                loads,
                salt="doctor",
                limits=Limits(60.0, first_token_s=30.0),
                folder=Path(folder),
                progress=False,
                say=lambda line: print(line, file=sys.stderr),
            )
            async with reaching as reached:
                said = await _asked(reached, began_s)
                return [Finding(target.name, "good", said), _fields(reached)]
    except UserError as problem:
        return [Finding(target.name, "bad", str(problem).removeprefix(f"{target.name}: "))]


def _fields(reached: Reached) -> Finding:
    """Which fields requests to a target will have, and which it has refused."""
    dialect, richest = reached.dialect, APIS[reached.target.api].dialects[0]
    refused = [name for name in richest.leaves if name not in dialect.leaves]
    if dialect.limit != richest.limit:
        refused.insert(0, richest.limit)
    said = f"sends {dialect.described()}" + (f"; refused: {', '.join(refused)}" if refused else "")
    return Finding(f"{reached.target.name} fields", "info", said)


async def _asked(reached: Reached, began_s: float) -> str:
    counted = await reached.ask.count(32)
    facts = [
        f"answers as {reached.target.model or 'its only model'}",
        f"after {time.monotonic() - began_s:.1f} s",
        "exact lengths" if reached.dialect.exact_length else "replies stop where they like",
        "counts tokens" if counted is not None else "does not count tokens",
    ]
    if reached.target.provenance and reached.target.provenance.engine:
        facts.insert(0, reached.target.provenance.engine)
    return ", ".join(facts)
