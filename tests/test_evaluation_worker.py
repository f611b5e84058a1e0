"""One episode in one process: what is drawn, what is handed over, who disturbs whom."""

import hashlib

import numpy as np
import pytest

from evaluation_helpers import LookingPredictor
from lerobot_policy_vita_vla.demos.metaworld import SceneEnv
from lerobot_policy_vita_vla.evaluation.manifest import make_manifest
from lerobot_policy_vita_vla.evaluation.pool import EpisodeQueue
from lerobot_policy_vita_vla.evaluation.worker import Rollout, Settings

SCENE = {"quality": "light", "observation_size": 32, "episode_length": 10}


@pytest.fixture(scope="module")
def env():
    scene = SceneEnv("door-open", **SCENE)
    yield scene
    scene.close()


def _play(env, film=False, **settings):
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
        ({"chunk_size": 3, "n_action_steps": 2, "uses_images": False, "film": True}, [0, 3, 6, 9]),
        ({"expert": True, "uses_images": False}, [0]),
    ],
)
def test_pictures_are_drawn_where_someone_looks(env, monkeypatch, settings, steps_drawn):
    draws = _count_draws(env, monkeypatch)
    _, outcome = _play(env, **settings)
    assert draws == steps_drawn
    assert (outcome["frames"] is not None) == settings.get("film", False)


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
    (_, plain), (_, filmed) = _play(env, **chunks), _play(env, film=True, **chunks)
    assert plain["state_hash"] == filmed["state_hash"]
    assert filmed["frames"].shape == (4, 32, 32, 3)


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
