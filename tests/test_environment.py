"""What a verb does to its own process before anything heavy is imported."""

import os
import subprocess
import sys

import pytest

from vita_vla_cli import environment

TENSORS = """
import os, resource, sys
from vita_vla_cli import environment
if sys.argv[1] != "as it is":
    print(environment.keep_freed_memory())
import torch
torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 32, 5, stride=2), torch.nn.ReLU(),
    torch.nn.Conv2d(32, 64, 3, stride=2), torch.nn.Softmax(1),
)
pictures = torch.rand(64, 3, 96, 96)
def step():
    network(pictures).square().mean().backward()
    network.zero_grad(set_to_none=True)
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="an allocator other than glibc's"
)


def run(how: str, **variables: str) -> list[str]:
    """Lines that `TENSORS` prints in a process of its own, without this process's settings."""
    inherited = {k: v for k, v in os.environ.items() if k not in environment.MALLOC_OWNERS}
    child = [sys.executable, "-c", TENSORS, how]
    return subprocess.check_output(child, env=inherited | variables, text=True).split()


@glibc
def test_freed_tensors_are_used_again_instead_of_mapped_anew():
    said, kept = run("kept")
    (plain,) = run("as it is")
    (child,) = run("as it is", **{name: str(number) for _, name, number in environment.MALLOC})
    assert said == "True"
    assert int(plain) > 20_000
    assert int(kept) < int(plain) / 8
    assert int(child) < int(plain) / 8


@glibc
def test_children_inherit_it(monkeypatch):
    for name in environment.MALLOC_OWNERS:
        monkeypatch.delenv(name, raising=False)
    assert environment.keep_freed_memory()
    assert {name: os.environ[name] for _, name, _ in environment.MALLOC} == {
        name: str(number) for _, name, number in environment.MALLOC
    }


@glibc
@pytest.mark.parametrize("name", sorted(environment.MALLOC_OWNERS))
def test_a_users_own_setting_is_left_alone(name, monkeypatch):
    for other in environment.MALLOC_OWNERS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "")
    assert not environment.keep_freed_memory()
    assert {k for k in environment.MALLOC_OWNERS if k in os.environ} == {name}


def test_another_c_library_is_left_alone(monkeypatch):
    for name in environment.MALLOC_OWNERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delattr(os, "confstr_names", raising=False)
    assert not environment.keep_freed_memory()
    assert environment.MALLOC_OWNERS.isdisjoint(os.environ)
