"""`edge doctor --offline`: whether this machine has all that edge needs, each thing tried and not only looked for.

What could end the process (a library built for another processor does) is tried in a process of its own:
edge/probe.py.
"""

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.llama.devices import devices
from edge.replay.known import known_models
from edge.system.child import run_module, signal_name
from edge.system.machine import cpu_name, free_disk, memory
from edge.system.paths import converted_models, embedded_checkpoint, embedded_rows, model_folder
from edge.version import __version__

_PATIENCE = 600.0  # seconds for a large model's first answer
_LEAST_DISK = 10**9  # journals, results, a small model
# The names of llama.cpp's features in /proc/cpuinfo; those without one here are told, not checked.
_CPU_FLAGS = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX_VNNI": "avx_vnni",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
}


@dataclass(frozen=True)
class Check:
    """One thing. `ok` is False where it is missing; `needed`: without it nothing works, else only what `text` names."""

    name: str
    ok: bool
    needed: bool
    text: str

    def __str__(self) -> str:
        state = "ok     " if self.ok else "MISSING" if self.needed else "without"
        return f"{state}  {self.name:12} {' '.join(self.text.split())}"


@dataclass(frozen=True)
class Readiness:
    """All checks; `ready` unless something needed is missing."""

    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        return all(check.ok or not check.needed for check in self.checks)

    def to_json(self) -> str:
        data = {"ready": self.ready, "checks": [asdict(check) for check in self.checks]}
        return json.dumps(data, indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        missing = [check.name for check in self.checks if check.needed and not check.ok]
        end = "ready: nothing here asks for a network" if self.ready else f"not ready: {', '.join(missing)}"
        return "\n".join([*map(str, self.checks), end])


def offline(model: Path | None = None, context: int | None = None) -> Readiness:
    """Try all that edge needs without a network. `model`: a GGUF, by default the one that commands would take;
    `context`: tokens to reckon with.
    """
    found: list[Check] = []
    found.append(
        Check("edge", True, True, f"{__version__}, Python {platform.python_version()} ({sys.executable})")
    )
    found += _imports()
    # A model and rows are read in this process, with packages that by now are known to load.
    if all(check.ok for check in found):
        found += _model(model, context)
        found += _files()
    found += [_disk(), *_agent(), _serve()]
    found.append(
        Check(
            "network", True, True, "not asked for: local files need no HF_HUB_OFFLINE and no cache of the hub"
        )
    )
    return Readiness(tuple(found))


def _child(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run edge/probe.py; its status, the JSON lines that it printed, the last line of its errors."""
    try:
        run = run_module("edge.probe", *arguments, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return 1, [], f"no end after {_PATIENCE:.0f} s"
    told = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    if name := signal_name(run.returncode):
        return run.returncode, told, f"ended by {name}"
    errors = [line for line in run.stderr.splitlines() if line.strip()]
    return run.returncode, told, errors[-1] if errors else ""


def _imports() -> Iterator[Check]:
    status, told, error = _child("imports")
    wrong = [entry for entry in told if entry.get("error")]
    versions = [
        f"{entry['name']} {entry['version']}" for entry in told if not entry.get("error") and "name" in entry
    ]
    begun = next((entry["begins"] for entry in reversed(told) if "begins" in entry), "edge")
    if status and told and "begins" in told[-1]:
        wrong.append({"name": begun, "error": error})
    elif status:
        wrong.append({"name": "dependencies", "error": error})
    if versions:
        yield Check("packages", True, True, ", ".join(versions))
    for entry in wrong:
        yield Check(entry["name"], False, True, entry["error"])
    llama = next((entry["llama"] for entry in told if "llama" in entry), None)
    if llama is None:
        yield Check("llama.cpp", False, True, "cannot be loaded: install llama-cpp-python for this machine")
        return
    if llama["error"] or not llama["devices"]:
        why = llama["error"] or "finds nothing to compute on: its libraries are for other processors"
        yield Check("llama.cpp", False, True, why)
        return
    lacking = _lacking(llama["features"])
    if lacking:
        built = f"is built for {', '.join(lacking)}, which {cpu_name()} lacks: build it anew here, or use a bundle"
        yield Check("llama.cpp", False, True, built)
        return
    loaded = f", from {llama['loaded']}" if llama["loaded"] else ""
    yield Check(
        "llama.cpp",
        True,
        True,
        f"ggml {llama['ggml']}{loaded}: {' '.join(llama['features'])}; {cpu_name()} has them",
    )


def _lacking(features: list[str]) -> list[str]:
    """Features that llama.cpp was built for and this processor does not have."""
    try:
        info = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return []
    flags = next((line.split(":")[1].split() for line in info.splitlines() if line.startswith("flags")), None)
    if flags is None:
        return []
    return [name for name in features if name in _CPU_FLAGS and _CPU_FLAGS[name] not in flags]


def _model(model: Path | None, context: int | None) -> Iterator[Check]:
    from edge.airgap.doctor import fit
    from edge.formats.gguf import read_metadata, read_model_file
    from edge.system.text import size

    path = model or next(iter(converted_models()), None)
    if path is None:
        there = (embedded_checkpoint() / "model.safetensors").is_file()
        text = (
            "no GGUF yet; the embedded checkpoint is converted when a command first needs one"
            if there
            else "none in models/, and no embedded checkpoint: name one with --model FILE"
        )
        yield Check("model", there, True, text)
        return
    try:
        file = read_model_file(path)
        metadata = read_metadata(path)
    except EdgeError as error:
        yield Check("model", False, True, str(error))
        return
    yield Check(
        "model",
        True,
        True,
        f"{path}: {file.file_type}, {size(file.n_bytes)}, context {file.context_length:,}",
    )
    kind = metadata.get("tokenizer.ggml.model")
    yield Check(
        "tokenizer",
        file.n_vocab > 0 and kind is not None,
        True,
        f"inside the file: {kind}, {file.n_vocab:,} tokens"
        if file.n_vocab
        else f"{path}: holds no vocabulary",
    )
    yield Check(
        "template",
        file.chat_template is not None,
        False,
        "inside the file" if file.chat_template is not None else "none in the file: prompts are a fallback's",
    )
    try:
        need = fit(path, memory(), devices(), context=context)
    except EdgeError as error:
        yield Check("memory", False, True, str(error))
        return
    if need.fits is False:
        yield Check("memory", False, True, need.advice or f"{path} does not fit")
        return
    available = "unknown" if need.available is None else size(need.available)
    yield Check(
        "memory", True, True, f"{size(need.total)} at a context of {need.context:,}, of {available} available"
    )
    status, told, last = _child("answer", str(path))
    if status or not told:
        yield Check("answer", False, True, f"{path}: {last or 'no answer'}")
        return
    yield Check(
        "answer", True, True, "a valid action in {seconds:.1f} s, its loading included".format(**told[0])
    )


def _files() -> Iterator[Check]:
    """Rows and references: those of a bundle in the current folder, else the ones that ship with edge."""
    from edge.replay.result import read_result
    from edge.replay.rows import read_rows

    rows = sorted(Path("rows").glob("*.jsonl")) or [path for path in (embedded_rows(),) if path.is_file()]
    yield _readable("rows", rows, lambda path: f"{len(read_rows(path)):,} rows")
    results = sorted(Path("references").glob("*.json"))
    if results:
        yield _readable("references", results, lambda path: f"{len(read_result(path)['per_step']):,} steps")
    try:
        known = known_models()
    except EdgeError as error:
        yield Check("known models", False, False, str(error))
        return
    published = sum(bool(model.reference) for model in known)
    yield Check("known models", bool(known), False, f"{len(known)}, {published} with published figures")


def _readable(name: str, paths: list[Path], read: Callable[[Path], str]) -> Check:
    told = []
    for path in paths:
        try:
            told.append(f"{path}: {read(path)}")
        except EdgeError as error:
            return Check(name, False, False, str(error))
    return Check(name, bool(told), False, "; ".join(told) or "none here: name a file with --replay")


def _disk() -> Check:
    folder = model_folder().absolute()
    free = free_disk(folder)
    advice = "" if free >= _LEAST_DISK else f": less than {_LEAST_DISK / 1e9:.0f} GB, results may not fit"
    return Check("disk", free >= _LEAST_DISK, True, f"{free / 1e9:,.1f} GB free in {folder}{advice}")


def _agent() -> Iterator[Check]:
    """A shell in a terminal, and one in the sandbox, begun and ended again."""
    from edge.terminal.sandbox import Sandbox
    from edge.terminal.tmux import SHELL, Terminal

    needs = "edge agent needs it, all else works"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with Terminal.start(SHELL, cwd=folder):
                yield Check("tmux", True, False, f"{shutil.which('tmux')}: a shell begins in it")
        except EdgeError as error:
            yield Check("tmux", False, False, f"{error} ({needs})")
            yield Check("sandbox", False, False, "cannot be tried without tmux")
            return
        try:
            with (
                Sandbox.prepare(Path(folder)) as sandbox,
                Terminal.start(sandbox.argv, cwd=folder, ready=sandbox.wait_ready),
            ):
                yield Check("sandbox", True, False, "begins, and holds what it should")
        except EdgeError as error:
            yield Check("sandbox", False, False, f"{error} (edge agent --sandbox needs it, all else works)")


def _serve() -> Check:
    lacking = [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if lacking:
        text = f"{lacking[0]} is missing: edge serve needs the extra serve, all else works"
        return Check("serve", False, False, text)
    return Check("serve", True, False, "its packages are here")
