"""The policy server: one websocket per robot, msgpack maps, no pickle.

A connection starts with the server's `metadata`, then one answer follows each request:

    {"observation.images.front": (h, w, 3), "observation.state": (S,), "task": "..."}
                                 -> {"actions": (T, A), "source": ..., "limited": 0, "server_timing": ...}
    the same and "act": False    -> {"remembered": True}
    {"reset": True}              -> {"reset": True}

A request may carry ``"request_id"``, which its answer repeats, and ``"deadline_ms"``. What goes wrong is
answered by ``{"error": words, "kind": ...}`` where there is a request_id, otherwise by a text frame, as
openpi's server does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from importlib import metadata
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from lerobot_policy_vita_vla.serving.access import Gate
from lerobot_policy_vita_vla.serving.connection import Connection
from lerobot_policy_vita_vla.serving.describe import describe
from lerobot_policy_vita_vla.serving.responder import Conversation, NoAnswerError, Responder
from lerobot_policy_vita_vla.serving.served import BadObservationError
from vita_vla_client.wire import WireError, pack, unpack

logger = logging.getLogger(__name__)

HANDSHAKE_S = 5
PING_S = 10
STOP_S = 3
REFUSALS_EVERY_S = 5.0
"""Refusals are counted, and told no more often than this."""
SILENT = logging.getLogger(f"{__name__}.socket")
"""What the websocket library says of strangers' handshakes, with their own words in it, goes nowhere."""
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False
PROTOCOL = 1


class PolicyServer:
    """Serves a policy until it is stopped.

    Args:
        responder: Answers; `Responder.warm_up` must have been called.
        host: Address to listen on; `access.check_exposure` says which need a token.
        port: 0 takes a free one, see `port` afterwards.
        token: What clients must know.
        tls: See `access.tls_context`.
        max_clients: Robots at the same time; further ones are turned away.
        idle_s: A client that asks nothing for so long is hung up on.
    """

    def __init__(
        self,
        responder: Responder,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
        tls: Any = None,
        max_clients: int = 4,
        idle_s: float = 600.0,
    ):
        self.responder, self.host, self.port = responder, host, port
        self._gate, self._tls = Gate(token), tls
        self.max_clients, self.idle_s = max_clients, idle_s
        about = describe(responder)
        self.metadata = about | {
            "server": f"vita-vla {metadata.version('lerobot_policy_vita_vla')}",
            "protocol": PROTOCOL,
        }
        self._metadata = pack(self.metadata)
        self.max_message = largest_request(responder)
        self._open: dict[Connection, None] = {}  # old to new
        self._decoding = ThreadPoolExecutor(2, thread_name_prefix="decoding")
        self._refused, self._refusal_said = 0, -REFUSALS_EVERY_S
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self._tls else 'ws'}://{host}:{self.port}"

    async def start(self) -> None:
        """Listen."""
        self._server = await serve(
            self._robot,
            self.host,
            self.port,
            ssl=self._tls,
            process_request=self._admit,
            create_connection=partial(Connection, self._open),
            compression=None,  # pictures do not shrink; and decompression is one more thing to attack
            max_size=self.max_message,
            max_queue=2,
            open_timeout=HANDSHAKE_S,
            ping_interval=PING_S,
            ping_timeout=PING_S,
            close_timeout=1,
            server_header=None,
            logger=SILENT,
            **({"ssl_handshake_timeout": HANDSHAKE_S} if self._tls is not None else {}),
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Hang up on everyone; do not wait for a policy that hangs."""
        if self._server is not None:
            for connection in list(self._open):
                if not connection.admitted:
                    connection.transport.abort()  # it would be waited for
            self._server.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), STOP_S)
        self._decoding.shutdown(wait=False, cancel_futures=True)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "ok\n")
        if path != "/":
            return connection.respond(HTTPStatus.NOT_FOUND, "there is / for robots and /healthz\n")
        refused = self._gate.refusal(request.headers)
        if refused is None and sum(c.admitted for c in self._open) >= self.max_clients:
            refused = (
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.max_clients} robots are connected, no more may be",
            )
        if refused is None:
            connection.admitted = True
            return None
        self._say_refused(connection, refused[1])
        return connection.respond(refused[0], f"{refused[1]}\n")

    def _say_refused(self, connection: ServerConnection, words: str) -> None:
        self._refused += 1
        if (now := time.monotonic()) - self._refusal_said >= REFUSALS_EVERY_S:
            logger.warning("turned %s away: %s (%d so far)", _peer(connection), words, self._refused)
            self._refusal_said = now

    async def _robot(self, connection: ServerConnection) -> None:
        timing = Timing()
        logger.info("%s connected", _peer(connection))
        gone = asyncio.ensure_future(connection.wait_closed())
        try:
            await connection.send(self._metadata)
            conversation = self.responder.open()
            while True:
                data = await asyncio.wait_for(connection.recv(), self.idle_s)
                answer = asyncio.ensure_future(self._reply(conversation, data, timing))
                await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    # What a robot that has gone asked for must not keep the others waiting.
                    answer.cancel()
                    break
                reply, close = answer.result()
                await connection.send(reply)
                if close:
                    await connection.close(1003, "not a message of this protocol")
        except TimeoutError:
            await connection.close(1001, f"nothing was asked for {self.idle_s:g} s")
        except ConnectionClosed:
            pass
        finally:
            gone.cancel()
            logger.info("%s has gone: %s", _peer(connection), timing)

    async def _reply(
        self, conversation: Conversation, data: bytes | str, timing: Timing
    ) -> tuple[bytes | str, bool]:
        began = time.perf_counter()
        request_id = None
        try:
            if isinstance(data, str):
                raise WireError("a message is a binary frame, got text")
            request = unpack(data)
            request_id = _request_id(request)
            answer = await self._answer(conversation, request, began)
        except WireError as error:
            return f"error: {error}", True
        except BadObservationError as error:
            timing.failed += 1
            return _failure(request_id, "observation", str(error)), False
        except NoAnswerError as error:
            timing.failed += 1
            logger.warning("no answer: %s", error)
            return _failure(request_id, error.kind, str(error)), False
        if "actions" in answer:
            answer["server_timing"] = timing.took(began, answer)
        return pack(answer if request_id is None else {**answer, "request_id": request_id}), False

    async def _answer(
        self, conversation: Conversation, request: dict[str, Any], began: float
    ) -> dict[str, Any]:
        deadline_ms, act = request.pop("deadline_ms", None), request.pop("act", True)
        if not isinstance(reset := request.pop("reset", False), bool):
            raise BadObservationError(f"reset is true or false, got {str(reset)[:40]}")
        if reset:
            conversation.reset()
            if not request:
                return {"reset": True}
        if deadline_ms is not None and (isinstance(deadline_ms, bool) or not _positive(deadline_ms)):
            raise BadObservationError(
                f"deadline_ms is a positive number of milliseconds, got {str(deadline_ms)[:40]}"
            )
        if not isinstance(act, bool):
            raise BadObservationError(f"act is true or false, got {str(act)[:40]}")
        # In a thread: a large JPEG must not keep the server from answering pings.
        check = conversation.responder.policy.check
        observation = await asyncio.get_running_loop().run_in_executor(self._decoding, check, request)
        if not act:
            await conversation.observe(observation)
            return {"remembered": True}
        return await conversation.act(observation, deadline_ms, began)


class Timing:
    """What a robot's requests took."""

    def __init__(self):
        self._total_ms: deque[float] = deque(maxlen=1000)
        self._ended: deque[float] = deque(maxlen=50)
        self.requests = self.failed = self.stood_in = self.limited = 0

    def took(self, began: float, answer: dict[str, Any]) -> dict[str, float]:
        """Count an answer.

        Returns:
            ``infer_ms`` and ``total_ms`` of this one, ``p50_ms`` and ``p99_ms`` of the last thousand, and
            ``hz``, answers per second, of the last fifty.
        """
        now = time.perf_counter()
        self.requests += 1
        self.stood_in += answer["source"] == "fallback"
        self.limited += answer["limited"] > 0
        self._total_ms.append(1e3 * (now - began))
        self._ended.append(now)
        p50, p99 = self._percentiles()
        spent = self._ended[-1] - self._ended[0]
        return {
            "infer_ms": answer.pop("infer_ms"),
            "total_ms": self._total_ms[-1],
            "p50_ms": p50,
            "p99_ms": p99,
            "hz": (len(self._ended) - 1) / spent if spent > 0 else 0.0,
        }

    def _percentiles(self) -> list[float]:
        return np.percentile(self._total_ms, (50, 99)).tolist()

    def __str__(self) -> str:
        if not self.requests:
            return f"0 answers, {self.failed} failed"
        p50, p99 = self._percentiles()
        return (
            f"{self.requests} answers (median {p50:.1f} ms, 99 % within {p99:.1f} ms), {self.failed} failed, "
            f"{self.stood_in} by the fallback, {self.limited} cut to the limits"
        )


def largest_request(responder: Responder) -> int:
    """Bytes of the longest message that can be meaningful: the observation as arrays, and a little more."""
    wanted = responder.policy.observation.values()
    return (
        sum(
            int(np.prod(w.shape)) * np.dtype(w.dtype).itemsize * (1 if w.dtype == "uint8" else 2)
            for w in wanted
        )
        + 2**16
    )


def _failure(request_id: int | str | None, kind: str, words: str) -> bytes | str:
    return (
        f"error: {words}"
        if request_id is None
        else pack({"error": words, "kind": kind, "request_id": request_id})
    )


def _request_id(request: dict[str, Any]) -> int | str | None:
    request_id = request.pop("request_id", None)
    if request_id is not None and (not isinstance(request_id, int | str) or len(str(request_id)) > 80):
        raise WireError("a request_id is a number or a short text")
    return request_id


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < float("inf")


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client"
