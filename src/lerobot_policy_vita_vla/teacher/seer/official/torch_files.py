"""Reading PyTorch files from elsewhere without running anything that they carry.

A ``.pth`` is a pickle, which may hold instructions as well as numbers. `read_checkpoint` lets torch build
plain containers and tensors and nothing else. A TorchScript archive (OpenAI's CLIP is one) is a program with
its tensors beside it: `read_script_tensors` reads the tensors and never looks at the program.
"""

from __future__ import annotations

import collections
import io
import pickle
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
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} carries code: loading it would call {wanted.group(1)}. Nothing of it was run. A "
                "released checkpoint holds tensors and numbers only: download it again, from its authors"
            ) from None
        raise ValueError(
            f"{path} is no PyTorch file ({_first_line(error)}); download or copy it again"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # bytes that are no checkpoint make torch's reader stumble in any way
        what = "damaged or cut short" if zipfile.is_zipfile(path) else "no PyTorch file, or cut short"
        raise ValueError(f"{path} is {what} ({_first_line(error)}); download or copy it again") from None


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
            f"{path} is damaged or cut short ({_first_line(error)}); download or copy it again"
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
