"""Write a bundle: models, rows, references and everything that installs edge, in one tar.

edge copies the files into the tar in small pieces. edge/airgap/manifest.py defines every byte of the tar.
"""

import hashlib
import stat
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.airgap.manifest import (
    INSTALL,
    LARGEST_MANIFEST,
    MANIFEST,
    REQUIREMENTS,
    Manifest,
    Member,
    check_name,
    header,
    padding,
    read_manifest,
    tar_end,
    tar_size,
)
from edge.airgap.wheels import Needed, make_wheels, target
from edge.errors import BundleError, Interrupted
from edge.formats.gguf import part_files, read_model_file
from edge.replay.result import read_result
from edge.replay.rows import read_rows
from edge.system.files import allocate, whole_file, write_all
from edge.system.hashes import file_sha256
from edge.system.outputs import Run, check_output, check_replaced
from edge.system.paths import cache_folder
from edge.system.places import check_disk
from edge.system.progress import Progress
from edge.system.text import counted, size
from edge.version import __version__

_PIECE = 1 << 20  # bytes
_ORDER = ("rows", "references", "wheels", "models")  # in the tar: small files first


@dataclass(frozen=True)
class Bundled:
    """A finished bundle. `sha256` is that of the manifest, which has the SHA-256 of every other file."""

    path: Path
    n_bytes: int
    sha256: str
    manifest: Manifest

    def __str__(self) -> str:
        manifest, machine = self.manifest, self.manifest.machine
        lines = [f"{self.path}: {size(self.n_bytes)}, {counted(len(manifest.files), 'file')}"]
        for folder in ("models", "rows", "references", "wheels"):
            files = [member for member in manifest.files if member.folder == folder]
            if files:
                lines.append(f"  {folder:10} {len(files):3}  {size(sum(member.size for member in files))}")
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
    force: bool = False,
    say: Callable[[str], None] | None = None,
    progress: Progress = lambda done, total: None,
) -> Bundled:
    """Write a bundle to `out`. If this fails, `out` is as it was.

    `models` are GGUFs, `rows` files of replay rows, `references` result JSONs. edge takes wheels from the folder
    `wheels` and puts new ones there; the default is a folder in the user's cache. `say` receives lines about the
    wheels; `progress` receives the bytes done and the total. A bundle of other files at `out` is replaced only with
    `force`.

    Raises BundleError if the bundle cannot be made. Raises ModelFileError, ReplayError or ResultError for a damaged
    input file. Raises Interrupted on Ctrl-C.
    """
    if sys.platform == "win32":
        raise BundleError(
            f"edge bundle needs a POSIX shell for {INSTALL}, which Windows does not have: use WSL"
        )
    if not models:
        raise BundleError("a bundle needs a model: give one with --model FILE")

    check_output(out, [*models, *rows, *references, wheels], error=BundleError, streams=False)
    sources: dict[str, Path] = {}
    for folder, paths in (("rows", rows), ("references", references), ("models", models)):
        for path in paths:
            _add(sources, folder, path)
    for path in models:
        read_model_file(path)
        for part in part_files(path)[1:]:
            _add(sources, "models", part)
    for path in rows:
        read_rows(path)
    for path in references:
        read_result(path)
    if out.exists():
        run = {name: file_sha256(path) for name, path in sources.items()}
        check_replaced(out, run, _stored_run, kind="a bundle", force=force, error=BundleError)
    _check_disk(
        out, sum(path.stat().st_size for path in sources.values())
    )  # before the wheels, which take minutes
    try:
        wanted, made = make_wheels(wheels or cache_folder() / "wheels", say)
        return pack(out, sources, wanted, made, progress)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; no bundle was written; finished wheels are kept") from None


def _check_disk(out: Path, needed: int) -> None:
    advice = "free some space, or choose another disk with --out"
    check_disk(out.absolute().parent, needed, advice, error=BundleError)


def _stored_run(path: Path) -> Run:
    """The files of the user in a bundle with their SHA-256. Raises BundleError or ValueError for another file."""
    try:
        with tarfile.open(path, "r:") as tar:
            first = tar.next()
            data = None if first is None else tar.extractfile(first)
            manifest = read_manifest(b"" if data is None else data.read(LARGEST_MANIFEST), str(path))
    except (tarfile.TarError, KeyError) as error:
        raise ValueError(str(error)) from None
    return {
        member.path: member.sha256
        for member in manifest.files
        if member.folder in ("models", "rows", "references")
    }


def pack(
    out: Path,
    sources: Mapping[str, Path],
    wanted: Needed,
    wheels: Mapping[str, Path],
    progress: Progress = lambda done, total: None,
) -> Bundled:
    """Write a bundle of these files: `sources` by path in the bundle, `wheels` by package name.

    Reads each file twice: for the manifest and for the tar. Raises BundleError.
    """
    files = {**sources, **{f"wheels/{path.name}": path for path in wheels.values()}}
    total = sum(path.stat().st_size for path in files.values())
    _check_disk(out, total)
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
    rest = sorted(members.values(), key=lambda member: (_ORDER.index(member.folder), member.path))
    manifest = Manifest(__version__, target(list(wheels.values())), (), wanted.packages, (*own, *rest))
    texts[MANIFEST] = manifest.to_bytes()
    try:
        _write(out, manifest, texts, files, count)
    except OSError as error:
        raise BundleError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Bundled(out, tar_size(manifest), hashlib.sha256(texts[MANIFEST]).hexdigest(), manifest)


def _add(sources: dict[str, Path], folder: str, path: Path) -> None:
    name = path.name
    if problem := check_name(name):
        raise BundleError(f"{path}: its name {problem}: rename the file")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BundleError(f"{path}: is not a file")
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from None
    place = f"{folder}/{name}"
    if same := next((known for known in sources if known.lower() == place.lower()), None):
        raise BundleError(
            f"{path}: would be {same} in the bundle, as would {sources[same]}: rename one of them"
        )
    sources[place] = path


def _member(name: str, path: Path, count: Callable[[int], None]) -> Member:
    digest, n_bytes = hashlib.sha256(), 0
    for piece in _pieces(path):
        digest.update(piece)
        n_bytes += len(piece)
        count(len(piece))
    return Member(name, n_bytes, digest.hexdigest())


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
                raise BundleError(f"{path}: changed while edge bundled it; try again")
        write_all(descriptor, tar_end(written))


def _put(descriptor: int, name: str, pieces: Iterable[bytes], n_bytes: int) -> int:
    """Write a member of `n_bytes`. Returns the bytes that it takes in the tar."""
    head = header(name, n_bytes)
    write_all(descriptor, head)
    left = n_bytes
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        write_all(descriptor, piece)
    if left:
        raise BundleError(f"{name}: its size changed while edge bundled it; try again")
    write_all(descriptor, padding(n_bytes))
    return len(head) + n_bytes + len(padding(n_bytes))
