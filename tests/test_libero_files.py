"""LIBERO without LIBERO: names, protocols, the question on the terminal, missing assets. No simulator."""

from pathlib import Path

import pytest

from lerobot_policy_vita_vla.conversion import orient, orientation_between
from lerobot_policy_vita_vla.demos import libero_install as install
from lerobot_policy_vita_vla.demos import libero_suite as suite
from libero_helpers import OBJECT


@pytest.fixture
def assets(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "assets"
    for part in install.PARTS:
        (folder / part).mkdir(parents=True)
    monkeypatch.setenv(install.ASSETS_VARIABLE, str(folder))
    return folder


def test_names_of_tasks(libero_package):
    assert suite.resolve_libero_tasks("libero_10_2,libero_object") == [
        "libero_10_2",
        *(f"libero_object_{i}" for i in range(10)),
    ]
    assert suite.resolve_libero_tasks(OBJECT) == ["libero_object_3"]
    assert suite.locate("libero_10_2") == ("libero_10", 2)
    assert suite.instruction("libero_object_3") == "pick up the milk and place it in the basket"
    assert suite.instruction("libero_10_9") == "put both pots down"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("libero_objekt", "did you mean libero_object"),
        (OBJECT.replace("milk", "mlk"), OBJECT),
        ("libero_object_10", "tasks 0 to 9"),
        ("", "name at least one"),
    ],
)
def test_names_that_do_not_exist(libero_package, word, said):
    with pytest.raises(ValueError, match=said):
        suite.resolve_libero_tasks(word)


def test_without_the_package_the_message_is_the_command(monkeypatch):
    monkeypatch.setattr(suite, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lerobot_policy_vita_vla\[libero\]"):
        suite.package_folder()


def test_nothing_is_asked_on_the_terminal(libero_package, assets, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("LIBERO asked"))
    assert install.prepare() == assets
    import libero.libero as imported

    assert imported._assets_path_cache == str(assets)
    config = install.cache_folder() / "config" / "config.yaml"
    assert str(libero_package / "bddl_files") in config.read_text()
    assert not (Path.home() / ".libero").exists()


def test_a_configuration_of_another_installation_is_named(libero_package, assets):
    file = Path.home() / ".libero" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"bddl_files: {libero_package / 'bddl_files'}\ninit_states: /gone\n")
    with pytest.raises(ValueError, match=rf"init_states.*rm {file}"):
        install.prepare()


def test_missing_assets_name_the_places_and_the_command(libero_package):
    with pytest.raises(ValueError, match="hf download lerobot/libero-assets") as told:
        install.find_assets()
    for place in (libero_package / "assets", install.download_folder()):
        assert str(place) in str(told.value)


def test_a_named_folder_is_not_replaced_by_another(libero_package, monkeypatch):
    install.download_folder().mkdir(parents=True)
    monkeypatch.setenv(install.ASSETS_VARIABLE, "/nowhere")
    with pytest.raises(ValueError, match="/nowhere"):
        install.find_assets()


def test_partial_assets_name_the_files(libero_package, assets):
    (assets / "scenes").rmdir()
    with pytest.raises(ValueError, match="missing: scenes/"):
        install.find_assets()
    bowl = assets / "stable_scanned_objects" / "bowl"
    bowl.mkdir()
    (bowl / "there.png").touch()
    (bowl / "bowl.xml").write_text(
        '<asset><mesh name="b" file="visual/bowl.msh"/><texture file="there.png"/>'
        '<!-- <mesh file="old.msh"/> --></asset>'
    )
    assert install.missing_files(assets) == ["stable_scanned_objects/bowl/visual/bowl.msh"]
    failure = ValueError(f"Error: Error opening file '{bowl / 'visual' / 'bowl.msh'}'")
    told = str(install.explain_failure(failure, assets))
    assert told.count("bowl/visual/bowl.msh") == 1 and "hf download" in told
    gone = FileNotFoundError(2, "No such file", str(assets / "scenes" / "table.xml"))
    assert "scenes/table.xml" in str(install.explain_failure(gone, assets))
    assert install.explain_failure(ValueError("something else"), assets) is None


def test_protocols_are_those_of_the_published_evaluations():
    rows = {
        name: (p.image_size, p.settle_steps, p.settle_gripper, p.refresh, p.env_seed, p.episodes_per_task)
        for name, p in suite.PROTOCOLS.items()
    }
    assert rows == {
        "lerobot": (256, 10, -1.0, True, 0, 50),
        "openvla": (256, 10, -1.0, True, 0, 50),
        "seer": (128, 5, 0.0, False, 42, 20),
        "seer-training": (128, 5, 0.0, False, 42, 20),  # as seer, but for the state
        "vita-paper": (128, 5, 0.0, False, 42, 50),
    }
    steps = {name: [p.max_steps.get(s) for s in suite.SUITES[:4]] for name, p in suite.PROTOCOLS.items()}
    assert steps == {
        "lerobot": [280, 280, 300, 520],
        "openvla": [220, 280, 300, 520],
        "seer": [None, None, None, 600],
        "seer-training": [None, None, None, 600],
        "vita-paper": [600] * 4,
    }


def test_a_protocol_that_does_not_exist_or_does_not_fit():
    with pytest.raises(ValueError, match="did you mean openvla"):
        suite.find_protocol("openvl")
    with pytest.raises(ValueError, match="evaluated only libero_10"):
        suite.find_protocol("seer").steps("libero_goal")


def test_lerobots_pictures_are_the_raw_ones_turned_around():
    import numpy as np

    raw = np.arange(4 * 4 * 3).reshape(4, 4, 3)
    turned = orient(raw, suite.PROTOCOLS["lerobot"].conventions().image_orientation)
    np.testing.assert_array_equal(turned, raw[::-1, ::-1])
    back = orientation_between("rotated_180", suite.PROTOCOLS["seer"].conventions().image_orientation)
    np.testing.assert_array_equal(orient(turned, back), raw)
