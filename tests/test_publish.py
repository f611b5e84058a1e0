"""Publishing: which files stand behind a number, and which number a key names."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "publish.py"
COMPARISON = {
    "variant": "only_finetune",
    "finetune_steps": 300,
    "difference": 0.25,
    "low": 0.1,
    "high": 0.375,
    "n_runs_a": 3,
    "n_runs_b": 3,
    "n_episodes": 100,
    "p_value": 0.001,
}


@pytest.fixture
def publish(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("publish", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SUMMARY", tmp_path / "summary.json")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, arguments), "--command", "bash x.sh"])
        module.main()
        return json.loads((tmp_path / "summary.json").read_text())

    return call


@pytest.fixture
def run(tmp_path):
    files = {
        "manifest.json": "{}",
        "eval/teacher/result.json": json.dumps(
            {"overall": {"success_rate": 0.5, "n_episodes": 4, "low": 0.2, "high": 0.8}}
        ),
        "eval/teacher/episodes.jsonl": "",
        "teacher/train_log.jsonl": "",
        "demos/meta/vita_vla.json": "{}",
        "demos/data/frames.parquet": "",
        "ablation/ablations.json": json.dumps({"rows": [], "comparisons": [COMPARISON]}),
        "ablation/process_2.log": "",
    }
    for label in ("two_stage-300-seed0", "only_finetune-300-seed0"):
        files[f"ablation/eval/{label}/result.json"] = "{}"
        files[f"ablation/eval/{label}/episodes.jsonl"] = ""
        files[f"ablation/eval/{label}/videos/one.mp4"] = ""
    for student in ("align-300-0a1b2c3d-seed0", "two_stage-300-seed0", "only_finetune-300-seed0"):
        files[f"ablation/students/{student}/train_log.jsonl"] = ""
        files[f"ablation/students/{student}/command.txt"] = ""
        files[f"ablation/students/{student}/checkpoints/last/model.safetensors"] = ""
        files[f"ablation/students/{student}.log"] = ""
    files["ablation/students/two_stage-300-seed0.interrupted-1/train_log.jsonl"] = ""
    for name, text in files.items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "run"


def copied(target: Path) -> set[str]:
    return {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}


def test_a_comparison_of_variants_is_published_with_its_episodes_and_logs(publish, run, tmp_path):
    summary = publish(run, tmp_path / "budgets", "a.gain=ablation:only_finetune@300")
    assert {key: summary["a.gain"][key] for key in ("value", "n", "low", "high")} == {
        "value": 0.25,
        "n": 300,
        "low": 0.1,
        "high": 0.375,
    }
    labels = ("two_stage-300-seed0", "only_finetune-300-seed0")
    expected = {"manifest.json", "ablation/ablations.json"}
    expected |= {f"ablation/eval/{x}/{f}" for x in labels for f in ("result.json", "episodes.jsonl")}
    students = (*labels, "align-300-0a1b2c3d-seed0")
    expected |= {f"ablation/students/{x}/{f}" for x in students for f in ("train_log.jsonl", "command.txt")}
    assert copied(tmp_path / "budgets") == expected


def test_a_rate_is_published_without_the_ablation(publish, run, tmp_path):
    summary = publish(run, tmp_path / "five", "a.teacher=teacher")
    assert summary["a.teacher"]["value"] == 0.5
    assert copied(tmp_path / "five") == {
        "manifest.json",
        "demos/meta/vita_vla.json",
        "eval/teacher/result.json",
        "eval/teacher/episodes.jsonl",
        "teacher/train_log.jsonl",
    }


@pytest.mark.parametrize("wanted", ["only_finetune@100", "freeze_vlm@300", "only_finetune"])
def test_a_comparison_that_was_not_made_is_refused_with_what_there_is(publish, run, wanted):
    with pytest.raises(ValueError, match=r"ablations\.json has no comparison .*only_finetune@300.*vita-vla"):
        publish(run, f"a.gain=ablation:{wanted}")


def test_a_rate_of_one_difficulty_group(publish, run):
    played = [
        {"id": "a", "task": "reach-v3", "success": True},
        {"id": "b", "task": "reach-v3", "success": False},
        {"id": "c", "task": "assembly-v3", "success": False},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in played)
    (run / "eval/teacher/episodes.jsonl").write_text(lines)
    summary = publish(run, "c.easy=teacher@easy", "c.hard=teacher@hard")
    assert (summary["c.easy"]["value"], summary["c.easy"]["n"]) == (0.5, 2)
    assert (summary["c.hard"]["value"], summary["c.hard"]["n"]) == (0.0, 1)
    with pytest.raises(ValueError, match="no difficulty group 'harder'; there are easy"):
        publish(run, "c.x=teacher@harder")
    with pytest.raises(ValueError, match="no episode of a task of group 'medium'"):
        publish(run, "c.x=teacher@medium")
