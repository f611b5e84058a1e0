"""Conventions are converted without loss, or refused."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lerobot_policy_vita_vla.conventions import ORIENTATIONS, Conventions, RecordingInfo
from lerobot_policy_vita_vla.conversion import (
    Conversion,
    orient,
    orientation_after,
    orientation_between,
    plan_conversion,
    read_rotation,
    write_rotation,
)

WORLD = Conventions(
    image_size=(8, 8),
    control_hz=20,
    settle_steps=10,
    refreshed=True,
    position_unit=0.05,
    action_rotation="axis_angle",
    rotation_unit=0.5,
    state_rotation="axis_angle_2pi",
)


def random_pictures(shape=(5, 8, 8, 3)):
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


def test_the_eight_orientations_are_eight_and_each_has_its_way_back():
    picture = random_pictures((4, 4, 3))
    seen = {orient(picture, name).tobytes() for name in ORIENTATIONS}
    assert len(seen) == 8
    np.testing.assert_array_equal(orient(picture, "upside_down"), picture[::-1])
    np.testing.assert_array_equal(orient(picture, "mirrored"), picture[:, ::-1])
    np.testing.assert_array_equal(orient(picture, "transposed"), picture.transpose(1, 0, 2))
    np.testing.assert_array_equal(orient(picture, "rotated_180"), picture[::-1, ::-1])
    for have in ORIENTATIONS:
        for want in ORIENTATIONS:
            turn = orientation_between(have, want)
            np.testing.assert_array_equal(orient(orient(picture, have), turn), orient(picture, want))
            assert orientation_after(have, turn) == want


def test_pictures_of_an_environment_arrive_as_the_policy_knows_them():
    raw = random_pictures()
    for name in ORIENTATIONS:
        conversion = plan_conversion(replace(WORLD, image_orientation=name), WORLD)
        np.testing.assert_array_equal(conversion.pictures(raw), orient(raw, name))
        assert len(conversion.steps) == (name != "as_drawn")


@pytest.mark.parametrize(("opens", "closes"), [(1.0, -1.0), (0.0, 1.0), (1.0, 0.0)])
def test_a_gripper_command_keeps_its_meaning(opens, closes):
    policy = replace(WORLD, gripper_open=opens, gripper_closed=closes)
    actions = np.zeros((3, 7), dtype=np.float32)
    actions[:, 6] = opens, closes, (opens + closes) / 2
    out = plan_conversion(policy, WORLD).actions(actions)
    np.testing.assert_allclose(out[:, 6], [-1, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(out[:, :6], 0)
    assert out.dtype == np.float32 and actions[0, 6] == opens  # the caller's own array stays


@pytest.mark.parametrize("representation", ["axis_angle", "axis_angle_2pi", "euler_xyz", "quaternion_xyzw"])
def test_a_rotation_survives_every_representation(representation):
    rotations = Rotation.random(200, random_state=0)
    again = read_rotation(write_rotation(rotations, representation), representation)
    assert (again * rotations.inv()).magnitude().max() < 1e-6


def test_the_long_axis_angle_follows_the_quaternions_sign():
    # What robosuite and LeRobot's LIBERO processor compute: 2 acos(w) about xyz / sin.
    quaternions = Rotation.random(200, random_state=1).as_quat()
    quaternions[::2] *= -1
    angle = 2 * np.arccos(np.clip(quaternions[:, 3:], -1, 1))
    expected = quaternions[:, :3] / np.sqrt(1 - quaternions[:, 3:] ** 2) * angle
    ours = write_rotation(read_rotation(quaternions, "quaternion_xyzw"), "axis_angle_2pi")
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert np.linalg.norm(ours, axis=1).max() > np.pi
    again = write_rotation(read_rotation(ours, "axis_angle_2pi"), "quaternion_xyzw")
    np.testing.assert_allclose(again, quaternions, atol=1e-6)


def test_an_euler_action_becomes_the_same_turn_in_the_environments_unit():
    policy = replace(WORLD, action_rotation="euler_xyz", rotation_unit=1.0, position_unit=0.01)
    actions = np.random.default_rng(2).uniform(-0.4, 0.4, (2, 5, 7))
    out = plan_conversion(policy, WORLD).actions(actions)
    turn = Rotation.from_euler("xyz", actions[..., 3:6].reshape(-1, 3))
    there = Rotation.from_rotvec(0.5 * out[..., 3:6].reshape(-1, 3))
    assert (turn * there.inv()).magnitude().max() < 1e-9
    np.testing.assert_allclose(out[..., :3] * 0.05, actions[..., :3] * 0.01)
    np.testing.assert_array_equal(out[..., 6], actions[..., 6])


def test_a_quaternion_action_gets_shorter_and_the_gripper_moves_along():
    policy = replace(WORLD, action_rotation="quaternion_xyzw", rotation_unit=1.0, action_dim=8, gripper_dim=7)
    turn = Rotation.from_rotvec([0.1, 0.2, 0.3])
    out = plan_conversion(policy, WORLD).actions(np.array([0, 0, 0, *turn.as_quat(), 1.0]))
    np.testing.assert_allclose(out, [0, 0, 0, 0.2, 0.4, 0.6, 1.0], atol=1e-9)


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"image_size": (16, 16)}, "draw 16 x 16"),
        ({"control_hz": 10}, "at 10 Hz"),
        ({"settle_steps": 0}, "0 idle steps"),
        ({"refreshed": False}, "its first observation as the policy's did"),
        ({"action_mode": "absolute"}, "take absolute actions"),
        ({"state_rotation": None}, "one of them has none"),
        ({"action_rotation": None}, "one of them has none"),
        ({"gripper_dim": 0}, "train on this environment"),
        ({"action_dim": 8}, "train on this environment"),
        ({"gripper_dim": None}, "one has none"),
    ],
)
def test_what_would_lose_something_is_refused_with_the_fix(change, fix):
    policy = replace(WORLD, **change)
    with pytest.raises(ValueError, match=fix) as error:
        plan_conversion(policy, WORLD)
    assert next(iter(change)) in str(error.value)


def test_a_state_whose_quaternion_lost_its_sign_is_refused_and_the_other_way_converted():
    euler = replace(WORLD, state_rotation="euler_xyz")
    with pytest.raises(ValueError, match="lost the quaternion's sign"):
        plan_conversion(WORLD, euler)
    with pytest.raises(ValueError, match="give quaternions"):
        plan_conversion(replace(WORLD, state_rotation="quaternion_xyzw"), euler)
    hand = np.random.default_rng(3).uniform(-1, 1, (4, 8))
    there = Conversion(euler, WORLD).state(hand)
    turn = Rotation.from_rotvec(hand[:, 3:6])
    np.testing.assert_allclose(there[:, 3:6], turn.as_euler("xyz"), atol=1e-9)
    np.testing.assert_array_equal(there[:, [0, 1, 2, 6, 7]], hand[:, [0, 1, 2, 6, 7]])


def test_seers_wrap_of_an_axis_angle_vector_is_no_rotation_but_can_be_computed():
    wrapped = replace(WORLD, state_rotation="axis_angle_2pi_as_euler")
    hand = np.zeros((3, 8))
    # A hand that points down, on both sides of half a turn; and one that does not, which stays as it is.
    hand[:, 3:6] = [3.1, 0.3, 0.0], [3.2, 0.3, 0.0], [0.4, -0.2, 0.1]
    seen = plan_conversion(wrapped, WORLD).state(hand)
    np.testing.assert_allclose(seen[:, 3], [3.1, 3.2 - 2 * np.pi, 0.4], atol=1e-9)
    np.testing.assert_allclose(seen[:, [4, 5, 6]], hand[:, [4, 5, 6]], atol=1e-9)
    quaternions = replace(WORLD, state_rotation="quaternion_xyzw")
    given = np.concatenate([hand[:, :3], Rotation.from_rotvec(hand[:, 3:6]).as_quat(), hand[:, 6:]], axis=1)
    np.testing.assert_allclose(plan_conversion(wrapped, quaternions).state(given), seen, atol=1e-6)
    for lost in ("euler_xyz", "axis_angle"):
        with pytest.raises(ValueError, match="lost the quaternion's sign"):
            plan_conversion(wrapped, replace(WORLD, state_rotation=lost))
        with pytest.raises(ValueError, match="does not tell the rotation"):
            plan_conversion(replace(WORLD, state_rotation=lost), wrapped)
    with pytest.raises(ValueError, match="action_rotation is one of"):
        replace(WORLD, action_rotation="axis_angle_2pi_as_euler")


def test_added_euler_angles_convert_to_nothing_but_another_unit():
    calvin = replace(WORLD, action_rotation="euler_xyz_added", rotation_unit=0.05)
    for other in ("axis_angle", "euler_xyz"):
        for pair in (
            (calvin, replace(WORLD, action_rotation=other)),
            (replace(WORLD, action_rotation=other), calvin),
        ):
            with pytest.raises(ValueError, match="added to Euler angles turn the hand otherwise"):
                plan_conversion(*pair)
    out = plan_conversion(calvin, replace(calvin, rotation_unit=0.5)).actions(np.ones(7))
    np.testing.assert_allclose(out, [1, 1, 1, 0.1, 0.1, 0.1, 1])
    with pytest.raises(ValueError, match="state_rotation is one of"):
        replace(WORLD, state_rotation="euler_xyz_added")


@pytest.mark.filterwarnings("error")
def test_gimbal_lock_is_refused():
    euler = Conversion(replace(WORLD, state_rotation="euler_xyz"), WORLD)
    hand = np.zeros((2, 8))
    hand[1, 3:6] = 0, np.pi / 2, 0
    with pytest.raises(ValueError, match="gimbal lock"):
        euler.state(hand)
    hand[1, 4] -= 1e-4
    np.testing.assert_allclose(euler.state(hand)[1, 3:6], hand[1, 3:6], atol=1e-6)


def test_what_an_older_record_does_not_say_of_the_first_observation_is_not_compared():
    old = {name: value for name, value in WORLD.to_dict().items() if name != "refreshed"}
    for refreshed in (True, False):
        assert not Conventions.from_dict(old).differences(replace(WORLD, refreshed=refreshed))
    assert replace(WORLD, refreshed=False).differences(WORLD) == {"refreshed": (False, True)}


def test_all_refusals_come_at_once():
    policy = replace(WORLD, control_hz=10, settle_steps=0, action_mode="absolute")
    with pytest.raises(ValueError) as error:
        plan_conversion(policy, WORLD)
    assert len(str(error.value).splitlines()) == 4


def test_axis_angle_against_euler_between_teacher_and_data_is_a_difference():
    info = RecordingInfo("libero", {}, "light", 8, 20, "agentview", conventions=WORLD.to_dict())
    euler = replace(WORLD, action_rotation="euler_xyz").to_dict()
    assert info.picture_differences(info.to_dict()) == []
    assert info.picture_differences({**info.to_dict(), "conventions": euler}) == [
        "action_rotation: recorded with 'axis_angle', here 'euler_xyz'"
    ]
    # What an older recording does not say is not guessed.
    assert info.picture_differences({**info.to_dict(), "conventions": {}}) == []
