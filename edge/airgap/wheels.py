"""Make the wheels of edge and its dependencies, for this platform and this Python.

Each package has the version that is installed here. edge uses the wheels that a folder already has, and pip fetches or
builds the others. edge builds llama.cpp for every processor generation, because pip's ordinary build is only for the
processor that it runs on. edge makes its own wheel from the checkout that it runs from, or again from its installed
files. Each installed file must still have the SHA-256 of its installation.
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
from edge.system.child import program_group
from edge.system.files import whole_file
from edge.version import __version__

EDGE, LLAMA = "terminal-edge", "llama-cpp-python"
_NO_NETWORK = re.compile(
    r"Failed to establish a new connection|NameResolutionError|Network is unreachable|ConnectTimeout|"
    r"Temporary failure in name resolution|Max retries exceeded|ProxyError|No route to host"
)
_ADDED_BY_PIP = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
_SAY_EVERY = 30.0  # seconds between two lines about a build


@dataclass(frozen=True)
class Needed:
    """What a bundle installs: the version of each package by canonical name, edge included."""

    packages: dict[str, str]


def needed(own_wheel: Path) -> Needed:
    """edge (`own_wheel` is its wheel) and its dependencies, in the versions that are installed here.

    Leaves out edge's extras: `test` installs torch. Raises BundleError if a package is missing.
    """
    (info,) = (path for path in zipfile.Path(own_wheel).iterdir() if path.name.endswith(".dist-info"))
    own = PathDistribution(cast(Any, info))
    versions: dict[str, str] = {}
    try:
        _follow(own, (), versions, set())
    except PackageNotFoundError as error:
        raise BundleError(
            f"{error.name}: is not installed in {sys.prefix}, and edge needs it: install it with pip"
        ) from None
    return Needed(dict(sorted(versions.items())))


def _follow(
    package: Distribution, extras: Sequence[str], versions: dict[str, str], seen: set[tuple[str, str]]
) -> None:
    versions[canonicalize_name(package.name)] = package.version
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
                    f"{wanted.name}: version {installed.version} is installed, {package.name} needs "
                    f"{wanted.specifier}: pip install '{wanted.name}{wanted.specifier}'"
                )
            _follow(installed, tuple(wanted.extras), versions, seen)


def make_wheels(folder: Path, say: Callable[[str], None] | None = None) -> tuple[Needed, dict[str, Path]]:
    """The packages of a bundle, and the wheel of each by canonical name.

    Uses the wheels in `folder`, and puts the others there. Always makes edge's own wheel again. `say` receives lines
    about the work. Raises BundleError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = needed(make_edge(folder))
        return wanted, _make_others(wanted, folder, say or (lambda text: None))
    except OSError as error:
        raise BundleError(f"{error.filename or folder}: cannot be used: {error.strerror or error}") from None


def _make_others(wanted: Needed, folder: Path, say: Callable[[str], None]) -> dict[str, Path]:
    have = _usable(wanted, folder)
    if LLAMA in have:
        _check_portable(have[LLAMA])
    missing = [name for name in wanted.packages if name not in have]
    if LLAMA in missing:
        check_compiler()
    if others := [name for name in missing if name != LLAMA]:
        say(f"fetching {len(others)} of {len(wanted.packages)} wheels into {folder}")
        pins = [f"{name}=={wanted.packages[name]}" for name in others]
        _pip_wheel(pins, folder, ", ".join(pins[:3]) + (" …" if len(pins) > 3 else ""))
    if LLAMA in missing:
        _build_llama(wanted.packages[LLAMA], folder, say)
    have = _usable(wanted, folder)
    if lost := [name for name in wanted.packages if name not in have]:
        raise BundleError(
            f"{folder}: pip made no wheel of {lost[0]} {wanted.packages[lost[0]]} for this Python; remove the "
            "wheels of this package there and try again"
        )
    _check_portable(have[LLAMA])
    return have


def target(wheels: Sequence[Path]) -> Machine:
    """The machines that these wheels run on, from their names and from the symbol versions that their libraries need.

    Raises BundleError if a wheel cannot be read.
    """
    oldest = {"glibc": (0, 0), "glibcxx": (0, 0)}
    processors: list[str] = []
    for wheel in wheels:
        many = [(int(a), int(b)) for a, b in re.findall(r"manylinux_(\d+)_(\d+)_", wheel.name)]
        if many:
            oldest["glibc"] = max(oldest["glibc"], min(many))
        if "-linux_" not in wheel.name:
            continue  # its name has the glibc version, or it needs none
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
        raise BundleError(f"{wheel}: is not a complete wheel ({error}): remove it and try again") from None


def _usable(wanted: Needed, folder: Path) -> dict[str, Path]:
    """The wheels in `folder` of the wanted versions that this Python can install: the best one of each package."""
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
    """Whether edge builds llama.cpp for each processor generation. Elsewhere: only for the oldest processor."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _check_portable(wheel: Path) -> None:
    if _all_variants() and not any("libggml-cpu-x64.so" in name for name, _ in _libraries(wheel)):
        raise BundleError(
            f"{wheel}: is built for one processor: remove it, and edge bundle builds one for all processors"
        )


def check_compiler() -> None:
    """Raise BundleError if there is no C or C++ compiler. Windows has no fixed name for it: no check there."""
    if sys.platform == "win32":
        return
    for variable, names in (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++"))):
        own = shlex.split(os.environ.get(variable, ""))[:1]
        if not any(shutil.which(name) for name in own or names):
            raise BundleError(
                f"{own[0] if own else names[0]}: no such compiler, and edge must build llama.cpp for the bundle: "
                "install one (Debian: build-essential), or give a folder with a finished wheel with --wheels"
            )


def _build_llama(version: str, folder: Path, say: Callable[[str], None]) -> None:
    check_compiler()
    flags = [
        "-DLLAVA_BUILD=OFF",
        f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={Path(__file__).resolve().with_name('llama_build.cmake')}",
        "-DGGML_NATIVE=OFF",
        *(("-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON") if _all_variants() else ()),
    ]
    processors = (
        f"every generation of {platform.machine()} processors"
        if _all_variants()
        else f"any {platform.machine()} processor"
    )
    say(f"building llama.cpp (llama-cpp-python {version}) for {processors}; this takes some minutes")
    began = said = time.monotonic()

    def watch(line: str) -> None:
        nonlocal said
        step = re.match(r"\s*\[(\d+)/(\d+)\]", line)
        if step and time.monotonic() - said >= _SAY_EVERY:
            said = time.monotonic()
            say(f"llama.cpp: step {step[1]} of {step[2]}, {(said - began) / 60:.1f} min")

    _pip_wheel(
        [f"{LLAMA}=={version}", "--no-binary", LLAMA, "--no-cache-dir", "--verbose"],
        folder,
        f"llama-cpp-python {version}",
        watch=watch,
        # The user's own flags come last, so that they win.
        CMAKE_ARGS=f"{shlex.join(flags)} {os.environ.get('CMAKE_ARGS', '')}".strip(),
    )
    say(f"llama.cpp is built: {(time.monotonic() - began) / 60:.1f} min")


def _pip_wheel(
    arguments: Sequence[str],
    folder: Path,
    what: str,
    *,
    watch: Callable[[str], None] = lambda line: None,
    **environment: str,
) -> None:
    """Run `pip wheel --no-deps`; move the wheels to `folder` when all are complete. Raises BundleError."""
    if importlib.util.find_spec("pip") is None:
        raise BundleError(
            f"{sys.executable}: has no pip to make the wheels with: run {sys.executable} -m ensurepip"
        )
    with tempfile.TemporaryDirectory(prefix=".edge-", suffix=".tmp", dir=folder) as temporary:
        command = [
            *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", temporary, "--retries", "1"),
            *("--disable-pip-version-check", "--no-input", "--progress-bar", "off", *arguments),
        ]
        lines: deque[str] = deque(maxlen=500)
        with program_group(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, environment=environment
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                lines.append(" ".join(line.split()))
                watch(line)
            status = child.wait()
        if status:
            raise BundleError(_why(lines, what, folder))
        for wheel in Path(temporary).glob("*.whl"):
            os.replace(wheel, folder / wheel.name)


def _why(lines: Sequence[str], what: str, store: Path) -> str:
    if any(_NO_NETWORK.search(line) for line in lines):
        return f"{what}: no network, and not in {store}: connect, or give a folder that has the wheels with --wheels"
    errors = [line for line in lines if re.match(r"(ERROR|error|CMake Error|FAILED)\b", line)]
    compiler = [line for line in lines if re.search(r"\b(fatal )?error: ", line)]
    reason = (compiler or errors or list(lines) or ["pip gives no reason"])[0]
    return f"{what}: pip cannot make the wheel: {reason.removeprefix('ERROR: ')}"


def make_edge(folder: Path) -> Path:
    """Make the wheel of this edge in `folder`, from its checkout or its installed files. Raises BundleError."""
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
        raise BundleError(
            f"{package}: is not in a checkout and not installed from a wheel: install edge with pip"
        )
    return place


def repack(package: Distribution, place: Path) -> None:
    """Write the wheel of an installed package to `place`, from the files in its RECORD (PEP 376, PEP 427).

    Raises BundleError if a file changed after the installation, or if the RECORD has no files.
    """
    files = sorted(package.files or (), key=str)
    info = next((file.parts[0] for file in files if file.parts[0].endswith(".dist-info")), "")
    rows: list[tuple[str, str, int | str]] = []
    try:
        with (
            whole_file(place) as (_, descriptor),
            os.fdopen(descriptor, "wb", closefd=False) as stream,
            zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for file in files:
                name = file.as_posix()
                if ".." in file.parts or "__pycache__" in file.parts:
                    continue  # each installation makes its own programs and compiled modules
                if file.parts[0] == info and file.name in _ADDED_BY_PIP:
                    continue
                data = Path(str(package.locate_file(file))).read_bytes()
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                if file.hash is None or file.hash.value != digest:
                    raise BundleError(
                        f"{package.locate_file(file)}: changed after its installation: "
                        f"install {package.name} again"
                    )
                rows.append((name, f"sha256={digest}", len(data)))
                _add(archive, name, data)
            if all(name.startswith(f"{info}/") for name, _, _ in rows):
                raise BundleError(
                    f"{package.name} {package.version}: its RECORD lists no installed files: install it with pip"
                )
            rows.append((f"{info}/RECORD", "", ""))
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            _add(archive, f"{info}/RECORD", text.getvalue().encode())
    except OSError as error:
        raise BundleError(f"{error.filename or place}: {error.strerror or error}") from None


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # its time is 1980, so the same files give the same wheel
    entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)
