"""A LeRobot checkpoint as a function from one robot's observation to an action chunk.

`ServedPolicy` belongs to the server; a `Session` to one robot, and holds what the policy remembers of it:

    observation {"observation.images.front": (h, w, 3) uint8, "observation.state": (S,), "task": str}
        -> check() -> preprocessor -> policy (+ this session's history) -> postprocessor -> chunk (T, A)
"""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lerobot_policy_vita_vla.chunking import ObservationHistory
from lerobot_policy_vita_vla.evaluation.predictor import READS_BYTES, checkpoint_folder, load_policy
from lerobot_policy_vita_vla.teacher.load import checkpoint_fingerprint
from vita_vla_client.wire import Jpeg

STATE, TASK, PROMPT = "observation.state", "task", "prompt"
"""Names in an observation; the last is openpi's for the instruction."""

MAX_TASK = 2000
"""Characters of an instruction; what is longer than the prompt of any VLM is a mistake or an attack."""

START_OF_SCAN, MAX_SCANS = b"\xff\xda", 8
"""Marker of a JPEG; one of three colours has one to three scans, and its thumbnail others."""


class BadObservationError(ValueError):
    """The robot sent something that the policy cannot read; its words go back to the robot."""


@dataclass(frozen=True)
class Wanted:
    """Shape and type of one entry of an observation."""

    shape: tuple[int, ...]
    dtype: str

    def record(self) -> dict[str, Any]:
        """As `metadata` shows it."""
        return {"shape": list(self.shape), "dtype": self.dtype}


class ServedPolicy:
    """A policy in eval mode with its processors.

    Args:
        policy: The policy.
        preprocessor: Its saved preprocessing pipeline.
        postprocessor: Its saved postprocessing pipeline.
        fingerprint: Tells what acts (`teacher.load.checkpoint_fingerprint`).

    Raises:
        ValueError: It predicts from a history that this package cannot keep for it.
    """

    def __init__(self, policy, preprocessor, postprocessor, *, fingerprint: str = ""):
        self.policy, self.config = policy.eval(), policy.config
        self.preprocessor, self.postprocessor, self.fingerprint = preprocessor, postprocessor, fingerprint
        config = self.config
        self.n_obs_steps = getattr(config, "n_obs_steps", 1) or 1
        if self.n_obs_steps > 1 and not hasattr(policy, "chunk_of_history"):
            raise ValueError(
                f"a policy of type {config.type!r} with n_obs_steps={self.n_obs_steps} keeps its history "
                "for one "
                "robot inside itself, so it cannot be served; drive the robot with lerobot-rollout instead"
            )
        pictures = {key: feature.shape for key, feature in (config.image_features or {}).items()}
        self.observation = {key: Wanted((h, w, 3), "uint8") for key, (_, h, w) in pictures.items()}
        if (state := config.robot_state_feature) is not None:
            self.observation[STATE] = Wanted(tuple(state.shape), "float32")

    @classmethod
    def load(cls, path: str | Path, device: str) -> ServedPolicy:
        """Load a checkpoint.

        Args:
            path: What `evaluation.predictor.checkpoint_folder` takes.
            device: ``"cpu"``, ``"cuda"``, ...
        """
        folder = checkpoint_folder(path)
        if (folder / "adapter_config.json").is_file():
            raise ValueError(f"{folder} holds an adapter of LeRobot's --peft, not a policy: merge it first")
        return cls(*load_policy(folder, device), fingerprint=checkpoint_fingerprint(folder))

    def session(self) -> Session:
        """For one robot."""
        return Session(self)

    def check(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The observation as arrays, or an error that says what to send.

        Args:
            observation: As it came; JPEGs are decoded here.

        Raises:
            BadObservationError: Something is missing, not known, of another shape or type, or not finite.
        """
        task = observation.get(TASK, observation.get(PROMPT))
        given = {key: value for key, value in observation.items() if key not in (TASK, PROMPT)}
        if not isinstance(task, str) or len(task) > MAX_TASK:
            raise BadObservationError(
                f'"{TASK}" is the instruction, a text of at most {MAX_TASK} characters; got '
                + (f"{len(task)} characters" if isinstance(task, str) else type(task).__name__)
            )
        if not task.isprintable() or set("<>") & set(task):
            # The angle brackets mark a VLM's own tokens, such as a picture's place.
            raise BadObservationError(f'"{TASK}" is one line of text without < and >, got {task[:80]!r}')
        if unknown := sorted(set(given) - set(self.observation)):
            near = difflib.get_close_matches(unknown[0], self.observation, n=1, cutoff=0.3)
            raise BadObservationError(
                f"the policy reads no {unknown[0][:80]!r}{f'; did you mean {near[0]!r}?' if near else ''} "
                f"It reads {', '.join(self.observation)}"
            )
        if missing := [key for key in self.observation if key not in given]:
            raise BadObservationError(
                f"the observation lacks {', '.join(missing)}; the policy reads {', '.join(self.observation)}"
            )
        return {key: _fit(key, given[key], wanted) for key, wanted in self.observation.items()} | {TASK: task}

    def blank(self) -> dict[str, Any]:
        """An observation that passes `check`: black pictures and zeros."""
        return {key: np.zeros(w.shape, w.dtype) for key, w in self.observation.items()} | {TASK: "warm up"}

    def batch(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """What LeRobot's preprocessor takes, for one checked observation."""
        made: dict[str, Any] = {TASK: [observation[TASK]]}
        for key, wanted in self.observation.items():
            tensor = torch.from_numpy(observation[key])
            if wanted.dtype == "uint8":
                tensor = tensor.permute(2, 0, 1).contiguous()
                tensor = tensor if self.config.type in READS_BYTES else tensor.float() / 255
            made[key] = tensor[None]
        return made


class Session:
    """What a policy remembers of one robot's episode; not for two threads at once.

    Args:
        served: The policy.
    """

    def __init__(self, served: ServedPolicy):
        self.served = served
        self.reset()

    def reset(self) -> None:
        """A new episode begins."""
        served = self.served
        keys = tuple(served.observation)
        self._history = ObservationHistory(n_obs_steps=served.n_obs_steps, keys=keys)
        self._memory = None

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Remember a step on which the policy is not asked to act."""
        self._see(self.served.preprocessor(self.served.batch(observation)))

    @torch.inference_mode()
    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Action chunk (T, A) float32 in the robot's units for a checked observation."""
        served, policy = self.served, self.served.policy
        batch = served.preprocessor(served.batch(observation))
        device, use_amp = torch.device(served.config.device).type, getattr(served.config, "use_amp", False)
        seen = self._see(batch)
        with torch.autocast(device) if use_amp else contextlib.nullcontext():
            if self._memory is not None:
                chunk_BTA, self._memory = policy.act_on(self._memory, batch)
            elif served.n_obs_steps > 1:
                chunk_BTA = policy.chunk_of_history(seen)
            else:
                policy.reset()  # nothing of another robot may be left in its queues
                chunk_BTA = policy.predict_action_chunk(batch)
        # LeRobot's postprocessors take single actions, one per row.
        return served.postprocessor(chunk_BTA[0].float()).cpu().numpy().astype(np.float32)

    @torch.inference_mode()
    def _see(self, batch: dict[str, Any]) -> dict[str, Any]:
        if getattr(self.served.config, "reads_turns", False):
            self._memory = self.served.policy.observe(batch, self._memory)
            return batch
        return self._history.push(batch) if self.served.n_obs_steps > 1 else batch


def _fit(key: str, value: Any, wanted: Wanted) -> np.ndarray:
    is_picture = wanted.dtype == "uint8"
    if isinstance(value, Jpeg) and is_picture:
        return _decoded(key, value, wanted.shape)
    if isinstance(value, list) and not is_picture:
        try:
            value = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError):
            raise BadObservationError(f"{key} is a list of numbers, got {str(value)[:80]}") from None
    if not isinstance(value, np.ndarray):
        raise BadObservationError(
            f"{key} is an array {wanted.shape} {wanted.dtype}, got {type(value).__name__}"
        )
    if value.shape != wanted.shape:
        advice = ""
        if is_picture and value.shape == (3, *wanted.shape[:2]):
            advice = ": colours come last, picture.transpose(1, 2, 0)"
        elif is_picture and value.ndim == 3:
            advice = ": set the camera to that size, or scale the picture"
        raise BadObservationError(
            f"{key} is {wanted.shape} (the demonstrations' shape), got {value.shape}{advice}"
        )
    if is_picture:
        if value.dtype != np.uint8:
            raise BadObservationError(f"{key} is a picture in uint8 from 0 to 255, got {value.dtype}")
        return value
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise BadObservationError(f"{key} holds NaN or infinity, or numbers beyond float32: {value.tolist()}")
    return value


def _decoded(key: str, jpeg: Jpeg, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    if len(jpeg.data) > np.prod(shape) or jpeg.data.count(START_OF_SCAN) > MAX_SCANS:
        # A progressive JPEG may go over the same pixels thousands of times in a megabyte.
        raise BadObservationError(
            f"{key} is a JPEG of {len(jpeg.data)} bytes in many scans: send a plain one"
        )
    try:
        with Image.open(io.BytesIO(jpeg.data), formats=["JPEG"]) as picture:
            if picture.info.get("progressive"):
                raise BadObservationError(f"{key} is a progressive JPEG: send a plain (baseline) one")
            # Before anything is unpacked: a small file can claim to be a huge picture.
            if (picture.height, picture.width) != shape[:2]:
                raise BadObservationError(
                    f"{key} is {shape[0]}x{shape[1]} (height, width), got a JPEG of "
                    f"{picture.height}x{picture.width}"
                )
            return np.array(picture.convert("RGB"))
    except BadObservationError:
        raise
    except Exception as error:
        raise BadObservationError(f"{key} is not a JPEG that can be read: {type(error).__name__}") from None
