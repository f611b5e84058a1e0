"""What keeps a policy from solving the tasks of runs/metaworld_mt50.sh: demonstrations, loss, or eyes.

A small network without eyes is told where object and goal are. It learns from the recording's own labels with
the paper's losses and decoder, once with this package's smooth-L1 threshold of 0.1 and once with the 1 of the
paper's code: what it reaches is what demonstrations and loss allow. Beside it: how far off the trained
teacher sees the same positions, on episodes of the expert that it was not trained on.

    python runs/mt50_precision.py work/mt50_cpu        # after the teacher of runs/metaworld_mt50.sh

Hardware: one thread of a CPU; a minute for the teacher's eyes, 80 s per network, half of it simulation.
--error 0.005 tells the positions wrongly by 5 mm (standard deviation per axis; drawn for every training
sample, and once per episode in play, as a policy that sees wrongly does so for a whole episode).
Expected: results/mt50_precision/precision.json with the outcome of every episode.
Date last run: see the file.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lerobot.datasets import LeRobotDatasetMetadata
from torch import nn

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE, ActionSpec
from lerobot_policy_vita_vla.conventions import RecordingInfo
from lerobot_policy_vita_vla.demos.metaworld import SceneEnv
from lerobot_policy_vita_vla.demos.suite import EPISODE_LENGTH, MAX_EPISODE_LENGTH, task_descriptions
from lerobot_policy_vita_vla.evaluation.results import write_json
from lerobot_policy_vita_vla.evaluation.statistics import rate_with_interval
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder, imitation_loss
from lerobot_policy_vita_vla.teacher.load import find_pretrained_model
from lerobot_policy_vita_vla.teacher.seer.dataset_facts import METAWORLD_POSITIONS
from lerobot_policy_vita_vla.teacher.seer.modeling_seer import SeerPolicy

COMMAND = "python runs/mt50_precision.py work/mt50_cpu"
CHUNK = 3
WIDTH = 384
SEED = 70_000
"""Neither demonstrations (20000 on) nor evaluations (50000 on) begin here, so choices may be made by it."""
LIMITS = (EPISODE_LENGTH, MAX_EPISODE_LENGTH)
LOOK_EVERY = 5
"""Steps between the pictures on which the teacher's eyes are measured."""


@dataclass(frozen=True)
class Row:
    """One network: its smooth-L1 threshold, and how far off it is told positions (metres)."""

    beta: float
    error_m: float


# Ours, and the paper's code's.
BETAS = (0.1, 1.0)


class Blind(nn.Module):
    """State, positions and task -> raw actions (B, T, A)."""

    def __init__(self, state: torch.Tensor, positions: torch.Tensor, n_tasks: int, spec: ActionSpec):
        super().__init__()
        for name, values in (("state", state), ("positions", positions)):
            self.register_buffer(f"{name}_mean", values.mean(0))
            self.register_buffer(f"{name}_std", values.std(0).clamp_min(1e-3))
        self.tasks = nn.Embedding(n_tasks, 32)
        sizes = [state.shape[1] + positions.shape[1] + 32, WIDTH, WIDTH]
        layers = []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.trunk = nn.Sequential(*layers, nn.Linear(WIDTH, CHUNK * WIDTH))
        self.decoder = ActionDecoder(kind="seer", feature_dim=WIDTH, spec=spec)

    def forward(self, state: torch.Tensor, positions: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        state = (state - self.state_mean) / self.state_std
        positions = (positions - self.positions_mean) / self.positions_std
        seen = torch.cat([state, positions, self.tasks(task)], dim=-1)
        return self.decoder(self.trunk(seen).unflatten(-1, (CHUNK, WIDTH)))


class Recording:
    """Numbers of a recording, frame by frame, with the chunk of labels from each frame on."""

    def __init__(self, root: Path):
        meta = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
        files = sorted(root.glob("data/*/*.parquet"))
        columns = ["observation.state", PRIVILEGED_STATE, "action", "episode_index", "task_index"]
        table = pd.concat([pd.read_parquet(file, columns=columns) for file in files])
        self.state, privileged, action = (
            torch.tensor(np.stack(table[name]), dtype=torch.float32) for name in columns[:3]
        )
        self.positions = privileged[:, METAWORLD_POSITIONS]
        episode = torch.tensor(table["episode_index"].to_numpy())
        ahead = (torch.arange(len(action))[:, None] + torch.arange(CHUNK)).clamp_max(len(action) - 1)
        self.chunk, self.is_pad = action[ahead], episode[ahead] != episode[:, None]
        names = RecordingInfo.load(root).tasks
        instructions = meta.tasks.sort_values("task_index").index
        self.tasks = [names[instruction] for instruction in instructions]
        self.task = torch.tensor(table["task_index"].to_numpy())
        self.spec = ActionSpec.from_stats(meta.features["action"]["names"], meta.stats["action"])


def train(data: Recording, row: Row, steps: int) -> Blind:
    torch.manual_seed(0)
    network = Blind(data.state, data.positions, len(data.tasks), data.spec)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(data.state), (512,))
        positions = data.positions[rows]
        positions = positions + row.error_m * torch.randn_like(positions)
        raw = network(data.state[rows], positions, data.task[rows])
        loss, _ = imitation_loss(
            network.decoder, raw, data.chunk[rows], data.is_pad[rows], beta=row.beta, gripper_weight=0.01
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def play(network: Blind, data: Recording, row: Row, episodes: int) -> dict[str, list[int | None]]:
    """Task -> the step of the first success in each episode, None where there was none."""
    found: dict[str, list[int | None]] = {}
    for index, task in enumerate(data.tasks):
        env = SceneEnv(task, observation_size=16, episode_length=MAX_EPISODE_LENGTH)
        env.rendering = False
        found[task] = []
        for number in range(episodes):
            random = torch.Generator().manual_seed(number)
            wrong = row.error_m * torch.randn(len(METAWORLD_POSITIONS), generator=random)
            env.reset(seed=SEED + number)
            success, truncated, step = False, False, 0
            while not (success or truncated):
                seen = torch.from_numpy(env.privileged_state())[None]
                raw = network(seen[:, :4], seen[:, METAWORLD_POSITIONS] + wrong, torch.tensor([index]))
                for action in network.decoder.to_action(raw)[0].numpy():
                    _, _, success, truncated, _ = env.step(action)
                    step += 1
                    if success or truncated:
                        break
            found[task].append(step if success else None)
        env.close()
    return found


@torch.no_grad()
def seen_wrongly(teacher: Path, tasks: list[str], episodes: int) -> dict[str, list[float]]:
    """Task -> root mean square error of object and goal per axis, metres, in the expert's clean episodes."""
    policy = SeerPolicy.from_pretrained(find_pretrained_model(teacher)).eval()
    network, found = policy.network, {}
    for task in tasks:
        env = SceneEnv(task, observation_size=policy.config.image_size, episode_length=MAX_EPISODE_LENGTH)
        pictures, states, positions = [], [], []
        for number in range(episodes):
            env.reset(seed=SEED + number)
            success, truncated, step = False, False, 0
            while not (success or truncated):
                if step % LOOK_EVERY == 0 and step:  # before the first step what is known may be stale
                    seen = env.observation()
                    pictures.append(seen["pixels"])
                    states.append(seen["agent_pos"])
                    positions.append(env.privileged_state()[list(METAWORLD_POSITIONS)])
                env.rendering = False
                _, _, success, truncated, _ = env.step(env.expert_action())
                step += 1
        env.close()
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()[:, None, None] / 255
        state = torch.from_numpy(np.stack(states)).float()[:, None]
        output = network(pixels, state, [task_descriptions()[task]] * len(pixels))
        guess = network.auxiliary_head(output.seen_BHG)[:, 0] * policy.config.auxiliary_scale
        error = guess + network.auxiliary_mean - torch.from_numpy(np.stack(positions))
        found[task] = [round(value, 5) for value in error.square().mean(0).sqrt().tolist()]
        print(task, "teacher is off by", [f"{1000 * value:.0f} mm" for value in found[task]], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder with demos and teacher")
    parser.add_argument("--episodes", type=int, default=10, help="per task and row (default: %(default)s)")
    parser.add_argument("--error", type=float, default=0.0, help="metres (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="updates per network (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/mt50_precision/precision.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = Recording(args.run / "demos"), []
    eyes = seen_wrongly(args.run / "teacher", data.tasks, args.episodes)
    for row in (Row(beta, args.error) for beta in BETAS):
        ends = play(train(data, row, args.steps), data, row, args.episodes)
        flat = [end for task in ends.values() for end in task]
        rates = {
            str(limit): rate_with_interval(sum(end is not None and end <= limit for end in flat), len(flat))
            for limit in LIMITS
        }
        rows.append({**asdict(row), "within_steps": rates, "first_success": ends})
        print(row, {limit: round(rate["success_rate"], 3) for limit, rate in rates.items()}, flush=True)
        write_json(
            args.out,
            {
                "command": COMMAND,
                "date": str(date.today()),
                "seed": 0,
                "first_episode_seed": SEED,
                "updates": args.steps,
                "teacher_rms_error_m": eyes,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
