"""Run a request's set-up, a model's commands and the check in one sandbox without network.

bubblewrap makes the sandbox. The system is read-only. The home folder, the work folder in it and /tmp are in memory and
of limited size. The processes have limits of memory and number, and end with the sandbox. edge's own sandbox
(edge/terminal/sandbox.py) needs a terminal; the judge needs one process that it can wait for.
"""

import hashlib
import os
import subprocess
import tarfile
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge.terminal.memory import memory_in_use

HOME = "/home/sam"
WORK = f"{HOME}/project"
LIMIT = 10  # seconds for a model's commands, if the caller does not say otherwise
MEMORY = 1 << 30  # bytes for all processes together
_USER = 1000  # inside the sandbox
_REAL_USER = 64_999  # outside, if the judge runs as root: limits do not hold for root
_PATIENCE = 150.0  # seconds for the rest of the sandbox

_DRIVER = f"""
limit=$1 before=$2 after=$3 out=$4 report=$5
exec 2> /dev/null
cd {WORK} || exit 1
ulimit -HSu 256 && ulimit -HSv {MEMORY // 1024} && ulimit -HSf 32768 && ulimit -HSn 512 && ulimit -HSc 0 || exit 1
close() {{ exec {{before}}>&- {{after}}>&- {{out}}>&- {{report}}>&-; exec "$@"; }}
save() {{ tar -c -C {HOME} --hard-dereference --ignore-failed-read . 2> /dev/null; }}
printf '[%s]\\n%s = %s\\n' user name 'Sam Lee' user email sam@example.com init defaultBranch main > {HOME}/.gitconfig
printf '# settings of bash\\n' > {HOME}/.bashrc
(close timeout 60 bash --noprofile --norc -e /run/judge/setup) < /dev/null > /run/judge/setup-out 2>&1 || {{
  printf 'setup failed: %s\\n' "$(tail -n 3 /run/judge/setup-out)" >&$report
  exit 1
}}
save >&$before
for _ in 1 2 3 4 5 6 7 8 9 10; do  # a job of the set-up has the set-up's name until it runs its program
  pgrep -f /run/judge/setup > /dev/null || break
  sleep 0.02
done
ps -ww -eo pid=,args= > /run/judge/processes
(BASH_ENV=/run/judge/last close timeout -k 1 "$limit" bash --noprofile --norc) \\
  < /run/judge/typed > /run/judge/out 2>&1
ended=$?
[ $ended != 124 ] && [ $ended != 137 ] || printf 'time out\\n' >&$report
sleep 0.05
ps -eo pid= > /run/judge/processes-after
# The driver's own processes do not count, nor those that end at the moment of the list: `[name]`.
awk 'NR == FNR {{ left[$1]; next }}
  /run.judge.driver|ps -ww|^ *[0-9]+ +[[]/ || $1 in left {{ next }}
  {{ $1 = "ended:"; print }}' /run/judge/processes-after /run/judge/processes >&$report
save >&$after
head -c 1000000 /run/judge/out >&$out
export OUT=/run/judge/out SHELL_STATE=/run/judge/state CWD="$(cat /run/judge/cwd 2> /dev/null)"
(close timeout 60 bash --noprofile --norc -e -c '. /run/judge/checks; . /run/judge/check') \\
  < /dev/null > /run/judge/check-out 2>&1
printf 'check %d\\n' $? >&$report
"""
# Each shell of the model reads this first. Only the first one may write its state.
_LAST = """
unset BASH_ENV
trap 'pwd > /run/judge/cwd; { declare -p; alias -p; umask -p; set +o; } > /run/judge/state' EXIT
"""
_PASSWD = f"root:x:0:0:root:/root:/bin/bash\nsam:x:{_USER}:{_USER}:Sam Lee:{HOME}:/bin/bash\n"
_GROUP = f"root:x:0:\nsam:x:{_USER}:\n"
_HOSTS = "127.0.0.1 localhost\n127.0.1.1 sandbox\n::1 localhost\n"


@dataclass(frozen=True)
class Entry:
    """A file, folder or link of the home folder: its type, mode, and the hash of its contents or the link's target."""

    kind: bytes
    mode: int
    contents: str


Folder = dict[str, Entry]
"""The home folder: path → entry. Paths are relative to the work folder; those outside it begin with `~/`."""


@dataclass(frozen=True)
class Outcome:
    """What happened in a sandbox."""

    before: Folder
    after: Folder
    out: str
    check: int | None
    """The check's exit status; None if the sandbox ended before it."""
    timed_out: bool
    ended: tuple[str, ...]
    """Command lines of processes of the set-up that ran before the commands and not after them."""


def run(setup: str, typed: str, check: str, limit: int = LIMIT) -> Outcome:
    """Set up a work folder, type these lines into a shell in it, and check. Raises RuntimeError if the set-up fails.

    The lines end after `limit` seconds.
    """
    checks = Path(__file__).with_name("checks.sh").read_text(encoding="utf-8")
    files = {
        "setup": setup,
        "typed": typed,
        "check": check,
        "checks": checks,
        "driver": _DRIVER,
        "last": _LAST,
    }
    with ExitStack() as stack:
        results = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(4)]
        before, after, out, report = results
        data = {f"/run/judge/{name}": _data(stack, text) for name, text in files.items()}
        system = {"passwd": _PASSWD, "group": _GROUP, "hosts": _HOSTS, "hostname": "sandbox\n"}
        data |= {f"/etc/{name}": _data(stack, text) for name, text in system.items()}
        # bubblewrap reads its arguments from a file: a list of processes would show them.
        inside = _data(stack, "".join(f"{word}\0" for word in _arguments(data)))
        argv = [
            *_become(),
            "bwrap",
            "--args",
            str(inside),
            "bash",
            "--noprofile",
            "--norc",
            "/run/judge/driver",
            str(limit),
        ]
        argv += [str(file.fileno()) for file in results]
        shared = [inside, *(file.fileno() for file in results), *data.values()]
        _wait(argv, shared, limit + _PATIENCE)
        for file in results:
            file.seek(0)
        said = report.read().decode(errors="replace").splitlines()
        if not said and not before.read(1):
            raise RuntimeError("the sandbox does not start: is bubblewrap 0.8 or newer here?")
        if said and said[0].startswith("setup failed"):
            raise RuntimeError("; ".join(said))
        before.seek(0)
        checked = [int(line.split()[1]) for line in said if line.startswith("check ")]
        return Outcome(
            before=_read(before),
            after=_read(after) if checked else {},
            out=out.read().decode(errors="replace"),
            check=checked[0] if checked else None,
            timed_out="time out" in said,
            ended=tuple(line.removeprefix("ended: ") for line in said if line.startswith("ended: ")),
        )


def _data(stack: ExitStack, text: str) -> int:
    """A descriptor from which bubblewrap reads a text."""
    descriptor = os.memfd_create("edge-judge")
    stack.callback(os.close, descriptor)
    os.write(descriptor, text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _become() -> list[str]:
    """The start of a command that gives up root's rights; empty for other users."""
    if os.geteuid() != 0:
        return []
    user = str(_REAL_USER)
    argv = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs"]
    return [*argv, "--inh-caps=-all", "--bounding-set=-all"]


def _arguments(data: dict[str, int]) -> list[str]:
    """bubblewrap's arguments."""
    binds = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        place = Path("/", name)
        if place.is_symlink():
            binds += ["--symlink", os.readlink(place), str(place)]
        elif place.is_dir():
            binds += ["--ro-bind", str(place), str(place)]
    for name in ("ld.so.cache", "alternatives", "localtime", "os-release", "services", "magic", "mime.types"):
        binds += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    binds += ["--ro-bind-try", *["/sys/devices/system/cpu"] * 2]
    binds += ["--symlink", "/usr/bin/python3", "/opt/bin/python"]  # many systems have this name
    memory = ["--size", str(64 << 20)]
    environment = {
        **{"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/opt/bin", "HOME": HOME, "USER": "sam"},
        **{"LOGNAME": "sam", "SHELL": "/bin/bash", "TERM": "xterm", "LANG": "C.UTF-8", "TZ": "UTC"},
        # Nobody can answer an editor or a pager here. Python's cache is not a change that anybody asked for.
        **{"EDITOR": "false", "VISUAL": "false", "PAGER": "cat", "PYTHONDONTWRITEBYTECODE": "1"},
    }
    return [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--cap-drop", "ALL", "--uid", str(_USER), "--gid", str(_USER), "--hostname", "sandbox"),
        *binds,
        *("--proc", "/proc", "--dev", "/dev", "--perms", "1777", *memory, "--tmpfs", "/tmp"),
        *(*memory, "--tmpfs", "/run/judge", *memory, "--tmpfs", HOME, "--dir", WORK),
        *(word for path, descriptor in data.items() for word in ("--ro-bind-data", str(descriptor), path)),
        *("--remount-ro", "/", "--chdir", WORK, "--clearenv"),
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
    ]


def _wait(argv: list[str], shared: list[int], patience: float) -> None:
    """Run the sandbox. End it if it takes too long or too much memory."""
    quiet = subprocess.DEVNULL
    plain = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    process = subprocess.Popen(
        argv, stdin=quiet, stdout=quiet, pass_fds=shared, env=plain, start_new_session=True
    )
    end = time.monotonic() + patience
    try:
        while True:
            try:
                process.wait(0.2)
                return
            except subprocess.TimeoutExpired:
                if time.monotonic() > end or memory_in_use(process.pid, MEMORY) > MEMORY:
                    return
    finally:
        process.kill()  # --die-with-parent: all processes of the sandbox end with it
        process.wait()


def _read(archive: IO[bytes]) -> Folder:
    """The entries of an archive of the home folder."""
    folder: Folder = {}
    with tarfile.open(fileobj=archive) as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            if path in (".", "project"):
                continue
            path = path.removeprefix("project/") if path.startswith("project/") else f"~/{path}"
            file = tar.extractfile(member) if member.isfile() else None
            contents = member.linkname if file is None else hashlib.sha256(file.read()).hexdigest()
            folder[path] = Entry(member.type, member.mode, contents)
    return folder
