"""Pictures on their way from simulators to the policy: in shared memory, one place per slot.

Sent through a pipe they are copied four times (0.15 ms for one picture of 96 px, 1 ms for two of 256 px), and
a pipe holds only about 200 kB: a worker with more to say stands still until the other end reads, which it
does between two predictions. A place needs no lock, since an episode has either an observation on its way or
a chunk.
"""

from __future__ import annotations

from math import prod
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import numpy as np


class Place(NamedTuple):
    """Stands for a picture in a message: where its bytes begin, and its shape."""

    offset: int
    shape: tuple[int, ...]


class PictureBoard:
    """Shared memory for the pictures of one observation per slot.

    To be given to a process when it is started; gone with the last process that has it.

    Args:
        context: Of the processes that share it.
        slots: How many.
        slot_bytes: Room for one slot's pictures; what does not fit stays in the message.
    """

    def __init__(self, context: BaseContext, slots: int, slot_bytes: int):
        self.slot_bytes = slot_bytes
        self._memory = context.RawArray("B", max(1, slots * slot_bytes))

    def put(self, slot: int, observation: dict[str, Any]) -> dict[str, Any]:
        """Copy an observation's uint8 arrays to the slot's place; returns the message, with `Place` instead.

        The slot's previous pictures are overwritten.
        """
        memory = np.frombuffer(self._memory, dtype=np.uint8)
        offset, end = slot * self.slot_bytes, (slot + 1) * self.slot_bytes
        message = dict(observation)
        for key, value in observation.items():
            if isinstance(value, np.ndarray) and value.dtype == np.uint8 and offset + value.size <= end:
                memory[offset : offset + value.size].reshape(value.shape)[...] = value
                message[key] = Place(offset, value.shape)
                offset += value.size
        return message

    def look(self, message: dict[str, Any]) -> dict[str, Any]:
        """The observation of a message; its pictures are read-only views until the slot's next `put`."""
        memory = np.frombuffer(self._memory, dtype=np.uint8)
        memory.flags.writeable = False
        return {
            key: memory[value.offset : value.offset + prod(value.shape)].reshape(value.shape)
            if isinstance(value, Place)
            else value
            for key, value in message.items()
        }
