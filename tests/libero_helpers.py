"""A stand-in for the package hf-libero, for tests without it; and skipping those that need the real one."""

import sys

import pytest

OBJECT = "pick_up_the_milk_and_place_it_in_the_basket"
LONG = "LIVING_ROOM_SCENE10_put_both_pots_down"

# What the real package does when it is imported: it asks, unless its config.yaml is there.
ASKS = """
import os
folder = os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero"))
if not os.path.exists(os.path.join(folder, "config.yaml")):
    input("Do you want to specify a custom path for the dataset folder? (Y/N): ")
_assets_path_cache = None
"""


@pytest.fixture
def libero_package(tmp_path, monkeypatch):
    """A stand-in for hf-libero, a home of its own, and no variables of the machine's."""
    # Here, because conftest.py reads this file before anything heavy may be imported.
    from lerobot_policy_vita_vla.demos import libero_install as install
    from lerobot_policy_vita_vla.demos import libero_suite as suite

    root = tmp_path / "site" / "libero"
    (root / "libero" / "benchmark").mkdir(parents=True)
    (root / "libero" / "bddl_files").mkdir()
    (root / "libero" / "init_files").mkdir()
    (root / "__init__.py").write_text("")
    (root / "libero" / "__init__.py").write_text(ASKS)
    names = {name: [f"task {i}".replace(" ", "_") + name for i in range(10)] for name in suite.SUITES}
    names["libero_object"][3], names["libero_10"][9] = OBJECT, LONG
    (root / "libero" / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = {names!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("LIBERO_CONFIG_PATH", "XDG_CACHE_HOME", install.ASSETS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
        # So that what the code under test sets is taken back as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "libero"}
    suite.task_names.cache_clear()
    suite._own_names.cache_clear()
    yield root / "libero"
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        del sys.modules[name]
    sys.modules.update(kept)
    suite.task_names.cache_clear()
    suite._own_names.cache_clear()


def require_libero(module: bool = False) -> None:
    """Skip a test that needs the real package and its assets where they are not.

    Args:
        module: Called while a module is imported: all of its tests are skipped.
    """
    from lerobot_policy_vita_vla.demos.libero_install import find_assets

    pytest.importorskip("libero", reason="the extra `libero` is not installed: docs/libero.md")
    try:
        find_assets()
    except ValueError as error:
        pytest.skip(str(error), allow_module_level=module)
