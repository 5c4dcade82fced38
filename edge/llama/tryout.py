"""A model file that edge knows nothing of, tried in a process of its own: does llama.cpp end the process over it?

Files that `edge convert` wrote carry checksums (edge/formats/checksum.py) and need no trial. Of others the
header is checked, which cannot find everything that one of llama.cpp's assertions is about.
"""

import subprocess
from importlib.metadata import version
from pathlib import Path

from edge.errors import ModelFileError
from edge.formats.gguf import recall, remember
from edge.system.child import run_module, signal_name

_BYTES_A_SECOND = 10_000_000  # a slow disk's; with a minute more, what a trial may take


def try_out(path: Path) -> None:
    """Raises ModelFileError for a file over which llama.cpp ends the process, or does not end.

    What was tried is remembered with llama.cpp's version, by path, size and modification time.
    """
    installed = version("llama-cpp-python")
    if recall(path, "tried") == installed:
        return
    try:
        child = run_module("edge.probe", "try", str(path), timeout=60 + path.stat().st_size / _BYTES_A_SECOND)
    except subprocess.TimeoutExpired:
        raise ModelFileError(
            f"{path}: damaged: llama.cpp does not end with it; convert or fetch it again"
        ) from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be tried: {error.strerror or error}") from None
    if child.returncode < 0:
        name = signal_name(child.returncode)
        lines = child.stderr.splitlines()
        why = next(
            (line.rpartition("/")[2] for line in lines if "GGML_ASSERT" in line or "error" in line), ""
        )
        raise ModelFileError(
            f"{path}: damaged, or of a kind that llama.cpp cannot run: it ends the process ({name}"
            f"{': ' if why else ''}{why}); convert or fetch it again"
        )
    if child.returncode == 0:  # else what is wrong is told by who loads it next
        remember(path, "tried", installed)
