"""Render one frame in a child process, the way the simulator will, and say what did it.

A crash of the driver then hurts nobody. The child runs this project's own choice (`demos/gl.py`) by its file,
without importing the package, so that the check also works where LeRobot does not.

`python -m vita_vla_cli.gl` prints the outcome; its exit code is 1 when nothing renders.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SECONDS_ALLOWED = 90

# Leaves without clean-up: MuJoCo's EGL context raises while it is collected at interpreter exit.
_CHILD = """
import json, os, runpy, sys
chosen = runpy.run_path(sys.argv[1])
backend = chosen["ensure_gl"]()
import mujoco
ball = "<light pos='0 0 3'/><geom type='sphere' size='.3' rgba='1 0 0 1'/>"
model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{ball}</worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
renderer.update_scene(data)
contrast = float(renderer.render().std())
from OpenGL import GL
name = GL.glGetString(GL.GL_RENDERER).decode()
answer = {"backend": backend, "renderer": name, "software": chosen["is_software"](name), "contrast": contrast}
print(json.dumps(answer), flush=True)
os._exit(0)
"""


@dataclass(frozen=True)
class Frame:
    """Outcome of rendering one frame.

    Args:
        works: A frame came back, and not an empty one.
        backend: Value of ``MUJOCO_GL`` that was used.
        renderer: What OpenGL calls its device.
        software: The CPU does the rendering.
        problem: What went wrong, in one line.
    """

    works: bool
    backend: str = ""
    renderer: str = ""
    software: bool = False
    problem: str = ""


def render_one_frame() -> Frame:
    """Render a red ball of 64 x 64 pixels in a child process."""
    package = importlib.util.find_spec(
        "lerobot_policy_vita_vla"
    )  # finds a top-level package without importing it
    if package is None or package.origin is None:
        return Frame(False, problem="lerobot_policy_vita_vla is not installed")
    chooser = Path(package.origin).parent / "demos" / "gl.py"
    try:
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, str(chooser)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_ALLOWED,
        )
    except subprocess.TimeoutExpired:
        return Frame(False, problem=f"no frame within {SECONDS_ALLOWED} s")
    answers = [line for line in child.stdout.splitlines() if line.startswith("{")]
    if child.returncode != 0 or not answers:
        errors = [line.strip() for line in child.stderr.splitlines() if line.strip()]
        return Frame(
            False, problem=errors[-1] if errors else f"the process died with code {child.returncode}"
        )
    answer = json.loads(answers[-1])
    if answer.pop("contrast") < 1:
        return Frame(False, **answer, problem="the frame came back empty")
    return Frame(True, **answer)


def fix_command() -> str:
    """What to run when nothing renders here."""
    if sys.platform == "linux":
        return "sudo apt-get update && sudo apt-get install -y libosmesa6"
    return "unset MUJOCO_GL"


if __name__ == "__main__":
    frame = render_one_frame()
    if not frame.works:
        sys.exit(f"no frame could be rendered: {frame.problem}")
    print(f"{frame.backend}: {frame.renderer}" + (" (software)" if frame.software else ""))
