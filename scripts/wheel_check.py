"""Build edge's wheel, install it into fresh environments, and try it there: `make wheel-check`.

python3 scripts/wheel_check.py                  with Python 3.11, 3.12 and 3.13, as far as this machine has them
python3 scripts/wheel_check.py 3.12 /opt/python3.14/bin/python3

The commands are the blocks of docs/install.md that have the comment `make wheel-check runs it (NAME)`. So this file has
no command of the installation, and the page cannot promise others than those that ran. Each environment is in a
temporary folder outside the checkout. edge runs there in an empty folder, with an empty HOME and without the caller's
variables. The script prints one line for each environment. The exit code is 1 if one fails, or if none was tried.

It needs Linux or macOS, git and a network. llama.cpp's wheel fits every Python 3, so pip makes it once, or takes it
from its cache, and every environment gets this file. With --compile, each one compiles llama.cpp as the page says.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "install.md"
BLOCK = re.compile(
    r"^<!-- not run: make wheel-check runs it \(([\w ]+)\) -->\n```sh\n(.*?)^```$", re.M | re.S
)
VERSIONS = ("3.11", "3.12", "3.13")
# What the blocks are for. `wheel`, `clone` and `uv` each install edge; the others run after them.
NAMES = {"build", "wheel", "clone", "uv", "try", "uninstall", "uninstall uv", "remove data"}
LLAMA = "llama-cpp-python"
PATIENCE = 120.0  # seconds for the server to start, to answer and to stop
KEPT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_WAIT_POLICY", "PATH", "SSL_CERT_FILE", "TMPDIR")


class CheckError(Exception):
    """What failed, in one line, and the end of what it printed."""


def blocks(page: str) -> dict[str, str]:
    """The commands that this script runs, by name. Raises CheckError if a block is missing, unknown or there twice."""
    found = BLOCK.findall(page)
    if sorted(name for name, _ in found) != sorted(NAMES):
        raise CheckError(
            f"{PAGE}: must have one block for each of {sorted(NAMES)}, has {sorted(n for n, _ in found)}"
        )
    return dict(found)


@dataclass(frozen=True)
class Python:
    """An interpreter that can make virtual environments."""

    program: str
    version: str


def find_python(wanted: str) -> Python | None:
    """The Python of a version such as 3.12, or of a path; None if this machine has none that works."""
    roots = [Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"]
    roots.append(Path.home() / ".local" / "share" / "uv" / "python")
    candidates = [wanted]
    if re.fullmatch(r"3\.\d+", wanted):
        name = f"python{wanted}"
        candidates = [name, *(str(p) for root in roots for p in sorted(root.glob(f"*{wanted}.*/bin/{name}")))]
    ask = "import ensurepip, platform, sys, venv; print(sys.executable, platform.python_version(), sep='\\n')"
    for candidate in candidates:
        try:
            done = subprocess.run([candidate, "-c", ask], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue  # for example a shim of pyenv for a version that is not chosen
        program, version = done.stdout.split("\n")[:2]
        if not re.fullmatch(r"3\.\d+", wanted) or version.startswith(f"{wanted}."):
            return Python(program, version)
    return None


def sh(commands: str, folder: Path, environment: Mapping[str, str], what: str) -> str:
    """What the commands print on stdout. They stop at the first that fails. Raises CheckError."""
    done = subprocess.run(
        ["sh", "-ec", commands],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise CheckError(f"{what} failed with exit code {done.returncode}\n{end}")
    return done.stdout


@dataclass(frozen=True)
class Workplace:
    """The temporary folder: a copy of the checkout, the wheel, llama.cpp's wheel, one folder for each environment."""

    folder: Path
    blocks: Mapping[str, str]
    packages: Path | None
    """Folder whose packages stand for edge's dependencies: nothing is downloaded. None: pip installs them."""

    @property
    def clone(self) -> Path:
        return self.folder / "clone"

    def caller(self, python: Python) -> dict[str, str]:
        """The caller's environment for pip and uv, with `python3` as this Python, and no package of the caller."""
        programs = self.folder / f"python-{python.version}"
        programs.mkdir(exist_ok=True)
        (programs / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(python.program)} "$@"\n')
        (programs / "python3").chmod(0o755)
        away = ("VIRTUAL_ENV", "CMAKE_ARGS", "EDGE_", "PYTHON", "HF_", "MAKE", "MFLAGS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(away)}
        tools = self.folder / "uv"
        kept |= {
            "PATH": os.pathsep.join([str(programs), str(tools / "bin"), kept["PATH"]]),
            "UV_TOOL_DIR": str(tools / "tools"),
            "UV_TOOL_BIN_DIR": str(tools / "bin"),
            "UV_PYTHON": python.program,
            "UV_PYTHON_DOWNLOADS": "never",
        }
        if self.packages is not None:
            kept |= {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
        llama = self.folder / "llama"
        if llama.is_dir():
            kept["PIP_FIND_LINKS"] = f"{llama} {kept.get('PIP_FIND_LINKS', '')}".strip()
            kept["UV_FIND_LINKS"] = str(llama)
        return kept

    def add_packages(self, python: Path) -> None:
        """Let the Python of an environment import what is in `packages`.

        Not with PYTHONPATH: other Pythons would see it too, and what they run at their start may change such a folder.
        """
        ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        (Path(site) / "packages.pth").write_text(f"{self.packages}\n")

    def copy_checkout(self) -> None:
        """Copy what git knows or would add, so that a build leaves nothing in the checkout."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise CheckError(f"{ROOT}: is not a clone: git ls-files: {done.stderr.strip()}")
        for name in done.stdout.split("\0"):
            if name and (ROOT / name).is_file():
                (self.clone / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.clone / name)

    def make_wheels(self, python: Python, compile_each: bool) -> Path:
        """Build edge's wheel and, once for all Pythons, llama.cpp's. Returns the path of edge's."""
        environment = self.caller(python)
        if self.packages is not None:  # they have the build tool; the block then finds this .venv
            sh("python3 -m venv .venv", self.clone, environment, "venv")
            self.add_packages(self.clone / ".venv" / "bin" / "python")
        sh(self.blocks["build"], self.clone, environment, "the build of the wheel")
        (wheel,) = (self.clone / "dist").glob("*.whl")
        if self.packages is None and not compile_each:
            wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            (llama,) = (text for text in wanted["dependencies"] if text.startswith(LLAMA))
            line = re.search(r'CMAKE_ARGS=".*?" ', self.blocks["clone"])
            assert line is not None
            make = f"{line[0]}.venv/bin/pip wheel --no-deps --wheel-dir ../llama {shlex.quote(llama)}"
            sh(make, self.clone, environment, "the build of llama.cpp")
            (made,) = (self.folder / "llama").glob("*.whl")
            if "-py3-none-" not in made.name:
                raise CheckError(f"{made.name}: fits only one Python; use --compile")
        return wheel


def install(workplace: Workplace, python: Python, way: str, wheel: Path) -> tuple[Path, dict[str, str]]:
    """Install edge as the block `way` says, in an empty folder or in the copy of the checkout.

    Returns a new folder, and the environment in which a user then runs `edge`. Raises CheckError.
    """
    folder = workplace.folder / f"{way}-{python.version}"
    for name in ("work", "empty", "home"):
        (folder / name).mkdir(parents=True)
    if way == "wheel":
        place = folder / "work"
        shutil.copy2(wheel, place)
    else:
        place = workplace.clone
        for left in ("dist", ".venv"):
            shutil.rmtree(place / left, ignore_errors=True)
    caller = workplace.caller(python)
    printed = sh(f"{workplace.blocks[way]}\ncommand -v edge", place, caller, f"the installation ({way})")
    program = Path(printed.splitlines()[-1])
    program = program if program.is_absolute() else place / program
    if workplace.folder not in program.parents:
        raise CheckError(f"{program}: this is another edge than the one that was installed")
    if workplace.packages is not None:
        workplace.add_packages(program.parent / "python")
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    path = os.pathsep.join([str(program.parent), caller["PATH"]])
    return folder, {**kept, "PATH": path, "HOME": str(folder / "home")}


def try_commands(workplace: Workplace, folder: Path, environment: Mapping[str, str], version: str) -> None:
    """Run the block `try` in an empty folder with an empty HOME, and check what it prints. Raises CheckError."""
    empty = folder / "empty"
    printed = sh(workplace.blocks["try"], empty, environment, "a first command").splitlines()
    if not printed or printed[0] != f"edge {version}":
        raise CheckError(f"edge --version prints {printed[:1]}, not edge {version}")
    actions = [line for line in printed if line.startswith("{")]
    if not actions or not isinstance(json.loads(actions[-1]).get("commands"), list):
        raise CheckError(f"edge run prints no action: {printed[-1:]}")
    if not printed[-1].startswith("ready:"):
        raise CheckError(f"edge doctor --offline ends with {printed[-1]}")
    if left := sorted(path.name for path in empty.iterdir()):
        print(f"  note: edge left {', '.join(left)} in the folder where it ran")


def try_server(folder: Path, environment: Mapping[str, str]) -> None:
    """Start `edge serve`, ask for one chat answer, stop it. Raises CheckError."""
    child = subprocess.Popen(
        ["edge", "serve", "--port", "0"],
        cwd=folder / "empty",
        env=dict(environment),
        executable=shutil.which("edge", path=environment["PATH"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    guard = threading.Timer(PATIENCE, child.kill)
    guard.start()
    said = []
    try:
        assert child.stderr is not None
        url = None
        for line in child.stderr:
            said.append(line)
            if found := re.search(r"http://\S+?/v1", line):
                url = found[0]
                break
        if url is None:
            raise CheckError("edge serve does not start\n" + "".join(said[-15:]))
        body = {
            "model": "any",
            "messages": [{"role": "user", "content": "List the files."}],
            "max_tokens": 40,
        }
        request = urllib.request.Request(
            f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never over the user's proxy
        with direct.open(request, timeout=PATIENCE) as answer:
            text = json.load(answer)["choices"][0]["message"]["content"]
        if not isinstance(json.loads(text).get("commands"), list):
            raise CheckError(f"edge serve answers without an action: {text}")
        child.send_signal(signal.SIGINT)
        child.stderr.read()
        child.wait(PATIENCE)
    except (OSError, ValueError, KeyError) as error:
        raise CheckError(f"edge serve does not answer: {error}") from None
    finally:
        guard.cancel()
        child.kill()
        child.wait()


def remove(
    workplace: Workplace, folder: Path, environment: Mapping[str, str], way: str, python: Python
) -> None:
    """Uninstall edge as the page says, then remove its data. Raises CheckError if a file of edge stays."""
    home = Path(environment["HOME"])
    assert workplace.folder in home.parents  # the next block removes folders below HOME
    block = "uninstall uv" if way == "uv" else "uninstall"
    caller = {**workplace.caller(python), "PATH": environment["PATH"]}
    sh(workplace.blocks[block], folder / "empty", caller, "the removal")
    if shutil.which("edge", path=environment["PATH"].split(os.pathsep)[0]):
        raise CheckError("after the removal, the program edge is still there")
    sh(workplace.blocks["remove data"], folder / "empty", environment, "the removal of data")
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    if own := [name for name in left if "edge" in name]:
        raise CheckError(f"after the removal, HOME still has {', '.join(own[:5])}")
    if left:  # for example of a graphics driver
        print(f"  note: others left {', '.join(left[:5])} in HOME")


def check(workplace: Workplace, python: Python, way: str, wheel: Path) -> bool:
    """Try one environment and print its line."""
    version = wheel.name.split("-")[1]
    began = time.monotonic()
    label = f"Python {python.version:8} {way:5}"
    try:
        folder, environment = install(workplace, python, way, wheel)
        installed = time.monotonic() - began
        try_commands(workplace, folder, environment, version)
        try_server(folder, environment)
        remove(workplace, folder, environment, way, python)
    except CheckError as error:
        print(f"{label}  FAILED: {error}", flush=True)
        return False
    print(
        f"{label}  ok: edge {version} installed in {installed:.0f} s; --version, doctor, run, serve, uninstall",
        flush=True,
    )
    return True


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pythons", nargs="*", default=VERSIONS, help="versions such as 3.12, or programs")
    parser.add_argument("--only", choices=("wheel", "clone", "uv"), help="try only this way to install")
    parser.add_argument("--compile", action="store_true", help="compile llama.cpp in each environment")
    parser.add_argument(
        "--packages",
        type=Path,
        metavar="DIR",
        help="take the dependencies from this site-packages folder instead of the network (for the tests)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the checks. Returns the exit code."""
    options = parsed(arguments)
    pythons = []
    for wanted in options.pythons or VERSIONS:
        if (found := find_python(wanted)) is None:
            print(
                f"Python {wanted:8}        not tried: this machine has none, or one without venv and ensurepip"
            )
        else:
            pythons.append(found)
    if not pythons:
        print("error: no Python was tried; name one: python3 scripts/wheel_check.py PYTHON", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="edge-wheel-check-") as folder:
        try:
            place = Path(folder).resolve()
            workplace = Workplace(place, blocks(PAGE.read_text(encoding="utf-8")), options.packages)
            workplace.copy_checkout()
            wheel = Path(shutil.copy2(workplace.make_wheels(pythons[0], options.compile), place))
        except CheckError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        size = wheel.stat().st_size / 1e6
        print(f"{wheel.name}: {size:.1f} MB; llama.cpp {llama_text(place, options)}", flush=True)
        tries = [(python, "wheel") for python in pythons] + [(pythons[0], "clone")]
        if shutil.which("uv"):
            tries.append((pythons[0], "uv"))
        elif options.only in (None, "uv"):
            print("uv                     not tried: this machine has no uv (pip install uv)")
        tries = [one for one in tries if options.only in (None, one[1])]
        results = [check(workplace, python, way, wheel) for python, way in tries]
    return 0 if results and all(results) else 1


def llama_text(place: Path, options: argparse.Namespace) -> str:
    made = sorted((place / "llama").glob("*.whl"))
    if made:
        return f"from {made[0].name}"
    return "is compiled in each environment" if options.compile else f"from {options.packages}"


if __name__ == "__main__":
    sys.exit(main())
