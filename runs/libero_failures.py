"""How a policy's failed episodes of LIBERO's pick-and-place suites ended.

Each is played again, and it is written down whether the thing was lifted, how far from where it belongs (from
middle to middle, horizontally) the fingers first let go of it, and how far away it was in the end. LIBERO's
`On` asks for less than 3 cm. An episode may end otherwise than it did beside others, since numbers are
rounded otherwise in a batch; the file says whether it failed again.

    .venv/bin/python runs/libero_failures.py work/libero_spatial finetune

Hardware: one CPU core, 10 to 15 s per failed episode. Needs the extra `libero`, the assets (docs/libero.md)
and the run's checkpoints (runs/libero_scripted.sh). Expected: results/libero/<suite>/failures.json.
"""

import argparse
from pathlib import Path

import numpy as np

from lerobot_policy_vita_vla.demos.scenes import STATE
from lerobot_policy_vita_vla.evaluation.manifest import Manifest, load_manifest
from lerobot_policy_vita_vla.evaluation.predictor import PolicyPredictor, load_predictor
from lerobot_policy_vita_vla.evaluation.results import read_episodes, write_json
from lerobot_policy_vita_vla.evaluation.runner import settings_of
from lerobot_policy_vita_vla.evaluation.worker import Rollout, open_scene

LIFTED = 0.02
"""Metres above where it stood at first, from which a thing counts as lifted."""

OPEN = 0.02
"""Opening of one finger, metres, from which a hand that held a rim has let go."""

FINGER = 6
"""Column of the state with one finger's opening."""

ON = 0.03
"""Metres: LIBERO's `On` holds where middles are closer than this."""


def play(policy: PolicyPredictor, manifest: Manifest, task: str, seed: int) -> dict:
    """Play one episode and say how it ended."""
    settings = settings_of(policy, manifest, policy.policy.config.chunk_size)
    scene = open_scene(manifest, task)
    rollout = Rollout(scene, seed, settings)
    answer, content = rollout.advance()
    stood, lifted, let_go = scene.known_state()[2], False, None
    while answer == "observation":
        thing, goal = np.split(scene.known_state(), 2)
        lifted = lifted or bool(thing[2] > stood + LIFTED)
        if lifted and let_go is None and content[STATE][FINGER] > OPEN:
            let_go = round(float(np.linalg.norm((thing - goal)[:2])), 4)
        answer, content = rollout.advance(policy.predict([content])[0])
    thing, goal = np.split(scene.known_state(), 2)
    scene.close()
    return {
        "success": content["success"],
        "steps": content["steps"],
        "lifted": lifted,
        "let_go_at_m": let_go,
        "away_at_the_end_m": round(float(np.linalg.norm((thing - goal)[:2])), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("label", help="of the policy: its folder in RUN and in RUN/eval")
    parser.add_argument("--out", type=Path, help="default: results/libero/<run's name>/failures.json")
    args = parser.parse_args()
    manifest = load_manifest(args.run / "manifest.json")
    failed = [r for r in read_episodes(args.run / "eval" / args.label) if not r["success"]]
    policy = load_predictor(args.run / args.label, manifest, device="cpu")
    episodes = {}
    for record in failed:
        episodes[record["id"]] = play(policy, manifest, record["task"], record["seed"])
        print(record["id"], episodes[record["id"]], flush=True)
    again = [e for e in episodes.values() if not e["success"]]
    released = [e["let_go_at_m"] for e in again if e["let_go_at_m"] is not None]
    counts = {
        "failed": len(failed),
        "failed_again": len(again),
        "never_lifted": sum(not e["lifted"] for e in again),
        "never_let_go": sum(e["lifted"] and e["let_go_at_m"] is None for e in again),
        "let_go_3_to_6_cm_away": sum(ON <= d < 2 * ON for d in released),
        "let_go_farther_away": sum(d >= 2 * ON for d in released),
        "let_go_where_it_belongs": sum(d < ON for d in released),
    }
    out = (
        args.out
        or Path(__file__).resolve().parents[1] / "results" / "libero" / args.run.name / "failures.json"
    )
    command = f"python runs/libero_failures.py {args.run} {args.label}"
    write_json(out, {"command": command, "counts": counts, "episodes": episodes})
    print(out, counts)


if __name__ == "__main__":
    main()
