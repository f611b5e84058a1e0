"""What `vita-vla doctor` looks at: everything that breaks a run late is checked here early, with its fix.

Each check returns one `Check`; none raises. Whatever can crash or is slow (rendering, LeRobot's import) runs
in a child process, so that the doctor also works on the installation it is there for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from vita_vla_cli import gl

OK, WARN, FAIL = "ok", "warn", "fail"
DISTRIBUTION = "lerobot_policy_vita_vla"
INSTALL = "make setup"
OPTIONAL_EXTRAS = {"sim": ("metaworld", "mujoco")}
DISK_GIB = 5.0  # a quickstart run needs well under one; checkpoints of a full-size VLM need tens
MEMORY_GIB = 4.0  # LeRobot and torch take about one per process, and there are workers
BUSY_FIX = "wait for them, or export OMP_NUM_THREADS=1"

_PLUGIN_CHILD = """
import json, sys
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.configs import EnvConfig
import torch
gpu = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "policies": sorted(PreTrainedConfig.get_known_choices()), "envs": sorted(EnvConfig.get_known_choices()),
    "gpu": gpu, "mps": torch.backends.mps.is_available(), "threads": torch.get_num_threads(),
}))
"""


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Args:
        name: What was looked at.
        status: ``ok``, ``warn`` (works, but) or ``fail`` (a verb will not work).
        found: What is there.
        fix: Command or setting that repairs it; empty when ok.
    """

    name: str
    status: str
    found: str
    fix: str = ""


def run_checks(folder: Path = Path("work")) -> list[Check]:
    """All checks, in the order of the report.

    Args:
        folder: Where runs will be written; its disk is the one that is measured.
    """
    child = _ask_lerobot()
    checks: list[Callable[[], Check | list[Check]]] = [
        check_python,
        check_packages,
        lambda: check_plugin(child),
        check_rendering,
        check_video,
        lambda: check_gpu(child),
        lambda: check_threads(child),
        check_memory,
        lambda: check_disk(folder),
        check_hub,
        check_wandb,
        check_bytecode,
    ]
    report: list[Check] = []
    for check in checks:
        outcome = check()
        report.extend(outcome if isinstance(outcome, list) else [outcome])
    return report


def check_python() -> Check:
    """Which Python runs; an older one than the package declares cannot have installed it."""
    return Check("python", OK, f"{platform.python_version()} ({sys.executable})")


def check_packages() -> list[Check]:
    """Every requirement that the package declares, `sim` included, against what is installed."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return [Check("packages", FAIL, f"{DISTRIBUTION} is not installed", INSTALL)]
    from packaging.requirements import Requirement

    wrong: list[Check] = []
    fine: list[str] = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": e}) for e in ("", *OPTIONAL_EXTRAS)
        ):
            continue
        name, wanted = requirement.name, str(requirement.specifier) or "any"
        extra = next((e for e, names in OPTIONAL_EXTRAS.items() if name in names), "")
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            target = f"uv pip install -e '.[{extra}]'" if extra else INSTALL
            wrong.append(Check(name, FAIL, f"not installed (wanted {wanted})", target))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fine.append(f"{name} {version}")
        else:
            wrong.append(
                Check(name, FAIL, f"{version} (wanted {wanted})", f"uv pip install '{name}{wanted}'")
            )
    return [Check("packages", OK, ", ".join(fine)), *wrong] if fine else wrong


def check_plugin(child: dict | str) -> Check:
    """Whether LeRobot's own discovery finds the policies: it swallows a plugin's import errors."""
    if isinstance(child, str):
        return Check("lerobot plugin", FAIL, child, f"python -c 'import {DISTRIBUTION}'   # shows the error")
    missing = [
        name
        for name, kind in (("vita_vla", "policies"), ("seer", "policies"), ("vita_metaworld", "envs"))
        if name not in child[kind]
    ]
    if missing:
        fix = f"python -c 'import {DISTRIBUTION}'   # shows the error that LeRobot swallows"
        return Check("lerobot plugin", FAIL, f"not registered: {', '.join(missing)}", fix)
    return Check("lerobot plugin", OK, "policies vita_vla, seer; environment vita_metaworld")


def check_rendering() -> Check:
    """One frame, in a child process."""
    if importlib.util.find_spec("mujoco") is None:
        return Check("rendering", FAIL, "mujoco is not installed", "uv pip install -e '.[sim]'")
    frame = gl.render_one_frame()
    if not frame.works:
        return Check("rendering", FAIL, frame.problem, gl.fix_command())
    kind = "software" if frame.software else "hardware"
    return Check("rendering", OK, f"{frame.backend}: {frame.renderer} ({kind})")


def check_video() -> Check:
    """Video decoding; recordings of this project are pictures, datasets from elsewhere often are not."""
    ffmpeg = shutil.which("ffmpeg")
    have = [name for name in ("av", "torchcodec") if importlib.util.find_spec(name)]
    found = f"ffmpeg {'found' if ffmpeg else 'not found'}; decoders: {', '.join(have) or 'none'}"
    if not have:
        return Check("video", FAIL, found, "uv pip install av")
    if ffmpeg is None and "torchcodec" in have:
        fix = (
            "sudo apt-get install -y ffmpeg   # or always pass --dataset.video_backend=pyav, as our verbs do"
        )
        return Check("video", WARN, found, fix)
    return Check("video", OK, found)


def check_gpu(child: dict | str) -> Check:
    """What torch computes on."""
    if isinstance(child, str):
        return Check("accelerator", WARN, "unknown (LeRobot does not import)", "see lerobot plugin")
    if child["gpu"]:
        return Check("accelerator", OK, ", ".join(child["gpu"]))
    if child["mps"]:
        return Check("accelerator", OK, "Apple GPU (mps)")
    if shutil.which("nvidia-smi"):
        fix = "a torch build for this driver: see `nvidia-smi`, then reinstall torch"
        return Check("accelerator", WARN, "an NVIDIA driver is here, but torch does not see a GPU", fix)
    return Check("accelerator", OK, "none: CPU (enough for the mini VLM)")


def check_threads(child: dict | str) -> Check:
    """CPU threads that torch uses against the cores that this process may use."""
    cores = _cores()
    if isinstance(child, str):
        return Check("threads", OK, f"{cores} cores")
    found = f"{cores} cores, torch uses {child['threads']}"
    if child["threads"] > cores:
        return Check("threads", WARN, found, f"export OMP_NUM_THREADS={cores}")
    if busy := other_programs():
        return Check("threads", WARN, f"{found}; {busy}", BUSY_FIX)
    return Check("threads", OK, found)


def other_programs() -> str:
    """What says that this machine is busy already; empty where it is not."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    # torch's threads wait for each other at every operation: one that is not scheduled stalls all.
    return f"other programs keep {load:.1f} cores busy" if load > 1.5 * _cores() else ""


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_memory() -> Check:
    """Memory of the machine."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return Check("memory", OK, "unknown")
    if total < MEMORY_GIB:
        fix = "smaller: --workers 1, --batch-size 16, --no-cache"
        return Check("memory", WARN, f"{total:.1f} GiB (about {MEMORY_GIB:g} wanted)", fix)
    return Check("memory", OK, f"{total:.1f} GiB")


def check_disk(folder: Path) -> Check:
    """Free space where runs are written."""
    folder = folder.absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    found = f"{free:.1f} GiB free at {existing}"
    if not os.access(existing, os.W_OK):
        return Check(
            "disk", FAIL, f"{existing} is not writable", "choose another folder with --out or --root"
        )
    if free < 0.5:
        return Check("disk", FAIL, found, "free some space, or write elsewhere with --out and --root")
    if free < DISK_GIB:
        return Check("disk", WARN, found, f"{DISK_GIB:g} GiB are comfortable")
    return Check("disk", OK, found)


def check_hub() -> Check:
    """Whether runs may download."""
    offline = os.environ.get("HF_HUB_OFFLINE", "")
    note = (
        "downloads off; --online allows them"
        if offline.upper() in ("1", "TRUE", "YES", "ON")
        else "downloads allowed"
    )
    return Check("model hub", OK, f"HF_HUB_OFFLINE={offline or '(unset)'}: {note}")


def check_wandb() -> Check:
    """Weights & Biases is off unless asked for."""
    if importlib.util.find_spec("wandb") is None:
        return Check("wandb", OK, "not installed, not needed")
    if os.environ.get("WANDB_MODE") == "offline":
        fix = "pass --wandb.mode=offline: LeRobot ignores the variable"
        return Check("wandb", WARN, "WANDB_MODE=offline is set", fix)
    return Check("wandb", OK, "off (turn on with --wandb.enable=true)")


def check_bytecode() -> Check:
    """Without cached bytecode LeRobot's import takes two to three times as long, at every start."""
    if re.fullmatch(r"\s*", os.environ.get("PYTHONDONTWRITEBYTECODE", "")):
        return Check("bytecode", OK, "cached")
    return Check(
        "bytecode", WARN, "PYTHONDONTWRITEBYTECODE is set: slow starts", "unset PYTHONDONTWRITEBYTECODE"
    )


def as_table(report: list[Check]) -> str:
    """The report for people: one line per check, its fix below it."""
    width = max(len(check.name) for check in report)
    lines = []
    for check in report:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
        if check.fix:
            lines.append(f"{'':<4}  {'':<{width}}  fix: {check.fix}")
    counts = {status: sum(check.status == status for check in report) for status in (OK, WARN, FAIL)}
    lines.append(", ".join(f"{n} {status}" for status, n in counts.items()))
    return "\n".join(lines)


def as_json(report: list[Check]) -> str:
    """The report for programs."""
    return json.dumps({"ok": not failed(report), "checks": [asdict(check) for check in report]}, indent=1)


def failed(report: list[Check]) -> bool:
    """Whether any verb will not work."""
    return any(check.status == FAIL for check in report)


def _ask_lerobot() -> dict | str:
    """What LeRobot's discovery and torch say, or the last line of the error."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PLUGIN_CHILD],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        return "importing LeRobot took more than 300 s"
    answers = [line for line in child.stdout.splitlines() if line.startswith("{")]
    if child.returncode == 0 and answers:
        return json.loads(answers[-1])
    errors = [line for line in child.stderr.splitlines() if line.strip()]
    return errors[-1].strip() if errors else f"importing LeRobot ended with code {child.returncode}"
