"""One thread per policy, and a queue that gives back what has not begun."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from lerobot_policy_vita_vla.serving.served import ServedPolicy


class Lane:
    """A policy and the one thread that it runs in, for all robots.

    Not a `ThreadPoolExecutor`: that one keeps what was cancelled, with its pictures, until it comes to it,
    and the interpreter waits for its threads at exit, however long a policy hangs.

    Args:
        served: The policy.
        name: ``"policy"`` or ``"fallback"``.
    """

    def __init__(self, served: ServedPolicy, name: str):
        self.served, self.name = served, name
        self._work: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._changed, self._closed = threading.Condition(), False
        threading.Thread(target=self._run, daemon=True, name=name).start()

    def submit(self, work: Callable[..., Any], *args: Any) -> Future:
        """Run something in the policy's thread, after what was submitted before."""
        future: Future = Future()
        with self._changed:
            self._work.append((future, lambda: work(*args)))
            self._changed.notify()
        return future

    def take_back(self, future: Future) -> bool:
        """Forget what has not begun; what has cannot be stopped, and ends in its thread.

        Returns:
            Whether it was forgotten.
        """
        with self._changed:
            kept = deque(entry for entry in self._work if entry[0] is not future)
            taken, self._work = len(kept) < len(self._work), kept
        return taken and future.cancel()

    @property
    def waiting(self) -> int:
        """How many have not begun."""
        return len(self._work)

    def close(self) -> None:
        """Begin nothing more; do not wait for what is running."""
        with self._changed:
            self._closed = True
            self._work.clear()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._work or self._closed)
                if self._closed:
                    return
                future, work = self._work.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            del future, work  # not kept, with its pictures, until the next one comes
