"""What each target is and what it took to load, apart from how fast it is."""

from collections.abc import Iterator, Sequence

from llmbench.records import Cell
from llmbench.report.comparison import several_targets


def target_lines(cells: Sequence[Cell]) -> list[str]:
    """One line a target: engine, model, precision; where known, its loading, disk and memory.

    A single target has one only where there is something to say of its loading.
    """
    by_target: dict[str, list[Cell]] = {}
    for cell in cells:
        by_target.setdefault(cell.target, []).append(cell)
    lines = []
    for name, its in by_target.items():
        loading = ", ".join(_loading(its))
        if loading or several_targets(cells):
            parts = [", ".join(_identity(its)), loading]
            if said := "; ".join(filter(None, parts)):
                lines.append(f"{name}: {said}")
    return lines


def _identity(cells: Sequence[Cell]) -> Iterator[str]:
    for name in ("engine", "model", "quantization", "device"):
        words = dict.fromkeys(filter(None, (getattr(cell, name) for cell in cells)))
        if name == "model":  # a directory is as long as the line
            words = dict.fromkeys(word.rstrip("/").rpartition("/")[2] for word in words)
        if words:
            yield ("on " if name == "device" else "") + " or ".join(words)


def _loading(cells: Sequence[Cell]) -> Iterator[str]:
    def known(name: str) -> list[float]:
        return [value for cell in cells if (value := getattr(cell, name)) is not None]

    if loads_s := known("load_s"):
        yield f"loaded in {_seconds(max(loads_s))}"
    if tokens_s := known("first_token_s"):
        yield f"first token cold after {_seconds(max(tokens_s))}"
    if disks_mb := known("disk_mb"):
        yield f"{_megabytes(max(disks_mb))} on disk"
    if memories_mb := known("memory_mb"):
        least, most = _megabytes(min(memories_mb)), _megabytes(max(memories_mb))
        yield f"{most if least == most else f'up to {most}'} in memory"


def _seconds(value_s: float) -> str:
    return f"{value_s * 1e3:.0f} ms" if value_s < 0.5 else f"{value_s:.1f} s"


def _megabytes(value_mb: float) -> str:
    return f"{value_mb:,.0f} MB"
