"""The processes of a terminal, as /proc and the terminal itself show them."""

import contextlib
import ctypes
import signal
import sys
from pathlib import Path

from edge.terminal.memory import family
from edge.terminal.shell import SHELL


def collects_lines(descriptor: int) -> bool | None:
    """Whether a terminal gives whole lines to the program that reads; None if it was hung up."""
    if sys.platform == "win32":
        return None
    import termios

    try:
        return bool(termios.tcgetattr(descriptor)[3] & termios.ICANON)
    except termios.error:
        return None


def restore_keys(tty: tuple[str, int] | None) -> None:
    """Give a terminal its usual keys and letters back: stty can make keys of letters, and other letters of letters.

    That is: the keys that end, stop and hold programs, and no change of letters on their way in and out. `tty`: its
    name and a descriptor.
    """
    if sys.platform == "win32" or tty is None:
        return
    import termios

    usual = {"VINTR": 0x03, "VQUIT": 0x1C, "VSUSP": 0x1A, "VSTART": 0x11, "VSTOP": 0x13}
    no_input = termios.ISTRIP | getattr(termios, "IUCLC", 0)
    no_output = getattr(termios, "OLCUC", 0)
    with contextlib.suppress(termios.error):
        state = termios.tcgetattr(tty[1])
        places = {getattr(termios, name): bytes([code]) for name, code in usual.items()}
        changed = state[0] & no_input or state[1] & no_output
        if changed or any(state[6][place] != code for place, code in places.items()):
            for place, code in places.items():
                state[6][place] = code
            state[0] &= ~no_input
            state[1] &= ~no_output
            termios.tcsetattr(tty[1], termios.TCSANOW, state)


def unread(descriptor: int) -> bool:
    """Whether a terminal holds typed bytes that no program has read yet; True if edge cannot know."""
    if sys.platform == "win32":
        return True
    import fcntl
    import termios

    try:
        return fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4) != b"\0" * 4
    except OSError:
        return True


def is_shell(pid: str, program: str) -> bool:
    """Whether SHELL has the keyboard of process `pid`'s terminal; tmux calls the program there `program`."""
    if sys.platform != "linux":
        return program == SHELL[0]
    try:
        words = Path(f"/proc/{foreground(pid)}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return (words[0].rpartition("/")[2], *words[1:-1]) == SHELL


def foreground(pid: str) -> int:
    """The process group that has the keyboard of process `pid`'s terminal; Linux only. Raises OSError."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[5])


def running(pid: int, mark: str) -> set[int]:
    """A process, its descendants, and the processes with this session's mark; Linux only."""
    return {*family(pid), *(process for process, _ in marked(mark))}


def die_with_parent() -> None:
    """Let Linux end this process with its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def marked(mark: str) -> list[tuple[int, str]]:
    """The processes with a session's mark in their environment, and the command of each; Linux only."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"EDGE_SESSION={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if words:
                    found.append((int(place.name), words))
        except OSError:
            continue
    return found
