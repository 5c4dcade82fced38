"""`edge bundle`: models, rows, references and all that installs edge, in one tar for a machine without a network.

The tar is written as it is read: nothing of it is held in memory or on the disk twice. What each byte must be stands in
edge/airgap/manifest.py.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.airgap.manifest import (
    INSTALL,
    MANIFEST,
    REQUIREMENTS,
    Manifest,
    Member,
    check_name,
    header,
    padding,
    tar_end,
    tar_size,
)
from edge.airgap.wheels import Needed, make_wheels, target
from edge.errors import BundleError
from edge.formats.gguf import read_model_file
from edge.replay.result import read_result
from edge.replay.rows import read_rows
from edge.system.files import allocate, whole_file
from edge.system.machine import free_disk
from edge.system.paths import cache_folder
from edge.system.places import check_place, place_of
from edge.system.progress import Progress
from edge.system.text import size as in_words
from edge.version import __version__

_PIECE = 1 << 20


@dataclass(frozen=True)
class Bundled:
    """A finished bundle. `sha256`: of its manifest, which names that of everything else."""

    path: Path
    n_bytes: int
    sha256: str
    manifest: Manifest

    def __str__(self) -> str:
        manifest, machine = self.manifest, self.manifest.machine
        lines = [f"{self.path}: {in_words(self.n_bytes)}, {len(manifest.files)} files"]
        for folder in ("models", "rows", "references", "wheels"):
            files = [member for member in manifest.files if member.folder == folder]
            if files:
                lines.append(
                    f"  {folder:10} {len(files):3}  {in_words(sum(member.size for member in files))}"
                )
        lines.append(
            f"for {machine.implementation} {machine.python} on {machine.system} {machine.machine}"
            + (f", glibc {machine.glibc} or newer" if machine.glibc else "")
        )
        if machine.processors:
            lines.append(f"llama.cpp is built for {', '.join(machine.processors)}")
        lines.append(f"SHA-256 of the manifest {self.sha256}")
        return "\n".join(lines)


def bundle(
    models: Sequence[Path],
    out: Path,
    *,
    rows: Sequence[Path] = (),
    references: Sequence[Path] = (),
    wheels: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> Bundled:
    """Write a bundle to `out`, whole or not at all.

    `models`: GGUFs; `rows`: replay rows; `references`: result JSONs. `wheels`: a folder whose wheels are taken, and
    where the others are put; default: one in the user's cache. `tell` gets lines on the wheels, `progress` bytes.

    Raises BundleError; ModelFileError, ReplayError and ResultError for a file that is not what it is given as.
    """
    if sys.platform == "win32":
        raise BundleError(
            f"edge bundle needs a POSIX shell for {INSTALL}, which Windows does not have: use WSL"
        )
    if not models:
        raise BundleError("a bundle needs a model: give one with --model FILE")

    check_place(out)
    _, through = place_of(out)
    if through:
        raise BundleError(f"{out}: is no place for a bundle: give the name of a file")
    sources: dict[str, Path] = {}
    for folder, paths in (("rows", rows), ("references", references), ("models", models)):
        for path in paths:
            _add(sources, folder, path)
    for path in sources.values():
        if out.exists() and os.path.samefile(path, out):
            raise BundleError(f"{out}: is to be read, it cannot be the bundle too")
    for path in models:
        read_model_file(path)
    for path in rows:
        read_rows(path)
    for path in references:
        read_result(path)
    wanted, made = make_wheels(wheels or cache_folder() / "wheels", tell)
    return pack(out, sources, wanted, made, progress)


def pack(
    out: Path,
    sources: Mapping[str, Path],
    wanted: Needed,
    wheels: Mapping[str, Path],
    progress: Progress = lambda done, total: None,
) -> Bundled:
    """Write a bundle of these files: `sources` by their path in the bundle, `wheels` by their package.

    The files are read twice, for the manifest and for the tar. Raises BundleError.
    """
    files = {**sources, **{f"wheels/{path.name}": path for path in wheels.values()}}
    total = sum(path.stat().st_size for path in files.values())
    if (free := free_disk(out.absolute().parent)) < total:
        raise BundleError(
            f"{out}: the bundle takes {in_words(total)}, of which {in_words(free)} are free there"
        )
    done = 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(done, 2 * total)

    members = {path: _member(path, file, count) for path, file in files.items()}
    pins = (
        f"{name}=={wanted.packages[name]} --hash=sha256:{members[f'wheels/{path.name}'].sha256}\n"
        for name, path in sorted(wheels.items())
    )
    texts = {
        INSTALL: Path(__file__).with_name("install.sh").read_bytes(),
        REQUIREMENTS: "".join(pins).encode(),
    }
    own = [Member(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in texts.items()]
    order = {
        folder: number for number, folder in enumerate(("rows", "references", "wheels", "models"))
    }  # small ones first
    rest = sorted(members.values(), key=lambda member: (order[member.folder], member.path))
    manifest = Manifest(
        __version__, target(list(wheels.values())), wanted.extras, wanted.packages, (*own, *rest)
    )
    texts[MANIFEST] = manifest.to_bytes()
    try:
        _write(out, manifest, texts, files, count)
    except OSError as error:
        raise BundleError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Bundled(out, tar_size(manifest), hashlib.sha256(texts[MANIFEST]).hexdigest(), manifest)


def _add(sources: dict[str, Path], folder: str, path: Path) -> None:
    name = path.name
    if problem := check_name(name):
        raise BundleError(f"{path}: its name {problem}: rename it")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BundleError(f"{path}: is no file")
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from None
    place = f"{folder}/{name}"
    if same := next((known for known in sources if known.lower() == place.lower()), None):
        raise BundleError(f"{path}: there is another {same} ({sources[same]}): rename one of them")
    sources[place] = path


def _member(name: str, path: Path, count: Callable[[int], None]) -> Member:
    digest, size = hashlib.sha256(), 0
    for piece in _pieces(path):
        digest.update(piece)
        size += len(piece)
        count(len(piece))
    return Member(name, size, digest.hexdigest())


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                yield piece
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from None


def _write(
    out: Path,
    manifest: Manifest,
    texts: Mapping[str, bytes],
    sources: Mapping[str, Path],
    count: Callable[[int], None],
) -> None:
    with whole_file(out) as (_, descriptor):
        allocate(descriptor, tar_size(manifest))
        written = _put(descriptor, MANIFEST, [texts[MANIFEST]], len(texts[MANIFEST]))
        for member in manifest.files:
            if member.path in texts:
                written += _put(descriptor, member.path, [texts[member.path]], member.size)
                continue
            path, digest = sources[member.path], hashlib.sha256()

            def pieces(path: Path = path, digest: "hashlib._Hash" = digest) -> Iterator[bytes]:
                for piece in _pieces(path):
                    digest.update(piece)
                    count(len(piece))
                    yield piece

            written += _put(descriptor, member.path, pieces(), member.size)
            if digest.hexdigest() != member.sha256:
                raise BundleError(f"{path}: was changed while it was bundled; try again")
        _all(descriptor, tar_end(written))


def _put(descriptor: int, name: str, pieces: Sequence[bytes] | Iterator[bytes], size: int) -> int:
    """Write a member; returns its bytes in the tar."""
    head = header(name, size)
    _all(descriptor, head)
    left = size
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        _all(descriptor, piece)
    if left:
        raise BundleError(f"{name}: its size was changed while it was bundled; try again")
    _all(descriptor, padding(size))
    return len(head) + size + len(padding(size))


def _all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
