"""The latencies of a cell's requests, and the rates at which single users see tokens come."""

import numpy as np

from llmbench.measure import gaps as gap
from llmbench.measure.autocorrelation import rank_autocorrelation_time
from llmbench.measure.blocks import MS, block, bounded_block, censored_block
from llmbench.measure.requests import Requests, known
from llmbench.measure.shared import Shared
from llmbench.measure.statistics import Floats
from llmbench.measure.survival import Sample
from llmbench.records import UNKNOWN_TOKENS, Block, Cell


def add_latencies(cell: Cell, measured: Requests) -> None:
    """Every latency of ``cell``, and the rates that are one over a latency, of the ``measured``
    requests in the order of time."""
    for name in ("ttfr", "ttft", "ttfat", "e2e"):
        told, beyond = latency_block(cell, measured, f"{name}_s")
        setattr(cell, f"{name}_ms", told)
        if beyond and name in ("ttft", "e2e"):
            cell.notes.append(f"{name.upper()} {beyond}")
    if measured.due.any():
        cell.ttft_from_sent_ms, _ = latency_block(cell, measured, "ttft_s", from_sent=True)
        cell.e2e_from_sent_ms, _ = latency_block(cell, measured, "e2e_s", from_sent=True)
    shared = Shared.of(cell, measured)
    paces = np.where(measured.tpot_s > 0, measured.tpot_s, np.nan)
    if not np.isnan(paces).all():
        cell.tpot_ms = block(with_lost(measured, paces * MS, np.inf), shared)
        cell.otps_per_user = block(with_lost(measured, 1 / paces, 0.0), shared, slow_side_low=True)
    whole = measured.seen_tokens / np.where(measured.e2e_s > 0, measured.e2e_s, np.nan)
    if not np.isnan(whole).all():
        cell.otps_end_to_end = block(with_lost(measured, whole, 0.0), shared, slow_side_low=True)
    _withhold_token_rates(cell, measured)


def latency_block(
    cell: Cell, requests: Requests, name: str, *, from_sent: bool = False
) -> tuple[Block | None, str]:
    """The latency ``name`` of measured ``requests``, in ms, and what to say of a quantile that lies
    beyond what was seen of it (or nothing).

    A request that was cut off before it came, at the end of the cell or by its user, has it
    censored at the time of the cut.
    """
    shift_s = requests.late_s if from_sent else 0.0
    ms = (getattr(requests, name) - shift_s) * MS
    there = ~np.isnan(ms)
    if not there.any():
        return None, ""
    censored = ~there & (requests.cancelled | requests.cut)
    if not censored.any():
        shared = Shared.of(cell, requests)
        return block(with_lost(requests, ms, np.inf), shared), ""
    cut_ms = ((requests.end_ns - requests.start_ns) / 1e9 - shift_s) * MS
    unit = float(cell.batch_size or 1)
    if cell.settled is not False:
        unit = max(unit, rank_autocorrelation_time(ms[there]))
    sample = Sample(ms[there], cut_ms[censored], int(requests.lost.sum()), unit)
    if cell.settled is False:
        told, beyond = bounded_block(sample)
        return told, beyond and f"{beyond} ms: more came than was answered until the cut"
    told, beyond = censored_block(sample)
    if not beyond:
        return told, ""
    return told, f"{beyond} is beyond what was seen before the cut: at least {sample.seen:.4g} ms"


def with_lost(requests: Requests, values: Floats, lost: float) -> Floats:
    """``values``, one a request, with ``lost`` in the place of those of requests that failed."""
    return np.where(requests.lost, lost, values)


def _withhold_token_rates(cell: Cell, measured: Requests) -> None:
    """No rate of tokens where they are not counted, or not seen; none after the first event where
    many come with that, which would count as made in no time, or where events bring parts of a
    token, of which the first and the last event may have any."""
    good = measured.good
    if cell.token_source == "chunks":
        cell.tpot_ms = cell.otps_per_user = cell.otps_end_to_end = None
        return
    if (unseen := measured.hidden_tokens[good] == UNKNOWN_TOKENS).any():
        cell.tpot_ms = cell.otps_per_user = cell.otps_end_to_end = cell.otps = None
        cell.otps_ci95 = None
        cell.notes.append(
            f"no tok/s, no TPOT: {unseen.sum()} replies have tokens that came in no event, and "
            "nobody knows how many (reasoning that is not streamed, or in part)"
        )
        return
    each = cell.tokens_per_event
    if each is not None and each < gap.FEWEST_AN_EVENT:
        cell.tpot_ms = cell.otps_per_user = None
        cell.notes.append(
            f"TPOT and tok/s per user not shown: {each:.2f} tokens an event, by the server's "
            "count: its events split tokens, or it counts too few"
        )
        return
    heads = known(measured.head_share[measured.good])
    share = float(heads.mean()) if len(heads) else 0.0
    if share > gap.HEAVY_HEAD:
        cell.tpot_ms = cell.otps_per_user = None
        cell.notes.append(
            f"TPOT and tok/s per user not shown: {share:.0%} of the tokens come with the first"
        )
