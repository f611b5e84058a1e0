"""Several processes that work through one list: each item is done once, by whoever comes first.

Locks belong to the operating system, so those of a process that dies are free at once and nothing goes stale.
The empty ``*.lock`` files stay: removing one while another process opens it would give two of them the lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

WAIT_S = 2.0
"""Between two looks at items that others are at."""


class Busy(Exception):  # noqa: N818 - no error: a reason to come back
    """Another process is at it, or at something that it needs: come back later."""


class claim:  # noqa: N801 - reads as the verb that it is, like `open`
    """Context in which only this process works on `path`.

    Args:
        path: What is worked on; the lock is the file ``<path>.lock`` beside it.

    Raises:
        Busy: On entering, at once, where another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0)

    def __enter__(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise Busy(self._lock.lock_file) from None

    def __exit__(self, *_) -> None:
        self._lock.release()


def each_once[Item](items: Sequence[Item], work: Callable[[Item], None]) -> None:
    """Work on every item that is free and come back for the others until all are done.

    Args:
        items: In the order in which they are tried.
        work: Does an item under `claim`, returns at once where it finds it done, and lets `Busy` pass. A free
            item is done, or holds what a dead process left.

    Raises:
        Exception: Whatever `work` raises other than `Busy`.
    """
    waiting = list(items)
    while waiting:
        busy = []
        for item in waiting:
            try:
                work(item)
            except Busy:
                busy.append(item)
        if len(busy) == len(waiting):
            time.sleep(WAIT_S)
        waiting = busy
