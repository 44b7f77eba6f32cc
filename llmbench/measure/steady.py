"""Whether a cell had settled when its window opened: the first half against the second."""

import math
from collections.abc import Sequence

import numpy as np

DRIFT = 1.25
"""Medians of the halves that differ by more than this factor are a drift, if chance is not it."""

SURE_Z = 3.29
"""The two-sided 0.1% point of the normal distribution."""

FEWEST = 20


def drift(values: Sequence[float]) -> float | None:
    """The median of the second half over that of the first, where the two differ for sure.

    ``values`` are in the order of time. The test is Mann and Whitney's on ranks (1947), with the
    normal approximation; ``None`` where there is no drift, or too little to tell by.
    """
    half = len(values) // 2
    if half < FEWEST:
        return None
    first, second = np.array(values[:half]), np.array(values[-half:])
    ratio = float(np.median(second) / max(np.median(first), 1e-12))
    if 1 / DRIFT <= ratio <= DRIFT:
        return None
    below = np.searchsorted(np.sort(first), second, side="left").sum()
    below_or_equal = np.searchsorted(np.sort(first), second, side="right").sum()
    u = (below + below_or_equal) / 2
    deviation = half * math.sqrt((2 * half + 1) / 12)
    return ratio if abs(u - half * half / 2) > SURE_Z * deviation else None
