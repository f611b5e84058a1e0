"""What the golden replay needs of a simulator, and where it finds one.

    start = one of simulator.starts(instruction, number)     the dataset's number-th episode of a task
    simulator.reset(start, control_hz)                       no settle steps; then idle() as often as asked
    simulator.step(action); simulator.state(); simulator.render()

A simulator of your own has these methods, takes the dataset's `RecordingInfo` (or None) and is named on the
command line: ``vita-vla demos replay ROOT --simulator my_module:MySimulator``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lerobot_policy_vita_vla.conventions import Conventions, RecordingInfo


@dataclass(frozen=True)
class Tolerances:
    """Up to which difference a replay counts as the recording.

    Args:
        start: Largest difference of any state number at the first frame, physical units.
        path: The same over the whole episode; contacts amplify rounding.
        picture: Mean absolute difference of pictures, grey levels of 255.
    """

    start: float
    path: float
    picture: float


class Simulator(Protocol):
    """One suite of tasks, as its environment poses them.

    One whose first observation is from before the settle steps says so by an attribute ``first_is_old``.
    """

    conventions: Conventions
    """What its own pictures, states and actions mean."""
    tolerances: Tolerances
    control_rates: tuple[float, ...]
    """Control rates it can run at, Hz; tried where the recorded one does not fit."""
    max_steps: int
    """Steps after a reset, idle ones included, beyond which it refuses to go on."""

    def starts(self, instruction: str, number: int) -> Sequence[Hashable]:
        """Possible starts (seed, initial state) of the dataset's ``number``-th episode of an instruction.

        The likeliest first; the replay takes the one whose state is the recorded first state.
        """
        ...

    def reset(self, start: Hashable, control_hz: float) -> None:
        """Begin, without any settle step."""
        ...

    def idle(self) -> None:
        """One settle step: what the environment does while it waits."""
        ...

    def step(self, action: np.ndarray) -> None:
        """Execute one action (A,), in the simulator's own conventions; never resets by itself."""
        ...

    def state(self) -> Mapping[str, np.ndarray]:
        """Current state, under the dataset's column names, each (n,), in the simulator's own conventions."""
        ...

    def render(self) -> Mapping[str, np.ndarray]:
        """Current pictures (H, W, 3) uint8 by camera key, in the simulator's own orientation."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


MEMBERS = tuple(name for name in vars(Simulator) if not name.startswith("_"))
"""Methods of one."""

SIMULATORS = {
    "metaworld": "lerobot_policy_vita_vla.demos.replay_metaworld:MetaworldSimulator",
    "libero": "lerobot_policy_vita_vla.demos.replay_libero:LiberoSimulator",
}
"""Suite -> ``module:callable`` that takes the dataset's `RecordingInfo`."""


def open_simulator(info: RecordingInfo | None, named: str | None = None) -> Simulator:
    """The simulator of a recording's suite, or the one named ``module:callable``.

    Raises:
        ValueError: If none is known, or what is named cannot be imported.
    """
    where = named or SIMULATORS.get(info.suite if info else "")
    if where is None:
        what = f"suite {info.suite!r}" if info else "this dataset (it has no meta/vita_vla.json)"
        raise ValueError(
            f"no simulator is known for {what}; known are {sorted(SIMULATORS)}. Name one with "
            "--simulator my_module:MySimulator (docs/conventions.md shows what it needs)"
        )
    module, _, name = where.partition(":")
    try:
        factory: Callable[[RecordingInfo | None], Simulator] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the simulator {where!r} cannot be imported: {error}") from error
    if not named:
        return factory(info)
    needs = "docs/conventions.md shows what a simulator needs"
    try:
        made = factory(info)
    except TypeError as error:
        raise ValueError(f"--simulator {where} makes no simulator: {error}; {needs}") from error
    if missing := [member for member in MEMBERS if not hasattr(made, member)]:
        raise ValueError(f"--simulator {where} makes no simulator: it lacks {', '.join(missing)}; {needs}")
    return made
