"""How long a reply may take: to its end, and to its first token."""

from collections.abc import Callable

from msgspec import Struct

from llmbench.drive.opening import Failure


class Timeouts(Struct, frozen=True):
    """Limits in seconds from ``sent``. ``has_begun`` says of the start of a reply's body whether
    there is a token in it."""

    whole_s: float
    first_token_s: float | None = None
    has_begun: Callable[[bytes], bool] = bool

    @property
    def no_first_token(self) -> Failure:
        return Failure("timeout", f"no first token within {self.first_token_s:g} s")
