"""Demonstrations on LIBERO without a simulator: how the hand moves, where it grasps, what is written."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lerobot_policy_vita_vla.demos.check import check_dataset
from lerobot_policy_vita_vla.demos.dataset import DatasetWriter, features
from lerobot_policy_vita_vla.demos.expert import Demonstration, Disturbance
from lerobot_policy_vita_vla.demos.plan import recording_settings
from lerobot_policy_vita_vla.demos.scenes import LIBERO, METAWORLD

SIZE, FRAMES = 32, 12


class Hand:
    """A hand that does what it is told, up to friction: the last centimetre of a slow command is lost."""

    def __init__(self, friction=0.0):
        self.hand, self.opening, self.friction = np.array([-0.2, 0.0, 1.2]), 0.08, friction
        self.hand_rotation = np.diag([1.0, -1.0, -1.0])  # fingers down
        self.things: dict[str, np.ndarray] = {}

    @property
    def finger_axis(self):
        return self.hand_rotation[:, 1]

    def act(self, action):
        move = action[:3] * 0.05
        self.hand = self.hand + np.sign(move) * np.maximum(np.abs(move) - self.friction, 0.0)
        turn = Rotation.from_rotvec(action[3:6].astype(float) * 0.5)
        self.hand_rotation = turn.as_matrix() @ self.hand_rotation
        self.opening = float(np.clip(self.opening - 0.01 * np.sign(action[6]), 0.0, 0.08))

    def points(self, name):
        return self.things[name]

    def position(self, name):
        return self.things[name].mean(axis=0)

    def obstacles(self, *without):
        rest = [points for name, points in self.things.items() if name not in without]
        return np.concatenate(rest) if rest else np.zeros((0, 3))


def run(hand, motion):
    """Plays a movement; its return value and the number of steps."""
    steps = 0
    while True:
        try:
            action = next(motion)
        except StopIteration as end:
            return end.value, steps
        assert action.shape == (7,) and action.dtype == np.float32 and np.abs(action).max() <= 1
        hand.act(action)
        steps += 1


@pytest.fixture
def arm():
    from lerobot_policy_vita_vla.demos.libero_arm import Arm

    return Arm


@pytest.mark.parametrize("friction", [0.0, 0.004])
def test_the_hand_arrives_in_place_and_turned(arm, friction):
    hand = Hand(friction)
    moves = arm(hand)
    target = np.array([0.1, 0.15, 1.0])
    rotation = Rotation.from_rotvec([0, 0, 0.8]).as_matrix() @ moves.upright
    arrived, steps = run(hand, moves.servo(target, rotation))
    assert arrived and steps < 40
    assert np.linalg.norm(hand.hand - target) < 0.012
    assert Rotation.from_matrix(rotation @ hand.hand_rotation.T).magnitude() < 0.06


def test_a_hand_that_is_stuck_gives_up(arm):
    hand = Hand(friction=1.0)
    arrived, steps = run(hand, arm(hand).servo(np.array([0.1, 0.0, 1.2])))
    assert not arrived and steps < 20


def test_closing_ends_when_the_fingers_are_still_and_commands_stay_closed(arm):
    hand = Hand()
    moves = arm(hand)
    run(hand, moves.close())
    assert hand.opening == pytest.approx(0.0, abs=1e-9) and moves.command()[6] == 1
    run(hand, moves.open())
    assert hand.opening == pytest.approx(0.08) and moves.command()[6] == -1


@pytest.mark.parametrize("angle", np.arange(-3, 3.1, 0.5))
def test_facing_an_axis_takes_the_nearer_of_its_two_directions(arm, angle):
    hand = Hand()
    moves = arm(hand)
    axis = np.array([np.cos(angle), np.sin(angle)])
    rotation, turn = moves.facing(axis)
    assert abs(turn) <= np.pi / 2 + 1e-9
    fingers = (rotation @ hand.hand_rotation.T @ hand.finger_axis)[:2]
    assert abs(abs(fingers @ axis) - 1) < 1e-9
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1], atol=1e-12)


def block(centre, half, count=7):
    sides = [np.linspace(c - h, c + h, count) for c, h in zip(centre, half, strict=True)]
    return np.stack(np.meshgrid(*sides), -1).reshape(-1, 3)


def test_a_box_is_taken_across_its_narrow_side_and_away_from_neighbours(arm):
    from lerobot_policy_vita_vla.demos.libero_grasps import WIDEST, grasps

    hand = Hand()
    hand.things["box_1"] = block((0.0, 0.0, 1.0), (0.06, 0.02, 0.04))
    best = grasps(hand, arm(hand), "box_1")[0]
    np.testing.assert_allclose(best.xy, [0, 0], atol=1e-9)
    fingers = (best.rotation @ hand.hand_rotation.T @ hand.finger_axis)[:2]
    assert abs(fingers[1]) > 0.9, "across y, where the box is 4 cm wide"
    assert best.height > 1.0, "the palm stays above the box"
    free = best.cost
    hand.things["wall_1"] = block((0.0, 0.05, 1.02), (0.06, 0.01, 0.06))
    assert grasps(hand, arm(hand), "box_1")[0].cost > free
    hand.things["crate_1"] = block((0.0, 0.0, 1.0), (WIDEST, WIDEST, 0.05))
    assert grasps(hand, arm(hand), "crate_1") == []


def test_a_bowl_is_taken_by_its_rim(arm):
    from lerobot_policy_vita_vla.demos.libero_grasps import grasps

    angles = np.linspace(0, 2 * np.pi, 60)
    ring = np.stack([0.06 * np.cos(angles), 0.06 * np.sin(angles), np.full(60, 1.05)], 1)
    hand = Hand()
    hand.things["akita_black_bowl_1"] = np.concatenate([ring, ring - [0, 0, 0.05]])
    best = grasps(hand, arm(hand), "akita_black_bowl_1")[0]
    assert abs(np.linalg.norm(best.xy) - 0.059) < 1e-4
    fingers = (best.rotation @ hand.hand_rotation.T @ hand.finger_axis)[:2]
    assert abs(fingers @ best.xy) / 0.059 > 0.999, "one finger inside, one outside"


def test_a_cone_leads_lower_the_less_the_hand_is_aside(arm):
    from lerobot_policy_vita_vla.demos.libero_arm import CONE_TIP

    hand = Hand()
    moves, line = arm(hand), np.array([0.1, 0.2])
    heights = []
    for aside in (0.2, 0.04, 0.02, 0.01, CONE_TIP, 0.0):
        hand.hand = np.array([*(line + [aside, 0.0]), 1.05])
        heading = moves.cone(lambda z: np.array([*line, z]), 1.0, 1.1)
        np.testing.assert_allclose(heading[:2], line)
        heights.append(heading[2])
    assert heights[0] == heights[1] == 1.1 and heights[-2:] == [1.0, 1.0]
    assert (np.diff(heights[1:-1]) < 0).all()
    turned = Rotation.from_rotvec([0, 0, 0.5]).as_matrix() @ moves.upright
    assert moves.cone(lambda z: np.array([*line, z]), 1.0, 1.1, turned)[2] > 1.05


@pytest.mark.parametrize("friction", [0.0, 0.004])
def test_the_hand_comes_down_to_a_rim_without_waiting(arm, friction):
    from lerobot_policy_vita_vla.demos.libero_grasps import DEEP, approach, grasps, sink

    hand = Hand(friction)
    hand.things["bowl_1"] = block((0.0, 0.0, 1.0), (0.06, 0.06, 0.04))
    moves = arm(hand)
    way = grasps(hand, moves, "bowl_1")[0]
    assert way.coned
    above, moved = 1.12, []

    def down():
        yield from approach(moves, way, above)
        yield from sink(moves, way, above)

    for action in down():
        before = hand.hand.copy()
        hand.act(action)
        moved.append(np.linalg.norm(hand.hand - before))
    assert np.linalg.norm(hand.hand - way.behind(way.height)) < DEEP
    assert min(moved[:-5]) > 0.005, "metres per step"


def test_a_bowl_at_the_end_of_the_reach_is_taken_on_its_near_side(arm):
    from lerobot_policy_vita_vla.demos.libero_grasps import BASE, FAR, grasps

    hand = Hand()
    moves = arm(hand)
    for x, near in ((-0.1, False), (FAR + BASE[0] + 0.02, True)):
        hand.things["bowl_1"] = block((x, 0.0, 1.0), (0.06, 0.06, 0.04))
        way = grasps(hand, moves, "bowl_1")[0]
        assert np.linalg.norm(way.xy - BASE) < FAR + 0.01 and (way.xy[0] < x - 0.01) == near


def test_a_flat_plate_is_not_come_down_to_along_a_cone(arm):
    from lerobot_policy_vita_vla.demos.libero_grasps import grasps

    hand = Hand()
    hand.things["plate_1"] = block((0.0, 0.0, 1.0), (0.08, 0.08, 0.01))
    ways = grasps(hand, arm(hand), "plate_1")
    assert all(way.thin and not way.coned for way in ways), "the fingers have millimetres to hold it by"


@pytest.mark.parametrize("seed", range(5))
def test_while_a_grasp_misses_the_label_is_the_way_back(arm, seed):
    from lerobot_policy_vita_vla.demos.libero_grasps import grasps
    from lerobot_policy_vita_vla.demos.libero_miss import missed_grasp

    hand = Hand()
    hand.things["box_1"] = block((0.0, 0.0, 1.0), (0.06, 0.02, 0.04))
    moves = arm(hand)
    way, goal, above = grasps(hand, moves, "box_1")[0], np.array([0.1, 0.3]), 1.12
    run(hand, moves.servo(way.behind(above), way.rotation))

    def miss():
        return missed_grasp(moves, "box_1", way, above, 1.2, goal, np.random.default_rng(seed))

    closed = 0
    for wanted, done in miss():
        assert wanted[6] == -1, "a label never closes the fingers"
        assert np.abs(wanted).max() <= 1 and wanted.dtype == done.dtype == np.float32
        hand.act(done)
        closed += hand.opening == 0
        assert hand.hand[2] > 1.04 + 0.01, "above the box, whose grasp would be none to come back from"
    assert closed >= 2 and moves.grip == -1
    # Whoever follows the labels from where the mistake led comes back over the grasp, with open fingers.
    labels = miss()
    for _ in range(60):
        wanted = next(labels, (None,))[0]
        if wanted is None:
            break
        hand.act(wanted)
    assert np.linalg.norm(hand.hand[:2] - way.xy) < 0.02 and hand.opening > 0.07


@pytest.mark.parametrize(("thin", "most"), [(False, 1.0), (True, 0.5)])
def test_the_empty_hand_stays_away_from_the_goal_where_fingers_tell_little(arm, thin, most):
    from lerobot_policy_vita_vla.demos.libero_grasps import grasps
    from lerobot_policy_vita_vla.demos.libero_miss import missed_grasp

    nearest = []
    for seed in range(20):
        hand = Hand()
        hand.things["bowl_1"] = block((0.0, 0.0, 1.0), (0.06, 0.06, 0.04))
        moves = arm(hand)
        way = grasps(hand, moves, "bowl_1")[0]
        assert way.thin
        run(hand, moves.servo(way.behind(1.12), way.rotation))
        goal, rng = np.array([0.1, 0.3]), np.random.default_rng(seed)
        way = way._replace(thin=thin)
        closed = []
        for _, done in missed_grasp(moves, "bowl_1", way, 1.12, 1.2, goal, rng):
            hand.act(done)
            if hand.opening == 0:
                closed.append(np.linalg.norm(goal - hand.hand[:2]) / np.linalg.norm(goal - way.xy))
        nearest.append(1 - min(closed))
    assert most * 0.7 < max(nearest) < most + 0.05


@pytest.mark.parametrize(
    ("goals", "missing"),
    [
        ([["in", "milk_1", "basket_1_contain_region"]], []),
        ([["turnon", "flat_stove_1"], ["on", "moka_pot_1", "flat_stove_1_cook_region"]], []),
        ([["close", "white_cabinet_1_bottom_region"]], []),
        ([["turnoff", "flat_stove_1"], ["open", "microwave_1"]], ["turnoff flat_stove_1"]),
    ],
)
def test_goals_without_a_skill_are_named(goals, missing):
    pytest.importorskip("mujoco")
    from lerobot_policy_vita_vla.demos.libero_expert import unknown_goals

    assert unknown_goals(goals) == missing


def test_the_dataset_has_the_hubs_columns(tmp_path):
    generator = np.random.default_rng(0)
    table = features(LIBERO, SIZE)
    assert table["observation.images.image"]["shape"] == (SIZE, SIZE, 3)
    assert table["observation.state"]["shape"] == (8,) and table["action"]["shape"] == (7,)
    writer = DatasetWriter(tmp_path / "demos", repo_id="local/demos", scenes=LIBERO, observation_size=SIZE)
    demonstration = Demonstration(
        pictures=generator.integers(0, 256, (FRAMES, 2, SIZE, SIZE, 3), dtype=np.uint8),
        state=generator.normal(size=(FRAMES, 8)).astype(np.float32),
        environment_state=generator.normal(size=(FRAMES, 6)).astype(np.float32),
        action=generator.uniform(-1, 1, (FRAMES, 7)).astype(np.float32),
        executed_action=generator.uniform(-1, 1, (FRAMES, 7)).astype(np.float32),
    )
    for _ in range(2):
        writer.append(demonstration, "pick up the milk and place it in the basket")
    writer.finish()
    assert check_dataset(tmp_path / "demos").ok

    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset("local/demos", root=tmp_path / "demos")
    assert dataset.fps == 20
    for number, name in enumerate(("image", "image2")):
        stored = (dataset[3][f"observation.images.{name}"].permute(1, 2, 0).numpy() * 255).round()
        np.testing.assert_array_equal(stored, demonstration.pictures[3, number])


def test_settings_of_a_recording_name_suite_protocol_and_noise(libero_package):
    settings = recording_settings(["libero_object_3"], 5, "light", 128, 1000, None, "lerobot")
    assert settings["suite"] == "libero" and settings["protocol"] == "lerobot"
    assert settings["max_steps"] == 280 and settings["noise"]["kick_chance"] == 0
    # Meta-World's are what they were, so recordings made earlier are still recognised.
    older = recording_settings(["reach-v3"], 5, "light", 96, 0, None)
    assert older["noise"] == Disturbance().to_dict() and "protocol" not in older
    assert (older["max_steps"], older["suite"]) == (260, METAWORLD.name)


def test_the_help_names_the_share_of_missed_grasps(capsys):
    from vita_vla_cli.cli import main

    with pytest.raises(SystemExit):
        main(["demos", "record", "--help"])
    assert f"learn to come back (default: {LIBERO.miss_chance:g})" in " ".join(
        capsys.readouterr().out.split()
    )


def test_missed_grasps_are_part_of_a_recordings_settings_and_libero_only(libero_package):
    def settings(task, **given):
        return recording_settings([task], 5, "light", 96, 1000, None, **given)

    assert settings("libero_object_3", protocol="lerobot")["noise"]["miss_chance"] == LIBERO.miss_chance > 0
    few = settings("libero_object_3", protocol="lerobot", miss_chance=0.1)
    assert few["noise"]["miss_chance"] == 0.1
    # Without them, recordings made before there were any are still recognised.
    assert "miss_chance" not in settings("libero_object_3", protocol="lerobot", miss_chance=0.0)["noise"]
    with pytest.raises(ValueError, match="experts of metaworld cannot miss.*--misses"):
        settings("reach-v3", miss_chance=0.35)
    with pytest.raises(ValueError, match="lies in .0, 1., got 35"):
        settings("libero_object_3", protocol="lerobot", miss_chance=35)
