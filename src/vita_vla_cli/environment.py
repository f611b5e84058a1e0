"""Environment variables of our own runs: offline, silent, no account."""

from __future__ import annotations

import os
from pathlib import Path

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


def fast_dtype(device: str | None = None) -> str:
    """The precision in which small networks train fastest on a device.

    bfloat16 is faster where the processor multiplies it natively (AMX or AVX-512 on x86) and many times
    slower where it is emulated.

    Args:
        device: As for LeRobot; None is a CUDA device where there is one, otherwise the CPU.
    """
    if device is None and Path("/dev/nvidia0").exists():
        device = "cuda"
    if device is not None and device.startswith("cuda"):
        return "bfloat16"
    if device in (None, "cpu"):
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text().split() if cpuinfo.is_file() else ()
        if "amx_bf16" in flags or "avx512_bf16" in flags:
            return "bfloat16"
    return "float32"
