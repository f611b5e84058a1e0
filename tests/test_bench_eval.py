"""What `vita-vla bench eval` runs, chooses and computes; the commands themselves are played by a clock."""

import json
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from lerobot.configs.eval import EvalPipelineConfig

from lerobot_policy_vita_vla.bench import eval as bench
from lerobot_policy_vita_vla.bench import harness
from vita_vla_cli import bench_page, cli

# Seconds of a process before the first episode, and per episode.
COSTS = {
    "sync:1": (8, 3),
    "ours": (10, 1),
    "films": (10, 1.5),
    "sync:4": (8, 3),
    "sync:8": (8, 2.5),
    "async:8": (50, 2),
}


@pytest.fixture
def policy(tmp_path):
    folder = tmp_path / "policy" / "checkpoints" / "last" / "pretrained_model"
    folder.mkdir(parents=True)
    recording = {
        "quality": "light",
        "observation_size": 32,
        "tasks": {"open it": "door-open-v3", "pull it": "drawer-open-v3"},
    }
    (folder / "config.json").write_text(json.dumps({"type": "seer", "recording": recording}))
    return tmp_path / "policy"


@pytest.fixture
def clock(monkeypatch):
    """Commands that write what the real ones write, and take the seconds of `COSTS`."""
    world = SimpleNamespace(now=0.0, commands=[], lost=0)

    def run(self, module, *arguments):
        world.commands.append((module, *arguments))
        flags = dict(word.lstrip("-").split("=", 1) for word in arguments if "=" in word)
        if module == "vita_vla_cli":
            flags = dict(zip(arguments[2::2], arguments[3::2], strict=True))
            size, out = int(flags["--episodes"]), Path(flags["--run"]) / "eval" / "policy"
            result = {"overall": {"n_episodes": 2 * size, "success_rate": 0.9}}
            start, each = COSTS["ours" if flags["--videos"] == "1" else "films"]
            path = out / "result.json"
        else:
            size, copies = int(flags["eval.n_episodes"]), int(flags["eval.batch_size"])
            way = "async" if flags["eval.use_async_envs"] == "true" else "sync"
            result = {"overall": {"n_episodes": 2 * size - world.lost, "pc_success": 90.0}}
            start, each = COSTS[f"{way}:{copies}"]
            path = Path(flags["output_dir"]) / "eval_info.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))
        world.now += start + each * 2 * size

    fake = SimpleNamespace(perf_counter=lambda: world.now, process_time=lambda: 0.0)
    monkeypatch.setattr(harness, "time", fake)
    monkeypatch.setattr(bench._Commands, "_run", run)
    return world


def arguments(policy, *words, rounds=2, toy=False):
    parser = ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args(["--policy", str(policy), "--workers", "2", *words])
    args.rounds, args.toy, args.threads = rounds, toy, 1
    return args


def test_lerobots_best_settings_run_against_ours_with_and_without_the_start(policy, clock, tmp_path):
    words = ("--episodes", "8", "24", "--settings", "sync:4", "sync:8", "async:8")
    figures = bench.run(arguments(policy, *words))
    ours, filming = 10 + 48, 10 + 1.5 * 48
    # Fastest as a whole, and fastest per further episode: two settings, each compared where it is best.
    assert figures["eval_vs_lerobot_eval"] == pytest.approx((8 + 2.5 * 48) / ours)
    assert figures["eval_vs_lerobot_eval_playing"] == pytest.approx(2.0)
    assert figures["eval_vs_lerobot_eval_ten_films"] == pytest.approx((8 + 2.5 * 48) / filming)
    assert figures["episodes_per_hour"]["vita-vla eval"] == pytest.approx(3600 * 48 / ours, abs=0.1)
    assert figures["episodes_per_hour_playing"] == {"vita-vla eval": 3600.0, "lerobot-eval, async:8": 1800.0}
    assert "after a start of 10.0 s" in figures["notes"][0]
    assert set(figures["success_rates"].values()) == {0.9}
    assert set(figures["tried_seconds"]) == {f"lerobot-eval, {text}" for text in words[4:]}
    sides = figures["comparisons"]["whole commands"]["sides"]
    assert len(sides) == 3 + 2 * 2 and "lerobot-eval, sync:4, 8 per task" not in sides
    harness.write("eval", figures, tmp_path)
    assert "vita-vla eval / lerobot-eval" in bench_page.text(figures | {"benchmark": "eval"})


def test_both_commands_are_asked_for_the_same_episodes_and_pictures(policy, clock):
    import draccus

    bench.run(arguments(policy, toy=True, rounds=1))
    parser = cli.build_parser()
    ours = next(command for command in clock.commands if command[0] == "vita_vla_cli")
    theirs = next(command for command in clock.commands if command[0] != "vita_vla_cli")
    asked = parser.parse_args(ours[1:])
    assert theirs[0] == "lerobot.scripts.lerobot_eval"
    # The policy's own flags are read apart from the rest (configs/eval.py).
    words = [word for word in theirs[1:] if not word.startswith("--policy.")]
    config = draccus.parse(EvalPipelineConfig, args=[*words, "--policy.type=act"])
    assert config.env.type == "vita_metaworld"
    assert asked.tasks == config.env.task == "door-open-v3,drawer-open-v3"
    assert asked.seed == config.seed
    assert asked.size == config.env.observation_size == 32
    assert asked.quality == config.env.quality == "light"
    assert asked.episode_length == config.env.episode_length == 200
    assert asked.episodes <= 2 and config.eval.n_episodes <= 2
    assert (asked.workers, asked.device) == (2, "cpu")


def test_what_would_not_be_fair_is_refused(policy, clock, tmp_path):
    with pytest.raises(ValueError, match=r"multiples .* got 8 and 24 with 5"):
        bench.run(arguments(policy, "--settings", "sync:5"))
    with pytest.raises(ValueError, match="sync:8 or async:2, got 'threads:2'"):
        bench.run(arguments(policy, "--settings", "threads:2"))
    clock.lost = 1
    with pytest.raises(ValueError, match="played 15 episodes instead of 16"):
        bench.run(arguments(policy, "--settings", "sync:8"))
    with pytest.raises(ValueError, match="neither a LeRobot checkpoint"):
        bench.run(arguments(tmp_path / "no" / "such" / "policy"))


def test_times_that_say_nothing_are_refused(policy, clock, monkeypatch):
    monkeypatch.setitem(COSTS, "ours", (10, 0))
    with pytest.raises(ValueError, match="24 episodes of vita-vla eval took no longer than 8"):
        bench.run(arguments(policy, "--settings", "sync:8"))
