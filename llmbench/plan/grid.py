"""Sweep → the cells to run, in order."""

from llmbench.config import Sweep
from llmbench.records import CellFacts
from llmbench.targets import IN_PROCESS


def grid(sweep: Sweep) -> list[CellFacts]:
    """Every target × prompt length × concurrency × client, with nothing known of them yet.

    What is compared stands close in time: the clients of one load run one after the other. An
    engine that is called in process has no client but that call.
    """
    plans = [
        (number, client, load)
        for number, target in enumerate(sweep.targets())
        for load in sweep.loads()
        for client in (["engine"] if target.engine in IN_PROCESS else sweep.client)
    ]
    return [
        CellFacts(cell=number, target=target, client=client, load=load)
        for number, (target, client, load) in enumerate(plans)
    ]
