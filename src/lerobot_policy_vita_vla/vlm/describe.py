"""Letting the VLM speak, and measuring how right it is.

Distillation into a policy should not be the end of the language: `describe` asks the VLM what it sees, and
`position_errors` compares what it says, by free generation, with where things are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lerobot_policy_vita_vla.vlm.captions import DESCRIBE, instructions, parse_caption, scene_names
from lerobot_policy_vita_vla.vlm.model import chat
from lerobot_policy_vita_vla.vlm.paths import check_vlm_folder, mini_vlm_path
from lerobot_policy_vita_vla.vlm.scenes import POINTS, Scenes

MAX_CAPTION_TOKENS = 32
"""The longest caption has 25 tokens."""


def load_vlm(path: Path | None = None) -> tuple[Any, Any]:
    """The VLM in eval() with float32 weights, and its processor, both from a local folder.

    Args:
        path: Folder; the mini VLM that ships with the package if None.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = mini_vlm_path() if path is None else check_vlm_folder(path)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)


@cache
def _shipped_vlm() -> tuple[Any, Any]:
    return load_vlm()


def describe(image: np.ndarray, question: str = DESCRIBE, *, vlm: tuple[Any, Any] | None = None) -> str:
    """What the VLM says about one picture.

    Args:
        image: (h, w, 3) uint8 RGB, a Meta-World picture as LeRobot turns it.
        question: An instruction ("Open a drawer") or ``describe the scene``.
        vlm: Model and processor as `load_vlm` returns them; the shipped mini VLM if None.

    Returns:
        A caption that `captions.parse_caption` reads, as
        ``hand 50 60 20 open, drawer handle 42 55 9, goal 42 74 9.``
    """
    return say([image], [question], vlm=vlm)[0]


@torch.no_grad()
def say(
    images: Sequence[np.ndarray],
    questions: Sequence[str],
    *,
    vlm: tuple[Any, Any] | None = None,
    batch_size: int = 64,
) -> list[str]:
    """Answers to one question per picture, generated greedily in batches."""
    model, processor = vlm or _shipped_vlm()
    answers: list[str] = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        inputs = processor(
            text=[chat(processor, question) for question in questions[rows]],
            images=[[image] for image in images[rows]],
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_CAPTION_TOKENS)
        new = ids[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def position_errors(scenes: Scenes, *, vlm: tuple[Any, Any] | None = None) -> dict[str, Any]:
    """How far off the positions in generated captions are, on scenes that were not trained on.

    The VLM is given each task's instruction and generates freely. The error is the absolute difference per
    axis in centimetres to the true position, rounding of the words included (0.25 cm on average).

    Returns:
        ``n`` scenes; ``unreadable``, the share of captions that lack a place they should name; and under
        ``points`` and under ``tasks`` for hand, object, second object and goal the mean error and the number
        of readable captions behind it.
    """
    names = [scenes.task_names[task] for task in scenes.tasks]
    texts = say(list(scenes.images), [instructions()[name] for name in names], vlm=vlm)
    errors = np.full((len(scenes), len(POINTS)), np.nan)
    unreadable = 0
    for row, (name, text) in enumerate(zip(names, texts, strict=True)):
        said, due = parse_caption(text), scene_names(name)
        unreadable += any(word is not None and word not in said for word in due)
        for point, word in enumerate(due):
            if word in said:
                errors[row, point] = 100 * np.abs(said[word] - scenes.points[row, point]).mean()
    tasks = np.array(names)
    return {
        "n": len(scenes),
        "unreadable": unreadable / max(1, len(scenes)),
        "points": _summary(errors),
        "tasks": {
            name: _summary(errors[tasks == name]) for name in scenes.task_names if (tasks == name).any()
        },
    }


def constant_errors(training: Scenes, held_out: Scenes) -> dict[str, Any]:
    """The same errors for a blind speaker, who always says the task's median training position.

    What `position_errors` is to be compared with: scenes vary by a few centimetres only, so an error of 2 cm
    may mean that nothing was seen.

    Returns:
        ``points`` and ``tasks`` as in `position_errors`.
    """
    errors = np.full((len(held_out), len(POINTS)), np.nan)
    for task, name in enumerate(held_out.task_names):
        rows = held_out.tasks == task
        median = np.median(training.points[training.tasks == task], axis=0)
        due = [word is not None for word in scene_names(name)]
        errors[np.ix_(rows, due)] = 100 * np.abs(held_out.points[rows] - median).mean(-1)[:, due]
    names = held_out.task_names
    tasks = {name: _summary(errors[held_out.tasks == task]) for task, name in enumerate(names)}
    return {"points": _summary(errors), "tasks": tasks}


def _summary(errors: np.ndarray) -> dict[str, dict[str, float]]:
    summary = {}
    for point, column in zip(POINTS, errors.T, strict=True):
        column = column[~np.isnan(column)]
        if len(column):
            summary[point] = {"mae_cm": round(float(column.mean()), 3), "n": len(column)}
    return summary
