import numpy as np
import pytest

from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.conventions import (
    RecordingInfo,
    compare_statistics,
    match_cameras,
    statistics_hash,
)


def stats(shift=0.0, scale=1.0):
    base = np.array([[-2.0, -0.5, -1.0], [2.0, 0.5, 1.0]])
    return {
        name: {
            "min": base[0] * scale + shift,
            "max": base[1] * scale + shift,
            "mean": np.zeros(3) + shift,
            "std": np.ones(3) * scale,
        }
        for name in ("action", "observation.state")
    }


@pytest.mark.parametrize(
    ("expected", "available", "answer"),
    [
        (["observation.image"], ["observation.image"], ["observation.image"]),
        (["observation.images.front"], ["observation.front", "observation.side"], ["observation.front"]),
        (["observation.image"], ["observation.images.agentview"], ["observation.images.agentview"]),
        (
            ["observation.image", "observation.images.wrist"],
            ["observation.images.robot0_eye_in_hand", "observation.images.top"],
            ["observation.images.top", "observation.images.robot0_eye_in_hand"],
        ),
        # An exact match takes its camera away from those who would also like it.
        (
            ["observation.images.top", "observation.image"],
            ["observation.images.front", "observation.images.top"],
            ["observation.images.top", "observation.images.front"],
        ),
    ],
)
def test_cameras_are_matched_by_key_then_name_then_role(expected, available, answer):
    assert list(match_cameras(expected, available).values()) == answer


@pytest.mark.parametrize(
    ("expected", "available"),
    [
        (["observation.image"], ["observation.images.front", "observation.images.top"]),
        (["observation.image", "observation.images.main"], ["observation.images.front"]),
        (["observation.image"], ["observation.images.wrist"]),
        (["observation.image"], ["observation.images.cam7"]),
        (["observation.image"], []),
    ],
)
def test_ambiguous_cameras_are_refused_with_the_flag_that_settles_it(expected, available):
    with pytest.raises(ValueError, match="--rename_map") as error:
        match_cameras(expected, available)
    assert all(name in str(error.value) for name in [*expected, *available])


def test_statistics_hash_follows_the_numbers_not_their_container():
    as_lists = {name: {k: v.tolist() for k, v in s.items()} for name, s in stats().items()}
    assert statistics_hash(stats()) == statistics_hash(as_lists)
    assert statistics_hash(stats()) != statistics_hash(stats(shift=0.01))
    pictures = {**stats(), "observation.image": {"mean": np.zeros(3)}}
    assert statistics_hash(stats()) == statistics_hash(pictures)


def test_statistics_of_the_same_data_agree_and_of_other_data_do_not():
    spec = ActionSpec.from_stats(("x", "y", "gripper"), stats()["action"])
    state = stats()["observation.state"]
    assert compare_statistics(stats(), action_spec=spec, state_stats=state) == []
    found = compare_statistics(stats(scale=1.5), action_spec=spec, state_stats=state)
    # y stays inside the decoder's [-1, 1]; x and the gripper do not.
    assert [line.split(":")[0] for line in found[:2]] == ["action 'x'", "action 'gripper'"]
    assert sum(line.startswith("observation.state[") for line in found) == 3


def test_a_linear_decoder_is_compared_by_mean_and_spread():
    action = stats()["action"]
    spec = ActionSpec(("x", "y", "gripper"), tuple(action["mean"]), tuple(action["std"]))
    assert compare_statistics(stats(), action_spec=spec, bounded=False) == []
    assert len(compare_statistics(stats(scale=3.0), action_spec=spec, bounded=False)) == 3
    assert len(compare_statistics(stats(), action_spec=spec)) == 1  # a tanh would not reach x's +-2


def test_a_recording_in_other_units_is_refused_though_it_lies_inside():
    metres = {key: np.asarray(value) / 1000 for key, value in stats()["action"].items()}
    spec = ActionSpec.from_stats(("x", "y", "gripper"), stats()["action"])
    assert len(compare_statistics({"action": metres}, action_spec=spec)) == 3


def test_another_number_of_dimensions_is_one_difference():
    spec = ActionSpec(("x",), (0.0,), (1.0,))
    assert compare_statistics(stats(), action_spec=spec) == [
        "action: the model gives 1 numbers, the dataset has 3"
    ]


def test_recording_info_survives_its_file_and_refuses_unknown_fields(tmp_path):
    info = RecordingInfo("metaworld", {"Push": "push-v3,push-wall-v3"}, "light", 96, 80, "corner2")
    info.save(tmp_path)
    assert RecordingInfo.load(tmp_path) == info
    assert info.task_names == ["push-v3", "push-wall-v3"]
    assert RecordingInfo.load(tmp_path / "elsewhere") is None
    with pytest.raises(ValueError, match="newer version"):
        RecordingInfo.from_dict({**info.to_dict(), "tactile": True})
    for content in ("{", "[]"):
        (tmp_path / "meta" / "vita_vla.json").write_text(content)
        with pytest.raises(ValueError, match=r"vita_vla.json cannot be used.*restore it"):
            RecordingInfo.load(tmp_path)


def test_pictures_of_another_quality_are_named():
    info = RecordingInfo("metaworld", {}, "light", 96, 80, "corner2")
    same = {"quality": "light", "observation_size": 96}
    assert info.picture_differences(same) == []
    assert info.picture_differences({**same, "quality": "standard"}) == [
        "quality: recorded with 'light', here 'standard'"
    ]
