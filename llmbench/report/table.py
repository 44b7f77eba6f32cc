"""The result as text tables: for a terminal, and in Markdown for a pull request."""

import re
import textwrap
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence

import tabulate

from llmbench.records import Cell
from llmbench.report.columns import INTERVAL, MARKS, Column, columns
from llmbench.report.comparison import best, check_baseline, grouped
from llmbench.report.notes import notes

WIDTH = 100
READABLE_NAME = 24
NARROWEST_NAME = 8
MARK = "*"
HEAD_LINES = 2
"""At least so many lines of a table are above its rows."""

DEAREST = 9
"""Columns to spare that are dearer than this are worth more than the intervals."""

Texts = dict[Column, list[str]]
Groups = Sequence[Sequence[Cell]]
Below = Callable[[bool, Sequence[str], Collection[str]], Sequence[str]]
"""The lines below a table, by whether the best are marked in it, the names of the columns that were
left out, and the marks of its figures."""


def render_table(
    cells: Sequence[Cell], baseline: str | None = None, most_lines: int | None = None
) -> str:
    """One row a cell, within 100 columns, with notes below, in at most ``most_lines`` lines; the
    loads of several targets apart.

    Raises ``UserError`` where ``baseline`` is the name of no target.
    """
    check_baseline([cell.target for cell in cells], baseline)

    def below(marked: bool, left_out: Sequence[str], marks: Collection[str]) -> list[str]:
        found = notes(cells, mark=MARK * marked, baseline=baseline, left_out=left_out, marks=marks)
        return found.shown(lambda line: wrapped(_widened(line)), most_lines)

    return _terminal(columns(cells, baseline), cells, below)


def render_markdown(
    cells: Sequence[Cell], baseline: str | None = None, most_lines: int | None = None
) -> str:
    """The same table in Markdown, with every column: each row says its load, for none is apart."""
    check_baseline([cell.target for cell in cells], baseline)

    def below(marked: bool, left_out: Sequence[str], marks: Collection[str]) -> list[str]:
        found = notes(cells, mark="**bold**" * marked, baseline=baseline, marks=marks)
        return found.shown(str, most_lines)

    return _markdown(columns(cells, baseline), cells, below)


def as_text(
    chosen: Sequence[Column],
    cells: Sequence[Cell],
    below: Callable[[Sequence[str]], Sequence[str]],
) -> str:
    """``chosen`` columns of ``cells`` for a terminal, with the lines ``below`` it, which may depend
    on the names of the columns that there was no room for."""

    def lines(_: bool, left_out: Sequence[str], __: Collection[str]) -> list[str]:
        missing = [f"no room for {', '.join(left_out)}: the JSON has them"] if left_out else []
        return [wrapped(_widened(line)) for line in (*below(left_out), *missing)]

    return _terminal(chosen, cells, lines)


def as_markdown(
    chosen: Sequence[Column],
    cells: Sequence[Cell],
    below: Callable[[Sequence[str]], Sequence[str]],
) -> str:
    """The same in Markdown, with room for all."""
    return _markdown(chosen, cells, lambda *_: below(()))


def _terminal(
    chosen: Sequence[Column],
    cells: Sequence[Cell],
    below: Below,
) -> str:
    groups = grouped(cells)
    texts, marked = _texts(
        chosen, groups, best_one=lambda text: text + MARK, other=lambda text: text + _NO_MARK
    )
    texts = {column: list(map(_widened, texts[column])) for column in texts}
    table, left_out = _fitted(_with_intervals(texts, groups), texts)
    lines = below(marked, left_out, _marks(texts, left_out, table))
    whole = "\n".join((_parted(table, groups), *lines))
    return whole.replace(_SECOND_COLUMN, "").replace(_NO_MARK, " ") + "\n"


def _markdown(chosen: Sequence[Column], cells: Sequence[Cell], below: Below) -> str:
    groups = grouped(cells)
    texts, marked = _texts(chosen, groups, best_one="**{}**".format, other=str)
    texts = _with_intervals(texts, groups)
    table = tabulate.tabulate(
        [[text.replace("|", "\\|") for text in row] for row in zip(*texts.values(), strict=True)],
        headers=[column.name for column in texts],
        tablefmt="github",
        disable_numparse=True,
        colalign=_alignment(len(texts), sum(column.words for column in texts)),
    )
    lines = (f"- {line}" for line in below(marked, (), _marks(texts, (), table)))
    return "\n".join((table, "", *lines)) + "\n"


def _texts(
    chosen: Iterable[Column],
    groups: Groups,
    best_one: Callable[[str], str],
    other: Callable[[str], str],
) -> tuple[Texts, bool]:
    """What each column says of each cell, and whether the best of any group is marked in it."""
    texts, any_marked = {}, False
    for column in chosen:
        said = [
            (column.text(cell), cell is winner)
            for group in groups
            for winner in [best(group, column.measure) if column.measure else None]
            for cell in group
        ]
        marked = any(wins for _, wins in said)
        any_marked |= marked
        texts[column] = [
            (best_one(text) if wins else other(text)) if marked else text for text, wins in said
        ]
    return texts, any_marked


def _marks(texts: Texts, left_out: Sequence[str], table: str) -> set[str]:
    """The marks that stand beside figures, or in their place, in the columns that are shown."""
    figures = [
        text
        for column, its in texts.items()
        if not column.words and column.name not in left_out
        for text in its
    ]
    body = table.splitlines()[HEAD_LINES:]
    has_intervals = any(f" {INTERVAL}" in line for line in body)
    found = {mark for mark in MARKS if any(mark in text for text in figures)}
    return found | ({INTERVAL} if has_intervals else set())


def _with_intervals(texts: Texts, groups: Groups) -> Texts:
    """``texts`` with its interval behind each figure that has one."""
    cells = [cell for group in groups for cell in group]
    return {
        column: [text + column.interval(cell) for text, cell in zip(its, cells, strict=True)]
        if column.interval
        else its
        for column, its in texts.items()
    }


def _fitted(exact: Texts, texts: Texts) -> tuple[str, list[str]]:
    """The table with as many columns as there is room for, and the names of those left out; with
    intervals (``exact``) where no more than the first that can be spared have to go for them.

    A long target's name is cut first, but to something that can be read as long as there is
    a column to spare.
    """
    for each, least_spare in ((exact, DEAREST), (texts, 1)):
        table, left_out = _fit(each, least_spare)
        if _width(table) <= WIDTH:
            break
    return table, left_out


def _fit(texts: Texts, least_spare: int) -> tuple[str, list[str]]:
    """The table without as many columns of ``least_spare`` and more as have to go."""
    table = _drawn(texts, gap=2)
    if _width(table) <= WIDTH:
        return table, []
    left_out: list[str] = []
    while _width(_drawn(texts, gap=1, longest_name=READABLE_NAME)) > WIDTH:
        spare = max(texts, key=lambda column: column.spare)
        if spare.spare < least_spare:
            break
        left_out.append(spare.name)
        texts = {column: texts[column] for column in texts if column is not spare}
    table = _drawn(texts, gap=1)
    if (overflow := _width(table) - WIDTH) > 0:
        longest = max(map(len, next(iter(texts.values())))) - overflow
        table = _drawn(texts, gap=1, longest_name=max(longest, NARROWEST_NAME))
    return table, left_out


def _drawn(texts: Texts, gap: int, longest_name: int | None = None) -> str:
    target, *others = texts.values()
    names = [_shorten(name, longest_name) if longest_name else name for name in target]
    words = sum(column.words for column in texts)
    return grid(_heads(texts), list(zip(names, *others, strict=True)), gap, words)


def _heads(chosen: Iterable[Column]) -> list[str]:
    """The titles; one that spans several columns stands above the first of them."""
    heads, before = [], ""
    for column in chosen:
        title, _, unit = column.head.partition("\n")
        heads.append(("" if title == before else title) + f"\n{unit}")
        before = title
    return heads


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]], gap: int, left: int = 1) -> str:
    """``rows`` under ``heads`` of one or two lines, ``gap`` spaces between columns.

    The first ``left`` columns are flush at the left, the others at the right.
    """
    lines = [[head.partition("\n")[line] for head in heads] for line in (0, 2)]
    rule = ["-" * max(map(len, texts)) for texts in zip(*lines, *rows, strict=True)]
    row = tabulate.DataRow("", " " * gap, "")
    plain = tabulate.TableFormat(None, None, None, None, row, row, padding=0, with_header_hide=None)
    return tabulate.tabulate(
        [*lines, rule, *rows],
        tablefmt=plain,
        disable_numparse=True,
        colalign=_alignment(len(heads), left),
    )


def _parted(table: str, groups: Groups) -> str:
    """``table`` with an empty line between groups."""
    lines = table.splitlines()
    parts, begin = [], len(lines) - sum(map(len, groups))
    head = lines[:begin]
    for group in groups:
        parts.append("\n".join(lines[begin : begin + len(group)]))
        begin += len(group)
    return "\n".join((*head, "\n\n".join(parts)))


def _width(table: str) -> int:
    return max(map(len, table.splitlines()))


def _alignment(count: int, left: int) -> list[str]:
    return ["left"] * left + ["right"] * (count - left)


# Stands behind a character that is two columns wide while widths are counted by ``len``.
_SECOND_COLUMN = "\0"
# Stands where others of the column have a mark; a space would be stripped.
_NO_MARK = "\2"


def _widened(text: str) -> str:
    return "".join(
        char + _SECOND_COLUMN if unicodedata.east_asian_width(char) in "WF" else char
        for char in text
    )


def wrapped(line: str) -> str:
    width = WIDTH - (_SECOND_COLUMN in line)  # a cut may part a wide character from its second half
    return textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False)


def _shorten(text: str, width: int) -> str:
    """Cut out of the middle: names differ at their ends more than there."""
    if len(text) <= width:
        return text
    glyphs = re.findall(f".{_SECOND_COLUMN}?", text, re.DOTALL)
    end = _within(reversed(glyphs), (width - 1) // 2)[::-1]
    begin = _within(glyphs, width - 1 - len("".join(end)))
    return "".join((*begin, "…", *end))


def _within(glyphs: Iterable[str], width: int) -> list[str]:
    """As many of ``glyphs``, from the first on, as ``width`` has room for."""
    taken: list[str] = []
    for glyph in glyphs:
        width -= len(glyph)
        if width < 0:
            break
        taken.append(glyph)
    return taken
