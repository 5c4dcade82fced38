"""Whether an output can be written, and how it is.

.venv/bin/pytest tests/system/test_places.py
"""

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from edge.errors import ConversionError, ReplayError, ResultError
from edge.system.places import check_place, place_of, read_text, write_json


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("", "the name of the file to write is empty"),
        ("folder", "is a folder: give the name of a file in it, such as "),
        ("file/out", "is a file, not a folder"),
        ("file/none/out", "is a file, not a folder"),
        ("a\0b", "cannot be written"),
    ],
)
def test_faults(path: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    before = sorted(os.listdir())
    with pytest.raises(ConversionError, match=fault) as caught:
        check_place(path, error=ConversionError)
    assert "\n" not in str(caught.value) and path.partition("\0")[0] in str(caught.value)
    assert sorted(os.listdir()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_file_system_that_takes_no_files() -> None:
    with pytest.raises(
        ResultError, match="/proc/out: cannot be written: /proc takes no new files; choose another place"
    ):
        check_place("/proc/out")


def test_a_good_place_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    check_place(tmp_path / "old")
    check_place(tmp_path / "new" / "deeper" / "file")
    assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "old"


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_json(tmp_path / "link", {"half": "\ud800", "ä": 1})
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "target").read_text(encoding="utf-8")) == {"half": "\ud800", "ä": 1}
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no FIFOs")
def test_a_fifo_is_written_to_directly(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    assert place_of(path) == (path, True)
    with pytest.raises(ResultError, match="is not a regular file"):
        check_place(path, streams=False)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write_json(path, [1])
    reader.join(10)
    assert read == [b"[\n 1\n]\n"] and path.is_fifo()


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "screen"
    path.write_bytes(b"\xef\xbb\xbfa\xc3\xa4\n")
    assert read_text(path) == "aä\n"
    path.write_bytes(b"ab\xff")
    with pytest.raises(ReplayError, match=r"screen: is not UTF-8 text \(byte 2\)"):
        read_text(path)
    with pytest.raises(ReplayError, match="none: cannot be read: No such file"):
        read_text(tmp_path / "none")
