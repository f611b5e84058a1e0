"""Ablations: who shares a stage 1, what is trained with which flags, and how seeds are pooled."""

import json
import sys
import threading
from pathlib import Path

import pytest

from lerobot_policy_vita_vla import ablate
from lerobot_policy_vita_vla.evaluation.manifest import make_manifest

TASK = "door-open-v3"


def play(policy, episodes, out_dir, *, label, **kwargs):
    """Stands for `evaluate`: two-stage solves three of four episodes, every other variant one."""
    wins = 3 if label.startswith("two_stage") else 1
    out_dir.mkdir(parents=True, exist_ok=True)
    lines = [
        {"id": e.id, "suite": "metaworld", "task": e.task, "seed": e.seed, "success": i < wins, "steps": 9}
        for i, e in enumerate(episodes.episodes)
    ]
    (out_dir / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    overall = {"success_rate": wins / 4, "n_episodes": 4, "low": 0.0, "high": 1.0}
    (out_dir / "result.json").write_text(json.dumps({"overall": overall}))
    return {"overall": overall}


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

    monkeypatch.setattr(ablate, "_run", train)
    monkeypatch.setattr("lerobot_policy_vita_vla.evaluation.runner.evaluate", play)
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
    trained = len(world.commands)
    with pytest.raises(ValueError, match="add two_stage"):
        world(["freeze_vlm", "only_finetune_equal_compute"], seeds=[7])
    assert len(world.commands) == trained  # refused before anything was trained


def test_equal_compute_does_not_depend_on_the_order_of_the_variants(world, monkeypatch):
    monkeypatch.setattr("lerobot_policy_vita_vla.training.sharing.WAIT_S", 0.0)
    rows = world(["only_finetune_equal_compute", "ema", "two_stage"])
    assert [row["variant"] for row in rows] == ["only_finetune_equal_compute", "ema", "two_stage"]
    assert rows[0]["steps"] == 25  # from the alignment of two_stage, not from that of ema


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


TRAINER = """
import json, pathlib, sys, time
arguments = sys.argv[1:]
out = pathlib.Path(arguments[arguments.index("--out") + 1])
with open({calls!r}, "a") as file:
    file.write(out.name + chr(10))
out.mkdir()
time.sleep(0.2)
row = dict(step=int(arguments[arguments.index("--steps") + 1]), update_s=0.1, dataloading_s=0.0)
(out / "train_log.jsonl").write_text(json.dumps(row) + chr(10))
(out / "checkpoints/last/pretrained_model").mkdir(parents=True)
(out / "checkpoints/last/pretrained_model/config.json").write_text("{{}}")
"""


def test_a_student_of_other_settings_is_not_taken_for_this_one(tmp_path, monkeypatch):
    calls, out = tmp_path / "calls", tmp_path / "students" / "two_stage-20-seed0"
    monkeypatch.setattr(ablate, "CLI", (sys.executable, "-c", TRAINER.format(calls=str(calls))))
    for _ in range(2):
        ablate._run("finetune", out, ["--steps", "20"])
    with pytest.raises(ValueError, match=r"was: --steps 20\n  now: --steps 20 --seed 1\n.*another --out"):
        ablate._run("finetune", out, ["--steps", "20", "--seed", "1"])
    assert calls.read_text().split() == [out.name]


def test_the_same_command_in_two_processes_shares_the_work(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setattr(ablate, "CLI", (sys.executable, "-c", TRAINER.format(calls=str(calls))))
    monkeypatch.setattr("lerobot_policy_vita_vla.training.sharing.WAIT_S", 0.05)
    played: list[str] = []
    monkeypatch.setattr(
        "lerobot_policy_vita_vla.evaluation.runner.evaluate",
        lambda *args, label, **kwargs: (played.append(label), play(*args, label=label, **kwargs))[1],
    )
    make_manifest(TASK, 4, seed=90_000).save(tmp_path / "manifest.json")
    tables: list[list[str]] = []

    def command():
        rows = ablate.run_ablation(
            tmp_path / "out",
            demos=Path("demos"),
            teacher=Path("teacher"),
            manifest=tmp_path / "manifest.json",
            variants=["two_stage", "only_finetune", "only_finetune_equal_compute"],
            align_steps=10,
            finetune_steps=[20],
            seeds=[0, 1],
        )
        tables.append([row["label"] for row in rows])

    # Locks belong to an open file, so two threads exclude each other as two processes do.
    both = [threading.Thread(target=command) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    trained = calls.read_text().split()
    assert len(trained) == len(set(trained)) == 8  # two alignments and six students, each once
    assert not list((tmp_path / "out").glob("*/*.interrupted*"))
    assert len(tables) == 2 and tables[0] == tables[1] and len(tables[0]) == 6
    assert set(played) == set(tables[0])
    table = json.loads((tmp_path / "out/ablations.json").read_text())
    assert [row["label"] for row in table["rows"]] == tables[0] and len(table["comparisons"]) == 2
