"""Policies on disk, for the tests of serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch


def save_policy(policy, folder: Path, stats) -> Path:
    """A checkpoint as `lerobot-train` leaves it."""
    from lerobot.policies.factory import make_pre_post_processors

    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=stats):
        pipeline.save_pretrained(folder)
    return folder


def look(served, seed: int = 0, task: str = "open the door") -> dict:
    """An observation that a served policy reads."""
    generator = np.random.default_rng(seed)
    made = {}
    for key, wanted in served.observation.items():
        if wanted.dtype == "uint8":
            made[key] = generator.integers(0, 256, wanted.shape, dtype=np.uint8)
        else:
            made[key] = generator.uniform(-0.5, 0.5, wanted.shape).astype(np.float32)
    return made | {"task": task}


def in_process(served, observations: list[dict]) -> list[np.ndarray]:
    """Chunks that the policy itself predicts when LeRobot calls it step by step, without a server."""
    served.policy.reset()
    chunks = []
    for observation in observations:
        batch = {"task": [observation["task"]]}
        for key, value in observation.items():
            if key == "task":
                continue
            tensor = torch.from_numpy(value)
            batch[key] = (tensor.permute(2, 0, 1).float() / 255 if value.dtype == np.uint8 else tensor)[None]
        with torch.inference_mode():
            chunk = served.policy.predict_action_chunk(served.preprocessor(batch))
            chunks.append(served.postprocessor(chunk[0]).numpy())
    return chunks


class Scripted:
    """Stands where a `ServedPolicy` stands, and answers what a test says."""

    def __init__(self, answers, like):
        self.answers, self.config, self.observation = answers, like.config, like.observation
        self.policy, self.n_obs_steps, self.fingerprint = like.policy, 1, "scripted"
        self.check, self.blank = like.check, like.blank
        self.calls = 0

    def session(self):
        return self

    def observe(self, observation):
        pass

    def act(self, observation):
        self.calls += 1
        answer = self.answers(observation) if callable(self.answers) else self.answers
        return np.asarray(answer, dtype=np.float32)
