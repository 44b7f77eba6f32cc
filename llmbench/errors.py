"""What goes wrong in ways the user can mend: one line each, never a traceback."""

from collections.abc import Iterable


class UserError(Exception):
    """Wrong usage or configuration. The message says what is wrong, where, and what would do."""

    exit_code: int = 2


class Unmeasurable(UserError):  # noqa: N818 - it reads as what it says
    """Nothing could be measured: the host is down, the key is refused, the engine won't start."""

    exit_code: int = 3


def meant(word: str, known: Iterable[str]) -> str:
    """The one of ``known`` that is spelled much like ``word``; empty where none is."""
    from difflib import get_close_matches  # not for --help, which has nobody to correct

    return next(iter(get_close_matches(word, list(known), 1)), "")


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown ``word``: what may have been meant."""
    known = list(known)
    close = meant(word, known)
    return f"; did you mean '{close}'?" if close else f"; known are {', '.join(known)}"
