"""From paths to a running server, and its end by a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.evaluation.checks import check_device
from lerobot_policy_vita_vla.serving.describe import action_names
from lerobot_policy_vita_vla.serving.limits import ActionLimits, demonstrated_limits, read_limits
from lerobot_policy_vita_vla.serving.responder import Responder
from lerobot_policy_vita_vla.serving.served import ServedPolicy
from lerobot_policy_vita_vla.serving.server import PolicyServer

THREAD_S = 60
"""How long a server in a thread may take to start and to stop."""


def make_responder(
    policy: str | Path,
    *,
    fallback: str | Path | None = None,
    limits: str | Path = "demonstrations",
    deadline_ms: float | None = None,
    device: str = "cpu",
) -> Responder:
    """Load and warm up.

    Args:
        policy: See `ServedPolicy.load`.
        fallback: The same, for the second policy.
        limits: A file, ``"demonstrations"`` or ``"none"``.
        deadline_ms: See `Responder`.
        device: Of both policies.

    Raises:
        ValueError: A checkpoint or the limits cannot be used.
    """
    check_device(device)
    served = ServedPolicy.load(policy, device)
    second = ServedPolicy.load(fallback, device) if fallback is not None else None
    responder = Responder(
        served, fallback=second, limits=_limits(served, policy, limits), deadline_ms=deadline_ms
    )
    responder.warm_up()
    return responder


async def serve_until_signal(server: PolicyServer, say: Any = print) -> None:
    """Listen until SIGINT or SIGTERM."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    try:
        await server.start()
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise ValueError(
                f"cannot listen on {server.host}:{server.port}: {error.strerror}; choose another --port, "
                "or 0 for "
                "a free one"
            ) from None
        raise
    say(f"ready: {server.url}")
    await stopped.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)  # a second one ends the process at once
    say("stopping: robots are hung up on, and hold")
    await server.stop()
    server.responder.close()


@contextlib.contextmanager
def running(responder: Responder, **settings: Any) -> Iterator[PolicyServer]:
    """A server on a free port of 127.0.0.1, in a thread of its own: for programs that hold both sides.

    Args:
        responder: Answers.
        **settings: Of `PolicyServer`.
    """
    server, loop = PolicyServer(responder, port=0, **settings), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="policy-server")
    thread.start()

    def wait_for(work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(THREAD_S)

    try:
        wait_for(server.start())
        yield server
    finally:
        wait_for(server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(THREAD_S)
        loop.close()


def _limits(served: ServedPolicy, policy: str | Path, wanted: str | Path) -> ActionLimits | None:
    from lerobot_policy_vita_vla.evaluation.predictor import checkpoint_folder

    if str(wanted) == "none":
        return None
    if str(wanted) != "demonstrations":
        return read_limits(Path(wanted), action_names(served.config))
    found = demonstrated_limits(checkpoint_folder(policy))
    if found is None:
        raise ValueError(
            f"{policy} does not keep the range of the actions it was trained on: pass --limits FILE, made by "
            "`vita-vla demos limits DEMOS --out FILE`, or --limits none to send whatever it predicts"
        )
    return found
