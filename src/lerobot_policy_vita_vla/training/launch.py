"""Run `lerobot-train` with the frame cache and a learning curve on disk.

`run_training` is `lerobot-train` itself, called in this process with the same arguments: the trainer, resume,
DDP and checkpoint layout are LeRobot's. It adds two things through doors LeRobot leaves open: the accelerator
argument (see `frame_cache`) and a filter on the log records, which carry the numbers of each log step.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path

from lerobot_policy_vita_vla.contracts import TEACHER_FEATURES
from lerobot_policy_vita_vla.training.resuming import check_resume
from lerobot_policy_vita_vla.training.sharding import check_fsdp_request

COMMAND_FILE = "command.txt"
LOG_FILE = "train_log.jsonl"
NOTHING = (None, "null", "None")
"""How a path that is not set is written on the command line."""


def run_training(argv: list[str], *, cache: bool = True, cache_gib: float | None = None) -> Path:
    """Train a policy with LeRobot's own trainer.

    Args:
        argv: Arguments as for ``lerobot-train``; must hold ``--output_dir``.
        cache: Keep the dataset in memory where it fits (same samples, same order).
        cache_gib: Largest size of the cached pictures; None means half of the memory that is free now.

    Returns:
        The output folder, in which ``train_log.jsonl`` holds one JSON object per log step and ``command.txt``
        the plain ``lerobot-train`` line, of a resumed run one for each part.

    Raises:
        ValueError: ``--output_dir`` is missing, or LeRobot refuses an argument.
        FileExistsError: It exists already (LeRobot never overwrites a run).
    """
    output_dir = Path(_argument(argv, "output_dir") or "")
    resuming = _argument(argv, "resume") == "true"
    if str(output_dir) == "." and not resuming:
        raise ValueError("training needs a folder for its results: pass --output_dir=work/my_run/align")
    check_fsdp_request()
    refuse_augmented(argv)
    if resuming:
        output_dir, checkpoint = _run_of_checkpoint(_argument(argv, "config_path"))
        given = _argument(argv, "batch_size")
        check_resume(checkpoint, int(given) if given else None)
    elif output_dir.exists():
        raise FileExistsError(
            f"{output_dir} exists already; resume it with --resume=true --config_path="
            f"{output_dir}/checkpoints/last/pretrained_model/train_config.json, choose another folder, or "
            f"remove it: rm -r {output_dir}"
        )

    from accelerate.utils import DistributedDataParallelKwargs
    from lerobot.scripts import lerobot_train
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    accelerator = None
    if cache:
        from lerobot_policy_vita_vla.training.frame_cache import FrameCacheAccelerator

        limit = cache_gib if cache_gib is not None else free_memory_gib() / 2
        # As lerobot_train makes its own, except that our policies autocast by themselves.
        accelerator = FrameCacheAccelerator(
            limit_gib=limit,
            pictures=reads_pictures(argv),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            cpu=_device(argv) == "cpu",
        )
    curve = _LearningCurve(output_dir, plain_command(argv))
    with _arguments(argv), default_decoder_unmentioned(argv), curve.followed(), _refusals():
        lerobot_train.train(accelerator=accelerator)
    if accelerator is None or accelerator.is_main_process:
        curve.say_command()  # A run shorter than a log step.
    return output_dir


def plain_command(argv: list[str]) -> str:
    """The line that does the same with LeRobot alone."""
    return shlex.join(["lerobot-train", *argv])


def free_memory_gib() -> float:
    """Memory that a new allocation could take now, GiB."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) / 2**20
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**31  # half of all, e.g. on macOS


def reads_pictures(argv: list[str]) -> bool:
    """Whether training looks at pictures at all: not where both its readers have their features stored.

    Anything that is not said on the command line counts as reading them.
    """
    if _argument(argv, "policy.vision_features") in NOTHING:
        return True
    stage, weight = _argument(argv, "policy.stage") or "align", _argument(argv, "policy.align_weight")
    if weight is None and (start := _argument(argv, "policy.path")):
        saved = Path(start) / "config.json"
        weight = json.loads(saved.read_text()).get("align_weight") if saved.is_file() else 1.0
    if stage != "align" and not float(weight or 0.0):
        return False
    return not _has_teacher_features(argv)


def refuse_augmented(argv: list[str]) -> None:
    """Raise ValueError where LeRobot would augment pictures whose features were computed before.

    The policy refuses its own random shifts by itself; of LeRobot's transforms it knows nothing.
    """
    if _argument(argv, "dataset.image_transforms.enable") != "true":
        return
    stored = [name for name in ("policy.vision_features",) if _argument(argv, name) not in NOTHING]
    stored += [TEACHER_FEATURES] if _has_teacher_features(argv) else []
    if stored:
        raise ValueError(
            f"--dataset.image_transforms.enable=true changes pictures at random, but {' and '.join(stored)} "
            "were computed of the pictures as they are: leave the transforms out, or train without the "
            "stored features (--policy.vision_features=null, and the demonstrations they were added to)"
        )


def _has_teacher_features(argv: list[str]) -> bool:
    info = Path(_argument(argv, "dataset.root") or "") / "meta" / "info.json"
    return info.is_file() and TEACHER_FEATURES in json.loads(info.read_text())["features"]


def _argument(argv: list[str], name: str) -> str | None:
    for i, token in enumerate(argv):
        if token.startswith(f"--{name}="):
            return token.split("=", 1)[1]
        if token == f"--{name}" and i + 1 < len(argv):
            return argv[i + 1]
    return None


def _device(argv: list[str]) -> str:
    """Where training runs. accelerate must be told of a CPU, or several processes do not find each other."""
    if given := _argument(argv, "policy.device"):
        return given
    config = _argument(argv, "config_path")
    if _argument(argv, "resume") == "true" and config:
        path = Path(config)
        saved = json.loads((path if path.is_file() else path / "train_config.json").read_text())
        if device := saved["policy"]["device"]:
            return device
    from lerobot.utils.device_utils import auto_select_torch_device

    return auto_select_torch_device().type


def _run_of_checkpoint(config_path: str | None) -> tuple[Path, Path]:
    if not config_path or not Path(config_path).exists():
        raise ValueError(
            f"--resume=true needs --config_path to a checkpoint's train_config.json, got {config_path!r}; "
            "it lies in RUN/checkpoints/last/pretrained_model/"
        )
    path = Path(config_path).absolute()
    folder = path.parent if path.is_file() else path  # RUN/checkpoints/STEP/pretrained_model
    return folder.parents[2], folder.parent


@contextmanager
def _arguments(argv: list[str]):
    # LeRobot's parser reads sys.argv again for --policy.path, so the list cannot be passed any other way.
    saved, sys.argv = sys.argv, ["lerobot-train", *argv]
    try:
        yield
    finally:
        sys.argv = saved


@contextmanager
def default_decoder_unmentioned(argv: list[str]):
    """Keep LeRobot from reporting on its default video decoder where the arguments name another.

    It tries torchcodec all the same, and without FFmpeg's libraries warns with a hundred lines of traceback.
    """
    logger = logging.getLogger("lerobot.utils.import_utils")

    def wanted(record: logging.LogRecord) -> bool:
        return "torchcodec" not in record.getMessage()

    named = _argument(argv, "dataset.video_backend") is not None
    if named:
        logger.addFilter(wanted)
    try:
        yield
    finally:
        if named:
            logger.removeFilter(wanted)


@contextmanager
def _refusals():
    """Raise what made LeRobot's parser end the process, as a ValueError with the reason itself."""
    try:
        yield
    except SystemExit as stop:
        reason: BaseException = stop
        while cause := reason.__cause__ or (None if reason.__suppress_context__ else reason.__context__):
            reason = cause
        if reason is stop:
            raise
        raise ValueError(str(reason)) from stop


class _LearningCurve:
    """Writes LeRobot's numbers of each log step to a file, as they come, and before them what made them.

    So a run that is killed has its command, and one that is resumed has both.
    """

    def __init__(self, output_dir: Path, command: str):
        self._folder, self._command = output_dir, command
        self._said = False

    def say_command(self) -> None:
        """Add this run's command to the folder's, once."""
        if not self._said:
            with (self._folder / COMMAND_FILE).open("a") as file:
                file.write(self._command + "\n")
        self._said = True

    @contextmanager
    def followed(self):
        """Write while LeRobot trains."""
        from lerobot.utils.logging_utils import MetricsTracker

        def write(record: logging.LogRecord) -> bool:
            if isinstance(record.msg, MetricsTracker) and self._folder.parent.exists():
                self._folder.mkdir(exist_ok=True)
                self.say_command()
                numbers = record.msg.to_dict()
                numbers["step"] = numbers.pop("steps")
                with (self._folder / LOG_FILE).open("a") as file:
                    file.write(json.dumps(numbers) + "\n")
            return True

        # A filter, not a handler: init_logging() clears the root logger's handlers.
        root = logging.getLogger()
        root.addFilter(write)
        try:
            yield
        finally:
            root.removeFilter(write)
