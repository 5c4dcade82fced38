"""What comes back from the sandbox must not change what the user's programs obey, nor who may read a file.

.venv/bin/pytest tests/terminal/test_bring_back_rights.py
"""

import os
import shutil
import stat
import struct
from pathlib import Path

import pytest
from unpacked import KEY, Session

from edge.terminal.workfolder import compare

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "page.md").write_text("page\n")
    return folder


def write_all(inside: Path, *names: str) -> None:
    for name in names:
        place = inside / name
        if place.is_symlink():
            place.unlink()
        place.write_text("the agent's\n")


def test_files_behind_the_users_own_names(folder: Path, tmp_path: Path) -> None:
    """The names CLAUDE.md, .git/hooks/pre-commit and .envrc are withheld: so is what the user's links lead to."""
    (folder / ".git" / "hooks").mkdir(parents=True)
    (folder / "scripts").mkdir()
    (folder / "rules").mkdir()
    for name, target in (
        ("CLAUDE.md", "docs/guide.md"),
        (".git/hooks/pre-commit", "../../scripts/check"),
        (".envrc", "chain"),
        ("chain", "env.sh"),
        (".cursor", "rules"),
        (".bin", "scripts"),  # nothing acts on it
    ):
        (folder / name).symlink_to(target)
    behind = ("docs/guide.md", "scripts/check", "env.sh", "rules/all.txt")
    for name in (*behind, "scripts/free"):
        (folder / name).write_text("mine\n")
    session = Session(folder, tmp_path / "session")
    write_all(session.inside, *behind, "scripts/free", "docs/page.md", "chain", "rules/new.txt")
    changes = session.compare().apply()
    assert changes.changed == ["docs/page.md", "scripts/free"] and changes.new == []
    assert {path for path, _ in changes.withheld} == {*behind, "chain", "rules/new.txt"}
    assert any(".git/hooks/pre-commit leads to it" in why for _, why in changes.withheld)
    assert all((folder / name).read_text() == "mine\n" for name in behind)
    assert session.compare(dot_files=True).changes.changed == sorted([*behind, "chain"])


def test_each_link_to_the_sessions_own_files(folder: Path, tmp_path: Path) -> None:
    """The allowlist of the session is a link: another file in place of the link is another allowlist."""
    (folder / "lists").mkdir()
    (folder / "lists" / "strict.toml").write_text("# nothing is allowed\n")
    (folder / "now").symlink_to("lists")
    (folder / "allow.toml").symlink_to("now/strict.toml")
    session = Session(folder, tmp_path / "session")
    write_all(session.inside, "allow.toml", "now", "lists/strict.toml", "new")
    changes = session.compare(protected=[folder / "allow.toml"]).apply()
    assert changes.new == ["new"] and not changes.changed
    assert {path for path, _ in changes.withheld} == {"allow.toml", "now", "lists/strict.toml"}
    assert (folder / "allow.toml").read_text() == "# nothing is allowed\n"


SESSION_FILES = (
    *("s.jsonl.commits.bundle", "s.jsonl.work.tar", "s.jsonl.first.tar", "s.jsonl.undo-3.tar"),
    "notes.txt.commits.bundle",  # a record can have any name
)


def test_names_of_session_files(folder: Path, tmp_path: Path) -> None:
    """A git bundle of another session is in the work folder, or the sandbox makes one for it."""
    bundles = [f"docs/{name}" for name in SESSION_FILES if name.endswith(".bundle")]
    for bundle in bundles:
        (folder / bundle).write_text("# v2 git bundle\n")
    session = Session(folder, tmp_path / "session")
    assert not any((session.inside / bundle).exists() for bundle in bundles)
    write_all(session.inside, *SESSION_FILES, *bundles, "fine.bundle")
    changes = session.compare(dot_files=True).apply()
    assert changes.new == ["fine.bundle"]
    assert {path for path, _ in changes.withheld} == {*SESSION_FILES, *bundles}


def access_list(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX access list as the kernel stores it (acl(5)): tag, rights and user of each entry."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize("executable", [False, True])
def test_access_lists_stay(executable: bool, folder: Path, tmp_path: Path) -> None:
    """One other user may read and write a file, its group may not: so it is after the agent changed the file."""
    none = 0xFFFFFFFF
    rights = [(0x01, 6, none), (0x02, 6, 64_998), (0x04, 0, none), (0x10, 6, none), (0x20, 0, none)]
    try:
        os.setxattr(folder / "docs" / "page.md", "system.posix_acl_access", access_list(*rights))
        os.setxattr(folder / "docs" / "page.md", "user.note", b"mine")
    except (OSError, AttributeError):
        pytest.skip("this file system has no access lists")
    session = Session(folder, tmp_path / "session")
    write_all(session.inside, "docs/page.md")
    (session.inside / "docs" / "page.md").chmod(0o755 if executable else 0o644)
    assert session.compare().apply().changed == ["docs/page.md"]
    after = os.getxattr(folder / "docs" / "page.md", "system.posix_acl_access")
    entries = [struct.unpack("<HHI", after[at : at + 8]) for at in range(4, len(after), 8)]
    assert [(tag, who) for tag, _, who in entries] == [(tag, who) for tag, _, who in rights]
    assert entries[2][1] == entries[4][1] == 0  # the group's own rights, and everyone's
    assert bool(entries[0][1] & 1) is executable
    assert os.getxattr(folder / "docs" / "page.md", "user.note") == b"mine"


def mode_of(place: Path) -> int:
    return stat.S_IMODE(place.lstat().st_mode)


@pytest.fixture
def private(folder: Path) -> Path:
    """The folder with a file and a folder that only their owner may open."""
    (folder / "secret").write_text("secret\n")
    (folder / "secret").chmod(0o600)
    (folder / "keys").mkdir(0o700)
    (folder / "keys" / "key").write_text("key\n")
    (folder / "docs" / "page.md").chmod(0o640)
    return folder


def test_private_files_stay_private_under_another_name(private: Path, tmp_path: Path) -> None:
    session = Session(private, tmp_path / "session")
    for old, new in (("secret", "moved"), ("keys", "moved keys"), ("docs/page.md", "docs/other.md")):
        (session.inside / old).rename(session.inside / new)
    (session.inside / "usual").write_text("usual\n")
    made = session.inside / "new key"
    made.write_text("key\n")
    made.chmod(0o600)
    before = os.umask(0o002)
    try:
        session.compare().apply()
    finally:
        os.umask(before)
    modes = {
        name: mode_of(private / name) for name in ("moved", "moved keys", "docs/other.md", "new key", "usual")
    }
    assert modes == {
        "moved": 0o600,
        "moved keys": 0o700,
        "docs/other.md": 0o660,
        "new key": 0o600,
        "usual": 0o664,
    }


def test_the_undo_gives_nobody_else_rights(private: Path, tmp_path: Path) -> None:
    """Of what was deleted, and of a private file that became a link."""
    (private / "other").write_text("other\n")
    (private / "other").chmod(0o600)
    session = Session(private, tmp_path / "session")
    (session.inside / "secret").unlink()
    (session.inside / "secret").symlink_to("other")
    (session.inside / "other").unlink()
    shutil.rmtree(session.inside / "keys")
    coming = session.compare()
    coming.keep_undo(tmp_path / "undo.tar", KEY)
    assert coming.apply().deleted == ["keys", "keys/key", "other"] and (private / "secret").is_symlink()
    assert not compare(private, tmp_path / "undo.tar", key=KEY, own=True).apply().withheld
    modes = {name: mode_of(private / name) for name in ("secret", "other", "keys", "keys/key")}
    assert modes == {"secret": 0o600, "other": 0o600, "keys": 0o700, "keys/key": 0o644}


def test_the_undo_of_a_file_with_an_access_list(private: Path, tmp_path: Path) -> None:
    """The bits of the group are then the rights of the other user: without the list, the group would have them."""
    none = 0xFFFFFFFF
    rights = [(0x01, 6, none), (0x02, 6, 64_998), (0x04, 0, none), (0x10, 6, none), (0x20, 0, none)]
    try:
        os.setxattr(private / "secret", "system.posix_acl_access", access_list(*rights))
    except (OSError, AttributeError):
        pytest.skip("this file system has no access lists")
    assert mode_of(private / "secret") == 0o660
    session = Session(private, tmp_path / "session")
    (session.inside / "secret").rename(session.inside / "moved")
    coming = session.compare()
    coming.keep_undo(tmp_path / "undo.tar", KEY)
    coming.apply()
    assert mode_of(private / "moved") == 0o600
    compare(private, tmp_path / "undo.tar", key=KEY, own=True).apply()
    assert mode_of(private / "secret") == 0o600


def test_a_folders_default_list_gives_nobody_rights_to_what_was_private(folder: Path, tmp_path: Path) -> None:
    """The work folder got a default list, which names another user, after its files were made."""
    for name in ("changed", "linked", "lost", "moved", "docs/lost"):
        (folder / name).write_text("mine\n")
        (folder / name).chmod(0o640)
    (folder / "keys").mkdir(0o750)
    (folder / "keys").chmod(0o750)
    none = 0xFFFFFFFF
    rights = [(0x01, 7, none), (0x02, 7, 64_998), (0x04, 7, none), (0x10, 7, none), (0x20, 5, none)]
    try:
        for place in (folder, folder / "docs"):
            os.setxattr(place, "system.posix_acl_default", access_list(*rights))
    except (OSError, AttributeError):
        pytest.skip("this file system has no access lists")

    def named(*names: str) -> list[str]:
        """Which of these have a list that gives the other user something."""
        return [name for name in names if "system.posix_acl_access" in os.listxattr(folder / name)]

    session = Session(folder, tmp_path / "session")
    write_all(session.inside, "changed")
    (session.inside / "moved").rename(session.inside / "docs" / "moved")
    for name in ("linked", "lost", "docs/lost"):
        (session.inside / name).unlink()
    (session.inside / "linked").symlink_to("changed")
    (session.inside / "keys").rmdir()
    (session.inside / "private").mkdir(0o700)
    coming = session.compare()
    coming.keep_undo(tmp_path / "undo.tar", KEY)
    assert len(coming.apply().deleted) == 4
    assert named("changed", "docs/moved", "private") == []
    assert [mode_of(folder / name) for name in ("changed", "docs/moved", "private")] == [0o640, 0o600, 0o700]
    assert not compare(folder, tmp_path / "undo.tar", key=KEY, own=True).apply().withheld
    assert named("changed", "linked", "lost", "moved", "docs/lost", "keys") == []
    assert {mode_of(folder / name) for name in ("changed", "linked", "lost", "moved", "docs/lost")} == {0o640}
    assert mode_of(folder / "keys") == 0o750
