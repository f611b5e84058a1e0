"""Begin to import the simulator in the background, before this process imports anything heavy itself.

Simulator processes are forked from a server (`multiprocessing`'s) that has imported what they need. That
takes as long as this process takes to import LeRobot and to load a policy; begun first, both happen at once.
"""

from __future__ import annotations

import multiprocessing

WORKER = "lerobot_policy_vita_vla.evaluation.worker"
SCENES = {
    "metaworld": "lerobot_policy_vita_vla.demos.metaworld",
    "libero": "lerobot_policy_vita_vla.demos.libero",
}
"""Suite -> its simulator; the same as in `evaluation.pool`, without importing that (a test compares them)."""


def start_importing(suite: str) -> None:
    """Start the server; does nothing where it runs already, or where there is none (not on Linux or macOS).

    Args:
        suite: Key of `SCENES`.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WORKER, SCENES[suite]])
    forkserver.ensure_running()
