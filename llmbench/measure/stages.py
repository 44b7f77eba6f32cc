"""RequestMetrics and a server's metrics → where the time of a request went, on average.

docs/metrics.md says what each stage means for which server.
"""

import numpy as np

from llmbench.measure.requests import STAGES, Requests
from llmbench.records import CellFacts

MS = 1e3
NOISE_MS = 1.0
NOISE_SHARE = 0.02


def stages(
    good: Requests, facts: CellFacts, cut_off: int = 0
) -> tuple[dict[str, float], str] | None:
    """The mean milliseconds of a request by stage, and who says so; ``None`` if nobody does.

    ``good`` are the cell's good requests of every phase, beside which ``cut_off`` were cut off. The
    replies' own ``timings`` come first, if each measured one has them. The server's ``metrics`` are
    of the whole cell, so its requests of every phase are held against them. ``e2e`` is the
    client's, from ``sent`` until the last token, and ``other`` what of it is in no stage of the
    server's. ``server_e2e`` is the server's own e2e, where it states one.
    """
    measured = good.where(good.measured)
    if known := _from_replies(measured):
        return _with_rest(known, measured), "timings"
    means = _from_metrics(len(good), facts, cut_off)
    if not (known := _split(means)) or not len(good):
        return None
    server = {"server_e2e": means["e2e"]} if "e2e" in means else {}
    return _with_rest(known, good) | server, "metrics"


def _from_replies(measured: Requests) -> dict[str, float]:
    """The mean of each stage that the replies state; nothing unless every reply states some."""
    told = ~np.isnan(measured.stages_ms)
    if not told.any(axis=1).all():
        return {}
    return {
        stage: float(np.nan_to_num(measured.stages_ms[:, number]).mean())
        for number, stage in enumerate(STAGES)
        if told[:, number].any()
    }


def _from_metrics(good: int, facts: CellFacts, cut_off: int) -> dict[str, float]:
    """The means, in ms, that the server's metrics hold of this cell.

    They are left out if the server counted other requests than these: then somebody else uses it,
    or several servers take turns to answer. What was cut off when the cell was over, in a closed
    loop at most one request a stream, it may count or not.
    """
    unsure = max(facts.load.concurrency, cut_off)
    return {
        name: time.seconds / time.requests * MS
        for name, time in facts.server_times.items()
        if time.requests > 0 and abs(time.requests - good) <= unsure
    }


def _split(means: dict[str, float]) -> dict[str, float]:
    """The stages in ``means``. A server that times only the queue, the first token and the last has
    its decode between these two, and its prefill, with the tokenizing, before."""
    found = {stage: means[stage] for stage in STAGES if stage in means}
    if "decode" not in found and {"queue", "ttft", "e2e"} <= means.keys():
        found["prefill"] = means["ttft"] - means["queue"]
        found["decode"] = means["e2e"] - means["ttft"]
    return found


def _with_rest(known: dict[str, float], requests: Requests) -> dict[str, float]:
    """``known`` between ``e2e`` and ``other``.

    A rest a little below 0 is noise, and 0. A server that accounts for much more time than the
    client saw is wrong about these requests: a rest far below 0 is left to show that.
    """
    e2e_ms = float(np.maximum(requests.last_ns, 0).mean() / 1e6)
    rest_ms = e2e_ms - sum(known.values())
    noise_ms = max(NOISE_MS, NOISE_SHARE * e2e_ms)
    return {"e2e": e2e_ms} | known | {"other": 0.0 if -noise_ms <= rest_ms < 0 else rest_ms}
