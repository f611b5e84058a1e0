"""How the source may look: who imports whom, what stays light, how long a file may get."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "lerobot_policy_vita_vla"
ROOT = SOURCE / PACKAGE
FILES = sorted(SOURCE.rglob("*.py"))

# What a part may import from its own package, besides itself.
SEAMS = {"contracts", "scales", "conventions", "conversion", "ema", "optimizer", "chunking", "files"}
DEMOS = SEAMS | {"demos"}
TEACHER = DEMOS | {"teacher"}
VLA = TEACHER | {"vla", "vlm"}
EVALUATION = VLA | {"evaluation"}
TRAINING = EVALUATION | {"training"}
MAY_IMPORT = {
    **dict.fromkeys(SEAMS, SEAMS),
    "demos": DEMOS,
    "teacher": TEACHER,
    "vlm": DEMOS | {"vlm"},
    "vla": VLA,
    "evaluation": EVALUATION,
    "training": TRAINING,
    "serving": EVALUATION | {"serving"},
    "bench": TRAINING | {"bench", "serving"},
    "ablate": TRAINING | {"ablate"},
    "__init__": VLA,
    # The door to the command line, which is a package of its own so that `--help` needs no LeRobot.
    "cli": TRAINING | {"cli", "ablate", "bench", "serving"},
}

NETWORK_NAMES = {"network.py", "action_modules.py", "align.py", "finetune.py", "decoder.py"}
NETWORK_IMPORTS = {"torch", "numpy", "contracts"}

LONGEST = 350


def _name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of every import, inside functions too; type-checking blocks are left out."""
    tree = ast.parse(path.read_text())
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name) for name in names]
    return found


def _own(name: str) -> str | None:
    """The part of our package that an import means; ``__init__`` for the package itself."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    known = {p.stem if p.is_file() else p.name for p in ROOT.iterdir()}
    return parts[1] if len(parts) > 1 and parts[1] in known else "__init__"


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT)], ids=_name)
def test_imports_go_one_way(path):
    allowed = MAY_IMPORT[_part(path)] | {_part(path)}
    # The top of the package only registers configurations; asking it for one starts no cycle.
    if _part(path) in ("evaluation", "training", "serving", "bench"):
        allowed |= {"__init__"}
    wrong = [
        f"line {line}: {name}" for line, name in _imports(path) if (own := _own(name)) and own not in allowed
    ]
    assert not wrong, f"{_name(path)} belongs to {_part(path)!r}, which may import {sorted(allowed)}"


def test_the_student_knows_only_where_the_mini_vlm_lies():
    names = {name for path in (ROOT / "vla").rglob("*.py") for _, name in _imports(path)}
    own = {name for name in names if name.startswith(f"{PACKAGE}.vlm")}
    # Besides, it makes transformers know the type of a converted VITA-1.5.
    assert own <= {f"{PACKAGE}.vlm.{name}" for name in ("paths.mini_vlm_path", "vita15_model.register")}


def test_the_library_does_not_know_the_command_line():
    wrong = [
        _name(path)
        for path in FILES
        if path.is_relative_to(ROOT)
        and _part(path) != "cli"
        and any(name.split(".")[0] == "vita_vla_cli" for _, name in _imports(path))
    ]
    assert not wrong


NETWORKS = [p for p in FILES if p.name in NETWORK_NAMES and p.parent.name != "bench"]


@pytest.mark.parametrize("path", NETWORKS, ids=_name)
def test_networks_know_torch_and_contracts_only(path):
    folder = ".".join(path.relative_to(SOURCE).parent.parts)
    for line, name in _imports(path):
        assert not name.startswith("lerobot."), f"line {line}: a network must work without LeRobot"
        if name.split(".")[0] == PACKAGE:
            neighbour = name.startswith(folder) or name.startswith(f"{PACKAGE}.teacher.decoder")
            assert _own(name) == "contracts" or neighbour, f"line {line}: {name}"


def test_importing_the_package_stays_light():
    heavy = ["metaworld", "mujoco", "wandb", "matplotlib", "websockets", "lerobot.datasets.lerobot_dataset"]
    heavy.append(f"{PACKAGE}.vlm.vita15_model")
    code = f"import sys, {PACKAGE}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_files_are_short_finished_and_plain(path):
    text = path.read_text()
    assert text.isascii(), f"{_name(path)} holds characters outside ASCII"
    assert len(text.splitlines()) <= LONGEST, f"{_name(path)} does more than one job"
    # Not as words of a message: tokens and comments only.
    raised = {
        ast.unparse(node.exc).partition("(")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Raise) and node.exc
    }
    assert "NotImplementedError" not in raised
    comments = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
    unfinished = [t.string for t in comments if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", t.string)]
    assert not unfinished


def test_every_part_has_its_rule():
    parts = {_part(p) for p in FILES if p.is_relative_to(ROOT)}
    assert parts <= set(MAY_IMPORT), f"say in MAY_IMPORT what {sorted(parts - set(MAY_IMPORT))} may import"
