"""Strict reader for untrusted tar archives, and the blocks to write one.

The format is GNU tar's (POSIX ustar headers, `L` and `K` entries before long names). Every path begins with "./" and
has no "..". Each folder comes before its content. No path occurs twice. The first file may be edge's own (HEAD).
"""

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import SandboxError

Kind = Literal["file", "folder", "link", "hard link", "special"]
Read = Callable[[int], bytes]
"""Reads up to that many bytes; no bytes at the end."""

MOST_ENTRIES = 200_000
HEAD = "edge-base.json"
_BLOCK = 512
_LONGEST = 4096  # bytes of a path
_HEAD_BYTES = 64 << 20
_PIECE = 1 << 20
_FAR = 1 << 33  # seconds: times beyond it, in either direction, count as it
_KINDS: dict[bytes, Kind] = {
    b"\0": "file",
    b"0": "file",
    b"7": "file",
    b"1": "hard link",
    b"2": "link",
    b"3": "special",
    b"4": "special",
    b"5": "folder",
    b"6": "special",
}
_TYPES: dict[Kind, bytes] = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}


@dataclass(frozen=True)
class Entry:
    """What an archive says about one path."""

    path: str
    """Without "./", as `os.fsdecode` returns it; empty for the work folder itself."""
    kind: Kind
    executable: bool = False
    size: int = 0
    mtime: int = 0
    """Seconds from 1970, also before it."""
    target: str = ""
    """Where a link leads."""
    mode: int = 0o777
    """Permissions of the file or folder."""


def read_entries(
    read: Read, most: int, head: Callable[[Any], None] | None = None
) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """Each entry with its content. Read the content before the next entry.

    `most`: bytes of content of all entries together. `head` receives the JSON value of edge's own file, if the archive
    has one; without `head` that file is an error. Raises SandboxError if the archive is truncated, too large, or
    breaks a rule of this module.
    """
    archive = _Archive(read, most)
    seen: dict[str, bool] = {}  # each path, and whether it is a folder
    letters = 0
    while (step := archive.next(allow_head=head is not None and not seen)) is not None:
        entry, content = step
        if entry is None:
            assert head is not None
            try:
                head(json.loads(b"".join(content)))
            except (ValueError, RecursionError):
                raise _damaged("its first file is not JSON") from None
            continue
        parent = entry.path.rpartition("/")[0]
        if entry.path in seen or len(seen) >= MOST_ENTRIES:
            raise _damaged(
                "a path occurs twice" if entry.path in seen else f"more than {MOST_ENTRIES:,} files"
            )
        if entry.path and not seen.get(parent, False):
            raise _damaged("a file comes before its folder")
        letters += len(entry.path) + len(entry.target)
        if letters > _HEAD_BYTES:
            raise _too_many()
        seen[entry.path] = entry.kind == "folder"
        yield entry, content
        for _ in content:
            pass
    if not seen:
        raise _damaged("it is empty")


class _Archive:
    def __init__(self, read: Read, most: int) -> None:
        self._read, self._left = read, most

    def next(self, allow_head: bool) -> tuple[Entry | None, Iterator[bytes]] | None:
        """The next entry and its content. An entry of None means edge's own file. None at the end."""
        long: dict[bytes, bytes] = {}
        while True:
            block = self._exactly(_BLOCK)
            if block == bytes(_BLOCK):
                if self._exactly(_BLOCK) != bytes(_BLOCK) or long:
                    raise _damaged("its end is not as it must be")
                return None
            kind, size = block[156:157], _number(block[124:136])
            if sum(block) - sum(block[148:156]) + 8 * 32 != _number(block[148:156]):
                raise _damaged("a checksum is wrong")
            if kind in (b"L", b"K"):
                if not 0 < size <= _LONGEST + 1 or kind in long:
                    raise _damaged("a long name is not allowed")
                long[kind] = b"".join(self._content(size)).partition(b"\0")[0]
                continue
            name, target = (
                long.get(k, block[a:b].partition(b"\0")[0]) for k, a, b in ((b"L", 0, 100), (b"K", 157, 257))
            )
            if b"L" not in long and block[257:263] == b"ustar\0" and block[345]:
                name = block[345:500].partition(b"\0")[0] + b"/" + name
            if kind not in _KINDS:
                raise _damaged(f"an entry of the unknown type {kind!r}")
            if _KINDS[kind] != "file" and size:
                raise _damaged("a link or folder has content")
            if name == HEAD.encode() and allow_head and _KINDS[kind] == "file" and size <= _HEAD_BYTES:
                return None, self._content(size)
            entry = Entry(
                _path(name),
                _KINDS[kind],
                bool(_number(block[100:108]) & 0o100),
                size,
                _time(block[136:148]),
                os.fsdecode(target),
                _number(block[100:108]) & 0o777,
            )
            if not entry.path and entry.kind != "folder":
                raise _damaged("the work folder is not a folder")
            return entry, self._content(size)

    def _content(self, size: int) -> Iterator[bytes]:
        if size > self._left:  # before it is read
            raise _too_long()
        self._left -= size
        left = size
        while left:
            piece = self._exactly(min(left, _PIECE))
            left -= len(piece)
            yield piece
        self._exactly(-size % _BLOCK)

    def _exactly(self, count: int) -> bytes:
        data = self._read(count) if count else b""
        while len(data) < count:
            more = self._read(count - len(data))
            if not more:
                raise _damaged("it is truncated")
            data += more
        return data


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or base 256 if the first bit is set."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
        if number >> 62:
            raise _damaged("a number is too large")
        return number
    text = field.strip(b" \0")
    if not all(c in b"01234567" for c in text):  # int() also accepts signs and underscores
        raise _damaged("a number is not octal")
    return int(text or b"0", 8)


def _time(field: bytes) -> int:
    """A time of a header, at most `_FAR` seconds before or after 1970."""
    if field[0] == 0xFF:  # base 256, negative
        return max(int.from_bytes(field, "big", signed=True), -_FAR)
    if (
        field[0] == 0x80
    ):  # also one that `_number` does not take as a size: a program can set any time of 64 bits
        return min(int.from_bytes(field[1:], "big"), _FAR)
    return min(_number(field), _FAR)


def _path(name: bytes) -> str:
    if name in (b".", b"./"):
        return ""
    name = name.removesuffix(b"/")
    parts = name.split(b"/")
    if len(name) > _LONGEST or parts[0] != b"." or any(part in (b"", b".", b"..") for part in parts[1:]):
        raise _damaged("a path is not below the work folder")
    return os.fsdecode(b"/".join(parts[1:]))


def _damaged(what: str) -> SandboxError:
    return SandboxError(f"the archive of the work folder is damaged ({what}): edge does not use it")


def _too_long() -> SandboxError:
    return SandboxError("the work folder is larger than its limit: choose a larger --disk")


def _too_many() -> SandboxError:
    return SandboxError("the work folder has too many files, or too long names: choose a smaller --workdir")


def header(entry: Entry, *, exact: bool = False) -> bytes:
    """The header blocks of a file, folder or link in an archive.

    `exact`: with its mode, else with a usual one that gives nobody else more rights than its mode.
    """
    info = tarfile.TarInfo(f"./{entry.path}" if entry.path else ".")
    info.type, info.size, info.mtime, info.linkname = (
        _TYPES[entry.kind],
        entry.size,
        max(-_FAR, min(entry.mtime, _FAR)),
        entry.target,
    )
    usual = 0o755 if entry.kind == "folder" or entry.executable else 0o644
    info.mode = entry.mode if exact else usual & (entry.mode | 0o700)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def head_blocks(value: Any) -> bytes:
    """The blocks of edge's own file with a JSON value; it is first in an archive. Raises SandboxError if too large."""
    data = json.dumps(value, separators=(",", ":")).encode()
    if len(data) > _HEAD_BYTES:
        raise _too_many()
    info = tarfile.TarInfo(HEAD)
    info.size = len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + padding(len(data))


def padding(size: int) -> bytes:
    """The zeros that fill the last block of a content of `size` bytes."""
    return bytes(-size % _BLOCK)


END = bytes(2 * _BLOCK)
"""The blocks that end an archive."""
