"""Who may import what: the rules of docs/architecture.md in one table, read from the sources.

.venv/bin/pytest tests/test_layers.py
"""

import ast
import functools
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What every unit may import.
COMMON = {"errors", "version", "metrics", "system"}
# A unit is a folder of edge/ or a module beside the folders. Imports are transitive: who may import `answer` may import
# all that `answer` may import.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": {"system"},
    "version": set(),
    "metrics": set(),
    "system": {"errors"},
    "terminal": {"system", "errors"},
    "formats": set(),
    "llama": {"formats"},
    "answer": {"llama"},
    "prompt": {"formats"},
    "conversion": {"formats", "llama", "prompt"},
    "runner": {"answer", "llama", "prompt"},
    "probe": {"runner"},
    "replay": {"runner"},
    "chat": {"runner", "replay"},
    "compare": {"replay"},
    "measure": {"compare", "replay"},
    "report": {"compare", "measure"},
    "agent": {"runner", "replay", "terminal"},
    "trial": {"agent", "compare"},
    "serve": {"runner"},
    "airgap": {"replay", "llama", "formats", "terminal"},
    "convert": {"conversion", "measure", "report", "terminal"},
    "mixing": {"convert", "conversion", "measure"},
    "sweep": {"convert", "measure", "mixing", "report", "sweep_stages", "sweep_state", "terminal"},
    "sweep_stages": {"convert", "measure", "mixing", "report", "sweep_state"},
    "sweep_state": {"formats", "report"},
    "schemas": {"agent", "chat", "compare", "measure", "mixing", "sweep_state"},
    "tune": {"runner"},
    "names": {"replay"},
    "pull": {"convert", "formats", "names", "replay"},
    "cli": {
        "agent",
        "airgap",
        "chat",
        "convert",
        "pull",
        "measure",
        "mixing",
        "report",
        "schemas",
        "serve",
        "sweep",
        "tune",
        "trial",
    },
    "__main__": {"cli"},
    "__init__": {"runner"},
}
# These two import errors, version and metrics only where their own line names them.
BARE = {"errors", "version", "metrics", "system", "terminal"}
# Units that only these units or modules may import, whatever is transitive.
OPENED_BY = {"conversion": {"conversion", "convert", "mixing", "edge.cli.models"}}
# Names of other packages that have no public equivalent.
FOREIGN_PRIVATE = {
    ("edge.llama.devices", "_lib"),  # llama_cpp's own handle of the library that it loaded
    ("edge.cli.main", "_exit"),  # of os: the end of a process in which nothing can be raised any more
}
# Packages that only these units or modules may import.
ONLY_IN = {
    "llama_cpp": {"llama"},
    "llguidance": {"answer", "edge.llama.vocabulary"},
    "typer": {"cli"},
    "matplotlib": {"report"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "httpx": {"replay", "edge.formats.package"},
    "torch": {"edge.replay.vllm"},  # that of vLLM, where it is installed
    "transformers": set(),
}
# Modules that are programs: nothing imports them, they are started as processes.
PROGRAMS = {"probe", "__main__"}


@dataclass(frozen=True)
class Import:
    """One import: the module that has it, the module or package that it names, the names taken, and its line."""

    module: str
    target: str
    names: tuple[str, ...]
    line: int


def modules(root: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name; a package by its own."""
    found = {}
    for path in sorted((root / "edge").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts)
        found[name.removesuffix(".__init__") if len(parts) > 2 else name] = path
    return found


@functools.cache
def raw_imports(text: str) -> list[tuple[str, tuple[str, ...], int]]:
    """Every import of a source, also inside functions: the module, the names taken from it, the line."""
    found: list[tuple[str, tuple[str, ...], int]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(alias.name, (), node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            found.append((node.module or "", tuple(alias.name for alias in node.names), node.lineno))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append((name.value, (), node.lineno))
    return found


def imports(module: str, path: Path, known: set[str]) -> Iterator[Import]:
    """Every import of a file. `from edge.x import y` names edge.x.y if that is a module."""
    for target, names, line in raw_imports(path.read_text(encoding="utf-8")):
        inner = tuple(name for name in names if f"{target}.{name}" in known)
        for name in inner:
            yield Import(module, f"{target}.{name}", (), line)
        if len(inner) < len(names) or not names:
            yield Import(module, target, tuple(name for name in names if name not in inner), line)


def unit(module: str) -> str:
    """The folder, or the module beside the folders, that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def allowed(name: str) -> set[str]:
    """All units that a unit may import, itself among them."""
    found, new = {name}, {name}
    while new:
        new = set().union(*(MAY_IMPORT[one] for one in new)) - found
        found |= new
    return found | (set() if name in BARE else COMMON)


def broken(root: Path) -> list[str]:
    """Every import of the package that breaks a rule, as a line that says which."""
    known = modules(root)
    faults = []
    for module, path in known.items():
        own = unit(module)
        if own not in MAY_IMPORT:
            faults.append(f"{module}: edge/{own} is not in the table")
            continue
        may = allowed(own)
        for found in imports(module, path, set(known)):
            where = f"{path.relative_to(root)}:{found.line}"
            top = found.target.split(".")[0]
            if top == "edge":
                target = unit(found.target)
                if found.target == "edge" and module not in ("edge.__init__", "edge"):
                    faults.append(f"{where}: import the module that defines {', '.join(found.names) or 'it'}")
                    continue
                if (
                    found.names
                    and found.target == f"edge.{own}"
                    and known[found.target].name == "__init__.py"
                ):
                    faults.append(
                        f"{where}: import the module of edge.{own} that defines {', '.join(found.names)}"
                    )
                if target not in may:
                    faults.append(f"{where}: {own} may not import {target}")
                if target in OPENED_BY and not {own, module} & OPENED_BY[target]:
                    faults.append(f"{where}: {own} may not import {target}")
                if target in PROGRAMS:
                    faults.append(f"{where}: {found.target} is a program: start it as a process")
                private = [name for name in found.names if name.startswith("_") and not name.startswith("__")]
                faults += [f"{where}: {name} is private to {found.target}" for name in private]
            elif top in ONLY_IN and not {own, module} & ONLY_IN[top]:
                faults.append(f"{where}: {top} belongs to {' and '.join(sorted(ONLY_IN[top]))}")
        faults += [
            f"{path.relative_to(root)}:{line}: reads {name}"
            for line, name in private_reads(path.read_text(encoding="utf-8"))
            if (module, name) not in FOREIGN_PRIVATE
        ]
        faults += [
            f"{path.relative_to(root)}:{line}: {name} trusts the counts in a file; use edge.formats.gguf"
            for line, name in untrusted_readers(path.read_text(encoding="utf-8"))
        ]
    return faults + [f"circle: {' -> '.join(circle)}" for circle in circles(root)]


@functools.cache
def untrusted_readers(text: str) -> list[tuple[int, str]]:
    """Uses of the gguf package's reader: version 0.19 loops without end at a count that no file can hold."""
    names = {"GGUFReader", "gguf_reader"}
    found = [
        (line, name) for target, taken, line in raw_imports(text) for name in (*target.split("."), *taken)
    ]
    found += [
        (node.lineno, node.attr) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)
    ]
    return [(line, name) for line, name in found if name in names]


@functools.cache
def private_reads(text: str) -> list[tuple[int, str]]:
    """Underscore attributes that are read from anything but self and cls, and that this source does not set itself."""
    tree, found = ast.parse(text), []
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.Assign):
            own |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and re.match("_[^_]", str(name.value)):
                found.append((node.lineno, str(name.value)))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            base = node.value
            if node.attr in own or (isinstance(base, ast.Name) and base.id in ("self", "cls")):
                continue
            found.append((node.lineno, node.attr))
    return found


def circles(root: Path) -> list[list[str]]:
    """Import circles between modules, and between units. Imports inside functions count too."""
    known = modules(root)
    arrows: dict[str, set[str]] = {name: set() for name in known}
    for module, path in known.items():
        if path.name == "__init__.py":
            continue  # the public names of a package, imported when they are first used
        for found in imports(module, path, set(known)):
            if found.target in known and known[found.target].name != "__init__.py":
                arrows[module].add(found.target)
    folders: dict[str, set[str]] = {}
    for module, targets in arrows.items():
        folders.setdefault(unit(module), set()).update({unit(target) for target in targets} - {unit(module)})
    folders["errors"].discard("system")  # these two may import each other, their modules in no circle
    return [circle for graph in (arrows, folders) for circle in _circles(graph)]


def _circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> Iterator[list[str]]:
        if name in way:
            yield [*way[way.index(name) :], name]
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                yield from visit(target, [*way, name])
            done.add(name)

    for name in sorted(graph):
        yield from visit(name, [])


@functools.cache
def of_the_project() -> list[str]:
    """What is broken in the project itself."""
    return broken(ROOT)


def test_every_module_keeps_the_rules() -> None:
    assert of_the_project() == []


def test_every_unit_of_the_table_exists() -> None:
    found = {unit(module) for module in modules(ROOT)}
    assert set(MAY_IMPORT) == found


BREACHES = [
    ("agent/loop.py", "from edge.cli.common import note", "agent may not import cli"),
    ("terminal/tmux.py", "from edge.metrics import aggregate", "terminal may not import metrics"),
    ("system/files.py", "from edge.formats.gguf import ModelFile", "system may not import formats"),
    ("llama/engine.py", "from edge.answer.action import Action", "llama may not import answer"),
    ("answer/action.py", "from edge.runner import Runner", "answer may not import runner"),
    ("chat/commands.py", "from edge.cli.common import note", "chat may not import cli"),
    ("serve/app.py", "from edge.replay.rows import Row", "serve may not import replay"),
    ("replay/rows.py", "from edge.conversion.plan import Plan", "replay may not import conversion"),
    ("cli/run.py", "from edge.conversion.plan import Plan", "cli may not import conversion"),
    ("convert.py", "from edge.agent.loop import Agent", "convert may not import agent"),
    ("compare/run.py", "import llama_cpp", "llama_cpp belongs to llama"),
    ("agent/show.py", "from typer import echo", "typer belongs to cli"),
    (
        "serve/model.py",
        "def f():\n    import httpx.client",
        "httpx belongs to edge.formats.package and replay",
    ),
    ("llama/reader.py", "from llguidance import LLMatcher", "llguidance belongs to answer"),
    (
        "report/short_form.py",
        "from edge.report.words import _hidden",
        "_hidden is private to edge.report.words",
    ),
    ("runner.py", "def f(engine):\n    return engine._context", "reads _context"),
    ("llama/tryout.py", "from edge import probe", "edge.probe is a program"),
    ("replay/result.py", "from edge.replay.journal import Journal", "circle: "),
    ("system/text.py", "import edge.system.places", "circle: "),
    ("other/new.py", "", "edge/other is not in the table"),
    ("llama/engine.py", "from edge import Runner", "import the module that defines Runner"),
    ("formats/gguf.py", "import edge", "import the module that defines it"),
    ("compare/verdict.py", "from edge.compare import compare", "import the module of edge.compare"),
    (
        "llama/memory.py",
        "from importlib import import_module\nimport_module('edge.cli.main')",
        "may not import cli",
    ),
    ("report/page.py", "def f(engine):\n    return getattr(engine, '_states')", "reads _states"),
    ("runner.py", "def f():\n    import torch", "torch belongs to"),
    ("answer/action.py", "import transformers", "transformers belongs to"),
    ("formats/imatrix.py", "def f():\n    from gguf import GGUFReader", "GGUFReader trusts the counts"),
    ("pull.py", "def f(gguf):\n    return gguf.GGUFReader('x')", "GGUFReader trusts the counts"),
]


@pytest.mark.parametrize(("file", "line", "fault"), BREACHES)
def test_the_test_finds_a_breach(file: str, line: str, fault: str, tmp_path: Path) -> None:
    """A copy of the package with one line that breaks a rule: that is found."""
    shutil.copytree(ROOT / "edge", tmp_path / "edge", ignore=shutil.ignore_patterns("__pycache__", "_models"))
    place = tmp_path / "edge" / file
    place.parent.mkdir(exist_ok=True)
    text = place.read_text(encoding="utf-8") if place.exists() else '"""New."""\n'
    place.write_text(f"{text}\n{line}\n", encoding="utf-8")
    found = [one for one in broken(tmp_path) if one not in of_the_project()]
    assert found
    assert any(fault in one for one in found), found
