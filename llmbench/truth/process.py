"""The truth server as a process of its own, for tests, benchmarks and calibration."""

import http.client
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

import msgspec

from llmbench.truth.flags import flags_for
from llmbench.truth.log import Reply, parse_log
from llmbench.truth.script import Script


class TruthServer:
    """A context manager: the server runs inside the ``with`` block.

    It ends with the block, or with this process, whatever happens to that. ``tls`` names a
    certificate and its key. Raises ``RuntimeError`` with the server's own words if it is not ready
    after ``timeout_s``.
    """

    url: str

    def __init__(
        self,
        script: Script | None = None,
        *,
        port: int = 0,
        log_path: Path | None = None,
        tls: tuple[str, str] | None = None,
        timeout_s: float = 20.0,
    ) -> None:
        self.script = script or Script()
        self._timeout_s = timeout_s
        self._flags = [*flags_for(self.script), f"--port={port}", "--watch-stdin"]
        if log_path:
            self._flags.append(f"--log={log_path}")
        if tls:
            self._flags += [f"--tls-cert={tls[0]}", f"--tls-key={tls[1]}"]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "llmbench.truth.server", *self._flags]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            self._process = process
            self.url = self._await_ready(process, errors)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _await_ready(self, process: subprocess.Popen[str], errors: IO[str]) -> str:
        assert process.stdout is not None
        timer = threading.Timer(self._timeout_s, process.kill)
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        announced, _, url = line.strip().partition("listening on ")
        if announced or not url:
            self.stop()
            errors.seek(0)
            raise RuntimeError(f"the truth server did not start: {errors.read().strip() or line}")
        return url

    def stop(self) -> int:
        """Stop the server, and return its exit code; harmless if it has stopped."""
        process = self._running
        if process.stdin and not process.stdin.closed:
            process.stdin.close()
        try:
            code = process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if process.stdout:
            process.stdout.close()
        return code

    @property
    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("the truth server runs inside its with block only")
        return self._process

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._running.pid

    def log(self, since: int = 0) -> list[Reply]:
        """The replies that have ended, from number ``since`` on, in the order of their ends."""
        return parse_log(self._ask("GET", f"/truth/log?since={since}"))

    def reset(self) -> None:
        """Make the server forget its log."""
        self._ask("POST", "/truth/reset")

    def cpu_s(self) -> float:
        """The processor time that the server has used, in seconds."""
        stats = msgspec.json.decode(self._ask("GET", "/truth/stats"), type=dict[str, float])
        return stats["cpu_s"]

    def _ask(self, method: str, path: str) -> bytes:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            # Our own child on this machine, and whoever tests it may have made the certificate.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=60, context=context
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        try:
            connection.request(method, path)
            return connection.getresponse().read()
        finally:
            connection.close()
