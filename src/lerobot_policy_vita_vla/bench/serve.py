"""What a server costs between a robot and its policy: a round trip against the same prediction in process.

    vita-vla bench serve --policy work/libero_spatial/finetune

Client and server are two threads of one process here, on loopback: what a network adds is its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.bench import harness

CAMERAS, HEIGHT, WIDTH, CHUNK, ACTION = 2, 480, 640, 10, 7
"""Of the transport alone: two cameras as robots have them, and a chunk."""
JPEG_QUALITY = 90


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--policy", type=Path, required=True, help="checkpoint or training run")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--calls", type=int, default=20, help="per round (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, with a policy and without one."""
    from lerobot_policy_vita_vla.serving.main import make_responder

    calls = 2 if args.toy else args.calls
    responder = make_responder(args.policy, limits="none", device=args.device)
    real = _sides(responder, _noise(responder.policy.observation), calls, args.rounds)
    empty = _responder(responder.policy)
    transport = _sides(empty, _noise(empty.policy.observation), calls, args.rounds)
    sides = transport["sides"]
    pixels = CAMERAS * HEIGHT * WIDTH * 3
    return {
        "setting": (
            f"{calls} action chunks one after the other, {args.policy} on {args.device}; then a policy "
            "that answers "
            f"at once to {CAMERAS} cameras of {WIDTH}x{HEIGHT} ({pixels / 1e6:.1f} MB of pixels), JPEG of "
            "quality "
            f"{JPEG_QUALITY} against pixels."
        ),
        "headline": {
            "serve_ratio": "a chunk through the server / in process",
            "serve_transport_ms": "transport alone, two cameras as pixels, ms",
            "serve_transport_jpeg_ms": "transport alone, two cameras as JPEG, ms",
        },
        **harness.with_interval("serve_ratio", real["ratios"]["server, pixels/in process"]),
        "serve_transport_ms": 1e3 * sides["server, pixels"]["median_s"] / calls,
        "serve_transport_jpeg_ms": 1e3 * sides["server, JPEG"]["median_s"] / calls,
        "comparisons": {f"{calls} chunks of the policy": real, f"{calls} chunks of nobody": transport},
        "notes": [
            "JPEG saves the network's time and costs the processor's: noise, which is sent here, is what "
            "it is "
            "slowest with.",
        ],
    }


def _sides(responder: Any, observation: dict[str, Any], calls: int, rounds: int) -> dict[str, Any]:
    from lerobot_policy_vita_vla.serving.main import running
    from vita_vla_client import PolicyClient

    session = responder.policy.session()
    with (
        running(responder, max_clients=2) as server,
        PolicyClient(server.url) as pixels,
        PolicyClient(server.url, jpeg_quality=JPEG_QUALITY) as jpeg,
    ):
        asked = {"in process": session.act, "server, pixels": pixels.infer, "server, JPEG": jpeg.infer}
        found = harness.side_by_side(
            {name: lambda ask=ask: [ask(observation) for _ in range(calls)] for name, ask in asked.items()},
            rounds=rounds,
        )
    responder.close()
    return found


def _responder(like: Any) -> Any:
    from lerobot_policy_vita_vla.serving.responder import Responder
    from lerobot_policy_vita_vla.serving.served import STATE, ServedPolicy, Session, Wanted

    class Nobody(Session):
        def act(self, observation: Any) -> np.ndarray:
            return np.zeros((CHUNK, ACTION), np.float32)

    class NoPolicy(ServedPolicy):
        def session(self) -> Session:
            return Nobody(self)

    served = NoPolicy(like.policy, like.preprocessor, like.postprocessor)
    names = [f"observation.images.camera{number}" for number in range(CAMERAS)]
    served.observation = {name: Wanted((HEIGHT, WIDTH, 3), "uint8") for name in names} | {
        STATE: Wanted((8,), "float32")
    }
    return Responder(served)


def _noise(wanted: dict[str, Any]) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    made = {
        key: generator.integers(0, 256, w.shape, dtype=np.uint8)
        if w.dtype == "uint8"
        else generator.normal(size=w.shape).astype(np.float32)
        for key, w in wanted.items()
    }
    return made | {"task": "pick up the black bowl"}
