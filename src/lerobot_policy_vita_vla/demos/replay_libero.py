"""LIBERO for the golden replay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE
from lerobot_policy_vita_vla.conventions import OF_STATES, RecordingInfo
from lerobot_policy_vita_vla.demos.libero_suite import CAMERAS, find_protocol, locate
from lerobot_policy_vita_vla.demos.replay_metaworld import MetaworldSimulator
from lerobot_policy_vita_vla.demos.simulator import Tolerances

STATE = "observation.state"

PHYSICS_HZ = 500
"""robosuite's physics step is 2 ms."""

SUBSTEPS = (10, 20, 25, 50)
"""Physics steps per action to try; LIBERO itself takes 25."""


class LiberoSimulator:
    """Replays recordings of `demos.record`.

    Under protocols whose first observation is from before the settle steps (`Protocol.refresh`), the hand and
    the pictures of the reset are handed out until the first action; where things are is from after them, as
    recordings have it.

    Args:
        info: The recording's own description: tasks, seeds, protocol, render quality, picture size.
    """

    tolerances = Tolerances(start=1e-5, path=5e-3, picture=6.0)
    """Measured by runs/replay_caught.py (results/replay/libero.json). The same machine replays bit by bit;
    one settle step too many moves a number by 1.2e-4 at the first frame; a wrong gripper, rate or mode by
    0.16 or more along the path; another orientation is 11 grey levels off. Contacts amplify: actions
    changed in their last bit end up 0.05 away, beyond `path`, so that on another machine a broken trajectory
    may be rounding."""
    control_rates = tuple(PHYSICS_HZ / substeps for substeps in SUBSTEPS)

    def __init__(self, info: RecordingInfo | None):
        protocol = info.settings.get("protocol") if info else None
        if protocol is None or not info.seeds:
            raise ValueError(
                "the LIBERO replay needs to know protocol and seeds, which `vita-vla demos record` writes to "
                "meta/vita_vla.json. This dataset does not name them; human demonstrations begin at starts "
                "that are not among LIBERO's official ones, so theirs are not known. What can be checked "
                "without them: vita-vla demos check"
            )
        self._info, self._protocol = info, find_protocol(protocol)
        if self._protocol.state_rotation == OF_STATES:
            # Such a state does not tell the hand's rotation, but follows from robosuite's own.
            self._protocol = replace(self._protocol, state_rotation="axis_angle_2pi")
        self.conventions = self._protocol.conventions(info.observation_size)
        self.first_is_old = not self._protocol.refresh
        self._scene, self._first = None, None

    @property
    def max_steps(self) -> int:
        """The longest of the recorded tasks' limits, settle steps included."""
        suites = {locate(task)[0] for task in self._info.task_names}
        return max(self._protocol.steps(suite) for suite in suites) + 60

    starts = MetaworldSimulator.starts
    """What `meta/vita_vla.json` says of seeds and attempts does not depend on the suite."""

    def reset(self, start: tuple[str, int], control_hz: float) -> None:
        """See `Simulator.reset`."""
        from lerobot_policy_vita_vla.demos.libero import LiberoScene

        task, seed = start
        if self._scene is None or self._scene.task != task:
            self.close()
            size, quality = self._info.observation_size, self._info.quality
            self._scene = LiberoScene(
                task, protocol=self._protocol.name, quality=quality, observation_size=size
            )
            # The replay settles by itself, and may try other numbers of settle steps.
            self._scene.protocol = replace(self._protocol, settle_steps=0, refresh=True)
        self._scene.rendering = False
        self._scene.reset(seed=seed)
        set_control_rate(self._scene, control_hz)
        self._first = self._scene.observation() if self.first_is_old else None

    def idle(self) -> None:
        """One settle step of the protocol."""
        self._scene.idle()

    def step(self, action: np.ndarray) -> None:
        """See `Simulator.step`."""
        self._first = None
        self._scene.step(np.asarray(action, dtype=np.float32))

    def state(self) -> dict[str, np.ndarray]:
        """What the policy reads (8,), and where things are (6,), which tells one start from another."""
        known = self._scene.known_state().astype(np.float32)
        hand = self._scene.state() if self._first is None else self._first["agent_pos"]
        return {STATE: hand.astype(np.float32), PRIVILEGED_STATE: known}

    def render(self) -> dict[str, np.ndarray]:
        """Both cameras, in the protocol's orientation."""
        seen = self._scene.observation() if self._first is None else self._first
        return {f"observation.images.{name}": seen[f"pixels.{name}"] for name in CAMERAS}

    def close(self) -> None:
        """See `Simulator.close`."""
        if self._scene is not None:
            self._scene.close()
            self._scene = None


def set_control_rate(scene, control_hz: float) -> None:
    """Let a scene that was reset execute ``control_hz`` actions per second from now on.

    Args:
        scene: `libero.LiberoScene`.
        control_hz: A divisor of `PHYSICS_HZ`.
    """
    env = scene._env.env
    # robosuite counts physics steps by rounding down, hence the half step.
    env.control_timestep = (round(PHYSICS_HZ / control_hz) + 0.5) / PHYSICS_HZ
    for name in env.observation_names:
        env.modify_observable(name, "sampling_rate", control_hz)
