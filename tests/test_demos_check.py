import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demos_helpers import copy_of_recording
from lerobot_policy_vita_vla.demos.check import check_dataset, format_findings


@pytest.fixture
def root(tmp_path):
    return copy_of_recording(tmp_path)


def errors(root, **arguments):
    return [f.what for f in check_dataset(root, **arguments) if f.level == "error"]


def data_file(root):
    return root / "data/chunk-000/file-000.parquet"


def rewrite(root, change):
    """Load the frames as columns of Python lists, change them, write them back."""
    table = pq.read_table(data_file(root))
    columns = {name: table[name].to_pylist() for name in table.column_names}
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), data_file(root))


def change_json(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_sound_dataset_has_no_findings(root):
    assert check_dataset(root, expect_action_dim=4, expect_cameras=("observation.image",)) == []
    assert check_dataset(root).ok
    assert format_findings([]) == "nothing found: fine"


def test_what_was_expected_and_is_missing_is_named(root):
    found = errors(root, expect_action_dim=7, expect_cameras=("observation.images.wrist",))
    assert "action has shape [4], expected [7]" in found[0]
    assert "observation.images.wrist" in found[1]


def test_nan_is_found_with_its_dimension_and_episode(root):
    def poison(columns):
        columns["action"][-1] = [0.0, float("nan"), 0.0, 1.0]

    rewrite(root, poison)
    finding = next(f for f in check_dataset(root) if f.level == "error")
    assert "action has 1 values that are NaN or infinite, in y, episodes 3" in finding.what
    assert "delete_episodes" in finding.fix and "[3]" in finding.fix


def test_a_truncated_file_is_named(root):
    whole = data_file(root).read_bytes()
    data_file(root).write_bytes(whole[: len(whole) // 2])
    assert "file-000.parquet cannot be read" in errors(root)[0]


@pytest.mark.parametrize(
    "path",
    ["data/chunk-000/file-000.parquet", "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"],
)
def test_a_missing_file_is_an_error(root, path):
    (root / path).unlink()
    assert not check_dataset(root).ok


def test_no_dataset_and_a_stopped_recording_are_told_apart(tmp_path, root):
    (root / "meta/info.json").unlink()
    assert "info.json is missing" in errors(root)[0]
    assert "is not a folder" in errors(tmp_path / "none")[0]
    (tmp_path / "later.recording").mkdir()
    assert "it goes on" in check_dataset(tmp_path / "later")[0].fix


def test_an_old_dataset_gets_the_conversion_command(root):
    change_json(root / "meta/info.json", codebase_version="v2.1")
    (finding,) = check_dataset(root, repo_id="me/mine")
    assert "v2.1" in finding.what
    assert "lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=me/mine" in finding.fix


def test_counts_that_disagree_are_an_error(root):
    change_json(root / "meta/info.json", total_episodes=5)
    assert "disagrees with itself: meta/info.json says 5 episodes" in errors(root)[0]


def test_a_wrong_frame_rate_is_found(root):
    change_json(root / "meta/info.json", fps=20)
    assert "timestamps do not fit 20 frames per second" in errors(root)[0]


def test_statistics_of_other_data_are_found(root):
    stats = json.loads((root / "meta/stats.json").read_text())
    stats["action"]["max"][0] = 9.0
    (root / "meta/stats.json").write_text(json.dumps(stats))
    finding = next(f for f in check_dataset(root) if f.level == "error")
    assert "action x" in finding.what and "recompute_stats" in finding.fix


def test_an_unreadable_picture_is_found(root):
    def damage(columns):
        columns["observation.image"][0]["bytes"] = b"\x89PNG nothing"

    rewrite(root, damage)
    assert "episode 0, frame 0 cannot be decoded" in errors(root)[0]


def test_a_joint_that_hardly_moves_is_a_warning_that_names_it(root):
    def spike(columns):
        columns["observation.state"] = [[s[0], 0.5, *s[2:]] for s in columns["observation.state"]]
        columns["observation.state"][7][1] = 400.0

    rewrite(root, spike)
    # One spike in few frames is at most sqrt(n) deviations off; the quantiles show it.
    whats = [f.what for f in check_dataset(root) if f.level == "warning"]
    assert any("'hand_y'" in what or "hand_y" in what for what in whats)


def test_empty_instructions_and_short_episodes_are_found(root):
    tasks = pq.read_table(root / "meta/tasks.parquet").to_pandas()
    tasks.index = ["", *tasks.index[1:]]
    tasks.index.name = "task"
    tasks.to_parquet(root / "meta/tasks.parquet")
    findings = check_dataset(root, min_episode_length=1000)
    text = str(findings)
    assert "empty instruction" in text and "4 episodes are shorter than 1000 frames" in text
    assert text.splitlines()[0].startswith("error")
    assert text.splitlines()[-1] == "1 error, 1 warning"


def test_a_constant_action_is_a_warning(root):
    def freeze(columns):
        columns["action"] = [[a[0], a[1], 0.25, a[3]] for a in columns["action"]]

    rewrite(root, freeze)
    assert any("action is constant in z" in f.what for f in check_dataset(root))


def test_frames_out_of_order_are_an_error(root):
    def swap(columns):
        columns["frame_index"][0:2] = [1, 0]

    rewrite(root, swap)
    assert "not numbered" in errors(root)[0]
    assert np.all([f.fix for f in check_dataset(root)])
