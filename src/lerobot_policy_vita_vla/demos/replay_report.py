"""What the golden replay found, convention by convention."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

CONFIRMED, BROKEN, UNDECIDED = "confirmed", "BROKEN", "undecided"


@dataclass
class Verdict:
    """One convention.

    Args:
        convention: Its name.
        status: ``"confirmed"`` (another value would have been noticed), ``"BROKEN"``, or ``"undecided"``
            (these episodes do not tell).
        found: What was seen, with numbers.
        fix: What to do.
    """

    convention: str
    status: str
    found: str
    fix: str = ""


@dataclass
class ReplayReport:
    """Result of `replay.replay`.

    Args:
        root: The dataset.
        episodes: Indices of the episodes that were replayed.
        stored: Episodes that the dataset has.
        verdicts: By convention; a broken one stays broken.
        settings: Fields of ``conventions`` in meta/vita_vla.json that the data contradicts -> true value.
        notes: What else is worth knowing.
        measured: Largest differences seen, and the tolerances they were held against.
        seconds: Wall time.
    """

    root: str
    episodes: list[int] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    stored: int = 0

    @property
    def broken(self) -> list[str]:
        """Names of the conventions that the data contradicts."""
        return [v.convention for v in self.verdicts.values() if v.status == BROKEN]

    @property
    def undecided(self) -> list[str]:
        """Names of the conventions of which the replayed episodes do not tell."""
        return [v.convention for v in self.verdicts.values() if v.status == UNDECIDED]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.broken

    def add(self, convention: str, status: str, found: str, fix: str = "") -> None:
        """Note a verdict; broken beats confirmed beats undecided."""
        grave = (UNDECIDED, CONFIRMED, BROKEN)
        old = self.verdicts.get(convention)
        if old is None or grave.index(status) > grave.index(old.status):
            self.verdicts[convention] = Verdict(convention, status, found, fix)

    def measure(self, name: str, value: float) -> None:
        """Keep the largest value of a measurement."""
        self.measured[name] = max(float(value), self.measured.get(name, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "verdicts": [asdict(v) for v in self.verdicts.values()], "ok": self.ok}

    def __str__(self) -> str:
        share = f"{len(self.episodes)} of {self.stored} episodes"
        lines = [f"replayed {share} of {self.root} in {self.seconds:.0f} s"]
        order = (BROKEN, UNDECIDED, CONFIRMED)
        for verdict in sorted(self.verdicts.values(), key=lambda v: order.index(v.status)):
            lines.append(f"  {verdict.status:<10}{verdict.convention}: {verdict.found}")
            if fix := verdict.fix or (self._more if verdict.status == UNDECIDED else ""):
                lines.append(f"  {'':<10}fix: {fix}")
        lines += [f"  note      {note}" for note in self.notes]
        broken, undecided = self.broken, self.undecided
        if broken:
            lines.append(f"{_conventions(len(broken))} broken: {', '.join(broken)}")
        elif not undecided:
            lines.append(f"the recording is what it says it is, as far as {share} tell")
        if undecided:
            nothing = "" if broken else "nothing is broken, but "
            lines.append(f"{nothing}{_conventions(len(undecided))} undecided: {', '.join(undecided)}")
        return "\n".join(lines)

    @property
    def _more(self) -> str:
        # What helps where the episodes that were replayed do not tell.
        if len(self.episodes) < self.stored:
            return f"replay more of the {self.stored} episodes: --episodes 5, or more"
        return (
            "no more episodes are there: record one in which it makes a difference, or ask who recorded this"
        )


def _conventions(count: int) -> str:
    return f"{count} convention{'s' if count != 1 else ''}"
