"""What ``llmbench doctor`` prints: a line a finding, and below it what to do."""

import textwrap
from collections.abc import Sequence

from llmbench.doctor import Finding
from llmbench.report.table import WIDTH

SIGNS = {"good": "ok", "info": "", "note": "!", "bad": "BAD"}


def render(findings: Sequence[Finding]) -> str:
    """All of ``findings`` in their order, and how many ask for something to be done."""
    wide = max(len(each.subject) for each in findings)
    lines = [line for each in findings for line in _lines(each, wide)]
    bad, noted = (sum(each.level == level for each in findings) for level in ("bad", "note"))
    if bad:
        lines.append(f"{bad} that must be put right" + (f", {noted} to look at" if noted else ""))
    elif noted:
        lines.append(f"this machine can measure; {noted} to look at (!)")
    else:
        lines.append("this machine can measure")
    return "\n".join(lines) + "\n"


def _lines(finding: Finding, wide: int) -> list[str]:
    head = f"{SIGNS[finding.level]:>3}  {finding.subject:<{wide}}  "
    said = finding.said + (f"; {finding.advice}" if finding.advice else "")
    return textwrap.wrap(
        said,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    )
