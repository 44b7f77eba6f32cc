"""What another Python has installed."""

import json
import subprocess
import sys
from collections.abc import Sequence

from llmbench.errors import UserError

_SCRIPT = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """The versions of those ``packages`` that ``python`` (this one by default) has."""
    command = [python or sys.executable, "-c", _SCRIPT, *packages]
    try:
        said = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as problem:
        raise UserError(f"python {python}: cannot be run: {problem}") from None
    found: dict[str, str] = json.loads(said.stdout)
    return found
