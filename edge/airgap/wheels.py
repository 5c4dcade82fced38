"""The wheels of edge and all it needs, for this platform and Python: those at hand, the others fetched or built.

llama.cpp is built anew for a bundle: pip's ordinary build is for the processor that it runs on. Everything else has the
version that is installed here. Of edge itself the wheel is made from the checkout that it runs from, or put together
again from its installed files, each of which must still have the SHA-256 with which it was installed.
"""

import base64
import csv
import hashlib
import importlib.util
import io
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path
from typing import Any, cast

from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from edge.airgap.manifest import Machine
from edge.errors import BundleError
from edge.version import __version__

EDGE, LLAMA = "terminal-edge", "llama-cpp-python"
_EXTRAS = ("serve",)  # what commands need; never `test`, which brings torch
_NO_NETWORK = re.compile(
    r"Failed to establish a new connection|NameResolutionError|Network is unreachable|ConnectTimeout|"
    r"Temporary failure in name resolution|Max retries exceeded|ProxyError|No route to host"
)
_ADDED_BY_PIP = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
_TELL_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Needed:
    """What a bundle installs: versions by canonical name, edge's own among them; the extras that come along."""

    packages: dict[str, str]
    extras: tuple[str, ...]


def needed(own_wheel: Path) -> Needed:
    """edge, whose wheel this is, and everything that it needs, in the versions installed here.

    An extra comes along where all of its packages are installed. Raises BundleError where something else is not.
    """
    (info,) = (path for path in zipfile.Path(own_wheel).iterdir() if path.name.endswith(".dist-info"))
    own = PathDistribution(cast(Any, info))
    found: dict[str, str] = {}
    extras = []
    try:
        _follow(own, (), found, set())
    except PackageNotFoundError as error:
        raise BundleError(
            f"{error.name} is not installed in {sys.prefix}, which edge needs: pip install it"
        ) from None
    for extra in _EXTRAS:
        more = dict(found)
        try:
            _follow(own, (extra,), more, set())
        except PackageNotFoundError:
            continue
        found = more
        extras.append(extra)
    return Needed(dict(sorted(found.items())), tuple(extras))


def _follow(
    package: Distribution, extras: Sequence[str], found: dict[str, str], seen: set[tuple[str, str]]
) -> None:
    found[canonicalize_name(package.name)] = package.version
    for text in package.requires or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not any(
            wanted.marker.evaluate({"extra": extra}) for extra in (*extras, "")
        ):
            continue
        key = (canonicalize_name(wanted.name), ",".join(sorted(wanted.extras)))
        if key not in seen:
            seen.add(key)
            installed = distribution(wanted.name)
            if not wanted.specifier.contains(installed.version, prereleases=True):
                raise BundleError(
                    f"{wanted.name} {installed.version} is installed, {package.name} needs {wanted.specifier}: "
                    f"pip install '{wanted.name}{wanted.specifier}'"
                )
            _follow(installed, tuple(wanted.extras), found, seen)


def make_wheels(folder: Path, tell: Callable[[str], None]) -> tuple[Needed, dict[str, Path]]:
    """What is needed, and a wheel of each, by canonical name. Those in `folder` are taken, the others made and put
    there; edge's own is always made anew. `tell` gets lines on what is done. Raises BundleError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = needed(_make_edge(folder))
        return wanted, _make_others(wanted, folder, tell)
    except OSError as error:
        raise BundleError(f"{error.filename or folder}: {error.strerror or error}") from None


def _make_others(wanted: Needed, folder: Path, tell: Callable[[str], None]) -> dict[str, Path]:
    have = _at_hand(wanted, folder)
    if LLAMA in have:
        _check_portable(have[LLAMA])
    missing = [name for name in wanted.packages if name not in have]
    if LLAMA in missing:
        check_compiler()
    if others := [name for name in missing if name != LLAMA]:
        tell(f"fetching {len(others)} of {len(wanted.packages)} wheels into {folder}")
        pins = [f"{name}=={wanted.packages[name]}" for name in others]
        _pip_wheel(pins, folder, ", ".join(pins[:3]) + (" …" if len(pins) > 3 else ""))
    if LLAMA in missing:
        _build_llama(wanted.packages[LLAMA], folder, tell)
    have = _at_hand(wanted, folder)
    if lost := [name for name in wanted.packages if name not in have]:
        raise BundleError(
            f"{folder}: pip made no wheel of {lost[0]} {wanted.packages[lost[0]]} for this Python; remove its files "
            "there and try again"
        )
    _check_portable(have[LLAMA])
    return have


def target(wheels: Sequence[Path]) -> Machine:
    """For which machines these wheels are, by their names and by what their libraries ask of the C library.

    Raises BundleError for a wheel that cannot be read.
    """
    oldest = {"glibc": (0, 0), "glibcxx": (0, 0)}
    processors: list[str] = []
    for wheel in wheels:
        many = [(int(a), int(b)) for a, b in re.findall(r"manylinux_(\d+)_(\d+)_", wheel.name)]
        if many:
            oldest["glibc"] = max(oldest["glibc"], min(many))
        if "-linux_" not in wheel.name:
            continue  # made for many Linux systems, its name says for which
        for name, data in _libraries(wheel):
            processors += re.findall(r"libggml-cpu-(\w+)\.so$", name)
            for key, pattern in (
                ("glibc", rb"\0GLIBC_(\d+)\.(\d+)"),
                ("glibcxx", rb"\0GLIBCXX_3\.(\d+)\.(\d+)"),
            ):
                versions = [(int(a), int(b)) for a, b in re.findall(pattern, data)]
                oldest[key] = max([oldest[key], *versions])
    return Machine(
        python=".".join(platform.python_version_tuple()[:2]),
        implementation=sys.implementation.name,
        system=platform.system(),
        machine=platform.machine(),
        glibc="{}.{}".format(*oldest["glibc"]) if any(oldest["glibc"]) else "",
        glibcxx="3.{}.{}".format(*oldest["glibcxx"]) if any(oldest["glibcxx"]) else "",
        processors=tuple(sorted(set(processors))),
    )


def _libraries(wheel: Path) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if re.search(r"\.so(\.[\d.]+)?$", name)]
            return [(name, archive.read(name)) for name in names]
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise BundleError(f"{wheel}: is no whole wheel: {error}; remove it") from None


def _at_hand(wanted: Needed, folder: Path) -> dict[str, Path]:
    """The wheels in a folder that this Python can install, of the wanted versions; the best of several."""
    rank = {tag: index for index, tag in enumerate(sys_tags())}
    best: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        fits = [rank[tag] for tag in tags if tag in rank]
        if not fits or wanted.packages.get(name) != str(version):
            continue
        if name not in best or min(fits) < best[name][0]:
            best[name] = (min(fits), path)
    return {name: path for name, (_, path) in sorted(best.items())}


def _all_variants() -> bool:
    """Whether llama.cpp is built once for each generation of processors; elsewhere for the oldest of the kind."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _check_portable(wheel: Path) -> None:
    if _all_variants() and not any("libggml-cpu-x64.so" in name for name, _ in _libraries(wheel)):
        raise BundleError(
            f"{wheel}: is built for one processor; remove it, and edge bundle builds one for all"
        )


def check_compiler() -> None:
    """Raise BundleError where there is no C or C++ compiler. Windows' is not found by name, and not looked for."""
    if sys.platform == "win32":
        return
    for variable, names in (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++"))):
        own = shlex.split(os.environ.get(variable, ""))[:1]
        if not any(shutil.which(name) for name in own or names):
            raise BundleError(
                f"{own[0] if own else names[0]}: no such compiler, and llama.cpp must be built for the bundle: "
                "install one (Debian: build-essential), or give --wheels a folder with a wheel built elsewhere"
            )


def _build_llama(version: str, folder: Path, tell: Callable[[str], None]) -> None:
    check_compiler()
    flags = [
        "-DLLAVA_BUILD=OFF",
        f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={Path(__file__).resolve().with_name('llama_build.cmake')}",
        "-DGGML_NATIVE=OFF",
        *(("-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON") if _all_variants() else ()),
    ]
    kind = "every generation of " if _all_variants() else "any "
    tell(
        f"building llama.cpp (llama-cpp-python {version}) for {kind}{platform.machine()}; this takes minutes"
    )
    began = told = time.monotonic()

    def watch(line: str) -> None:
        nonlocal told
        step = re.match(r"\s*\[(\d+)/(\d+)\]", line)
        if step and time.monotonic() - told >= _TELL_EVERY:
            told = time.monotonic()
            tell(f"llama.cpp: step {step[1]} of {step[2]}, {(told - began) / 60:.1f} min")

    _pip_wheel(
        [f"{LLAMA}=={version}", "--no-binary", LLAMA, "--no-cache-dir", "--verbose"],
        folder,
        f"llama-cpp-python {version}",
        watch=watch,
        # What the person sets comes last and wins.
        CMAKE_ARGS=f"{shlex.join(flags)} {os.environ.get('CMAKE_ARGS', '')}".strip(),
    )
    tell(f"llama.cpp is built: {(time.monotonic() - began) / 60:.1f} min")


def _pip_wheel(
    arguments: Sequence[str],
    folder: Path,
    what: str,
    *,
    watch: Callable[[str], None] = lambda line: None,
    **environment: str,
) -> None:
    """`pip wheel --no-deps`; the wheels get into `folder` once all are whole. Raises BundleError."""
    if importlib.util.find_spec("pip") is None:
        raise BundleError(
            f"{sys.executable} has no pip, which makes the wheels: {sys.executable} -m ensurepip"
        )
    with tempfile.TemporaryDirectory(prefix=".edge-", suffix=".tmp", dir=folder) as temporary:
        command = [
            *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", temporary, "--retries", "1"),
            *("--disable-pip-version-check", "--no-input", "--progress-bar", "off", *arguments),
        ]
        lines: deque[str] = deque(maxlen=500)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **environment},
            start_new_session=True,
        ) as child:
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    lines.append(" ".join(line.split()))
                    watch(line)
                status = child.wait()
            finally:
                if child.poll() is None:  # interrupted: the compilers end with it
                    if sys.platform != "win32":
                        os.killpg(child.pid, signal.SIGTERM)
                    child.kill()
        if status:
            raise BundleError(_why(lines, what, folder))
        for wheel in Path(temporary).glob("*.whl"):
            os.replace(wheel, folder / wheel.name)


def _why(lines: Sequence[str], what: str, store: Path) -> str:
    if any(_NO_NETWORK.search(line) for line in lines):
        return (
            f"{what}: no network, and not in {store}: connect, or give --wheels a folder that has the wheels"
        )
    errors = [line for line in lines if re.match(r"(ERROR|error|CMake Error|FAILED)\b", line)]
    compiler = [line for line in lines if re.search(r"\b(fatal )?error: ", line)]
    reason = (compiler or errors or list(lines) or ["no reason given"])[0]
    return f"{what}: pip cannot make its wheel: {reason.removeprefix('ERROR: ')}"


def _make_edge(folder: Path) -> Path:
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent
    place = folder / f"terminal_edge-{__version__}-py3-none-any.whl"
    if (package / "_models").is_dir():
        repack(distribution(EDGE), place)
    elif (checkout / "pyproject.toml").is_file():
        ready = importlib.util.find_spec("hatchling") is not None
        _pip_wheel(
            [*(["--no-build-isolation"] if ready else []), str(checkout)], folder, f"edge {__version__}"
        )
    else:
        raise BundleError(f"{package}: neither a checkout nor installed from a wheel: install edge with pip")
    return place


def repack(package: Distribution, place: Path) -> None:
    """Write an installed package's wheel to `place`, from the files that its RECORD lists (PEP 376, PEP 427).

    Raises BundleError where a file was changed since, or none is listed.
    """
    files = sorted(package.files or (), key=str)
    info = next((file.parts[0] for file in files if file.parts[0].endswith(".dist-info")), "")
    rows: list[tuple[str, str, int | str]] = []
    temporary = place.with_suffix(f".{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                name = file.as_posix()
                if ".." in file.parts or "__pycache__" in file.parts:
                    continue  # the program in bin and compiled modules, which each installation makes
                if file.parts[0] == info and file.name in _ADDED_BY_PIP:
                    continue
                data = Path(str(package.locate_file(file))).read_bytes()
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                if file.hash is None or file.hash.value != digest:
                    raise BundleError(
                        f"{package.locate_file(file)}: was changed since it was installed; install {package.name} anew"
                    )
                rows.append((name, f"sha256={digest}", len(data)))
                _add(archive, name, data)
            if all(name.startswith(f"{info}/") for name, _, _ in rows):
                raise BundleError(
                    f"{package.name} {package.version}: its installed files are not listed; install it with pip"
                )
            rows.append((f"{info}/RECORD", "", ""))
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            _add(archive, f"{info}/RECORD", text.getvalue().encode())
        os.replace(temporary, place)
    except OSError as error:
        raise BundleError(f"{error.filename or place}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # of 1980, so that the same files give the same wheel
    entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)
