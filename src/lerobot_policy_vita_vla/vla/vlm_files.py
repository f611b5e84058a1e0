"""Reading a Hugging Face vision-language model and its processor from disk, hub or a stored configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers.initialization import no_init_weights

from lerobot_policy_vita_vla.vlm.vita15_model import register as register_vita_vl

WEIGHT_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

# Converted VITA-1.5 checkpoints have a model type of ours. Here and not in the package's __init__: only who
# opens a VLM pays for importing model code.
register_vita_vl()


def resolve_vlm(vlm: str) -> str:
    """``"mini"`` -> the folder that ships with the package; a local folder is checked; a hub id passes."""
    if vlm == "mini":
        from lerobot_policy_vita_vla.vlm.paths import mini_vlm_path

        vlm = str(mini_vlm_path())
    if Path(vlm).is_dir():
        check_vlm_folder(Path(vlm))
    elif Path(vlm).is_absolute() or vlm.count("/") != 1:
        raise ValueError(
            f"vlm={vlm} is neither 'mini', an existing folder nor a hub id 'owner/name'; fix --policy.vlm"
        )
    return vlm


def check_vlm_folder(folder: Path) -> None:
    """Raise ValueError naming every file that a VLM folder lacks."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if (folder / WEIGHT_INDEX).is_file():
        shards = set(json.loads((folder / WEIGHT_INDEX).read_text())["weight_map"].values())
        missing += sorted(name for name in shards if not (folder / name).is_file())
    elif not (folder / "model.safetensors").is_file():
        missing.append("model.safetensors")
    missing += missing_processor_files(folder)
    if missing:
        raise ValueError(
            f"the VLM folder {folder} is incomplete, it lacks {', '.join(missing)}; save it again with "
            "model.save_pretrained(folder) and processor.save_pretrained(folder), or download it again"
        )


def missing_processor_files(folder: Path) -> list[str]:
    """Which kinds of tokenizer and processor files a folder lacks."""
    missing = []
    for kind in (TOKENIZER_FILES, ("tokenizer_config.json",), PROCESSOR_FILES):
        if not any((folder / name).is_file() for name in kind):
            missing.append(" or ".join(kind))
    return missing


def load_processor(source: str | Path, revision: str | None = None) -> Any:
    """The processor (image processor, tokenizer, chat template) of a VLM."""
    if Path(source).is_dir() and (missing := missing_processor_files(Path(source))):
        raise ValueError(f"the processor folder {source} lacks {', '.join(missing)}")
    processor = AutoProcessor.from_pretrained(source, revision=revision)
    if processor.image_processor.backend != "torchvision":
        # Families that resize by Lanczos come with PIL by default, which handles one picture after another on
        # the CPU. The tensor version resizes bicubically instead and runs on the batch's device.
        processor.image_processor = AutoImageProcessor.from_pretrained(
            source, revision=revision, backend="torchvision"
        )
    return processor


def save_processor(processor: Any, folder: Path) -> None:
    """Write a processor. LeRobot uploads .json but no .jinja, so its chat template is written as both."""
    processor.save_pretrained(folder)
    if isinstance(template := getattr(processor, "chat_template", None), str):
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


def load_vlm(source: str, *, revision: str | None, dtype: str, attention: str) -> Any:
    """The VLM with its weights.

    Raises:
        ValueError: For weights that are cut off, missing, or tied in the configuration and not in the file.
    """
    try:
        vlm, found = AutoModelForImageTextToText.from_pretrained(
            source,
            revision=revision,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ValueError(
            f"a weight file of the VLM {source} is damaged or cut off ({error}); download or copy it again"
        ) from error
    if missing := sorted(found["missing_keys"]):
        # transformers fills them with random numbers and a warning.
        raise ValueError(
            f"the VLM {source} lacks the weights {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            + (_TIED_ADVICE if any("embed" in name or "lm_head" in name for name in missing) else "")
            + "; save it again with model.save_pretrained(folder), or download it again"
        )
    words, head = vlm.get_input_embeddings().weight, vlm.get_output_embeddings().weight
    if vlm.config.tie_word_embeddings and words is not head:
        raise ValueError(
            f"the VLM {source} has tie_word_embeddings=true in its config.json, but two different weights "
            "for word embeddings and lm_head in its files; set it to false in config.json if both were "
            "trained, or save the model again with model.tie_weights(); model.save_pretrained(folder)"
        )
    return vlm


_TIED_ADVICE = (
    ". If word embeddings and lm_head are one weight, stored once, config.json must say "
    "tie_word_embeddings=true (in text_config too)"
)


def empty_vlm(stored: dict[str, Any], *, dtype: str, attention: str) -> Any:
    """The VLM of a stored configuration, its weights to be loaded: no download, no random initialisation."""
    config = AutoConfig.for_model(**stored)
    # Drawing seven billion random numbers takes a minute; the checkpoint, loaded strictly, overwrites all.
    with no_init_weights():
        vlm = AutoModelForImageTextToText.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attention
        )
    vlm.tie_weights()
    return vlm


def stored_config(vlm: Any) -> dict[str, Any]:
    """The VLM's configuration as plain JSON values, without paths of the machine it was loaded on."""
    stored = json.loads(vlm.config.to_json_string(use_diff=False))
    for key in ("_name_or_path", "transformers_version"):
        stored.pop(key, None)
    stored["architectures"] = [type(vlm).__name__]
    return stored
