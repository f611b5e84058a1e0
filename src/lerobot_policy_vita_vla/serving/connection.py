"""A connection that cannot keep others out: few unfinished ones at a time, few pings, little left unread."""

from __future__ import annotations

from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode

MAX_UNFINISHED = 64
"""TCP connections that are no robot's (yet); the oldest of more is hung up on."""

SLICE = 4096
"""Bytes that are looked at in one go: how many pings can be answered before they are counted."""

MAX_PINGS = 200
"""Between two requests; a robot that idles for ten minutes sends a few dozen."""

MAX_UNREAD = 2**20
"""Bytes of answers that a client has not read."""


class Connection(ServerConnection):
    """As the websocket library has it, with limits.

    Args:
        others: All connections that are open, from old to new; this one enters and leaves by itself.
        *args: The library's.
        **kwargs: The library's.
    """

    def __init__(self, others: dict[Connection, None], *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._others, self._pings = others, 0
        self.admitted = False
        """Whether it takes a robot's place."""

    def connection_made(self, transport: Any) -> None:
        """Let it in, and the oldest stranger out where there are too many."""
        super().connection_made(transport)
        self._others[self] = None
        strangers = [other for other in self._others if not other.admitted]
        if len(strangers) > MAX_UNFINISHED:
            self._others.pop(strangers[0])  # at once: many may come before it is gone
            strangers[0].transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Give its place back."""
        self._others.pop(self, None)
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Look at it piece by piece: a megabyte of pings would otherwise be answered before it is counted."""
        for start in range(0, len(data), SLICE):
            super().data_received(data[start : start + SLICE])
            if self._pings > MAX_PINGS or self.transport.get_write_buffer_size() > MAX_UNREAD:
                self.transport.abort()
                return

    def process_event(self, event: Any) -> None:
        """Count pings from one message to the next."""
        if isinstance(event, Frame):
            self._pings = self._pings + 1 if event.opcode is Opcode.PING else 0
        super().process_event(event)
