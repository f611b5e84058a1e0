"""Environment variables of our own runs: offline, silent, no account."""

from __future__ import annotations

import os

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_ERROR_REPORTING": "false",
    "TOKENIZERS_PARALLELISM": "false",  # its threads meet our worker processes and warn at every fork
}


def prepare(*, online: bool = False) -> None:
    """Set what a verb's process and its children need, before LeRobot is imported.

    Args:
        online: Allow downloads from the model hub; otherwise a missing file is an error within milliseconds
            instead of half a minute of retries.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if online:
        os.environ.pop("HF_HUB_OFFLINE", None)
    else:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
