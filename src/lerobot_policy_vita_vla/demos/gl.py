"""Choosing how MuJoCo draws, before MuJoCo is imported.

MuJoCo reads ``MUJOCO_GL`` once, at import, and without a display its default fails with a message about GLFW.
Users should not have to know the variable exists, so `ensure_gl` sets it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

LIBRARIES = {"osmesa": ("OSMesa", "libosmesa6"), "egl": ("EGL", "libegl1")}
"""Of each back end on Linux: the library that draws, and the Debian package that holds it."""

SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast", "software", "lavapipe")

_PROBE = """
import mujoco
context = mujoco.GLContext(16, 16)
context.make_current()
from OpenGL import GL
print("renderer:", GL.glGetString(GL.GL_RENDERER).decode())
context.free()
"""


class NotReadyError(ValueError, ImportError):
    """This machine lacks what a simulator needs, so its module cannot be imported; says what to do.

    An ImportError as well, because modules raise it while they are imported: `multiprocessing`'s fork server
    passes over these when it imports ahead, and whoever needs the simulator then says so, once.
    """


def ensure_gl() -> str:
    """Set ``MUJOCO_GL`` if it is unset and return it; say in one line on stderr what was chosen and why.

    On Linux: ``egl`` where it reaches a real GPU, else ``osmesa`` (software), else ``egl`` in software. Other
    systems have one back end and are left alone. Child processes inherit the choice.

    Raises:
        NotReadyError: If no back end can draw (names the packages to install), if ``MUJOCO_GL`` asks for one
            whose library is not there, or if MuJoCo has already chosen one that needs a display that is not
            there.
    """
    # Mesa's software renderer gets slower with several threads at these picture sizes, and workers are
    # processes.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if sys.platform != "linux":
        return os.environ.get("MUJOCO_GL", "default")
    if asked := os.environ.get("MUJOCO_GL"):
        # PyOpenGL's own message about a missing library is an AttributeError of None.
        library, package = LIBRARIES.get(asked.lower(), (None, None))
        if library and not _has_library(library):
            raise NotReadyError(
                f"MUJOCO_GL={asked}, but {library} is not installed: `apt-get install {package}`, or "
                "`unset MUJOCO_GL` to use what there is"
            )
        return asked
    if "mujoco" in sys.modules:
        if os.environ.get("DISPLAY"):
            return "default"
        raise NotReadyError(
            "MuJoCo was imported before a way to draw was chosen, and there is no display. Import "
            "lerobot_policy_vita_vla.demos.metaworld first, or set MUJOCO_GL=egl (with a GPU) or "
            "MUJOCO_GL=osmesa (without) in the environment"
        )
    renderer = _egl_renderer() if _has_gpu_device() else None
    if renderer and not is_software(renderer):
        choice, reason = "egl", renderer
    elif _has_library("OSMesa"):
        choice, reason = "osmesa", "software rendering: no GPU that EGL can use was found"
    elif renderer := renderer or _egl_renderer():
        choice, reason = "egl", f"software rendering: {renderer}"
    else:
        raise NotReadyError(
            "MuJoCo can draw neither with EGL nor with OSMesa. Install one: `apt-get install libosmesa6` "
            "(software) or `apt-get install libegl1` and a GPU driver with graphics support (in containers: "
            "NVIDIA_DRIVER_CAPABILITIES=all). Set MUJOCO_GL to choose the back end yourself"
        )
    os.environ["MUJOCO_GL"] = choice
    print(f"MUJOCO_GL={choice} ({reason})", file=sys.stderr)  # noqa: T201
    return choice


@cache
def gl_renderer() -> tuple[str, bool]:
    """Name of the OpenGL renderer MuJoCo draws with in this process, and whether it is software.

    Software drawing is slow, not wrong: whoever starts many episodes should say so.
    """
    ensure_gl()
    import mujoco

    context = mujoco.GLContext(16, 16)
    try:
        context.make_current()
        from OpenGL import GL

        name = GL.glGetString(GL.GL_RENDERER).decode()
    finally:
        context.free()
    return name, is_software(name)


def is_software(renderer: str) -> bool:
    """Whether an OpenGL renderer string names a software renderer."""
    return any(word in renderer.lower() for word in SOFTWARE_RENDERERS)


@cache  # asks other programs, and everything that draws calls `ensure_gl`
def _has_library(name: str) -> bool:
    if ctypes.util.find_library(name):
        return True
    # Where only the loader's own search path knows it (conda), as PyOpenGL looks for it.
    try:
        ctypes.CDLL(f"lib{name}.so")
    except OSError:
        return False
    return True


def _has_gpu_device() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev/dri").glob("renderD*"))


def _egl_renderer() -> str | None:
    # In a child: a failed attempt leaves PyOpenGL bound to EGL for the rest of the process.
    environment = {**os.environ, "MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("renderer: ")]
    return lines[-1].removeprefix("renderer: ") if done.returncode == 0 and lines else None
