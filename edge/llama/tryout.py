"""Try an unknown model file in a child process, because llama.cpp may stop the process that loads it.

Files that edge wrote for this user need no trial (edge/formats/own_files.py). The header of other files is checked, but
that check cannot find everything that llama.cpp asserts, nor a file that is made to attack llama.cpp. So the child runs
in a sandbox where this system can make one. A trial shows that a file does not stop llama.cpp. It does not show that
the file is harmless: after it, this process loads the file.
"""

import json
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path

from edge.errors import EdgeWarning, ModelFileError, SandboxError
from edge.formats.gguf import part_files, signature
from edge.formats.own_files import is_known, mark_tried
from edge.system.child import signal_name
from edge.system.confined import Outcome, run_confined, run_plain
from edge.system.text import printable

_BYTES_A_SECOND = 10_000_000  # of a slow disk
_LONGEST = 6 * 3600  # seconds, also for a file with large holes
_PATIENCE = 180  # seconds beyond what such a disk needs: a busy machine must not make a file look damaged


def needs_no_trial(path: Path, adapter: Path | None = None) -> bool:
    """Whether edge wrote a model for this user, or a trial with this version of llama.cpp succeeded.

    With an adapter, whether that is so of the adapter on this model.
    """
    if adapter is not None:
        return is_known([adapter], _how(), beside=part_files(path))
    if is_known([path], _how()):  # as one file; only a model in parts needs another look at its header
        return True
    files = part_files(path)
    return len(files) > 1 and is_known(files, _how())


def try_out(path: Path, adapter: Path | None = None) -> None:
    """Raises ModelFileError if llama.cpp refuses the file, stops the process, or does not finish, when it loads it.

    With an adapter, it is the adapter that is tried, on the model `path`. A successful trial is remembered for
    `needs_no_trial`. Issues an EdgeWarning if the trial had no sandbox.
    """
    files, subject = part_files(path), path
    tried = list(files)
    if adapter is not None:
        tried, subject = [adapter, *files], adapter
    signatures = [signature(file) for file in tried]
    outcome = _tried(subject, files, adapter)
    _check(subject, outcome)
    if [signature(file) for file in tried] != signatures:
        raise ModelFileError(f"{subject}: another program changed it while edge tried it; try again")
    if outcome.status == 0 and "ran" in _said(outcome):
        mark_tried(signatures, _how())


def _how() -> str:
    return f"tried with llama-cpp-python {version('llama-cpp-python')}"


def _tried(subject: Path, files: list[Path], adapter: Path | None) -> Outcome:
    more = [] if adapter is None else [adapter]
    n_bytes = sum(file.stat().st_size for file in (*files, *more))
    patience = min(_PATIENCE + n_bytes / _BYTES_A_SECOND, _LONGEST)
    try:
        return _trial(subject, files, more, patience)
    except subprocess.TimeoutExpired:
        raise ModelFileError(
            f"{subject}: llama.cpp did not finish loading it in {patience:.0f} s: the machine is busy, or the file is "
            "damaged; try again, or convert or fetch it again"
        ) from None
    except OSError as error:
        raise ModelFileError(
            f"{subject}: the trial in a child process cannot start: {error.strerror or error}"
        ) from None


def _check(path: Path, outcome: Outcome) -> None:
    """Raises ModelFileError unless the child ran the file, or the file needs more memory than the trial had."""
    said = _said(outcome)
    if outcome.status < 0:
        name = signal_name(outcome.status)
        lines = outcome.output.splitlines()
        why = next(
            (line.rpartition("/")[2] for line in lines if "GGML_ASSERT" in line or "error" in line), ""
        )
        raise ModelFileError(
            f"{path}: damaged, or of a kind that llama.cpp cannot run: it stops the process ({name}"
            f"{': ' if why else ''}{printable(why)}); convert or fetch it again"
        )
    if "began" not in said:
        raise ModelFileError(f"{path}: the trial in a child process cannot start: {_first_line(outcome)}")
    if "ran" in said:
        return
    refused = said.get("refused")
    if not isinstance(refused, str):
        raise ModelFileError(f"{path}: the trial in a child process failed: {_first_line(outcome)}")
    if said.get("room") is not True:
        raise ModelFileError(f"{path}: {printable(refused)}")
    warnings.warn(  # a GPU can have the memory that the trial lacked
        f"{path}: is from an unknown source, and its trial had too little memory ({printable(refused)[:200]}): edge "
        "loads it without a trial",
        EdgeWarning,
        stacklevel=4,
    )


def _trial(subject: Path, files: list[Path], more: list[Path], patience: float) -> Outcome:
    """How the child ended: in the sandbox, or without one if it cannot be made or edge does not start in it."""
    try:
        outcome = run_confined("edge.probe", "try", files, patience, more)
        if "began" in _said(outcome):
            return outcome
        why = _first_line(outcome)
    except SandboxError as error:
        why = str(error)
    warnings.warn(
        f"{subject}: is from an unknown source, and edge tries it in a child process that has no sandbox ({why}): the "
        "child has an empty environment, but can read your files and use the network",
        EdgeWarning,
        stacklevel=4,
    )
    return run_plain("edge.probe", "try", [files[0], *more], patience)


def _said(outcome: Outcome) -> dict[str, object]:
    """The JSON lines of edge/probe.py in a child's output, as one object. The file can have written them too."""
    said: dict[str, object] = {}
    for line in outcome.output.splitlines():
        if line.startswith('{"'):
            try:
                said |= json.loads(line)
            except (ValueError, RecursionError):
                continue
    return said


def _first_line(outcome: Outcome) -> str:
    lines = [line.strip() for line in outcome.output.splitlines() if line.strip()]
    return printable((lines or [f"it ended with status {outcome.status}"])[-1])[:200]
