"""llama.cpp's OpenAI-compatible server, through xllamacpp, in a process of its own.

    python llamacpp_server.py --model FILE --port N --parallel N --context TOKENS_PER_SLOT

Needs xllamacpp and the standard library, so that another interpreter may run it. It serves until it
is ended.
"""

import argparse
import signal
import threading
from typing import Any


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is llmbench's to handle
    # The library may sit in native code for as long as it loads: let SIGTERM end it at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    options = _options()

    import xllamacpp

    server = xllamacpp.Server(_params(xllamacpp, options))
    print(f"listening on {server.listening_address}", flush=True)
    threading.Event().wait()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llamacpp_server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens a slot")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--alias", required=True)
    return parser.parse_args()


def _params(xllamacpp: Any, options: argparse.Namespace) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.port = options.port
    params.n_parallel = options.parallel
    params.n_ctx = options.parallel * options.context
    # Every prompt is computed afresh: a prefix found in a cache would look like a fast prefill.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.endpoint_metrics = True
    # Each connection holds a thread, and a stream's old one may linger while its next is opened.
    # An open loop has as many connections as it needs.
    params.n_threads_http = max(2 * options.parallel + 8, 256)
    if options.threads:
        params.cpuparams.n_threads = options.threads
        params.cpuparams_batch.n_threads = options.threads
    params.verbosity = 1
    return params


if __name__ == "__main__":
    main()
