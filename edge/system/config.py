"""The user's settings: defaults for options, from environment variables and one TOML file.

An option wins over a variable, a variable over the file. `edge config` prints the settings in effect.
Imports edge.errors, edge.system and the standard library only: the command line imports this module at its start.
"""

import os
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge.errors import ConfigError
from edge.system.paths import at_home, base_folder, home
from edge.system.text import unknown_key

VERSION = 1
"""The version of the file's form; `version` in the file, 1 if it has none."""


@dataclass(frozen=True)
class Setting:
    """A setting: its value in words, its test, the same test in JSON Schema, and the value of a text (a variable).

    `read` raises ValueError. `commands`: those that use it; None for all that have the option.
    """

    name: str
    words: str
    fits: Callable[[object], bool]
    schema: dict[str, object]
    read: Callable[[str], object]
    default: str
    commands: frozenset[str] | None = None

    @property
    def variable(self) -> str:
        return f"EDGE_{self.name.upper()}"


@dataclass(frozen=True)
class Held:
    """The value of a setting and where it comes from. `value` is None if it is not set.

    `where`: the variable, or the path of the file; empty for a default.
    """

    setting: Setting
    value: str | int | float | None
    source: Literal["variable", "file", "default"]
    where: str = ""


def _whole(least: int, most: int) -> tuple[Callable[[object], bool], dict[str, object]]:
    return (
        lambda value: type(value) is int and least <= value <= most,
        {"type": "integer", "minimum": least, "maximum": most},
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_temperature(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100


_ANSWERING = frozenset({"run", "agent", "chat"})
# Nothing that changes answers is a setting of eval, measure or sweep: figures must not depend on a user's file.
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            "model",
            "a path or the name of a model",
            _is_text,
            {"type": "string", "pattern": r"\S"},
            str,
            "the newest usable GGUF",
        ),
        Setting("threads", "a whole number from 1 to 512", *_whole(1, 512), int, "the physical cores"),
        Setting("gpu_layers", "a whole number from -1", *_whole(-1, 100_000), int, "all that fit"),
        Setting(
            "context",
            "a whole number from 256 to 16,777,216",
            *_whole(256, 1 << 24),
            int,
            "the model's, within a limit",
            frozenset({"agent", "chat", "serve", "doctor"}),
        ),
        Setting(
            "max_tokens",
            "a whole number from 1 to 16,777,216",
            *_whole(1, 1 << 24),
            int,
            "1,024",
            _ANSWERING | {"serve"},
        ),
        Setting(
            "temperature",
            "a number from 0 to 100",
            _is_temperature,
            {"type": "number", "minimum": 0, "maximum": 100},
            float,
            "0",
            _ANSWERING,
        ),
    )
}
"""Every setting by its name, in the order of `edge config`."""


def config_file() -> Path:
    """The file of settings: $EDGE_CONFIG, else config.toml in the system's folder for settings. It may not exist.

    Raises ConfigError if there is no home folder.
    """
    own = os.environ.get("EDGE_CONFIG")
    if own:
        return at_home(own, "EDGE_CONFIG")
    if sys.platform == "darwin":
        folder = home("EDGE_CONFIG") / "Library" / "Application Support"
    elif sys.platform == "win32":
        folder = base_folder("APPDATA", "AppData/Roaming", "EDGE_CONFIG")
    else:
        folder = base_folder("XDG_CONFIG_HOME", ".config", "EDGE_CONFIG")
    return folder / "edge" / "config.toml"


def settings() -> dict[str, Held]:
    """The value in effect for each setting if no option is given.

    Raises ConfigError that names the file and the key, or the variable, and what the value must be.
    """
    path = config_file()
    stored = _read(path)
    return {name: _held(setting, stored, path) for name, setting in SETTINGS.items()}


def _held(setting: Setting, stored: dict[str, object], path: Path) -> Held:
    text = os.environ.get(setting.variable, "")
    if text.strip():
        try:
            value = setting.read(text.strip())
        except ValueError:
            value = None
        if not setting.fits(value):
            raise ConfigError(f"{setting.variable}: {text[:80]!r} is not {setting.words}")
        return Held(setting, _typed(value), "variable", setting.variable)
    if setting.name in stored:
        value = stored[setting.name]
        if not setting.fits(value):
            raise ConfigError(f"{path}: {setting.name} is {_shown(value)}; it must be {setting.words}")
        return Held(setting, _typed(value), "file", str(path))
    return Held(setting, None, "default")


def _typed(value: object) -> str | int | float:
    assert isinstance(value, str | int | float)
    return value


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return str(value).lower() if isinstance(value, bool) else repr(value)[:80]


def _read(path: Path) -> dict[str, object]:
    """The content without the version; {} without a file, unless EDGE_CONFIG names it. Raises ConfigError."""
    try:
        data: dict[str, object] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        if named := os.environ.get("EDGE_CONFIG"):
            raise ConfigError(f"EDGE_CONFIG: {named}: no such file; make it, or unset EDGE_CONFIG") from None
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from None
    version = data.pop("version", VERSION)
    if type(version) is not int or version < 1:
        raise ConfigError(f"{path}: version is {_shown(version)}; it must be {VERSION}")
    if version > VERSION:
        raise ConfigError(
            f"{path}: is of version {version}, and this edge reads version {VERSION}: update edge"
        )
    if unknown := sorted(data.keys() - SETTINGS.keys()):
        raise ConfigError(f"{path}: {unknown_key(unknown[0], ('version', *SETTINGS))}")
    return data
