"""LIBERO without LIBERO: names, protocols, the question on the terminal, missing assets. No simulator."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lerobot_policy_vita_vla.conversion import orient, orientation_between
from lerobot_policy_vita_vla.demos import libero_install as install
from lerobot_policy_vita_vla.demos import libero_states as states
from lerobot_policy_vita_vla.demos import libero_suite as suite
from libero_helpers import LONG, OBJECT


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


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ("object", "libero_object_0"),
        ("LIBERO_OBJECT", "libero_object_0"),
        ("90", "libero_90_0"),
        ("Goal_3", "libero_goal_3"),
        (OBJECT, "libero_object_3"),
        (LONG.lower(), "libero_10_9"),
    ],
)
def test_the_option_suite_takes_liberos_names_in_any_form(libero_package, given, task):
    assert suite.suite_option(f" {given},").split(",")[0] == task


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("door-open", r"for LIBERO, which has no 'door-open'\. .*--tasks"),
        ("objekt", "did you mean object,"),
        ("object_10", "tasks 0 to 9"),
        ("", "name at least one"),
    ],
)
def test_the_option_suite_takes_nothing_else(libero_package, given, said):
    with pytest.raises(ValueError, match=said):
        suite.suite_option(given)


def test_without_the_package_the_message_is_the_command(monkeypatch):
    monkeypatch.setattr(suite, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install .*\[libero\]"):
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


def test_the_fork_server_passes_over_a_simulator_that_is_not_ready(tmp_path):
    """It would print the traceback of an error that the command explains itself."""
    script = (
        "import multiprocessing, os\n"
        "from vita_vla_cli.simulators import start_importing\n"
        "if __name__ == '__main__':\n"
        "    start_importing('libero')\n"
        "    child = multiprocessing.get_context('forkserver').Process(target=os.getpid)\n"
        "    child.start(); child.join(); raise SystemExit(child.exitcode)\n"
    )
    (tmp_path / "start.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "start.py")],
        capture_output=True,
        text=True,
        env={**os.environ, install.ASSETS_VARIABLE: "/nowhere"},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_mends_the_folder_that_was_chosen(libero_package, assets, monkeypatch):
    def told():
        with pytest.raises(ValueError, match="hf download") as error:
            install.find_assets()
        return str(error.value)

    (assets / "scenes").rmdir()
    assert f"--local-dir {assets}   or" in told() and f"unset {install.ASSETS_VARIABLE}" in told()
    monkeypatch.setenv(install.ASSETS_VARIABLE, "/no where")
    assert "--local-dir '/no where'   or" in told()
    # An incomplete folder in the package hides no complete one, and what is downloaded is found.
    monkeypatch.delenv(install.ASSETS_VARIABLE)
    (libero_package / "assets" / "scenes").mkdir(parents=True)
    assert f"--local-dir {libero_package / 'assets'}" in told()
    (install.download_folder() / "scenes").mkdir(parents=True)
    assert told().endswith(f"--local-dir {install.download_folder()}")
    for part in install.PARTS:
        (install.download_folder() / part).mkdir(parents=True, exist_ok=True)
    assert install.find_assets() == install.download_folder()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not there"),
        (b"", "is damaged"),
        (b"hello\n", "is damaged"),
        (np.zeros((2, 3)), None),
        (np.full((2, 3), np.nan), "not finite, first in state 0"),
        (np.zeros(3), r"shape \(3,\)"),
        ({"states": 1}, "no array of numbers but dict"),
        (np.zeros((2, 3), object), "not loaded"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_damaged_initial_states_name_the_file_and_the_command(libero_package, tmp_path, content, said):
    def told(file):
        with pytest.raises(ValueError, match=said) as error:
            states.check_states(file)
        return str(error.value)

    file, elsewhere = libero_package / "init_files" / "x.pruned_init", tmp_path / "x.pruned_init"
    for path in (file, elsewhere):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
    if said is None:
        states.check_states(file)
        cut = file.read_bytes()
        file.write_bytes(cut[: len(cut) // 2])
        said = "is damaged"
    assert str(file) in told(file) and told(file).endswith(suite.REINSTALL)
    if content is None:
        assert told(elsewhere).endswith(f"rm {install.config_file()}")


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
