"""A model file that edge knows nothing of, tried in a process of its own: does llama.cpp end the process over it?

Files that `edge convert` wrote carry checksums (edge/checksum.py) and need no trial. Of others the header is checked,
which cannot find everything that one of llama.cpp's assertions is about.

`python -m edge.trial FILE` loads a file on the CPU and asks it for an action of a few tokens.
"""

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from edge.errors import EdgeError, ModelFileError
from edge.modelfile import recall, remember

_BYTES_A_SECOND = 10_000_000  # a slow disk's; with a minute more, what a trial may take
_inside = False  # whether this process is the trial


def try_out(path: Path) -> None:
    """Raises ModelFileError for a file over which llama.cpp ends the process, or does not end.

    What was tried is remembered with llama.cpp's version, by path, size and modification time.
    """
    installed = version("llama-cpp-python")
    if _inside or recall(path, "tried") == installed:
        return
    package = Path(__file__).resolve().parent.parent
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "edge.trial", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60 + path.stat().st_size / _BYTES_A_SECOND,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GGML_NO_BACKTRACE": "1"},
        )
    except subprocess.TimeoutExpired:
        raise ModelFileError(
            f"{path}: damaged: llama.cpp does not end with it; convert or fetch it again"
        ) from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be tried: {error.strerror or error}") from None
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        lines = child.stderr.decode("utf-8", "replace").splitlines()
        why = next(
            (line.rpartition("/")[2] for line in lines if "GGML_ASSERT" in line or "error" in line), ""
        )
        raise ModelFileError(
            f"{path}: damaged, or of a kind that llama.cpp cannot run: it ends the process ({name}"
            f"{': ' if why else ''}{why}); convert or fetch it again"
        )
    if child.returncode == 0:  # else what is wrong is told by who loads it next
        remember(path, "tried", installed)


def _main() -> int:
    import edge.trial
    from edge.runner import Runner

    edge.trial._inside = True  # another module than this one, which is __main__
    try:
        with Runner.load(sys.argv[1], gpu_layers=0) as runner:
            runner.act([{"role": "user", "content": "ls"}], 8)
    except EdgeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
