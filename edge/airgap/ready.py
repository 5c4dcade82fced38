"""Try everything that edge needs without a network: `edge doctor --offline`.

A check that can stop the process runs in a child process, edge/probe.py. For example, a library for another processor
stops the process.
"""

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError
from edge.llama.devices import devices
from edge.replay.known import known_models
from edge.system.child import run_module, signal_name
from edge.system.machine import cpu_name, free_disk, memory
from edge.system.paths import EMBEDDED_NAME, embedded_checkpoint, embedded_rows
from edge.system.store import store_folder
from edge.system.text import counted, size
from edge.version import __version__

if TYPE_CHECKING:
    from edge.formats.models import Choice

_PATIENCE = 600.0  # seconds for the first answer of a large model
_LEAST_DISK = 10**9  # bytes for journals, results and a small model
# llama.cpp's names of CPU features, and those of /proc/cpuinfo. edge does not check other features.
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
    """The result of one check.

    If a check that is not `ok` is `needed`, edge does not work. Otherwise only what `text` names does not work.
    """

    name: str
    ok: bool
    needed: bool
    text: str

    def __str__(self) -> str:
        state = "ok     " if self.ok else "FAILED " if self.needed else "warning"
        return f"{state}  {self.name:12} {' '.join(self.text.split())}"


@dataclass(frozen=True)
class Readiness:
    """The results of all checks. `ready` is False if a needed check failed."""

    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        return all(check.ok or not check.needed for check in self.checks)

    def to_json(self) -> str:
        """The results as a JSON object, indented."""
        data = {"ready": self.ready, "checks": [asdict(check) for check in self.checks]}
        return json.dumps(data, indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        """The results as text: one line for each check, then a line with the conclusion."""
        failed = [check.name for check in self.checks if check.needed and not check.ok]
        end = "ready: edge works here without a network" if self.ready else f"not ready: {', '.join(failed)}"
        return "\n".join([*map(str, self.checks), end])


def offline(model: Path | None = None, context: int | None = None) -> Readiness:
    """Try everything that edge needs without a network.

    `model` is a GGUF; the default is the one that commands use. `context` is the context length in tokens.
    """
    checks = [_passed("edge", f"{__version__}, Python {platform.python_version()} ({sys.executable})")]
    checks += _imports()
    # The next checks import packages in this process. Run them only if every package can be imported.
    if all(check.ok for check in checks):
        checks += _model(model, context)
        checks += _files()
    checks += [_disk(), *_agent()]
    checks.append(_passed("network", "not needed: local files need no HF_HUB_OFFLINE and no hub cache"))
    return Readiness(tuple(checks))


def _passed(name: str, text: str, *, needed: bool = True) -> Check:
    return Check(name, True, needed, text)


def _failed(name: str, text: str, *, needed: bool = True) -> Check:
    return Check(name, False, needed, text)


@dataclass(frozen=True)
class _Probe:
    """The end of a child process: its exit status, the JSON lines that it printed, its last line of errors."""

    status: int
    lines: list[dict[str, Any]]
    error: str


def _probe(*arguments: str) -> _Probe:
    """Run edge/probe.py."""
    try:
        child = run_module("edge.probe", *arguments, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return _Probe(1, [], f"no result after {_PATIENCE:.0f} s")
    lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    if name := signal_name(child.returncode):
        return _Probe(child.returncode, lines, f"stopped by {name}")
    errors = [line for line in child.stderr.splitlines() if line.strip()]
    return _Probe(child.returncode, lines, errors[-1] if errors else "")


def _imports() -> Iterator[Check]:
    probe = _probe("imports")
    packages = [line for line in probe.lines if "name" in line]
    good = [f"{line['name']} {line['version']}" for line in packages if "version" in line]
    if good:
        yield _passed("packages", ", ".join(good))
    for line in packages:
        if "error" in line:
            yield _failed(line["name"], line["error"])
    if probe.status:  # the import that began last stopped the child
        last = probe.lines[-1] if probe.lines else {}
        yield _failed(last.get("importing", "dependencies"), probe.error)
    yield _llama(next((line["llama"] for line in probe.lines if "llama" in line), None))


def _llama(llama: dict[str, Any] | None) -> Check:
    """`llama` is what edge/probe.py prints about llama.cpp, None if it could not."""
    if llama is None:
        return _failed("llama.cpp", "cannot be loaded: install llama-cpp-python for this machine")
    if llama["error"]:
        return _failed("llama.cpp", llama["error"])
    if not llama["devices"]:
        return _failed("llama.cpp", "finds no device to compute on: its libraries are for other processors")
    if missing := _missing_features(llama["features"]):
        return _failed(
            "llama.cpp",
            f"is built for {', '.join(missing)}, and {cpu_name()} does not have it: "
            "build llama.cpp again on this machine, or use a bundle",
        )
    library = f", from {llama['loaded']}" if llama["loaded"] else ""
    features = " ".join(llama["features"])
    return _passed("llama.cpp", f"ggml {llama['ggml']}{library}: {features}; {cpu_name()} has these features")


def _missing_features(features: list[str]) -> list[str]:
    """The features that llama.cpp was built for and that this processor does not have."""
    try:
        info = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return []
    flags = next((line.split(":")[1].split() for line in info.splitlines() if line.startswith("flags")), None)
    if flags is None:
        return []
    return [name for name in features if name in _CPU_FLAGS and _CPU_FLAGS[name] not in flags]


def _model(model: Path | None, context: int | None) -> Iterator[Check]:
    from edge.formats.gguf import read_metadata, read_model_file
    from edge.formats.models import default_choice

    path = model
    if path is None:
        choice = default_choice()
        path = choice.path
        if path is None:
            yield _no_model(choice)
            return
        for other in choice.skipped:
            yield _failed("other model", f"{other.path}: not usable: {other.problem}", needed=False)
    try:
        file = read_model_file(path)
        tokenizer = read_metadata(path).get("tokenizer.ggml.model")
    except EdgeError as error:
        yield _failed("model", str(error))
        return
    yield _passed(
        "model",
        f"{path}: {file.file_type}, {size(file.n_bytes)}, context {counted(file.context_length, 'token')}",
    )
    if file.n_vocab and tokenizer is not None:
        yield _passed("tokenizer", f"in the file: {tokenizer}, {counted(file.n_vocab, 'token')}")
    else:
        yield _failed("tokenizer", f"{path}: has no vocabulary: convert the model again")
    if file.chat_template is not None:
        yield _passed("template", "in the file", needed=False)
    else:
        yield _failed("template", "not in the file: edge uses a fallback for prompts", needed=False)
    memory_check = _memory(path, context)
    yield memory_check
    if memory_check.ok:
        yield _answer(path)


def _no_model(choice: "Choice") -> Check:
    if choice.named not in (None, EMBEDDED_NAME):
        return _failed("model", f"{choice.named!r} ({choice.why}) is not on this machine")
    if choice.skipped:
        found = choice.skipped[0]
        return _failed("model", f"{found.path}: not usable: {found.problem}")
    if (embedded_checkpoint() / "model.safetensors").is_file():
        return _passed("model", "no GGUF yet: edge converts the embedded checkpoint when a command needs it")
    return _failed("model", "no GGUF in the store and no embedded checkpoint: name a GGUF with --model FILE")


def _memory(path: Path, context: int | None) -> Check:
    from edge.airgap.doctor import fit

    try:
        need = fit(path, memory(), devices(), context=context)
    except EdgeError as error:
        return _failed("memory", str(error))
    if need.fits is False:
        return _failed("memory", need.advice or f"{path}: does not fit")
    available = "unknown" if need.available is None else size(need.available)
    return _passed(
        "memory",
        f"{size(need.total)} for a context of {counted(need.context, 'token')}, and about {size(need.process)} for "
        f"Python and edge; {available} available",
    )


def _answer(path: Path) -> Check:
    probe = _probe("answer", str(path))
    if probe.status or not probe.lines:
        return _failed("answer", f"{path}: {probe.error or 'no answer'}")
    return _passed("answer", f"a valid action in {probe.lines[0]['seconds']:.1f} s, loading included")


def _files() -> Iterator[Check]:
    """Rows and references: those of a bundle in the current folder, else those that edge contains."""
    from edge.replay.result import read_result
    from edge.replay.rows import read_rows

    rows = sorted(Path("rows").glob("*.jsonl")) or [path for path in (embedded_rows(),) if path.is_file()]
    yield _readable("rows", rows, lambda path: counted(len(read_rows(path)), "row"))
    results = sorted(Path("references").glob("*.json"))
    if results:
        yield _readable(
            "references", results, lambda path: counted(len(read_result(path)["per_step"]), "step")
        )
    try:
        known = known_models()
    except EdgeError as error:
        yield _failed("known models", str(error), needed=False)
        return
    published = sum(bool(model.reference) for model in known)
    yield Check("known models", bool(known), False, f"{len(known)}, {published} with published figures")


def _readable(name: str, paths: list[Path], read: Callable[[Path], str]) -> Check:
    texts = []
    for path in paths:
        try:
            texts.append(f"{path}: {read(path)}")
        except EdgeError as error:
            return _failed(name, str(error), needed=False)
    if not texts:
        return _failed(name, "none here: name a file with --replay", needed=False)
    return _passed(name, "; ".join(texts), needed=False)


def _disk() -> Check:
    folder = store_folder().absolute()
    free = free_disk(folder)
    if free < _LEAST_DISK:
        return _failed("disk", f"{size(free)} free in {folder}: edge needs {size(_LEAST_DISK)} for results")
    return _passed("disk", f"{size(free)} free in {folder}")


def _agent() -> Iterator[Check]:
    """Start a shell in a terminal, and one in the sandbox, and stop them."""
    from edge.terminal.sandbox import Sandbox
    from edge.terminal.shell import SHELL
    from edge.terminal.tmux import Terminal

    with tempfile.TemporaryDirectory() as folder:
        try:
            with Terminal.start(SHELL, cwd=folder):
                yield _passed("tmux", f"{shutil.which('tmux')}: starts a shell", needed=False)
        except EdgeError as error:
            yield _failed("tmux", f"{error} (only edge agent needs it)", needed=False)
            yield _failed("sandbox", "cannot be tried without tmux", needed=False)
            return
        try:
            with (
                Sandbox.prepare(Path(folder)) as sandbox,
                Terminal.start(sandbox.argv, cwd=folder, ready=sandbox.wait_ready),
            ):
                yield _passed("sandbox", "starts, and passes its safety checks", needed=False)
        except EdgeError as error:
            yield _failed("sandbox", f"{error} (only edge agent --sandbox needs it)", needed=False)
