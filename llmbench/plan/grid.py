"""Sweep → the cells to run, in order."""

from itertools import groupby
from random import Random

from msgspec.structs import replace

from llmbench.config import Sweep
from llmbench.records import CellFacts
from llmbench.targets import IN_PROCESS


def grid(sweep: Sweep) -> list[CellFacts]:
    """Every target × prompt length × load × client, with nothing known of them yet.

    What is compared stands close in time: the clients of one load run one after the other. An
    engine that is called in process has no client but that call. Repeats are interleaved, so that
    what drifts meanwhile meets all alike: see ``_interleaved``.
    """
    targets = sweep.targets()
    plans = [
        CellFacts(
            cell=0,
            target=number,
            client=client,
            load=load,
            body=target.body,
            system_prompt=target.system_prompt,
        )
        for number, target in enumerate(targets)
        for load in sweep.loads()
        for client in (["engine"] if target.engine in IN_PROCESS else sweep.client)
    ]
    if sweep.repeat > 1:
        rows = [replace(plan, row=row) for row, plan in enumerate(plans)]
        parts = [rows] if take_turns(sweep) else _by_target(rows)
        plans = [plan for part in parts for plan in _interleaved(part, sweep)]
    return [replace(plan, cell=number) for number, plan in enumerate(plans)]


def take_turns(sweep: Sweep) -> bool:
    """Whether all targets run at once, so that their cells can take turns."""
    return sweep.together or not any(target.engine for target in sweep.targets())


def _by_target(plans: list[CellFacts]) -> list[list[CellFacts]]:
    return [list(part) for _, part in groupby(plans, key=lambda plan: plan.target)]


def _interleaved(plans: list[CellFacts], sweep: Sweep) -> list[CellFacts]:
    """``plans`` as often as there are repeats: in random order, then in the reverse of it (ABBA:
    what drifts evenly cancels out), then in another order. Each repeat draws its own load."""
    random = Random(sweep.seed)  # noqa: S311 - an order, not a secret
    order, ordered = list(plans), []
    for repeat in range(sweep.repeat):
        if repeat % 2 == 0:
            random.shuffle(order)
        else:
            order.reverse()
        ordered += [_again(plan, repeat) for plan in order]
    return ordered


def _again(plan: CellFacts, repeat: int) -> CellFacts:
    content = plan.load.content
    reseeded = replace(content, seed=content.seed + repeat)
    return replace(plan, repeat=repeat, load=replace(plan.load, content=reseeded))
