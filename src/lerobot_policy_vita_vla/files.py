"""The user's files: named where they are damaged, tried before the work that is to fill them."""

from __future__ import annotations

import errno
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)
"""A full disk is told elsewhere, with how much of it is free."""


def read_json(path: str | Path) -> dict[str, Any]:
    """The content of a JSON file that must hold an object.

    Raises:
        ValueError: It does not; names the file.
    """
    try:
        content = json.loads(Path(path).read_text())
    except ValueError as error:  # bytes that are no text are one, too
        raise ValueError(f"{path} is damaged ({error}); copy it again, or make it again") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not an object {{...}}; copy it again, or make it again"
        )
    return content


def check_writable(path: str | Path, name: str) -> None:
    """Refuse a file or folder that could not be made; leaves nothing behind.

    Args:
        path: What is to be made, with its parents where they are missing.
        name: What the user calls it, such as ``--out``.

    Raises:
        ValueError: Nothing can be written there; names the path and the reason.
    """
    target, new = Path(path).expanduser().absolute(), []
    try:
        new = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=target.parent):
            pass
    except OSError as error:
        if error.errno in FULL:
            raise
        part = next((p for p in target.parents if p.exists() and not p.is_dir()), None)
        reason = f"{part} is a file" if part else (error.strerror or str(error)).lower()
        raise ValueError(
            f"{name} {path}: nothing can be written to {target.parent} ({reason}). Pass another {name}, in a "
            "folder of yours"
        ) from None
    finally:
        for folder in new:
            with suppress(OSError):  # not made, or filled by another program meanwhile
                folder.rmdir()
