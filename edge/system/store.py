"""The user's model store: one folder of GGUFs that edge finds from every folder. Knows names and places, not formats.

A model in the store is a file, or a symbolic link to one. Its name is the name of the file without `.gguf`. The folder
holds nothing else, so any GGUF can be put into it by hand.

Imports edge.errors and the standard library only: the command line imports this module at its start.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from edge.errors import ConfigError
from edge.system.paths import at_home, base_folder, cache_folder, home

LOCAL = Path("models")
"""The folder of models of a project, in the current folder. edge reads it where it exists and never creates it."""


def store_folder() -> Path:
    """The user's model store: $EDGE_MODELS, else the system's usual place for data. It may not exist yet.

    Raises ConfigError if there is no home folder, or if the variable names no absolute path or a file.
    """
    own = os.environ.get("EDGE_MODELS")
    if own:
        folder = at_home(own, "EDGE_MODELS")
        if not folder.is_absolute():  # each folder would have another store
            raise ConfigError(f"EDGE_MODELS: {own}: is not an absolute path; give {os.path.abspath(folder)}")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"EDGE_MODELS: {own}: is a file; give a folder")
        return folder
    if sys.platform == "darwin":
        return home("EDGE_MODELS") / "Library" / "Application Support" / "edge" / "models"
    if sys.platform == "win32":
        return base_folder("LOCALAPPDATA", "AppData/Local", "EDGE_MODELS") / "edge" / "models"
    return base_folder("XDG_DATA_HOME", ".local/share", "EDGE_MODELS") / "edge" / "models"


def older_store() -> Path:
    """The place in the cache folder where edge kept models before there was a store. edge only reads it."""
    return cache_folder() / "models"


def store_files() -> list[Path]:
    """Every GGUF in the store and in its older place, usable or not, links without a target included.

    The newest first; the time of a link is that of the link. Those of one time are in the order of their paths.
    """
    return _newest([*_ggufs(store_folder()), *_ggufs(older_store())])


def local_files() -> list[Path]:
    """Every GGUF in ./models, usable or not, in the order of `store_files`."""
    return _newest(_ggufs(LOCAL))


def model_name(path: Path) -> str:
    """The name of a model in the store: the name of its file without `.gguf`."""
    return path.name.removesuffix(".gguf")


def named_file(name: str) -> Path | None:
    """The GGUF called `name` in ./models, in the store or in its older place; with or without `.gguf`.

    It may be unusable. An exact name wins over one of another case. None if there is no such file.
    """
    wanted = name.removesuffix(".gguf")
    files = [*_ggufs(LOCAL), *_ggufs(store_folder()), *_ggufs(older_store())]
    exact = [path for path in files if model_name(path) == wanted]
    similar = [path for path in files if model_name(path).lower() == wanted.lower()]
    return next(iter(exact or similar), None)


def local_model(text: str, *, relative: bool = True) -> Path | None:
    """The file that `text` names on this machine: an existing path, else a name in ./models or the store; or None.

    `relative`: a path may begin at the current folder. `~` is the home folder.
    """
    try:
        path = Path(os.path.expanduser(text))
        if (relative or path.is_absolute()) and path.exists():
            return path
    except (OSError, ValueError):  # too long, a NUL
        pass
    return named_file(text)


def _ggufs(folder: Path) -> list[Path]:
    """The GGUFs of a folder, in the order of their names; none if it cannot be read."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".gguf") and name[0] != ".")
    except OSError:
        return []
    return [folder / name for name in names if not (folder / name).is_dir()]


def _newest(files: Iterable[Path]) -> list[Path]:
    def key(path: Path) -> tuple[int, Path]:
        try:
            return -path.lstat().st_mtime_ns, path
        except OSError:  # removed by another process since
            return 0, path

    return sorted(files, key=key)
