"""Complete files, and reads and writes at an offset, also as Windows does them.

.venv/bin/pytest tests/system/test_files.py
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge.system.files import allocate, make_private, read_at, whole_file, write_at


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


@pytest.mark.parametrize("platform", [sys.platform, "win32"])
def test_threads_read_and_write_at_offsets(
    platform: str, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    pieces = [bytes([number]) * 1000 for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_at(descriptor, memoryview(pieces[n]), n * 1000), range(200)))
        read = list(pool.map(lambda n: read_at(descriptor, 1000, n * 1000), range(200)))
    assert read == pieces
    assert read_at(descriptor, 5000, 198_000) == pieces[198] + pieces[199]  # fewer at the end
    assert read_at(descriptor, 10, 200_000) == b"" and read_at(descriptor, 0, 0) == b""


def test_whole_file_replaces_only_on_success(tmp_path: Path) -> None:
    place = tmp_path / "folder" / "file"
    with whole_file(place) as (_, descriptor):
        allocate(descriptor, 3)
        write_at(descriptor, memoryview(b"one"), 0)
    with pytest.raises(ValueError), whole_file(place) as (temporary, descriptor):
        write_at(descriptor, memoryview(b"two"), 0)
        assert temporary.exists()
        raise ValueError
    assert place.read_bytes() == b"one" and os.listdir(place.parent) == ["file"]


def test_the_next_call_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from edge.system.files import whole_file
with whole_file(Path(sys.argv[1])) as (temporary, _):
    print(temporary, flush=True)
    sys.stdin.read()
"""
    place = tmp_path / "file"
    command = [sys.executable, "-c", code, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        temporary = Path(child.stdout.readline().strip())
        with whole_file(place):
            assert temporary.exists()  # in use
        child.kill()
    assert temporary.exists()
    (tmp_path / ".file.other.tmp").touch()  # not a name of edge's
    with whole_file(place):
        assert not temporary.exists()
    assert sorted(os.listdir(tmp_path)) == [".file.other.tmp", "file"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_make_private(descriptor: int) -> None:
    os.fchmod(descriptor, 0o644)
    make_private(descriptor)
    assert os.fstat(descriptor).st_mode & 0o777 == 0o600
