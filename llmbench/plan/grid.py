"""Sweep → the cells to run, in order."""

from llmbench.config import Sweep
from llmbench.records import CellFacts


def grid(sweep: Sweep) -> list[CellFacts]:
    """Every target × prompt length × concurrency × client, with nothing known of them yet.

    What is compared stands close in time: the clients of one load run one after the other.
    """
    plans = [
        (target, client, load)
        for target in range(len(sweep.targets()))
        for load in sweep.loads()
        for client in sweep.client
    ]
    return [
        CellFacts(cell=number, target=target, client=client, load=load)
        for number, (target, client, load) in enumerate(plans)
    ]
