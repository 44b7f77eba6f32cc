"""The truth server: an OpenAI-compatible server that logs the true send time of every event.

One process, one thread. ``python -m llmbench.truth.server --help`` lists what it can be told.
"""

import argparse
import asyncio
import gc
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from llmbench.host import raise_file_limit
from llmbench.truth import flags
from llmbench.truth.connection import enable_stamps
from llmbench.truth.log import Log
from llmbench.truth.pacer import SLICE_NS, fine_loop
from llmbench.truth.script import Script
from llmbench.truth.service import TruthService

_IDLE_NS: Final = 500_000
_BACKLOG: Final = 4096


async def serve(
    script: Script,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    log_path: Path | None = None,
    tls: tuple[str, str] | None = None,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until cancelled; ``ready`` is told the URL. ``tls`` names a certificate and its key.

    Port 0 takes a free one. Raises ``ValueError`` if the script's ``api_key_env`` is not set,
    ``OSError`` if the address, the log or the certificate cannot be used.
    """
    key = os.environ.get(script.api_key_env, "")
    if script.api_key_env and not key:
        raise ValueError(f"--api-key-env: the variable {script.api_key_env} is not set")
    context = _tls_context(*tls) if tls else None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = (host, port)
    with (
        Log(log_path) as log,
        socket.create_server(address, family=family, backlog=_BACKLOG) as listener,
    ):
        listener.setblocking(False)
        enable_stamps(listener)  # takes effect a little later, so not with the first connection
        service = TruthService(script, log, key)
        service.listen(listener, context)
        try:
            ready(_url(listener, host, context))
            while True:
                await asyncio.sleep(0.2)
                _write_while_idle(service, log)
        finally:
            service.loop.remove_reader(listener)
            service.close()


def _write_while_idle(service: TruthService, log: Log) -> None:
    """Write the log for a moment, as long as no send is near."""
    stop = time.monotonic_ns() + SLICE_NS
    while time.monotonic_ns() < stop and service.pacer.idle_ns() > _IDLE_NS:
        if not log.write_one():
            return


def _tls_context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def _url(listener: socket.socket, host: str, context: ssl.SSLContext | None) -> str:
    scheme = "https" if context else "http"
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{listener.getsockname()[1]}"


def run(
    script: Script,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    log_path: Path | None = None,
    tls: tuple[str, str] | None = None,
    watch_stdin: bool = False,
) -> None:
    """Serve in this process until SIGINT, SIGTERM or, with ``watch_stdin``, the end of stdin.

    Prints ``listening on URL`` when ready. Raises as ``serve`` does.
    """
    raise_file_limit()
    # Nothing here makes cycles that outlive a connection, and a collection would delay sends.
    gc.collect()
    gc.freeze()
    gc.disable()
    with asyncio.Runner(loop_factory=fine_loop) as runner:
        runner.run(_serve_until_told(script, host, port, log_path, tls, watch_stdin))


async def _serve_until_told(
    script: Script,
    host: str,
    port: int,
    log_path: Path | None,
    tls: tuple[str, str] | None,
    watch_stdin: bool,
) -> None:
    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(
        serve(script, host, port, log_path=log_path, tls=tls, ready=_announce)
    )

    def stop() -> None:
        with suppress(RuntimeError):  # the loop may be gone by the second signal
            loop.call_soon_threadsafe(serving.cancel)

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop())
    if watch_stdin:
        threading.Thread(target=_await_eof, args=(stop,), daemon=True).start()
    with suppress(asyncio.CancelledError):
        await serving


def _announce(url: str) -> None:
    print(f"listening on {url}", flush=True)


def _await_eof(then: Callable[[], None]) -> None:
    # Not sys.stdin: a thread that holds its lock would break the interpreter's exit.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    then()


def run_from(args: argparse.Namespace) -> int:
    """Run as the flags of ``add_flags`` and ``add_server_flags`` say; the exit code."""
    try:
        if bool(args.tls_cert) != bool(args.tls_key):
            raise ValueError("--tls-cert and --tls-key go together")
        run(
            flags.script_from(args),
            args.host,
            args.port,
            log_path=Path(args.log) if args.log else None,
            tls=(args.tls_cert, args.tls_key) if args.tls_cert else None,
            watch_stdin=args.watch_stdin,
        )
    except (ValueError, OSError) as error:
        print(f"truth-server: {error}", file=sys.stderr)
        return 2
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of ``python -m llmbench.truth.server``."""
    parser = argparse.ArgumentParser(
        prog="truth-server", description=(__doc__ or "").split("\n")[0]
    )
    flags.add_flags(parser)
    flags.add_server_flags(parser)
    return run_from(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
