"""The richest dialect that a server takes, found by asking: few servers say what they take, and
most say what they do not.

An API gives its ladder of dialects, the richest first. That one is asked for. A field that the
server names in its refusal is shed, until it is satisfied; where it names none, the plainer rungs
are tried, which ask for nothing that the first does not, and what they lack of it is then added
field by field. Nothing here does I/O.
"""

from collections.abc import Collection, Generator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from llmbench.apis.dialect import Dialect
from llmbench.apis.refusals import Refusal


class Try(NamedTuple):
    """A dialect to ask in. The reply is ``whole`` where its length matters."""

    dialect: Dialect
    whole: bool = True


class Answer(NamedTuple):
    """What came of a try: why it was not taken, or whether the reply was of the asked length."""

    refusal: Refusal | None = None
    exact: bool = False


Climb = Generator[Try, Answer, Dialect | None]


def climb(rungs: Sequence[Dialect], exactly: bool = True) -> Climb:
    """Yield what to try, be sent what came of it, and return the richest dialect that was taken, or
    ``None``. ``exactly``: replies of exactly the asked length are wanted."""
    richest = rungs[0]
    shed: set[str] = set()
    found = named = yield from _shedding(richest, shed, rungs)
    for rung in rungs[1:]:
        if found is None and not rung.exact_length:
            found = yield from _shedding(_less(rung, shed, rungs), shed, rungs)
    if found is None:
        return None
    dialect, exact = found
    if named is None:
        dialect, exact = yield from _adding(dialect, richest)
    if exactly and not exact and dialect.leaves != richest.leaves:
        for rung in rungs[1:]:
            if rung.exact_length and not exact:
                other = _with(dialect, rung)
                exact = (yield Try(other)).exact
                dialect = other if exact else dialect
    return _titled(replace(dialect, exact_length=exact), rungs)


def _shedding(
    dialect: Dialect, shed: set[str], rungs: Sequence[Dialect]
) -> Generator[Try, Answer, tuple[Dialect, bool] | None]:
    """Leave out what the server names until it takes the rest, and whether that was exact."""
    while True:
        refusal, exact = yield Try(dialect)
        if refusal is None:
            return dialect, exact
        names = _named(refusal, dialect)
        if not names and refusal.names([dialect.limit]) and not _is_amount(refusal, dialect, rungs):
            names = [dialect.limit]
        shed.update(names)
        plainer = _less(dialect, shed, rungs)
        if plainer == dialect:
            return None
        dialect = plainer


def _named(refusal: Refusal, dialect: Dialect) -> list[str]:
    """Which optional fields are to go. An option is often named with its field before it, and of a
    field that is named alone the last option goes first: usage is to be asked for to the end. Of
    fields that do not go together one goes."""
    names = refusal.names(dialect.optional)
    inner = [name for name in names if name in dialect.leaves]
    if inner:
        return inner[-1:] if refusal.is_of_conflict else inner
    options = [list(dialect.fields[name]) for name in names]
    return [each[-1] for each in options]


def _is_amount(refusal: Refusal, dialect: Dialect, rungs: Sequence[Dialect]) -> bool:
    """Whether it is the length that is refused, and not the field that says it."""
    others = {rung.limit for rung in rungs} - {dialect.limit}
    return refusal.is_of_amount and not any(map(refusal.mentions, others))


def _less(dialect: Dialect, shed: Collection[str], rungs: Sequence[Dialect]) -> Dialect:
    """``dialect`` less what was refused by name; its limit in another field, where there is one."""
    plainer = dialect.without(shed)
    others = [rung.limit for rung in rungs if rung.limit not in shed]
    if plainer.limit in shed and others:
        plainer = replace(plainer, limit=others[0])
    return plainer


def _adding(dialect: Dialect, richest: Dialect) -> Generator[Try, Answer, tuple[Dialect, bool]]:
    """Add what ``richest`` has more, one by one, for no name that was given can be relied on; then
    see whether the reply's length is exact."""
    base = replace(richest, limit=dialect.limit)
    for name in base.leaves:
        if name not in dialect.leaves:
            bigger = base.only([*dialect.leaves, name])
            if (yield Try(bigger, whole=False)).refusal is None:
                dialect = bigger
    exact = dialect.forces_length and (yield Try(dialect)).exact
    return dialect, exact


def _with(dialect: Dialect, rung: Dialect) -> Dialect:
    """``dialect`` with the words of another ``rung`` for exact lengths."""
    return replace(
        dialect,
        generation_config=rung.generation_config,
        least=dialect.least or rung.least,
    )


def _titled(dialect: Dialect, rungs: Sequence[Dialect]) -> Dialect:
    """``dialect`` by the name of its rung, with what an exact one lacks of that."""
    if not dialect.exact_length:
        plain = [rung for rung in rungs if not rung.exact_length and rung.limit == dialect.limit]
        held = [rung for rung in plain if set(rung.leaves) <= set(dialect.leaves)]
        name = max(held, key=lambda rung: len(rung.leaves)).name if held else "plain"
        return replace(dialect, name=name)
    rung = max(
        [rung for rung in rungs if rung.exact_length] or rungs,
        key=lambda rung: rung.generation_config == dialect.generation_config,
    )
    name = rung.name
    if dialect.limit != rung.limit:
        name += f" with {dialect.limit}"
    if lost := [each for each in rung.leaves if each not in dialect.leaves]:
        name += f" without {', '.join(lost)}"
    return replace(dialect, name=name)
