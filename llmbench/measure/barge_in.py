"""What became of the replies that users cut off, and of the turns after them."""

import numpy as np

from llmbench.measure.blocks import MS, block
from llmbench.measure.requests import Requests
from llmbench.records import BargeIn, Block


def barge_in(measured: Requests) -> BargeIn | None:
    """How long the server went on, and TTFT of the turns after a cut and of those after a reply
    that was heard to its end, where the turn before was measured too. ``None`` without a cut."""
    if not measured.cut.any():
        return None
    places = zip(
        measured.run.tolist(), measured.session.tolist(), measured.turn.tolist(), strict=True
    )
    cut = dict(zip(places, measured.cut.tolist(), strict=True))
    before = [cut.get((run, session, turn - 1)) for run, session, turn in cut]
    stops_s = measured.stop_s[measured.cut]
    return BargeIn(
        cut=len(stops_s),
        stop_ms=block(np.where(np.isnan(stops_s), np.inf, stops_s) * MS),
        next_ttft_ms=_ttft_ms(measured.where(np.array([each is True for each in before]))),
        other_ttft_ms=_ttft_ms(measured.where(np.array([each is False for each in before]))),
    )


def _ttft_ms(requests: Requests) -> Block | None:
    """TTFT of ``requests``; failures count as +∞, those cut off before it are left out."""
    if np.isnan(requests.ttft_s).all():
        return None
    return block(np.where(requests.lost, np.inf, requests.ttft_s * MS))
