"""Commits of a sandboxed session: a git bundle, checked, and fetched into a new branch. Real git and real sandboxes.

.venv/bin/pytest tests/agent/test_commits.py
"""

import binascii
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from escapes import POSSIBLE, SMALL, World, sandboxed

from edge.agent.workplace import Workplace
from edge.errors import SandboxError
from edge.terminal.commits import check_commits, fetch_commits, known_commits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not POSSIBLE or shutil.which("git") is None, reason="no sandbox, or git is not installed"
    ),
]
WORK = (
    "git config --global user.name n; git config --global user.email n@example.org\n"
    "echo b > b; git add b; git commit -qm second; echo c >> a; git add a; git commit -qm third\n"
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World.made() as world:
        yield world


def git(place: Path, *words: str, data: bytes = b"") -> str:
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    names = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *names, *words], cwd=place, env=env, input=data, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository of the user."""
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a").write_text("a\n")
    git(folder, "add", "a")
    git(folder, "commit", "-qm", "first")
    git(folder, "tag", "v1")
    return folder


def set_traps(folder: Path, canary: Path) -> None:
    """Hooks and configuration of the user that would run on a fetch."""
    for name in ("reference-transaction", "post-fetch", "pre-auto-gc", "post-checkout"):
        hook = folder / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {canary}\n")
        hook.chmod(0o755)
    for name in (
        "core.fsmonitor",
        "core.sshCommand",
        "core.alternateRefsCommand",
        "gpg.program",
        "core.pager",
    ):
        git(folder, "config", name, f"touch {canary}")


def test_commits_come_back_as_a_branch(world: World, folder: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "session.jsonl.commits.bundle"
    with sandboxed(world, workdir=folder) as shell:
        shell.run(
            WORK,
            "git checkout -qb side/line; echo d > d; git add d; git commit -qm fourth; git checkout -q -\n",
            "git config core.hooksPath /evil; git config remote.origin.url ext::evil; git tag evil\n",
        )
        set_traps(folder, tmp_path / "ran")
        before = (folder / ".git" / "config").read_bytes()
        Workplace(shell.terminal, folder, print, shell.sandbox).save_commits(bundle)
    commits = check_commits(folder, bundle, "session.of day 1")
    assert commits.branches == {
        "HEAD": "edge/session-of-day-1",
        "refs/heads/side/line": "edge/session-of-day-1-side-line",
    }
    assert commits.number == 3 and "3 new commits" in str(commits)
    fetch_commits(folder, commits)
    assert not (tmp_path / "ran").exists()
    (folder / ".git" / "config").write_bytes(before.replace(b"touch", b": touch"))
    shutil.rmtree(folder / ".git" / "hooks")
    subjects = git(folder, "log", "--format=%s", "edge/session-of-day-1-side-line").split()
    assert subjects == ["fourth", "third", "second", "first"]
    assert git(folder, "log", "--format=%s", "edge/session-of-day-1").split() == subjects[1:]
    assert git(folder, "tag") == "v1" and git(folder, "branch", "--show-current") == "main"
    assert sorted(path.name for path in folder.iterdir()) == [".git", "a"]
    fetch_commits(folder, commits)  # again: nothing to do


def test_commits_of_every_branch_come_back(folder: Path, tmp_path: Path) -> None:
    """Of many branches, of those with names that look alike, and of those with letters and signs."""
    names = ["a/b", "a-b", "fix#12", "größe", "(x)", *(f"n{number}" for number in range(25))]
    inside, bundle = tmp_path / "inside", tmp_path / "x.bundle"
    shutil.copytree(folder, inside)
    for name in names:
        git(inside, "checkout", "-qb", name, "main")
        git(inside, "commit", "-q", "--allow-empty", "-m", f"on {name}")
    git(inside, "checkout", "-q", "main")
    git(inside, "branch", "x" * 220, "a/b")
    git(inside, "bundle", "create", "-q", str(bundle), "--branches", "HEAD", "^v1")
    commits = check_commits(folder, bundle, "s")
    assert commits.left_out == 1 and commits.number == len(names)
    fetch_commits(folder, commits)
    found = git(folder, "log", "--format=%s", "--branches=edge/*").split("\n")
    assert set(found) == {"first", *(f"on {name}" for name in names)}
    assert {"edge/s-a-b", "edge/s-a-b-2", "edge/s-fix-12"} <= set(commits.branches.values())
    assert " and 10 more" in str(commits)


def test_without_new_commits_there_is_no_bundle(world: World, folder: Path, tmp_path: Path) -> None:
    with sandboxed(world, workdir=folder) as shell:
        place = Workplace(shell.terminal, folder, print, shell.sandbox)
        place.save_commits(tmp_path / "x.bundle")
        assert not (tmp_path / "x.bundle").exists()
        shell.run("rm -rf .git; git init -q\n")
        place.save_commits(tmp_path / "x.bundle")
        assert not (tmp_path / "x.bundle").exists()
        shell.run(WORK)
        place.save_commits(tmp_path / "x.bundle")  # of another history
    assert check_commits(folder, tmp_path / "x.bundle", "x").number == 2


def test_a_folder_without_a_repository_gets_none(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    with sandboxed(world, workdir=folder) as shell:
        shell.run("git init -q\n", WORK)
        Workplace(shell.terminal, folder, print, shell.sandbox).save_commits(tmp_path / "x.bundle")
    assert not (tmp_path / "x.bundle").exists() and known_commits(folder) == []


def tree_of(repository: Path, mode: str, name: bytes, oid: str) -> str:
    data = mode.encode() + b" " + name + b"\0" + binascii.unhexlify(oid)
    return git(repository, "hash-object", "-t", "tree", "--literally", "-w", "--stdin", data=data)


def with_name(name: bytes, mode: str = "100644", content: bytes = b"x") -> Callable[[Path], None]:
    """Makes HEAD a commit with one file of this name."""

    def make(repository: Path) -> None:
        blob = git(repository, "hash-object", "-w", "--stdin", data=content)
        tree = tree_of(repository, mode, name, blob)
        git(
            repository, "update-ref", "HEAD", git(repository, "commit-tree", tree, "-p", "HEAD", "-m", "evil")
        )

    return make


def bad_header(repository: Path) -> None:
    tree = git(repository, "rev-parse", "HEAD^{tree}")
    text = f"tree {tree}\nauthor a <a> 1 +0000\ncommitter bad\n\nx\n".encode()
    commit = git(repository, "hash-object", "-t", "commit", "--literally", "-w", "--stdin", data=text)
    git(repository, "update-ref", "--no-deref", "HEAD", commit)


BAD: dict[str, Callable[[Path], None]] = {
    "a file named .git": with_name(b".git"),
    "a folder named ..": with_name(b".."),
    "a name of NTFS for .git": with_name(b"git~1"),
    "a name of HFS for .git": with_name(".g\u200cit".encode()),
    "a name with a slash": with_name(b"a/b"),
    "a submodule with an option as its path": with_name(
        b".gitmodules", content=b'[submodule "x"]\n\tpath = -x\n\turl = -u./payload\n'
    ),
    ".gitmodules as a link": with_name(b".gitmodules", "120000"),
    "a damaged commit": bad_header,
}


@pytest.mark.parametrize("what", [*BAD])
def test_bad_objects_are_refused(what: str, folder: Path, tmp_path: Path) -> None:
    """git would take them from a bundle: it does not check these objects."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    base = git(folder, "rev-parse", "HEAD")
    BAD[what](other)
    git(other, "bundle", "create", "-q", str(tmp_path / "x.bundle"), "HEAD", f"^{base}")
    with pytest.raises(SandboxError, match="git index-pack: "):
        check_commits(folder, tmp_path / "x.bundle", "x")
    assert git(folder, "branch", "-a", "--format=%(refname)") == "refs/heads/main"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no bundle",
        b"# v2 git bundle\n",
        b"# v2 git bundle\n\nPACK",
        b"# v3 git bundle\n@filter=blob:none\n" + b"1" * 40 + b" HEAD\n\nPACK",
        b"# v2 git bundle\n" + b"1" * 40 + b" refs/heads/--upload-pack=evil;x\n\nPACK",
        b"# v2 git bundle\n" + b"1" * 40 + b" refs/tags/../../config\n\nPACK",
        b"# v2 git bundle\n" + b"1" * 40 + b" HEAD\n\nPACK\0\0\0\2\0\0\0\1",
        b"# v2 git bundle\n" + b"-" + b"1" * 40 + b"\n" + b"2" * 40 + b" HEAD\n\n",
    ],
)
def test_damaged_bundles(data: bytes, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.bundle").write_bytes(data)
    with pytest.raises(SandboxError):
        check_commits(folder, tmp_path / "x.bundle", "x")


@pytest.mark.parametrize("form", ["sha1", "sha256"])
def test_commits_of_each_object_format(form: str, tmp_path: Path) -> None:
    folder, inside, bundle = tmp_path / "work", tmp_path / "inside", tmp_path / "x.bundle"
    folder.mkdir()
    git(folder, "init", "-q", f"--object-format={form}")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    shutil.copytree(folder, inside)
    git(inside, "commit", "-q", "--allow-empty", "-m", "second")
    git(inside, "bundle", "create", "-q", str(bundle), "--branches", "HEAD", f"^{known_commits(folder)[0]}")
    commits = check_commits(folder, bundle, "x")
    assert commits.number == 1
    fetch_commits(folder, commits)
    assert git(folder, "log", "--format=%s", "edge/x").split() == ["second", "first"]


def test_branches_of_the_user_stay(folder: Path, tmp_path: Path) -> None:
    """Also edge's own, unless the new commits follow it; and a branch named edge has no room for others."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    base = git(folder, "rev-parse", "HEAD")
    git(other, "commit", "-q", "--allow-empty", "-m", "theirs")
    git(other, "bundle", "create", "-q", str(tmp_path / "x.bundle"), "HEAD", f"^{base}")
    commits = check_commits(folder, tmp_path / "x.bundle", "s")
    git(folder, "checkout", "-qb", "edge/s")
    git(folder, "commit", "-q", "--allow-empty", "-m", "mine")
    git(folder, "checkout", "-q", "main")
    mine = git(folder, "rev-parse", "edge/s")
    with pytest.raises(SandboxError, match="git fetch"):
        fetch_commits(folder, commits)
    assert git(folder, "rev-parse", "edge/s") == mine
    git(folder, "branch", "-m", "edge/s", "other")
    git(folder, "branch", "-m", "other", "edge")
    with pytest.raises(SandboxError, match="git fetch"):
        fetch_commits(folder, commits)
    assert git(folder, "rev-parse", "edge") == mine


def test_answers_that_are_no_bundle(world: World, folder: Path, tmp_path: Path) -> None:
    with sandboxed(world, SMALL, workdir=folder) as shell:
        assert shell.sandbox is not None
        shell.run(WORK, "mv .git kept; ln -s / .git; mkdir -p ~/.edge-commits/x\n")
        assert shell.sandbox.commits(["1" * 40], tmp_path / "x.bundle") is False
        shell.run("rm -rf .git ~/.edge-commits; mv kept .git\n")
        shell.sandbox.limits = replace(SMALL, temporary=10)
        with pytest.raises(SandboxError, match="there are too many"):
            shell.sandbox.commits([], tmp_path / "x.bundle")
        shell.sandbox.save(tmp_path / "saved.tar")  # it still answers


@pytest.mark.parametrize("first", [".", ""])
def test_a_program_of_the_repository_is_not_git(
    first: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative folder in PATH: a folder from somewhere else can have programs of any name in its .git."""
    for place in (folder / ".git" / "git", folder / "git"):
        place.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        place.chmod(0o755)
    head = git(folder, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", f"{first}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(folder)
    assert known_commits(folder) == [head] and not (tmp_path / "ran").exists()
