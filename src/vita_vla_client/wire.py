"""What travels between robot and policy server: msgpack maps with numpy arrays.

The layout is the one that openpi's client speaks (openpi-client, `msgpack_numpy`), so that programs written
for it work unchanged; pictures may also travel as JPEG:

    array    {b"__ndarray__": true, b"data": bytes, b"dtype": "<f4", b"shape": [3, 7]}     C order
    number   {b"__npgeneric__": true, b"data": 1.5, b"dtype": "<f4"}
    picture  {b"__jpeg__": true, b"data": bytes}                                             lossy

Nothing of a message is ever run: no pickle, no types by name, no extension types, numbers of fixed size only,
and no allocation that the message's own length does not pay for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

DTYPES = frozenset({"|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"})
"""Types of numbers that may travel, as numpy writes them: little-endian, of fixed size, no objects."""

MAX_DIMS = 8
MAX_STRING = 16_384
"""Bytes of a text."""
MAX_ITEMS = 256
"""Entries of a list or map."""
MAX_CONTAINERS = 256
"""Lists, maps and arrays of a message: each costs many times its bytes."""

ARRAY, NUMBER, JPEG = b"__ndarray__", b"__npgeneric__", b"__jpeg__"
DATA, DTYPE, SHAPE = b"data", b"dtype", b"shape"


class WireError(ValueError):
    """A message that is not one of ours."""


@dataclass(frozen=True)
class Jpeg:
    """A picture as JPEG, not yet decoded."""

    data: bytes


def pack(message: Mapping[str, Any]) -> bytes:
    """Bytes of a message.

    Args:
        message: Texts, numbers, None, numpy arrays, `Jpeg`, and maps and lists of these.

    Raises:
        WireError: For anything else, naming the type.
    """
    try:
        return msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"the message cannot be sent: {error}") from None


def unpack(data: bytes) -> dict[str, Any]:
    """Inverse of `pack`; arrays are copies that may be written to.

    Raises:
        WireError: For bytes that are not a message, whatever they hold.
    """
    containers = 0

    def counted(entry: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise WireError(f"a message holds at most {MAX_CONTAINERS} lists, maps and arrays")
        return _decode(entry) if isinstance(entry, dict) else entry

    try:
        message = msgpack.unpackb(
            data,
            object_hook=counted,
            list_hook=counted,
            max_str_len=MAX_STRING,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not a message of this protocol: {type(error).__name__}: {error}") from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise WireError(f"a message is a map with texts as keys, got {type(message).__name__}")
    return message


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<"), copy=False))
        # ascontiguousarray makes one number an array of one.
        return {ARRAY: True, DATA: array.tobytes(), DTYPE: _known(array.dtype.str), SHAPE: value.shape}
    if isinstance(value, np.generic):
        return {NUMBER: True, DATA: value.item(), DTYPE: _known(value.dtype.newbyteorder("<").str)}
    if isinstance(value, Jpeg):
        return {JPEG: True, DATA: value.data}
    raise TypeError(f"a {type(value).__module__}.{type(value).__name__} does not travel; send numpy arrays")


def _known(dtype: Any) -> str:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WireError(f"numbers of type {str(dtype)[:40]!r} do not travel; known are {sorted(DTYPES)}")
    return dtype


def _decode(entry: dict) -> Any:
    if ARRAY in entry:
        return _array(entry)
    if NUMBER in entry:
        dtype, value = _known(entry.get(DTYPE)), entry.get(DATA)
        if not isinstance(value, bool | int | float):
            raise WireError(f"a number is expected, got {type(value).__name__}")
        return np.dtype(dtype).type(value)
    if JPEG in entry:
        if not isinstance(entry.get(DATA), bytes):
            raise WireError("a JPEG's data are bytes")
        return Jpeg(entry[DATA])
    return entry


def _array(entry: dict) -> np.ndarray:
    dtype, shape, data = np.dtype(_known(entry.get(DTYPE))), entry.get(SHAPE), entry.get(DATA)
    sizes = (
        isinstance(shape, list) and len(shape) <= MAX_DIMS and all(type(n) is int and n >= 0 for n in shape)
    )
    if not sizes:
        raise WireError(f"an array's shape is a list of at most {MAX_DIMS} sizes")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"an array's bytes do not fit its shape {shape} and type {dtype.str}")
    return np.frombuffer(data, dtype).reshape(shape).copy()
