"""Ablations: who shares a stage 1, what is trained with which flags, and how seeds are pooled."""

import json
from pathlib import Path

import pytest

from lerobot_policy_vita_vla import ablate
from lerobot_policy_vita_vla.evaluation.manifest import make_manifest

TASK = "door-open-v3"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Training and playing replaced by their records; everything between them is real."""
    commands: list[tuple[str, Path, list[str]]] = []

    def train(verb, out, arguments):
        if (out / ablate.TRAINED / "config.json").exists():
            return
        commands.append((verb, out, arguments))
        (out / ablate.TRAINED).mkdir(parents=True)
        (out / ablate.TRAINED / "config.json").write_text("{}")
        steps = int(arguments[arguments.index("--steps") + 1])
        seconds = 0.5 if verb == "align" else 1.0
        row = {"step": steps, "update_s": seconds, "dataloading_s": 0.0}
        (out / "train_log.jsonl").write_text(json.dumps(row) + "\n")

    def evaluate(policy, episodes, out_dir, *, label, **kwargs):
        # Two-stage solves three of four episodes, every other variant one.
        wins = 3 if label.startswith("two_stage") else 1
        out_dir.mkdir(parents=True, exist_ok=True)
        lines = [
            {
                "id": e.id,
                "suite": "metaworld",
                "task": e.task,
                "seed": e.seed,
                "success": i < wins,
                "steps": 9,
            }
            for i, e in enumerate(episodes.episodes)
        ]
        (out_dir / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        overall = {"success_rate": wins / 4, "n_episodes": 4, "low": 0.0, "high": 1.0}
        return {"overall": overall}

    monkeypatch.setattr(ablate, "_run", train)
    monkeypatch.setattr("lerobot_policy_vita_vla.evaluation.runner.evaluate", evaluate)
    make_manifest(TASK, 4, seed=90_000).save(tmp_path / "manifest.json")

    def run(variants, **kwargs):
        settings = {"align_steps": 10, "finetune_steps": [20], "seeds": [0]} | kwargs
        places = {"demos": Path("demos"), "teacher": Path("teacher"), "manifest": tmp_path / "manifest.json"}
        return ablate.run_ablation(tmp_path / "out", variants=variants, **places, **settings)

    run.commands, run.out = commands, tmp_path / "out"
    return run


def test_variants_with_the_same_stage_1_share_it(world):
    rows = world(["two_stage", "align_only", "freeze_vlm", "ema"])
    aligns = [out for verb, out, _ in world.commands if verb == "align"]
    assert len(aligns) == 2  # ema changes stage 1 too
    starts = [a[a.index("--from") + 1] for verb, _, a in world.commands if verb == "finetune"]
    assert starts == [str(aligns[0]), str(aligns[0]), str(aligns[1])]
    assert [row["steps"] for row in rows] == [20, 10, 20, 20]
    changed = [arguments[-1] for _, _, arguments in world.commands]
    assert "--policy.stage=freeze_vlm" in changed and changed.count("--policy.ema_decay=0.99") == 2


def test_align_only_is_trained_once_for_all_budgets(world):
    rows = world(["two_stage", "align_only"], finetune_steps=[20, 40])
    assert [row["label"] for row in rows] == [
        "two_stage-20-seed0",
        "align_only-0-seed0",
        "two_stage-40-seed0",
    ]


def test_equal_compute_turns_the_time_of_stage_1_into_steps(world):
    rows = world(["two_stage", "only_finetune_equal_compute"])
    assert rows[1]["steps"] == 20 + 10 * 0.5 / 1.0
    with pytest.raises(ValueError, match="two_stage before it"):
        world(["only_finetune_equal_compute"], seeds=[7])


def test_finished_runs_are_not_trained_again(world):
    world(["two_stage", "only_finetune"])
    before = len(world.commands)
    world(["two_stage", "only_finetune"])
    assert len(world.commands) == before == 3


def test_the_table_compares_with_two_stage_over_seeds(world):
    world(["two_stage", "only_finetune", "align_only"], seeds=[0, 1])
    table = json.loads((world.out / "ablations.json").read_text())
    assert len(table["rows"]) == 6
    by_variant = {c["variant"]: c for c in table["comparisons"]}
    assert set(by_variant) == {"only_finetune", "align_only"}
    assert by_variant["only_finetune"]["difference"] == pytest.approx(0.5)
    assert by_variant["only_finetune"]["n_runs_a"] == 2
    # Two episodes won by two-stage alone in each of two runs: 2 * 0.5 ** 4.
    assert by_variant["only_finetune"]["p_value"] == pytest.approx(0.125)
    assert by_variant["align_only"]["finetune_steps"] == 20  # against two-stage at each budget


def test_unknown_variants_are_named_with_what_there_is(world):
    with pytest.raises(ValueError, match="'three_stage'.*two_stage"):
        world(["three_stage"])


def test_a_failed_training_shows_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "CLI", ("python3", "-c", "print('what happened'); raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match=r"exit code 3[\s\S]*what happened"):
        ablate._run("align", tmp_path / "x" / "align", [])
