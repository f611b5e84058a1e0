"""Where the mini VLM's weights lie. Imports nothing heavy: configs and command lines ask here."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Shipped with the package: everybody starts from the same VLM, without a download or the minutes that
`pretrain` takes."""

REQUIRED_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "chat_template.jinja",
)


def mini_vlm_path() -> Path:
    """The folder of the mini VLM that comes with the package.

    Returns:
        A folder that ``AutoModelForImageTextToText.from_pretrained`` and ``AutoProcessor.from_pretrained``
        load offline.

    Raises:
        ValueError: if files are missing there.
    """
    return check_vlm_folder(WEIGHTS)


def check_vlm_folder(path: Path) -> Path:
    """Return `path`, or raise ValueError naming the files that a mini VLM's folder lacks."""
    missing = [name for name in REQUIRED_FILES if not (path / name).is_file()]
    if missing:
        raise ValueError(
            f"the mini VLM's folder {path} lacks {', '.join(missing)}. Reinstall the package, or make the "
            f"weights again (about 20 minutes on two CPU cores): vita-vla vlm pretrain --out {path}"
        )
    return path
