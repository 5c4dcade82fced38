"""Where a model goes and what it may use: the options of loading it, as one value."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from edge.errors import EdgeError
from edge.formats.default_model import is_default
from edge.system.paths import default_adapter
from edge.system.store import local_model

MOST_SCALE = 1000.0
"""Maximum of an adapter's scale, and of its negative."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, a GGUF, that changes the model while it runs. `scale`: the factor of its change.

    Raises EdgeError for a scale that is not a number from -1000 to 1000.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not (math.isfinite(self.scale) and abs(self.scale) <= MOST_SCALE):
            raise EdgeError(
                f"{self.path}: the scale {self.scale:g} is not a number from -{MOST_SCALE:g} to {MOST_SCALE:g}"
            )

    @property
    def is_default(self) -> bool:
        """Whether it is the adapter of edge's default model."""
        return self.path == default_adapter()

    def __str__(self) -> str:
        scale = f"{self.scale:g}" if float(f"{self.scale:g}") == self.scale else repr(self.scale)
        return str(self.path) if self.scale == 1 else f"{self.path}:{scale}"


# enum llama_split_mode
SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}


@dataclass(frozen=True)
class Spread:
    """How layers are spread over several devices: llama.cpp's own options. Raises EdgeError for a value out of range.

    llama.cpp numbers the devices of RPC servers first, in their order, and the GPUs of this machine after them.
    """

    rpc: tuple[str, ...] = ()
    """RPC servers (HOST:PORT) whose devices take layers."""
    tensor_split: tuple[float, ...] = ()
    """The share of each device in the layers; by default as its free memory."""
    main_gpu: int | None = None
    """The number of the device that takes all layers with split_mode none."""
    split_mode: str | None = None
    """none: one device; layer (llama.cpp's default) or row: all devices."""

    def __post_init__(self) -> None:
        shares = self.tensor_split
        if shares and not (all(math.isfinite(one) and one >= 0 for one in shares) and sum(shares) > 0):
            raise EdgeError(
                "must be shares such as 3,1: numbers from 0, not all of them 0", option="--tensor-split"
            )
        if self.split_mode is not None and self.split_mode not in SPLIT_MODES:
            raise EdgeError(f"must be one of {', '.join(SPLIT_MODES)}", option="--split-mode")
        if self.main_gpu is not None and self.main_gpu < 0:
            raise EdgeError("must be the number of a device, from 0", option="--main-gpu")

    def identity(self) -> dict[str, str]:
        """What two runs must share so that one may continue the other; an RPC server may have moved."""
        if self == Spread():
            return {}
        shares = ",".join(format(share, "g") for share in self.tensor_split)
        return {"spread": f"{len(self.rpc)} servers, {shares or '-'}, {self.main_gpu}, {self.split_mode}"}


ONE_DEVICE = Spread()


@dataclass(frozen=True)
class States:
    """The use of prompt states on disk. `limit`: bytes of all files; None: a tenth of the free disk, at most 4 GB."""

    limit: int | None = None
    whole: bool = False
    """Write whole prompts and conversations too, not only the instructions at their beginning."""
    continues: bool = False
    """A conversation continues from its own states, as if its process had not ended. An empty cache would read the
    same tokens in other chunks, and give other last bits."""


@dataclass(frozen=True)
class Loading:
    """Options of loading a model. None means: chosen from the free memory and the lengths (edge/llama/placement.py)."""

    gpu_layers: int | None = None
    """Layers to offload; -1 is all, 0 none."""
    threads: int | None = None
    """Maximum number of threads; by default the physical cores. A busy machine gets fewer (edge/llama/crowding.py)."""
    context: int | None = None
    """Tokens of a prompt and its answer together."""
    parallel: int | None = None
    """Answers that are written at the same time."""
    batch: int | None = None
    """Tokens decoded in one batch; by default 512."""
    kv_type: str = "f16"
    """Number type of the KV cache: f16, q8_0 or q4_0."""
    flash_attention: bool | None = None
    mmap: bool = True
    """Map the file into memory instead of reading it."""
    trusted: bool = False
    """Do not try an unknown file in a child process first."""
    draft: int | None = 0
    """Maximum number of tokens that are decoded ahead where that saves time (edge/llama/drafts.py); 0: none. None: 15
    if layers are offloaded, else none."""
    adapters: tuple[Adapter, ...] = ()
    """LoRA adapters; their changes add up. In a server, each request chooses one."""
    spread: Spread = ONE_DEVICE
    """Over which devices the layers are spread, and how."""
    steady: bool = False
    """Use all threads also on a busy machine: to measure."""
    states: States | None = None
    """Prompt states on disk; None: neither read nor written."""


DEFAULT_LOADING = Loading()


def with_own_adapter(path: Path, loading: Loading, *, beside: bool = False) -> Loading:
    """The options with the adapter that belongs to a model: the default model has one.

    Adapters that are named replace it. `beside`: they do not, because each request chooses one.
    """
    if (loading.adapters and not beside) or not is_default(path):
        return loading
    own = Adapter(default_adapter())
    return replace(loading, adapters=(own, *(one for one in loading.adapters if not one.is_default)))


def parse_adapters(texts: Iterable[str]) -> tuple[Adapter, ...]:
    """The adapters that the options `--lora FILE[:SCALE]` name: files, or names of files in the model store.

    Raises EdgeError if there is no such file, if a scale is not a number in its range, or if a file is named twice.
    """
    adapters = tuple(map(_adapter, texts))
    seen: dict[str, Adapter] = {}
    for adapter in adapters:
        if seen.setdefault(os.path.realpath(adapter.path), adapter) is not adapter:
            raise EdgeError(f"{adapter.path}: is named twice; name each adapter once", option="--lora")
    return adapters


def _adapter(text: str) -> Adapter:
    path = local_model(text)
    if path is not None:
        return Adapter(path)
    name, _, tail = text.rpartition(":")
    path = local_model(name) if name else None
    if path is None:
        return Adapter(Path(text))  # reading it says that there is no such file
    try:
        return Adapter(path, float(tail))
    except ValueError:
        raise EdgeError(f"{path}: the scale {tail[:40]!r} is not a number", option="--lora") from None
    except EdgeError as error:
        raise EdgeError(str(error), option="--lora") from None
