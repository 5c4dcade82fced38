"""Bringing back and undoing: seals of records and archives, the lock, the folder, and how much may be deleted.

.venv/bin/pytest tests/agent/test_bring_back.py
"""

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sessions import ACTION, YES, Person, make_session, save

from edge.agent.bring_back import Consent, Return
from edge.agent.kept import (
    MOST_DAYS,
    archive_path,
    command,
    commits_path,
    find_session,
    new_undo_path,
    remove_old,
    sessions_folder,
    undo_paths,
)
from edge.agent.record import Record, new_record_path
from edge.errors import AgentError, EdgeError, SandboxError
from edge.system.keys import key_path
from edge.system.paths import state_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32" or shutil.which("tar") is None, reason="there is no tar"),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_STATE", str(tmp_path / "state"))
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for number in range(10):
        (folder / f"file{number}").write_text(f"{number}\n")
    return folder


def test_the_key_is_private_and_stays(folder: Path) -> None:
    record = make_session(folder, lambda inside: (inside / "new").write_text("new\n"))
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600 and len(key_path().read_bytes()) == 32
    key = key_path().read_bytes()
    make_session(folder, lambda inside: None, folder.parent / "other.jsonl")
    assert key_path().read_bytes() == key
    key_path().write_bytes(b"short")
    with pytest.raises(AgentError, match=r"session\.key: is damaged: remove it"):
        Record.resume(record, completed=True)
    with pytest.raises(AgentError, match="is damaged"):
        Record.create(folder.parent / "third.jsonl", {"task": "t"})
    assert not (folder.parent / "third.jsonl").exists()
    key_path().unlink()
    with pytest.raises(AgentError, match=r"session\.jsonl: edge did not write it on this account"):
        Record.resume(record, completed=True)


def forged(lines: list[bytes]) -> dict[str, list[bytes]]:
    """Records that a sandboxed session could make from one that it has seen."""

    def changed(line: bytes, name: str, value: object) -> bytes:
        row = json.loads(line)
        row["session"][name] = value
        return json.dumps(row, ensure_ascii=False).encode()

    first, second = lines
    return {
        "another folder": [changed(first, "workdir", "/etc"), second],
        "another outcome": [first, changed(second, "outcome", "stopped")],
        "no seal": [first[: first.rindex(b', "seal"')] + b"}", second],
        "rows in another order": [second, first],
        "a row twice": [first, first, second],
        "without the first": [second],
        "one space more": [first.replace(b'{"task_id"', b'{ "task_id"'), second],
        "another name": [changed(first, "id", "0" * 32), second],
        "no name": [changed(first, "id", ""), second],
        "an added row": [first, second, b'{"source": "edge agent"}'],
    }


@pytest.mark.parametrize("what", [*forged([b'{"session": {}, "seal": ""}'] * 2)])
def test_a_record_that_edge_did_not_write(what: str, folder: Path) -> None:
    """Edge neither continues it nor brings anything back, and does not change it."""
    record = make_session(folder, lambda inside: (inside / "new").write_text("new\n"))
    bad = b"".join(line + b"\n" for line in forged(record.read_bytes().splitlines())[what])
    record.write_bytes(bad)
    for attempt in (
        lambda: Record.resume(record, completed=True),
        lambda: Person().brings_back(record, YES),
        lambda: Person().undoes(record),
    ):
        with pytest.raises(EdgeError):
            attempt()
    assert record.read_bytes() == bad and not (folder / "new").exists()


def test_a_record_of_an_earlier_edge_is_not_continued(folder: Path) -> None:
    row = {
        "task_id": "t",
        "step_idx": 0,
        "source": "edge agent",
        "messages": [{"role": "user", "content": "x"}],
    }
    row["ref_raw"] = "{}"
    (folder / "old.jsonl").write_text(json.dumps({**row, "session": {"task": "x", "workdir": "/etc"}}) + "\n")
    with pytest.raises(AgentError, match=r"old\.jsonl: edge did not write it on this account"):
        Record.resume(folder / "old.jsonl")


def test_the_archive_of_another_session_is_refused(folder: Path) -> None:
    """An archive cannot be given to the record of another session, nor one that edge did not write."""
    one = make_session(folder, lambda inside: (inside / "new").write_text("new\n"))
    other = make_session(folder, lambda inside: None, folder.parent / "other.jsonl")
    shutil.copy(archive_path(one), archive_path(other))
    with pytest.raises(SandboxError, match=r"other\.jsonl\.work\.tar: this session did not write it"):
        Person().brings_back(other, YES)
    shutil.copy(archive_path(one), new_undo_path(one))
    with pytest.raises(SandboxError, match=r"undo-1\.tar: this session did not write it"):
        Person().undoes(one)
    assert not (folder / "new").exists()


def test_a_record_with_its_rows_resealed_goes_on(folder: Path) -> None:
    """Resume, write, finish, resume: the seals hold over all of it, with a row that was not written whole."""
    path = make_session(folder, lambda inside: None, outcome="steps")
    with path.open("ab") as file:
        file.write(b'{"task_id": "half')
    with Record.resume(path) as record:
        record.append([{"role": "user", "content": "\ud800 \x85\u2028 é"}], json.dumps(ACTION), ACTION, {})
    with Record.resume(path) as record:
        assert [row["step_idx"] for row in record.rows] == [0, 1, 2] and "seal" not in record.rows[0]
        record.finish("complete", "\udfff")
        record.finish("complete", "twice")
    with Record.resume(path, completed=True) as record:
        assert record.outcome == "complete"


def test_the_lock_is_held_until_the_record_is_closed(folder: Path) -> None:
    """Also after `finish`, which puts another file in the place of the record."""
    path = make_session(folder, lambda inside: (inside / "new").write_text("new\n"), outcome="steps")
    waiting = os.open(path, os.O_RDWR)
    with Record.resume(path) as record:
        record.finish("steps", "")
        with pytest.raises(AgentError, match="Another edge agent is using this session"):
            Record.resume(path)
        with pytest.raises(AgentError, match="Another edge agent is using this session"):
            Person().brings_back(path, YES)
    os.close(waiting)
    Record.resume(path).close()


def test_many_processes_finish_and_resume(folder: Path) -> None:
    """At no moment two of them have the record."""
    path = make_session(folder, lambda inside: None, outcome="steps")
    holders: list[int] = []
    most, errors = [0], list[str]()
    end = time.monotonic() + 2

    def work(number: int) -> None:
        while time.monotonic() < end:
            try:
                with Record.resume(path) as record:
                    holders.append(number)
                    most[0] = max(most[0], len(holders))
                    record.finish("steps", "")
                    most[0] = max(most[0], len(holders))
                    holders.remove(number)
            except AgentError as error:
                if "Another edge agent" not in str(error):
                    errors.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and errors == []


def test_it_comes_back_into_the_current_folder_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_session(folder, lambda inside: (inside / "new").write_text("new\n"))
    (folder.parent / "else").mkdir()
    monkeypatch.chdir(folder.parent / "else")
    person = Person()
    assert person.brings_back(record, YES) is False
    assert not (folder / "new").exists()
    assert any("is not the current folder" in line for line in person.said)
    assert f"to bring it back: cd {folder} && edge agent --bring-back {record} --yes" in person.said
    monkeypatch.chdir(folder)
    assert person.brings_back(record, YES) is True
    assert (folder / "new").read_text() == "new\n" and not archive_path(record).exists()
    monkeypatch.chdir("/")
    with pytest.raises(AgentError, match=rf"cd {folder} && edge agent --undo"):
        person.undoes(record)
    assert (folder / "new").exists()


@pytest.mark.parametrize(
    ("answers", "comes"), [("y\nn\n", False), ("n\n", False), ("y\n", False), ("y\ny\n", True)]
)
def test_a_person_is_asked_again_for_another_folder(
    answers: str, comes: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_session(folder, delete("file0", "file1", "file2"))
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
    person = Person()
    person.brings_back(record, Consent(person=True))
    assert (folder / "file0").exists() is not comes
    shown = person.shown.getvalue()
    assert (
        "This deletes, empties or cuts short 3 files of 10." in shown
        and "Changes in the work folder" in shown
    )
    assert archive_path(record).exists() is not comes
    how = f"to bring it back: cd {folder} && edge agent --bring-back {record}"
    assert (how in person.said) is not comes


def delete(*names: str) -> Callable[[Path], None]:
    return lambda inside: [(inside / name).unlink() for name in names] and None


def empty(inside: Path) -> None:
    for path in inside.iterdir():
        path.write_text("")


def remove_all(inside: Path) -> None:
    for path in inside.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "held"),
    [
        (delete("file0"), False),
        (delete("file0", "file1"), False),
        (delete("file0", "file1", "file2"), True),
        (remove_all, True),
        (empty, True),
    ],
)
def test_many_deletions_are_not_made_unasked(
    change: Callable[[Path], object], held: bool, folder: Path
) -> None:
    def all_changes(inside: Path) -> None:
        change(inside)
        (inside / "new").write_text("new\n")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    record = make_session(folder, all_changes)
    with Record.resume(record, completed=True) as opened:
        person = Person()
        whole = Return(opened, folder, (), False, YES, person.console, person.said.append).run()
    assert whole is not held
    now = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert now.pop("new") == b"new\n"
    assert (now == before) is held
    how = f"to bring it back: cd {folder} && edge agent --bring-back {record} --yes"
    assert (how in person.said) is held
    if held:
        assert archive_path(record).exists()
        assert person.brings_back(record, Consent(False, yes=True, losses=True))  # what this command does
        now = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert now.pop("new") == b"new\n" and now != before
    while undo_paths(record):
        person.undoes(record)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_only_file_and_many_files_of_a_large_folder(folder: Path) -> None:
    for path in list(folder.iterdir())[1:]:
        path.unlink()
    record = make_session(folder, remove_all)
    person = Person()
    with Record.resume(record, completed=True) as opened:
        assert not Return(opened, folder, (), False, YES, person.console, person.said.append).run()
    assert len(list(folder.iterdir())) == 1
    for number in range(300):
        (folder / f"file{number}").write_text(f"{number}\n")
    record = make_session(folder, delete(*(f"file{n}" for n in range(21))), folder.parent / "second.jsonl")
    with Record.resume(record, completed=True) as opened:
        assert not Return(opened, folder, (), False, YES, person.console, person.said.append).run()
    assert len(list(folder.iterdir())) == 300


def test_sessions_are_found_by_name(folder: Path) -> None:
    place = state_folder() / "sessions" / "20260101-000000-task.jsonl"
    record = make_session(folder, lambda inside: (inside / "new").write_text("new\n"), place)
    for name in (str(record), record.name, record.stem):
        assert find_session(name) == record
    with pytest.raises(AgentError, match="none: there is no such session record"):
        find_session("none")
    person = Person()
    person.brings_back(Path(record.stem), YES)
    assert (folder / "new").exists() and person.said == [f"to undo this: {command('--undo', record)}"]
    person.undoes(Path(record.stem))
    assert not (folder / "new").exists()
    with pytest.raises(AgentError, match="there is nothing to undo"):
        person.undoes(record)
    with pytest.raises(AgentError, match="there is nothing to bring back"):
        person.brings_back(record, YES)


def test_the_sessions_own_files_stay_out_later_too(folder: Path) -> None:
    """The allowlist is in the work folder; the later command does not name it."""
    (folder / "allow.toml").write_text("# nothing\n")
    path = folder.parent / "session.jsonl"
    facts: Any = {"task": "t", "workdir": str(folder), "sandbox": True}
    with Record.create(path, {**facts, "own_files": [str(folder / "allow.toml")]}) as record:
        record.append([{"role": "user", "content": "x"}], json.dumps(ACTION), ACTION, {})
        save(folder, lambda inside: (inside / "allow.toml").write_text("all\n"), record)
        record.finish("stopped", "")
    Person().brings_back(path, YES)
    assert (folder / "allow.toml").read_text() == "# nothing\n"


def test_a_folder_that_is_gone_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_session(folder, lambda inside: (inside / "new").write_text("new\n"))
    monkeypatch.chdir(folder.parent)
    shutil.rmtree(folder)
    with pytest.raises(AgentError, match="the work folder of this session no longer exists; what") as caught:
        Person().brings_back(record, YES)
    archive = archive_path(record)  # as the line says, it is one that tar reads
    assert str(caught.value).endswith(f"is in the tar archive {archive}")
    words = ["tar", "-x", "-O", "-f", str(archive), "./new"]
    assert subprocess.run(words, capture_output=True, text=True).stdout == "new\n"


def test_old_archives_are_removed(folder: Path) -> None:
    """Those of a running session stay, and records, other files, and archives outside the state folder."""
    place = sessions_folder()
    place.mkdir(parents=True)
    days = 86_400

    def archive(name: str, size: int, age: float) -> Path:
        (place / name).touch()
        os.truncate(place / name, size)
        os.utime(place / name, (time.time() - age * days,) * 2)
        return place / name

    old = [
        archive(name, 10, MOST_DAYS + 1)
        for name in ("a.jsonl.work.tar", "a.jsonl.first.tar", "b.jsonl.undo-12.tar", "b.jsonl.commits.bundle")
    ]
    others = [
        archive(name, 10, 999)
        for name in ("a.jsonl", "notes.tar", "work.tar", "x.jsonl.work.tar.gz", "b.jsonl.undo-1.txt")
    ]
    running = archive("run.jsonl.work.tar", 10, 999)
    elsewhere = folder.parent / "c.jsonl.work.tar"
    elsewhere.touch()
    os.utime(elsewhere, (1, 1))
    with Record.create(place / "run.jsonl", {"task": "t"}):
        assert remove_old() == 4
        assert not any(path.exists() for path in old)
        assert all(path.exists() for path in (*others, running, elsewhere))
        large = [archive(f"{n}.jsonl.work.tar", 1 << 30, 20 - n) for n in range(7)]  # sparse files
        archive("run.jsonl.work.tar", 1 << 30, 25)
        assert remove_old() == 4
        assert [path.exists() for path in large] == [False] * 4 + [True] * 3 and running.exists()
    assert remove_old() == 0


def test_archives_are_numbered_in_order(folder: Path) -> None:
    record = folder.parent / "a.jsonl"
    for number in (2, 10, 9):
        (folder.parent / f"a.jsonl.undo-{number}.tar").touch()
    (folder.parent / "a.jsonl.undo-x.tar").touch()
    assert [path.name for path in undo_paths(record)] == [f"a.jsonl.undo-{n}.tar" for n in (2, 9, 10)]
    assert new_undo_path(record).name == "a.jsonl.undo-11.tar"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commits_come_with_the_changes(folder: Path) -> None:
    """A bundle beside the record becomes a branch if the person agrees; without a repository it stays."""

    def git(place: Path, *words: str) -> str:
        names = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        return subprocess.run(
            ["git", *names, *words], cwd=place, check=True, capture_output=True, text=True
        ).stdout

    record = make_session(folder, lambda inside: (inside / "new").write_text("new\n"))
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    git(other, "commit", "-q", "--allow-empty", "-m", "two")
    base = git(folder, "rev-parse", "HEAD").strip()
    git(other, "bundle", "create", "-q", str(commits_path(record)), "HEAD", f"^{base}")
    (folder / ".git").rename(folder / "away")
    person = Person()
    with Record.resume(record, completed=True) as opened:
        back = Return(opened, folder, (), False, Consent(False), person.console, person.said.append)
        assert back._commits() == (None, True) and "is not a git repository" in person.said[-1]
    (folder / "away").rename(folder / ".git")
    assert person.brings_back(record, YES) and not commits_path(record).exists()
    assert "1 new commit of git, for edge/session" in person.shown.getvalue()
    assert "the commits are in edge/session; nothing of it is checked out" in person.said
    assert git(folder, "log", "--format=%s", "edge/session").split() == ["two", "one"]
    assert (folder / "new").exists() and archive_path(record).exists() is False


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commits_that_cannot_come_back_are_no_success(folder: Path) -> None:
    """The files come back; `edge agent --yes` then ends with 1, because the commits did not."""
    record = make_session(folder, lambda inside: (inside / "new").write_text("new\n"))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    commits_path(record).write_bytes(b"no bundle")
    person = Person()
    assert not person.brings_back(record, YES)
    assert (folder / "new").exists() and commits_path(record).exists()
    assert any(line.startswith("the commits are not brought back: ") for line in person.said)


def test_sessions_of_one_task_in_one_second(folder: Path) -> None:
    """Each has a record of its own, also while the other one has no more than an archive."""
    found = set()
    for number in range(4):
        path = new_record_path("Do step 1 of 2.")
        found.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        (path if number % 2 else archive_path(path)).touch()
    assert len(found) == 4


class _ChangesMeanwhile(io.StringIO):
    """A screen on which the list of changes appears while a file changes in the folder."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def write(self, text: str) -> int:
        if "Changes in the work folder" in text:
            self.file.write_text("mine\n")
        return super().write(text)


def test_a_file_that_changes_after_the_list(folder: Path) -> None:
    """Nothing is brought back then, and edge says how to do it later."""
    record = make_session(folder, lambda inside: [(inside / f"file{n}").write_text("new\n") for n in (1, 2)])
    person = Person()
    person.console = Console(file=_ChangesMeanwhile(folder / "file1"), soft_wrap=True)
    with pytest.raises(SandboxError, match="file1: it changed in your folder"):
        person.brings_back(record, YES)
    assert [(folder / f"file{n}").read_text() for n in (1, 2)] == ["mine\n", "2\n"]
    assert any(f"edge agent --bring-back {record}" in said for said in person.said)
    assert not undo_paths(record)
    assert Person().brings_back(record, YES)
    assert [(folder / f"file{n}").read_text() for n in (1, 2)] == ["mine\n", "new\n"]
