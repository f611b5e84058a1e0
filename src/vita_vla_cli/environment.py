"""The process and the environment variables of our own runs: offline, silent, no account, memory kept."""

from __future__ import annotations

import os
from pathlib import Path

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_ERROR_REPORTING": "false",
    "TOKENIZERS_PARALLELISM": "false",  # its threads meet our worker processes and warn at every fork
}

MALLOC = ((-3, "MALLOC_MMAP_THRESHOLD_", 2**30), (-1, "MALLOC_TRIM_THRESHOLD_", 2**31 - 1))
"""glibc's numbers of two options of `mallopt`, their environment variables, and our values in bytes."""
MALLOC_OWNERS = frozenset({"GLIBC_TUNABLES", *(name for _, name, _ in MALLOC)})


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
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let this process and its children use freed memory again instead of returning it to the system.

    By default glibc maps large tensors anew and unmaps them when they are freed, and the system then clears
    their pages one fault at a time: 29 000 faults in a training step of the tiny teacher on one CPU thread, a
    quarter of the step (0.167 s instead of 0.125 s). Whether it does depends on where in memory small
    objects happen to lie, so it comes and goes between runs. Up to 2 GiB stay with the process.

    Returns:
        Whether it was done: not with another C library (macOS, musl), nor where the user, or the command that
        started this one, has set one of glibc's own variables.
    """
    glibc = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ())
    if not glibc or not MALLOC_OWNERS.isdisjoint(os.environ):
        return False
    import ctypes  # here: `--help` has no use for it

    libc = ctypes.CDLL(None)
    for option, name, number in MALLOC:
        libc.mallopt(option, number)
        os.environ[name] = str(number)  # glibc reads these when a child starts
    return True


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
