"""Reading PyTorch files from elsewhere without running anything that they carry.

A ``.pth`` is a pickle, which may hold instructions as well as numbers. `read_checkpoint` lets torch build
plain containers and tensors and nothing else. A TorchScript archive (OpenAI's CLIP is one) is a program with
its tensors beside it: `read_script_tensors` reads the tensors and never looks at the program.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


PLAIN = ("torch.", "collections.", "numpy.", "_codecs.")
"""Modules whose names a pickle of tensors and numbers holds."""
MOST_INSTRUCTIONS = 2**24
"""Bytes of a file that are looked through for them (our choice)."""


def read_checkpoint(path: str | Path) -> Any:
    """Read what ``torch.save`` wrote, tensors mapped from disk where the format allows it.

    Raises:
        ValueError: The file is missing, is something else, is damaged, or asks for code to be run.
    """
    path = Path(path)
    check_is_pytorch(path)
    if is_script(path):
        raise ValueError(
            f"{path} is a TorchScript program, not a checkpoint written by torch.save; it was not run. Check "
            "that this is the file you meant"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        named = [wanted.group(1)] if wanted else _names_in(path)
        if code := [name for name in named if not name.startswith(PLAIN)]:
            raise ValueError(
                f"{path} carries code: loading it would call {code[0]}. Nothing of it was run. A "
                "released checkpoint holds tensors and numbers only: download it again, from its authors"
            ) from None
        if "Unsupported operand" in str(error) and named:
            raise ValueError(
                f"{path} was written with a pickle protocol that cannot be read without running it; it was "
                "refused. Where you trust its source: load it there and save it again with plain torch.save"
            ) from None
        raise ValueError(
            f"{path} is no PyTorch file ({first_line(error)}); download or copy it again"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # bytes that are no checkpoint make torch's reader stumble in any way
        what = "damaged or cut short" if zipfile.is_zipfile(path) else "no PyTorch file, or cut short"
        raise ValueError(f"{path} is {what} ({first_line(error)}); download or copy it again") from None


def read_script_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a TorchScript archive under their attributes' dotted names.

    Raises:
        ValueError: The file is damaged or asks for more than modules, containers and tensors.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(n.split("/", 1)[0] for n in archive.namelist() if n.endswith("/data.pkl"))
            module = _TensorsOnly(archive, root, path).load()
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        StopIteration,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({first_line(error)}); download or copy it again"
        ) from None
    return dict(_named_tensors(module, ""))


def is_script(path: Path) -> bool:
    """Whether the file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def check_is_pytorch(path: Path) -> None:
    """Raise ValueError for what people end up with in place of a checkpoint."""
    if path.is_dir():
        held = sorted(file.name for file in path.glob("*.pt*"))
        there = f"pass one of the files in it: {', '.join(held[:8])}" if held else "it holds no .pth file"
        raise ValueError(f"{path} is a folder, and a .pth file is needed; {there}")
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    with open(path, "rb") as stream:
        head = stream.read(512)
    what = None
    if not head:
        what = "is empty"
    elif head.lstrip()[:1] == b"<":
        what = "is a web page: the site showed a page (a confirmation, a login) instead of sending the file"
    elif head.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer: run `git lfs pull` where it was cloned"
    elif head[8:10] == b'{"':
        what = "is a safetensors file, not a checkpoint written by torch.save"
    if what:
        raise ValueError(f"{path} {what}; download the file itself")


class _Node:
    """A module of the program: its attributes, and none of its methods."""


class _TensorsOnly(pickle.Unpickler):
    """Builds `_Node`, containers and tensors; every other name in the pickle is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str, path: Path):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive, self._root, self._path = archive, root, path

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Node
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise ValueError(
            f"{self._path} carries code: reading it would call {module}.{name}. Nothing of it was run; "
            "download it again, from its authors"
        )

    def persistent_load(self, pid: tuple) -> Tensor:
        _, dtype, key, _, n = pid
        raw = bytearray(self._archive.read(f"{self._root}/data/{key}"))
        return torch.frombuffer(raw, dtype=dtype)[:n] if raw else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def _named_tensors(node: Any, prefix: str) -> Any:
    for name, value in vars(node).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Node):
            yield from _named_tensors(value, f"{prefix}{name}.")


def _names_in(path: Path) -> list[str]:
    """What a pickle would import, read off its instructions without following them."""
    found: list[str] = []
    strings: list[str] = []
    memo: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
        else:
            with path.open("rb") as stream:
                data = stream.read(MOST_INSTRUCTIONS)
        stream = io.BytesIO(data)
        while stream.tell() < len(data):  # before torch 1.6 a checkpoint was several pickles in a row
            top = ""
            memo.clear()
            for step, value, _ in pickletools.genops(stream):
                if step.name in ("GLOBAL", "INST"):
                    found.append(value.replace(" ", "."))
                elif step.name == "STACK_GLOBAL":
                    found.append(".".join(strings[-2:]))
                elif step.name == "MEMOIZE":
                    memo.append(top)
                elif step.name in ("BINGET", "LONG_BINGET"):
                    strings.append(memo[value] if value < len(memo) else "")
                top = value if "UNICODE" in step.name else ""
                strings += [top] if top else []
    except (ValueError, IndexError, KeyError, StopIteration, UnicodeDecodeError, zipfile.BadZipFile, OSError):
        pass  # what was found until there counts
    return found


def first_line(error: BaseException) -> str:
    """What a reader stumbled over; without torch's advice to read unsafely what it refused."""
    text = str(error).strip() or type(error).__name__
    if wanted := re.search(r"GLOBAL (\S+)", text):
        return f"it carries code: loading it would call {wanted.group(1)}; nothing of it was run"
    if "weights_only" in text:
        found = re.search(r"WeightsUnpickler error:\s*(\S.*)", text)
        return found.group(1)[:160] if found else "it holds more than tensors and numbers"
    return text.splitlines()[0][:160]
