"""Demonstrations on LIBERO without a simulator: how the hand moves, where it grasps, what is written."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lerobot_policy_vita_vla.demos.check import check_dataset
from lerobot_policy_vita_vla.demos.dataset import DatasetWriter, features
from lerobot_policy_vita_vla.demos.expert import MISTAKES, Demonstration, Disturbance
from lerobot_policy_vita_vla.demos.plan import recording_settings
from lerobot_policy_vita_vla.demos.record import record
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


def ring(radius):
    angles = np.linspace(0, 2 * np.pi, 60)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles), np.zeros(60)], 1)


def test_a_bowl_is_taken_by_its_rim(arm):
    from lerobot_policy_vita_vla.demos.libero_grasps import grasps

    hand = Hand()
    hand.things["akita_black_bowl_1"] = np.concatenate([ring(0.06) + [0, 0, 1.05], ring(0.06) + [0, 0, 1.0]])
    best = grasps(hand, arm(hand), "akita_black_bowl_1")[0]
    assert abs(np.linalg.norm(best.xy) - 0.059) < 1e-4
    fingers = (best.rotation @ hand.hand_rotation.T @ hand.finger_axis)[:2]
    assert abs(fingers @ best.xy) / 0.059 > 0.999, "one finger inside, one outside"


def test_a_bowl_that_leans_is_taken_as_deep_on_its_low_side(arm):
    from lerobot_policy_vita_vla.demos.libero_grasps import grasps

    bowl = np.concatenate([ring(0.05) + [0, 0, 0.025], 0.6 * ring(0.05) - [0, 0, 0.025]])
    depths = {}
    for degrees in (0, 2, 10):
        hand = Hand()
        leaning = bowl @ Rotation.from_euler("y", degrees, degrees=True).as_matrix().T + [0, 0, 1]
        hand.things["bowl_1"] = leaning
        ways = grasps(hand, arm(hand), "bowl_1")
        rims = [leaning[np.linalg.norm(leaning[:, :2] - way.xy, axis=1).argmin(), 2] for way in ways]
        depths[degrees] = np.array([rim - way.height for rim, way in zip(rims, ways, strict=True)])
    np.testing.assert_allclose(depths[0], 0.022, atol=1e-9)
    assert np.ptp(depths[2]) > 0.003, "a little askew, it is taken as if it stood upright"
    assert depths[10].min() > 0.012, "and never by the last millimetres of its low side"


@pytest.mark.parametrize("radius", [0.052, 0.04])
def test_in_a_narrow_drawer_the_hand_comes_down_nearer_the_middle_of_a_bowl(arm, radius):
    from lerobot_policy_vita_vla.demos.libero_grasps import FINGERS_ALONG, grasps

    hand = Hand()
    moves = arm(hand)
    hand.things["bowl_1"] = np.concatenate([ring(radius) + [0, 0, 1.05], 0.6 * ring(radius) + [0, 0, 1.0]])
    free = grasps(hand, moves, "bowl_1")[0]
    assert free.hits == 0 and not free.tight
    assert np.linalg.norm(free.xy) == pytest.approx(radius - 0.001, abs=2e-4)
    outer = radius + FINGERS_ALONG[1] - 0.015
    around = [ring(outer) + [0, 0, z] for z in np.linspace(1, 1.05, 9)]
    hand.things["drawer_1"] = np.concatenate(around)
    ways = grasps(hand, moves, "bowl_1")
    inward = radius - 0.001 - np.array([np.linalg.norm(way.xy) for way in ways])
    opposite = 2 * radius - FINGERS_ALONG[1]
    assert inward.max() < opposite, "the inner finger would come down on the opposite side"
    if opposite > 0.02:
        assert ways[0].hits == 0 and ways[0].coned and ways[0].tight
        assert inward[0] == pytest.approx(0.02, abs=2e-4)


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


class Carrying(Hand):
    """A hand that holds a bowl by its rim as long as its fingers are closed."""

    def act(self, action):
        before = self.hand
        super().act(action)
        if self.opening < 0.02:
            self.things["bowl_1"] = self.things["bowl_1"] + self.hand - before


@pytest.fixture
def carrying(arm):
    """A bowl in the hand, its place, and the movement that sets it down aside."""
    from lerobot_policy_vita_vla.demos.libero_aside import set_aside

    hand = Carrying()
    hand.hand, hand.opening = np.array([-0.05, 0.0, 1.2]), 0.0
    hand.things["bowl_1"] = block((0.0, 0.0, 1.17), (0.05, 0.05, 0.03))
    moves, place = arm(hand), np.array([0.05, 0.25])
    moves.grip = 1.0

    def aside(seed):
        return set_aside(moves, "bowl_1", "plate_1", place, 0.9, np.random.default_rng(seed))

    return hand, place, aside


@pytest.mark.parametrize("seed", range(4))
def test_a_thing_is_let_go_of_beside_its_place_and_labels_go_back_to_it(carrying, seed):
    hand, place, aside = carrying
    for wanted, done in aside(seed):
        held = hand.opening < 0.02 and done[6] > 0
        assert wanted[6] == (1 if held else -1), "it is held until it is let go of"
        assert np.abs(wanted).max() <= 1 and wanted.dtype == done.dtype == np.float32
        if held and np.linalg.norm(hand.position("bowl_1")[:2] - place) < 0.1:
            assert wanted[2] <= 0, "up beside the place and down over it would average to hovering"
        if not held and hand.hand[2] < hand.points("bowl_1")[:, 2].max():
            assert np.abs(wanted[:2]).max() < 0.1, "not sideways with the rim between the fingers"
        hand.act(done)
    bowl = hand.position("bowl_1")
    assert 0.03 < np.linalg.norm(bowl[:2] - place) < 0.06 and bowl[2] < 0.95
    assert hand.opening > 0.07 and hand.hand[2] > bowl[2] + 0.05


@pytest.mark.parametrize("steps", [0, 5, 10])
def test_who_follows_the_labels_sets_it_down_where_it_belongs(carrying, steps):
    hand, place, aside = carrying
    labels = aside(0)
    for step, (wanted, done) in enumerate(labels):
        assert wanted[6] == 1
        hand.act(done if step < steps else wanted)
        bowl = hand.points("bowl_1")
        if bowl[:, 2].min() < 0.91:
            break
    assert np.linalg.norm(hand.position("bowl_1")[:2] - place) < 0.012


def test_an_arm_that_is_stuck_does_not_go_on_setting_it_down(carrying):
    hand, _, aside = carrying
    steps = sum(1 for _ in aside(0))  # nothing moves
    assert steps <= 120 and hand.opening < 0.02


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


def test_the_help_names_the_shares_of_mistakes(capsys):
    from vita_vla_cli.cli import main

    with pytest.raises(SystemExit):
        main(["demos", "record", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert f"learn to come back (default: {LIBERO.mistakes['miss_chance']:g})" in told
    assert f"learn to take it up again (default: {LIBERO.mistakes['aside_chance']:g})" in told


def test_mistakes_are_part_of_a_recordings_settings_and_libero_only(libero_package):
    def noise(**mistakes):
        task = "libero_object_3"
        return recording_settings([task], 5, "light", 96, 1000, None, "lerobot", mistakes)["noise"]

    assert noise().items() >= LIBERO.mistakes.items() and all(LIBERO.mistakes.values())
    few = noise(miss_chance=0.1)
    assert few["miss_chance"] == 0.1 and few["aside_chance"] == LIBERO.mistakes["aside_chance"]
    # Without them, recordings made before there were any are still recognised.
    assert noise(aside_chance=0.0).keys() & MISTAKES == {"miss_chance"}
    assert not noise(miss_chance=0.0, aside_chance=0.0).keys() & MISTAKES
    with pytest.raises(ValueError, match="missed grasps, 0.35, .*experts of metaworld make no.*--misses"):
        recording_settings(["reach-v3"], 5, "light", 96, 1000, None, mistakes={"miss_chance": 0.35})
    with pytest.raises(ValueError, match="missed grasps lies in .0, 1., got 35"):
        noise(miss_chance=35)
    with pytest.raises(ValueError, match="beside their place lies in .0, 1., got -1"):
        noise(aside_chance=-1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seed": 60}, "asked for 60..60"),
        ({"observation_size": 5}, "16..480 pixels"),
        ({"workers": -1}, "-1"),
    ],
)
def test_numbers_that_make_no_recording_are_refused_before_the_simulator_is_asked(
    libero_package, tmp_path, wrong, said
):
    with pytest.raises(ValueError, match=said):
        record("libero_object_3", 1, tmp_path / "demos", **wrong)
    assert not list(tmp_path.glob("demos*"))
