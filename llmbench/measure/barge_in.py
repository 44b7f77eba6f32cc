"""What became of the replies that users cut off, and of the turns after them."""

from collections.abc import Sequence

import numpy as np

from llmbench.measure.blocks import MS, block
from llmbench.records import BargeIn, Block, RequestMetrics


def barge_in(measured: Sequence[RequestMetrics]) -> BargeIn | None:
    """How long the server went on, and TTFT of the turns after a cut and of those after a reply
    that was heard to its end, where the turn before was measured too. ``None`` without a cut."""
    cut = [each for each in measured if each.cut]
    if not cut:
        return None
    was_cut = {(each.run, each.session, each.turn): each.cut for each in measured}
    after: dict[bool | None, list[RequestMetrics]] = {True: [], False: [], None: []}
    for each in measured:
        after[was_cut.get((each.run, each.session, each.turn - 1))].append(each)
    stops_s = [each.stop_s for each in cut if each.stop_s is not None]
    return BargeIn(
        cut=len(cut),
        stop_ms=block(np.array(stops_s) * MS, lost=len(cut) - len(stops_s)),
        next_ttft_ms=_ttft_ms(after[True]),
        other_ttft_ms=_ttft_ms(after[False]),
    )


def _ttft_ms(requests: Sequence[RequestMetrics]) -> Block | None:
    """TTFT of ``requests``; failures count as +∞, those cut off before it are left out."""
    known_s = [each.ttft_s for each in requests if each.ttft_s is not None]
    if not known_s:
        return None
    lost = sum(each.failure not in ("", "cancelled") for each in requests)
    return block(np.array(known_s) * MS, lost=lost)
