"""The policy ``seer``: LeRobot's contract around `SeerNetwork`."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_vita_vla.chunking import ChunkExecutor, ObservationHistory
from lerobot_policy_vita_vla.contracts import check_loss, check_picture_sizes
from lerobot_policy_vita_vla.ema import PREFIX as EMA_PREFIX
from lerobot_policy_vita_vla.ema import ParameterEMA, fold_average
from lerobot_policy_vita_vla.teacher.seer.batches import (
    STATE,
    observations,
    padded_steps,
    require,
    shift_steps,
    training_batch,
)
from lerobot_policy_vita_vla.teacher.seer.build import build_network
from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig
from lerobot_policy_vita_vla.teacher.seer.dataset_facts import fill_config, fill_statistics
from lerobot_policy_vita_vla.teacher.seer.network import SeerOutput
from lerobot_policy_vita_vla.teacher.seer.objective import SeerWeights, seer_loss
from lerobot_policy_vita_vla.teacher.weights import load_strictly, read_weights

logger = logging.getLogger(__name__)

TOKENIZER_FOLDER = "instruction_tokenizer"


class SeerPolicy(PreTrainedPolicy):
    """Seer (the paper's teacher) as a LeRobot policy.

    Args:
        config: Settings; filled in with what the dataset says.
        dataset_stats: The dataset's statistics, needed by a fresh policy.
        dataset_meta: The dataset's metadata: names of dimensions, recording conventions.
        **kwargs: What else LeRobot's factory passes; unused.
    """

    config_class = SeerConfig
    name = "seer"
    checks_pictures = True
    """Refuse to act on pictures of another size than the demonstrations'."""
    # LeRobot's FSDP2 wraps the modules of these classes.
    _fsdp_wrap_modules = ("TrunkBlock",)

    def __init__(
        self,
        config: SeerConfig,
        dataset_stats: dict[str, Any] | None = None,
        dataset_meta: Any = None,
        **kwargs: Any,
    ):
        super().__init__(config)
        config.validate_features()
        fill_config(config, dataset_stats, dataset_meta)
        # A checkpoint's config holds the frozen encoders' own configurations, and its weights hold theirs.
        fresh = config.encoder == "pretrained" and not config.vision_config
        self.network = build_network(config, load_pretrained=fresh)
        fill_statistics(self.network, config, dataset_stats)
        self.ema = self._new_ema()
        self.register_state_dict_post_hook(_store_raw_weights)
        self.reset()

    # ---- training ----

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Loss of a training batch and its parts; see `objective.seer_loss`."""
        config = self.config
        weights = SeerWeights(
            smooth_l1_beta=config.smooth_l1_beta,
            gripper_weight=config.gripper_weight,
            foresight_weight=config.foresight_weight,
            auxiliary_weight=config.auxiliary_weight,
            auxiliary_scale=config.auxiliary_scale,
        )
        data = training_batch(batch, config, augmented=self.training)
        with self._autocast():
            loss, metrics = seer_loss(self.network, data, weights, reduction)
        check_loss(loss, batch)
        return loss, metrics

    def get_optim_params(self) -> list[dict[str, Any]]:
        """One group: everything that is not frozen."""
        return [{"params": [p for p in self.network.parameters() if p.requires_grad]}]

    def update(self) -> None:
        """Called by LeRobot after every optimiser step: advance the moving average."""
        if self.ema is not None:
            self.ema.update()

    def train(self, mode: bool = True) -> SeerPolicy:
        """Switch between raw weights (training) and averaged ones; frozen encoders stay in eval mode."""
        super().train(mode)
        for module in self.network.frozen:
            module.eval()
        if self.ema is not None:
            self.ema.activate(not mode)
        return self

    # ---- acting ----

    def reset(self) -> None:
        """Forget history and pending actions; called at the start of an episode."""
        config = self.config
        self._history = ObservationHistory(n_obs_steps=config.n_obs_steps, keys=(*config.cameras, STATE))
        self._executor = ChunkExecutor.of(config)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Chunk (B, T, A) in environment units for this step's observation, without a frame axis."""
        return self.chunk_of_history(self._observe(batch))

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Next action (B, A) in environment units."""
        history = self._observe(batch)
        return self._executor.next_action(lambda: self.chunk_of_history(history))

    @torch.no_grad()
    def chunk_of_history(self, batch: dict[str, Any]) -> Tensor:
        """Chunk (B, T, A) in environment units for observations with a frame axis of H steps."""
        self.eval()
        return self.network.decoder.to_action(self.network.decode(self.features_of_history(batch)))

    @torch.no_grad()
    def features_of_history(self, batch: dict[str, Any]) -> Tensor:
        """Action features (B, T, E) of the last of H steps, float32."""
        return self.features_of_every_step(batch)[:, -1]

    @torch.no_grad()
    def features_of_every_step(self, batch: dict[str, Any]) -> Tensor:
        """Action features (B, H, T, E) of all H steps, float32; of a padded step they mean nothing."""
        steps = self.config.n_obs_steps
        pictures, state, task = observations(batch, self.config, steps)
        n_padded_B = padded_steps(batch, steps) if self.config.history == "grow" else None
        if n_padded_B is not None:
            pictures, state = (shift_steps(seen, n_padded_B) for seen in (pictures, state))
        with self._autocast():
            output: SeerOutput = self.network(pictures, state, task)
        features_BHTE = output.action_BHTE.float()
        return features_BHTE if n_padded_B is None else shift_steps(features_BHTE, -n_padded_B)

    @property
    def _action_queue(self) -> Any:
        # LeRobot's rollout drops pending actions by this name.
        return self._executor._action_queue

    def _observe(self, batch: dict[str, Any]) -> dict[str, Any]:
        require(batch, (*self.config.cameras, STATE))
        if self.checks_pictures and not self.config.allow_other_size:
            check_picture_sizes(batch, self.config.image_features, self.config.recording)
        return self._history.push(batch)

    def _autocast(self) -> contextlib.AbstractContextManager:
        # Prediction too: LeRobot's evaluation does not look at `dtype`.
        if self.config.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.network.state_mean.device.type, torch.bfloat16)

    # ---- checkpoints ----

    def _new_ema(self) -> ParameterEMA | None:
        if not self.config.ema_decay:
            return None
        trained = [(f"network.{n}", p) for n, p in self.network.named_parameters() if p.requires_grad]
        return ParameterEMA(trained, self.config.ema_decay)

    def _save_pretrained(self, save_directory: Path, *args: Any, **kwargs: Any) -> None:
        super()._save_pretrained(save_directory, *args, **kwargs)
        tokenizer = getattr(self.network.instruction_encoder, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(Path(save_directory) / TOKENIZER_FOLDER)

    @classmethod
    def _load_as_safetensor(
        cls, model: SeerPolicy, model_file: str, map_location: str, strict: bool
    ) -> SeerPolicy:
        """Load weights strictly, whatever ``strict`` says (LeRobot's default acts with random ones)."""
        state = read_weights(model_file)
        config = model.config
        for prefix, weight in (
            ("network.foresight_decoder.", config.foresight_weight),
            ("network.auxiliary_", config.auxiliary_weight),
        ):
            unused = [key for key in state if prefix in key.replace("__", ".")] if not weight else []
            if unused:
                logger.info("dropping %d tensors of %s*: its loss is switched off", len(unused), prefix)
            state = {key: value for key, value in state.items() if key not in unused}
        if "network.auxiliary_mean" not in state and not config.auxiliary_weight:
            state["network.auxiliary_mean"] = model.network.auxiliary_mean
        averaged = any(key.startswith(EMA_PREFIX) for key in state)
        if not (averaged and model.ema is not None):
            state, model.ema = fold_average(state), None
        else:
            model.ema.activate(False)
        load_strictly(model, state, model_file)
        if model.ema is None:
            # Starts at the loaded weights where the checkpoint has no average to continue.
            model.ema = model._new_ema()
        _load_tokenizer(model, Path(model_file).parent / TOKENIZER_FOLDER)
        return model


def _load_tokenizer(model: SeerPolicy, folder: Path) -> None:
    encoder = model.network.instruction_encoder
    if not hasattr(encoder, "tokenizer"):
        return
    from transformers import AutoTokenizer

    # A checkpoint from the hub comes as single files, without this folder.
    encoder.tokenizer = AutoTokenizer.from_pretrained(
        folder if folder.is_dir() else model.config.text_encoder
    )


def _store_raw_weights(policy: SeerPolicy, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Undo the exchange of raw and averaged weights, where the average acts, in what is saved."""
    if policy.ema is None or not policy.ema.active:
        return
    for name, parameter in policy.network.named_parameters():
        average = f"{prefix}{EMA_PREFIX}network__{name.replace('.', '__')}"
        if parameter.requires_grad:
            key = f"{prefix}network.{name}"
            state[key], state[average] = state[average], state[key]
