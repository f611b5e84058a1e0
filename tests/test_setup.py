"""Installation files: consistent with each other, and clear when something is missing."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"


def pins() -> dict[str, str]:
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [Requirement(text) for text in [*project["dependencies"], *extras["sim"], *extras["dev"]]]


def test_lock_holds_exact_public_versions_only():
    text = LOCK.read_text()
    assert "://" not in text and "--hash" not in text and "@" not in text
    for name, version in pins().items():
        assert Version(version).local is None, f"{name}=={version} exists for one platform only"
        assert not name.startswith(("nvidia-", "cuda-")) and name != "triton"


def test_lock_pins_every_requirement_within_its_range():
    locked = {canonical(name): version for name, version in pins().items()}
    for requirement in requirements():
        name = canonical(requirement.name)
        assert name in locked, f"{name} is not in requirements.lock"
        assert requirement.specifier.contains(locked[name]), (
            f"{name}=={locked[name]}, wanted {requirement.specifier}"
        )


@pytest.mark.parametrize("target", ["help", "setup", "quickstart", "test", "report", "lint", "clean"])
def test_make_targets_exist_and_are_explained(target):
    plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert plan.returncode == 0, plan.stderr
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.search(rf"^{target}\s+\S", shown.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize(("fast", "expected"), [("1", True), ("0", False), ("", False)])
def test_fast_reaches_the_quickstart(fast, expected):
    plan = subprocess.run(
        ["make", "-n", "quickstart", f"FAST={fast}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ("--fast" in plan.stdout) == expected
    assert ("work/quickstart-fast" in plan.stdout) == expected


@pytest.mark.parametrize("script", ["scripts/setup.sh", ".ci/run"])
def test_scripts_are_executable_strict_and_valid(script):
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.fixture
def bare_copy(tmp_path):
    """The installation files without an environment, and a PATH with nothing but basic tools."""
    for name in ("scripts/setup.sh", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "env", "id", "mkdir", "uname"):
        (tools / name).symlink_to(shutil.which(name))

    def setup(**env: str) -> subprocess.CompletedProcess:
        clean = {"PATH": str(tools), "HOME": str(tmp_path / "home"), **env}
        command = [str(tools / "bash"), str(tmp_path / "scripts" / "setup.sh")]
        return subprocess.run(
            command,
            env=clean,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return setup


def test_setup_without_any_python_says_what_to_install(bare_copy):
    done = bare_copy()
    assert done.returncode == 1
    assert (
        "setup: error: neither uv nor a Python with pip" in done.stderr and "apt-get install" in done.stderr
    )


def test_setup_refuses_a_python_that_is_too_old(bare_copy, tmp_path):
    old = tmp_path / "tools" / "python3.12"
    old.write_text("#!/bin/sh\nexit 1\n")  # what a pyenv shim of an inactive version does
    uv = tmp_path / "tools" / "uv"
    uv.write_text('#!/bin/sh\n[ "$1 $2 $3" = "python find --help" ]\n')  # a uv that finds and gets nothing
    old.chmod(0o755)
    uv.chmod(0o755)
    done = bare_copy()
    assert done.returncode == 1 and "Python 3.12 or 3.13 is needed" in done.stderr
    done = bare_copy(PYTHON=str(old))
    assert done.returncode == 1 and f"PYTHON={old} is not Python 3.12 or 3.13" in done.stderr
