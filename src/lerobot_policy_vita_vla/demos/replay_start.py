"""Finding the state from which an episode was recorded: which start, how many settle steps, at which rate,
and how its rotation is written down.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lerobot_policy_vita_vla.conventions import Conventions
from lerobot_policy_vita_vla.conversion import Conversion
from lerobot_policy_vita_vla.demos.replay_data import STATE, RecordedEpisode
from lerobot_policy_vita_vla.demos.replay_play import Played, begin, deviations
from lerobot_policy_vita_vla.demos.replay_report import BROKEN, CONFIRMED, UNDECIDED, ReplayReport
from lerobot_policy_vita_vla.demos.simulator import Simulator

MOST_SETTLE_STEPS = 30
"""Our choice: protocols in use settle for 0, 5, 10 or 20 steps."""

LIKELY = 3
"""Starts for which other settle steps and rates are tried; each costs a reset and `MOST_SETTLE_STEPS`."""

NEARER = 0.5
"""Our choice: settle steps that halve the difference are the likeliest explanation, if none removes it."""


THREE_NUMBERS = ("axis_angle", "axis_angle_2pi", "euler_xyz")


class _Guess(NamedTuple):
    off: float
    meaning: Conventions
    start: Hashable


def find_start(
    simulator: Simulator,
    episode: RecordedEpisode,
    meaning: Conventions,
    report: ReplayReport,
) -> tuple[Hashable, Conventions, bool]:
    """The start of an episode, what it shows about settle steps and rate, and whether its state was found.

    Args:
        simulator: Where it was recorded.
        episode: Its first state is looked for.
        meaning: Conventions so far.
        report: Takes the verdicts ``settle_steps``, ``control_rate`` and ``initial_state``.

    Raises:
        ValueError: If the simulator knows no start for this episode.
    """
    limit = simulator.tolerances.start
    starts = list(simulator.starts(episode.instruction, episode.number))
    if not starts:
        raise ValueError(
            f"the simulator knows no start for episode {episode.index} ({episode.instruction!r})"
        )
    declared = None
    for start in starts:
        begin(simulator, start, meaning)
        guess = _Guess(_off(simulator, episode, meaning), meaning, start)
        declared = min(declared or guess, guess, key=lambda g: g.off)
        if guess.off <= limit:
            report.measure("start", guess.off)
            report.add("initial_state", CONFIRMED, f"start {start} of episode {episode.index}")
            if report.verdicts.get("settle_steps", None) is None:
                _confirm_settling(simulator, episode, guess, report)
            return start, meaning, True
    best = _search(simulator, episode, meaning, [declared.start, *starts[:LIKELY]])
    if best.off <= limit or best.off < NEARER * declared.off:
        exact = "" if best.off <= limit else f" (still {best.off:.1e} off)"
        seen = f"the first state of episode {episode.index} is {declared.off:.1e} off as declared"
        if best.meaning.control_hz != meaning.control_hz:
            report.add(
                "control_rate",
                BROKEN,
                f"{seen}, and appears when the simulator runs at {best.meaning.control_hz:g} Hz{exact}",
                f"record again at {simulator.conventions.control_hz:g} Hz, or train and run everything at "
                f"{best.meaning.control_hz:g} Hz",
            )
        if best.meaning.settle_steps != meaning.settle_steps:
            steps = best.meaning.settle_steps
            report.add(
                "settle_steps",
                BROKEN,
                f"{seen} ({meaning.settle_steps} settle steps), and appears after {steps}{exact}",
                f'set "settle_steps": {steps} under "conventions" in meta/vita_vla.json and let the '
                f"environment do {steps} idle steps after its reset",
            )
        return best.start, best.meaning, best.off <= limit
    report.add(
        "initial_state",
        BROKEN,
        f"none of {len(starts)} starts gives the first state of episode {episode.index} "
        f"({episode.instruction!r}): the nearest is {declared.off:.2g} off, after up to {MOST_SETTLE_STEPS} "
        "settle steps as well; its actions cannot be judged",
        "record again with this version of the simulator, or with seeds that meta/vita_vla.json names",
    )
    return declared.start, meaning, False


def _search(simulator: Simulator, episode: RecordedEpisode, meaning: Conventions, starts: list) -> _Guess:
    # Exact answers with the declared rate come first.
    limit, best = simulator.tolerances.start, None
    others = [rate for rate in simulator.control_rates if rate != meaning.control_hz]
    for rate in (meaning.control_hz, *others):
        for start in dict.fromkeys(starts):
            for guess in _while_settling(simulator, episode, replace(meaning, control_hz=rate), start):
                best = min(best or guess, guess, key=lambda g: g.off)
            if best.off <= limit:
                return best
    return best


def _while_settling(simulator: Simulator, episode: RecordedEpisode, meaning: Conventions, start: Hashable):
    begin(simulator, start, replace(meaning, settle_steps=0))
    for steps in range(MOST_SETTLE_STEPS + 1):
        yield _Guess(_off(simulator, episode, meaning), replace(meaning, settle_steps=steps), start)
        if steps < MOST_SETTLE_STEPS:
            simulator.idle()


def _confirm_settling(simulator: Simulator, episode, found: _Guess, report: ReplayReport) -> None:
    # Whether another number of settle steps would have been noticed.
    wrong = [
        guess
        for guess in _while_settling(simulator, episode, found.meaning, found.start)
        if guess.meaning.settle_steps != found.meaning.settle_steps
    ]
    nearest = min(wrong, key=lambda g: g.off)
    steps, limit = found.meaning.settle_steps, simulator.tolerances.start
    report.add(
        "settle_steps",
        CONFIRMED if nearest.off > limit else UNDECIDED,
        f"{steps}; with {nearest.meaning.settle_steps} the first state would be {nearest.off:.1e} off, "
        f"allowed are {limit:.1e}",
    )


def _off(simulator: Simulator, episode: RecordedEpisode, meaning: Conventions) -> float:
    states = {key: value[None] for key, value in simulator.state().items()}
    world = simulator.conventions
    readings = [meaning]
    if meaning.state_rotation and world.state_rotation:
        # How the state writes a rotation down is judged over the whole episode, not here.
        readings += [replace(meaning, state_rotation=name) for name in ("axis_angle", "euler_xyz")]
    return min(float(deviations(states, episode, reading, world)[0]) for reading in readings)


def judge_state_rotation(
    report: ReplayReport,
    meaning: Conventions,
    simulator: Simulator,
    episode: RecordedEpisode,
    played: Played,
    fits: bool,
) -> Conventions:
    """Compare the numbers in which the state holds the hand's orientation, over the whole episode.

    Deviations of states count the angle; a policy reads the numbers.

    Args:
        report: Takes ``state_rotation``.
        meaning: Conventions so far.
        simulator: For its own conventions and tolerances.
        episode: The recording.
        played: Its replay.
        fits: Whether states agreed; without that the numbers cannot.

    Returns:
        The conventions, with the representation that the numbers show.
    """
    world, limit = simulator.conventions, simulator.tolerances.path
    if not (fits and meaning.state_rotation and world.state_rotation) or STATE not in played.states:
        return meaning
    simulated = played.states[STATE].astype(np.float64)
    recorded = episode.states[STATE][: len(simulated)]
    at, off = meaning.state_rotation_at, {}
    for name in THREE_NUMBERS:
        numbers = Conversion(replace(meaning, state_rotation=name), world).state(simulated)
        if numbers.shape == recorded.shape:
            # The median: a jump between two signs of half a turn is rounding, not a convention.
            off[name] = float(np.median(np.abs(numbers - recorded)[:, at : at + 3].max(axis=1)))
    if meaning.state_rotation not in off:
        return meaning
    mine = off.pop(meaning.state_rotation)
    best = min(off, key=off.get)
    if mine > limit and off[best] <= limit:
        report.add(
            "state_rotation",
            BROKEN,
            f"the state's rotation is {best}, declared is {meaning.state_rotation} (off by {mine:.2g})",
            f'set "state_rotation": "{best}" under "conventions" in meta/vita_vla.json',
        )
        return replace(meaning, state_rotation=best)
    status = CONFIRMED if mine <= limit < off[best] else UNDECIDED
    report.add("state_rotation", status, f"{meaning.state_rotation}; {best} would be off by {off[best]:.1e}")
    return meaning
