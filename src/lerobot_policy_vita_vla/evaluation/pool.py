"""The simulator processes, and which episode goes where.

Processes come from a fork server that has imported the simulator once, so a worker starts in milliseconds
instead of the seconds that importing LeRobot takes, and shares that memory; nothing of the parent (GPU state,
threads, GL) is inherited. Where the platform has no fork server, plain spawning does the same, slower.

A process cannot start before the server has imported, so starting happens in a thread: meanwhile this process
loads the policy, and then the simulators are built as well.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import wait
from typing import Any

from lerobot_policy_vita_vla.demos.scenes import METAWORLD, scenes_of
from lerobot_policy_vita_vla.evaluation.manifest import Episode
from lerobot_policy_vita_vla.evaluation.pictures import PictureBoard
from lerobot_policy_vita_vla.evaluation.worker import Settings, serve

SHARE_FROM = 2
"""Episodes a task must have left before another simulator is built for it (our choice: building the first one
of a task in a process takes about as long as an episode)."""


class EpisodeQueue:
    """Hands out episodes so that few simulators are built.

    A slot keeps its task while that has episodes; then it takes a task that nobody has begun, or helps with
    the one that has most left, first among those that its own process plays: there a further simulator is
    cheap (`demos.metaworld_pictures`).

    Args:
        episodes: In the order in which they are wanted.
        open_tasks: Tasks after which a slot rather helps in its own process than begins another one: rows of
            one instruction fill an inference call. None: no limit.
    """

    def __init__(self, episodes: Iterable[Episode], open_tasks: int | None = None):
        self._open_tasks = open_tasks
        self._pending: dict[str, list[Episode]] = {}
        for episode in episodes:
            self._pending.setdefault(episode.task, []).append(episode)
        self._homes: dict[str, set[int]] = {}

    def next(self, task: str | None, home: int = 0) -> Episode | None:
        """The next episode for a slot; None if the slot is not needed any more.

        Args:
            task: What its simulator has loaded; None where it has none.
            home: Number of its process.
        """
        if task not in self._pending:
            fresh = [name for name in self._pending if name not in self._homes]
            shared = [name for name, left in self._pending.items() if len(left) >= SHARE_FROM]
            at_home = [name for name in shared if home in self._homes.get(name, ())]
            most = max(at_home or shared, key=lambda name: len(self._pending[name]), default=None)
            enough = self._open_tasks is not None and len(self._pending) - len(fresh) >= self._open_tasks
            task = fresh[0] if fresh and not (enough and at_home) else most
        if task is None:
            return None
        self._homes.setdefault(task, set()).add(home)
        episode = self._pending[task].pop(0)
        if not self._pending[task]:
            del self._pending[task]
        return episode


class WorkerPool:
    """Worker processes with numbered slots; use as a context manager, so that no process outlives it.

    Args:
        workers: Number of processes.
        slots_per_worker: Simulators, thus simultaneous episodes, in each.
        stall_s: Longest silence of all workers, seconds, before giving up (our choice: five minutes is far
            above building a simulator on a loaded machine).
        suite: Whose simulator is imported before processes are forked.
        picture_bytes: Size of the pictures of one observation.
    """

    def __init__(
        self,
        workers: int,
        slots_per_worker: int,
        *,
        stall_s: float = 300.0,
        suite: str = METAWORLD.name,
        picture_bytes: int = 0,
    ):
        for name, value in (("workers", workers), ("envs_per_worker", slots_per_worker)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.slots = range(workers * slots_per_worker)
        self._workers, self._stall_s, self._suite = workers, stall_s, suite
        self._picture_bytes = picture_bytes
        self._processes, self._connections = [], []
        self._started: Future | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def begin(self, settings: Settings, first: Mapping[int, Episode]) -> None:
        """Start the processes without waiting for them, and let them build what they will need.

        Args:
            settings: What is known of the settings yet.
            first: Slot -> the episode that it will begin with.
        """
        starter = ThreadPoolExecutor(1, thread_name_prefix="vita-vla-start")
        self._started = starter.submit(self._start, settings, first)
        starter.shutdown(wait=False)

    def setup(self, settings: Settings) -> None:
        """Tell every worker what is common to all episodes; waits until the processes have started."""
        self._started.result()
        self._settle(settings)

    def _start(self, settings: Settings, first: Mapping[int, Episode]) -> None:
        context = _context(self._suite)
        self._board = PictureBoard(context, len(self.slots), self._picture_bytes)
        for index in range(self._workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(theirs, self._board), daemon=True, name=f"vita-vla-simulator-{index}"
            )
            self._connections.append(ours)
            process.start()
            self._processes.append(process)
            # Ours alone may keep the pipe open, or the death of a worker would go unnoticed.
            theirs.close()
        self._settle(settings)
        for slot, episode in first.items():
            self.send(slot, "build", episode)

    def _settle(self, settings: Settings) -> None:
        for index in range(self._workers):
            self._post(index, ("setup", None, settings.for_worker(index)))

    def __exit__(self, *_: Any) -> None:
        if self._started is not None:
            # Processes that are being started would otherwise be missed here. Its error, if it has one, was
            # told by `setup`, or follows from the one that ends this.
            self._started.exception()
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            # An idle worker ends by itself when its pipe closes; one in the middle of an episode is not
            # waited for.
            process.terminate()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()

    def home(self, slot: int) -> int:
        """The number of the process that a slot belongs to."""
        return slot % self._workers

    def send(self, slot: int, kind: str, payload: Any) -> None:
        """Send a message to a slot."""
        self._post(self.home(slot), (kind, slot, payload))

    def receive(self, *, block: bool) -> list[tuple[str, int, Any]]:
        """Messages that have arrived; with ``block`` at least one.

        Raises:
            ValueError: If a worker refused what it was asked for.
            RuntimeError: If a worker failed (with its traceback), died, or all of them went silent.
        """
        ready = wait(self._connections, timeout=self._stall_s if block else 0)
        if block and not ready:
            raise RuntimeError(
                f"no simulator has answered for {self._stall_s:.0f} s; the finished episodes are kept. Look "
                "at the machine's load and memory, then run the same command again: it continues"
            )
        messages = []
        for connection in ready:
            try:
                kind, slot, content = connection.recv()
            except (EOFError, ConnectionResetError):
                raise self._death(self._connections.index(connection)) from None
            _raise_last_words(kind, content)
            messages.append((kind, slot, self._board.look(content) if kind == "observation" else content))
        return messages

    def _post(self, index: int, message: tuple) -> None:
        try:
            self._connections[index].send(message)
        except (BrokenPipeError, ConnectionResetError):
            # Its last words, if any, are still in the pipe.
            with contextlib.suppress(EOFError, ConnectionResetError):
                while self._connections[index].poll():
                    kind, _, content = self._connections[index].recv()
                    _raise_last_words(kind, content)
            raise self._death(index) from None

    def _death(self, index: int) -> RuntimeError:
        process = self._processes[index]
        process.join(timeout=5)
        return RuntimeError(
            f"simulator process {index} ended unexpectedly (exit code {process.exitcode}; -9 is usually the "
            "system running out of memory: use fewer workers or envs_per_worker). The finished episodes are "
            "kept; run the same command again to continue"
        )


def _raise_last_words(kind: str, content: Any) -> None:
    """Raise in this process what ended a worker; other messages pass."""
    if kind == "refused":
        message, traceback = content
        raise ValueError(message) from RuntimeError(f"in a simulator process:\n{traceback}")
    if kind == "error":
        raise RuntimeError(f"a simulator process failed:\n{content}")


def _context(suite: str):
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lerobot_policy_vita_vla.evaluation.worker", scenes_of(suite).module])
    return context
