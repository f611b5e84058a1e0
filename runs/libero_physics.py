"""What LIBERO's physics saves by computing repeated stages once, into results/libero/physics.json.

    .venv/bin/python runs/libero_physics.py

A task per suite; the scripted expert plays one official start, nothing is drawn, with `demos.libero_physics`
and without it, in turns. All states must be equal bit by bit, or nothing is written. Times are CPU time of a
thread per action, the expert's own included; the ratio of an episode is the time without over the time with.

Hardware: one CPU core, two minutes. Needs the extra `libero` and the assets (docs/libero.md).
"""

import time
from pathlib import Path

import numpy as np
from libero_ratios import measure_all, ratios

from lerobot_policy_vita_vla.demos.libero import LiberoScene

TASKS = ("libero_spatial_0", "libero_object_0", "libero_goal_1", "libero_10_2")
ACTIONS, EPISODES = 60, 3


def play(scene: LiberoScene, shares: bool) -> tuple[np.ndarray, float]:
    """States after every action, and seconds of CPU time for them."""
    scene.rendering = True
    scene.reset(seed=0)
    scene.rendering = False
    scene._physics._usable = shares
    states, began = [], time.process_time()
    for _ in range(ACTIONS):
        scene.step(scene.expert_action())
        states.append(np.concatenate([scene.privileged_state(), scene.state()]))
    return np.array(states), time.process_time() - began


def measure(task: str) -> dict:
    scene = LiberoScene(task, quality="light", observation_size=96)
    times = {True: [], False: []}
    wanted, _ = play(scene, False)
    for episode in range(EPISODES):
        for shares in (True, False) if episode % 2 else (False, True):
            states, seconds = play(scene, shares)
            np.testing.assert_array_equal(states, wanted, err_msg=f"{task} episode {episode} {shares}")
            times[shares].append(seconds)
    scene.close()
    return {
        "task": task,
        "actions": ACTIONS,
        "episodes": EPISODES,
        "ms_as_robosuite": round(float(np.median(times[False])) / ACTIONS * 1e3, 1),
        "ms_computed_once": round(float(np.median(times[True])) / ACTIONS * 1e3, 1),
        **ratios(times[False], times[True]),
    }


if __name__ == "__main__":
    measure_all(
        __doc__,
        ".venv/bin/python runs/libero_physics.py",
        Path("results/libero/physics.json"),
        measure,
        [(task,) for task in TASKS],
    )
