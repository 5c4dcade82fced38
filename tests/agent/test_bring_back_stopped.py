"""Bringing back and undoing that is stopped in its middle, or meets another one, a full disk, or another clock.

.venv/bin/pytest tests/agent/test_bring_back_stopped.py
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Edge
from sessions import YES, Person, make_session

from edge.agent.kept import archive_path, remove_old, sessions_folder, undo_paths
from edge.errors import AgentError, SandboxError
from edge.terminal.workfolder import compare

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32" or shutil.which("tar") is None, reason="there is no tar"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_STATE", str(tmp_path / "state"))
    return new_folder(tmp_path / "folder", monkeypatch)


def new_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for number in range(12):
        (folder / "sub" / f"file{number}").write_text(f"{number}\n" * 100)
    return folder


def change(inside: Path) -> None:
    for number in range(5):
        (inside / "sub" / f"file{number}").write_text("changed\n" * 1000)
    (inside / "sub" / "file5").unlink()
    (inside / "new").mkdir()
    for name in ("new/a", "new/b", "c"):
        (inside / name).write_text("new\n" * 100)
    (inside / "link").symlink_to("c")


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_text()
        if path.is_file()
        else "a folder"
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    before = os.environ.get("EDGE_STATE")
    os.environ["EDGE_STATE"] = str(tmp_path_factory.mktemp("state"))
    try:
        with Edge.started("edge.cli.agent", "edge.agent.bring_back") as started:
            yield started
    finally:
        os.environ.pop("EDGE_STATE")
        if before is not None:
            os.environ["EDGE_STATE"] = before


def test_an_undo_that_is_not_whole_ends_with_1(
    edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_folder(tmp_path / "folder", monkeypatch)
    record = make_session(folder, change, tmp_path / "session.jsonl")
    assert edge.run("agent", "--bring-back", record, "--yes", folder=folder).status == 0
    (folder / "c").write_text("the person's")
    undone = edge.run("agent", "--undo", record, folder=folder)
    assert undone.status == 1 and "c: not undone: it changed in your folder since the session" in undone.err
    assert (folder / "c").read_text() == "the person's" and contents(folder)["sub/file5"]


def test_kill_9_in_the_middle(edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is the old or the new one, whole; the same command ends the work; undo brings all of it back."""
    folder = new_folder(tmp_path / "whole", monkeypatch)
    record = make_session(folder, change, tmp_path / "whole.jsonl")
    words = ["agent", "--bring-back"]
    whole = edge.run(*words, record, "--yes", folder=folder)
    assert whole.status == 0, whole.err
    new = contents(folder)
    undone = edge.run("agent", "--undo", record, folder=folder)
    assert undone.status == 0, undone.err
    old = contents(folder)
    assert old["sub/file5"] and "c" not in old
    stopped = 0
    for part in (0.65, 0.8, 0.9, 0.97):
        folder = new_folder(tmp_path / f"at{part}", monkeypatch)
        record = make_session(folder, change, tmp_path / f"at{part}.jsonl")
        at = int(whole.events * part), signal.SIGKILL
        stopped += edge.run(*words, record, "--yes", folder=folder, stop=at).status == -9
        for name, text in contents(folder).items():
            assert text in (old.get(name), new.get(name)) or name.endswith(".tmp"), name
        again = edge.run(*words, record, "--yes", folder=folder)
        assert again.status == 0 or "nothing to bring back" in again.err, again.err
        assert contents(folder) == new
        at = int(undone.events * part), signal.SIGKILL
        stopped += edge.run("agent", "--undo", record, folder=folder, stop=at).status == -9
        while (last := edge.run("agent", "--undo", record, folder=folder)).status == 0:
            pass
        assert "nothing to undo" in last.err
        assert contents(folder) == old
    assert stopped >= 4


def test_undo_of_an_undo(folder: Path) -> None:
    """There is none: the second undo says so, and changes nothing."""
    record = make_session(folder, change)
    before = contents(folder)
    person = Person()
    assert person.brings_back(record, YES)
    person.undoes(record)
    assert contents(folder) == before
    with pytest.raises(AgentError, match="nothing to undo"):
        person.undoes(record)
    assert contents(folder) == before


def test_two_sessions_with_the_same_files(folder: Path, tmp_path: Path) -> None:
    """The second finds the files changed, and the undo of the first does not take what the second wrote."""
    first = make_session(folder, change, tmp_path / "first.jsonl")
    second = make_session(
        folder, lambda inside: [(inside / name).write_text("second\n") for name in ("sub/file0", "sub/file9", "c")],
        tmp_path / "second.jsonl",
    )  # fmt: skip
    person = Person()
    assert person.brings_back(first, YES)
    person.brings_back(second, YES)
    assert (folder / "sub" / "file0").read_text() == "changed\n" * 1000
    assert (folder / "c").read_text() == "new\n" * 100
    assert (folder / "sub" / "file9").read_text() == "second\n"
    person.undoes(first)
    assert (folder / "sub" / "file9").read_text() == "second\n" and not (folder / "c").exists()


def test_two_processes_in_one_folder(folder: Path) -> None:
    """One at a time writes into a folder."""
    record = make_session(folder, change)
    before = contents(folder)
    with pytest.raises(SandboxError, match="another process brings changes back"), held(folder):
        Person().brings_back(record, YES)
    assert contents(folder) == before
    assert Person().brings_back(record, YES)


class held:
    """Another process that writes into the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        import fcntl

        self.descriptor = os.open(self.folder, os.O_RDONLY)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        os.close(self.descriptor)


def test_a_full_disk_in_the_middle(edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has room is written whole, the rest waits in the archive; where not even the undo has room, nothing is."""
    folder = new_folder(tmp_path / "full", monkeypatch)
    before = contents(folder)

    def large(inside: Path) -> None:
        change(inside)
        (inside / "large").write_text("large\n" * 30_000)

    record = make_session(folder, large, tmp_path / "full.jsonl")
    ended = edge.run("agent", "--bring-back", record, "--yes", folder=folder, file_size=1000)
    assert ended.status == 1 and "Traceback" not in ended.err
    assert contents(folder) == before
    edge.run("agent", "--bring-back", record, "--yes", folder=folder, file_size=100_000)
    now = contents(folder)
    assert "large" not in now and now["sub/file0"] == "changed\n" * 1000
    ended = edge.run("agent", "--bring-back", record, "--yes", folder=folder)
    assert ended.status == 0 and contents(folder)["large"] == "large\n" * 30_000, ended.err


def test_other_times_of_the_clock(folder: Path) -> None:
    """Archives and files from 1970 or from the next century come back; an old date removes no archive."""
    record = make_session(folder, change, sessions_folder() / "times.jsonl")
    for moment in (1.0, 4e9):
        os.utime(archive_path(record), (moment, moment))
        os.utime(record, (moment, moment))
    assert remove_old(now=time.time() - 1e9) == 0 and archive_path(record).exists()
    assert Person().brings_back(record, YES)
    assert (folder / "c").exists() and undo_paths(record)


ODD = {
    "a byte that is no letter": b"odd-\xff\xfe",
    "a name of 255 bytes": b"n" * 255,
    "the longest path": b"/".join([b"d" * 200] * 9) + b"/x",
    "another form of the same letters": "e\u0301".encode(),
    "a name like a variable or a tilde": b"$HOME ~ `x` ;x",
    "a name of edge's own head": b"edge-base.json",
}


def test_odd_names(folder: Path) -> None:
    """They come back as they are, beside the user's own, and undo takes them back."""
    (folder / "\u00e9").write_text("mine\n")
    before = contents(folder)

    def write(inside: Path) -> None:
        for name in ODD.values():
            place = os.path.join(os.fsencode(inside), name)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "wb") as file:
                file.write(b"odd\n")

    record = make_session(folder, write)
    assert Person().brings_back(record, YES)
    for name in ODD.values():
        assert Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).read_text() == "odd\n", name
    assert (folder / "\u00e9").read_text() == "mine\n"
    Person().undoes(record)
    assert contents(folder) == before


def test_other_kinds_in_place_of_files(folder: Path) -> None:
    """Files that become folders, links and FIFOs, and folders that become files."""
    (folder / "tree").mkdir()
    (folder / "tree" / "leaf").write_text("leaf\n")

    def swap(inside: Path) -> None:
        for name in ("file0", "file1", "file2"):
            (inside / "sub" / name).unlink()
        (inside / "sub" / "file0").mkdir()
        (inside / "sub" / "file0" / "x").write_text("x\n")
        os.mkfifo(inside / "sub" / "file1")
        (inside / "sub" / "file2").symlink_to("/etc/passwd")
        shutil.rmtree(inside / "tree")
        (inside / "tree").write_text("a file\n")

    before = contents(folder)
    record = make_session(folder, swap)
    Person().brings_back(record, YES)
    after = contents(folder)
    assert {name: text for name, text in after.items() if before.get(name) != text} == {}
    assert set(before) - set(after) <= {"tree/leaf"}


def test_files_that_become_links_are_losses(folder: Path) -> None:
    """An unattended session that puts a link in the place of each file deletes their contents."""

    def link(inside: Path) -> None:
        for number in range(1, 12):
            (inside / "sub" / f"file{number}").unlink()
            (inside / "sub" / f"file{number}").symlink_to("file0")

    record = make_session(folder, link)
    before = contents(folder)
    assert compare(folder, archive_path(record)).lost
    assert not Person().brings_back(record, YES)
    assert contents(folder) == before


@pytest.mark.parametrize(("left", "comes"), [(1, False), (9, False), (10, True), (60, True)])
def test_files_that_are_cut_short_are_losses(left: int, comes: bool, folder: Path) -> None:
    """An unattended session that cuts each file to a few bytes loses what was in them."""
    for number in range(30):
        (folder / "sub" / f"long{number}").write_text("x" * 100)

    def cut(inside: Path) -> None:
        for number in range(30):
            (inside / "sub" / f"long{number}").write_text("y" * left)

    record = make_session(folder, cut)
    before = contents(folder)
    assert len(compare(folder, archive_path(record)).lost) == (0 if comes else 30)
    assert Person().brings_back(record, YES) is comes
    assert (contents(folder) != before) is comes
