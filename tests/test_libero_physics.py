"""Skipping what robosuite computes again changes no state, and is not done where something has changed."""

from __future__ import annotations

import types

import mujoco
import numpy as np
import pytest

from lerobot_policy_vita_vla.demos.libero_physics import SharedStages
from libero_helpers import require_libero

PILE = """
<mujoco>
  <option integrator="{integrator}" cone="elliptic"/>
  <worldbody>
    <geom type="plane" size="2 2 .1"/>
    <body pos="0 0 .3">
      <joint name="turn" type="hinge" axis="0 0 1" damping=".1"/>
      <geom type="capsule" fromto="0 0 0 .5 0 -.2" size=".04"/>
    </body>
    {boxes}
  </worldbody>
  <actuator><motor joint="turn" gear="3"/></actuator>
</mujoco>
"""
BOXES = "".join(
    f'<body pos="{0.3 + 0.02 * i} {0.05 * i} {0.1 + 0.12 * i}"><freejoint/>'
    '<geom type="box" size=".05 .06 .04"/></body>'
    for i in range(4)
)


class Sim:
    """The part of robosuite's simulator that is used."""

    def __init__(self, integrator: str):
        model = mujoco.MjModel.from_xml_string(PILE.format(boxes=BOXES, integrator=integrator))
        self.model = types.SimpleNamespace(_model=model)
        self.data = types.SimpleNamespace(_data=mujoco.MjData(model))

    def forward(self):
        mujoco.mj_forward(self.model._model, self.data._data)

    def step(self):
        mujoco.mj_step(self.model._model, self.data._data)


class Env:
    """robosuite's loop: forward dynamics before the controller and in it, then a step."""

    def __init__(self, sim: Sim, meddles: bool = False):
        self.sim, self.meddles, self.data = sim, meddles, sim.data._data
        self.seen: list[np.ndarray] = []

    def step(self, action):
        for substep in range(5):
            self.sim.forward()
            if self.meddles and substep == 2:
                self.data.qpos[1] += 0.01  # a box, in the way of the others
            self.sim.forward()
            # A controller reads what forward dynamics has left there.
            self.data.ctrl[:] = action - 0.1 * self.data.qfrc_bias[:1]
            if self.meddles and substep == 3:
                self.data.qvel[0] += 0.5
            self.sim.step()
            self.seen.append(
                np.concatenate([self.data.qpos, self.data.qvel, self.data.qacc, self.data.qfrc_bias])
            )
        return len(self.seen)


def play(shares: bool, integrator: str, meddles: bool = False) -> np.ndarray:
    env = Env(Sim(integrator), meddles)
    stages = SharedStages(env.sim)
    contacts = 0
    for action in np.random.default_rng(0).uniform(-1, 1, 60):
        assert (stages.step(env, action) if shares else env.step(action)) == len(env.seen)
        contacts += env.data.ncon
    assert contacts > 300, "nothing touches anything"
    return np.array(env.seen)


@pytest.mark.parametrize("integrator", ["Euler", "implicitfast", "RK4"])
@pytest.mark.parametrize("meddles", [False, True])
def test_states_are_the_same_bit_by_bit(integrator, meddles):
    np.testing.assert_array_equal(play(True, integrator, meddles), play(False, integrator, meddles))


def test_only_repeated_stages_are_skipped_and_only_inside_of_a_step(monkeypatch):
    calls = []
    for name in ("mj_forward", "mj_forwardSkip", "mj_step", "mj_step2"):
        real = getattr(mujoco, name)
        monkeypatch.setattr(mujoco, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    env = Env(Sim("Euler"))
    stages = SharedStages(env.sim)
    stages.step(env, 0.5)
    assert calls == ["mj_forward", "mj_forwardSkip", "mj_step2"] * 5
    calls.clear()
    env.step(0.5)
    assert calls == ["mj_forward", "mj_forward", "mj_step"] * 5
    calls.clear()
    stages.step(Env(env.sim, meddles=True), 0.5)
    assert calls[6:12] == ["mj_forward", "mj_forward", "mj_step2", "mj_forward", "mj_forwardSkip", "mj_step"]
    monkeypatch.setattr(env, "step", lambda action: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stages.step(env, 0.5)
    assert "step" not in vars(env.sim) and "forward" not in vars(env.sim)


def test_an_episode_of_libero_is_the_same_bit_by_bit():
    require_libero()
    from lerobot_policy_vita_vla.demos.libero import LiberoScene

    scene = LiberoScene("libero_object_0", quality="light", observation_size=32)
    episodes = []
    for usable in (True, False):
        scene.rendering = True
        scene.reset(seed=0)
        scene.rendering = False
        scene._physics._usable = usable
        states = []
        for _ in range(60):  # as far as the grasp
            scene.step(scene.expert_action())
            states.append(np.concatenate([scene.privileged_state(), scene.state()]))
        episodes.append((np.array(states), scene.observation()))
    scene.close()
    np.testing.assert_array_equal(episodes[0][0], episodes[1][0])
    for name, seen in episodes[0][1].items():
        np.testing.assert_array_equal(seen, episodes[1][1][name], err_msg=name)
