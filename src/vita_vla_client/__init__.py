"""The robot's side of a policy server: numpy, msgpack and websockets, no torch, no LeRobot.

Install the whole package, or copy this folder to the robot. `PolicyClient` asks for action chunks;
`ChunkPlayer` says which action is due, and stops a robot whose server has fallen silent; `run` joins the two.
"""

from vita_vla_client.client import (
    ConnectionLostError,
    DeadlineMissedError,
    PolicyChangedError,
    PolicyClient,
    ServerError,
)
from vita_vla_client.playback import ChunkPlayer, StaleActionsError, Step
from vita_vla_client.robot import run

__all__ = [
    "ChunkPlayer",
    "ConnectionLostError",
    "DeadlineMissedError",
    "PolicyChangedError",
    "PolicyClient",
    "ServerError",
    "StaleActionsError",
    "Step",
    "run",
]
