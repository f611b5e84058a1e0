"""Manifest, result files, published numbers, comparison tables and videos."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lerobot_policy_vita_vla.evaluation.compare import compare, to_markdown
from lerobot_policy_vita_vla.evaluation.manifest import load_manifest, make_manifest
from lerobot_policy_vita_vla.evaluation.results import (
    append_episode,
    outcomes,
    read_episodes,
    summarise,
    update_summary,
    write_json,
)
from lerobot_policy_vita_vla.evaluation.video import write_video


def test_a_manifest_lists_the_same_seeds_for_every_task_and_survives_its_file(tmp_path):
    manifest = make_manifest("door-open,drawer-open-v3", 3, seed=10, quality="standard", observation_size=128)
    assert manifest.tasks == ["door-open-v3", "drawer-open-v3"]
    assert [e.id for e in manifest.episodes[:4]] == [
        "door-open-v3/10",
        "door-open-v3/11",
        "door-open-v3/12",
        "drawer-open-v3/10",
    ]
    path = manifest.save(tmp_path / "manifest.json")
    assert load_manifest(path) == manifest
    assert json.loads(path.read_text())["hash"] == manifest.hash
    assert make_manifest(["drawer-open", "door-open"], 3, seed=10).hash != manifest.hash


def test_a_manifest_that_was_edited_is_refused(tmp_path):
    path = make_manifest("door-open", 3).save(tmp_path / "manifest.json")
    path.write_text(path.read_text().replace('"seed": 50001', '"seed": 50009'))
    with pytest.raises(ValueError, match="edited"):
        load_manifest(path)


@pytest.mark.parametrize(("content", "message"), [("{", "is damaged"), ("[]", "holds a list")])
def test_a_manifest_that_is_none_is_named(tmp_path, content, message):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} {message}"):
        load_manifest(path)


def test_a_manifest_is_written_once(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = make_manifest("door-open", 3)
    manifest.save(path)
    before = path.stat().st_mtime_ns
    manifest.save(path)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="written once"):
        replace(manifest, episode_length=100).save(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "door-opne"}, "door-open-v3"),
        ({"tasks": "door-open", "episodes_per_task": 0}, "episodes_per_task"),
        ({"tasks": "door-open", "seed": -1}, "seed"),
        ({"tasks": "door-open", "quality": "nice"}, "light"),
        ({"tasks": "door-open", "episode_length": 501}, "500"),
        ({"tasks": "door-open", "observation_size": 0}, "16..480 pixels, got 0: change --size"),
    ],
)
def test_what_cannot_be_played_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_manifest(**{"episodes_per_task": 2, **arguments})


def _episode(task, seed, success):
    return {"id": f"{task}/{seed}", "task": task, "seed": seed, "success": success}


def test_a_line_that_was_cut_off_is_played_again(tmp_path):
    for seed in (1, 2):
        append_episode(tmp_path, _episode("t", seed, True))
    with open(tmp_path / "episodes.jsonl", "a") as file:
        file.write('{"id": "t/3", "succ')
    assert [e["seed"] for e in read_episodes(tmp_path)] == [1, 2]
    append_episode(tmp_path, _episode("t", 3, False))
    assert outcomes(tmp_path) == {"t/1": True, "t/2": True, "t/3": False}


def test_a_damaged_line_in_the_middle_is_not_passed_over(tmp_path):
    (tmp_path / "episodes.jsonl").write_text('{"id"\n{"id": "t/1"}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_episodes(tmp_path)


def test_a_summary_counts_per_task_and_overall():
    summary = summarise([_episode("a", 1, True), _episode("a", 2, False), _episode("b", 1, True)])
    assert summary["overall"]["success_rate"] == pytest.approx(2 / 3)
    assert summary["tasks"]["a"]["n_episodes"] == 2
    assert summary["tasks"]["b"]["success_rate"] == 1.0


def test_published_numbers_are_set_one_by_one(tmp_path):
    path = tmp_path / "summary.json"
    update_summary(path, "b.rate", 0.5, 10, 0.2, 0.8, "make b", "2026-01-31")
    update_summary(path, "a.seconds", 12.5)
    content = update_summary(path, "b.rate", 0.6, 20, 0.4, 0.8, "make b", "2026-02-01")
    assert list(content) == ["a.seconds", "b.rate"] == list(json.loads(path.read_text()))
    assert content["b.rate"] == {
        "value": 0.6,
        "n": 20,
        "low": 0.4,
        "high": 0.8,
        "command": "make b",
        "date": "2026-02-01",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": "a b"}, "letters"),
        ({"low": 0.7}, "outside"),
        ({"n": 0}, "at least 1"),
        ({"date": "31.1.2026"}, "31.1.2026"),
    ],
)
def test_a_published_number_must_make_sense(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        update_summary(tmp_path / "s.json", **{"key": "a", "value": 0.5, **arguments})


def _evaluation(folder, label, successes, manifest_hash="m1", complete=True):
    for seed, success in enumerate(successes):
        append_episode_in(folder / label, _episode("t", seed, success))
    result = {
        "label": label,
        "policy_type": "seer",
        "manifest_hash": manifest_hash,
        "complete": complete,
        "episodes": len(successes),
        **summarise(read_episodes(folder / label)),
    }
    write_json(folder / label / "result.json", result)
    return folder / label


def append_episode_in(folder, record):
    folder.mkdir(parents=True, exist_ok=True)
    append_episode(folder, record)


def test_policies_side_by_side(tmp_path):
    a = _evaluation(tmp_path, "teacher", [True] * 9 + [False])
    b = _evaluation(tmp_path, "student", [True] * 4 + [False] * 6)
    table = compare([a, b])
    pair = table["pairs"][0]
    assert (pair["a"], pair["b"], pair["only_a"], pair["only_b"]) == ("teacher", "student", 5, 0)
    assert pair["p_value"] == pytest.approx(2 / 2**5)
    lines = to_markdown(table).splitlines()
    assert lines[2].startswith("| teacher | 0.90 | 0.60 to 0.98 | 10 | 0.90 |")
    assert "| teacher - student | +0.50 |" in lines[-1]


def test_only_the_same_finished_episodes_are_compared(tmp_path):
    a = _evaluation(tmp_path, "a", [True])
    with pytest.raises(ValueError, match="another manifest"):
        compare([a, _evaluation(tmp_path, "b", [True], manifest_hash="m2")])
    with pytest.raises(ValueError, match="unfinished"):
        compare([a, _evaluation(tmp_path, "c", [True], complete=False)])
    with pytest.raises(ValueError, match="no result"):
        compare([tmp_path / "missing"])


@pytest.mark.parametrize(("size", "expected"), [(32, 192), (96, 192), (75, 224), (300, 300)])
def test_a_video_holds_the_frames_enlarged(tmp_path, size, expected):
    import av

    frames = np.zeros((5, size, size, 3), np.uint8)
    frames[:, : size // 2] = (250, 10, 10)
    path = write_video(tmp_path / "videos" / "x.mp4", frames, fps=80 / 3)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert len(decoded) == 5
    assert decoded[0].shape[0] == decoded[0].shape[1]
    assert abs(decoded[0].shape[0] - expected) <= 2
    assert abs(decoded[2][5, 5].astype(int) - (250, 10, 10)).max() < 30
    assert decoded[2][-5, -5].max() < 30


def test_only_pictures_become_a_video(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "x.mp4", np.zeros((3, 8, 8, 3), np.float32), fps=10)
