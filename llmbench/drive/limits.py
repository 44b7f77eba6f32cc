"""How long a reply may take, to its end and to its first token, and how large it may become."""

from collections.abc import Callable

from msgspec import Struct

from llmbench.drive.opening import Failure

REPLY_BYTES = 64 << 20
KEPT_BYTES = 64 << 10
"""How much of a reply that is too large is kept as evidence."""

HEAD_BYTES = 256 << 10
"""The most bytes of a reply's headers."""

BYTES_A_READ = 128
"""As many reads as would bring the most bytes at so many each are the most: each takes memory."""


class Limits(Struct, frozen=True):
    """Limits of a reply: seconds from ``sent``, bytes as they come. ``has_begun`` says of the start
    of a reply's body whether there is a token in it."""

    whole_s: float
    first_token_s: float | None = None
    has_begun: Callable[[bytes], bool] = bool
    reply_bytes: int = REPLY_BYTES

    @property
    def no_first_token(self) -> Failure:
        return Failure("timeout", f"no first token within {self.first_token_s:g} s")

    @property
    def reads(self) -> int:
        """The most reads that may bring a reply."""
        return self.reply_bytes // BYTES_A_READ

    def exceeded(self, size: int, reads: int) -> str:
        """Why a reply of ``size`` bytes in so many ``reads`` is too large; empty if it is not."""
        if size > self.reply_bytes:
            most = _shown(self.reply_bytes)
        elif reads > self.reads:
            most = f"{self.reads:,} reads"
        else:
            return ""
        return f"more than {most}; --max-reply-bytes raises the limit"


def _shown(size: int) -> str:
    """``size`` bytes in the largest unit that shows it exactly."""
    for unit, word in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {word}"
    return f"{size:,} bytes"
