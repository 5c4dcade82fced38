"""The archives with which a sandbox begins, or goes on."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edge.terminal.packed import Base, pack, read_base, restore, write_nothing


@dataclass(frozen=True)
class Saved:
    """The archives of a session. `key` seals them.

    `work`: what changed in its work folder, and may come back. `first`: all of the folder when the session began.
    """

    work: Path
    first: Path
    key: bytes


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
