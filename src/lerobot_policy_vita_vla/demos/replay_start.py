"""Finding the state from which an episode was recorded: which start, how many settle steps, at which rate,
and how its rotation is written down.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lerobot_policy_vita_vla.conventions import Conventions
from lerobot_policy_vita_vla.conversion import Conversion
from lerobot_policy_vita_vla.demos.replay_data import STATE, RecordedEpisode
from lerobot_policy_vita_vla.demos.replay_play import Assumption, Played, begin, differences, play
from lerobot_policy_vita_vla.demos.replay_report import BROKEN, CONFIRMED, UNDECIDED, ReplayReport
from lerobot_policy_vita_vla.demos.simulator import Simulator

MOST_SETTLE_STEPS = 30
"""Our choice: protocols in use settle for 0, 5, 10 or 20 steps."""

LIKELY = 3
"""Starts for which other settle steps and rates are tried; each costs a reset and `MOST_SETTLE_STEPS`."""

NEARER = 0.5
"""Our choice: what halves the difference is the likeliest explanation, if nothing removes it."""


EARLY = 3
"""Frames that count as first: contacts, which amplify rounding, come later."""

THREE_NUMBERS = ("axis_angle", "axis_angle_2pi", "euler_xyz")


class Guess(NamedTuple):
    """A way to reach an episode's first state.

    Args:
        off: Largest difference to the recorded first state.
        meaning: Conventions with the settle steps and the control rate that lead there.
        start: One of the simulator's starts.
    """

    off: float
    meaning: Conventions
    start: Hashable


def find_starts(
    simulator: Simulator, episode: RecordedEpisode, meaning: Conventions
) -> tuple[Guess, Iterator[Guess]]:
    """Where an episode may have begun.

    Returns:
        The best start with the conventions as they are, and the ways that lead to the recorded state, at the
        declared control rate first, then fewest changes first, found as they are asked for. Where none does,
        what comes much nearer, or the first again.

    Raises:
        ValueError: If the simulator knows no start for this episode.
    """
    limit, declared = simulator.tolerances.start, None
    starts = list(simulator.starts(episode.instruction, episode.number))
    if not starts:
        raise ValueError(
            f"the simulator knows no start for episode {episode.index} ({episode.instruction!r})"
        )
    for start in starts:
        begin(simulator, start, meaning)
        guess = Guess(_off(simulator, episode, meaning), meaning, start)
        declared = min(declared or guess, guess, key=lambda g: g.off)
        if declared.off <= limit:
            return declared, iter([declared])
    likely = list(dict.fromkeys([declared.start, *starts[:LIKELY]]))
    return declared, _ways(simulator, episode, declared, likely)


def _ways(
    simulator: Simulator, episode: RecordedEpisode, declared: Guess, starts: list[Hashable]
) -> Iterator[Guess]:
    # One of each rate: a hand that has come to rest is at rest at every rate, so the path must decide.
    limit, meaning = simulator.tolerances.start, declared.meaning
    first = _search(simulator, episode, meaning, starts)
    if first.off <= limit:
        yield first
    others = [
        _search(simulator, episode, replace(meaning, control_hz=rate), starts)
        for rate in simulator.control_rates
        if rate != meaning.control_hz
    ]
    others.sort(key=lambda g: (len(meaning.differences(g.meaning)), g.off))
    yield from (guess for guess in others if guess.off <= limit)
    nearest = min([first, *others], key=lambda g: g.off)
    if nearest.off > limit:
        yield nearest if nearest.off < NEARER * declared.off else declared


def judge_start(
    report: ReplayReport, simulator: Simulator, episode: RecordedEpisode, declared: Guess, found: Guess
) -> None:
    """Say what an episode's first state shows.

    Args:
        report: Takes ``settle_steps``, ``control_rate`` and ``initial_state``.
        simulator: For tolerances, and to try other settle steps.
        episode: The recording.
        declared: The best start with the conventions as they were.
        found: The way that is believed.
    """
    limit, meaning = simulator.tolerances.start, declared.meaning
    exact = found.off <= limit
    if not exact and found.meaning == meaning:
        begin(simulator, declared.start, meaning)
        report.add(
            "initial_state",
            BROKEN,
            f"no start gives the first state of episode {episode.index} ({episode.instruction!r}): the "
            f"nearest is {declared.off:.2g} off in {_where(simulator, episode)}, and not nearer after up to "
            f"{MOST_SETTLE_STEPS} settle steps; its actions cannot be judged",
            "record again with this version of the simulator, or with seeds that meta/vita_vla.json names",
        )
        return
    if found.meaning == meaning:
        report.measure("start", found.off)
        report.add("initial_state", CONFIRMED, f"start {found.start} of episode {episode.index}")
        if "settle_steps" not in report.verdicts:
            _confirm_settling(simulator, episode, found, report)
        return
    seen = f"the first state of episode {episode.index} is {declared.off:.1e} off as declared"
    still = "" if exact else f" (still {found.off:.1e} off)"
    if (rate := found.meaning.control_hz) != meaning.control_hz:
        report.add(
            "control_rate",
            BROKEN,
            f"{seen}, and appears when the simulator runs at {rate:g} Hz{still}",
            f"record again at {simulator.conventions.control_hz:g} Hz, or train and run everything at "
            f"{rate:g} Hz",
        )
    if (steps := found.meaning.settle_steps) != meaning.settle_steps:
        report.add(
            "settle_steps",
            BROKEN,
            f"{seen} ({meaning.settle_steps} settle steps), and appears after {steps}{still}",
            f'set "settle_steps": {steps} under "conventions" in meta/vita_vla.json and let the '
            f"environment do {steps} idle steps after its reset",
        )


def blame_start(report: ReplayReport, start: Hashable) -> None:
    """Say that another start was recorded where the first numbers fit and nothing else does.

    A state may hold the robot alone, which in LIBERO begins alike from every seed; where things stand shows
    in the first picture, before any action, and in what happens when they are touched.

    Args:
        report: ``trajectory`` and ``pictures`` become ``initial_state`` if both are broken.
        start: The one whose first numbers fitted.
    """
    verdicts = report.verdicts
    if {"trajectory", "pictures"} <= set(report.broken) and verdicts["initial_state"].status == CONFIRMED:
        seen, moved = verdicts.pop("pictures"), verdicts.pop("trajectory")
        report.add(
            "initial_state",
            BROKEN,
            f"the first numbers are those of start {start}, but {seen.found}, and {moved.found}: things "
            "stand elsewhere than this start puts them",
            "record again with this version of the simulator, or with the seeds of meta/vita_vla.json; if "
            f"the scene is the same: {seen.fix}",
        )


def _search(
    simulator: Simulator, episode: RecordedEpisode, meaning: Conventions, starts: list[Hashable]
) -> Guess:
    # The best at one rate; the declared settle steps, where they lead there.
    tried: list[Guess] = []
    for start in starts:
        tried += _while_settling(simulator, episode, meaning, start)
        if min(tried, key=lambda g: g.off).off <= simulator.tolerances.start:
            break
    as_many = [g for g in tried if g.meaning.settle_steps == meaning.settle_steps]
    settled = min(as_many, key=lambda g: g.off)
    return settled if settled.off <= simulator.tolerances.start else min(tried, key=lambda g: g.off)


def _while_settling(simulator: Simulator, episode: RecordedEpisode, meaning: Conventions, start: Hashable):
    begin(simulator, start, replace(meaning, settle_steps=0))
    for steps in range(MOST_SETTLE_STEPS + 1):
        yield Guess(_off(simulator, episode, meaning), replace(meaning, settle_steps=steps), start)
        if steps < MOST_SETTLE_STEPS:
            simulator.idle()


def _confirm_settling(simulator: Simulator, episode, found: Guess, report: ReplayReport) -> None:
    # Whether another number of settle steps would have been noticed.
    wrong = [
        guess
        for guess in _while_settling(simulator, episode, found.meaning, found.start)
        if guess.meaning.settle_steps != found.meaning.settle_steps
    ]
    steps, limit = found.meaning.settle_steps, simulator.tolerances.start
    if _early(simulator, episode, found) <= limit:
        # Where the first frame is from before settling, the next ones tell.
        wrong = [g if g.off > limit else g._replace(off=_early(simulator, episode, g)) for g in wrong]
    nearest = min(wrong, key=lambda g: g.off)
    report.add(
        "settle_steps",
        CONFIRMED if nearest.off > limit else UNDECIDED,
        f"{steps}; with {nearest.meaning.settle_steps} the first states would be {nearest.off:.1e} off, "
        f"allowed are {limit:.1e}",
    )


def _early(simulator: Simulator, episode: RecordedEpisode, guess: Guess) -> float:
    assumed = Assumption("settle_steps", "", guess.meaning)
    return play(simulator, guess.start, episode, assumed, frames=EARLY).worst


def _where(simulator: Simulator, episode: RecordedEpisode) -> str:
    found = []
    for key, value in simulator.state().items():
        if key in episode.states and episode.states[key].shape[1:] == value.shape:
            off = np.abs(episode.states[key][0] - value)
            found.append((float(off.max()), f"{key}[{int(off.argmax())}]"))
    return max(found)[1] if found else "the state"


def _off(simulator: Simulator, episode: RecordedEpisode, meaning: Conventions) -> float:
    states = {key: value[None] for key, value in simulator.state().items()}
    world = simulator.conventions
    readings = [meaning]
    if meaning.state_rotation and world.state_rotation:
        # How the state writes a rotation down is judged over the whole episode, not here.
        readings += [replace(meaning, state_rotation=name) for name in ("axis_angle", "euler_xyz")]
    return min(float(differences(states, episode, reading, world).max()) for reading in readings)


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
    for name in dict.fromkeys((*THREE_NUMBERS, meaning.state_rotation)):
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
