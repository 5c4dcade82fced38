"""Where things lie: what ships with edge, the user's models, the cache.

Standard library only: the command line imports this at its start.
"""

import os
import sys
from pathlib import Path

EMBEDDED_NAME = "tiny-terminal"


def shipped_models() -> Path:
    """The folder with the known models' TOML files and the embedded checkpoint.

    A wheel carries it inside the package as edge/_models; a checkout (also one installed with `pip install
    -e`) has it next to the package as models/.
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
    """The user's cache folder for edge: $EDGE_CACHE, else the system's usual place. Not created here."""
    own = os.environ.get("EDGE_CACHE")
    if own:
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edge" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge"


def model_folder() -> Path:
    """The folder for converted models: ./models, else (no right to write) the cache's. Not created here."""
    here = Path("models")
    place = here if here.exists() else Path()
    return here if place.is_dir() and os.access(place, os.W_OK | os.X_OK) else cache_folder() / "models"


def converted_models() -> list[Path]:
    """Every GGUF in ./models and in the cache folder's models, the newest first, by name where they are as old."""
    folders = (Path("models"), cache_folder() / "models")
    files = [path for folder in folders for path in folder.glob("*.gguf") if path.is_file()]
    return sorted(files, key=lambda path: (-path.stat().st_mtime_ns, path))


def state_folder() -> Path:
    """The user's folder for recorded sessions: $EDGE_STATE, else the system's usual place. Not created here."""
    own = os.environ.get("EDGE_STATE")
    if own:
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edge" / "state"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edge"
