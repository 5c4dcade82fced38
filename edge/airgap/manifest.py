"""The format of a bundle: the manifest, and the bytes of the tar file, which the manifest determines.

    edge-bundle/manifest.json          first: size and SHA-256 of every other file, versions, target machine
    edge-bundle/install.sh             installs the bundle without edge and without a network
    edge-bundle/requirements.txt       version and wheel SHA-256 of each package, for pip
    edge-bundle/models/, rows/, references/, wheels/

The header of a member depends only on its path and size: it has no times and no owners. So the same files give the
same tar, and a reader knows every byte between two files before it reads it.
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
LARGEST_MANIFEST = 4 << 20  # bytes
_FORMAT, _VERSION = "edge-bundle", 1
_MOST_FILES = 10_000
_LONGEST_NAME = 200  # bytes of UTF-8; file systems allow 255, and temporary names are longer
_LARGEST_FILE = 1 << 50  # bytes
_MTIME = 315532800  # 1980-01-01, the earliest time that every archive format supports
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Member:
    """A file of a bundle: its path in the top folder, its size in bytes, its SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]


@dataclass(frozen=True)
class Machine:
    """The machines that the wheels run on.

    `glibc` and `glibcxx` are the oldest versions that the wheels run with. They are empty if the wheels need none.
    """

    python: str
    """For example 3.11: the minor version must be the same."""
    implementation: str
    system: str
    machine: str
    glibc: str
    glibcxx: str
    processors: tuple[str, ...]
    """The processor generations that llama.cpp was built for. Empty: only the processor of the build machine."""


@dataclass(frozen=True)
class Manifest:
    """The contents of a bundle. `files` has every file except the manifest, in the order of the tar."""

    edge: str
    machine: Machine
    extras: tuple[str, ...]
    """Always empty now. Older bundles name `serve`, when the packages of `edge serve` were optional."""
    packages: dict[str, str]
    files: tuple[Member, ...] = field(default=())

    def to_bytes(self) -> bytes:
        """The manifest as JSON in UTF-8, in the only spelling that `read_manifest` accepts."""
        data = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        return json.dumps(data, indent=1, ensure_ascii=False, sort_keys=False).encode() + b"\n"

    @property
    def size(self) -> int:
        """Bytes of all files except the manifest."""
        return sum(member.size for member in self.files)


def header(path: str, size: int) -> bytes:
    """The tar header of a member: one block, or several (pax) if ustar cannot hold the name or the size."""
    entry = tarfile.TarInfo(f"{TOP}/{path}")
    entry.size, entry.mtime = size, _MTIME
    entry.mode = 0o755 if path == INSTALL else 0o644
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    """The zeros between the data of a member and the next block."""
    return bytes(-size % _BLOCK)


def tar_end(before: int) -> bytes:
    """The end of a tar of `before` bytes: two blocks of zeros, then zeros up to a full record."""
    return bytes(2 * _BLOCK + -(before + 2 * _BLOCK) % tarfile.RECORDSIZE)


def tar_size(manifest: Manifest) -> int:
    """Size of the whole tar in bytes."""
    own = len(manifest.to_bytes())
    parts = [(MANIFEST, own), *((member.path, member.size) for member in manifest.files)]
    before = sum(len(header(path, size)) + size + len(padding(size)) for path, size in parts)
    return before + len(tar_end(before))


def check_name(name: str) -> str | None:
    """Why a bundle cannot have a file of this name; None if it can."""
    if not name.isprintable() or "\ufffd" in name or re.search(r'[/\\:*?"<>|]', name):
        return "has a character that some file systems do not allow"
    if name[:1] in ("", ".", "-", " ") or name[-1] in (".", " "):
        return "begins or ends with a character that a file system or a command can misread"
    if len(name.encode()) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} bytes"
    return None


def read_manifest(data: bytes, where: str) -> Manifest:
    """Read and check a manifest: allowed paths, no duplicates, plausible sizes.

    Raises BundleError for anything else. Its message begins with `where`.
    """
    try:
        fields = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
        if fields["format"] != _FORMAT or type(fields["version"]) is not int:
            raise BundleError(f"{where}: is not an edge bundle: its manifest has another format")
        if fields["version"] != _VERSION:
            raise BundleError(
                f"{where}: has bundle format {fields['version']}, but this edge reads format {_VERSION}: "
                "install a newer edge"
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
            raise ValueError(f"{len(files):,} files, more than {_MOST_FILES:,}")
        for member in files:
            _check_member(member)
        # Some file systems ignore case.
        paths = [member.path.lower() for member in files]
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"duplicate path {twice!r}")
        for path in (INSTALL, REQUIREMENTS):
            if path not in paths:
                raise ValueError(f"{path} is missing")
        if manifest.to_bytes() != data:
            raise ValueError("its spelling is not the one that edge writes")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise BundleError(f"{where}: its manifest is damaged: {reason}; fetch the bundle again") from None
    return manifest


def _check_member(member: Member) -> None:
    path, size, digest = member.path, member.size, member.sha256
    if not isinstance(path, str):
        raise ValueError("a path is not a string")
    folder, _, name = path.rpartition("/")
    if path not in (INSTALL, REQUIREMENTS) and (folder not in FOLDERS or check_name(name) is not None):
        raise ValueError(f"the path {path!r} is not allowed in a bundle")
    if type(size) is not int or not 0 <= size <= _LARGEST_FILE:
        raise ValueError(f"{path}: {size!r} is not a size")
    if not isinstance(digest, str) or re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise ValueError(f"{path}: {digest!r} is not a SHA-256")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("duplicate key")
    return fields
