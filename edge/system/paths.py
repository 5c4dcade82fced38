"""Where things are: the models that ship with edge, the user's models, the cache, recorded sessions.

Imports the standard library only: the command line imports this module at its start.
"""

import os
import sys
from pathlib import Path

DEFAULT_QUANT = "Q4_K_M"
"""The quantization type where neither the user nor the model names one."""
EMBEDDED_NAME = "tiny-terminal"


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


def cache_folder() -> Path:
    """The user's cache folder for edge: $EDGE_CACHE, else the system's usual place. It may not exist yet."""
    own = os.environ.get("EDGE_CACHE")
    if own:
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edge" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge"


def state_folder() -> Path:
    """The user's folder for recorded sessions: $EDGE_STATE, else the system's usual place. It may not exist yet."""

    own = os.environ.get("EDGE_STATE")
    if own:
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edge" / "state"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edge"
