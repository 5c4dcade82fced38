"""The arguments of bubblewrap: which files a sandbox has, and where. Linux only."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge.system.confined import PATH, system_mounts
from edge.terminal.check import BESIDE, HOME, WORK, Limits
from edge.terminal.shell import NEVER_WAIT

USER = 1000  # inside the sandbox
BEGIN = "/run/edge"  # the supervisor inside the sandbox
CONTENTS = "/run/edge-contents"  # the checksums of the files with which the session began
_LINE_EDITOR = "/run/edge-inputrc"  # the settings of the shell's line editor

_ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "nsswitch.conf", "localtime", "timezone"),
    *("os-release", "debian_version", "ssl/certs", "ssl/openssl.cnf", "ca-certificates", "pki", "mime.types"),
    *("terminfo", "magic", "perl", "python3", "python3.11", "python3.12", "python3.13", "java-17-openjdk"),
    *("fonts", "bash_completion", "inputrc", "gitconfig", "protocols", "services", "vim", "nanorc"),
)
# Folders of another root that a sandbox does not take: the sandbox, the machine or the model has its own.
_OWN = frozenset("proc dev sys tmp run home root mnt media boot tests logs solution lost+found".split())
_OWN_ETC = frozenset("passwd group hosts hostname resolv.conf mtab shadow gshadow".split())


@dataclass(frozen=True)
class Beside:
    """What a sandbox has besides the work folder. The places and the sizes of its file systems stay the same.

    `files`: a folder outside whose content the sandbox gets a copy of, in memory. `links`: absolute paths inside that
    lead into that copy (a relative target) or to another path inside. `start`: where the shell starts. `environment`:
    further variables. `exact`: `save` keeps the permissions of files and folders. `root`: a folder with the programs,
    libraries and settings of the sandbox, instead of this system's. `fixed`: a folder that it has read-only at the
    absolute path `fixed_at`. `root` and `fixed` are in folders of `make_open_folder`.
    """

    files: Path | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    start: str = WORK
    environment: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False
    root: Path | None = None
    fixed: Path | None = None
    fixed_at: str = ""


def arguments(limits: Limits, beside: Beside) -> list[str]:
    """bubblewrap's arguments. It reads them from a file (--args), so that a list of processes does not show them."""
    if beside.root is None:
        binds = system_mounts()
        for name in _ETC:
            binds += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    else:
        binds = _root_mounts(beside.root, (WORK, HOME, beside.start, *beside.links))
    if beside.fixed is not None:
        binds += ["--ro-bind", str(beside.fixed), beside.fixed_at]
    own = ("/etc/passwd", "/etc/group", "/etc/hosts", BEGIN, _LINE_EDITOR, CONTENTS)
    for descriptor, name in zip((6, 7, 8, 12, 15, 16), own, strict=True):
        binds += ["--ro-bind-data", str(descriptor), name]
    small = str(limits.temporary)
    environment = {
        "PATH": PATH,
        "HOME": HOME,
        "USER": "agent",
        "LOGNAME": "agent",
        "SHELL": "/bin/bash",
        "TERM": "screen-256color",
        "LANG": "C.UTF-8",
        "HISTFILE": "/dev/null",
        "LESSHISTFILE": "-",
        **NEVER_WAIT,
        **beside.environment,
        "INPUTRC": _LINE_EDITOR,
        "WORK": WORK,
    }
    links = [(f"{BESIDE}/{to}" if to[0] != "/" else to, path) for path, to in beside.links.items()]
    return [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--cap-drop", "ALL"),
        *("--uid", str(USER), "--gid", str(USER), "--hostname", "sandbox"),
        *("--seccomp", "9", "--info-fd", "10"),
        *binds,
        *("--proc", "/proc", "--remount-ro", "/proc"),
        *("--dev", "/dev", "--size", small, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", small, "--tmpfs", "/tmp", "--size", small, "--tmpfs", HOME),
        *("--size", str(limits.disk), "--tmpfs", WORK),
        *(word for to, path in links for word in ("--symlink", to, path)),
        *("--remount-ro", "/", "--chdir", WORK, "--clearenv"),
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
    ]


def _root_mounts(root: Path, own: Iterable[str]) -> list[str]:
    """The arguments that show another root, read-only, without the folders with the paths `own` in them."""
    taken = {*_OWN, *(Path(place).parts[1] for place in own)}
    binds: list[str] = []
    for place in (*sorted(root.iterdir()), *sorted((root / "etc").glob("*"))):
        path = place.relative_to(root)
        if path.parts[0] in taken or path.parts == ("etc",) or path.name in _OWN_ETC & {*path.parts[1:]}:
            continue
        if place.is_symlink():
            binds += ["--symlink", os.readlink(place), f"/{path}"]
        elif place.is_dir() or path.parts[0] == "etc":
            binds += ["--ro-bind", str(place), f"/{path}"]
    return binds
