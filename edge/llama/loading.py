"""Where a model goes and what it may use: the options of loading it, as one value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Loading:
    """Options of loading a model. None means: chosen from the free memory and the lengths (edge/llama/placement.py)."""

    gpu_layers: int | None = None
    """Layers to offload; -1 is all, 0 none."""
    threads: int | None = None
    """By default the physical cores."""
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


DEFAULT_LOADING = Loading()
