"""What the parts of the pipeline promise each other.

Shape letters, used everywhere (tensor names in network files end in them, as in ``features_BTE``)::

    B batch     T chunk step (= action query)   A action dim        S state dim
    N cameras   L prefix tokens                 D VLM hidden width  E teacher feature width

Masks: ``*_is_pad`` is True on padding, ``*_mask`` is True on what is valid.

A batch, between LeRobot's preprocessor and our policies, holds physical units: normalisation lives inside the
networks, as buffers of the checkpoint, because LeRobot replaces a pipeline's statistics by the current
dataset's whenever a run starts from ``--policy.path`` (stage 2 does), and a decoder that was copied from the
teacher would silently get another scale.

    ==============================  =================  ================================================
    key                             shape, dtype       meaning
    ==============================  =================  ================================================
    ``observation.image*``          (B, 3, H, W) f32   one per camera, RGB, in [0, 1]
    ``observation.state``           (B, S) f32         proprioceptive state, physical units
    ``task``                        list of B str      the instruction
    ``action``                      (B, T, A) f32      environment units; training only
    ``action_is_pad``               (B, T) bool        step lies behind the episode's end; training only
    ``observation.environment_state``  (B, P) f32      privileged simulator state; teacher's auxiliary
                                                       loss only, never an input of a policy
    ==============================  =================  ================================================

With ``n_obs_steps`` H > 1 observations gain an axis after B: ``(B, H, 3, h, w)`` and ``(B, H, S)``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

PRIVILEGED_STATE = "observation.environment_state"
"""The simulator's own state: stored with recorded demonstrations, never fed to a policy."""

EXECUTED_ACTION = "executed_action"
"""What the arm really did while the expert was disturbed; `action` holds the expert's undisturbed answer.

Not named ``action.executed``: LeRobot takes every column that starts with ``action`` for a policy output.
"""

TEACHER_FEATURES = "observation.teacher_features"
"""A teacher's action features of every frame, T * E numbers, stored with the demonstrations; see
`vla.precomputed`. Under ``observation.``, since LeRobot's pipelines drop other columns."""

GRIPPER_KINDS = ("binary", "continuous")

TWO_VALUED_SHARE = 0.98
"""Our choice: a gripper that is on its way in more than a few of a hundred frames is a width."""


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of an action mean, and how the decoder's output becomes environment units.

    ``environment = decoder_output * scale + offset``, dimension by dimension. A binary gripper takes one of
    the two values ``offset - scale`` and ``offset + scale``; the decoder gives it a logit.

    Args:
        names: Name of each of the A dimensions, as the dataset gives them.
        offset: A numbers, environment units.
        scale: A positive numbers, environment units.
        gripper_dims: Which dimensions are a gripper command.
        gripper_kind: ``"binary"`` (open/close: cross-entropy, paper section 3) or ``"continuous"`` (a width:
            regressed, as in the paper's real-robot runs).
    """

    names: tuple[str, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    gripper_dims: tuple[int, ...] = ()
    gripper_kind: str = "binary"

    def __post_init__(self):
        for field in ("names", "offset", "scale", "gripper_dims"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not len(self.names) == len(self.offset) == len(self.scale):
            raise ValueError(
                "an action spec needs one name, offset and scale per dimension, got "
                f"{len(self.names)} names, "
                f"{len(self.offset)} offsets, {len(self.scale)} scales"
            )
        if any(s <= 0 for s in self.scale):
            raise ValueError(f"action scales must be positive, got {self.scale}")
        if bad := [d for d in self.gripper_dims if not 0 <= d < len(self.names)]:
            raise ValueError(
                f"gripper dimensions {bad} do not exist; the action has {len(self.names)}: {self.names}"
            )
        if self.gripper_kind not in GRIPPER_KINDS:
            raise ValueError(f"gripper_kind must be one of {GRIPPER_KINDS}, got {self.gripper_kind!r}")

    @property
    def dim(self) -> int:
        """A, the number of action dimensions."""
        return len(self.names)

    @property
    def binary_dims(self) -> tuple[int, ...]:
        """Dimensions for which the decoder gives logits."""
        return self.gripper_dims if self.gripper_kind == "binary" else ()

    @property
    def arm_dims(self) -> tuple[int, ...]:
        """Dimensions that are regressed."""
        return tuple(d for d in range(self.dim) if d not in self.binary_dims)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, for a checkpoint's ``config.json``."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ActionSpec:
        """Inverse of `to_dict`."""
        return cls(**fields)

    @classmethod
    def from_stats(
        cls,
        names: Sequence[str] | None,
        stats: dict[str, Any],
        *,
        gripper_dims: Sequence[int] | None = None,
        gripper_kind: str = "auto",
    ) -> ActionSpec:
        """Derive the spec from a LeRobotDataset's statistics of ``action``.

        Dimensions that already lie in [-1, 1] keep their scale (the paper trains on raw actions); others are
        mapped to [-1, 1] by their minimum and maximum, since the decoder ends in a tanh.

        Args:
            names: The dataset's names for the action dimensions, or None.
            stats: ``{"min", "max", "mean", "std"}``, (A,) each; the last two tell the gripper's kind.
            gripper_dims: Which dimensions are the gripper; None takes those whose name contains "gripper".
            gripper_kind: ``"binary"``, ``"continuous"`` or ``"auto"`` (binary where the data takes the
                minimum and the maximum only).
        """
        low = [float(v) for v in _flat(stats["min"])]
        high = [float(v) for v in _flat(stats["max"])]
        names = list(names) if names else [f"action_{i}" for i in range(len(low))]
        if gripper_dims is None:
            gripper_dims = [i for i, name in enumerate(names) if "gripper" in str(name).lower()]
        gripper_dims = [d % len(names) if -len(names) <= d < len(names) else d for d in gripper_dims]
        if gripper_kind == "auto":
            gripper_kind = "binary" if _two_valued(stats, low, high, gripper_dims) else "continuous"
        offset, scale = [], []
        for dim, (lo, hi) in enumerate(zip(low, high, strict=True)):
            binary = gripper_kind == "binary" and dim in gripper_dims
            if not binary and lo >= -1.0 and hi <= 1.0:
                lo, hi = -1.0, 1.0
            offset.append((lo + hi) / 2)
            scale.append(max((hi - lo) / 2, 1e-6))
        return cls(tuple(names), tuple(offset), tuple(scale), tuple(gripper_dims), gripper_kind)


def _flat(values) -> list:
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    return values if not values or not isinstance(values[0], list) else [v for row in values for v in row]


def _two_valued(stats: dict, low: list[float], high: list[float], dims: Sequence[int]) -> bool:
    """Whether all these dimensions only ever take their minimum and their maximum.

    Of all distributions between two ends the one on the ends alone has the largest variance,
    (max - mean) * (mean - min) (Bhatia and Davis 2000). LeRobot's quantiles cannot tell: those of a dataset
    are means of its episodes' quantiles, hence in between.
    """
    if not dims or "mean" not in stats or "std" not in stats or any(low[d] >= high[d] for d in dims):
        return False  # a gripper that never moved has no second value to tell from
    mean, std = ([float(v) for v in _flat(stats[key])] for key in ("mean", "std"))
    largest = {d: (high[d] - mean[d]) * (mean[d] - low[d]) for d in dims}
    return all(std[d] ** 2 >= TWO_VALUED_SHARE * largest[d] > 0 for d in dims)


class TeacherTargets(NamedTuple):
    """What alignment regresses onto (paper section 3.3, figure 2).

    Attributes:
        features_BTE: Teacher's action features: its trunk's output at the action queries, decoder input.
    """

    features_BTE: Tensor


@runtime_checkable
class Teacher(Protocol):
    """A small trained action model whose action features and decoder the student takes over.

    A teacher is read-only: loaded first, in ``eval()``, never optimised, never saved with the student.
    """

    feature_dim: int
    """E."""
    chunk_size: int
    """T."""
    action_spec: ActionSpec
    cameras: tuple[str, ...]
    """Batch keys of the cameras it reads, in order."""
    state_dim: int
    decoder: nn.Module
    """An `ActionDecoder` (see ``teacher/decoder.py``): (B, T, E) -> (B, T, A)."""

    def targets(self, batch: dict[str, Any]) -> TeacherTargets:
        """Action features for a batch in physical units (see the table above), without gradient."""
        ...

    def predict_action_chunk(self, batch: dict[str, Any]) -> Tensor:
        """The teacher's own action chunk (B, T, A) in environment units, without gradient."""
        ...


@contextmanager
def reasons_shown() -> Iterator[None]:
    """Log why a configuration is refused, around the checks of its ``__post_init__``.

    LeRobot's command lines answer every ValueError there with "Couldn't instantiate class ... using the given
    arguments" and nothing else.
    """
    try:
        yield
    except ValueError as error:
        logger.error("%s", error)
        raise


def check_loss(loss: Tensor, batch: dict[str, Any]) -> None:
    """Raise ValueError for a loss that is NaN or infinite, naming the column of the batch that is to blame.

    Going on would only write NaN into every weight, and checkpoints of them.
    """
    if bool(loss.isfinite().all()):
        return
    floats = {key: v for key, v in batch.items() if hasattr(v, "is_floating_point") and v.is_floating_point()}
    if bad := sorted(key for key, value in floats.items() if not bool(value.isfinite().all())):
        raise ValueError(
            f"the dataset has values of {bad} that are NaN or infinite; `vita-vla demos check <its folder>` "
            "lists the episodes and how to remove them"
        )
    raise ValueError(
        "the loss became NaN or infinite although the data is finite: the training diverged. Lower the "
        "learning rate (--policy.lr=...), or train in float32 (--policy.dtype=float32)"
    )


def check_shape(name: str, tensor: Tensor, *expected: int | None) -> None:
    """Raise ValueError unless ``tensor.shape`` equals ``expected`` (None matches any size).

    Used at three seams only: network input, mapper to decoder, decoder output.
    """
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(
        e is not None and e != s for e, s in zip(expected, shape, strict=True)
    ):
        want = tuple("any" if e is None else e for e in expected)
        raise ValueError(f"{name} has shape {shape}, expected {want}")


def check_picture_sizes(
    batch: Mapping[str, Any], features: Mapping[str, Any], recording: Mapping[str, Any]
) -> None:
    """Refuse to act on pictures of another size than the demonstrations'.

    A policy would resize them and act a little worse, or much, without a word.

    Args:
        batch: Pictures (..., h, w).
        features: Camera key -> LeRobot's `PolicyFeature`, (3, h, w), of the demonstrations.
        recording: What the checkpoint keeps of them; where it keeps nothing, nothing is compared.

    Raises:
        ValueError: Naming the camera and both sizes.
    """
    for key, feature in features.items() if recording else ():
        (h, w), (height, width) = batch[key].shape[-2:], feature.shape[-2:]
        if (h, w) != (height, width):
            raise ValueError(
                f"{key} is {w}x{h} pixels (width x height), the policy was trained on {width}x{height}: set "
                f"the camera to that, or the simulator (--env.observation_size={height} of vita_metaworld, "
                f"--env.observation_height={height} --env.observation_width={width} of libero); to have them "
                "resized all the same, --policy.allow_other_size=true (vita-vla eval: --allow-differences)"
            )
