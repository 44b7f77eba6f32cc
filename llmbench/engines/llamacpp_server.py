"""The embedded engine's own process: llama.cpp's OpenAI-compatible server, through xllamacpp.

    python -m llmbench.engines.llamacpp_server --model FILE --parallel N --context TOKENS_PER_SLOT

Prints one line of JSON on stdout when it is ready, ``{"url", "load_s", "version", "ftype"}``, and
logs on stderr. It lives as long as its stdin is open: a parent that is killed takes it along (once
loading is over, if that is when it happens, since the library lets no other thread run before).
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit


def main() -> None:
    # A terminal's Ctrl-C is the parent's to handle: it may still want to read replies.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = threading.Thread(target=_leave_with_parent, daemon=True)
    parent.start()
    options = _options()
    # The library logs where it likes: keep stdout for the one line, and send the rest to the log.
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import xllamacpp

    params = _params(xllamacpp, options)
    began_s = time.monotonic()
    server = xllamacpp.Server(params)
    line = {
        "url": f"{server.listening_address}/v1",
        "load_s": round(time.monotonic() - began_s, 3),
        "version": _version(xllamacpp),
        "ftype": _ftype(server.listening_address),
    }
    with ready:
        print(json.dumps(line), file=ready)
    parent.join()


def _leave_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llamacpp_server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens a slot")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--alias")
    return parser.parse_args()


def _params(xllamacpp: Any, options: argparse.Namespace) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    if options.alias:
        params.model_alias = {options.alias}
    params.n_parallel = options.parallel
    params.n_ctx = options.parallel * options.context
    # Every prompt is computed afresh: a prefix found in a cache would look like a fast prefill.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.endpoint_metrics = True
    # Each connection holds a thread, and a stream's old one may linger while its next is opened.
    params.n_threads_http = 2 * options.parallel + 8
    if options.threads:
        params.cpuparams.n_threads = options.threads
        params.cpuparams_batch.n_threads = options.threads
    params.verbosity = 1
    return params


def _version(xllamacpp: Any) -> str:
    """``llama.cpp b11549 (xllamacpp 2026.10.11549)``.

    The build that the library states is 0 in some wheels; the version of xllamacpp ends in it too.
    """
    version = str(xllamacpp.__version__)
    build = getattr(xllamacpp, "BUILD_INFO", {}).get("build_number") or version.rpartition(".")[2]
    return f"llama.cpp b{build} (xllamacpp {version})"


def _ftype(address: str) -> str:
    """The weights' type as the server states it, such as ``Q4_K - Medium``; empty if it doesn't."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=10)
    try:
        connection.request("GET", "/v1/models")
        (model, *_) = json.load(connection.getresponse())["data"]
    finally:
        connection.close()
    return str((model.get("meta") or {}).get("ftype", ""))


if __name__ == "__main__":
    main()
