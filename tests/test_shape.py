"""The shape of the code: short parameter lists, short commands, modules of one job.

.venv/bin/pytest tests/test_shape.py
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_PARAMETERS = 12
MOST_COMMAND_LINES = 40
MOST_MODULE_LINES = 500
PUBLIC = {
    "edge": (
        "Action",
        "Adapter",
        "Answering",
        "Command",
        "EdgeError",
        "Loading",
        "Runner",
        "Sampling",
        "Session",
        "States",
        "__version__",
        "task_messages",
    ),
    "edge.convert": ("convert", "convert_adapter", "Converted", "ConvertedAdapter", "TensorTypes"),
    "edge.sweep": ("sweep", "SweepOptions", "Swept"),
    "edge.replay": ("evaluate",),
    "edge.compare": ("compare",),
    "edge.measure": ("measure",),
    "edge.report": ("report",),
    "edge.pull": ("pull", "Download", "Pulled"),
    "edge.names": ("resolve", "Reference"),
    "edge.formats.hub": ("HubOptions",),
}


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted((ROOT / "edge").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path.relative_to(ROOT), node


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)


def is_command(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is a command of the command line: its options are declared with typer."""
    return path.parts[1] == "cli" and any(
        isinstance(argument.annotation, ast.Subscript | ast.Name)
        and ("typer" in ast.unparse(argument.annotation) or ast.unparse(argument.annotation)[0].isupper())
        and not ast.unparse(argument.annotation).startswith(("Path", "Callable", "Sequence", "Any"))
        for argument in node.args.args
    )


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function behind its docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_no_long_parameter_lists() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}: {parameters(node)}"
        for path, node in functions()
        if parameters(node) > MOST_PARAMETERS and not is_command(path, node)
    ]
    assert long == []


def test_commands_only_parse_call_and_print() -> None:
    commands = [(path, node) for path, node in functions() if is_command(path, node)]
    assert len(commands) >= 18
    long = [
        f"{path}:{node.lineno} {node.name}: {body_lines(node)}"
        for path, node in commands
        if body_lines(node) > MOST_COMMAND_LINES
    ]
    assert long == []


def test_modules_are_short() -> None:
    counts = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "edge").rglob("*.py")
    }
    assert [f"{path}: {lines}" for path, lines in counts.items() if lines > MOST_MODULE_LINES] == []


def test_public_names_are_where_docs_say() -> None:
    for module, names in PUBLIC.items():
        imported = __import__(module, fromlist=["__all__"])
        for name in names:
            assert getattr(imported, name) is not None
        if module != "edge":
            assert callable(getattr(imported, names[0]))
        assert sorted(names) == sorted(imported.__all__), module


def test_only_the_command_line_prints() -> None:
    """`print` and typer.echo stand in edge/cli, and in the two programs that edge starts as processes."""
    programs = {Path("edge/probe.py"), Path("edge/llama/types.py")}
    found = []
    for path in sorted((ROOT / "edge").rglob("*.py")):
        place = path.relative_to(ROOT)
        if place.parts[1] == "cli" or place in programs:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{place}:{node.lineno}")
    assert found == []


def test_each_folder_lists_its_modules() -> None:
    """The docstring of each package names every module in it, one on a line."""
    for folder in sorted(path for path in (ROOT / "edge").iterdir() if (path / "__init__.py").is_file()):
        doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        listed = [line.split("  ")[0].rstrip("/") for line in doc.splitlines()[2:] if "  " in line]
        there = {
            path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
        }
        assert sorted(listed) == sorted(there - {"__init__"}), folder


def test_test_modules_have_names_of_their_own() -> None:
    """pytest imports them by their file's name: a second module of one name is an error where both are collected."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name, count in names.items() if count > 1] == []
