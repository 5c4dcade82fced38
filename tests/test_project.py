"""The project itself: what importing costs, where files go, that the wheel carries the models.

.venv/bin/pytest tests/test_project.py
"""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "llama_cpp",
    "gguf",
    "llguidance",
    "tokenizers",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
)


def python(code: str, cwd: Path = ROOT, **environment: str) -> str:
    """What `code` prints in a fresh interpreter."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_the_command_line_imports_nothing_heavy() -> None:
    found = python(f"import edge.cli.main, sys; print(*[name for name in {HEAVY!r} if name in sys.modules])")
    assert found == ""


@pytest.mark.slow
def test_no_module_brings_torch_or_transformers_into_the_runtime() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "edge").rglob("*.py")
        if path.name not in ("__main__.py", "__init__.py") and "_models" not in path.parts
    ]
    assert len(names) > 100
    code = "import importlib, sys\n" + "\n".join(
        f"importlib.import_module('{name}')" for name in sorted(names)
    )
    assert (
        python(code + "\nprint(*[name for name in ('torch', 'transformers') if name in sys.modules])") == ""
    )


def test_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert not any(name.startswith(("torch", "llm-")) for name in project["dependencies"])


@pytest.mark.slow
def test_the_wheel_carries_the_models_and_finds_them(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed (make test installs it)")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(tmp_path / run.stdout.split()[-1]) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "site")
    shipped = {
        f"edge/_models/{path.relative_to(ROOT / 'models').as_posix()}"
        for path in (ROOT / "models").glob("*.toml")
    }
    assert len(shipped) >= 4
    assert shipped | {"edge/grammar.gbnf", "edge/report/report.html", "edge/py.typed"} <= names
    embedded = ROOT / "models" / "tiny-terminal"
    if not embedded.is_dir():
        pytest.skip("models/tiny-terminal is not there yet")
    for path in embedded.iterdir():
        assert f"edge/_models/tiny-terminal/{path.name}" in names
    assert not [
        name
        for name in names - {"edge/_models/default/adapter.gguf"}
        if name.endswith(".gguf") or name.startswith(("models/", "tests/", "scripts/"))
    ]
    # From the wheel alone, in another folder: the known models are found inside the package.
    found = python(
        "from edge.replay.known import known_models; from edge.system.paths import embedded_checkpoint;"
        "print(len(known_models()), embedded_checkpoint())",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert found == f"{len(shipped)} {tmp_path / 'site' / 'edge' / '_models' / 'tiny-terminal'}"


def test_dependencies_are_what_is_imported() -> None:
    """Imported packages are the declared ones; transformers is declared for a reason (see pyproject.toml)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["serve"] == []  # an old `pip install '.[serve]'` still works
    declared = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    tops = set()
    for path in (ROOT / "edge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                tops.add(node.module.split(".")[0])
    owners = packages_distributions()
    used = {canonicalize_name(name) for top in tops - {"edge"} for name in owners.get(top, ())}
    # vLLM runs a reference where it is installed, and brings torch.
    assert used - {"torch", "vllm"} | {"transformers"} == declared
