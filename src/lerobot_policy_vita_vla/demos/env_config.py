"""The environment type ``vita_metaworld`` for LeRobot's command lines.

LeRobot's own ``metaworld`` type always draws 480 px pictures of the full scene and runs 500 steps; this one
draws the pictures a policy was trained on and honours the episode length:

    lerobot-eval --policy.path=... --env.type=vita_metaworld --env.task=door-open-v3
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

from lerobot_policy_vita_vla.contracts import reasons_shown
from lerobot_policy_vita_vla.demos.suite import (
    CONTROL_HZ,
    EPISODE_LENGTH,
    OBSERVATION_SIZE,
    check_quality,
    resolve_tasks,
)


@EnvConfig.register_subclass("vita_metaworld")
@dataclass
class VitaMetaworldEnvConfig(EnvConfig):
    """Meta-World at a chosen render quality, picture size and episode length.

    Args:
        task: Comma-separated task names and groups (`demos.suite.resolve_tasks`). Results are grouped by
            them.
        fps: Control steps per second; Meta-World's, not a choice.
        episode_length: Steps after which an episode counts as failed, 1..500.
        quality: ``"light"`` or ``"standard"``; must be what the policy was trained on.
        observation_size: Height and width of pictures, pixels; must be what the policy was trained on.
    """

    task: str = "door-open-v3"
    fps: int = CONTROL_HZ
    episode_length: int = EPISODE_LENGTH
    quality: str = "light"
    observation_size: int = OBSERVATION_SIZE
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(
        default_factory=lambda: {"action": ACTION, "agent_pos": OBS_STATE, "pixels": OBS_IMAGE}
    )

    def __post_init__(self):
        with reasons_shown():
            check_quality(self.quality)
            resolve_tasks(self.task)
        size = self.observation_size
        self.features = {
            "action": PolicyFeature(type=FeatureType.ACTION, shape=(4,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(4,)),
            "pixels": PolicyFeature(type=FeatureType.VISUAL, shape=(size, size, 3)),
        }

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of `demos.metaworld.SceneEnv`."""
        return {
            "quality": self.quality,
            "observation_size": self.observation_size,
            "episode_length": self.episode_length,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """Build one vector environment per task.

        Args:
            n_envs: Copies of each task's environment.
            use_async_envs: Run the copies in processes of their own.

        Returns:
            ``{word of the task list: {number: vector environment}}``, as LeRobot's own config does.
        """
        import gymnasium as gym
        from lerobot.envs.utils import _LazyAsyncVectorEnv, freeze_after_episode_end

        from lerobot_policy_vita_vla.demos.metaworld import SceneEnv

        envs: dict[str, dict[int, Any]] = {}
        for group in (word.strip() for word in self.task.split(",") if word.strip()):
            for number, task in enumerate(resolve_tasks(group)):
                make = partial(SceneEnv, task, **self.gym_kwargs)
                if use_async_envs and n_envs > 1:
                    # LeRobot's own lazy kind: the processes of a task start only when its turn comes.
                    vector = _LazyAsyncVectorEnv([make] * n_envs)
                else:
                    # A copy that has finished its episode costs nothing while the others go on.
                    vector = gym.vector.SyncVectorEnv([freeze_after_episode_end(make)] * n_envs)
                envs.setdefault(group, {})[number] = vector
        return envs
