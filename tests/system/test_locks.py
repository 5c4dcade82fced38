"""The lock of a file or folder, between real processes.

.venv/bin/pytest tests/system/test_locks.py
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.system.locks import lock_folder, try_lock

HOLD_FILE = """
import os, sys
from edge.system.locks import try_lock
print(try_lock(os.open(sys.argv[1], os.O_RDWR)), flush=True)
sys.stdin.read()
"""
HOLD_FOLDER = """
import sys
from pathlib import Path
from edge.system.locks import lock_folder
print(lock_folder(Path(sys.argv[1])) is not None, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def process(code: str, path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that tries the lock and then waits; with what it printed."""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child, child.stdout.readline().strip()
        finally:
            child.kill()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def test_one_process_at_a_time(file: Path) -> None:
    with opened(file) as descriptor:
        assert try_lock(descriptor) is True
        with process(HOLD_FILE, file) as (_, answer):
            assert answer == "False"
    with process(HOLD_FILE, file) as (_, answer):  # closing the descriptor released it
        assert answer == "True"


def test_a_dead_process_releases_its_lock(file: Path) -> None:
    with process(HOLD_FILE, file) as (child, answer), opened(file) as descriptor:
        assert answer == "True" and try_lock(descriptor) is False
        child.kill()
        child.wait()
        assert try_lock(descriptor) is True


def test_the_lock_leaves_the_file_and_its_position_alone(file: Path) -> None:
    with opened(file) as descriptor:
        os.lseek(descriptor, 3, os.SEEK_SET)
        assert try_lock(descriptor) is True
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 3
        assert file.read_bytes() == b"content"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with opened(file) as descriptor:
        assert try_lock(descriptor) is None
    assert lock_folder(file.parent) is None


posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock for folders")


@posix
def test_a_folder_lock(tmp_path: Path) -> None:
    descriptor = lock_folder(tmp_path)
    assert descriptor is not None
    assert not os.get_inheritable(descriptor)  # a child process must not keep the lock
    with process(HOLD_FOLDER, tmp_path) as (_, answer):
        assert answer == "False"
    os.close(descriptor)
    with process(HOLD_FOLDER, tmp_path) as (child, answer):
        assert answer == "True" and lock_folder(tmp_path) is None
        child.kill()
        child.wait()
        last = lock_folder(tmp_path)
        assert last is not None
        os.close(last)


@posix
def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(OSError):
        lock_folder(tmp_path / "link")
    with pytest.raises(FileNotFoundError):
        lock_folder(tmp_path / "none")
