"""What a bundle holds: its manifest, read and checked, and its bytes as a tar, of which the manifest leaves none open.

    edge-bundle/manifest.json          first: everything below with its size and SHA-256, versions, for which machines
    edge-bundle/install.sh             installs without edge and without a network
    edge-bundle/requirements.txt       each package's version and its wheel's SHA-256, for pip
    edge-bundle/models/, rows/, references/, wheels/

A member's header follows from its path and size alone (no times, no owners), so the same files give the same tar, and
a reader knows each byte between two files before it reads it.
"""

import json
import re
import tarfile
from dataclasses import asdict, dataclass, field
from typing import Any

from edge.errors import BundleError

TOP = "edge-bundle"
MANIFEST = "manifest.json"
INSTALL = "install.sh"
REQUIREMENTS = "requirements.txt"
FOLDERS = ("models", "rows", "references", "wheels")
LARGEST_MANIFEST = 4 << 20
_FORMAT, _VERSION = "edge-bundle", 1
_MOST_FILES = 10_000
_LONGEST_NAME = 200  # bytes of UTF-8; file systems allow 255, and a temporary name is longer
_LARGEST_FILE = 1 << 50
_MTIME = 315532800  # 1980-01-01, the earliest time that every archive format knows
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Member:
    """A file of a bundle: its path below the top folder, bytes, SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]


@dataclass(frozen=True)
class Machine:
    """For which machines the wheels are. `glibc` and `glibcxx`: the oldest versions that they run with, empty where
    the system has none.
    """

    python: str
    """Such as 3.11: the minor version must be the same."""
    implementation: str
    system: str
    machine: str
    glibc: str
    glibcxx: str
    processors: tuple[str, ...]
    """The generations that llama.cpp was built for; empty: for the one that the build's machine has."""


@dataclass(frozen=True)
class Manifest:
    """All of a bundle's files but the manifest itself, in the order in which the tar has them."""

    edge: str
    machine: Machine
    extras: tuple[str, ...]
    packages: dict[str, str]
    files: tuple[Member, ...] = field(default=())

    def to_bytes(self) -> bytes:
        data = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        return json.dumps(data, indent=1, ensure_ascii=False, sort_keys=False).encode() + b"\n"

    @property
    def size(self) -> int:
        """Bytes of all files, the manifest left out."""
        return sum(member.size for member in self.files)


def header(path: str, size: int) -> bytes:
    """A member's header in the tar, of one block or, for what ustar cannot say, of several (pax)."""
    entry = tarfile.TarInfo(f"{TOP}/{path}")
    entry.size, entry.mtime = size, _MTIME
    entry.mode = 0o755 if path == INSTALL else 0o644
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    """What follows a member's data up to the next block."""
    return bytes(-size % _BLOCK)


def tar_end(before: int) -> bytes:
    """What ends a tar of `before` bytes: two blocks of zeros, and more up to a whole record."""
    return bytes(2 * _BLOCK + -(before + 2 * _BLOCK) % tarfile.RECORDSIZE)


def tar_size(manifest: Manifest) -> int:
    """Bytes of the whole tar."""
    own = len(manifest.to_bytes())
    parts = [(MANIFEST, own), *((member.path, member.size) for member in manifest.files)]
    before = sum(len(header(path, size)) + size + len(padding(size)) for path, size in parts)
    return before + len(tar_end(before))


def check_name(name: str) -> str | None:
    """Why a file of this name cannot be in a bundle; None: it can."""
    if not name.isprintable() or "\ufffd" in name or re.search(r'[/\\:*?"<>|]', name):
        return "holds a character that not every file system takes"
    if name[:1] in ("", ".", "-", " ") or name[-1] in (".", " "):
        return "begins or ends with what a file system or a command could misread"
    if len(name.encode()) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} bytes"
    return None


def read_manifest(data: bytes, where: str) -> Manifest:
    """A manifest, checked: every path lies in a folder that a bundle has, none is there twice, sizes are sane.

    Raises BundleError that begins with `where`.
    """
    try:
        fields = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
        if fields["format"] != _FORMAT or type(fields["version"]) is not int:
            raise BundleError(f"{where}: its manifest is not that of a bundle of edge")
        if fields["version"] != _VERSION:
            raise BundleError(
                f"{where}: is a bundle of format {fields['version']}, this edge reads {_VERSION}: install a newer one"
            )
        manifest = Manifest(
            edge=_text(fields["edge"]),
            machine=Machine(
                **{name: _text(value) for name, value in fields["machine"].items() if name != "processors"},
                processors=tuple(_text(name) for name in fields["machine"]["processors"]),
            ),
            extras=tuple(_text(name) for name in fields["extras"]),
            packages={_text(name): _text(value) for name, value in fields["packages"].items()},
            files=tuple(Member(**file) for file in fields["files"]),
        )
        files = manifest.files
        if len(files) > _MOST_FILES:
            raise ValueError(f"{len(files):,} files")
        for member in files:
            _check_member(member)
        # In lower case, as some file systems compare names.
        paths = [member.path.lower() for member in files]
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"{twice!r} is there twice")
        for path in (INSTALL, REQUIREMENTS):
            if path not in paths:
                raise ValueError(f"{path} is missing")
        if manifest.to_bytes() != data:
            raise ValueError("it is not written as edge writes it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise BundleError(f"{where}: its manifest is damaged: {reason}; fetch the bundle again") from None
    return manifest


def _check_member(member: Member) -> None:
    path, size, digest = member.path, member.size, member.sha256
    if not isinstance(path, str):
        raise ValueError("a path is no text")
    folder, _, name = path.rpartition("/")
    if path not in (INSTALL, REQUIREMENTS) and (folder not in FOLDERS or check_name(name) is not None):
        raise ValueError(f"{path!r} is no place in a bundle")
    if type(size) is not int or not 0 <= size <= _LARGEST_FILE:
        raise ValueError(f"{path}: {size!r} is no size")
    if not isinstance(digest, str) or re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise ValueError(f"{path}: {digest!r} is no SHA-256")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name is there twice")
    return fields
