"""Energy by the output token, of the GPUs alone."""

from llmbench.measure.requests import Requests
from llmbench.records import Energy

SHORTEST_S = 30.0
"""The counters move in steps of some tens of milliseconds, and idle power is paid before and after:
over less than this no figure by the token is given."""


def joules_per_token(energy: Energy | None, requests: Requests) -> float | None:
    """Joules for each of the output tokens of ``requests``, of whatever phase: all that came
    between the readings. ``None`` for less than 30 s, or no tokens."""
    tokens = int(requests.tokens.sum())
    if energy is None or energy.seconds < SHORTEST_S or tokens <= 0:
        return None
    return energy.joules / tokens
