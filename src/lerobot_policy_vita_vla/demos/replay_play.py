"""Playing recorded actions under an assumption about what they mean, and how far the states then are."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from lerobot_policy_vita_vla.conventions import OF_STATES, ROTATIONS, Conventions
from lerobot_policy_vita_vla.conversion import Conversion, read_rotation, write_rotation
from lerobot_policy_vita_vla.demos.replay_data import STATE, RecordedEpisode
from lerobot_policy_vita_vla.demos.simulator import Simulator

GRIPPERS = ((-1.0, 1.0), (1.0, -1.0), (0.0, 1.0), (1.0, 0.0))
"""Commands for open and closed that are in use."""

STRIDES = (2, 3, 4)
"""A dataset may hold every second, third or fourth frame of a recording only."""


SETTLES = (0, 5, 10, 20)
"""Settle steps of protocols in use, tried along the path where the first frame is from before them."""

FACTORS = (2.0, 0.5, 10.0, 0.1, 100.0, 0.01, 180 / np.pi, np.pi / 180)
"""Units that are confused: twice or half of it, centimetres or millimetres for metres, degrees."""

UNITLESS = (None, "quaternion_xyzw")


class Assumption(NamedTuple):
    """What recorded actions could mean.

    Args:
        convention: Which convention it is about.
        meaning: The assumption in words.
        conventions: All conventions, with this one as assumed.
        repeat: Simulator steps per recorded action.
    """

    convention: str
    meaning: str
    conventions: Conventions
    repeat: int = 1


@dataclass
class Played:
    """What a replay gave.

    Args:
        states: Column -> (frames played, n).
        pictures: Frame -> camera -> picture.
        off: (frames played, numbers) difference of every state number.
    """

    states: dict[str, np.ndarray] = field(default_factory=dict)
    pictures: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    off: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def deviation(self) -> np.ndarray:
        """(frames played,) largest difference of any number."""
        return self.off.max(axis=1)

    @property
    def worst(self) -> float:
        """Largest difference of any number in any frame."""
        return float(self.off.max())


def play(
    simulator: Simulator,
    start: Hashable,
    episode: RecordedEpisode,
    assumption: Assumption,
    *,
    frames: int | None = None,
    draw: bool = False,
    stop_above: float = np.inf,
) -> Played:
    """Execute an episode's actions from a start.

    Args:
        simulator: Where.
        start: One of ``simulator.starts``.
        episode: The recording.
        assumption: What its actions mean.
        frames: Frames to play at most; None plays all that the simulator's step limit allows.
        draw: Keep pictures of the frames of which the episode has some, and of their neighbours.
        stop_above: Stop once a state differs by more than this.
    """
    meaning, world = assumption.conventions, simulator.conventions
    allowed = (simulator.max_steps - meaning.settle_steps) // assumption.repeat
    count = min(len(episode.actions), allowed, frames or len(episode.actions))
    begin(simulator, start, meaning)
    steps: list[dict[str, np.ndarray]] = []
    played, off = Played(), []
    for frame in range(count):
        state = dict(simulator.state())
        steps.append(state)
        here = {key: value[None] for key, value in state.items()}
        off.append(differences(here, episode, meaning, world, frame)[0])
        if draw and not episode.pictures.keys().isdisjoint((frame - 1, frame, frame + 1)):
            played.pictures[frame] = {key: np.array(p) for key, p in simulator.render().items()}
        if off[-1].max() > stop_above or frame + 1 == count:
            break
        for _ in range(assumption.repeat):
            simulator.step(_to_world(episode.actions[frame], simulator, meaning))
    played.states = {key: np.stack([state[key] for state in steps]) for key in steps[0]}
    played.off = np.array(off)
    return played


def begin(simulator: Simulator, start: Hashable, meaning: Conventions) -> None:
    """Reset, and let things settle."""
    simulator.reset(start, meaning.control_hz)
    for _ in range(meaning.settle_steps):
        simulator.idle()


def differences(
    states: dict[str, np.ndarray],
    episode: RecordedEpisode,
    meaning: Conventions,
    world: Conventions,
    first: int = 0,
) -> np.ndarray:
    """(n, numbers) differences between simulated states (n, S) and recorded ones from frame ``first`` on.

    The hand's orientation counts as one number, the angle between the two, whatever represents it.

    Raises:
        ValueError: If a recorded state has another size than the simulator's, or no column is in both.
    """
    found = []
    for key, simulated in states.items():
        if key not in episode.states:
            continue
        recorded = episode.states[key][first : first + len(simulated)]
        if key == STATE and world.state_rotation and meaning.state_rotation:
            if meaning.state_rotation == OF_STATES != world.state_rotation:
                simulated, world = Conversion(meaning, world).state(simulated), meaning
            simulated, there = _take_rotation(simulated, world)
            recorded, here = _take_rotation(recorded, meaning)
            found.append((here * there.inv()).magnitude()[:, None])
        if simulated.shape != recorded.shape:
            raise ValueError(
                f"{key} has {recorded.shape[1]} numbers in the dataset and {simulated.shape[1]} in the "
                "simulator; record again, or give --simulator one whose state() is the dataset's"
            )
        found.append(np.abs(simulated.astype(np.float64) - recorded))
    if not found:
        raise ValueError(
            f"the simulator's state() has {sorted(states)}, the dataset {sorted(episode.states)}: nothing to "
            "compare"
        )
    return np.concatenate(found, axis=1)


def assumptions(
    base: Assumption, actions: np.ndarray, simulator: Simulator, without: Collection[str] = ()
) -> list[Assumption]:
    """What else the actions could mean, one change against ``base`` each.

    Args:
        base: The assumption so far.
        actions: (T, A), to leave out what their range rules out.
        simulator: For the control rates it can run at.
        without: Conventions to leave alone.
    """
    now = base.conventions
    found: list[Assumption] = []
    if now.gripper_dim is not None:
        command = actions[:, now.gripper_dim]
        for opens, closes in GRIPPERS:
            low, high = sorted((opens, closes))
            fits = low - 1e-6 <= command.min() and command.max() <= high + 1e-6
            if fits and (opens, closes) != (now.gripper_open, now.gripper_closed):
                meaning = f"the gripper opens with {opens:g} and closes with {closes:g}"
                other = replace(now, gripper_open=opens, gripper_closed=closes)
                found.append(base._replace(convention="gripper", meaning=meaning, conventions=other))
    for name in ("axis_angle", "euler_xyz"):
        # The two axis-angles are one and the same rotation to a controller.
        same = now.action_rotation and name.split("_")[0] == now.action_rotation.split("_")[0]
        if ROTATIONS.get(now.action_rotation) == ROTATIONS[name] and not same:
            other = replace(now, action_rotation=name)
            meaning = f"the action's rotation is {name}"
            found.append(base._replace(convention="action_rotation", meaning=meaning, conventions=other))
    for name in ("axis_angle", "euler_xyz"):
        same = now.state_rotation and name.split("_")[0] == now.state_rotation.split("_")[0]
        if ROTATIONS.get(now.state_rotation) == ROTATIONS[name] and not same:
            other, meaning = replace(now, state_rotation=name), f"the state's rotation is {name}"
            found.append(base._replace(convention="state_rotation", meaning=meaning, conventions=other))
    if now.state_position is not None:
        mode = "absolute" if now.action_mode == "delta" else "delta"
        # Targets are metres (and radians), whatever the unit of a displacement.
        units = {"position_unit": 1.0, "rotation_unit": 1.0} if mode == "absolute" else {}
        other = replace(now, action_mode=mode, **units)
        meaning = "actions are targets" if mode == "absolute" else "actions are displacements"
        found.append(base._replace(convention="action_mode", meaning=meaning, conventions=other))
    for name, there in _units(now, simulator.conventions):
        meaning = f"{name} is {there:g}"
        other = replace(now, **{name: there})
        found.append(base._replace(convention=name, meaning=meaning, conventions=other))
    if getattr(simulator, "first_is_old", False):
        for steps in SETTLES:
            if steps != now.settle_steps:
                meaning, other = f"{steps} settle steps were made", replace(now, settle_steps=steps)
                found.append(base._replace(convention="settle_steps", meaning=meaning, conventions=other))
    if base.repeat == 1:
        for rate in simulator.control_rates:
            if rate != now.control_hz:
                other, meaning = replace(now, control_hz=rate), f"recorded at {rate:g} actions per second"
                found.append(Assumption("control_rate", meaning, other))
        for repeat in STRIDES:
            meaning = f"one frame in {repeat} was kept, so frames are {now.control_hz / repeat:g} per second"
            found.append(Assumption("control_rate", meaning, now, repeat))
    return [a for a in found if a.convention not in without]


def _units(now: Conventions, world: Conventions) -> Iterator[tuple[str, float]]:
    # A target's are metres and radians; the simulator's own unit first.
    if now.action_mode == "absolute":
        return
    names = ["position_unit", *(["rotation_unit"] if now.action_rotation not in UNITLESS else [])]
    for name in names:
        unit = getattr(now, name)
        there = [getattr(world, name), *(float(f"{unit * factor:.6g}") for factor in FACTORS)]
        yield from ((name, value) for value in dict.fromkeys(there) if abs(value / unit - 1) > 1e-3)


def _to_world(action: np.ndarray, simulator: Simulator, meaning: Conventions) -> np.ndarray:
    world = simulator.conventions
    if meaning.action_mode == world.action_mode or meaning.state_position is None:
        return Conversion(meaning, world).actions(action)
    # In metres and radians, with the hand where the simulator has it now.
    metric = replace(world, position_unit=1.0, rotation_unit=1.0)
    out = Conversion(meaning, metric).actions(np.asarray(action, dtype=np.float64))
    state = simulator.state()[STATE]
    sign = -1.0 if meaning.action_mode == "absolute" else 1.0
    out[:3] += sign * state[world.state_position : world.state_position + 3]
    if world.action_rotation and world.state_rotation:
        at, size = world.action_rotation_at, ROTATIONS[world.action_rotation]
        _, hand = _take_rotation(state[None], world)
        turn = read_rotation(out[at : at + size], world.action_rotation)
        turn = turn * hand.inv() if sign < 0 else turn * hand
        out[at : at + size] = write_rotation(turn, world.action_rotation)[0]
    return Conversion(metric, world).actions(out)


def _take_rotation(state: np.ndarray, conventions: Conventions):
    at, size = conventions.state_rotation_at, ROTATIONS[conventions.state_rotation]
    rest = np.delete(state, np.s_[at : at + size], axis=1)
    # Numbers that only look like Euler angles are compared as if they were some: without jumps.
    name = "euler_xyz" if conventions.state_rotation == OF_STATES else conventions.state_rotation
    return rest, read_rotation(state[:, at : at + size], name)
