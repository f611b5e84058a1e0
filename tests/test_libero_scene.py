"""LIBERO's scenes: episodes depend on nothing but themselves, pictures are LeRobot's own, physics untouched.

Needs the extra `libero` and the assets (docs/libero.md); without them it is skipped and says so.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lerobot_policy_vita_vla.demos import libero_install, libero_states
from libero_helpers import require_libero

require_libero(module=True)

from lerobot_policy_vita_vla.demos import libero  # noqa: E402
from lerobot_policy_vita_vla.demos.libero import LiberoScene  # noqa: E402

TASK = "libero_object_0"
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (4, 7))


@pytest.fixture(scope="module")
def light():
    scene = LiberoScene(TASK, quality="light", observation_size=96)
    yield scene
    scene.close()


class Code:
    """Leaves a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def run(scene, seed=3):
    scene.reset(seed=seed)
    for action in ACTIONS:
        scene.step(action)
    return scene.privileged_state().copy()


def test_an_episode_does_not_depend_on_earlier_ones_or_on_rendering(light):
    light.rendering = True
    first = run(light)
    run(light, seed=1007)
    light.rendering = False
    np.testing.assert_array_equal(run(light), first)


def test_state_physics_and_pictures_are_lerobots_own(light):
    from lerobot.envs.libero import LiberoEnv
    from lerobot.processor.env_processor import LiberoProcessorStep
    from libero.libero import benchmark

    suite = benchmark.get_benchmark_dict()["libero_object"]()
    theirs = LiberoEnv(
        suite,
        0,
        "libero_object",
        obs_type="pixels_agent_pos",
        observation_width=96,
        observation_height=96,
        episode_index=3,
    )
    ours = LiberoScene(TASK, quality="standard", observation_size=96)
    try:
        theirs.reset(seed=0)
        for action in ACTIONS:
            seen, *_ = theirs.step(action)
        state = run(ours)
        np.testing.assert_array_equal(state, theirs._env.get_sim_state())
        np.testing.assert_array_equal(state, run(light))  # thinner meshes change nothing
        observation = ours.observation()
        for name in ("image", "image2"):
            np.testing.assert_array_equal(
                observation[f"pixels.{name}"], seen["pixels"][name][::-1, ::-1], err_msg=name
            )
        robot = seen["robot_state"]
        angle = LiberoProcessorStep()._quat2axisangle(torch.as_tensor(robot["eef"]["quat"])[None])[0]
        expected = np.concatenate([robot["eef"]["pos"], angle.numpy(), robot["gripper"]["qpos"]])
        np.testing.assert_allclose(observation["agent_pos"], expected, atol=1e-6)
        light.rendering = True
        drawn = light.observation()["pixels.image"]
        difference = np.abs(drawn.astype(int) - observation["pixels.image"]).mean()
        assert 0 < difference < 8, "light is not standard, and shows the same scene"
        # Two scenes in one process, and a third renderer of robosuite's own: each still draws its own.
        light._stale = True
        np.testing.assert_array_equal(light.observation()["pixels.image"], drawn)
    finally:
        ours.close()
        theirs.close()


def test_protocols_differ_as_they_say(light):
    seer = LiberoScene(TASK, protocol="vita-paper", observation_size=96)
    try:
        observation, _ = seer.reset(seed=3)
        unsettled = observation["agent_pos"].copy()
        picture, upright = observation["pixels.image"], seer.render()
        np.testing.assert_array_equal(upright, picture[::-1])
        assert seer._max_episode_steps == 600
        lerobot, _ = light.reset(seed=3)
        # The hand does not move while it settles, so only how its orientation is written differs.
        assert np.abs(lerobot["agent_pos"][3:6] - unsettled[3:6]).max() > 0.01
    finally:
        seer.close()


@pytest.mark.parametrize("seed", [50, 999, -1])
def test_seeds_that_mean_nothing(light, seed):
    with pytest.raises(ValueError, match=r"0\.\.49.*1000"):
        light.reset(seed=seed)


def test_initial_states_of_another_version():
    scene = LiberoScene(TASK)
    scene._init_states = scene._init_states[:, :-3]
    with pytest.raises(
        ValueError, match=r"\.pruned_init has states of 107 numbers.*another version.*reinstall"
    ):
        scene.reset(seed=0)


def test_every_official_file_of_initial_states_passes_and_code_in_one_is_not_run(tmp_path, monkeypatch):
    for file in (libero_install.package_folder() / "init_files").rglob("*.pruned_init"):
        libero_states.check_states(file)
    ran = tmp_path / "ran"
    torch.save(Code(ran), tmp_path / "states")
    monkeypatch.setattr(libero, "states_file", lambda task: tmp_path / "states")
    with pytest.raises(ValueError, match="states names .*: it could run code, so it was not loaded"):
        LiberoScene(TASK)
    assert not ran.exists()


def test_an_error_while_resetting_is_not_swallowed(light, monkeypatch):
    def broken():
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(light._env.env, "reset", broken)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        light.reset(seed=0)


def test_missing_assets_are_named_when_a_scene_is_built(tmp_path, monkeypatch):
    import libero.libero as package

    partial = tmp_path / "assets"
    for part in libero_install.PARTS:
        (partial / part).mkdir(parents=True)
    monkeypatch.setattr(libero, "ASSETS", partial)
    monkeypatch.setattr(package, "_assets_path_cache", str(partial))
    with pytest.raises(ValueError, match="hf download lerobot/libero-assets"):
        LiberoScene(TASK).reset(seed=0)


ALONE = """
import sys
import numpy as np
from lerobot_policy_vita_vla.demos.libero import LiberoScene

scene = LiberoScene(sys.argv[1], quality="light", observation_size=96)
scene.reset(seed=3)
seen, *_ = scene.step(np.zeros(7))
np.savez(sys.argv[2], **{key: seen[key] for key in ("pixels.image", "pixels.image2")})
"""


def test_two_tasks_in_one_process_draw_what_each_draws_alone(light, tmp_path):
    other = LiberoScene("libero_spatial_4", quality="light", observation_size=96)
    try:
        light.rendering = True
        for scene in (light, other, light):
            scene.reset(seed=3)
        together = {TASK: light.step(np.zeros(7))[0], "libero_spatial_4": other.step(np.zeros(7))[0]}
    finally:
        other.close()
    for task, seen in together.items():
        file = tmp_path / f"{task}.npz"
        subprocess.run([sys.executable, "-c", ALONE, task, file], check=True, capture_output=True)
        for key, picture in np.load(file).items():
            np.testing.assert_array_equal(seen[key], picture, err_msg=f"{task} {key}")
