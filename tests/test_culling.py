"""Leaving out what a camera cannot see changes no pixel."""

from __future__ import annotations

import numpy as np
import pytest

from lerobot_policy_vita_vla.demos.gl import ensure_gl

ensure_gl()
import mujoco  # noqa: E402

from lerobot_policy_vita_vla.demos.culling import HIDDEN_GROUP, Culling  # noqa: E402

SIZE = 64
MIRROR = '<geom name="mirror" type="{shape}" pos="0 0 -.5" size=".6 .6 .5" material="polished"/>'
SCENE = """
<mujoco>
  <visual><quality offsamples="0" shadowsize="256"/></visual>
  <asset>
    <material name="polished" reflectance="1" rgba=".2 .2 .2 1"/>
    <mesh name="wedge" vertex="0 0 0  .5 0 0  0 .3 0  0 0 .8"/>
  </asset>
  <worldbody>
    <light pos="0 0 4" castshadow="{shadow}"/>
    <camera name="eye" pos="0 -1.5 1.5" xyaxes="1 0 0 0 .6 .8" fovy="{fovy}"/>
    {mirror}
    {things}
  </worldbody>
</mujoco>
"""


def scattered(rng: np.random.Generator, count: int) -> str:
    """Shapes of many sizes all around, so that some lie across the edges of any picture."""
    shapes = ("box", "sphere", "ellipsoid", "capsule", "cylinder", 'mesh" mesh="wedge')
    return "".join(
        '<geom name="thing{}" type="{}" size="{} {} {}" pos="{} {} {}" euler="{} {} {}" '
        'rgba="{} {} {} 1"/>'.format(
            number,
            shapes[number % len(shapes)],
            *rng.uniform(0.02, 0.25, 3),
            *rng.uniform(-3, 3, 3),
            *rng.uniform(0, 360, 3),
            *rng.uniform(0.3, 1, 3),
        )
        for number in range(count)
    )


def build(things: str, mirror: str = "", shadow: str = "false", fovy: float = 45):
    model = mujoco.MjModel.from_xml_string(
        SCENE.format(things=things, mirror=mirror, shadow=shadow, fovy=fovy)
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def pictures(model: mujoco.MjModel, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray, set[str]]:
    """The picture with everything, the picture with culling, and the names of geoms that were left out."""
    groups = model.geom_group.copy()
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        renderer.update_scene(data, camera="eye")
        everything = _drawn(renderer.scene)
        whole = renderer.render()
        Culling(model).update_scene(renderer.scene, data, "eye", mujoco.MjvOption())
        left = _drawn(renderer.scene)
        culled = renderer.render()
    np.testing.assert_array_equal(model.geom_group, groups)
    return whole, culled, {model.geom(geom).name for geom in everything - left}


def _drawn(scene: mujoco.MjvScene) -> set[int]:
    return {geom.objid for geom in scene.geoms[: scene.ngeom] if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mirror", ["", "box", "plane"])
def test_pictures_are_the_same_and_much_is_left_out(seed, mirror):
    rng = np.random.default_rng(seed)
    model, data = build(
        scattered(rng, 120), MIRROR.format(shape=mirror) if mirror else "", fovy=(30, 45, 75)[seed % 3]
    )
    whole, culled, hidden = pictures(model, data)
    np.testing.assert_array_equal(culled, whole)
    assert len(hidden) > 30


def test_what_only_a_mirror_shows_is_drawn():
    # Above the picture, but seen in the polished box; the other one is behind the camera.
    thing = '<geom name="{}" type="sphere" size=".3" pos="{}" rgba="1 0 0 1"/>'
    things = thing.format("above", "0 1.5 2") + thing.format("behind", "0 -4 1")
    model, data = build(things, MIRROR.format(shape="box"))
    whole, culled, hidden = pictures(model, data)
    np.testing.assert_array_equal(culled, whole)
    assert hidden == {"behind"}
    red = (whole[..., 0] > 2 * whole[..., 1].astype(int) + 20).sum()
    assert red > 20

    model, data = build(things)
    whole, culled, hidden = pictures(model, data)
    np.testing.assert_array_equal(culled, whole)
    assert hidden == {"above", "behind"}


def test_where_shadows_fall_nothing_is_left_out():
    model, data = build(scattered(np.random.default_rng(0), 40), shadow="true")
    whole, culled, hidden = pictures(model, data)
    np.testing.assert_array_equal(culled, whole)
    assert not hidden


def test_geoms_get_their_groups_back_when_a_scene_cannot_be_put_together(monkeypatch):
    model, data = build(scattered(np.random.default_rng(0), 40))
    groups, while_drawing = model.geom_group.copy(), []

    def fail(model, *_):
        while_drawing.append(model.geom_group.copy())
        raise mujoco.FatalError("out of memory")

    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        monkeypatch.setattr(mujoco, "mjv_updateScene", fail)
        with pytest.raises(mujoco.FatalError, match="out of memory"):
            Culling(model).update_scene(renderer.scene, data, "eye", mujoco.MjvOption())
    assert HIDDEN_GROUP in while_drawing[0]
    np.testing.assert_array_equal(model.geom_group, groups)


def test_geoms_that_the_options_hide_stay_hidden():
    model, data = build('<geom name="hidden" type="box" size=".3 .3 .3" group="1" rgba="1 0 0 1"/>')
    options = mujoco.MjvOption()
    options.geomgroup[1] = 0
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        Culling(model).update_scene(renderer.scene, data, "eye", options)
        assert not _drawn(renderer.scene)
