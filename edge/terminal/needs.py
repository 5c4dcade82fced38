"""What the sandbox needs of this system, and what to do where that is missing. Linux only."""

import os
import sys

from edge.errors import SandboxError
from edge.system.confined import find_tool

NEEDS_LINUX = "the sandbox needs Linux and its namespaces: use --review, or WSL on Windows"
ROOT_BECOMES = 64_999  # the real user if edge runs as root: one that owns nothing
_TOOLS = ("awk", "chmod", "comm", "find", "sed", "sleep", "sort", "stty")


def tools() -> list[str]:
    """The words that drop root's rights, if edge has them. Raises SandboxError if a tool of the sandbox is missing."""
    if sys.platform != "linux":
        raise SandboxError(NEEDS_LINUX)
    tools = {name: find_tool(name) for name in ("env", "bash", "bwrap", "tar", *_TOOLS)}
    if os.stat(tools["bwrap"]).st_mode & 0o4000:
        raise SandboxError(
            f"{tools['bwrap']} is setuid and then has no --disable-userns: run chmod u-s on it, or use --review"
        )
    if os.geteuid() != 0:
        return []
    user = str(ROOT_BECOMES)
    become = [find_tool("setpriv"), "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs"]
    return [*become, "--inh-caps=-all", "--bounding-set=-all"]


def advice(lines: list[str]) -> str:
    """bubblewrap's error lines as one text, and what helps; empty without lines."""
    text = "; ".join(line.strip() for line in lines[:3] if line.strip())
    if not text:
        return ""
    if "--disable-userns" in text or "--size" in text:
        return f"{text}; install bubblewrap 0.8 or newer"
    if any(word in text for word in ("uid map", "namespace", "Operation not permitted", "Permission denied")):
        return (
            f"{text}; this system allows no unprivileged user namespaces: allow them with sysctl "
            "(kernel.unprivileged_userns_clone=1; Ubuntu 24.04: kernel.apparmor_restrict_unprivileged_userns=0), "
            "or use --review"
        )
    return f"{text}; mend this, or use --review"
