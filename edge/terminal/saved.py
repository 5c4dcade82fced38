"""The archives from which a sandbox starts or continues."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edge.terminal.packed import Base, open_archive, pack, read_base, restore, write_nothing
from edge.terminal.place import item_of


@dataclass(frozen=True)
class Saved:
    """The archives of a session. `key` seals them.

    `work`: what changed in its work folder, and may come back. `first`: all of the folder when the session began.
    """

    work: Path
    first: Path
    key: bytes


def write_beside(files: Path | None, to: Path, most: int) -> None:
    """Write the archive of what a sandbox has besides its work folder; of nothing for None.

    `most`: bytes of the archive. Raises SandboxError, OSError.
    """
    if files is None:
        write_nothing(to)
    else:
        pack(files, to, most)


def begin(
    workdir: Path, folder: Path, most: int, saved: Saved | None, hidden: Collection[Path]
) -> tuple[tuple[str, ...], Base, Base]:
    """Write the archives that the sandbox unpacks: `in.tar`, and over it `again.tar`.

    `most`: bytes of the archive. Returns what is left out, the base of the session, and what is in its first archive.
    Raises SandboxError, OSError.
    """
    if saved is not None and saved.work.exists():
        before, first = restore(saved.first, saved.work, saved.key, folder / "in.tar", folder / "again.tar")
        return (), before, first
    write_nothing(folder / "again.tar")
    if saved is None:
        left_out = pack(workdir, folder / "in.tar", most, hidden)
    else:
        saved.first.unlink(missing_ok=True)
        saved.first.parent.mkdir(parents=True, exist_ok=True)
        left_out = pack(workdir, saved.first, most, hidden, saved.key)
        (folder / "in.tar").symlink_to(saved.first.absolute())
    base = read_base(folder / "in.tar")
    return left_out, base, base


def saved_base(packed: Path, key: bytes | None = None) -> Base:
    """The folder as an archive of a sandbox says that it is now. Raises SandboxError if the archive is damaged."""
    now: Base = {}
    with open_archive(packed, key) as (entries, head):
        for entry, content in entries:
            if entry.path:
                now[entry.path] = item_of(entry, content)
        now |= {path: head.base[path] for path in head.kept or () if path in head.base}
    return now
