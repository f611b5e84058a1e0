"""LeRobot's side of the student: batches in, losses and actions out. The network is in network.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_vita_vla.chunking import ChunkExecutor
from lerobot_policy_vita_vla.contracts import check_loss, check_picture_sizes
from lerobot_policy_vita_vla.demos.checkpoint_records import go_on
from lerobot_policy_vita_vla.demos.declared import remembered
from lerobot_policy_vita_vla.ema import ParameterEMA
from lerobot_policy_vita_vla.teacher.weights import read_weights
from lerobot_policy_vita_vla.vla.batches import observed, observed_keys, shifted
from lerobot_policy_vita_vla.vla.building import PROCESSOR_FOLDER, build_network, state_names
from lerobot_policy_vita_vla.vla.checkpoint import (
    Checkpoint,
    continue_from,
    leave_out_vlm,
    load_strictly,
    open_checkpoint,
)
from lerobot_policy_vita_vla.vla.compiling import compile_layers
from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig
from lerobot_policy_vita_vla.vla.engine import Engine
from lerobot_policy_vita_vla.vla.history import Memory, remember
from lerobot_policy_vita_vla.vla.objective import student_loss
from lerobot_policy_vita_vla.vla.precomputed import Precomputed
from lerobot_policy_vita_vla.vla.stages import apply_stage, check_stage_order
from lerobot_policy_vita_vla.vla.teaching import check_decoder_scale, check_teacher, require_teacher
from lerobot_policy_vita_vla.vla.vlm_files import save_processor
from lerobot_policy_vita_vla.vla.wrap_units import block_classes


class VitaVLAPolicy(PreTrainedPolicy):
    """A vision-language model that acts through its teacher's decoder.

    Args:
        config: Settings; "filled in" fields are written here.
        dataset_stats: LeRobot's dataset statistics (state scaling; actions are checked with the teacher's).
        dataset_meta: LeRobot's dataset metadata (names of the state's dimensions, recording conventions).
        checkpoint: Set by `from_pretrained`: where the weights come from.

    Raises:
        ValueError: Without a checkpoint, for stage ``finetune`` or a missing or unfit teacher; with one, for
            a dataset of other conventions.
    """

    config_class = VitaVLAConfig
    name = "vita_vla"
    checks_pictures = True
    """Refuse to act on pictures of another size than the demonstrations'."""

    def __init__(
        self,
        config: VitaVLAConfig,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        dataset_meta: Any = None,
        checkpoint: Checkpoint | None = None,
        **kwargs: Any,
    ):
        super().__init__(config)
        before = checkpoint.config.get("recording") if checkpoint else None
        config.recording = go_on(before, remembered(dataset_meta)) or config.recording
        # Read-only and never a submodule: not in the state dict, not seen by DDP or the optimiser.
        object.__setattr__(self, "_teacher", None)
        if checkpoint is None:
            check_stage_order(config.stage, None)
            self._meet_teacher(dataset_stats)
        else:
            continue_from(config, checkpoint)
            check_decoder_scale(config, dataset_stats, checkpoint.config.get("recording"))
        config.validate_features()
        self.network = build_network(
            config,
            checkpoint=checkpoint.folder if checkpoint else None,
            vlm_is_reference=checkpoint is not None and not checkpoint.has_vlm,
            teacher=self._teacher.teacher if self._teacher else None,
            dataset_stats=None if checkpoint else dataset_stats,
            state_names=state_names(dataset_meta),
        )
        self.trainable = apply_stage(self.network.parts(), config.stage)
        self.network.backbone.cached = not config.trains_language
        config.vlm_changed = config.vlm_changed or (config.trains_language and not config.uses_lora)
        if not config.needs_teacher:
            object.__setattr__(self, "_teacher", None)
        self._checkpoint = checkpoint
        self._precomputed = Precomputed(config, dataset_meta)
        self._start_average()
        self.engine = Engine(self.network, config.engine, config.precision)
        if config.save_vlm == "reference":
            self.register_state_dict_post_hook(leave_out_vlm)
        self._compiled = False
        self.train(self.training)
        self.reset()

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Loss of the current stage.

        Args:
            batch: See contracts.py.
            reduction: ``"mean"`` or ``"none"``, (B,).

        Returns:
            The loss and plain numbers for the log.
        """
        loss, metrics = self._loss(batch, reduction)
        check_loss(loss, batch)
        return loss, metrics

    def _loss(self, batch: dict[str, Any], reduction: str) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        self._compile_once()
        taught = batch
        if self.training and (config.image_shift_px or config.wrist_shift_px):
            batch = shifted(taught, config)
            # The paper draws apart. By default both see the same shifted image: the teacher's features then
            # answer the very picture that the student sees, not another one.
            taught = batch if config.shift_draw == "together" else shifted(taught, config)
        seen = observed(batch, config, self._precomputed.pictures_of(batch, self.network.backbone))
        target = None
        if config.needs_teacher:
            target = self._targets(taught, seen.valid_BH if config.n_obs_steps > 1 else None)
        with self._autocast():
            return student_loss(self.network, config, seen, batch, target, reduction)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Action chunk (B, T, A) in environment units for this step's observation, without a frame axis.

        With a history, the policy remembers the episode's steps itself, until `reset`.
        """
        if self.config.reads_turns:
            chunk, self._memory = self.step(batch, self._memory)
            return chunk
        self._check_pictures(batch)
        if self.training:
            self.eval()
        with self._autocast():
            return self.engine.act(*observed(batch, self.config)[:3])

    def chunk_of_history(self, batch: dict[str, Any]) -> Tensor:
        """Action chunk (B, T, A) for observations with a frame axis of H steps, without any memory."""
        return self._act_on_history(batch, None)[0]

    def step(self, batch: dict[str, Any], memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """One step of running episodes whose memory the caller keeps, as a server does for each robot.

        Args:
            batch: This step's observations, without a frame axis.
            memory: What the previous step returned; None where episodes start.

        Returns:
            Action chunk (B, T, A) in environment units, and the memory for the next step. A memory serves
            once, since its keys and values are extended in place.
        """
        return self.act_on(self.observe(batch, memory), batch)

    def observe(self, batch: dict[str, Any], memory: Memory | None = None) -> Memory:
        """Remember this step's observation without acting on it."""
        self._check_pictures(batch)
        return remember(memory, batch, observed_keys(self.config), self.config.n_obs_steps)

    def act_on(self, memory: Memory, batch: dict[str, Any]) -> tuple[Tensor, Memory]:
        """Action chunk (B, T, A) for what is remembered; ``batch`` gives the instructions."""
        seen = memory.seen | {"task": batch.get("task")}
        chunk, past = self._act_on_history(seen, memory.past)
        steps = next(iter(memory.seen.values())).shape[1]
        return chunk, Memory(memory.seen, past if steps < self.config.n_obs_steps else None)

    @torch.no_grad()
    def _act_on_history(self, batch: dict[str, Any], past: Any) -> tuple[Tensor, Any]:
        if self.training:
            self.eval()
        self.engine.give_up("a prompt of several turns goes on from its keys and values")
        with self._autocast():
            return self.network.act_on_history(*observed(batch, self.config), past)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action (B, A), from the queue or a new prediction."""
        if not self.config.reads_turns:
            return self._executor.next_action(lambda: self.predict_action_chunk(batch))
        # A step that is not acted on belongs to the history all the same.
        self._memory = self.observe(batch, self._memory)

        def predict() -> Tensor:
            chunk, self._memory = self.act_on(self._memory, batch)
            return chunk

        return self._executor.next_action(predict)

    def reset(self) -> None:
        """Forget all predictions and observations; call at the start of an episode."""
        self._memory: Memory | None = None
        self._executor = ChunkExecutor.of(self.config)

    @property
    def _no_split_modules(self) -> list[str]:
        return block_classes(self.network.backbone.vlm)  # asked for by sharded training only

    _fsdp_wrap_modules = _no_split_modules  # accelerate's name and LeRobot's

    @property
    def _action_queue(self) -> Any:
        # LeRobot drops pending actions through this name.
        return self._executor._action_queue

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Added parts and decoder at ``lr``, the language model or its adapters at ``lr_language``."""
        config, parts = self.config, self.network.parts()
        language = [p for part in ("language", "adapters") for p in parts[part].values() if p.requires_grad]
        inside = {id(p) for p in language}
        added = [p for p in self.parameters() if p.requires_grad and id(p) not in inside]
        groups = [{"params": added, "lr": config.lr}]
        if language:
            lr = config.lr if config.lr_language is None else config.lr_language
            groups.append({"params": language, "lr": lr})
        return groups

    def update(self) -> None:
        """Advance the weight average; LeRobot calls this after every optimiser step."""
        if self.ema is not None:
            self.ema.update()

    def train(self, mode: bool = True) -> VitaVLAPolicy:
        """Switch to training or acting; frozen parts stay in eval(), averaged weights act."""
        super().train(mode)
        self.network.backbone.set_mode(mode and self.config.trains_language)
        if self.ema is not None:
            self.ema.activate(not mode)
        return self

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> VitaVLAPolicy:
        """Load a checkpoint strictly, to act, to go on, or to start the next stage (``config.stage``)."""
        checkpoint = open_checkpoint(pretrained_name_or_path, revision)
        if config is None:
            config = PreTrainedConfig.from_pretrained(
                checkpoint.folder, cli_overrides=kwargs.pop("cli_overrides", [])
            )
        return super().from_pretrained(checkpoint.folder, config=config, checkpoint=checkpoint, **kwargs)

    @classmethod
    def _load_as_safetensor(
        cls, model: VitaVLAPolicy, model_file: str, map_location: str, strict: bool
    ) -> VitaVLAPolicy:
        # LeRobot's own loading is not strict: a renamed layer would stay random with a mere warning.
        if not load_strictly(model, read_weights(model_file), model._checkpoint):
            model._start_average()
        return model

    def _save_pretrained(self, save_directory: Path, **kwargs: Any) -> None:
        active = self.ema is not None and self.ema.active
        if active:
            self.ema.activate(False)
        super()._save_pretrained(save_directory, **kwargs)
        save_processor(self.network.backbone.processor, Path(save_directory) / PROCESSOR_FOLDER)
        if active:
            self.ema.activate(True)

    def _validate_peft_config(self, peft_config: Any) -> None:
        raise ValueError(
            "LeRobot's --peft options would freeze state encoder and queries, and could reach the image "
            "encoder; pass --policy.lora_rank=16 (and --policy.lora_targets=[q_proj,v_proj]) instead"
        )

    def _compile_once(self) -> None:
        # Here and not where the policy is made: one that only acts would be compiled for nothing.
        if self.config.compile_model and self.training and self.config.trains_language and not self._compiled:
            compile_layers(self.network.backbone.vlm)
            self._compiled = True

    def _start_average(self) -> None:
        decay = self.config.ema_decay
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        self.ema = ParameterEMA(named, decay) if decay > 0 else None

    def _meet_teacher(self, dataset_stats: Mapping[str, Mapping[str, Any]] | None) -> None:
        source = require_teacher(self.config, "cpu")
        self.config.chunk_size = self.config.chunk_size or source.teacher.chunk_size
        self.config.teacher_cameras = check_teacher(source.teacher, self.config, dataset_stats)
        object.__setattr__(self, "_teacher", source)

    def _targets(self, batch: dict[str, Any], valid_BH: Tensor | None) -> Tensor:
        if self._precomputed.targets:
            return self._precomputed.targets_of(batch, valid_BH)
        device = batch[next(iter(self.config.image_features))].device
        if self._teacher is None or self._teacher.device != device:
            object.__setattr__(self, "_teacher", require_teacher(self.config, device))
        return self._teacher.targets(batch, self.config.teacher_cameras, valid_BH)

    def _check_pictures(self, batch: dict[str, Any]) -> None:
        if self.checks_pictures and not self.config.allow_other_size:
            check_picture_sizes(batch, self.config.image_features, self.config.recording)

    def _autocast(self) -> torch.autocast:
        device = next(self.network.mapper.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.dtype == "bfloat16")
