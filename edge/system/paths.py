"""Where things are: the models that ship with edge, the user's models, the cache, recorded sessions.

Imports edge.errors and the standard library only: the command line imports this module at its start.
"""

import os
import sys
from pathlib import Path

from edge.errors import ConfigError

DEFAULT_QUANT = "Q4_K_M"
"""The quantization type where neither the user nor the model names one."""
EMBEDDED_NAME = "tiny-terminal"
"""The demonstration model, whose checkpoint edge contains."""
DEFAULT_NAME = "default"
"""The model of a command that names none; edge contains its adapter, and `edge pull default` fetches its base."""


def shipped_models() -> Path:
    """The folder with the known models' TOML files and the embedded checkpoint.

    In a wheel it is inside the package as edge/_models. In a checkout (also with `pip install -e`) it is next to
    the package as models/.
    """
    package = Path(__file__).resolve().parent.parent
    inside = package / "_models"
    return inside if inside.is_dir() else package.parent / "models"


def embedded_checkpoint() -> Path:
    """The embedded model: an ordinary Hugging Face folder."""
    return shipped_models() / EMBEDDED_NAME


def embedded_rows() -> Path:
    """The embedded model's held-out episodes, as replay rows."""
    return embedded_checkpoint() / "eval.jsonl"


def default_adapter() -> Path:
    """The LoRA adapter of the default model: a GGUF."""
    return shipped_models() / DEFAULT_NAME / "adapter.gguf"


def at_home(text: str, name: str) -> Path:
    """A path whose `~` or `~user` is replaced by the home folder.

    Raises ConfigError that begins with `name`, the variable or command of the path, if there is no home folder.
    """
    path = os.path.expanduser(text)  # unlike Path.expanduser, it leaves a `~` that it cannot replace
    if not path.startswith("~"):
        return Path(path)
    begin = path.replace(os.sep, "/").split("/")[0]
    raise ConfigError(
        f"{name}: {text}: there is no home folder for {begin}; give another path, or ./{begin} for a file of this name"
    )


def home(variable: str) -> Path:
    """The user's home folder. Raises ConfigError that names the variable that replaces a folder in it."""
    path = os.path.expanduser("~")
    if path.startswith("~"):
        raise ConfigError(f"{variable}: is not set, and this user has no home folder; set HOME or {variable}")
    return Path(path)


def base_folder(variable: str, at: str, name: str) -> Path:
    """The folder in the environment variable `variable`, else the folder `at` of the home folder.

    `name`: the variable that replaces the folder below it; a ConfigError names it.
    """
    given = os.environ.get(variable)
    return at_home(given, variable) if given else home(name) / at


def cache_folder() -> Path:
    """The user's cache folder for edge: $EDGE_CACHE, else the system's usual place. It may not exist yet.

    Raises ConfigError if there is no home folder.
    """
    own = os.environ.get("EDGE_CACHE")
    if own:
        return at_home(own, "EDGE_CACHE")
    if sys.platform == "darwin":
        return home("EDGE_CACHE") / "Library" / "Caches" / "edge"
    if sys.platform == "win32":
        return base_folder("LOCALAPPDATA", "AppData/Local", "EDGE_CACHE") / "edge" / "cache"
    return base_folder("XDG_CACHE_HOME", ".cache", "EDGE_CACHE") / "edge"


def state_folder() -> Path:
    """The user's folder for recorded sessions: $EDGE_STATE, else the system's usual place. It may not exist yet.

    Raises ConfigError if there is no home folder.
    """
    own = os.environ.get("EDGE_STATE")
    if own:
        return at_home(own, "EDGE_STATE")
    if sys.platform == "darwin":
        return home("EDGE_STATE") / "Library" / "Application Support" / "edge"
    if sys.platform == "win32":
        return base_folder("LOCALAPPDATA", "AppData/Local", "EDGE_STATE") / "edge" / "state"
    return base_folder("XDG_STATE_HOME", ".local/state", "EDGE_STATE") / "edge"
