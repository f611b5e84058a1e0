"""Policies without a network, for the tests of the evaluation."""

from __future__ import annotations

import hashlib

import numpy as np

from lerobot_policy_vita_vla.evaluation.manifest import Manifest, make_manifest

T = 3


class LookingPredictor:
    """Acts on every bit of what it sees, so that any difference in a picture or a state shows."""

    policy_type, fingerprint = "looking", "looking-1"
    n_action_steps, ensemble_coeff, n_obs_steps, uses_images = None, None, 1, True
    execute_from, rounds = 0, False

    def __init__(self, **settings):
        self.calls: list[int] = []
        for name, value in settings.items():
            setattr(self, name, value)

    def predict(self, observations):
        self.calls.append(len(observations))
        return np.stack([self.answer(row) for row in observations])

    def answer(self, row) -> np.ndarray:
        seen = row["pixels"].tobytes() + row["agent_pos"].tobytes() + row["task"].encode()
        seed = int.from_bytes(hashlib.sha256(seen).digest()[:8], "big")
        return np.random.default_rng(seed).uniform(-1, 1, (T, 4)).astype(np.float32)


class InterruptedPredictor(LookingPredictor):
    """The same policy, until someone presses Ctrl-C (or something else happens) at a given call."""

    def __init__(self, at_call: int, happening):
        super().__init__()
        self.at_call, self.happening = at_call, happening

    def predict(self, observations):
        if len(self.calls) == self.at_call:
            self.happening()
        return super().predict(observations)


def short_manifest(episodes: int = 2, steps: int = 12) -> Manifest:
    """Two tasks, small pictures, few steps."""
    return make_manifest(
        ["door-open", "drawer-open"], episodes, seed=7, observation_size=32, episode_length=steps
    )


def comparable(episodes: list[dict]) -> list[tuple]:
    """What must be the same in two runs: everything but the order and which episodes were filmed."""
    return sorted((e["id"], e["success"], e["steps"], e["state_hash"]) for e in episodes)
