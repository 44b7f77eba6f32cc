"""``python …/llmbench/hosts ENGINE``: load an engine and answer calls until stdin ends."""

import importlib
import sys
import types
from pathlib import Path

ENGINES = ("llamacpp", "onnx", "transformers", "vllm")

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose transformers.py is not the library
    # This interpreter need not have llmbench: the package is where this file is.
    package = types.ModuleType("llmbench")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["llmbench"] = package
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in ENGINES:
        sys.exit(f"usage: python {Path(__file__).parent} {{{','.join(ENGINES)}}}")
    protocol = importlib.import_module("llmbench.hosts.protocol")
    protocol.serve(importlib.import_module(f"llmbench.hosts.{name}").load)
