"""What a server says of its policy, so that a robot can check before it moves."""

from __future__ import annotations

from typing import Any

from lerobot_policy_vita_vla.serving.responder import FALLBACK_GRACE_MS, Responder
from lerobot_policy_vita_vla.serving.served import TASK


def describe(responder: Responder) -> dict[str, Any]:
    """The server's metadata; fields without a value where a checkpoint does not say it.

    Returns:
        ``observation`` (name -> shape and dtype), ``task`` (the instruction's name), ``action_names``,
        ``chunk_size``, ``n_action_steps``, ``execute_from``, ``temporal_ensemble_coeff``, ``n_obs_steps``,
        ``control_hz``, ``action_mode``, ``gripper_dims``, ``conventions``, ``limits``, ``deadline_ms``,
        ``fallback_grace_ms``, ``policy`` and ``fallback`` (type and fingerprint).
    """
    served, config = responder.policy, responder.policy.config
    recording = getattr(config, "recording", None) or {}
    conventions = recording.get("conventions") or {}
    spec = _action_spec(config)
    # Not every policy of LeRobot calls it so.
    chunk_size = getattr(config, "chunk_size", None) or len(served.session().act(served.blank()))
    gripper = conventions.get("gripper_dim")
    return {
        "observation": {key: wanted.record() for key, wanted in served.observation.items()},
        "task": TASK,
        "action_names": action_names(config),
        "chunk_size": chunk_size,
        "n_action_steps": min(getattr(config, "n_action_steps", None) or chunk_size, chunk_size),
        "execute_from": getattr(config, "execute_from", 0),
        "temporal_ensemble_coeff": getattr(config, "temporal_ensemble_coeff", None),
        "n_obs_steps": served.n_obs_steps,
        "control_hz": recording.get("control_hz") or conventions.get("control_hz"),
        "action_mode": conventions.get("action_mode"),
        "gripper_dims": list(spec.get("gripper_dims") or ([gripper] if gripper is not None else [])),
        "conventions": conventions or None,
        "limits": _limits(responder),
        "deadline_ms": responder.deadline_ms,
        "fallback_grace_ms": FALLBACK_GRACE_MS if responder.fallback is not None else None,
        "policy": _who(responder.policy),
        "fallback": _who(responder.fallback) if responder.fallback is not None else None,
    }


def action_names(config: Any) -> list[str]:
    """Names of an action's numbers, as far as the checkpoint has them."""
    dims = config.output_features["action"].shape[0]
    return list(_action_spec(config).get("names") or [f"action_{i}" for i in range(dims)])


def _action_spec(config: Any) -> dict[str, Any]:
    return (getattr(config, "decoder", None) or {}).get("spec") or getattr(config, "action_spec", None) or {}


def _limits(responder: Responder) -> dict[str, Any] | None:
    limits = responder.limits
    if limits is None:
        return None
    change = None if limits.max_change_A is None else limits.max_change_A.tolist()
    return {"low": limits.low_A.tolist(), "high": limits.high_A.tolist(), "max_change": change}


def _who(served: Any) -> dict[str, str]:
    return {"type": served.config.type, "fingerprint": served.fingerprint}
