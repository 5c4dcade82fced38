"""Runs an episode's commands in bubblewrap, in a folder of its own without network, and returns what they print."""

import os
import subprocess
import tempfile
from pathlib import Path

SECONDS = 10.0
MAX_LINES, MAX_BYTES = 25, 1500  # of a recorded output: the screen that the model reads
HOME = "/home/dev"
WORK = f"{HOME}/work"

_SYSTEM = (
    "usr",
    "bin",
    "sbin",
    "lib",
    "lib64",
    "etc/alternatives",
    "etc/ld.so.cache",
    "etc/localtime",
    "etc/mime.types",
)


def sandbox(folder: Path) -> list[str]:
    """bubblewrap's command line: the system read-only, no network, an empty home, `folder` as the work folder."""
    command = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]
    for name in _SYSTEM:
        command += ["--ro-bind-try", f"/{name}", f"/{name}"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/home", "--dir", HOME]
    for name, value in (
        ("HOME", HOME),
        ("PATH", "/usr/bin:/bin"),
        ("LANG", "C.UTF-8"),
        ("USER", "dev"),
        ("TERM", "dumb"),
    ):
        command += ["--setenv", name, value]
    return [*command, "--hostname", "box", "--bind", str(folder), WORK, "--chdir", WORK]


def run(folder: Path, script: str) -> tuple[int, str]:
    """Run bash on the script in the sandbox. Returns its exit code (124: too slow) and what it printed."""
    limits = "ulimit -t 8 -v 4000000 -f 200000\n"
    command = [*sandbox(folder), "bash", "--noprofile", "--norc", "-c", limits + script]
    with tempfile.TemporaryFile() as out:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
                env={"PATH": os.environ["PATH"]},
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
        out.seek(0)
        return code, out.read(1 << 16).decode("utf-8", "replace").replace("\r", "").replace(
            "bash: line 2: ", "bash: "
        )


def screen(output: str) -> str:
    """The output as a small terminal shows it: the last lines."""
    lines = output[-MAX_BYTES:].rstrip("\n").split("\n")[-MAX_LINES:]
    return "\n".join(line[:200] for line in lines)
