"""Turn an exception into the block that a user reads."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

WRONG_WITH_PATH = {
    errno.EACCES: "this user may not read or write there",
    errno.EPERM: "this user may not read or write there",
    errno.EROFS: "its file system can only be read",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "it is a folder, and a file is needed",
    errno.ENOENT: "there is no such file or folder",
    errno.EEXIST: "it exists already",
    errno.ENAMETOOLONG: "the name is too long",
}
"""What the system says of a path, in words."""
USER_ERROR = 2
INTERRUPTED = 130


def explain(error: BaseException, *, kept: str = "", memory_hint: str = "") -> tuple[str, int] | None:
    """Message and exit code of an error that the user can act on, or None for one of ours.

    Args:
        error: What was raised.
        kept: What of the interrupted work is still there, as the verb describes it.
        memory_hint: Which flags of the verb take less memory.
    """
    kept_line = f"\nkept: {kept}" if kept else ""
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{kept_line}", INTERRUPTED
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        first = (str(error).strip() or "the memory of this machine is used up").splitlines()[0]
        hint = f"\n{memory_hint}" if memory_hint else ""
        return f"error: out of memory: {first}{hint}{kept_line}", USER_ERROR
    if _is_full_disk(error):
        return f"error: {_disk(error)}{kept_line}", USER_ERROR
    if isinstance(error, OSError) and error.filename is not None and not _offline_hint(error):
        return f"error: {_path(error)}", USER_ERROR
    if isinstance(error, ValueError | FileNotFoundError | FileExistsError):
        return f"error: {_text(error)}{_offline_hint(error)}", USER_ERROR
    if _offline_hint(error):
        return f"error: {_text(error)}{_offline_hint(error)}", USER_ERROR
    return None


def _text(error: BaseException) -> str:
    text = str(error).strip()
    return text or type(error).__name__


def _is_out_of_memory(error: BaseException) -> bool:
    # By name: this module must not import torch. CPU allocation failures are plain RuntimeErrors there.
    if type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def _is_full_disk(error: BaseException) -> bool:
    # Weights are written by a library that reports it as an error of its own, in words.
    no_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return no_space or os.strerror(errno.ENOSPC).lower() in str(error).lower()


def _disk(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.strerror != os.strerror(error.errno):
        return error.strerror  # one of ours: it knows what was being written
    name = getattr(error, "filename", None)
    path = Path(name) if name else Path.cwd()
    existing = next((p for p in (path.absolute(), *path.absolute().parents) if p.exists()), Path("/"))
    usage = shutil.disk_usage(existing)
    free, total = usage.free / 2**30, usage.total / 2**30
    return (
        f"the disk that holds {existing} is full ({free:.1f} GiB free of {total:.1f} GiB): free some space, "
        "or choose a folder on another disk with --out or --root"
    )


def _path(error: OSError) -> str:
    reason = WRONG_WITH_PATH.get(error.errno, (error.strerror or type(error).__name__).lower())
    return f"{os.fsdecode(error.filename)} cannot be used: {reason}. Pass another path"


def _offline_hint(error: BaseException) -> str:
    chain, seen = error, []
    while chain is not None and chain not in seen:
        seen.append(chain)
        name, text = type(chain).__name__, str(chain)
        if name in ("OfflineModeIsEnabled", "LocalEntryNotFoundError") or "HF_HUB_OFFLINE" in text:
            return "\nDownloads are off by default; add --online to allow them, or pass a local folder."
        chain = chain.__cause__ or chain.__context__
    return ""
