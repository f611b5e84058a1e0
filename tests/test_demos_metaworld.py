import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from lerobot.envs import env_to_policy_features, make_env, make_env_config, preprocess_observation

from lerobot_policy_vita_vla.demos import gl
from lerobot_policy_vita_vla.demos.gl import gl_renderer, is_software
from lerobot_policy_vita_vla.demos.metaworld import GRIPPER_CLOSED, GRIPPER_OPEN, MetaworldEnv, SceneEnv
from lerobot_policy_vita_vla.demos.suite import resolve_tasks, task_descriptions


def run(env, seed, actions):
    env.reset(seed=seed)
    states = [env._env.data.qpos.copy()]
    for action in actions:
        env.step(action)
        states.append(env._env.data.qpos.copy())
    return np.stack(states), env.privileged_state()


@pytest.fixture(scope="module")
def door():
    env = SceneEnv("door-open", observation_size=32)
    yield env
    env.close()


@pytest.fixture(scope="module")
def random_actions():
    return np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype(np.float32)


def test_an_episode_does_not_depend_on_what_ran_before(door, random_actions):
    door.rendering = False
    first, privileged = run(door, 7, random_actions)
    run(door, 8, -random_actions)
    again, privileged_again = run(door, 7, random_actions)
    door.rendering = True
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(privileged, privileged_again)


@pytest.mark.parametrize("task", ["door-open-v3", "reach-v3"])
def test_a_seed_gives_the_same_episode_as_lerobots_own_environment(task, random_actions):
    ours, theirs = SceneEnv(task, observation_size=16), MetaworldEnv(task, obs_type="pixels_agent_pos")
    ours.rendering = False
    ours.reset(seed=5)
    # LeRobot's reset, without its picture of 0.2 s.
    theirs._ensure_env()
    theirs._env.seed(5)
    raw, _ = theirs._env.reset(seed=5)
    np.testing.assert_array_equal(ours._raw, raw)
    for action in random_actions:
        ours.step(action)
        raw, *_ = theirs._env.step(action)
        np.testing.assert_array_equal(ours._raw, raw)
    ours.close()
    theirs.close()


def test_the_standard_picture_is_lerobots_own():
    ours, theirs = (
        SceneEnv("reach", quality="standard", observation_size=480),
        MetaworldEnv("reach-v3", obs_type="pixels_agent_pos"),
    )
    mine, _ = ours.reset(seed=3)
    other, _ = theirs.reset(seed=3)
    np.testing.assert_array_equal(mine["pixels"], other["pixels"])
    ours.close()
    theirs.close()


def test_the_light_picture_hides_the_arm_and_keeps_the_scene(door):
    standard = SceneEnv("door-open", quality="standard", observation_size=32)
    full, light = standard.reset(seed=3)[0]["pixels"], door.reset(seed=3)[0]["pixels"]
    standard.close()

    def red(picture):
        r, g, b = picture.reshape(-1, 3).astype(int).T
        return int(((r > 80) & (g < 40) & (b < 40)).sum())

    assert red(full) > 50, "the Sawyer arm is red"
    assert red(light) < 10
    # The table's lower right is the same wood in the same place: same camera, same orientation.
    np.testing.assert_allclose(full[-8:, 10:].mean((0, 1)), light[-8:, 10:].mean((0, 1)), atol=25)


def test_hiding_meshes_does_not_change_the_physics(random_actions):
    states = []
    for quality in ("light", "standard"):
        env = SceneEnv("coffee-button", quality=quality, observation_size=16)
        env.rendering = False
        states.append(run(env, 11, random_actions)[0])
        env.close()
    np.testing.assert_array_equal(*states)


def test_without_rendering_the_previous_picture_is_handed_out(door, random_actions):
    first = door.reset(seed=1)[0]["pixels"]
    door.rendering = False
    for action in random_actions[:20]:
        stale = door.step(action)[0]["pixels"]
    np.testing.assert_array_equal(stale, first)
    fresh = door.observation()["pixels"]
    assert (fresh != first).any()
    # A reset never shows the previous episode.
    assert (door.reset(seed=2)[0]["pixels"] != fresh).any()
    door.rendering = True


def test_a_scene_that_is_dropped_without_close_leaves_the_others_pictures_alone(door):
    expected = door.reset(seed=3)[0]["pixels"]
    other = SceneEnv("button-press-topdown", observation_size=48)
    other.reset(seed=3)
    door.reset(seed=3)  # what is freed now would be freed in this scene's context
    del other
    gc.collect()
    np.testing.assert_array_equal(door.reset(seed=3)[0]["pixels"], expected)


def test_scenes_that_share_a_drawing_context_draw_what_one_of_their_own_draws():
    import mujoco

    mine, other = SceneEnv("door-open", observation_size=48), SceneEnv("door-open", observation_size=48)
    pictures = [(env.reset(seed=seed)[0]["pixels"], env) for env, seed in ((mine, 1), (other, 2), (mine, 3))]
    assert mine._drawing is other._drawing
    assert (pictures[0][0] != pictures[1][0]).any(), "the door stands elsewhere"
    for picture, env in pictures[1:]:
        with mujoco.Renderer(env._env.model, 48, 48) as own:
            own.update_scene(env._env.data, camera="corner2")
            own.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            own.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            np.testing.assert_array_equal(np.flip(own.render(), (0, 1)), picture)
            # What MuJoCo frees it frees in whichever context is current.
            own.render()
    mine.close()
    np.testing.assert_array_equal(other.reset(seed=2)[0]["pixels"], pictures[1][0])
    other.close()


@pytest.mark.parametrize("task", ["assembly", "basketball", "peg-unplug-side", "push-back"])
def test_a_gripper_of_two_values_does_not_cost_an_expert_its_success(task):
    env = SceneEnv(task, observation_size=16)
    env.rendering = False
    won, efforts = 0, set()
    for seed in range(20_000, 20_004):
        env.reset(seed=seed)
        for _ in range(260):
            action = env.expert_action()
            efforts.add(round(float(action[3]), 3))
            if env.step(action)[2]:
                won += 1
                break
    env.close()
    assert won >= 3
    assert len(efforts) == 2 and min(efforts) == -1


@pytest.mark.parametrize("task", ["door-open", "door-close", "button-press"])
def test_asking_the_expert_changes_nothing(task):
    env = SceneEnv(task, observation_size=16)
    env.rendering = False
    env.reset(seed=1)
    before = env.privileged_state()
    env.expert_action()
    np.testing.assert_array_equal(env.privileged_state(), before)
    env.close()


def test_success_ends_an_episode_and_the_expert_reaches_it():
    env = SceneEnv("reach", observation_size=16)
    env.rendering = False
    env.reset(seed=0)
    for _ in range(200):
        action = env.expert_action()
        assert np.abs(action).max() <= 1 and action[3] in np.float32([GRIPPER_OPEN, GRIPPER_CLOSED])
        _, _, terminated, truncated, info = env.step(action)
        assert not truncated
        if terminated:
            break
    assert terminated and info["is_success"] and info["final_info"]["is_success"]
    # The episode may go on: nothing was reset behind the caller's back.
    hand = env.privileged_state()[:3]
    env.step(np.zeros(4))
    assert np.abs(env.privileged_state()[:3] - hand).max() < 0.03
    env.close()


def test_wrong_use_is_refused(door):
    for arguments, words in (
        ({"task": "dor-open"}, "door-open-v3"),
        ({"task": "reach", "quality": "best"}, "light"),
        ({"task": "reach", "episode_length": 501}, "1..500"),
        ({"task": "reach,push"}, "one task"),
    ):
        with pytest.raises(ValueError, match=words):
            SceneEnv(**arguments)
    with pytest.raises(ValueError, match="reset"):
        SceneEnv("reach").step(np.zeros(4))
    door.reset(seed=0)
    with pytest.raises(ValueError, match="finite"):
        door.step(np.array([0, np.nan, 0, 0]))


def test_task_names_and_groups_are_resolved():
    assert resolve_tasks("door-open, metaworld-reach-v3,door-open-v3") == ["door-open-v3", "reach-v3"]
    assert len(resolve_tasks("mt50")) == len(task_descriptions()) == 50
    assert sum(len(resolve_tasks(g)) for g in ("easy", "medium", "hard", "very_hard")) == 50
    with pytest.raises(ValueError, match="at least one"):
        resolve_tasks(" , ")


def test_lerobots_make_env_builds_the_registered_type():
    config = make_env_config("vita_metaworld", task="reach,door-open", observation_size=32, episode_length=4)
    features = env_to_policy_features(config)
    assert {name: f.shape for name, f in features.items()} == {
        "action": (4,),
        "observation.state": (4,),
        "observation.image": (3, 32, 32),
    }
    envs = make_env(config, n_envs=2)
    assert list(envs) == ["reach", "door-open"]
    env = envs["reach"][0]
    assert env.call("_max_episode_steps") == (4, 4)
    assert env.call("task_description") == (task_descriptions()["reach-v3"],) * 2
    observation, _ = env.reset(seed=[1, 2], options={"lerobot_new_rollout": True})
    batch = preprocess_observation(observation)
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "observation.image": (2, 3, 32, 32),
        "observation.state": (2, 4),
    }
    ends = [env.step(np.zeros((2, 4), np.float32))[3].all() for _ in range(4)]
    assert ends == [False, False, False, True]
    for group in envs.values():
        group[0].close()


def test_the_environment_type_is_known_without_starting_a_simulator():
    code = (
        "import lerobot_policy_vita_vla.demos.env_config as e, sys; e.VitaMetaworldEnvConfig();"
        "assert not {'mujoco', 'metaworld'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_simulator_that_was_imported_too_early_is_named(tmp_path):
    # MuJoCo has chosen by then, and without a display it would fail later with a message about GLFW.
    code = f"import mujoco, runpy; runpy.run_path({gl.__file__!r})['ensure_gl']()"
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "MUJOCO_GL=" in done.stderr and "before" in done.stderr and done.returncode == 1


def test_a_back_end_whose_library_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(gl.LIBRARIES, "osmesa", ("NoSuchMesa", "libosmesa6"))
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(ValueError, match="MUJOCO_GL=osmesa.*NoSuchMesa.*apt-get install libosmesa6.*unset"):
        gl.ensure_gl()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert gl.ensure_gl() == "glfw"


def test_the_renderer_is_named():
    name, software = gl_renderer()
    assert name and software == is_software(name)
    assert is_software("llvmpipe (LLVM 15.0.6, 256 bits)") and not is_software("NVIDIA H100/PCIe/SSE2")
