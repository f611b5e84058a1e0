"""Any LeRobot policy as a function from observations to action chunks, one row per episode.

LeRobot's policies keep queues for one batch of environments that run in lockstep. Here episodes start and end
when they like, so queues and histories live with the episode (`worker.Rollout`) and the policy is only asked
for chunks.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch

from lerobot_policy_vita_vla.conventions import match_cameras
from lerobot_policy_vita_vla.conversion import Conversion
from lerobot_policy_vita_vla.demos.checkpoint_records import EVALUATED_UNDER, read_record
from lerobot_policy_vita_vla.demos.scenes import METAWORLD, STATE, Scenes, scenes_of
from lerobot_policy_vita_vla.evaluation.checks import conversion_of
from lerobot_policy_vita_vla.evaluation.manifest import Manifest
from lerobot_policy_vita_vla.files import read_json
from lerobot_policy_vita_vla.teacher.load import checkpoint_fingerprint, locate_checkpoint

PICTURE = "pixels"
"""With `STATE`, the keys of Meta-World's observations: (h, w, 3) uint8 and (S,) float; with H > 1, (H, h, w,
3) and (H, S). Other suites' pictures: `scenes.Scenes.cameras`."""

READS_BYTES = ("vita_vla",)
"""Policies that take pictures as bytes, too: a quarter of what goes to a GPU, and the same numbers, since
they turn pictures into bytes themselves."""


class ChunkPredictor(Protocol):
    """What the runner needs of whatever acts."""

    policy_type: str
    n_action_steps: int | None
    """Actions of a chunk to execute; None is all of them."""
    ensemble_coeff: float | None
    execute_from: int
    """Index in a chunk of the first action to execute."""
    n_obs_steps: int
    uses_images: bool
    rounds: bool
    """Computes in half precision (`batching.settle_batch`)."""
    fingerprint: str
    """Tells two policies apart when an evaluation continues."""

    def predict(self, observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Action chunks (n, T, A) float32 in environment units for n observations.

        Args:
            observations: ``{"pixels", "agent_pos", "task"}`` each, as the simulator gives them (of several
                pictures: `scenes.Scenes.cameras`).
        """
        ...


class PolicyPredictor:
    """A LeRobot policy with its processors.

    Args:
        policy: The policy.
        preprocessor: Its saved preprocessing pipeline.
        postprocessor: Its saved postprocessing pipeline.
        fingerprint: See `ChunkPredictor`.
        n_action_steps: Instead of the policy's own; given alone it also turns ensembling off, and execution
            starts at the chunk's first action.
        temporal_ensemble_coeff: Instead of the policy's own; executes one action per prediction.
        conversion: Where the policy's conventions are not the simulator's.
        scenes: The suite that is played.
    """

    def __init__(
        self,
        policy,
        preprocessor,
        postprocessor,
        *,
        fingerprint: str,
        n_action_steps: int | None = None,
        temporal_ensemble_coeff: float | None = None,
        conversion: Conversion | None = None,
        scenes: Scenes = METAWORLD,
    ):
        config = policy.config
        self._conversion = conversion
        policy.checks_pictures = False  # `checks.check_recording` has, and may have been told to let it pass
        self.policy, self.preprocessor, self.postprocessor = policy.eval(), preprocessor, postprocessor
        self.fingerprint, self.policy_type = fingerprint, config.type
        self.n_action_steps, self.ensemble_coeff = n_action_steps, temporal_ensemble_coeff
        self.execute_from = 0
        if n_action_steps is None and temporal_ensemble_coeff is None:
            self.n_action_steps = getattr(config, "n_action_steps", None)
            self.ensemble_coeff = getattr(config, "temporal_ensemble_coeff", None)
            self.execute_from = getattr(config, "execute_from", 0)
        if self.ensemble_coeff is not None and self.n_action_steps is None:
            self.n_action_steps = 1
        self.n_obs_steps = getattr(config, "n_obs_steps", 1) or 1
        cameras = list(getattr(config, "image_features", None) or [])
        matched = match_cameras(cameras, list(scenes.cameras.values()))
        of_simulator = {key: seen for seen, key in scenes.cameras.items()}
        # The simulator's key of each camera that the policy expects.
        self._cameras = {wanted: of_simulator[offered] for wanted, offered in matched.items()}
        # Our own policies can be told to ignore the picture (blind baselines); then nothing needs to be
        # drawn.
        self.uses_images = bool(self._cameras) and getattr(config, "use_images", True)
        half = (torch.bfloat16, torch.float16)
        self.rounds = (
            getattr(config, "use_amp", False)
            or getattr(config, "dtype", None) in ("bfloat16", "float16")
            or any(parameter.dtype in half for parameter in policy.parameters())
        )
        # Our policies keep a history of their own behind `predict_action_chunk`; this one takes it from the
        # batch.
        with_history = self.n_obs_steps > 1 and hasattr(policy, "chunk_of_history")
        self._predict_chunk = policy.chunk_of_history if with_history else policy.predict_action_chunk

    @torch.inference_mode()
    def predict(self, observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """See `ChunkPredictor.predict`."""
        # What the queues of policies that fill them while predicting hold belongs to other episodes.
        self.policy.reset()
        batch = self.preprocessor(self._batch(observations))
        use_amp, device = getattr(self.policy.config, "use_amp", False), self.policy.config.device
        with torch.autocast(torch.device(device).type) if use_amp else contextlib.nullcontext():
            chunk = self._predict_chunk(batch)
        rows, steps, dims = chunk.shape
        # Postprocessors of LeRobot take single actions (B, A).
        actions = self.postprocessor(chunk.reshape(rows * steps, dims).float())
        actions = actions.reshape(rows, steps, -1).cpu().numpy()
        if self._conversion is not None:
            actions = self._conversion.actions(actions)
        return actions.astype(np.float32)

    def _batch(self, observations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        from lerobot.envs import preprocess_observation

        def frames(seen: np.ndarray) -> torch.Tensor:
            if self.policy_type in READS_BYTES:
                return torch.from_numpy(seen).permute(0, 3, 1, 2).contiguous()
            return preprocess_observation({"pixels": seen})["observation.image"]

        leading = (len(observations),) if self.n_obs_steps == 1 else (len(observations), self.n_obs_steps)

        def stack(key: str) -> np.ndarray:
            # LeRobot's conversion knows one axis before the picture's.
            rows = np.stack([np.asarray(row[key]) for row in observations])
            return rows.reshape(-1, *rows.shape[len(leading) :])

        state, pictures = stack(STATE), {key: stack(key) for key in self._cameras.values()}
        if self._conversion is not None:
            state = self._conversion.state(state)
            pictures = {key: self._conversion.pictures(seen) for key, seen in pictures.items()}
        batch = {}
        for wanted, key in self._cameras.items():
            batch[wanted] = frames(pictures[key])
        batch |= preprocess_observation({STATE: state})
        batch = {key: value.reshape(*leading, *value.shape[1:]) for key, value in batch.items()}
        if all(f"{STATE}_is_pad" in row for row in observations):
            # Which steps of the history lie before the episode's start, as LeRobot's dataset says it.
            rows = [torch.as_tensor(row[f"{STATE}_is_pad"]) for row in observations]
            batch["observation.state_is_pad"] = torch.stack(rows)
        return {**batch, "task": [row["task"] for row in observations]}


def load_predictor(
    path: str | Path,
    manifest: Manifest,
    *,
    device: str,
    n_action_steps: int | None = None,
    temporal_ensemble_coeff: float | None = None,
) -> PolicyPredictor:
    """Load a LeRobot checkpoint (folder or hub id) with its saved processors.

    Args:
        path: What `checkpoint_folder` takes.
        manifest: Its picture size is what the policy gets.
        device: ``"cpu"``, ``"cuda"``, ...
        n_action_steps: See `PolicyPredictor`.
        temporal_ensemble_coeff: See `PolicyPredictor`.

    Raises:
        ValueError: The checkpoint was copied without its processors.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    folder = checkpoint_folder(path)
    check_processors(folder)
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path, config.device = folder, device
    scenes = scenes_of(manifest.suite)
    matched = match_cameras(list(config.image_features), list(scenes.cameras.values()))
    renames = {have: want for want, have in matched.items() if have != want}
    # What LeRobot reads of an environment's configuration, already under the policy's names.
    features = scenes.observation_features(manifest.observation_size)
    environment = SimpleNamespace(features=features, features_map={key: key for key in features})
    policy = make_policy(config, env_cfg=environment, rename_map=renames)
    processors = make_pre_post_processors(
        policy_cfg=config,
        pretrained_path=str(folder),
        preprocessor_overrides={"device_processor": {"device": device}},
    )
    return PolicyPredictor(
        policy,
        *processors,
        fingerprint=checkpoint_fingerprint(folder),
        n_action_steps=n_action_steps,
        temporal_ensemble_coeff=temporal_ensemble_coeff,
        conversion=conversion_of(read_recording(folder), manifest),
        scenes=scenes,
    )


def load_policy(folder: Path, device: str) -> tuple[Any, Any, Any]:
    """A checkpoint's policy in eval mode and its two processors, without an environment.

    Args:
        folder: A ``pretrained_model`` folder (`checkpoint_folder`).
        device: ``"cpu"``, ``"cuda"``, ...
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    check_processors(folder)
    config = PreTrainedConfig.from_pretrained(folder)
    config.device = device
    policy = get_policy_class(config.type).from_pretrained(folder, config=config).eval()
    processors = make_pre_post_processors(
        policy_cfg=config,
        pretrained_path=str(folder),
        preprocessor_overrides={"device_processor": {"device": device}},
    )
    return policy, *processors


def checkpoint_folder(path: str | Path) -> Path:
    """The local folder of a checkpoint: itself, a training run's last one, or a downloaded hub id.

    Raises:
        ValueError: If there is none of these.
    """
    if (found := locate_checkpoint(path)) is not None:
        return found
    folder = Path(path)
    if folder.exists() or folder.is_absolute() or len(folder.parts) != 2:
        raise ValueError(
            f"{path} holds neither a LeRobot checkpoint (config.json) nor a training run "
            "(checkpoints/last/pretrained_model/config.json)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path)))
    except LocalEntryNotFoundError as error:
        # Two words could also be an id of the hub, whose client does not say what it looked for.
        raise ValueError(
            f"there is no folder {path} here, and no model of that name in the hub's cache: check the path, "
            "or add --online if it is a hub id"
        ) from error


def check_processors(folder: Path) -> None:
    """Raise ValueError where a checkpoint's pipelines before and after the policy are missing.

    LeRobot takes such a checkpoint for one of its older versions and advises to convert it.

    Args:
        folder: The ``pretrained_model`` folder.
    """
    wanted = [f"policy_{name}processor.json" for name in ("pre", "post")]
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} lacks {' and '.join(missing)}: not all of the checkpoint was copied. Copy the whole "
            "pretrained_model folder again (one that LeRobot saved before 0.4 has none: convert it with "
            f"python -m lerobot.processor.migrate_policy_normalization --pretrained-path {folder})"
        )


def state_fingerprint(policy: torch.nn.Module) -> str:
    """As `checkpoint_fingerprint` for a policy in memory: SHA-256 over its weights."""
    digest = hashlib.sha256(type(policy).__name__.encode())
    for name, tensor in sorted(policy.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_recording(path: str | Path) -> dict[str, Any]:
    """How the demonstrations of a checkpoint were recorded; empty for policies that do not keep it."""
    return read_json(checkpoint_folder(path) / "config.json").get("recording") or {}


def recording_defaults(path: str | Path) -> dict[str, Any]:
    """Arguments of `manifest.make_manifest` that show a policy the pictures it was trained on."""
    if not (recording := read_recording(path)):
        return {}
    info = read_record(recording)
    known = {"quality": info.quality, "observation_size": info.observation_size}
    found = {key: value for key, value in known.items() if value}
    protocol = info.settings.get("protocol") or info.settings.get(EVALUATED_UNDER)
    return {**found, "protocol": protocol} if protocol else found
