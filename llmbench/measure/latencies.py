"""The latencies of a cell's requests, and the rates at which single users see tokens come."""

from collections.abc import Sequence

import numpy as np

from llmbench.measure import gaps as gap
from llmbench.measure.blocks import MS, block, bounded_block, censored_block
from llmbench.measure.statistics import Floats, Ints
from llmbench.measure.survival import Sample
from llmbench.records import Block, Cell, RequestMetrics


def add_latencies(cell: Cell, measured: Sequence[RequestMetrics]) -> None:
    """Every latency of ``cell``, and the rates that are one over a latency."""
    good = [each for each in measured if not each.failure]
    for name in ("ttfr", "ttft", "ttfat", "e2e"):
        told, beyond = latency_block(cell, measured, f"{name}_s")
        setattr(cell, f"{name}_ms", told)
        if beyond and name in ("ttft", "e2e"):
            cell.notes.append(f"{name.upper()} {beyond}")
    if any(each.due_ns is not None for each in measured):
        cell.ttft_from_sent_ms, _ = latency_block(cell, measured, "ttft_s", from_sent=True)
        cell.e2e_from_sent_ms, _ = latency_block(cell, measured, "e2e_s", from_sent=True)
    lost = cell.requests.failed
    paces = np.array([each.tpot_s for each in good if each.tpot_s])
    if len(paces):
        cell.tpot_ms = _block(cell, good, paces, lost)
        cell.otps_per_user = block(1 / paces, lost=lost, slow_side_low=True)
    whole = np.array([each.tokens / each.e2e_s for each in good if each.e2e_s and each.e2e_s > 0])
    cell.otps_end_to_end = block(whole, lost=lost, slow_side_low=True) if len(whole) else None
    _withhold_token_rates(cell, good)


def latency_block(
    cell: Cell, requests: Sequence[RequestMetrics], name: str, *, from_sent: bool = False
) -> tuple[Block | None, str]:
    """The latency ``name`` of measured ``requests``, in ms, and what to say of a quantile that lies
    beyond what was seen of it (or nothing).

    A request that was cut off before it came, at the end of the cell or by its user, has it
    censored at the time of the cut.
    """
    known, censored = [], []
    for each in requests:
        seconds: float | None = getattr(each, name)
        shift_s = each.late_s if from_sent else 0.0
        if seconds is not None:
            known.append(seconds - shift_s)
        elif each.failure == "cancelled" or each.cut:
            censored.append((each.end_ns - each.start_ns) / 1e9 - shift_s)
    if not known:
        return None, ""
    lost = sum(each.failure not in ("", "cancelled") for each in requests)
    if not censored:
        return _block(cell, requests, np.array(known), lost), ""
    sample = Sample(np.array(known) * MS, np.array(censored) * MS, lost, cell.batch_size or 1)
    if cell.settled is False:
        told, beyond = bounded_block(sample)
        return told, beyond and f"{beyond} ms: more came than was answered until the cut"
    told, beyond = censored_block(sample)
    if not beyond:
        return told, ""
    return told, f"{beyond} is beyond what was seen before the cut: at least {sample.seen:.4g} ms"


def _block(cell: Cell, requests: Sequence[RequestMetrics], seconds: Floats, lost: int) -> Block:
    """Summarize one value of each good request of ``requests``, or of some of them."""
    clusters = _clusters(cell, [each for each in requests if not each.failure])
    return block(
        seconds * MS,
        lost=lost,
        clusters=clusters if clusters is not None and len(clusters) == len(seconds) else None,
    )


def _clusters(cell: Cell, good: Sequence[RequestMetrics]) -> Ints | None:
    """What requests share their fate with others: the static batch of each, whose requests are
    worth little more than one sample, or the run of each where there are several."""
    runs = np.array([each.run for each in good], dtype=np.int64)
    if cell.batch_size is None:
        return runs if runs.any() else None
    batches = np.array([each.index // cell.batch_size for each in good], dtype=np.int64)
    _, numbers = np.unique(np.stack([runs, batches]), axis=1, return_inverse=True)
    return np.asarray(numbers, dtype=np.int64)


def _withhold_token_rates(cell: Cell, good: Sequence[RequestMetrics]) -> None:
    """No rate of tokens where they are not counted, or where many come with the first event: that
    rate is over the time after the first, and would count them as made in no time."""
    if cell.token_source == "chunks":
        cell.tpot_ms = cell.otps_per_user = cell.otps_end_to_end = None
        return
    heads = [each.head_share for each in good if each.head_share is not None]
    share = float(np.mean(heads or [0.0]))
    if share > gap.HEAVY_HEAD:
        cell.tpot_ms = cell.otps_per_user = None
        cell.notes.append(
            f"TPOT and tok/s per user not shown: {share:.0%} of the tokens come with the first"
        )
