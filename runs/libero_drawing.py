"""What leaving out unseen geoms saves when LIBERO is drawn in software, into results/libero/drawing.json.

    MUJOCO_GL=osmesa .venv/bin/python runs/libero_drawing.py

A task per suite; the scripted expert plays one official start, and every sixth state is drawn by both
cameras with `demos.culling` and without it, in turns. Pictures must be equal bit by bit, or nothing is
written. Times are CPU time of one thread, of both cameras together; the ratio of a state is the time without
over the time with.

Hardware: one CPU core, two minutes. Needs the extra `libero` and the assets (docs/libero.md).
"""

import time
from pathlib import Path

import numpy as np
from libero_ratios import measure_all, ratios

from lerobot_policy_vita_vla.demos.libero import LiberoScene
from lerobot_policy_vita_vla.demos.libero_pictures import Painter
from lerobot_policy_vita_vla.demos.libero_suite import CAMERAS

TASKS = ("libero_spatial_0", "libero_object_0", "libero_goal_1", "libero_10_2")
CASES = (("light", 96), ("light", 256), ("standard", 256))
EVERY, STATES = 6, 20


def plain(painter: Painter) -> dict[str, np.ndarray]:
    """What `Painter.draw` does, with everything that there is."""
    renderer, pictures = painter._renderer, {}
    for name, camera in CAMERAS.items():
        renderer.update_scene(painter._data, camera=camera, scene_option=painter._options)
        pictures[name] = np.flipud(renderer.render())
    return pictures


def measure(task: str, quality: str, size: int) -> dict:
    scene = LiberoScene(task, quality=quality, observation_size=size)
    scene.reset(seed=0)
    painter, scene.rendering = scene._painter, False
    ways, times = (plain, Painter.draw), ([], [])
    for state in range(STATES):
        for _ in range(EVERY):
            scene.step(scene.expert_action())
        pictures = [None, None]
        for way in (0, 1) if state % 2 else (1, 0):
            began = time.process_time()
            pictures[way] = ways[way](painter)
            times[way].append(time.process_time() - began)
        for name, picture in pictures[0].items():
            np.testing.assert_array_equal(pictures[1][name], picture, err_msg=f"{task} {name} state {state}")
    scene.close()
    return {
        "task": task,
        "quality": quality,
        "size": size,
        "states": STATES,
        "ms_with_everything": round(float(np.median(times[0])) * 1e3, 1),
        "ms_with_culling": round(float(np.median(times[1])) * 1e3, 1),
        **ratios(times[0], times[1]),
    }


if __name__ == "__main__":
    measure_all(
        __doc__,
        "MUJOCO_GL=osmesa .venv/bin/python runs/libero_drawing.py",
        Path("results/libero/drawing.json"),
        measure,
        [(task, *case) for task in TASKS for case in CASES],
    )
