"""Commits made in a sandbox: a git bundle, checked, and fetched into new branches of the user's repository.

The bundle is untrusted. `git index-pack --strict` reads it in a separate folder, and then `git fetch` in the user's
repository: with all hooks, file system monitors, helpers, other protocols and configuration files besides the
repository's own turned off. Nothing of the sandbox's `.git` comes with it, and no file is checked out.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edge.errors import SandboxError
from edge.system.folders import make_folder, remove_folder
from edge.terminal.shell import absolute_folders

_MOST_KNOWN = 500  # commits whose names the sandbox gets
_MOST_BRANCHES = 1000
_SHOWN = 20  # names of branches
_PATIENCE = 120  # seconds
_MEMORY = (
    2 << 30
)  # bytes that git may use for the data of a bundle: a few bytes of it can mean an object of 16 GB
_OFF = (
    *("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.attributesFile=/dev/null", "core.pager=cat"),
    *(
        "core.askPass=true",
        "core.editor=true",
        "core.sshCommand=false",
        "core.gitProxy=false",
        "credential.helper=",
    ),
    *(
        "core.alternateRefsCommand=true",
        "gpg.program=false",
        "protocol.allow=never",
        "protocol.file.allow=always",
    ),
    *("fetch.fsckObjects=true", "transfer.fsckObjects=true", "fetch.recurseSubmodules=false", "gc.auto=0"),
    *(
        "submodule.recurse=false",
        "maintenance.auto=false",
        "fetch.writeCommitGraph=false",
        "fetch.prune=false",
    ),
    *("fetch.pruneTags=false", "log.showSignature=false"),
)
_BRANCH = re.compile(r"refs/heads/[^\x00-\x20\x7f~^:?*\[\\]{1,200}")
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Commits:
    """The new commits in a bundle: the branches to make in the user's repository, by their names in the bundle."""

    bundle: Path
    branches: dict[str, str]
    number: int
    left_out: int
    """Branches that edge does not take: too many, or with names that are too long or not allowed."""

    def __str__(self) -> str:
        word = "commit" if self.number == 1 else "commits"
        return f"  {self.number:,} new {word} of git, for {self.names}"

    @property
    def names(self) -> str:
        """The first names of the branches, and how many more there are."""
        names = list(self.branches.values())
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return ", ".join(names[:_SHOWN]) + more


def repository_of(folder: Path) -> Path | None:
    """The `.git` folder of a work folder; None if it has none, or git is not installed."""
    place = folder / ".git"
    if place.is_symlink() or not place.is_dir() or shutil.which("git") is None:
        return None
    return place


def known_commits(folder: Path) -> list[str]:
    """Names of commits that the repository of a work folder has; none if it has no repository. Raises SandboxError."""
    place = repository_of(folder)
    if place is None:
        return []
    refs = _git(
        place, "for-each-ref", "--sort=-creatordate", f"--count={_MOST_KNOWN}", "--format=%(objectname)"
    )
    head = _git(place, "rev-parse", "--quiet", "--verify", "HEAD", check=False)
    return list(dict.fromkeys(_OID.findall(head) + _OID.findall(refs)))


def check_commits(folder: Path, bundle: Path, name: str) -> Commits:
    """The commits of a bundle, after a check of all its objects. `name`: of the session, for the branches.

    Raises SandboxError if git finds something wrong with them, OSError.
    """
    place = repository_of(folder)
    if place is None:
        raise SandboxError("the work folder is not a git repository")
    refs, known, left_out, begin = _read_header(bundle)
    scratch = make_folder("edge-commits-")
    try:
        check = scratch / "check"
        form = _git(place, "rev-parse", "--show-object-format").strip()  # sha1 or sha256
        _git(None, "init", "--quiet", "--bare", "--template=", f"--object-format={form}", str(check))
        objects = check / "objects" / "info" / "alternates"
        objects.parent.mkdir(exist_ok=True)
        objects.write_text(f"{(place / 'objects').resolve()}\n")
        with bundle.open("rb") as file:
            os.lseek(file.fileno(), begin, os.SEEK_SET)
            _git(check, "index-pack", "--strict", "--fix-thin", "--stdin", stdin=file.fileno())
        number = _git(check, "rev-list", "--count", *refs.values(), "--not", *known)
    finally:
        remove_folder(scratch)
    return Commits(bundle, _branches(refs, name), int(number), left_out)


def fetch_commits(folder: Path, commits: Commits) -> None:
    """Make the branches of `commits` in the repository of a work folder. An existing branch only moves forward.

    Raises SandboxError if git refuses.
    """
    place = repository_of(folder)
    if place is None:
        raise SandboxError("the work folder is not a git repository")
    owner = place.stat().st_uid
    if sys.platform != "win32" and os.geteuid() != owner:
        raise SandboxError(f"its .git belongs to another user ({owner}): run git as that user")
    refs = [f"{ref}:refs/heads/{branch}" for ref, branch in commits.branches.items()]
    options = (
        "--no-tags",
        "--no-recurse-submodules",
        "--no-auto-maintenance",
        "--no-write-fetch-head",
        "--atomic",
    )
    _git(place, "fetch", "--quiet", "--refmap=", *options, str(commits.bundle.absolute()), *refs)


def _branches(refs: dict[str, str], name: str) -> dict[str, str]:
    """The branch for each ref of a bundle: edge/NAME for HEAD, and edge/NAME-BRANCH for those with other commits."""
    session = _plain(name) or "session"
    found = {"HEAD": f"edge/{session}"} if "HEAD" in refs else {}
    taken = set(found.values())
    for ref, commit in refs.items():
        if ref != "HEAD" and commit != refs.get("HEAD"):
            first = branch = f"edge/{session}-{_plain(ref.removeprefix('refs/heads/'))}".rstrip("-")
            number = 1
            while branch in taken:  # a/b and a-b
                number += 1
                branch = f"{first}-{number}"
            taken.add(branch)
            found[ref] = branch
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:100]


def _read_header(bundle: Path) -> tuple[dict[str, str], list[str], int, int]:
    """The refs of a bundle with their commits, the commits that it needs, the number of refs that edge does not take,
    and where its objects begin."""
    refs: dict[str, str] = {}
    known: list[str] = []
    left_out = 0
    with bundle.open("rb") as file:
        first = file.readline(100)
        if first not in (b"# v2 git bundle\n", b"# v3 git bundle\n"):
            raise SandboxError("it is not a git bundle")
        while (line := file.readline(5000)) != b"\n":
            text = os.fsdecode(line)
            found = re.fullmatch(r"(-?)([0-9a-f]{40}|[0-9a-f]{64})(?: ([^\n]*))?\n", text)
            if re.fullmatch(r"@object-format=sha(?:1|256)\n", text):
                continue
            if found is None or len(refs) + len(known) > 10_000:
                raise SandboxError("its header is damaged")
            if found[1]:
                known.append(found[2])
            elif (found[3] == "HEAD" or _BRANCH.fullmatch(found[3] or "")) and len(refs) <= _MOST_BRANCHES:
                refs[found[3]] = found[2]
            else:
                left_out += 1
        if not refs:
            raise SandboxError("it has no branch with a usual name")
        return refs, known, left_out, file.tell()


def _git(place: Path | None, *arguments: str, stdin: int | None = None, check: bool = True) -> str:
    """The output of git in a repository. Raises SandboxError if it fails or takes too long."""
    where = [] if place is None else [f"--git-dir={place.absolute()}"]
    off = [word for setting in _OFF for word in ("-c", setting)]
    limit = (
        [] if sys.platform == "win32" else ["/bin/sh", "-c", f'ulimit -d {_MEMORY >> 10}; exec "$@"', "edge"]
    )
    environment = {
        "PATH": absolute_folders(os.environ.get("PATH", os.defpath)),  # not a program of the repository
        **{"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_SYSTEM": os.devnull, "GIT_CONFIG_GLOBAL": os.devnull},
        **{
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "LC_ALL": "C",
        },
        **{
            "GIT_ATTR_NOSYSTEM": "1",
            "HOME": os.devnull,
            "XDG_CONFIG_HOME": os.devnull,
            "GIT_OPTIONAL_LOCKS": "0",
        },
    }
    try:
        done = subprocess.run(
            [*limit, "git", *where, *off, *arguments],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            cwd="/" if place is None else place,
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise SandboxError(f"git {arguments[0]} has not ended after {_PATIENCE} seconds") from None
    except OSError as error:
        raise SandboxError(f"git {arguments[0]} does not work here: {error}") from None
    if check and done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise SandboxError(f"git {arguments[0]}: {lines[0][:200] if lines else 'it failed'}")
    return done.stdout
