"""The live view: one line on stderr that moves, on a terminal only."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from llmbench.drive.board import Board
from llmbench.records import TRACE, Load


class LiveView:
    """Lines and a progress bar on stderr; silent, but for waits, where that is no terminal."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._bar: Any = None  # tqdm; its stubs want the items that it would wrap

    def say(self, line: str) -> None:
        with self._on_terminal():
            if self.live and line:
                tqdm.write(line, file=sys.stderr)

    def wait(self, line: str) -> None:
        with self._on_terminal():
            tqdm.write(line, file=sys.stderr)

    @contextmanager
    def _on_terminal(self) -> Iterator[None]:
        """A terminal that is gone ends the view, and not the run."""
        try:
            yield
        except OSError:
            self.live = False

    def progress(self, label: str, load: Load, board: Board) -> None:
        with self._on_terminal():
            self._progress(label, load, board)

    def _progress(self, label: str, load: Load, board: Board) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=load.requests if _is_counted(load) else None,
                file=sys.stderr,
                leave=False,
                dynamic_ncols=True,
                bar_format="{n_fmt}/{total_fmt} {elapsed} {bar:10} {desc}{postfix}"
                if _is_counted(load)
                else "{n_fmt} {elapsed} {desc}{postfix}",
            )
        self._bar.set_description_str(
            f"{label}, {_words(load)}, {board.phase}",
            refresh=False,
        )
        self._bar.set_postfix_str(f"{board.failed} failed" if board.failed else "", False)
        self._bar.n = board.measured
        self._bar.refresh()

    def cell_over(self) -> None:
        if self._bar is not None:
            with self._on_terminal():
                self._bar.close()
            self._bar = None


def _is_counted(load: Load) -> bool:
    """Whether it is known how many requests there will be."""
    return load.rate != TRACE and load.duration_s is None and load.budget_s is None


def _words(load: Load) -> str:
    if load.rate == TRACE:
        return "a trace"
    return f"{load.rate} requests/s" if load.rate else f"{load.concurrency} in flight"
