"""The mini VLM's pre-training recipe: scenes, training, measurement, model card.

Run it with ``vita-vla vlm pretrain``. The weights that ship with the package are the outcome of one such
run; their model card (``weights/README.md``) holds its command and its numbers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lerobot_policy_vita_vla.demos.suite import resolve_tasks
from lerobot_policy_vita_vla.vlm.card import model_card
from lerobot_policy_vita_vla.vlm.describe import constant_errors, load_vlm, position_errors
from lerobot_policy_vita_vla.vlm.model import MiniVLMSize, build_model, build_processor
from lerobot_policy_vita_vla.vlm.objective import CaptionData, Losses, PositionHeads, losses, to_pixels
from lerobot_policy_vita_vla.vlm.paths import check_vlm_folder
from lerobot_policy_vita_vla.vlm.scenes import Scenes, collect

logger = logging.getLogger(__name__)

RECORD = "pretraining.json"
"""File beside the weights: command, recipe, metrics and checksum of the run that made them."""

LOG_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """Numbers of a pre-training run. All are our choice, found on two CPU cores.

    Args:
        steps: Optimizer steps.
        batch_size: Pictures per step.
        lr: Peak learning rate of AdamW; cosine to 2 % of it.
        warmup_fraction: Part of `steps` in which the rate rises.
        weight_decay: On matrices; vectors (norms, biases) are not decayed.
        describe_share: Share of prompts that do not name the task.
        jitter: Largest relative change of brightness and of contrast. Pictures are never shifted: their
            positions would be wrong.
    """

    steps: int = 3000
    batch_size: int = 32
    lr: float = 1.2e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 0.03
    describe_share: float = 0.2
    jitter: float = 0.15


def pretrain(
    out: Path | str,
    *,
    tasks: str = "mt50",
    seed: int = 0,
    steps: int | None = None,
    resets: int = 120,
    frames: int = 4,
    workers: int = 1,
    threads: int = 2,
    scenes_file: Path | str | None = None,
    start: Path | str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Make a mini VLM from nothing and write it to a folder.

    The same arguments on the same machine give the same weights; another processor may round differently.

    Args:
        out: Folder to write: weights (bfloat16), tokenizer, processor, `RECORD` and a model card.
        tasks: Meta-World tasks or groups to show, as `resolve_tasks` reads them.
        seed: Of scenes, weights and training.
        steps: Optimizer steps, `Recipe.steps` if None.
        resets: Random scenes per task; the last tenth is held out for the metrics.
        frames: Pictures per scene.
        workers: Processes that render.
        threads: Torch threads. Part of what a run is repeatable for.
        scenes_file: Where to keep the scenes (.npz, about 0.7 GB by default); read if it is there already.
        start: Folder of a mini VLM to go on from, with a fresh schedule; from random weights if None.
        command: The command line to print in the record; made up from the arguments if None.

    Returns:
        The record, as written to `RECORD`.

    Raises:
        ValueError: for unknown tasks, or a `scenes_file` with other tasks.
    """
    out, names, recipe, size = Path(out), resolve_tasks(tasks), Recipe(), MiniVLMSize()
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    command = command or (
        f"vita-vla vlm pretrain --out {out} --tasks {tasks} --seed {seed} --steps {recipe.steps} "
        f"--resets {resets} --frames {frames} --threads {threads}"
        + (f" --scenes-file {scenes_file}" if scenes_file else "")
        + (f" --start {start}" if start else "")
    )
    earlier = None if start is None else json.loads((check_vlm_folder(Path(start)) / RECORD).read_text())
    rendered = scenes_file is None or not Path(scenes_file).exists()
    started = time.monotonic()
    scenes = _scenes(names, scenes_file, resets=resets, frames=frames, seed=seed, workers=workers)
    training, held_out = scenes.split()
    collected = time.monotonic()
    logger.info(
        "%d scenes for training, %d held out, %.0f s", len(training), len(held_out), collected - started
    )

    torch.set_num_threads(threads)
    log = _ProgressLog(recipe.steps)
    model, processor = train(training, recipe=recipe, size=size, seed=seed, start=start, on_step=log)
    trained = time.monotonic()
    save(model, processor, out)

    # Measured on what was written, rounded to bfloat16 and read back.
    errors = position_errors(held_out, vlm=load_vlm(out))
    parameters = sum(p.numel() for p in model.parameters())
    record = {
        "command": command,
        "seed": seed,
        "threads": threads,
        "tasks": names,
        "scenes": {"training": len(training), "held_out": len(held_out), "resets_per_task": resets},
        "recipe": asdict(recipe),
        "size": {**asdict(size), "parameters": parameters},
        "seconds": {
            "scenes": round(collected - started) if rendered else None,
            "training": round(trained - collected),
        },
        "held_out": errors,
        "held_out_constant": constant_errors(training, held_out),
        "losses": log.history,
        "started_from": earlier,
        "sha256": sha256(out / "model.safetensors"),
        "versions": _versions(),
    }
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    (out / "README.md").write_text(model_card(record))
    logger.info("%s: held-out errors %s", out, errors["points"])
    return record


def train(
    scenes: Scenes,
    *,
    recipe: Recipe,
    size: MiniVLMSize,
    seed: int,
    start: Path | str | None = None,
    on_step: Callable[[int, Losses], None] | None = None,
) -> tuple[Any, Any]:
    """Train a mini VLM on scenes.

    Args:
        scenes: What to learn from.
        recipe: Numbers of the run.
        size: Sizes of the network; not looked at with `start`.
        seed: Of the weights, the order of the scenes and their light.
        start: Folder of a mini VLM to go on from; random weights if None.
        on_step: Called after every step with the number of steps done and their losses.

    Returns:
        The model in eval() and its processor.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    if start is None:
        processor = build_processor(size)
        model = build_model(processor, size)
    else:
        model, processor = load_vlm(Path(start))
    # On CPU the fused kernels' backward pass is about 1.5 times slower than plain matrix products.
    model.set_attn_implementation("eager")
    heads = PositionHeads(model.config.text_config.hidden_size, processor.image_seq_len)
    data = CaptionData(scenes, processor)
    parameters = [*model.parameters(), *heads.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        rows = torch.randint(len(data), (recipe.batch_size,), generator=generator)
        free = torch.rand(recipe.batch_size, generator=generator) < recipe.describe_share
        batch = data.batch(rows, free)
        pixels = to_pixels(batch["images"], recipe.jitter, generator)
        with torch.autocast("cpu", torch.bfloat16):
            parts = losses(model, heads, batch, pixels, data.number_ids)
        optimizer.zero_grad(set_to_none=True)
        sum(parts).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, Losses(*(part.detach() for part in parts)))
    return model.eval(), processor


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up times a cosine that ends at 2 % of the peak."""
    warmup = max(1, round(recipe.steps * recipe.warmup_fraction))
    wave = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
    return recipe.lr * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * wave)


def save(model, processor, out: Path) -> None:
    """Write model (bfloat16: half the size, and what policies compute in) and processor to a folder."""
    import copy

    # Not in place: model.to() would round the caller's weights.
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    rounded.set_attn_implementation("sdpa")
    rounded.save_pretrained(out)
    # Written for the owner alone; inside a package everybody has to read it.
    (out / "model.safetensors").chmod(0o644)
    processor.save_pretrained(out)


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _ProgressLog:
    """Averages losses over `LOG_EVERY` steps, logs them and keeps them."""

    def __init__(self, steps: int):
        self.steps, self.history, self._sums, self._started = steps, [], [], time.monotonic()

    def __call__(self, step: int, parts: Losses) -> None:
        self._sums.append([part.item() for part in parts])
        if step % LOG_EVERY == 0 or step == self.steps:
            means = torch.tensor(self._sums).mean(0).tolist()
            entry = {"step": step, **{k: round(v, 4) for k, v in zip(Losses._fields, means, strict=True)}}
            self.history.append(entry)
            self._sums = []
            logger.info("%s after %.0f s", entry, time.monotonic() - self._started)


def _scenes(names: list[str], path: Path | str | None, **collect_args) -> Scenes:
    if path is None or not Path(path).exists():
        scenes = collect(names, **collect_args)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            scenes.save(Path(path))
        return scenes
    scenes = Scenes.load(Path(path))
    if scenes.task_names != names:
        raise ValueError(
            f"{path} holds scenes of {len(scenes.task_names)} tasks ({', '.join(scenes.task_names[:3])}, ...)"
            f", not of the {len(names)} asked for; delete it or name another file"
        )
    return scenes


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    packages = ("lerobot", "torch", "transformers", "metaworld", "mujoco")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
