"""Try an unknown model file in a child process, because llama.cpp may stop the process that loads it.

Files from `edge convert` have checksums (edge/formats/checksum.py) and need no trial. The header of other files is
checked, but that check cannot find everything that llama.cpp asserts.
"""

import subprocess
from importlib.metadata import version
from pathlib import Path

from edge.errors import ModelFileError
from edge.formats.gguf import part_files, recall, remember
from edge.system.child import run_module, signal_name

_BYTES_A_SECOND = 10_000_000  # of a slow disk; a trial may take a minute more than such a disk needs


def try_out(path: Path) -> None:
    """Raises ModelFileError if llama.cpp stops the process, or does not finish, when it loads the file.

    A successful trial is remembered for this version of llama.cpp, by path, size and modification time.
    """
    installed = version("llama-cpp-python")
    files = part_files(path)
    if all(recall(file, "tried") == installed for file in files):
        return
    n_bytes = sum(file.stat().st_size for file in files)
    try:
        child = run_module("edge.probe", "try", str(path), timeout=60 + n_bytes / _BYTES_A_SECOND)
    except subprocess.TimeoutExpired:
        raise ModelFileError(
            f"{path}: damaged: llama.cpp does not finish loading it; convert or fetch it again"
        ) from None
    except OSError as error:
        raise ModelFileError(
            f"{path}: the trial in a child process cannot start: {error.strerror or error}"
        ) from None
    if child.returncode < 0:
        name = signal_name(child.returncode)
        lines = child.stderr.splitlines()
        why = next(
            (line.rpartition("/")[2] for line in lines if "GGML_ASSERT" in line or "error" in line), ""
        )
        raise ModelFileError(
            f"{path}: damaged, or of a kind that llama.cpp cannot run: it stops the process ({name}"
            f"{': ' if why else ''}{why}); convert or fetch it again"
        )
    if child.returncode == 0:  # otherwise the next load reports the reason
        for file in files:
            remember(file, "tried", installed)
