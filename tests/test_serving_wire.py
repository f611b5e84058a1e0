"""What travels: openpi's layout byte by byte, everything that comes back, and nothing that does harm."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest

from vita_vla_client.wire import DTYPES, MAX_ITEMS, MAX_STRING, Jpeg, WireError, pack, unpack


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_arrays_come_back(dtype, shape):
    array = np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)
    found = unpack(pack({"a": array}))["a"]
    assert found.dtype == array.dtype and found.shape == shape and found.flags.writeable
    np.testing.assert_array_equal(found, array)


def test_everything_else_that_may_travel_comes_back():
    message = {"task": "öffne", "n": 3, "x": 0.5, "none": None, "yes": True, "list": [1, [2, "b"]]}
    message |= {"inner": {"a": {"b": np.float32(1.5)}}, "picture": Jpeg(b"\xff\xd8")}
    found = unpack(pack(message))
    assert found == message
    assert isinstance(found["inner"]["a"]["b"], np.float32)


def test_views_and_other_byte_orders_are_sent_as_what_they_mean():
    array = np.arange(12, dtype=">f4").reshape(3, 4).T[::-1]
    np.testing.assert_array_equal(unpack(pack({"a": array}))["a"], array)


def test_the_bytes_are_openpis():
    # As openpi-client 0.1.2 packs {"x": np.array([[1, 2]], np.uint8), "s": np.float32(2)}.
    golden = (
        b"\x82\xa1x\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x02\x01\x02\xc4\x05dtype\xa3|u1\xc4\x05shape\x92\x01\x02"
        b"\xa1s\x83\xc4\r__npgeneric__\xc3\xc4\x04data\xcb@\x00\x00\x00\x00\x00\x00\x00\xc4\x05dtype\xa3<f4"
    )
    assert pack({"x": np.array([[1, 2]], np.uint8), "s": np.float32(2)}) == golden
    assert unpack(golden)["s"] == 2


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.array(["a"]), np.zeros(1, complex), object(), {1, 2}]
)
def test_what_does_not_travel_is_refused_by_its_sender(value):
    with pytest.raises(WireError):
        pack({"a": value})


def array(**changed):
    entry = {b"__ndarray__": True, b"data": b"\0" * 12, b"dtype": "<f4", b"shape": [3]}
    return msgpack.packb({"a": entry | {key.encode(): value for key, value in changed.items()}})


class Harm:
    def __reduce__(self):
        return os.system, ("touch harm",)


HOSTILE = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "pickle": pickle.dumps(Harm()),
    "an object array": array(dtype="|O"),
    "a text array": array(dtype="<U3"),
    "a structure": array(dtype="<f4,<f4"),
    "a type by name": array(dtype="float32"),
    "a list as type": array(dtype=["<f4"]),
    "a shape that claims terabytes": array(shape=[2**40]),
    "a negative shape": array(shape=[-3]),
    "two negative sizes": array(shape=[-3, -1]),
    "a shape of fractions": array(shape=[3.0]),
    "a shape of truths": array(shape=[True, 3]),
    "a shape that is a number": array(shape=3),
    "very many dimensions": array(shape=[1] * 32 + [3]),
    "an overflowing shape": array(shape=[2**62, 4, 2**62]),
    "too few bytes": array(data=b"\0"),
    "text instead of bytes": array(data="abcdefghijkl"),
    "no shape": msgpack.packb({"a": {b"__ndarray__": True, b"data": b"", b"dtype": "<f4"}}),
    "an object as number": msgpack.packb({"a": {b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}}),
    "a JPEG of text": msgpack.packb({"a": {b"__jpeg__": True, b"data": "x"}}),
    "an extension": msgpack.packb({"a": msgpack.ExtType(1, b"x")}),
    "a time": msgpack.packb({"a": msgpack.Timestamp(1)}),
    "a list": msgpack.packb([1, 2]),
    "keys of bytes": msgpack.packb({b"a": 1}),
    "keys of numbers": msgpack.packb({1: 1}),
    "a map that claims billions": b"\xdf\xff\xff\xff\xff",
    "a list that claims billions": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "bytes that claim billions": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "a deep nest": b"\x81\xa1a" + b"\x91" * 100_000 + b"\x01",
    "a nest of maps": b"\x81\xa1a" * 100_000 + b"\x01",
    "a long text": msgpack.packb({"a": "x" * (MAX_STRING + 1)}),
    "a long list": msgpack.packb({"a": [0] * (MAX_ITEMS + 1)}),
    "broken text": b"\x81\xa1a\xa2\xff\xfe",
    "more behind it": msgpack.packb({"a": 1}) + b"\x01",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_and_do_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WireError):
        unpack(HOSTILE[name])
    assert list(tmp_path.iterdir()) == []


def test_random_damage_is_refused_or_harmless():
    sound = pack({"picture": np.zeros((4, 4, 3), np.uint8), "task": "open", "n": 1.5, "list": [1, 2]})
    generator, refused = np.random.default_rng(0), 0
    for _ in range(5000):
        damaged = bytearray(sound)
        for place in generator.integers(0, len(sound), generator.integers(1, 5)):
            damaged[place] = generator.integers(0, 256)
        try:
            assert isinstance(unpack(bytes(damaged)), dict)
        except WireError:
            refused += 1
    assert 100 < refused < 5000


def test_a_robot_needs_no_torch_and_no_lerobot(tmp_path):
    # The folder alone, copied to the robot.
    source = Path(__file__).parents[1] / "src" / "vita_vla_client"
    (tmp_path / "vita_vla_client").symlink_to(source)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import vita_vla_client; "
        "heavy = {'torch', 'lerobot', 'lerobot_policy_vita_vla', 'PIL', 'scipy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    ours = {"vita_vla_client"} | {"numpy", "msgpack", "websockets"} | set(sys.stdlib_module_names) | {"PIL"}
    import ast

    for file in source.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in names} <= ours, f"{file.name}: {names}"


def test_no_pickle_in_what_serves():
    root = Path(__file__).parents[1] / "src"
    for file in [
        *(root / "vita_vla_client").glob("*.py"),
        *(root / "lerobot_policy_vita_vla/serving").glob("*.py"),
    ]:
        words = file.read_text()
        for name in (
            "import pickle",
            "eval(",
            "exec(",
            "allow_pickle",
            "np.load(",
            "torch.load(",
            "import shelve",
        ):
            assert name not in words.replace(".eval()", ""), f"{file.name} holds {name}"
