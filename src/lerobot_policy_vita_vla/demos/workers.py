"""Worker processes for simulators: started clean, quiet on Ctrl-C, gone when their parent is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait

POLITE = 10
"""Added to a worker's niceness."""


def check_workers(workers: int) -> None:
    """Refuse a number of processes that is none."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}: change --workers")


@contextmanager
def worker_pool(workers: int, preload: str) -> Iterator[Executor]:
    """A pool of ``workers`` processes; one worker is this process itself.

    Args:
        workers: How many.
        preload: Module that every worker needs: imported once, in the server from which workers are forked,
            since LeRobot takes seconds to import. Plain forks of this process would inherit its drawing
            contexts and threads.
    """
    check_workers(workers)
    if workers == 1:
        yield _InThisProcess()
        return
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([preload])
    else:
        context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _InThisProcess(Executor):
    """Runs a job when it is submitted."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _start_worker() -> None:
    # Ctrl-C reaches the whole group; the parent decides, workers finish the episode they are at.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The parent writes one episode after the other, and the recording waits for it: where cores are few,
    # workers step back.
    if hasattr(os, "nice"):
        os.nice(POLITE)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A pool's worker waits for work forever if its parent was killed.
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
