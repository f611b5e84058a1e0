"""A student without numbers: its shapes from a checkpoint, a VLM's folder, or the paper's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2Config
from transformers.initialization import no_init_weights

from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder, build_decoder
from lerobot_policy_vita_vla.vla.action_modules import ActionMapper, ActionQueries, StateEncoder
from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.lora import add_adapters
from lerobot_policy_vita_vla.vla.stages import apply_stage
from lerobot_policy_vita_vla.vla.vlm_contract import parts_of
from lerobot_policy_vita_vla.vla.vlm_files import load_processor, resolve_vlm
from lerobot_policy_vita_vla.vlm.vita15_model import VitaVLConfig

PAPER = "vita-1.5"
PAPER_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": True,
}
PAPER_IMAGE_TOKENS, PAPER_PATCHES, PAPER_PX = 49, 197, 196
"""Of one 200 x 200 picture (paper): 7 x 7 tokens; 14 x 14 patches of 14 px and the class token."""
TEXT_TOKENS = 40
"""Of an instruction in its chat turn, where no tokenizer is at hand (our choice: LIBERO's take 25 to 45)."""
INSTRUCTION = "pick up the black bowl between the plate and the ramekin and place it on the plate"


@dataclass(frozen=True)
class Task:
    """What has to be known of VLM, data and teacher to say what a step costs.

    Args:
        name: For people.
        vlm: Configuration of the VLM (transformers).
        prefix_tokens: L, of one sample, without the places of states and queries.
        patches: Positions that the image encoder computes for one sample.
        pictures: In one sample.
        pixels: Numbers of the VLM's image input for one sample.
        state_dim: S.
        chunk_size: T.
        num_queries: K.
        decoder: `ActionDecoder.config`.
        uses_state: Whether there is a state token.
        turns: H, where the prompt is made of turns that have their own state and queries (turns.py); tokens
            and pictures are then those of all of them. 0: a single step, whose queries end the prompt.
    """

    name: str
    vlm: Any
    prefix_tokens: int
    patches: int
    pictures: int
    pixels: int
    state_dim: int
    chunk_size: int
    num_queries: int
    decoder: dict[str, Any]
    uses_state: bool = True
    turns: int = 0

    @property
    def suffix_tokens(self) -> int:
        """S': state and queries of one step."""
        return self.num_queries + self.uses_state


def task_of_policy(folder: Path) -> Task:
    """From a student's checkpoint folder, which holds everything."""
    saved = json.loads((folder / "config.json").read_text())
    if saved.get("type") != "vita_vla":
        raise ValueError(f"{folder} holds a policy of type {saved.get('type')!r}, expected 'vita_vla'")
    features = saved["input_features"]
    sizes = [tuple(f["shape"][-2:]) for f in features.values() if f["type"] == "VISUAL"]
    state = features.get("observation.state", {"shape": [1]})
    config = AutoConfig.for_model(**saved["vlm_config"])
    # Checkpoints from before these settings existed were made without.
    template, separator = saved.get("prompt", "{instruction}"), saved.get("query_separator", "")
    # As `VitaVLAConfig.reads_turns` decides.
    in_turns = saved["n_obs_steps"] > 1 or "{state}" in template or separator != ""
    turns, num_queries = saved["n_obs_steps"] * in_turns, saved["num_queries"] or saved["chunk_size"]
    tokens, patches, pixels = prompt_of(
        config,
        load_processor(folder / "vlm_processor"),
        sizes,
        turns=turns,
        slots=(num_queries, saved["use_state_encoder"], separator),
        template=template,
        system_prompt=saved.get("system_prompt", ""),
    )
    return Task(
        name=str(folder),
        vlm=config,
        prefix_tokens=tokens,
        patches=patches,
        pictures=len(sizes) * max(turns, 1),
        pixels=pixels,
        state_dim=state["shape"][0],
        chunk_size=saved["chunk_size"],
        num_queries=num_queries,
        decoder=saved["decoder"],
        uses_state=saved["use_state_encoder"],
        turns=turns,
    )


def task_of_vlm(
    vlm: str,
    *,
    cameras: int,
    image_px: int,
    state_dim: int,
    action_dim: int,
    chunk_size: int,
    width: int,
    n_obs_steps: int = 1,
) -> Task:
    """From a VLM and the robot's numbers.

    Args:
        vlm: ``"mini"``, a folder, a hub id, or ``"vita-1.5"``: the paper's shapes, without any file.
        cameras: N.
        image_px: Side of a camera's picture.
        state_dim: S.
        action_dim: A.
        chunk_size: T.
        width: E, the teacher's.
        n_obs_steps: H.
    """
    turns = n_obs_steps if n_obs_steps > 1 else 0
    if vlm == PAPER:
        config = paper_config()
        pictures = cameras * n_obs_steps
        tokens, patches = pictures * PAPER_IMAGE_TOKENS + n_obs_steps * TEXT_TOKENS, pictures * PAPER_PATCHES
        pixels = pictures * 3 * PAPER_PX**2
    else:
        source = resolve_vlm(vlm)
        config = AutoConfig.from_pretrained(source)
        sizes = [(image_px, image_px)] * cameras
        tokens, patches, pixels = prompt_of(
            config, load_processor(source), sizes, turns=turns, slots=(chunk_size, True, "")
        )
    names = tuple(f"action_{i}" for i in range(action_dim))
    spec = ActionSpec(names, (0.0,) * action_dim, (1.0,) * action_dim, (action_dim - 1,))
    return Task(
        name=vlm,
        vlm=config,
        prefix_tokens=tokens,
        patches=patches,
        pictures=cameras * n_obs_steps,
        pixels=pixels,
        state_dim=state_dim,
        chunk_size=chunk_size,
        num_queries=chunk_size,
        decoder={"kind": "seer", "feature_dim": width, "spec": spec.to_dict()},
        turns=turns,
    )


def paper_config() -> VitaVLConfig:
    """VITA-1.5-7B at the paper's 200 x 200 px."""
    text = Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    vision = PAPER_VISION | {"image_size": [448, 448], "patch_size": [14, 14]}
    return VitaVLConfig(text_config=text.to_dict(), vision_config=vision, tie_word_embeddings=False)


def prompt_of(
    config: Any,
    processor: Any,
    sizes: list[tuple[int, int]],
    *,
    turns: int = 0,
    slots: tuple[int, bool, str] = (1, False, ""),
    template: str = "{instruction}",
    system_prompt: str = "",
) -> tuple[int, int, int]:
    """Tokens, image positions and pixel values of one sample, as the VLM's own processor makes them.

    Args:
        config: Of the VLM.
        processor: The VLM's.
        sizes: Height and width of each camera's picture.
        turns: See `Task`.
        slots: Of a turn: number of queries, whether there is a state, text between the queries.
        template: ``--policy.prompt``.
        system_prompt: ``--policy.system_prompt``.

    Returns:
        Tokens without the places of states and queries, positions that the image encoder computes, numbers of
        its input.
    """
    with torch.device("meta"), no_init_weights():
        vlm = AutoModelForImageTextToText.from_config(config)
    backbone = VLMBackbone(vlm, processor, template=template, system_prompt=system_prompt)
    if turns:
        num_queries, has_state, separator = slots
        backbone.read_histories(num_queries=num_queries, has_state=has_state, separator=separator)
        pictures = [torch.zeros(1, turns, 3, *size) for size in sizes]
        made = backbone.turns.encode(pictures, [INSTRUCTION], torch.ones(1, turns, dtype=torch.bool))
        places = made.columns.numel()
    else:
        made = backbone.prompts.encode([torch.zeros(1, 3, *size) for size in sizes], [INSTRUCTION], 1)
        places = 1
    encoder = vlm.base_model.get_encoder(modality="image")
    patch = next(m.weight for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    pixels = made.pixels["pixel_values"].numel()
    return made.tokens["input_ids"].shape[1] - places, pixels // patch[0].numel(), pixels


def make_network(task: Task, *, stage: str, vlm_dtype: str, lora_rank: int, attention: str) -> nn.Module:
    """The parts of a student at a stage, on whatever device or fake mode is active.

    Returns:
        A module with ``vlm``, ``state_encoder``, ``queries``, ``mapper``, ``decoder``.
    """
    network = nn.Module()
    with no_init_weights():
        vlm = AutoModelForImageTextToText.from_config(
            task.vlm, dtype=getattr(torch, vlm_dtype), attn_implementation=attention
        )
    vlm.tie_weights()
    if lora_rank and stage in ("finetune", "only_finetune"):
        add_adapters(vlm, rank=lora_rank, alpha=2 * lora_rank)
    width = vlm.config.get_text_config().hidden_size
    network.vlm = vlm
    network.state_encoder = (
        StateEncoder(state_dim=task.state_dim, width=width, gripper_dims=(task.state_dim - 1,))
        if task.uses_state
        else None
    )
    network.queries = ActionQueries(num_queries=task.num_queries, width=width, shared=True, init_std=0.02)
    network.decoder: ActionDecoder = build_decoder(task.decoder)
    network.mapper = ActionMapper(
        width=width,
        feature_dim=network.decoder.feature_dim,
        features_per_query=task.chunk_size // task.num_queries,
    )
    apply_stage(parts(network), stage)
    return network


def parts(network: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Every parameter once, by part (stages.py)."""
    found = parts_of(network.vlm)
    for part in ("state_encoder", "queries", "mapper", "decoder"):
        module = getattr(network, part)
        found[part] = dict(module.named_parameters()) if module is not None else {}
    return found
