"""`edge unbundle`: a bundle checked to its last byte, unpacked, and installed without a network.

Nothing in the tar is followed: the manifest comes first, and from it follows every other byte but the files' own, whose
SHA-256 it names (edge/airgap/manifest.py). A link, a device, a path that leaves the folder, a second or an
unlisted member is
a header that cannot be there. All of it is checked once before anything is written, and again while it is written.
"""

import contextlib
import hashlib
import os
import platform
import secrets
import shutil
import signal
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
    header,
    padding,
    read_manifest,
    tar_end,
    tar_size,
)
from edge.errors import BundleError
from edge.system.files import BINARY
from edge.system.locks import lock_folder
from edge.system.machine import free_disk
from edge.system.progress import bar
from edge.system.text import size as in_words

_PIECE = 1 << 20
_INSTALLED = 5  # bytes that a byte of wheels takes once it is installed, at most (docs/air-gap.md)


@dataclass(frozen=True)
class Unbundled:
    """An unpacked bundle. `installed`: whether its virtual environment, `folder`/venv, was made."""

    folder: Path
    manifest: Manifest
    sha256: str
    installed: bool

    def __str__(self) -> str:
        files = f"{len(self.manifest.files)} files, {in_words(self.manifest.size)}"
        text = f"{self.folder}: {files}, all as its manifest says; SHA-256 of the manifest {self.sha256}"
        return text if self.installed else f"{text}\nnot installed yet: sh {self.folder / INSTALL}"


def unbundle(
    path: Path,
    to: Path,
    *,
    install: bool = True,
    python: str | None = None,
    progress: bool = False,
) -> Unbundled:
    """Check the bundle at `path`, unpack it to the folder `to`, which must be new or empty, and install it there.

    `python`: the interpreter to install with; default: the one that runs this. What installing prints goes to
    standard output; `progress` shows a bar while the bundle is read. Raises BundleError; nothing is at `to` then,
    unless it was installing that failed.
    """
    if not str(path) or not str(to):
        raise BundleError("the name of a bundle or of a folder is empty")
    if install and sys.platform == "win32":
        raise BundleError(
            f"{path}: its {INSTALL} needs a POSIX shell, which Windows does not have: use WSL, or --no-install"
        )
    try:
        if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
            raise BundleError(f"{to}: is there already: name a new folder")
        with path.open("rb") as stream:
            manifest = _check(stream, str(path), None, lambda n_bytes: None, only_manifest=True)
            if install:
                _check_machine(manifest.machine, path, python)
            wheels = sum(member.size for member in manifest.files if member.folder == "wheels")
            room = manifest.size + (_INSTALLED * wheels if install else 0)
            if (free := free_disk(to.absolute().parent)) < room:
                raise BundleError(f"{to}: takes {in_words(room)}, of which {in_words(free)} are free there")
            with bar("checking", show=progress, unit="bytes") as watch:
                done = 0

                def count(n_bytes: int) -> None:
                    nonlocal done
                    done += n_bytes
                    watch(done, 2 * manifest.size)

                _check(stream, str(path), None, count)
                with _folder_beside(to) as temporary:
                    again = _check(stream, str(path), temporary, count)
                    if again != manifest:
                        raise BundleError(f"{path}: was changed while it was read; try again")
                    os.rename(temporary, to)
    except OSError as error:
        where = error.filename if isinstance(error.filename, (str, bytes)) else to
        raise BundleError(f"{os.fsdecode(where)}: {error.strerror or error}") from None
    if install:
        _install(to, python or sys.executable)
    return Unbundled(to, manifest, hashlib.sha256(manifest.to_bytes()).hexdigest(), install)


def _check(
    stream: BinaryIO,
    where: str,
    folder: Path | None,
    count: Callable[[int], None],
    *,
    only_manifest: bool = False,
) -> Manifest:
    """Read a bundle from its beginning; its files are written to `folder`, if there is one, while they are checked.

    Raises BundleError at the first byte that is not as it must be, OSError.
    """
    stream.seek(0)
    total = os.fstat(stream.fileno()).st_size
    first = stream.read(tarfile.BLOCKSIZE)
    try:
        size = tarfile.TarInfo.frombuf(first, "utf-8", "surrogateescape").size
    except tarfile.HeaderError:
        size = -1
    if not 0 < size <= LARGEST_MANIFEST or first != header(MANIFEST, size):
        raise BundleError(
            f"{where}: is no bundle: it does not begin with the manifest that edge bundle writes"
        )
    data = stream.read(size)
    if len(data) < size:
        raise BundleError(f"{where}: truncated in its manifest; fetch it again")
    manifest = read_manifest(data, where)
    if total != (whole := tar_size(manifest)):
        problem = "is truncated" if total < whole else "has bytes that its manifest does not know"
        raise BundleError(f"{where}: {problem}: {total:,} bytes, not {whole:,}; fetch it again")
    if only_manifest:
        return manifest
    _expect(stream, padding(size), where, MANIFEST)
    if folder is not None:
        with _new_file(folder, MANIFEST) as file:
            file.write(data)
    for member in manifest.files:
        _expect_header(stream, header(member.path, member.size), where, member.path)
        digest, left = hashlib.sha256(), member.size
        with _new_file(folder, member.path) as file:
            while left:
                piece = stream.read(min(left, _PIECE))
                if not piece:
                    raise BundleError(f"{where}: truncated in {member.path}; fetch it again")
                digest.update(piece)
                file.write(piece)
                left -= len(piece)
                count(len(piece))
            if digest.hexdigest() != member.sha256:
                raise BundleError(
                    f"{where}: {member.path} is damaged: its SHA-256 is another; fetch it again"
                )
        _expect(stream, padding(member.size), where, member.path)
    _expect(stream, tar_end(stream.tell()), where, "its end")
    if stream.read(1):
        raise BundleError(f"{where}: has bytes behind its end; fetch it again")
    return manifest


def _expect(stream: BinaryIO, wanted: bytes, where: str, what: str) -> None:
    if stream.read(len(wanted)) != wanted:
        raise BundleError(f"{where}: damaged behind {what}; fetch it again")


def _expect_header(stream: BinaryIO, wanted: bytes, where: str, path: str) -> None:
    found = stream.read(len(wanted))
    if found == wanted:
        return
    try:
        entry = tarfile.TarInfo.frombuf(found[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        kind = {tarfile.REGTYPE: "", tarfile.DIRTYPE: "a folder, ", tarfile.SYMTYPE: "a symbolic link, "}
        kind |= {
            tarfile.LNKTYPE: "a hard link, ",
            tarfile.CHRTYPE: "a device, ",
            tarfile.BLKTYPE: "a device, ",
        }
        problem = f"{kind.get(entry.type, 'something else, ')}{entry.name!r} of {entry.size:,} bytes"
    except tarfile.HeaderError:
        problem = "what is no header of a tar"
    raise BundleError(f"{where}: holds {problem} in the place of {TOP}/{path}; fetch it again")


@contextlib.contextmanager
def _new_file(folder: Path | None, path: str) -> Iterator[BinaryIO]:
    """A new file below `folder`, on the disk once it is closed; without a folder one that takes everything."""
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
    """A temporary folder beside `place`; removed at the end, unless it was renamed. What killed processes left goes
    too: a lock tells whether a folder is in use.
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
    """Refuse what cannot be installed here before it is unpacked; install.sh asks the interpreter itself once more."""
    here = {"system": platform.system(), "machine": platform.machine()}
    if python is None:
        here["implementation"] = sys.implementation.name
        here["python"] = ".".join(platform.python_version_tuple()[:2])
    for name, value in here.items():
        if getattr(machine, name) != value:
            raise BundleError(
                f"{path}: is for {name} {getattr(machine, name)}, this is {value}: "
                + ("name another with --python, or " if name in ("python", "implementation") else "")
                + "unpack it with --no-install"
            )


def _install(folder: Path, python: str) -> None:
    command = ["sh", str(folder / INSTALL), "--python", python]
    sys.stdout.flush()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise BundleError(f"{folder}: unpacked, but there is no sh to run {INSTALL}") from None
    with child:
        try:
            _, errors = child.communicate()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; {folder} is unpacked and checked, sh {folder / INSTALL} installs it"
            ) from None
        finally:
            if sys.platform != "win32" and child.poll() is None:  # the script removes what it has made
                os.killpg(child.pid, signal.SIGTERM)

                child.communicate()
    if child.returncode:
        lines = [line.removeprefix("error: ") for line in errors.splitlines() if line.strip()]
        reason = lines[-1] if lines else "edge doctor --offline tells what is missing"
        raise BundleError(
            f"{folder}: unpacked and checked, but not ready: {reason}; sh {folder / INSTALL} tries again"
        )
