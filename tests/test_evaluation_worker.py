"""One episode in one process: what is drawn, what is handed over, who disturbs whom."""

import hashlib
import multiprocessing
import pickle

import numpy as np
import pytest

from evaluation_helpers import LookingPredictor
from lerobot_policy_vita_vla.demos.metaworld import SceneEnv
from lerobot_policy_vita_vla.evaluation import resets, worker
from lerobot_policy_vita_vla.evaluation.manifest import make_manifest
from lerobot_policy_vita_vla.evaluation.pictures import PictureBoard
from lerobot_policy_vita_vla.evaluation.pool import EpisodeQueue
from lerobot_policy_vita_vla.evaluation.worker import Rollout, Settings, Stage

SCENE = {"quality": "light", "observation_size": 32, "episode_length": 10}


@pytest.fixture(scope="module")
def env():
    scene = SceneEnv("door-open", **SCENE)
    yield scene
    scene.close()


BOTH = (True, False)


def _play(env, film=(), **settings):
    """Observations at every request, and the outcome."""
    rollout = Rollout(env, 5, Settings(**SCENE, **settings), film)
    requests, chunk = [], None
    while (answer := rollout.advance(chunk))[0] == "observation":
        requests.append(answer[1])
        chunk = LookingPredictor().answer(answer[1])
    return requests, answer[1]


def _count_draws(env, monkeypatch):
    draws, draw = [], env._draw
    monkeypatch.setattr(env, "_draw", lambda: draws.append(env._steps) or draw())
    return draws


@pytest.mark.parametrize(
    ("settings", "steps_drawn"),
    [
        ({"chunk_size": 3, "n_action_steps": 3}, [0, 3, 6, 9]),
        ({"chunk_size": 3, "n_action_steps": 1, "ensemble_coeff": 0.01}, list(range(11))),
        ({"chunk_size": 3, "n_action_steps": 3, "n_obs_steps": 2}, [0, 2, 3, 5, 6, 8, 9]),
        ({"chunk_size": 3, "n_action_steps": 2}, [0, 2, 4, 6, 8, 10]),
        ({"chunk_size": 3, "n_action_steps": 3, "uses_images": False}, [0]),
        ({"chunk_size": 3, "n_action_steps": 2, "uses_images": False, "film": BOTH}, [0, 3, 6, 9]),
        ({"expert": True, "uses_images": False}, [0]),
    ],
)
def test_pictures_are_drawn_where_someone_looks(env, monkeypatch, settings, steps_drawn):
    draws = _count_draws(env, monkeypatch)
    _, outcome = _play(env, **settings)
    assert draws == steps_drawn
    assert (outcome["frames"] is not None) == ("film" in settings)


def test_a_history_holds_the_last_pictures_and_states_although_most_are_not_drawn(env):
    requests, _ = _play(env, chunk_size=3, n_action_steps=3, n_obs_steps=2)
    actions = np.concatenate([LookingPredictor().answer(request) for request in requests])
    everything = [env.reset(seed=5)[0]]
    env.rendering = True
    everything += [env.step(action)[0] for action in actions[:9]]
    for number, request in enumerate(requests):
        now = 3 * number
        for place, step in enumerate((max(now - 1, 0), now)):
            np.testing.assert_array_equal(request["pixels"][place], everything[step]["pixels"])
            np.testing.assert_array_equal(request["agent_pos"][place], everything[step]["agent_pos"])
        assert request["task"] == env.task_description


def test_the_simulator_gets_the_actions_from_the_asked_index_on(env):
    requests, outcome = _play(env, chunk_size=3, n_action_steps=1, execute_from=1)
    env.reset(seed=5)
    for request in requests:
        env.step(LookingPredictor().answer(request)[1])
    assert hashlib.sha256(env.privileged_state().tobytes()).hexdigest()[:16] == outcome["state_hash"]


def test_filming_changes_nothing_but_the_frames(env):
    chunks = {"chunk_size": 3, "n_action_steps": 2}
    (_, plain), (_, filmed) = _play(env, **chunks), _play(env, film=BOTH, **chunks)
    assert plain["state_hash"] == filmed["state_hash"]
    assert filmed["frames"].shape == (4, 32, 32, 3)
    # These ten steps fail; frames of an outcome of which no video is wanted stay where they are.
    assert _play(env, film=(False,), **chunks)[1]["frames"] is not None
    assert _play(env, film=(True,), **chunks)[1]["frames"] is None


def test_pictures_travel_through_shared_memory_and_each_slot_has_its_own():
    board = PictureBoard(multiprocessing.get_context("spawn"), slots=2, slot_bytes=2 * 4 * 4 * 3)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 2, 4, 4, 3)).astype(np.uint8)
    sent = [
        {"pixels.image": mine[0], "pixels.image2": mine[1][::-1], "agent_pos": np.zeros(4), "task": "open it"}
        for mine in pictures
    ]
    messages = [board.put(slot, observation) for slot, observation in enumerate(sent)]
    assert len(pickle.dumps(messages[0])) < len(pickle.dumps(sent[0]))
    for message, observation in zip(messages, sent, strict=True):
        seen = board.look(message)
        assert list(seen) == list(observation)
        np.testing.assert_array_equal(seen["pixels.image"], observation["pixels.image"])
        np.testing.assert_array_equal(seen["pixels.image2"], observation["pixels.image2"])
        assert seen["task"] == "open it"
        with pytest.raises(ValueError, match="read-only"):
            seen["pixels.image"][0] = 0
    # What does not fit is sent as it is.
    large = {"pixels": np.zeros((5, 5, 4), dtype=np.uint8)}
    assert board.put(0, large) == large


def test_a_simulator_that_was_built_ahead_changes_nothing(monkeypatch):
    manifest = make_manifest("door-open,drawer-open", 1, seed=5, observation_size=32)
    board = PictureBoard(multiprocessing.get_context("spawn"), slots=1, slot_bytes=32 * 32 * 3)
    hashes, counted, reset = [], [], SceneEnv.reset
    monkeypatch.setattr(SceneEnv, "reset", lambda *a, **k: counted.append(1) or reset(*a, **k))
    # Not at all; for another task; for this episode.
    for ahead in ((), manifest.episodes[1:], manifest.episodes[:1]):
        stage = Stage(board)
        assert stage.handle("setup", None, Settings(**SCENE, expert=True)) is None
        for episode in ahead:
            assert stage.handle("build", 0, episode) is None
        counted.clear()
        for _ in range(2):
            kind, slot, outcome = stage.handle("episode", 0, (manifest.episodes[0], ()))
            assert (kind, slot, outcome["steps"]) == ("finished", 0, 10)
            hashes.append(outcome["state_hash"])
        assert len(counted) == (1 if ahead == manifest.episodes[:1] else 2)
    assert len(set(hashes)) == 1


@pytest.mark.parametrize("quality", ["light", "standard"])
def test_scenes_in_one_process_do_not_disturb_each_others_pictures(quality):
    mine = SceneEnv("door-open", quality=quality, observation_size=48)
    alone = mine.reset(seed=3)[0]["pixels"]
    for keep_mine_current in (True, False):
        other = SceneEnv("button-press-topdown", quality=quality, observation_size=48)
        other.reset(seed=3)
        np.testing.assert_array_equal(mine.reset(seed=3)[0]["pixels"], alone)
        if not keep_mine_current:
            other.reset(seed=3)
        other.close()
        np.testing.assert_array_equal(mine.reset(seed=3)[0]["pixels"], alone)
    mine.close()


@pytest.mark.parametrize("leaves", [False, True])
def test_what_a_reset_leaves_behind_is_found(monkeypatch, leaves):
    def reset(self, seed=None, **kwargs):
        found = SceneEnv.reset(self, seed=seed, **kwargs)
        # A thousandth of a millimetre, in the episodes after the first.
        self._env.data.mocap_pos[:] += 1e-6 * leaves * (self.played > 0)
        self.played += 1
        return found

    stained = type("Stained", (SceneEnv,), {"reset": reset, "played": 0})
    monkeypatch.setattr(worker, "make_scene", lambda suite, task, protocol, **look: stained(task, **look))
    manifest = make_manifest("door-open", 3, seed=5, observation_size=32, episode_length=12)
    different = ["door-open-v3/5", "door-open-v3/6"] if leaves else []
    found = resets.compare_resets(manifest)
    assert found == {"door-open-v3": {"episodes": 3, "different": different}}


def test_a_slot_keeps_its_task_then_opens_another_then_helps():
    manifest = make_manifest("door-open,drawer-open,window-open", 3)
    queue = EpisodeQueue(manifest.episodes)
    first, second = queue.next(None), queue.next(None)
    assert (first.task, second.task) == ("door-open-v3", "drawer-open-v3")
    assert [queue.next(first.task).seed for _ in range(2)] == [50_001, 50_002]
    assert queue.next(first.task).task == "window-open-v3"
    assert queue.next(first.task).task in ("drawer-open-v3", "window-open-v3")
    rest = [queue.next("drawer-open-v3"), queue.next("window-open-v3")]
    assert all(rest)
    assert queue.next("door-open-v3") is None, "one episode left is not worth another simulator"
    last = queue.next("window-open-v3") or queue.next("drawer-open-v3")
    assert last is not None
    assert queue.next(last.task) is None


def test_slots_of_a_process_play_few_tasks_at_a_time_while_these_last():
    manifest = make_manifest("door-open,drawer-open,window-open,reach", 5)
    queue = EpisodeQueue(manifest.episodes, open_tasks=2)
    tasks = [queue.next(None, home).task for home in (0, 1) * 4]
    assert tasks == ["door-open-v3", "drawer-open-v3"] * 4
    # One episode of each is left, which its own slots will take: the next slots begin others.
    assert [queue.next(None, home).task for home in (0, 1)] == ["window-open-v3", "reach-v3"]
    few = EpisodeQueue(make_manifest("door-open,drawer-open,window-open,reach", 1).episodes, open_tasks=2)
    assert len({few.next(None, home).task for home in (0, 1, 0, 1)}) == 4


def test_a_slot_helps_first_where_its_own_process_plays_already():
    manifest = make_manifest("door-open,drawer-open,window-open", 6)
    queue = EpisodeQueue(manifest.episodes)
    homes = [0, 1, 0, 1, 0, 1]
    tasks = [queue.next(None, home).task for home in homes]
    assert tasks[:3] == ["door-open-v3", "drawer-open-v3", "window-open-v3"]
    assert tasks[3] == tasks[5] == "drawer-open-v3" and tasks[4] in ("door-open-v3", "window-open-v3")
    while queue.next("drawer-open-v3", 1).task == "drawer-open-v3":
        pass
    # Nothing left at home: it helps elsewhere, and every episode is still played once.
    rest = [episode for task in manifest.tasks if (episode := queue.next(task, 0))]
    assert rest and all(episode.task != "drawer-open-v3" for episode in rest)
