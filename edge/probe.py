"""The child program that tries what may end a process: a model file, an answer, the import of every dependency.

    python -m edge.probe try FILE      load a GGUF on the CPU and write a few tokens of an action
    python -m edge.probe answer FILE   the same with a task and its time, as one JSON line
    python -m edge.probe imports       import every dependency, one JSON line before and after each

It is started only as a process (edge/system/child.py). Exit code 1: the reason is on stderr.
"""

import importlib
import json
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

from edge.errors import EdgeError

_BUDGET = 24  # tokens of the answer that is tried


def try_file(path: str) -> None:
    """Load a file that may be damaged and run it once. Raises EdgeError, unless llama.cpp ends the process."""
    from edge.llama.loading import Loading
    from edge.runner import Runner

    with Runner.open(path, Loading(gpu_layers=0, trusted=True)) as runner:
        runner.act([{"role": "user", "content": "ls"}], 8)


def write_answer(path: str) -> None:
    """Load a model and write one short action, so that a product with weights of each of its types is computed."""
    from edge.answer.action import parse_action
    from edge.prompt import task_messages
    from edge.runner import Runner

    began = time.monotonic()
    with Runner.load(path) as runner:
        action = runner.act(task_messages("List the files here."), _BUDGET)
    parse_action(action.text)
    _print(seconds=time.monotonic() - began)


def import_all() -> None:
    """Import what edge needs, one JSON line before and after each, then llama.cpp and what it is."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    modules: dict[str, list[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            modules.setdefault(canonicalize_name(name), []).append(module)
    try:
        wanted = [Requirement(text) for text in distribution("terminal-edge").requires or ()]
    except PackageNotFoundError:
        _print(
            name="terminal-edge", error="is not installed here: pip install it, or sh install.sh of a bundle"
        )
        wanted = []
    for requirement in wanted:
        extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        if extra:
            continue
        name = canonicalize_name(requirement.name)
        _print(begins=name)
        try:
            installed = distribution(name).version
            if not requirement.specifier.contains(installed, prereleases=True):
                raise ImportError(f"is {installed}, edge needs {requirement.specifier}")
            for module in modules.get(name, []):
                if module.isidentifier() and not module.startswith("_"):
                    importlib.import_module(module)
        except PackageNotFoundError:
            _print(name=name, error=f"is not installed; edge needs {requirement.specifier or 'it'}")
        except Exception as error:  # whatever a package raises when it is imported
            _print(
                name=name, error=f"cannot be imported: {' '.join(str(error).split()) or type(error).__name__}"
            )
        else:
            _print(name=name, version=installed)
    _print(begins="llama.cpp")
    from edge.llama.devices import devices, inspect_llama

    found = inspect_llama(devices())
    loaded = ""
    if sys.platform == "linux":
        mapped = Path("/proc/self/maps").read_text().split()
        loaded = next((Path(place).name for place in mapped if "libggml-cpu" in place), "")
    _print(
        llama={
            "error": found.error,
            "ggml": found.ggml,
            "features": found.cpu_features,
            "devices": len(found.devices),
            "loaded": loaded,
        }
    )


def _print(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def main() -> int:
    """Run what the command line names. Returns the exit code."""
    programs = {"try": try_file, "answer": write_answer}
    try:
        if sys.argv[1] == "imports":
            import_all()
        else:
            programs[sys.argv[1]](sys.argv[2])
    except (EdgeError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
