"""What the figures come from: the machine, and the libraries and files behind each target."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmbench.records import Provenance, Target
from llmbench.report.table import wrapped

SHORT_HASH = 12
MOST_FILES = 3


def render_provenance(host: Mapping[str, Any], targets: Sequence[Target], style: str) -> str:
    """What stands below a table: the machine, and in Markdown what is behind each target too."""
    lines = [machine_line(host)]
    if style == "markdown":
        return "".join(f"- {line}\n" for line in [*lines, *provenance_lines(targets)])
    return "".join(wrapped(line) + "\n" for line in lines if line)


def machine_line(host: Mapping[str, Any]) -> str:
    """The machine in one line; what an older run did not note is left out."""
    parts = [
        _cpu(host),
        f"{host['memory_gb']:.0f} GB" if host.get("memory_gb") else "",
        *_gpus(host.get("gpus") or []),
        str(host.get("system") or ""),
        f"Python {host['python']}" if host.get("python") else "",
    ]
    return ", ".join(filter(None, parts))


def provenance_lines(targets: Sequence[Target]) -> list[str]:
    """A line for each target of which something is known beyond its name: its engine, libraries,
    the largest files of its model with the start of their SHA-256, and the revision."""
    return [
        f"{target.name}: {'; '.join(said)}"
        for target in targets
        if target.provenance is not None
        if (said := list(filter(None, _said(target.provenance))))
    ]


def _cpu(host: Mapping[str, Any]) -> str:
    cores, total = host.get("cores"), host.get("cores_total")
    counted = f"{cores} of {total}" if total and total != cores else f"{cores or ''}"
    mhz, limit = host.get("cpu_mhz"), host.get("cpu_limit")
    about = [
        f"{mhz / 1e3:.1f} GHz" if mhz else "",
        f"governor {host['governor']}" if host.get("governor") else "",
        f"limited to {limit:g} at once" if limit is not None and limit != cores else "",
    ]
    named = f"{counted} {'core' if counted == '1' else 'cores'} of {host.get('cpu') or 'a CPU'}"
    details = ", ".join(filter(None, about))
    return (named if counted else str(host.get("cpu") or "")) + (f" ({details})" if details else "")


def _gpus(gpus: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for words, count in Counter(map(_gpu, gpus)).items():
        yield f"{count} × {words}"


def _gpu(gpu: Mapping[str, Any]) -> str:
    about = [
        f"{gpu['memory_gb']:.0f} GB" if gpu.get("memory_gb") else "",
        f"driver {gpu['driver']}" if gpu.get("driver") else "",
        f"CUDA {gpu['cuda']}" if gpu.get("cuda") else "",
        f"limit {gpu['power_limit_w']:.0f} W" if gpu.get("power_limit_w") else "",
    ]
    details = ", ".join(filter(None, about))
    return f"{gpu.get('name') or 'a GPU'}" + (f" ({details})" if details else "")


def _said(provenance: Provenance) -> Iterator[str]:
    yield provenance.engine
    libraries = (f"{name} {version}" for name, version in provenance.versions.items())
    yield ", ".join(each for each in libraries if each not in provenance.engine)
    files = sorted(provenance.files, key=lambda file: -file.bytes)
    told = [
        f"{file.name} {(file.sha256 or 'not hashed')[:SHORT_HASH]}" for file in files[:MOST_FILES]
    ]
    more = len(files) - MOST_FILES
    yield ", ".join(told) + (f" and {more} more files" if more > 0 else "")
    yield f"revision {provenance.revision[:SHORT_HASH]}" if provenance.revision else ""
