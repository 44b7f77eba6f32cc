"""What goes wrong in ways the user can mend: one line each, never a traceback."""


class UserError(Exception):
    """Wrong usage or configuration. The message says what is wrong, where, and what would do."""

    exit_code: int = 2


class Unmeasurable(UserError):  # noqa: N818 - it reads as what it says
    """Nothing could be measured: the host is down, the key is refused, the engine won't start."""

    exit_code: int = 3
