"""Run a command, and see it and all that it starts end, whatever becomes of llmbench.

    python guard.py WATCHED COMMAND ARGUMENT…

``WATCHED`` is the reading end of a pipe whose other end llmbench holds. The command ends when that
is closed (llmbench is done, or was killed), when this process is sent SIGTERM, or by itself. The
exit code is the command's, and so is the signal that ended it. Standard library only: another
interpreter may run it.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE_S = 30.0  # vLLM under load takes this long to give its shared memory back
LOOK_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36  # Linux: who loses its parent among our descendants becomes our child


def main() -> int:
    watched, command = int(sys.argv[1]), sys.argv[2:]
    _adopt_orphans()
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is llmbench's to handle
    try:
        process = subprocess.Popen(command, start_new_session=True)
    except OSError as problem:
        print(f"cannot run {command[0]}: {problem.strerror}", file=sys.stderr, flush=True)
        return 127
    _wait(process, watched, reads)
    _end_all(process)
    if process.returncode < 0:
        _end_by(-process.returncode)
    return process.returncode


def _end_by(number: int) -> None:
    """End as the command did: an exit code in place of a signal could be one of its own."""
    with suppress(OSError):  # SIGKILL has no handler to reset
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _wait(process: "subprocess.Popen[bytes]", watched: int, signals: int) -> None:
    """Until the command has ended, or is to end."""
    while True:
        ready, _, _ = select.select([watched, signals], [], [])
        if watched in ready or signal.SIGTERM in os.read(signals, 64):
            return
        if process.poll() is not None:
            return


def _end_all(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM for the command's group, and SIGKILL for whoever is left of its descendants."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + GRACE_S
    while time.monotonic() < deadline_s and _living(process):
        time.sleep(LOOK_S)
    while left := _living(process):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_S)


def _living(process: "subprocess.Popen[bytes]") -> list[int]:
    """The command and its descendants that have not ended; those that have are buried."""
    process.poll()
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return descendants(os.getpid()) or ([process.pid] if process.poll() is None else [])


def descendants(root: int) -> list[int]:
    """The processes below ``root``, as far as /proc tells."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # pid (name) state parent …; a name may hold spaces and brackets
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
