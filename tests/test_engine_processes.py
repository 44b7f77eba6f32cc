"""Processes of engines: what is started is seen to its end, whatever becomes of who started it."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_S, ROOT, Llmbench, until, valid

from llmbench.engines import guard
from llmbench.engines.commands import Command
from llmbench.engines.process import EngineProcess
from llmbench.engines.server import ManagedServer, free_port
from llmbench.errors import Unmeasurable, UserError

STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); "

# Starts a daemon (forked twice, in a session of its own), which prints its id.
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
os.wait()
"""

SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == os.environ["HEALTH"] else 503)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def short_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guard, with less patience: it runs as a script, so this is a copy of it."""
    code = Path(guard.__file__).read_text()
    quick, found = re.subn(r"(?m)^GRACE_S = .*$", "GRACE_S = 0.3", code)
    assert found == 1
    copy = tmp_path / "guard.py"
    copy.write_text(quick)
    monkeypatch.setattr(guard, "__file__", str(copy))
    return copy


def python(code: str, log: Path) -> EngineProcess:
    return EngineProcess([sys.executable, "-c", code], {}, log)


async def logged(log: Path) -> str:
    """The first line of ``log``, once it is there."""
    async with asyncio.timeout(PATIENCE_S):
        while "\n" not in log.read_text():
            await asyncio.sleep(0.02)
    return log.read_text().splitlines()[0]


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.parametrize("code", [0, 7, 224, 255])
async def test_a_command_that_ends_by_itself(tmp_path: Path, code: int) -> None:
    process = python(f"print('all done'); raise SystemExit({code})", tmp_path / "log")
    await process.start()
    await process.ended()
    assert process.exited
    assert process.process is not None
    assert process.process.returncode == code
    assert process.why_it_ended() == "all done"
    await process.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
async def test_the_signal_that_ended_it_is_named(tmp_path: Path, number: signal.Signals) -> None:
    process = python(f"import os; os.kill(os.getpid(), {int(number)})", tmp_path / "log")
    await process.start()
    await process.ended()
    assert process.why_it_ended() == f"killed by {number.name}; it logged nothing"
    await process.stop()


async def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    process = EngineProcess(["/no/such/engine"], {}, tmp_path / "log")
    await process.start()
    await process.ended()
    assert process.why_it_ended() == "cannot run /no/such/engine: No such file or directory"
    await process.stop()


async def test_an_earlier_log_is_kept_and_not_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("ValueError: of an earlier engine\n")
    process = python("print('mine')", log)
    await process.start()
    await process.ended()
    assert process.why_it_ended() == "mine"
    assert log.read_text() == "ValueError: of an earlier engine\nmine\n"
    await process.stop()


async def test_a_command_that_ignores_sigterm_is_killed(tmp_path: Path, short_grace: Path) -> None:
    process = python(STUBBORN + "time.sleep(60)", tmp_path / "log")
    started = await process.start()
    await logged(tmp_path / "log")
    pids = [started.pid, *guard.descendants(started.pid)]
    assert len(pids) == 2
    assert (process.memory_bytes() or 0) > 1_000_000
    await process.stop()
    assert started.returncode == -signal.SIGKILL
    assert not any(map(alive, pids))


@pytest.mark.parametrize("rest", ["time.sleep(60)", ""], ids=["stopped", "ends by itself"])
async def test_a_daemon_dies_with_its_command(tmp_path: Path, short_grace: Path, rest: str) -> None:
    process = python(DAEMON + rest, tmp_path / "log")
    await process.start()
    daemon = int(await logged(tmp_path / "log"))
    if rest:
        assert alive(daemon)
    else:
        await process.ended()
    await process.stop()
    assert not alive(daemon)


def test_a_killed_parent_leaves_nothing(tmp_path: Path, short_grace: Path) -> None:
    log = tmp_path / "log"
    script = f"""
import asyncio, sys
from pathlib import Path
from llmbench.engines import guard
from llmbench.engines.process import EngineProcess
guard.__file__ = {str(short_grace)!r}
async def main():
    log = Path({str(log)!r})
    process = EngineProcess([sys.executable, "-c", {DAEMON + "time.sleep(60)"!r}], {{}}, log)
    started = await process.start()
    while not log.read_text():
        await asyncio.sleep(0.02)
    print(started.pid, *guard.descendants(started.pid), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        pids = [int(each) for each in parent.stdout.readline().split()]
        assert len(pids) == 3  # the guard, its command, and the command's daemon
        assert int(log.read_text()) in pids
        assert all(map(alive, pids))
        parent.kill()
    until(lambda: not any(map(alive, pids)))


def server(code: str, log: Path, health: str = "/health") -> ManagedServer:
    port = free_port()
    command = Command(
        argv=[sys.executable, "-c", code, str(port)],
        env={"HEALTH": "${WHERE_HEALTH_IS}"},
        health=health,
        model="m",
    )
    return ManagedServer("mine", command, f"http://127.0.0.1:{port}/v1", log, progress=False)


async def test_a_server_is_waited_for_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE_HEALTH_IS", "/health")
    async with server(SERVER, tmp_path / "log") as running:
        assert running.ready_s > 0
        assert running.process.process is not None
        pids = [running.process.process.pid]
        pids += guard.descendants(pids[0])
        assert len(pids) == 2
    assert not any(map(alive, pids))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('loading'); raise SystemExit('the port is taken')", "the port is taken"),
        ("print('loading'); raise ValueError('bad weights')", "bad weights"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", "killed by SIGKILL; it logged"),
    ],
)
async def test_a_server_that_dies_before_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    monkeypatch.setenv("WHERE_HEALTH_IS", "/")
    with pytest.raises(Unmeasurable) as failure:
        async with server(code, tmp_path / "log"):
            pass
    line = str(failure.value)
    assert line.startswith(f"mine: ended before it was ready: {why}")
    assert line.endswith(f" (log: {tmp_path / 'log'})")
    assert "\n" not in line


async def test_a_server_that_is_never_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmbench.engines.server.READY_TIMEOUT_S", 0.5)
    monkeypatch.setenv("WHERE_HEALTH_IS", "/elsewhere")
    before = guard.descendants(os.getpid())
    with pytest.raises(Unmeasurable, match=r"mine: not ready within 0\.5 s: "):
        async with server(SERVER, tmp_path / "log"):
            pass
    assert guard.descendants(os.getpid()) == before


def test_a_variable_that_is_not_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mine: the environment variable WHERE_HEALTH_IS"):
        server(SERVER, tmp_path / "log")


SECRET = "s3cret-value-of-the-variable"


def test_a_sweep_of_a_command_of_ones_own(
    run_llmbench: Llmbench, run_dir: Path, tmp_path: Path
) -> None:
    """``{port}`` and ``${NAME}`` are filled in for the command, and never stored."""
    # It serves only if it was told the secret, on the command line and in its environment.
    code = f"""
import os, sys
if not os.environ["TOLD"] == sys.argv[1] == {SECRET[::-1]!r}[::-1]:
    sys.exit("not told the secret")
os.execv(sys.executable, [sys.executable, "-m", "llmbench", "truth-server", *sys.argv[2:]])
"""
    (tmp_path / "serve.py").write_text(code)
    config = tmp_path / "mine.toml"
    config.write_text(f"""
concurrency = 1
requests = 3
calibrate = false
prompt_tokens = 24
output_tokens = 4
warmup = 0

[[target]]
name = "mine"
command = [{sys.executable!r}, "serve.py", "${{SECRET_VAR}}", "--port", "{{port}}"]
health = "/v1/models"
env = {{ TOLD = "${{SECRET_VAR}}" }}
""")
    command = ("sweep", "--config", config, "--out", run_dir, "--format", "json")
    done = valid(run_llmbench(*command, env={"SECRET_VAR": SECRET}), run_dir)
    (cell,) = done.cells
    assert (cell["target"], cell["requests"]["ok"]) == ("mine", 3)
    stored = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert b"${SECRET_VAR}" in stored[run_dir / "run.json"]
    for path, content in stored.items():
        assert SECRET.encode() not in content, path
    assert SECRET not in done.out + done.err
