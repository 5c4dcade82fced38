"""The file system that the user made from an image (`--root TAR`): its programs replace those of this system."""

import contextlib
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge.errors import ReplayError
from edge.system.confined import PATH
from edge.system.folders import make_open_folder, remove_folder
from edge.system.hashes import file_sha256

_LARGEST = 64 << 30  # bytes of all files
# Folders that a sandbox never shows from a root: its own ones, and those of a running system.
_LEFT_OUT = frozenset("proc dev sys tmp run home root mnt media boot lost+found".split())
# Programs of the script that runs inside (edge/terminal/supervisor.py).
_NEEDED = (
    *(
        "awk",
        "base64",
        "bash",
        "chmod",
        "comm",
        "find",
        "head",
        "mkdir",
        "rm",
        "sed",
        "sleep",
        "sort",
        "stat",
    ),
    *("stty", "tar", "timeout"),
)


@dataclass(frozen=True)
class Root:
    """An unpacked file system. `sha256`: of its archive."""

    folder: Path
    sha256: str


@contextlib.contextmanager
def unpacked_root(archive: Path) -> Iterator[Root]:
    """The file system in an archive of `docker export` or `podman export`, in a temporary folder.

    Devices, the homes and what only a running system has are left out; setuid bits and owners too. Raises ReplayError.
    """
    folder = None
    try:
        sha256 = file_sha256(archive)
        if sha256 is None:
            raise ReplayError(f"{archive}: is not a file that can be read: name an archive of docker export")
        folder = make_open_folder("edge-root-")
        root = folder / "root"
        root.mkdir()
        with tarfile.open(archive) as tar:
            _unpack(tar, root)
        _check(root)
        for place, _, _ in os.walk(root):
            os.chmod(place, 0o755)
        yield Root(root, sha256)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ReplayError(
            f"{archive}: is not a tar archive of a file system ({error}); make one with docker export"
        ) from None
    except _UnfitError as error:
        raise ReplayError(f"{archive}: {error}") from None
    finally:
        if folder is not None:
            remove_folder(folder)


class _UnfitError(Exception):
    """The archive is not what a sandbox can use."""


def _unpack(tar: tarfile.TarFile, root: Path) -> None:
    """Unpack an archive that nobody has checked. Raises _UnfitError, TarError."""
    total = 0
    try:
        for member in tar:
            path = _inside(member.name)
            if not path.parts or path.parts[0] in _LEFT_OUT:
                continue
            to = root / path
            _check_above(to, root)
            total += member.size
            if total > _LARGEST:
                raise _UnfitError(f"has more than {_LARGEST >> 30} GiB of files")
            if member.isdir():
                if not to.is_dir() or to.is_symlink():
                    to.mkdir(parents=True)
                continue
            if not (member.isfile() or member.issym() or member.islnk()):
                continue
            to.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(to) and not to.is_dir():
                to.unlink()
            if member.issym():
                to.symlink_to(member.linkname)
            elif member.islnk():
                target = root / _inside(member.linkname)
                _check_above(target, root)
                if target.is_symlink() or target.is_file():  # one of a folder that is left out is not there
                    os.link(target, to, follow_symlinks=False)
            else:
                _write(tar, member, to)
    except OSError as error:
        raise _UnfitError(f"cannot be unpacked to {root}: {error.strerror or error}") from None


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> None:
    content = tar.extractfile(member)
    assert content is not None
    with content, to.open("xb") as file:
        shutil.copyfileobj(content, file)
    to.chmod((member.mode & 0o777) | 0o444)


def _inside(name: str) -> PurePosixPath:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _UnfitError(f"has the path {name[:100]} with ..")
    return PurePosixPath(*parts)


def _check_above(path: Path, root: Path) -> None:
    """Raises _UnfitError if a folder above a path is a link: what is written through it can be outside."""
    for place in path.parents:
        if place == root:
            return
        if place.is_symlink():
            raise _UnfitError(f"has {path.relative_to(root)}, which goes through a link")


def _check(root: Path) -> None:
    if (root / "manifest.json").is_file() and not (root / "usr").exists():
        raise _UnfitError("is an image with layers (docker save); make its file system with docker export")
    if missing := [name for name in _NEEDED if not has_program(name, root)]:
        raise _UnfitError(f"has no {', '.join(missing)}, which the sandbox needs: add it to the image")


def has_program(name: str, root: Path | None = None) -> bool:
    """Whether a program is in the folders of the sandbox's PATH: in a root, or else on this system."""
    if root is None:
        return shutil.which(name, path=PATH) is not None
    places = [root / place.lstrip("/") for place in PATH.split(":")]
    return any(os.path.lexists(place / name) for place in places if not place.is_symlink())
