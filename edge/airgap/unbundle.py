"""Check a bundle byte by byte, unpack it and install it, without a network.

edge trusts nothing in the tar. The manifest comes first. It determines every other byte except the contents of the
files, and it has their SHA-256 (edge/airgap/manifest.py). So a link, a device, a path that leaves the folder, or a
duplicate or unlisted member is a header that cannot be there. edge checks the whole tar before it writes anything, and
again while it writes.
"""

import contextlib
import hashlib
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edge.airgap.manifest import (
    INSTALL,
    LARGEST_MANIFEST,
    MANIFEST,
    TOP,
    Machine,
    Manifest,
    Member,
    header,
    padding,
    read_manifest,
    tar_end,
    tar_size,
)
from edge.errors import BundleError, Interrupted
from edge.system.child import program_group
from edge.system.files import BINARY
from edge.system.locks import lock_folder
from edge.system.machine import free_disk
from edge.system.progress import Progress
from edge.system.text import counted, size

_PIECE = 1 << 20  # bytes
_INSTALLED = 5  # most bytes on the disk for each byte of wheels (docs/air-gap.md)
_KINDS = {
    tarfile.REGTYPE: "another file",
    tarfile.DIRTYPE: "a folder",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
}


@dataclass(frozen=True)
class Unbundled:
    """An unpacked bundle. `sha256` is that of its manifest. `installed`: whether edge is installed in folder/venv."""

    folder: Path
    manifest: Manifest
    sha256: str
    installed: bool

    def __str__(self) -> str:
        files = f"{counted(len(self.manifest.files), 'file')}, {size(self.manifest.size)}"
        text = f"{self.folder}: {files}, checked; SHA-256 of the manifest {self.sha256}"
        return text if self.installed else f"{text}\nTo install it: sh {self.folder / INSTALL}"


def unbundle(
    path: Path,
    to: Path,
    *,
    install: bool = True,
    python: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Unbundled:
    """Check the bundle at `path`, unpack it to `to` (a new or empty folder), and install it there.

    `python` is the interpreter to install with; the default is the one that runs this. The output of the installation
    goes to standard output. `progress` receives the bytes done and the total while edge reads the bundle.

    Raises BundleError. Then `to` is as it was, unless the installation failed. Raises Interrupted if Ctrl-C stops the
    installation.
    """
    if not str(path) or not str(to):
        raise BundleError("the name of the bundle or of the folder is empty")
    if install and sys.platform == "win32":
        raise BundleError(
            f"{path}: its {INSTALL} needs a POSIX shell, which Windows does not have: use WSL, or --no-install"
        )
    try:
        if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
            raise BundleError(f"{to}: already exists: name a new folder")
        with _opened(path) as stream:
            tar = _Tar(stream, str(path))
            manifest = tar.manifest()
            if install:
                _check_machine(manifest.machine, path, python)
            _check_room(manifest, to, install)
            _unpack(tar, manifest, to, progress)
    except OSError as error:
        where = error.filename if isinstance(error.filename, (str, bytes)) else to
        raise BundleError(f"{os.fsdecode(where)}: {error.strerror or error}") from None
    if install:
        _install(to, python or sys.executable)
    return Unbundled(to, manifest, hashlib.sha256(manifest.to_bytes()).hexdigest(), install)


def _opened(path: Path) -> BinaryIO:
    """Raises BundleError if the file cannot be read."""
    advice = "give the tar file that edge bundle wrote"
    if path.is_dir():
        raise BundleError(f"{path}: is a folder; {advice}")
    try:
        return path.open("rb")
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}; {advice}") from None


def _unpack(tar: "_Tar", manifest: Manifest, to: Path, progress: Progress) -> None:
    """Check the whole tar, then check it again while its files are written. Raises BundleError, OSError."""
    done = 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(done, 2 * manifest.size)

    tar.read(None, count)
    with _folder_beside(to) as temporary:
        if tar.read(temporary, count) != manifest:
            raise BundleError(f"{tar.where}: changed while edge read it; try again")
        os.rename(temporary, to)


class _Tar:
    """A bundle to read, byte by byte as its manifest says. `where` names it in errors.

    The methods raise BundleError at the first wrong byte, and OSError.
    """

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream = stream
        self.where = where

    def manifest(self) -> Manifest:
        """Read the manifest at the beginning of the tar, and check the size of the tar against it."""
        self._stream.seek(0)
        total = os.fstat(self._stream.fileno()).st_size
        first = self._stream.read(tarfile.BLOCKSIZE)
        try:
            n_bytes = tarfile.TarInfo.frombuf(first, "utf-8", "surrogateescape").size
        except tarfile.HeaderError:
            n_bytes = -1
        if not 0 < n_bytes <= LARGEST_MANIFEST or first != header(MANIFEST, n_bytes):
            raise BundleError(
                f"{self.where}: is not an edge bundle: it does not begin with a manifest of edge bundle"
            )
        data = self._stream.read(n_bytes)
        if len(data) < n_bytes:
            raise BundleError(f"{self.where}: is truncated in its manifest; fetch the bundle again")
        manifest = read_manifest(data, self.where)
        if total != (whole := tar_size(manifest)):
            problem = "is truncated" if total < whole else "has bytes that its manifest does not list"
            raise BundleError(
                f"{self.where}: {problem}: {total:,} bytes, not {whole:,}; fetch the bundle again"
            )
        return manifest

    def read(self, folder: Path | None, count: Callable[[int], None]) -> Manifest:
        """Read and check the whole tar; write its files to `folder` if there is one. `count` receives bytes."""
        manifest = self.manifest()
        data = manifest.to_bytes()
        self._expect(padding(len(data)), f"after {MANIFEST}")
        with _new_file(folder, MANIFEST) as file:
            file.write(data)
        for member in manifest.files:
            self._expect_header(member)
            with _new_file(folder, member.path) as file:
                self._copy(member, file, count)
            self._expect(padding(member.size), f"after {member.path}")
        self._expect(tar_end(self._stream.tell()), "at its end")
        if self._stream.read(1):
            raise BundleError(f"{self.where}: has bytes after its end; fetch the bundle again")
        return manifest

    def _copy(self, member: Member, file: BinaryIO, count: Callable[[int], None]) -> None:
        digest, left = hashlib.sha256(), member.size
        while left:
            piece = self._stream.read(min(left, _PIECE))
            if not piece:
                raise BundleError(f"{self.where}: is truncated in {member.path}; fetch the bundle again")
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
            count(len(piece))
        if digest.hexdigest() != member.sha256:
            raise BundleError(
                f"{self.where}: {member.path} is damaged: its SHA-256 differs from the manifest; "
                "fetch the bundle again"
            )

    def _expect(self, wanted: bytes, place: str) -> None:
        if self._stream.read(len(wanted)) != wanted:
            raise BundleError(f"{self.where}: is damaged {place}; fetch the bundle again")

    def _expect_header(self, member: Member) -> None:
        wanted = header(member.path, member.size)
        block = self._stream.read(len(wanted))
        if block == wanted:
            return
        try:
            entry = tarfile.TarInfo.frombuf(block[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
            kind = _KINDS.get(entry.type, "something else")
            problem = f"{kind}, {entry.name!r} of {entry.size:,} bytes,"
        except tarfile.HeaderError:
            problem = "no valid tar header"
        raise BundleError(
            f"{self.where}: has {problem} in the place of {TOP}/{member.path}; fetch the bundle again"
        )


@contextlib.contextmanager
def _new_file(folder: Path | None, path: str) -> Iterator[BinaryIO]:
    """A new file in `folder`, synchronized to the disk at the end. Without a folder: the null device."""
    if folder is None:
        with open(os.devnull, "wb") as nothing:
            yield nothing
        return
    place = folder / path
    place.parent.mkdir(exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY
    with os.fdopen(os.open(place, flags, 0o755 if path == INSTALL else 0o644), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _folder_beside(place: Path) -> Iterator[Path]:
    """A temporary folder beside `place`, removed at the end unless it was renamed.

    Also removes the folders of killed processes: a lock shows whether a folder is in use.
    """
    parent = place.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f".{place.name}.*.tmp"):
        if not old.is_symlink() and old.is_dir() and len(old.name) == len(place.name) + 14:
            with contextlib.suppress(OSError):
                if (descriptor := lock_folder(old)) is not None:
                    shutil.rmtree(old, ignore_errors=True)
                    os.close(descriptor)
    temporary = parent / f".{place.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    descriptor = lock_folder(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _check_machine(machine: Machine, path: Path, python: str | None) -> None:
    """Raise BundleError if the bundle is for another machine. install.sh asks the interpreter itself again."""
    here = {"system": platform.system(), "machine": platform.machine()}
    if python is None:
        here["implementation"] = sys.implementation.name
        here["python"] = ".".join(platform.python_version_tuple()[:2])
    for name, value in here.items():
        if getattr(machine, name) != value:
            raise BundleError(
                f"{path}: is for {name} {getattr(machine, name)}, this machine has {value}: "
                + ("name another Python with --python, or " if name in ("python", "implementation") else "")
                + "only unpack the bundle with --no-install"
            )


def _check_room(manifest: Manifest, to: Path, install: bool) -> None:
    wheels = sum(member.size for member in manifest.files if member.folder == "wheels")
    needed = manifest.size + (_INSTALLED * wheels if install else 0)
    if (free := free_disk(to.absolute().parent)) < needed:
        raise BundleError(
            f"{to}: the bundle needs {size(needed)}, the disk has {size(free)} free: "
            "free some space, or name a folder on another disk"
        )


def _install(folder: Path, python: str) -> None:
    command = ["sh", str(folder / INSTALL), "--python", python]
    sys.stdout.flush()
    try:
        with program_group(command, stderr=subprocess.PIPE) as child:
            _, errors = child.communicate()
    except FileNotFoundError:
        raise BundleError(f"{folder}: is unpacked, but there is no sh to run {INSTALL}") from None
    except KeyboardInterrupt:  # the script removed the incomplete environment
        raise Interrupted(
            f"interrupted; {folder} is checked and unpacked; to install it: sh {folder / INSTALL}"
        ) from None
    if child.returncode:
        lines = [line.removeprefix("error: ") for line in errors.splitlines() if line.strip()]
        reason = lines[-1] if lines else "edge doctor --offline reports what is missing"
        raise BundleError(
            f"{folder}: is unpacked, but not installed: {reason}; to try again: sh {folder / INSTALL}"
        )
