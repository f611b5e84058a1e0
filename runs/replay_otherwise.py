"""The same actions in a simulator that another recorder set otherwise: other settle steps, another rate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lerobot_policy_vita_vla.demos import replay_libero, replay_metaworld
from lerobot_policy_vita_vla.demos.expert import Demonstration
from lerobot_policy_vita_vla.demos.metaworld import SceneEnv
from lerobot_policy_vita_vla.demos.scenes import METAWORLD, STATE


class OtherwiseMetaworld(SceneEnv):
    """Meta-World with other settle steps and another number of physics steps per action."""

    def __init__(self, task: str, *, settle_steps: int = 0, substeps: int = 5, **look):
        super().__init__(task, **look)
        self.settle_steps, self.substeps = settle_steps, substeps

    def _ensure_env(self) -> None:
        super()._ensure_env()
        self._env.frame_skip = self.substeps

    def reset(self, seed=None, **kwargs):
        answer = super().reset(seed=seed, **kwargs)
        for _ in range(self.settle_steps):
            self.step(np.array([0.0, 0.0, 0.0, -1.0], dtype=np.float32))
        return (self.observation(), answer[1]) if self.settle_steps else answer


def executed_again(
    bench,
    sound: dict[str, Demonstration],
    *,
    settle_steps: int | None = None,
    control_hz: float | None = None,
) -> dict[str, Demonstration]:
    """What a recorder would have seen of the same actions, whether or not they still succeed.

    Args:
        bench: `replay_cases.Bench`.
        sound: Its demonstrations.
        settle_steps: Idle steps after the reset; None are the suite's.
        control_hz: Rate at which the simulator executes actions; None is the suite's.
    """
    return {task: _execute(bench, task, demo, settle_steps, control_hz) for task, demo in sound.items()}


def _execute(bench, task: str, demo: Demonstration, settle_steps, control_hz) -> Demonstration:
    scene = _scene(bench, task, settle_steps, control_hz)
    scene.rendering = True
    seen, _ = scene.reset(seed=bench.seed)
    frames = []
    for action in demo.executed_action:
        pictures = [seen[key] for key in bench.scenes.cameras]
        seen_now = pictures[0] if len(pictures) == 1 else np.stack(pictures)
        frames.append((seen_now, seen[STATE], scene.known_state()))
        seen, *_ = scene.step(action)
    scene.close()
    pictures, state, known = (np.stack(column) for column in zip(*frames, strict=True))
    return demo._replace(
        pictures=pictures, state=state.astype(np.float32), environment_state=known.astype(np.float32)
    )


def _scene(bench, task: str, settle_steps: int | None, control_hz: float | None):
    if bench.scenes is METAWORLD:
        substeps = round(replay_metaworld.PHYSICS_HZ / (control_hz or METAWORLD.control_hz))
        return OtherwiseMetaworld(
            task, observation_size=bench.size, settle_steps=settle_steps or 0, substeps=substeps
        )
    from lerobot_policy_vita_vla.demos.libero import LiberoScene

    scene = LiberoScene(task, protocol=bench.protocol, quality="light", observation_size=bench.size)
    if settle_steps is not None:
        scene.protocol = replace(scene.protocol, settle_steps=settle_steps)
    if control_hz:
        scene.rendering = False
        scene.reset(seed=bench.seed)  # builds the simulator
        replay_libero.set_control_rate(scene, control_hz)
    return scene
