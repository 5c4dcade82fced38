"""The store of prompt states on disk: a process does not read again what another one has read.

Each file holds one state in llama.cpp's own form. llama.cpp's reader of states trusts its input, so edge reads a file
into memory, checks all of it there, and gives llama.cpp those same bytes. A file that fails a check is removed.

The form of a file, numbers little-endian:

    8   "EDGEST01"
    4   length of the head, in bytes
        the head: a JSON object, see `Head`
        the token ids, int32
        the logits after the last token, float32; none if the head says 0
        the state as llama_state_seq_get_data_ext writes it
    32  SHA-256 of everything before: finds damage
    32  HMAC-SHA256 of that checksum with a key of this account: finds files that edge did not write

Its name is IDENTITY-CONTENT.state: the first digits of the SHA-256 of everything that decides the bits of a state but
its tokens (edge/llama/restore.py), and of the tokens and the chunks in which they were read.
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import stat
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, cast, get_args

import numpy as np
from numpy.typing import NDArray

from edge.system.files import BINARY, NO_LINK, make_private, remove_leftovers, whole_file, write_all
from edge.system.keys import derived_key
from edge.system.machine import free_disk
from edge.system.paths import cache_folder

MAGIC = b"EDGEST01"
_LENGTH = struct.Struct("<I")
_DIGEST = 32  # bytes of a SHA-256
_MOST_HEAD = 1 << 20  # bytes
_MOST_TOKENS = 1 << 24
_MOST_FILES = 512  # edge reads the head of each at a look-up
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.state")
_MOST_BYTES = 4 << 30
_SHARE = 10  # of the free disk: one part in this many
Kind = Literal["instructions", "prompt", "conversation"]
Tokens = NDArray[np.int32]


class Head(TypedDict):
    """The JSON object at the beginning of a file."""

    identity: str
    """SHA-256, in hexadecimal, of everything that decides the bits of the state but its tokens."""
    kind: Kind
    model: str
    """The name of the model's file, for people."""
    tokens: int
    """Number of tokens."""
    ends: list[int] | None
    """Lengths at which the chunks ended in which the tokens were read. null: not known, or read beside others."""
    logits: int
    """Number of logits; 0 for none."""
    data: int
    """Bytes of the state."""


@dataclass(frozen=True)
class StoredState:
    """A file of the store, from its head, which is not checked yet."""

    path: Path
    head: Head
    tokens: Tokens
    n_bytes: int
    used: float
    """When it was last written or used: seconds since 1970."""

    def usable(self, prompt: Tokens, ends: Sequence[int], *, rewindable: bool, any_chunks: bool) -> int:
        """How many tokens of a prompt need not be read with it.

        `ends`: the chunks in which an empty cache would read the prompt. Without `any_chunks`, the state must have been
        read in the same chunks: then every bit after it is that of the empty cache. `rewindable`: a part of the state
        can be used.
        """
        own, count = self.head["ends"], len(self.tokens)
        shared = min(count, len(prompt))
        parting = np.nonzero(self.tokens[:shared] != prompt[:shared])[0]
        common = int(parting[0]) if len(parting) else shared
        if any_chunks:
            if common == count == len(prompt) and self.head["logits"]:
                return count
            most = min(common, len(prompt) - 1)  # the last token is read for its logits
            return most if rewindable else count if common == count and count < len(prompt) else 0
        best = 0
        for mine, wanted in zip(own or (), ends, strict=False):
            if mine != wanted or mine > common:
                break
            if (rewindable or mine == count) and (
                mine < len(prompt) or (mine == count and self.head["logits"])
            ):
                best = mine
        return best


@dataclass(frozen=True)
class LoadedState:
    """A file that passed all checks. `data`: the state, a writable buffer. `logits`: None without them."""

    head: Head
    tokens: Tokens
    logits: NDArray[np.float32] | None
    data: memoryview


class StateStore:
    """The files of a folder, at most `limit` bytes of them; the least recently used go first.

    Processes can use one folder at the same time. By default: the user's, and a tenth of the free disk, at most 4 GB.
    Raises ConfigError without a home folder.
    """

    def __init__(self, limit: int | None = None, folder: Path | None = None) -> None:
        self.folder = folder or states_folder()
        if limit is None:
            free = free_disk(self.folder) + sum(n_bytes for _, n_bytes, _ in _entries(self.folder))
            limit = min(_MOST_BYTES, free // _SHARE)
        self.limit = limit

    def best(
        self,
        identity: str,
        prompt: Sequence[int],
        ends: Sequence[int],
        *,
        most: int,
        rewindable: bool,
        any_chunks: bool,
    ) -> tuple[StoredState | None, int]:
        """The state of at most `most` tokens that saves most of a prompt, and how many. See `StoredState.usable`."""
        wanted, found, length = np.asarray(prompt, np.int32), None, 0
        for file in stored_files(self.folder, identity):
            usable = file.usable(wanted, ends, rewindable=rewindable, any_chunks=any_chunks)
            if file.head["identity"] == identity and len(file.tokens) <= most and usable > length:
                found, length = file, usable
        return found, length

    def load(self, file: StoredState) -> LoadedState | None:
        """All of a file, checked. None, and the file is removed, if it is not as this account wrote it.

        Raises AgentError if the user's key cannot be used.
        """
        key = self._key
        buffer = _read(file.path)
        if buffer is None:
            return None
        loaded = _checked(buffer, key)
        if loaded is None or loaded.head != file.head or not np.array_equal(loaded.tokens, file.tokens):
            with contextlib.suppress(OSError):
                file.path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(file.path)
        return loaded

    def has(self, identity: str, tokens: Sequence[int], ends: Sequence[int] | None) -> bool:
        """Whether there is a file for this state; it then counts as used now."""
        ids = np.asarray(tokens, np.int32)
        place = self._place(identity, ids, ends)
        file = _opened(place)
        if file is None or file.head["identity"] != identity or not np.array_equal(file.tokens, ids):
            return False
        with contextlib.suppress(OSError):
            os.utime(place)
        return True

    def write(self, head: Head, tokens: Sequence[int], logits: NDArray[np.float32] | None, data: Any) -> bool:
        """Write a state, and remove the least recently used ones that are too much. False if it is too large.

        A conversation replaces the states of its beginnings. Raises OSError, and AgentError if the user's key cannot be
        used.
        """
        key = self._key
        ids = np.asarray(tokens, "<i4")
        place = self._place(head["identity"], ids, head["ends"])
        text = json.dumps(head).encode()
        parts: list[Any] = [MAGIC, _LENGTH.pack(len(text)), text, ids.tobytes()]
        parts += [] if logits is None else [np.asarray(logits, "<f4").tobytes()]
        parts.append(memoryview(data).cast("B"))
        size = sum(map(len, parts)) + 2 * _DIGEST
        if size > min(self.limit, free_disk(self.folder) // 2):
            return False
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        self._make_room(size)
        checksum = hashlib.sha256()
        with whole_file(place) as (_, descriptor):
            make_private(descriptor)
            for part in parts:
                checksum.update(part)
                write_all(descriptor, part)
            write_all(descriptor, checksum.digest() + _seal(checksum.digest(), key))
        if head["kind"] == "conversation":
            for file in stored_files(self.folder, head["identity"]):
                shorter = file.head["kind"] == "conversation" and len(file.tokens) < len(ids)
                if shorter and np.array_equal(file.tokens, ids[: len(file.tokens)]):
                    file.path.unlink(missing_ok=True)
        return True

    def _make_room(self, size: int) -> None:
        files = sorted(_entries(self.folder))
        total = sum(n_bytes for _, n_bytes, _ in files) + size
        for count, (_, n_bytes, path) in enumerate(files):
            if total <= self.limit and len(files) - count < _MOST_FILES:
                break
            total -= n_bytes
            with contextlib.suppress(OSError):
                path.unlink()

    def _place(self, identity: str, tokens: NDArray[Any], ends: Sequence[int] | None) -> Path:
        content = hashlib.sha256(json.dumps(ends and list(ends)).encode() + tokens.astype("<i4").tobytes())
        return self.folder / f"{identity[:16]}-{content.hexdigest()[:32]}.state"

    @cached_property
    def _key(self) -> bytes:
        return derived_key("states of prompts")


def states_folder() -> Path:
    """The folder of the user's states. It may not exist. Raises ConfigError without a home folder."""
    return cache_folder() / "states"


def stored_files(folder: Path, identity: str = "") -> list[StoredState]:
    """The files of a store whose name and head can be read, of one identity if it is given. Nothing else is checked."""
    paths = [path for _, _, path in _entries(folder) if path.name.startswith(identity[:16])]
    return [file for file in map(_opened, paths) if file is not None]


def clear(folder: Path) -> tuple[int, int]:
    """Remove all files of a store, also those that cannot be read: how many, and their bytes. Raises OSError."""
    files = _entries(folder)
    for _, _, path in files:
        path.unlink(missing_ok=True)
    if files:
        remove_leftovers(folder)
    return len(files), sum(size for _, size, _ in files)


def _entries(folder: Path) -> list[tuple[float, int, Path]]:
    """The files of a store, also those that cannot be read: when they were last used, their bytes, and their paths."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # another process removed it
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
    return found


def _seal(checksum: bytes, key: bytes) -> bytes:
    return hmac.new(key, MAGIC + checksum, hashlib.sha256).digest()


def _checked(buffer: bytearray, key: bytes) -> LoadedState | None:
    """What a whole file holds; None if a bit of it is not as this account wrote it."""
    body = memoryview(buffer)[: -2 * _DIGEST]
    checksum = hashlib.sha256(body).digest()
    if not hmac.compare_digest(bytes(buffer[-2 * _DIGEST :]), checksum + _seal(checksum, key)):
        return None
    parsed = _head(bytes(body[: _MOST_HEAD + 64]), len(buffer))
    if parsed is None:
        return None
    head, at = parsed
    tokens = np.frombuffer(body, "<i4", head["tokens"], at).astype(np.int32)
    at += tokens.nbytes
    logits = np.frombuffer(body, "<f4", head["logits"], at).astype(np.float32) if head["logits"] else None
    return LoadedState(head, tokens, logits, body[at + 4 * head["logits"] :])


def _opened(path: Path) -> StoredState | None:
    """A file by its head; None if it is not a regular file, or if its head does not fit its size."""
    try:
        descriptor = _open(path)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        begin = os.read(descriptor, len(MAGIC) + _LENGTH.size)
        if len(begin) < len(MAGIC) + _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(begin[len(MAGIC) :])
        text = os.read(descriptor, min(length, _MOST_HEAD))
        parsed = _head(begin + text, status.st_size)
        if parsed is None:
            return None
        head = parsed[0]
        ids = os.read(descriptor, 4 * head["tokens"])
        if len(ids) < 4 * head["tokens"]:
            return None
        tokens = np.frombuffer(ids, "<i4").astype(np.int32)
        return StoredState(path, head, tokens, status.st_size, status.st_mtime)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    wait = 0
    if sys.platform != "win32":
        wait = os.O_NONBLOCK  # a FIFO would block
    return os.open(path, os.O_RDONLY | BINARY | NO_LINK | wait)


def _read(path: Path) -> bytearray | None:
    """All bytes of a regular file; None if it cannot be read."""
    try:
        descriptor = _open(path)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size <= 2 * _DIGEST:
                return None
            buffer, done = bytearray(status.st_size), 0
            while done < len(buffer):
                count = file.readinto(memoryview(buffer)[done:])
                if not count:
                    return None
                done += count
            return buffer
    except (OSError, MemoryError):
        return None


def _head(begin: bytes, n_bytes: int) -> tuple[Head, int] | None:
    """The head in the first bytes of a file of `n_bytes`, and where it ends; None if it is not a right one."""
    start = len(MAGIC) + _LENGTH.size
    if begin[: len(MAGIC)] != MAGIC or len(begin) < start:
        return None
    (length,) = _LENGTH.unpack(begin[len(MAGIC) : start])
    if length > _MOST_HEAD or len(begin) < start + length:
        return None
    try:
        head = json.loads(begin[start : start + length])
    except (ValueError, RecursionError):
        return None
    if not _is_head(head):
        return None
    rest = 4 * head["tokens"] + 4 * head["logits"] + head["data"] + 2 * _DIGEST
    return (cast(Head, head), start + length) if n_bytes == start + length + rest else None


def _is_head(head: Any) -> bool:
    if not isinstance(head, dict) or set(head) != set(Head.__annotations__):
        return False
    counts = (head["tokens"], head["logits"], head["data"])
    ends = head["ends"]
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and 0 < head["tokens"] <= _MOST_TOKENS
        and all(type(head[name]) is str for name in ("identity", "model"))
        and head["kind"] in get_args(Kind)
        and (ends is None or (isinstance(ends, list) and all(type(end) is int for end in ends)))
    )
