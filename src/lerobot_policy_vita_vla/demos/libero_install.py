"""Making LIBERO importable without questions, and finding its assets.

Importing `libero` asks on the terminal where to put data sets unless its config.yaml exists, so that is
written first. Assets (meshes and textures) are looked for in ``VITA_VLA_LIBERO_ASSETS``; where that is not
set, in the installed package and in the folder where LeRobot's LIBERO downloads them: the first that is
complete. Nothing is downloaded here: the command that does is part of the message.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from lerobot_policy_vita_vla.demos.gl import NotReadyError
from lerobot_policy_vita_vla.demos.libero_suite import package_folder

ASSETS_VARIABLE = "VITA_VLA_LIBERO_ASSETS"
PARTS = (
    "articulated_objects",
    "scenes",
    "stable_hope_objects",
    "stable_scanned_objects",
    "turbosquid_objects",
)
MOST_NAMED = 10
"""Missing files that an error names."""


def download_folder() -> Path:
    """Where hf-libero, and so LeRobot, keeps downloaded assets."""
    return Path.home() / ".cache" / "libero" / "assets"


def download_command(folder: Path) -> str:
    """What fetches the assets from the hub into a folder."""
    return f"hf download lerobot/libero-assets --repo-type dataset --local-dir {shlex.quote(str(folder))}"


def cache_folder() -> Path:
    """Our own cache for LIBERO: its config.yaml and thinned-out meshes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vita_vla" / "libero"


def config_file() -> Path:
    """LIBERO's config.yaml: where its parts are."""
    return Path(os.environ.get("LIBERO_CONFIG_PATH") or Path.home() / ".libero") / "config.yaml"


def check_ready() -> Path:
    """Make sure that ``import libero.libero`` will neither ask nor fail, without importing anything.

    Returns:
        The folder of the assets.

    Raises:
        NotReadyError: If LIBERO is not installed, its configuration points nowhere, or assets are missing;
            says which, and the command.
    """
    package, assets = package_folder(), find_assets()
    _write_config(package)
    return assets


def prepare() -> Path:
    """`check_ready`, then import LIBERO and tell it where the assets are."""
    package, assets = package_folder(), check_ready()
    if not os.access(package.parent, os.W_OK):
        # robosuite's numba functions would fail to cache beside their source.
        os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder() / "numba"))
    logging.getLogger("robosuite_logs").addFilter(_is_no_advice)
    import libero.libero

    # The variable in which hf-libero remembers its answer; without it, it would download on its own.
    libero.libero._assets_path_cache = str(assets)
    return assets


def find_assets() -> Path:
    """The assets' folder.

    Raises:
        NotReadyError: If there is none, or parts of it are missing.
    """
    named = os.environ.get(ASSETS_VARIABLE)
    places = [Path(named)] if named else [package_folder() / "assets", download_folder()]
    for folder in places:
        if folder.is_dir() and not _missing_parts(folder):
            return folder
    for folder in reversed(places):  # once it is complete, the last one is found whatever the first one holds
        if folder.is_dir():
            raise NotReadyError(_incomplete(folder, _missing_parts(folder)))
    if named:
        raise NotReadyError(
            f"LIBERO's assets are not there: {ASSETS_VARIABLE}={named} is no folder. Download them there: "
            f"{download_command(places[-1])}{_or_unset(places[-1])}"
        )
    looked = ", ".join(str(place) for place in places)
    raise NotReadyError(
        f"LIBERO's assets are not there (looked in {looked}). Download them once: "
        f"{download_command(places[-1])}   or name a folder: export {ASSETS_VARIABLE}=/path/to/assets"
    )


def missing_files(folder: Path) -> list[str]:
    """Files that the assets' own XML files refer to and that are not there, relative to the folder."""
    missing = {}
    for xml in sorted(folder.rglob("*.xml")):
        for reference in _references(xml.read_text()):
            path = Path(os.path.normpath(xml.parent / reference))
            if not path.is_file():
                missing[os.path.relpath(path, folder)] = None
    return list(missing)


def explain_failure(error: Exception, folder: Path) -> ValueError | None:
    """What to tell a user whose scene could not be built because files are missing; None if that is not why.

    Args:
        error: What building the scene raised.
        folder: The assets' folder.
    """
    text = str(error)
    named = getattr(error, "filename", None)
    opens = re.search(r"[Ee]rror opening file '([^']+)'|could not open file '?([^'\n]+)", text)
    if opens is not None:
        named = next(group for group in opens.groups() if group)
    if named is None:
        return None
    try:
        first = os.path.relpath(os.path.realpath(named), os.path.realpath(folder))
    except ValueError:
        first = str(named)
    return ValueError(_incomplete(folder, list(dict.fromkeys([first, *missing_files(folder)]))))


def _incomplete(folder: Path, missing: list[str]) -> str:
    named = ", ".join(missing[:MOST_NAMED])
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    return (
        f"LIBERO's assets in {folder} are incomplete; missing: {named}{more}. "
        f"Download them again, which takes only what is missing: {download_command(folder)}"
        f"{_or_unset(folder)}"
    )


def _missing_parts(folder: Path) -> list[str]:
    return [f"{part}/" for part in PARTS if not (folder / part).is_dir()]


def _or_unset(folder: Path) -> str:
    # Whoever cannot write there, or named it by mistake.
    named = os.environ.get(ASSETS_VARIABLE)
    if not named or Path(named) != folder:
        return ""
    return f"   or name no folder: unset {ASSETS_VARIABLE}   (then {download_folder()} is looked at)"


def _references(xml: str) -> Iterator[str]:
    without_comments = re.sub(r"<!--.*?-->", "", xml, flags=re.DOTALL)
    for tag in re.findall(r"<(?:mesh|texture)\b[^>]*>", without_comments):
        yield from re.findall(r'\bfile="([^"]+)"', tag)


def _is_no_advice(record: logging.LogRecord) -> bool:
    # Three lines per process that a file is missing which nobody needs; robosuite's other warnings stay.
    return "macro" not in record.getMessage()


def _write_config(package: Path) -> None:
    import yaml

    if (file := config_file()).is_file():
        paths = yaml.safe_load(file.read_text()) or {}
        needed = ("bddl_files", "init_states")
        if wrong := [key for key in needed if not paths.get(key) or not Path(paths[key]).is_dir()]:
            raise NotReadyError(
                f"{file} says where LIBERO's files are, but its {' and '.join(wrong)} do not exist: it is of "
                f"another installation. Delete it: rm {file}"
            )
        return
    folder = cache_folder() / "config"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": cache_folder() / "datasets",
        "assets": package / "assets",
    }
    unfinished = folder / f".config.{os.getpid()}"
    unfinished.write_text(yaml.safe_dump({key: str(path) for key, path in paths.items()}))
    os.replace(unfinished, folder / "config.yaml")
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
