"""`edge doctor --offline`: it says ready if everything works, else it names what failed.

.venv/bin/pytest tests/airgap/test_ready.py
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge.airgap.ready import Check, Readiness

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def doctor(
    cwd: Path, *arguments: object, site: Path | None = None, path: str | None = None
) -> tuple[int, str]:
    """Exit code and output. `site`: a folder whose modules come before all others."""
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from edge.cli.main import main; main()",
            "doctor",
            "--offline",
            *map(str, arguments),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*([str(site)] if site else []), str(ROOT)]),
            "EDGE_CACHE": str(cwd / "cache"),
            "EDGE_MODELS": str(cwd / "store"),
            **({"PATH": path} if path is not None else {}),
        },
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in run.stderr + run.stdout
    return run.returncode, run.stdout + run.stderr


def test_a_machine_that_has_all(tmp_path: Path, tiny_q4: Path) -> None:
    code, text = doctor(tmp_path, "--model", tiny_q4, "--json")
    report = json.loads(text)
    checks = {check["name"]: check for check in report["checks"]}
    assert code == 0 and report["ready"], text
    for name in (
        "packages",
        "llama.cpp",
        "model",
        "tokenizer",
        "template",
        "memory",
        "answer",
        "rows",
        "disk",
    ):
        assert checks[name]["ok"], name
    for package in ("llama-cpp-python", "transformers", "llguidance", "numpy"):
        assert f"{package} " in checks["packages"]["text"]
    assert "SSE3" in checks["llama.cpp"]["text"] or "x86" not in os.uname().machine
    assert str(tiny_q4) in checks["model"]["text"]


def test_what_is_missing_is_named(tmp_path: Path, tiny_q4: Path) -> None:
    """One line each for a damaged model, rows, results and no tmux. Only the model is needed."""
    broken = tmp_path / "models" / "broken.gguf"
    broken.parent.mkdir()
    broken.write_bytes(tiny_q4.read_bytes()[:5000])
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.jsonl").write_text("{\n")
    (tmp_path / "references").mkdir()
    (tmp_path / "references" / "result.json").write_text("[]")
    code, text = doctor(tmp_path, path="")
    assert code == 1
    lines = {line[9:].split("  ")[0]: line for line in text.splitlines() if line[7:9] == "  "}
    assert lines["model"].startswith("FAILED ") and "broken.gguf" in lines["model"]
    assert lines["rows"].startswith("warning") and "rows.jsonl:1" in lines["rows"]
    assert lines["references"].startswith("warning") and "result.json" in lines["references"]
    assert lines["tmux"].startswith("warning") and lines["sandbox"].startswith("warning")
    assert lines["llama.cpp"].startswith("ok")
    assert text.splitlines()[-1] == "not ready: model"


def test_programs_that_do_not_work_are_not_ok(tmp_path: Path, tiny_q4: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tmux").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "tmux").chmod(0o755)
    code, text = doctor(tmp_path, "--model", tiny_q4, path=str(tmp_path / "bin"))
    assert code == 0
    assert "warning  tmux         tmux does not start" in text and "warning  sandbox" in text


def test_a_library_that_ends_the_process(tmp_path: Path, tiny_q4: Path) -> None:
    """A library for another processor stops the process that loads it. edge reports this and continues."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    code, text = doctor(tmp_path, "--model", tiny_q4, site=site)
    assert code == 1 and re.search("^FAILED  .*stopped by SIGILL$", text, re.MULTILINE), text
    (site / "numpy.py").unlink()
    (site / "llguidance.py").write_text("raise ImportError('libc.so.6: version `GLIBC_2.99 not found')\n")
    code, text = doctor(tmp_path, "--model", tiny_q4, site=site)
    assert code == 1
    assert "FAILED   llguidance   cannot be imported: libc.so.6: version `GLIBC_2.99 not found" in text
    assert text.splitlines()[-1].startswith("not ready: llguidance")


def test_a_context_that_does_not_fit(tmp_path: Path, tiny_q4: Path) -> None:
    code, text = doctor(tmp_path, "--model", tiny_q4, "--ctx", 10**6)
    assert code == 1 and "has a context length of 32768 tokens" in text and "not ready: memory" in text


@pytest.mark.parametrize(("needed", "ready"), [(True, False), (False, True)])
def test_only_what_is_needed_counts(needed: bool, ready: bool) -> None:
    report = Readiness((Check("edge", True, True, "1"), Check("x", False, needed, "no\nx")))
    assert report.ready is ready
    assert "no x" in report.to_text() and len(report.to_text().splitlines()) == 3
