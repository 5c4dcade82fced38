"""What comes back from the sandbox, attacked: repositories, links through links, strange times, other archives.

.venv/bin/pytest tests/terminal/test_bring_back_attacks.py
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from unpacked import KEY, MOST, Session

from edge.errors import SandboxError
from edge.terminal.packed import copy_archive, pack, read_base
from edge.terminal.workfolder import compare

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")]
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "page.md").write_text("page\n")
    return folder


@pytest.fixture
def session(folder: Path, tmp_path: Path) -> Session:
    return Session(folder, tmp_path / "session")


def make_repository(place: Path, canary: Path) -> None:
    """A bare repository whose configuration makes `git status` run a program."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "HEAD").write_text("ref: refs/heads/main\n")
    config = f'[core]\n\trepositoryformatversion = 0\n\tworktree = .\n\tfsmonitor = "touch {canary}; false"\n'
    (place / "config").write_text(config)
    for name in ("objects", "refs"):
        (place / name).mkdir()


def git_runs_code(folder: Path, canary: Path) -> bool:
    """Whether real git, as an ordinary user has it, runs the program in one of the folders."""
    env = {"PATH": os.environ["PATH"], "HOME": str(canary.parent), "GIT_CONFIG_NOSYSTEM": "1"}
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for words in (["status"], ["diff"], ["log"]):
            subprocess.run(
                ["git", "-c", "safe.directory=*", *words], cwd=place, env=env, capture_output=True, timeout=60
            )
    return canary.exists()


@needs_git
@pytest.mark.parametrize("where", ["docs", "docs/deep/er", ".", "new.git"])
def test_a_repository_without_a_dot_name(where: str, session: Session, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    make_repository(session.inside / where, canary)
    (session.inside / where / "fine.txt").write_text("fine\n")
    assert git_runs_code(session.inside, canary)  # the control
    canary.unlink()
    changes = session.compare().apply()
    begin = "" if where == "." else f"{where}/"
    assert f"{begin}fine.txt" in changes.new
    assert {path for path, _ in changes.withheld} == {
        f"{begin}{name}" for name in ("HEAD", "config", "objects", "refs")
    }
    assert not git_runs_code(session.folder, canary)


@needs_git
@pytest.mark.parametrize(
    "names", [("head", "Objects", "REFS"), ("HEAD", "objects", "refs"), ("Head", "CommonDir")]
)
def test_a_repository_in_other_letters(names: tuple[str, ...], session: Session) -> None:
    """Some file systems ignore case: `head` is HEAD there."""
    for name in (*names, "config", "hooks"):
        (session.inside / "docs" / name).mkdir()
    changes = session.compare().changes
    assert not changes and {path for path, _ in changes.withheld} == {
        f"docs/{n}" for n in (*names, "config", "hooks")
    }


@pytest.mark.parametrize("first", [("HEAD",), ("objects", "refs", "config"), ("HEAD", "objects")])
def test_a_repository_in_two_sessions(first: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """Each session brings back a part that is no repository yet."""
    for number, names in enumerate((first, {"HEAD", "objects", "refs", "config"} - {*first})):
        session = Session(folder, tmp_path / f"session{number}")
        for name in names:
            (session.inside / "docs" / name).write_text("x")
        session.compare().apply()
    present = {path.name.casefold() for path in (folder / "docs").iterdir()}
    assert not {"head", "objects", "refs"} <= present


def test_the_parts_may_come_under_two_spellings(session: Session) -> None:
    """`Docs` and `docs` are one folder where case does not count."""
    (session.inside / "Docs").mkdir()
    (session.inside / "Docs" / "HEAD").write_text("ref: refs/heads/main\n")
    for name in ("objects", "refs"):
        (session.inside / "docs" / name).mkdir()
    assert {path for path, _ in session.compare().changes.withheld} == {
        "Docs/HEAD",
        "docs/objects",
        "docs/refs",
    }


def test_a_repository_of_the_user_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    """Such as one that tests use. Its configuration and its hooks are programs."""
    make_repository(folder / "fixture.git", tmp_path / "ran")
    (folder / "fixture.git" / "description").write_text("mine\n")
    session = Session(folder, tmp_path / "session")
    for name in ("config", "description"):
        (session.inside / "fixture.git" / name).write_text("other\n")
    (session.inside / "fixture.git" / "hooks").mkdir()
    (session.inside / "fixture.git" / "hooks" / "post-checkout").write_text("evil\n")
    (session.inside / "fixture.git" / "HEAD").unlink()
    changes = session.compare().changes
    assert not changes
    assert {path for path, _ in changes.withheld} == {
        f"fixture.git/{n}" for n in ("config", "description", "hooks", "HEAD")
    }


@pytest.mark.parametrize("name", [".git", ".GIT", ".Git", ".g\u200dit", "\u200c.git", "git~1", "GIT~1"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_names_that_mean_git(name: str, kind: str, session: Session, tmp_path: Path) -> None:
    """Of a repository, or of a worktree or submodule, whose `.git` is a file that names a repository."""
    if kind == "folder":
        make_repository(session.inside / "docs" / name, tmp_path / "ran")
    else:
        (session.inside / "docs" / name).write_text("gitdir: ../evil\n")
    changes = session.compare().changes
    assert not changes and [path for path, _ in changes.withheld] == [f"docs/{name}"]


def test_what_is_no_repository_comes_back(session: Session) -> None:
    for name in ("objects", "refs", "index", "config", "hooks", "HEAD.txt"):
        (session.inside / "docs" / name).mkdir()
    changes = session.compare().apply()
    assert len(changes.new) == 6 and changes.withheld == []


COMPILE = """
import importlib.util, marshal, os, struct
state, code = os.stat("mod.py"), compile("print('evil')", "mod.py", "exec")
header = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(state.st_mtime), state.st_size)
os.makedirs("__pycache__", exist_ok=True)
for place in (importlib.util.cache_from_source("mod.py"), "other.pyc"):
    open(place, "wb").write(header + marshal.dumps(code))
"""


@pytest.mark.parametrize("has_cache", [False, True])
def test_compiled_code_that_runs_instead_of_a_source(has_cache: bool, folder: Path, tmp_path: Path) -> None:
    """The source is the user's own, and Python takes the other file for its compiled form."""
    (folder / "mod.py").write_text("print('good')\n")

    def run(code: str, place: Path, *options: str) -> str:
        words = [sys.executable, *options, "-c", code]
        return subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=60).stdout

    if has_cache:
        assert run("import mod", folder) == "good\n"
    session = Session(folder, tmp_path / "session")
    run(COMPILE, session.inside)
    (session.inside / "sub").mkdir()
    (session.inside / "sub" / "Foo.pmc").write_text("x")
    assert run("import mod; import other", session.inside) == "evil\nevil\n"
    changes = session.compare().apply()
    assert changes.new == ["sub"] and not changes.changed
    assert {path for path, _ in changes.withheld} == {"__pycache__", "other.pyc", "sub/Foo.pmc"}
    assert run("import mod", folder, "-B") == "good\n" and run("import other", folder) == ""
    assert "other.pyc" in session.compare(dot_files=True).changes.new
    shutil.rmtree(session.inside / "__pycache__")  # harms nobody
    assert session.compare().apply().changed == []
    assert (folder / "__pycache__").exists() is False


@pytest.mark.parametrize(
    "target", ["own", "own/x", "./own/../own/x", "docs/up/own/x", "chain", "chain/x", "docs/abs"]
)
def test_links_through_the_users_own_links(target: str, folder: Path, tmp_path: Path) -> None:
    """The user's folder has links that leave it: a link of the sandbox must not lead through them."""
    (tmp_path / "outside").mkdir()
    (folder / "own").symlink_to("../outside")
    (folder / "chain").symlink_to("docs/../own")
    (folder / "docs" / "up").symlink_to("..")
    (folder / "docs" / "abs").symlink_to(tmp_path / "outside")
    session = Session(folder, tmp_path / "session")
    (session.inside / "l").symlink_to(target)
    (session.inside / "fine").symlink_to("docs/page.md")
    changes = session.compare().apply()
    assert changes.new == ["fine"] and [path for path, _ in changes.withheld] == ["l"]
    assert not os.path.lexists(folder / "l")


def test_a_link_through_a_link_that_the_user_makes_meanwhile(session: Session, tmp_path: Path) -> None:
    (session.inside / "l").symlink_to("docs/later/x")
    (session.inside / "m").symlink_to("docs/link/x")
    (session.inside / "docs" / "link").symlink_to("../docs")
    (session.folder / "docs" / "later").symlink_to(tmp_path)
    (session.folder / "docs" / "link").symlink_to(tmp_path)  # the sandbox has another one there
    changes = session.compare().apply()
    assert not changes and {path for path, _ in changes.withheld} == {"docs/link", "l", "m"}


@pytest.mark.parametrize("time", [-1, -2, -(1 << 31), -(1 << 33), 1 << 33, 1 << 34])
def test_files_of_any_time(time: int, folder: Path, tmp_path: Path) -> None:
    for name in ("docs/page.md", "docs"):
        try:
            os.utime(folder / name, (time, time))
        except OSError:
            pytest.skip("this file system does not have such times")
    (folder / "link").symlink_to("docs")
    os.utime(folder / "link", (time, time), follow_symlinks=False)
    session = Session(folder, tmp_path / "session")
    assert not session.compare().changes
    (session.inside / "new").write_text("new\n")
    for name in ("new", "docs/page.md"):
        os.utime(session.inside / name, (time, time))
    (session.inside / "docs" / "page.md").write_text("changed\n")
    os.utime(session.inside / "docs" / "page.md", (time, time))
    changes = session.compare().apply()
    assert (changes.new, changes.changed, changes.withheld) == (["new"], ["docs/page.md"], [])
    if abs(time) < 1 << 32:
        assert int((folder / "new").stat().st_mtime) == time


def test_times_that_no_system_has(session: Session) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, time in (
            (".", tarfile.DIRTYPE, 0),
            ("./x", tarfile.REGTYPE, 1 << 61),
            ("./y", tarfile.REGTYPE, -(1 << 61)),
            ("./z", tarfile.REGTYPE, (1 << 63) - 1),  # touch -d @9223372036854775807
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mtime = kind, time
            tar.addfile(info)
    with session.packed.open("wb") as file:
        copy_archive(io.BytesIO(data.getvalue()).read, {}, file, MOST)
    changes = compare(session.folder, session.packed).apply()
    assert changes.new == ["x", "y", "z"] and changes.withheld == []


def test_paths_that_no_program_can_open_are_left_out(folder: Path, tmp_path: Path) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    left_out = pack(folder, tmp_path / "in.tar", MOST)
    assert len(left_out) == 1 and len(left_out[0]) > 4000
    subprocess.run(["rm", "-rf", folder], check=True)


# --- only what was shown, and back again ---


def contents(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): (
            os.readlink(path)
            if path.is_symlink()
            else (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime)
            if path.is_file()
            else None
        )
        for path in sorted(folder.rglob("*"))
    }


def test_only_what_was_shown_is_written(session: Session) -> None:
    """The archive is another one when edge writes than it was when edge compared."""
    for name in ("a", "b"):
        (session.inside / name).write_text("shown\n")
    (session.inside / "l").symlink_to("a")
    (session.inside / "d").mkdir()
    shown = session.compare()
    (session.inside / "a").write_text("other\n")
    (session.inside / "b").chmod(0o755)
    (session.inside / "l").unlink()
    (session.inside / "l").symlink_to("b")
    (session.inside / "d").rmdir()
    (session.inside / "d").write_text("a file now\n")
    (session.inside / "e").write_text("more\n")
    session.compare()  # writes the archive again
    changes = shown.apply()
    assert not changes and {path for path, _ in changes.withheld} == {"a", "b", "d", "l"}
    assert sorted(os.listdir(session.folder)) == ["docs"]


@pytest.mark.parametrize("place", [0, 600, -40, -1])
def test_an_archive_that_edge_did_not_write(place: int, session: Session) -> None:
    (session.inside / "a").write_text("shown\n")
    session.compare()
    data = bytearray(session.packed.read_bytes())
    data[place] ^= 1
    for forged in (bytes(data), bytes(data[:-32]), b"", data[:16]):
        session.packed.write_bytes(forged)
        with pytest.raises(SandboxError, match=r"saved\.tar: this session did not write it"):
            compare(session.folder, session.packed, key=KEY)
    with pytest.raises(SandboxError, match="this session did not write it"):
        session.compare()
        compare(session.folder, session.packed, key=b"the key of another session")


def test_undo(folder: Path, tmp_path: Path) -> None:
    (folder / "private").write_text("secret\n")
    (folder / "private").chmod(0o600)
    (folder / "tool").write_text("#!/bin/sh\n")
    (folder / "tool").chmod(0o755)
    (folder / "own").symlink_to(tmp_path)  # leads out: it is the user's
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "deep" / ("f" * 200)).write_text("f\n")
    (folder / "AGENTS.md").write_text("the user's\n")
    for path in folder.rglob("*"):
        os.utime(path, (1000, 1000), follow_symlinks=False)
    before = contents(folder)
    session = Session(folder, tmp_path / "session")
    for name in ("private", "own", "AGENTS.md"):
        (session.inside / name).unlink()
    shutil.rmtree(session.inside / "sub")
    (session.inside / "tool").write_text("other\n")
    (session.inside / "tool").chmod(0o644)
    (session.inside / "new").mkdir()
    (session.inside / "new" / "x").write_text("x\n")
    (session.inside / "docs" / "page.md").write_text("")
    comparison = session.compare(dot_files=True)
    assert sorted(comparison.lost) == ["AGENTS.md", "docs/page.md", "own", "private", "sub/deep/" + "f" * 200]
    comparison.keep_undo(tmp_path / "undo.tar", KEY)
    assert (tmp_path / "undo.tar").stat().st_mode & 0o777 == 0o600
    assert comparison.apply().withheld == []
    assert contents(folder) != before
    back = compare(folder, tmp_path / "undo.tar", key=KEY, own=True)
    assert back.apply().withheld == []
    assert contents(folder) == before
    assert not compare(folder, tmp_path / "undo.tar", key=KEY, own=True).changes


def test_undo_leaves_what_the_user_changed_since(session: Session, tmp_path: Path) -> None:
    (session.inside / "new").mkdir()
    for name in ("new/x", "new/y", "docs/page.md"):
        (session.inside / name).write_text("the agent's\n")
    comparison = session.compare()
    comparison.keep_undo(tmp_path / "undo.tar", KEY)
    comparison.apply()
    (session.folder / "new" / "x").write_text("mine\n")
    (session.folder / "docs" / "page.md").write_text("mine\n")
    changes = compare(session.folder, tmp_path / "undo.tar", key=KEY, own=True).apply()
    assert changes.deleted == ["new/y"] and {path for path, _ in changes.withheld} == {
        "new/x",
        "docs/page.md",
    }
    assert (
        (session.folder / "new" / "x").read_text()
        == (session.folder / "docs" / "page.md").read_text()
        == "mine\n"
    )


def test_session_files_are_not_in_the_sandbox(folder: Path, tmp_path: Path) -> None:
    """The records of sessions and their archives, whatever their names are; and the folders that must be hidden."""
    (folder / "notes.txt").write_text(
        '{"task_id": "s", "sample_idx": 0, "source": "edge agent", "messages": []}\n'
    )
    pack(folder, folder / "any.bin", MOST)
    (folder / "state").mkdir()
    (folder / "state" / "session.key").write_text("key\n")
    (folder / "a").write_text("a\n")
    os.link(folder / "a", folder / "docs" / "same")
    left_out = pack(
        folder, tmp_path / "in.tar", MOST, hidden=[folder / "state", folder / "a", tmp_path / "none"]
    )
    assert set(left_out) == {"notes.txt", "any.bin", "state", "a", "docs/same"}
    assert set(read_base(tmp_path / "in.tar")) == {"docs", "docs/page.md"}
