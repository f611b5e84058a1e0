"""One thing found while checking a dataset, and how findings are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a dataset.

    Args:
        level: ``"error"`` (training would fail or learn nonsense), ``"warning"`` (look at it) or ``"note"``.
        what: The thing, the value, the place.
        fix: What to do, as a command where there is one.
    """

    level: str
    what: str
    fix: str = ""


class Findings(list[Finding]):
    """All findings about one dataset; printed, they are `format_findings`."""

    @property
    def ok(self) -> bool:
        """Whether the dataset can be trained on: no finding is an error."""
        return not any(finding.level == ERROR for finding in self)

    def __str__(self) -> str:
        return format_findings(self)


def format_findings(findings: Sequence[Finding]) -> str:
    """Findings as text for a terminal, gravest first, ending in a line that counts them."""
    order = (ERROR, WARNING, NOTE)
    lines = []
    for finding in sorted(findings, key=lambda f: order.index(f.level)):
        lines.append(f"{finding.level:<8} {finding.what}")
        if finding.fix:
            lines.append(f"{'':<8} fix: {finding.fix}")
    counts = [(sum(f.level == level for f in findings), level) for level in order]
    lines.append(
        ", ".join(f"{n} {level}{'s' if n != 1 else ''}" for n, level in counts if n) or "nothing found: fine"
    )
    return "\n".join(lines)
