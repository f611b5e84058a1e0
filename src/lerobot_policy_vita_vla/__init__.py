"""VITA-VLA for LeRobot: registers the policies `vita_vla` and `seer` and the environment `vita_metaworld`.

LeRobot imports this package at the start of every command line, so only configuration classes are imported
here: no simulator, no model code, no web stack.
"""

__version__ = "0.1.0"

from lerobot_policy_vita_vla.demos.env_config import VitaMetaworldEnvConfig
from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig
from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig

__all__ = ["SeerConfig", "VitaMetaworldEnvConfig", "VitaVLAConfig", "__version__"]
