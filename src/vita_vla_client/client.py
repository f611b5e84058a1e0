"""Ask a policy server for action chunks."""

from __future__ import annotations

import ipaddress
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import connect

from vita_vla_client.wire import Jpeg, WireError, pack, unpack

MAX_REPLY = 64 * 2**20
"""Bytes of the longest reply that is read."""

CONVENTIONS = frozenset(
    {
        "image_size",
        "control_hz",
        "image_orientation",
        "refreshed",
        "settle_steps",
        "action_mode",
        "action_dim",
        "position_unit",
        "state_position",
        "gripper_dim",
        "gripper_open",
        "gripper_closed",
        "action_rotation",
        "action_rotation_at",
        "rotation_unit",
        "state_rotation",
        "state_rotation_at",
    }
)
"""Names that a checkpoint's conventions have (`conventions.py:Conventions`)."""


class ConnectionLostError(ConnectionError):
    """The server cannot be reached, or has gone."""


class ServerError(RuntimeError):
    """The server could not answer this request; its words say why. The connection stays."""


class DeadlineMissedError(ServerError):
    """The answer was not ready in time, and the server has no second policy that could answer."""


class PolicyChangedError(RuntimeError):
    """After a reconnection something else answers."""


class PolicyClient:
    """A connection to a policy server; one request at a time, from any thread.

    Args:
        url: ``"ws://127.0.0.1:8000"``, or ``"wss://..."`` with TLS.
        token: The server's token, where it asks for one.
        ca_file: Certificate (PEM) by which to know a server whose own is not signed by a public authority.
        jpeg_quality: Send pictures as JPEG of this quality, 1..100: a tenth of the bytes, but not the same
            pixels (needs Pillow). None sends them as they are.
        open_timeout_s: How long connecting may take.
        timeout_s: How long an answer may take; a later one is thrown away.

    Attributes:
        metadata: What the server says of itself and its policy (docs/serving.md).

    Raises:
        ConnectionLostError: The server cannot be reached.
        PermissionError: It refuses the token.
        ValueError: The token would travel in clear text over a network.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8000",
        *,
        token: str | None = None,
        ca_file: str | None = None,
        jpeg_quality: int | None = None,
        open_timeout_s: float = 10.0,
        timeout_s: float = 10.0,
    ):
        if token is not None and urlsplit(url).scheme != "wss" and not is_loopback(urlsplit(url).hostname):
            raise ValueError(
                f"the token would travel to {url} in clear text, for everyone in between to read: use "
                "wss://, or "
                "an SSH tunnel (ssh -N -L 8000:127.0.0.1:8000 the-server) and ws://127.0.0.1:8000"
            )
        self.url, self._token, self._ca_file = url, token, ca_file
        self._jpeg_quality, self._open_timeout_s, self.timeout_s = jpeg_quality, open_timeout_s, timeout_s
        self._lock, self._requests = threading.Lock(), 0
        self.metadata: dict[str, Any] = {}
        self._connection = None
        self.connect()

    def connect(self) -> None:
        """Connect again, after a `ConnectionLostError`; the server remembers nothing of the time before.

        Raises:
            PolicyChangedError: Another policy answers there now, or the same one otherwise.
        """
        with self._lock:
            self._connect()

    def _connect(self) -> None:
        self.close()
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        tls = ssl.create_default_context(cafile=self._ca_file) if self.url.startswith("wss://") else None
        try:
            self._connection = connect(
                self.url,
                ssl=tls,
                additional_headers=headers,
                open_timeout=self._open_timeout_s,
                close_timeout=1,
                max_size=MAX_REPLY,
                # Pictures do not shrink, and looking for ways to costs more than sending them.
                compression=None,
                proxy=None,
            )
            first = self._connection.recv(timeout=self._open_timeout_s)
            about = unpack(first if isinstance(first, bytes) else first.encode())
            if changed := sorted(k for k in {*about, *self.metadata} if about.get(k) != self.metadata.get(k)):
                if self.metadata:
                    self.close()
                    raise PolicyChangedError(
                        f"{self.url} has another {', '.join(changed)} than before: what was checked then "
                        "does not "
                        "hold; make a new client and check again"
                    )
                self.metadata = about
        except InvalidStatus as error:
            response = error.response
            words = (response.body or b"").decode(errors="replace").strip()
            if response.status_code in (401, 403):
                raise PermissionError(f"{self.url} refuses this client: {words}") from None
            raise ConnectionLostError(f"{self.url} answers {response.status_code}: {words}") from None
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, ConnectionClosed, WireError) as error:
            self.close()
            words = str(error) or type(error).__name__
            raise ConnectionLostError(f"no policy server at {self.url}: {words}") from None

    def infer(
        self,
        observation: Mapping[str, Any],
        *,
        act: bool = True,
        deadline_ms: float | None = None,
    ) -> dict[str, Any]:
        """The answer to an observation.

        Args:
            observation: One array per name of ``metadata["observation"]``, without a batch axis: pictures
                (h, w, 3) uint8, numbers (n,) float; and the instruction as ``"task"`` (or ``"prompt"``).
            act: False only lets a policy with a history remember the observation.
            deadline_ms: Time that the server may take, from when it gets the request; None is its own.

        Returns:
            ``"actions"`` (T, A) float32 in the robot's units, ``"source"`` (``"policy"`` or ``"fallback"``),
            ``"limited"`` (how many of its numbers were cut to the limits), ``"server_timing"``; nothing of
            these where ``act`` is False.

        Raises:
            ServerError: The observation is not what the policy needs, or the policy failed.
            DeadlineMissedError: It took too long.
            TimeoutError: No answer within ``timeout_s``. The connection can still be used.
            ConnectionLostError: The server has gone.
        """
        request: dict[str, Any] = {} if act else {"act": False}
        if deadline_ms is not None:
            request["deadline_ms"] = float(deadline_ms)
        return self._ask({**{key: self._picture(value) for key, value in observation.items()}, **request})

    def require(self, *, allow_unknown: bool = False, **robot: Any) -> list[str]:
        """Compare what a robot means by its numbers with what the policy was trained on.

        Args:
            allow_unknown: Pass over what the checkpoint does not say.
            **robot: Any of the checkpoint's conventions (docs/conventions.md), as this robot has them:
                ``control_hz=30, action_mode="absolute", gripper_open=0, gripper_closed=100``.

        Returns:
            Names of which the checkpoint says nothing, which are not compared.

        Raises:
            ValueError: They differ in something, the checkpoint does not say it, or there is no such
                convention.
        """
        known = dict(self.metadata.get("conventions") or {})
        for name in ("control_hz", "action_mode"):
            if (value := self.metadata.get(name)) is not None:
                known.setdefault(name, value)
        if wrong := sorted(set(robot) - CONVENTIONS):
            raise ValueError(f"there are no conventions {wrong}; there are {sorted(CONVENTIONS)}")
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in robot.items()}
        if (listed.get("gripper_dim") or 0) < 0:
            listed["gripper_dim"] += len(self.metadata["action_names"])
        unknown = [name for name in listed if name not in known]
        if unknown and not allow_unknown:
            raise ValueError(
                f"the checkpoint does not say its {', '.join(unknown)}, so that nothing can be compared: "
                "declare the "
                "dataset's conventions and train again (vita-vla demos declare), or pass allow_unknown=True"
            )
        different = [
            f"{name}: trained with {known[name]!r}, this robot has {value!r}"
            for name, value in listed.items()
            if name in known and known[name] != value
        ]
        if different:
            raise ValueError(
                "the policy was trained on something else than this robot; it would move wrongly:\n  "
                + "\n  ".join(different)
                + "\nConvert in look() and act(), or train on this robot's own data"
            )
        return unknown

    def reset(self) -> None:
        """Tell the policy to forget the episode's observations."""
        self._ask({"reset": True})

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._connection is None:
                raise ConnectionLostError(f"not connected to {self.url}; call connect()")
            self._requests += 1
            try:
                self._connection.send(pack({**request, "request_id": self._requests}))
                reply = self._reply_to(self._requests)
            except (ConnectionClosed, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise
                raise ConnectionLostError(f"{self.url} has gone: {error}") from None
        if (failed := reply.get("error")) is not None:
            raise (DeadlineMissedError if reply.get("kind") == "deadline" else ServerError)(failed)
        return reply

    def _reply_to(self, request_id: int) -> dict[str, Any]:
        until = time.monotonic() + self.timeout_s
        while True:
            left = max(0.0, until - time.monotonic())
            try:
                data = self._connection.recv(timeout=left)
            except TimeoutError:
                raise TimeoutError(f"no answer from {self.url} within {self.timeout_s:g} s") from None
            if isinstance(data, str):
                raise ServerError(data)
            reply = unpack(data)
            # What was given up waiting for still arrives.
            if reply.get("request_id") == request_id:
                return reply

    def _picture(self, value: Any) -> Any:
        picture = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3
        if self._jpeg_quality is None or not picture:
            return value
        import io

        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(value).save(stream, "JPEG", quality=self._jpeg_quality)
        return Jpeg(stream.getvalue())


def is_loopback(host: str | None) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
