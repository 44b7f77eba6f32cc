"""Check what the README's first line prints, and that the wheel holds all that it needs.

Usage: first_impression.py CHECKOUT TABLE, in an environment that has llmbench from its wheel.
"""

import re
import sys
from pathlib import Path

import llmbench

LOADS = ["1", "8", "32"]
MOST_LINES_BELOW = 8


def main(checkout: Path, table: str) -> None:
    installed = Path(llmbench.__file__).parent
    assert checkout not in installed.parents, f"{installed} is no wheel's"
    for folder in ("prompts", "configs"):
        assert names(installed / folder) == names(checkout / folder), f"the wheel lacks {folder}/"

    lines = table.splitlines()
    (rule,) = (number for number, line in enumerate(lines) if re.fullmatch("[- ]*-[- ]*", line))
    columns = [slice(*column.span()) for column in re.finditer("-+", lines[rule])]
    rows = [[line[column].strip() for column in columns] for line in lines[rule + 1 :]]
    rows, below = rows[: len(LOADS)], lines[rule + 1 + len(LOADS) :]
    assert lines[0].startswith("target"), f"printed above the table: {lines[0]}"
    assert [row[1] for row in rows] == LOADS, f"other rows than {LOADS}: {rows}"
    for row in rows:
        figures = [figure for figure in row[3:] if re.search(r"\d", figure)]
        assert len(figures) > 1, f"a row without numbers: {row}"  # one may be that of failures
    assert len(below) <= MOST_LINES_BELOW, f"{len(below)} lines below the table"


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).read_text())
