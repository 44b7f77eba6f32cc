"""The few shapes that the pictures are made of; an SVG document needs nothing else."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from llmbench.errors import UserError

# M. Okabe & K. Ito, Color Universal Design (2008): told apart by all common kinds of sight.
BLUE, ORANGE, SKY, GREEN = "#0072B2", "#E69F00", "#56B4E9", "#009E73"
YELLOW, PURPLE, RED = "#F0E442", "#CC79A7", "#D55E00"
DARK = (BLUE, GREEN, RED)
"""The colours on which white text is the one to read."""

BLACK, GREY, PALE = "#000000", "#666666", "#dddddd"
_TEXT = 'font-family="Helvetica, Arial, DejaVu Sans, sans-serif"'


def document(width: float, height: float, title: str, pieces: Sequence[str]) -> str:
    """``pieces`` on white, with a title above them."""
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" {_TEXT} font-size="13">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            text(16, 28, title, size=17, weight="bold"),
            *pieces,
            "</svg>\n",
        )
    )


def text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: int = 13,
    weight: str = "normal",
    fill: str = BLACK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{fill}">{escape(words)}</text>'
    )


def line(
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    width: float = 1,
    dashes: str = "",
) -> str:
    (x1, y1), (x2, y2) = start, end
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        f'stroke-width="{width:g}"{dashed}/>'
    )


def step(longest: float) -> float:
    """1, 2 or 5 times a power of ten, for four to ten marks."""
    power = 10.0 ** math.floor(math.log10(longest / 4))
    return float(max(times * power for times in (1, 2, 5) if times * power <= longest / 4))


def save(path: Path, drawing: str) -> None:
    """Write ``drawing`` where ``--svg`` says. Raises ``UserError``."""
    try:
        path.write_text(drawing, encoding="utf-8")
    except OSError as problem:
        raise UserError(f"--svg {path}: cannot be written: {problem.strerror}") from None
