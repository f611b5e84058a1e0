"""The mini VLM's model card, written from the record of its run so that no number in it is typed by hand."""

from __future__ import annotations

from typing import Any

from lerobot_policy_vita_vla.vlm.scenes import POINTS


def model_card(record: dict[str, Any]) -> str:
    """The text of ``README.md`` beside the weights.

    Args:
        record: What `pretrain.pretrain` returns.
    """
    size, scenes, held_out, recipe = (record[key] for key in ("size", "scenes", "held_out", "recipe"))
    blind = record["held_out_constant"]
    rows = "\n".join(
        f"| {point} | {held_out['points'][point]['mae_cm']:.2f} | {blind['points'][point]['mae_cm']:.2f} "
        f"| {held_out['points'][point]['n']} |"
        for point in POINTS
        if point in held_out["points"]
    )
    recipe_lines = "\n".join(f"- {name}: {value}" for name, value in recipe.items())
    earlier = record["started_from"]
    commands = "\n    ".join(run["command"] for run in (earlier, record) if run)
    seconds = sum(run["seconds"]["training"] for run in (earlier, record) if run)
    weak = ", ".join(
        task
        for task, places in held_out["tasks"].items()
        # A task without a single readable goal counts too; 0.25 cm is what rounding costs.
        if "goal" not in places
        or places["goal"]["mae_cm"] > max(0.8 * blind["tasks"][task]["goal"]["mae_cm"], 0.25)
    )
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    return f"""---
license: apache-2.0
pipeline_tag: image-text-to-text
---

# Mini VLM

A vision-language model of {size["parameters"]:,} parameters that says where things are in pictures of
Meta-World's tasks. It is transformers' `SmolVLMForConditionalGeneration` at toy size, so that distilling a
policy into a VLM can be run, tested and understood on two CPU cores through the very code that a VLM of the
hub goes through. It knows nothing else: for a real robot use a real VLM.

A caption, generated for a picture and an instruction:

    hand 50 60 20 open, drawer handle 42 55 9, goal 42 74 9.

Numbers are centimetres: x + 50, y, z in the simulator's axes. No caption and no label says what to do.

## Data

{scenes["training"]} training and {scenes["held_out"]} held-out pictures ({size["image_size"]} px, camera
corner2, quality `light`) of {len(record["tasks"])} Meta-World tasks, rendered from
{scenes["resets_per_task"]} seeded random resets per task by `vlm/scenes.py`; the last tenth of every task's
resets is held out. Positions come from the simulator. Reset seeds start at 1,000,000, apart from those of
demonstrations and evaluations. No third-party data and no other model's weights went in.

## Recipe

    {commands}

The losses are described in `vlm/objective.py`. Training took
{seconds / 60:.0f} minutes of wall time with {record["threads"]} threads on a processor that had other work.
Numbers of the {"last " if earlier else ""}run:

{recipe_lines}

Made with {versions}.

## Held-out error

Mean absolute error per axis of the positions in freely generated captions, in centimetres (words are whole
centimetres, so rounding alone costs 0.25). Share of captions that lack a place: {held_out["unreadable"]:.2%}.

| place | error (cm) | always saying the task's median (cm) | captions |
| --- | --- | --- | --- |
{rows}

Tasks whose goal it hardly sees (error above 80 % of the median's): {weak or "none"}.
Errors per task, the training losses and all settings are in `pretraining.json`.

## Why the weights ship with the package

They are small, they save every user the minutes of pre-training, and everybody's default run starts from the
same VLM, which makes its results comparable.

    sha256 of model.safetensors: {record["sha256"]}

## Limits

Pictures of quality `light` only (LeRobot's full rendering shows the arm, this one mostly the fingers), one
camera, English words of Meta-World's instructions: other words are read as letters that it was never taught.

## Licence

Apache-2.0, like the package.
"""
