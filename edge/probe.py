"""The child program that tries what can stop a process: a model file, an answer, the import of each dependency.

    python -m edge.probe try FILE [ADAPTER]   load a GGUF on the CPU and write a few tokens; prints JSON lines
    python -m edge.probe answer FILE          load a GGUF, answer a task, and print the seconds as one JSON line
    python -m edge.probe imports              import each dependency; print one JSON line before and after each

edge starts it only as a process (edge/system/child.py). With exit code 1, the reason is on stderr.
"""

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import ContextError, EdgeError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_MAX_TOKENS = 24  # of the answer


def try_file(path: str, *adapters: str) -> None:
    """Load a file that can be damaged and run it once, with these adapters. llama.cpp may stop the process.

    Prints the lines `{"began": true}`, then `{"ran": true}` or `{"refused": reason, "room": …}`. `room`: whether it
    lacked only memory or context. Raises EdgeError.
    """
    from edge.answer.answering import Answering
    from edge.llama.loading import Adapter, Loading
    from edge.runner import Runner

    _print(began=True)
    try:
        named = tuple(Adapter(Path(adapter)) for adapter in adapters)
        with Runner.open(path, Loading(gpu_layers=0, trusted=True, adapters=named)) as runner:
            # Without the chat template: it is the file's too, and could fail here only.
            runner.answer(runner.encode("ls") or [0], Answering(8, constrained=False))
            _print(ran=True)
            with contextlib.suppress(EdgeError):
                runner.act([{"role": "user", "content": "ls"}], 8)
    except EdgeError as problem:
        reason = str(problem)
        for name in (path, *adapters):
            reason = reason.removeprefix(f"{name}: ")
        _print(refused=reason, room=isinstance(problem, ContextError) or "alloc" in reason)
        raise


def write_answer(path: str) -> None:
    """Load a model and write one short action. This multiplies with weights of each of the model's types."""
    from edge.answer.action import parse_action
    from edge.prompt import task_messages
    from edge.runner import Runner

    began = time.monotonic()
    with Runner.load(path) as runner:
        action = runner.act(task_messages("List the files here."), _MAX_TOKENS)
    parse_action(action.text)
    _print(seconds=time.monotonic() - began)


def import_all() -> None:
    """Import every dependency of edge, then llama.cpp. Print one JSON line before and after each.

    `{"importing": name}` comes before; `{"name": …, "version": …}` or `{"name": …, "error": …}` comes after. The last
    line is `{"llama": {…}}`.
    """
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in distribution("terminal-edge").requires or ()]
    except PackageNotFoundError:
        _print(
            name="terminal-edge",
            error="is not installed: install it with pip, or with install.sh of a bundle",
        )
        wanted = []
    modules = _modules()
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):  # not only for an extra
            _import(requirement, modules)
    _print(importing="llama.cpp")
    _print(llama=_llama())


def _modules() -> dict[str, list[str]]:
    """The modules of each installed package, by the canonical name of the package."""
    from packaging.utils import canonicalize_name

    modules: dict[str, list[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            modules.setdefault(canonicalize_name(name), []).append(module)
    return modules


def _import(requirement: "Requirement", modules: dict[str, list[str]]) -> None:
    from packaging.utils import canonicalize_name

    name = canonicalize_name(requirement.name)
    _print(importing=name)
    try:
        installed = distribution(name).version
        if not requirement.specifier.contains(installed, prereleases=True):
            _print(name=name, error=f"version {installed} is installed, edge needs {requirement.specifier}")
            return
        for module in modules.get(name, []):
            if module.isidentifier() and not module.startswith("_"):
                importlib.import_module(module)
    except PackageNotFoundError:
        _print(name=name, error=f"is not installed; edge needs {name}{requirement.specifier}")
    except Exception as error:  # a package can raise anything when it is imported
        reason = " ".join(str(error).split()) or type(error).__name__
        _print(name=name, error=f"cannot be imported: {reason}")
    else:
        _print(name=name, version=installed)


def _llama() -> dict[str, Any]:
    """What llama.cpp is: its version, CPU features, number of devices, and the CPU library that it loaded."""
    from edge.llama.devices import devices, inspect_llama

    llama = inspect_llama(devices())
    loaded = ""
    if sys.platform == "linux":
        mapped = Path("/proc/self/maps").read_text().split()
        loaded = next((Path(place).name for place in mapped if "libggml-cpu" in place), "")
    return {
        "error": llama.error,
        "ggml": llama.ggml,
        "features": llama.cpu_features,
        "devices": len(llama.devices),
        "loaded": loaded,
    }


def _print(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def main() -> int:
    """Run the program that the command line names. Returns the exit code."""
    programs: dict[str, Callable[..., None]] = {"try": try_file, "answer": write_answer}
    try:
        if sys.argv[1] == "imports":
            import_all()
        else:
            programs[sys.argv[1]](*sys.argv[2:])
    except (EdgeError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
