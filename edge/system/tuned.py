"""What `edge tune` measured: a file beside the user's settings, with one entry for each model and machine."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from edge.errors import ConfigError
from edge.system.config import config_file
from edge.system.places import write_json
from edge.system.typed_json import check

VERSION = 1


class Machine(TypedDict):
    """`machine`: what the measured times depend on. An entry counts only where all of it is the same."""

    cpu: str
    """Name of the processor."""
    cores: int
    """Physical cores that the process could use."""
    devices: list[str]
    """Names and descriptions of the devices that take layers."""
    llama_cpp: str
    """Version of llama-cpp-python."""


class TunedValues(TypedDict):
    """`values`: the options that were faster than edge's own choice; null where that choice stays."""

    threads: int | None
    """--threads."""
    gpu_layers: int | None
    """--gpu-layers."""
    batch: int | None
    """--batch."""
    parallel: int | None
    """--parallel of edge serve."""


class Measured(TypedDict):
    """`measured`: one value of an option beside the value that edge had chosen until then."""

    option: str
    """The option without its dashes."""
    value: str
    """The value that was tried."""
    against: str
    """The value that it was compared with, in the same rounds."""
    seconds: float
    """Median over the rounds, of one unit of work (docs/tune.md)."""
    gain: float
    """1 - the median over the rounds of its time through the time of the other value."""
    spread: float
    """The largest minus the smallest of these ratios. A value is taken only if its gain is larger."""
    rounds: int
    """Number of rounds."""


class TunedModel(TypedDict):
    """What was measured for one model on one machine."""

    model: str
    """Path of the model file."""
    model_sha256: str
    """SHA-256 of the model file."""
    model_bytes: int
    """Its size: the hash is computed only where the size is the same."""
    machine: Machine
    """What the measured times depend on."""
    timestamp: str
    """When it was measured (UTC, ISO 8601)."""
    values: TunedValues
    """The options that were faster than edge's own choice."""
    suggested: list[str]
    """Options that are faster and change answers: edge never sets them."""
    measured: list[Measured]
    """Every value that was tried."""


class TunedFile(TypedDict):
    """The whole file."""

    version: int
    """Version of this format."""
    models: list[TunedModel]
    """The newest last."""


def tuned_file() -> Path:
    """The file: beside the file of settings, with the ending .tuned.json. It may not exist. Raises ConfigError."""
    return config_file().with_suffix(".tuned.json")


def read_tuned() -> list[TunedModel]:
    """Every entry; none without a file. Raises ConfigError for a file that cannot be read or is damaged."""
    path = tuned_file()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: is damaged: delete it, and run edge tune again") from None
    if isinstance(data, dict) and isinstance(data.get("version"), int) and data["version"] > VERSION:
        raise ConfigError(
            f"{path}: has version {data['version']}; this edge reads up to {VERSION}: update edge"
        )
    try:
        found = check(data, TunedFile, "it", ConfigError)
    except ConfigError as problem:
        raise ConfigError(
            f"{path}: edge tune did not write it ({problem}): move it away, and run edge tune again"
        ) from None
    return found["models"]


def write_tuned(models: Sequence[TunedModel]) -> None:
    """Replace the file. Raises ResultError if it cannot be written."""
    write_json(tuned_file(), {"version": VERSION, "models": list(models)})
