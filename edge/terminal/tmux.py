"""A real terminal in a tmux server of its own: keystrokes in, the screen out.

The server belongs to one session: its socket lies in a folder that only this user can open, it reads no configuration
file, has no prefix key and no key bindings, and ends with the process that began it, however that ends. What is typed
goes to the pane as bytes (`send-keys -H`), so that tmux finds neither commands nor key names in it; only keystrokes
that are a key's name as a whole, such as C-c, are sent as that key, as the Terminus-2 agent of Terminal-Bench does.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

if sys.platform != "win32":
    import termios

from edge.errors import AgentError
from edge.system.folders import make_folder, remove_folder
from edge.system.signals import signals_later

MAX_DURATION = 60.0  # seconds
COLUMNS, LINES = 160, 40
SCROLLBACK = 5000  # lines
SCREEN_BYTES = 10_000

# bash as its parser reads it: no start-up files, no history expansion, no key bindings or hooks of the person's own.
SHELL = ("bash", "--noprofile", "--norc", "+o", "histexpand", "-i")
# The shell's process and the number of its prompt go into the pane's title, which only `Terminal.prompt` reads.
PROMPT = r"\[\e]2;$$.\#\a\]\u@\h:\w\$ "

_CONFIGURATION = f"""
set -g prefix None
set -g prefix2 None
unbind -a
unbind -a -T root
unbind -a -T copy-mode
unbind -a -T copy-mode-vi
set -g history-limit {SCROLLBACK}
set -g status off
set -g remain-on-exit on
set -g default-terminal screen-256color
set -g set-titles off
set -g update-environment ""
set -gq allow-rename off
set -gq allow-passthrough off
set -s set-clipboard off
set -s escape-time 0
"""
_KEY_NAME = re.compile(
    r"(?:[CMS]-)*(?:[CM]-[!-~]|Enter|Escape|Space|Tab|BTab|BSpace|Delete|DC|Insert|IC|Home|End|PageUp|PPage|PgUp"
    r"|PageDown|NPage|PgDn|Up|Down|Left|Right|F[1-9]|F1[0-2])|\^[@-_a-z]"
)
_CHUNK = (
    4000  # bytes a call, which stand together in what the shell reads: tmux takes about 16 KiB of arguments
)
# C-g, C-e, C-u: drops what stands in the shell's line. Nobody has typed that: tmux answers what programs, or files that
# are shown, ask a terminal (its colour, where its cursor is), and the answer would be the beginning of a command.
_ANEW = b"\x07\x05\x15"
_END_A_LINE = {"Enter", "C-m", "C-j", "C-c", "C-d"}
_LONGEST_SOCKET = 103  # bytes of a socket's path; Linux takes 107, macOS 103
_PATIENCE = 20.0  # seconds for an answer of tmux's
_POLL = 0.05  # seconds
_PROMPT_PATIENCE = 5.0  # seconds at least that the shell's prompt is waited for
# Variables that run something in every shell, or that belong to the terminal around this one.
_DROPPED = {
    "TMUX",
    "TMUX_PANE",
    "BASH_ENV",
    "ENV",
    "PROMPT_COMMAND",
    "PS0",
    "PS1",
    "PS2",
    "PS4",
    "SHELLOPTS",
    "BASHOPTS",
}


def is_key_name(keystrokes: str) -> bool:
    """Whether these keystrokes, as a whole, are the name of a key in tmux (C-c, Up, F1) and not text."""
    return _KEY_NAME.fullmatch(keystrokes) is not None


def limit_output(text: str, most: int = SCREEN_BYTES) -> str:
    """The text's first and last half where it is longer than `most` bytes of UTF-8, with a line between them."""
    data = text.encode()
    if len(data) <= most:
        return text
    head = data[: most // 2].decode(errors="ignore")
    tail = data[len(data) - most // 2 :].decode(errors="ignore")
    left_out = len(data) - len(head.encode()) - len(tail.encode())
    return f"{head}\n[… {left_out:,} bytes of output left out …]\n{tail}"


def shell_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a shell that starts as every other: without hooks, history or own prompts."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.startswith("BASH_FUNC_")
    }
    environment |= {
        "PS1": PROMPT,
        "HISTFILE": "/dev/null",
        "INPUTRC": "/dev/null",
        "LESSHISTFILE": "-",
    }
    locale = next((environment[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(name)), "")
    if not re.search("utf-?8", locale, re.IGNORECASE):  # else readline shows what is typed as numbers
        environment["LC_ALL"] = "C.UTF-8"
    return environment | dict(extra or {})


@dataclass
class Terminal:
    """One pane, in which a program runs. Made by `Terminal.start`; its `with` ends all that runs in it."""

    folder: Path
    """Private to this session: the socket, and whatever a sandbox keeps beside it."""
    _server: subprocess.Popen[bytes]
    _mark: str
    _row: int = 0  # of the cursor when the output was last read, and the text there
    _row_text: str = ""
    _typed_at: str | None = None  # the prompt at which `send_lines` typed last
    _in_line: bool = False  # whether what was typed last is a part of a line

    @classmethod
    def start(
        cls,
        argv: Sequence[str] = SHELL,
        *,
        cwd: Path | str,
        env: Mapping[str, str] | None = None,
        ready: Callable[[], object] | None = None,
        columns: int = COLUMNS,
        lines: int = LINES,
    ) -> "Terminal":
        """Begin a terminal in which `argv` (at least two words, or else a shell reads it) runs, in the folder `cwd`.

        `env`: its environment, by default `shell_environment()`. `ready` is called once it has begun, and may raise;
        then it shows something on the screen. Raises AgentError where tmux is missing or the program does not start.
        """
        tmux = shutil.which("tmux")
        if tmux is None:
            raise AgentError("tmux is not installed; on Debian and Ubuntu: apt-get install tmux")
        if len(argv) < 2:
            raise ValueError("tmux would give a single word to a shell")
        if not Path(cwd).is_dir():
            raise AgentError(f"{cwd}: is no folder to work in")
        folder = make_folder("edge-terminal-")
        mark = folder.name
        try:
            if len(os.fsencode(folder / "tmux")) > _LONGEST_SOCKET:
                raise AgentError(
                    f"{folder}: too long a path for tmux's socket: set TMPDIR to a shorter folder"
                )
            (folder / "tmux.conf").write_text(_CONFIGURATION)
            environment = dict(shell_environment() if env is None else env)
            # With a function to run before exec, Python forks by callbacks in which a signal's exception would be lost.
            with (folder / "log").open("wb") as log, signals_later():
                server = subprocess.Popen(
                    [tmux, "-u", "-S", str(folder / "tmux"), "-f", str(folder / "tmux.conf"), "-D"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment | {"EDGE_SESSION": mark, "TERM": "xterm-256color"},
                    cwd="/",
                    start_new_session=True,  # a C-c meant for edge is not for what runs in the terminal
                    preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                )
        except BaseException:
            remove_folder(folder)
            raise
        terminal = cls(folder, server, mark)
        try:
            terminal._until(lambda: (folder / "tmux").exists(), "tmux does not start")
            size = ("-x", str(columns), "-y", str(lines))
            terminal._tmux("new-session", "-d", "-s", "edge", *size, "-c", str(cwd), "--", *argv)
            if ready is not None:
                ready()
            terminal._until(
                lambda: terminal.screen().strip() or terminal.ended,
                f"{argv[0]} does not start in the terminal",
            )
            terminal._mark_place()
        except BaseException:
            terminal.close()
            raise
        return terminal

    def send(self, keystrokes: str, duration: float = 0.0, *, stop: Callable[[], bool] | None = None) -> None:
        """Send keystrokes as they are, then wait `duration` seconds (at most 60); see `wait`.

        Text goes as its bytes in UTF-8, nothing added: a command runs if it ends with a line break. Empty
        keystrokes only wait. A line that begins at the shell's prompt begins it anew, see `_ANEW`. Raises AgentError
        where the terminal has ended.
        """
        if is_key_name(keystrokes):
            self._tmux("send-keys", "-t", "edge", keystrokes)
            self._in_line = keystrokes not in _END_A_LINE
        elif keystrokes:
            self._type(keystrokes, at_prompt=self.prompt() is not None)
        self.wait(duration, stop=stop)

    def _type(self, text: str, *, at_prompt: bool) -> None:
        data = (_ANEW if at_prompt and not self._in_line else b"") + text.encode(errors="replace")
        for begin in range(0, len(data), _CHUNK):
            chunk = data[begin : begin + _CHUNK]
            self._tmux("send-keys", "-t", "edge", "-H", *(f"{byte:02x}" for byte in chunk))
        self._in_line = not text.endswith(("\n", "\r"))

    def send_lines(
        self, keystrokes: str, duration: float = 0.0, *, stop: Callable[[], bool] | None = None
    ) -> bool:
        """As `send`, but line by line, each once the shell waits for it at its prompt; whether all was typed.

        A program that runs would read the keystrokes in the shell's place, maybe a part of a line: what is left of it
        is then another command than the one that somebody allowed. Prompts are waited for `duration`, at least 5
        seconds. Keys are sent at any time. Raises AgentError where the terminal has ended.
        """
        begin = time.monotonic()
        end = begin + max(min(duration, MAX_DURATION), _PROMPT_PATIENCE)
        if is_key_name(keystrokes):
            # A key such as C-c drops what was typed and not yet read; that line must be with the shell by then.
            while self._typed_at is not None and self.prompt() == self._typed_at:
                if time.monotonic() > end:
                    self._typed_at = None  # it never came there
                self.wait(_POLL, stop=stop)
            self.send(keystrokes)
        for line in [] if is_key_name(keystrokes) else re.findall(r"[^\n]*\n|[^\n]+", keystrokes):
            while (prompt := self.prompt()) is None or prompt == self._typed_at:
                if time.monotonic() > end or self.ended or (stop is not None and stop()):
                    return False
                self.wait(_POLL, stop=stop)
            if line.strip():  # after an empty line the same prompt comes again
                self._typed_at = prompt
            self._type(line, at_prompt=True)
        self.wait(duration - (time.monotonic() - begin), stop=stop)
        return True

    def prompt(self) -> str | None:
        """A name for the prompt at which the shell waits; None while something else has the keyboard."""
        state = self._tmux(
            "display-message",
            "-p",
            "-t",
            "edge",
            "#{pane_pid} #{pane_tty} #{pane_current_command} #{pane_title}",
        )
        pid, tty, program, title = state.rstrip("\n").split(" ", 3)
        return title if _line_editor_is_on(tty) and _is_shell(pid, program) else None

    def wait(self, duration: float, *, stop: Callable[[], bool] | None = None) -> None:
        """Wait so many seconds, at most 60; less where the program ends or `stop` says so."""
        end = time.monotonic() + min(max(duration, 0.0), MAX_DURATION)
        while (left := end - time.monotonic()) > 0 and not (stop is not None and stop()) and not self.ended:
            time.sleep(min(left, _POLL))

    def screen(self) -> str:
        """What the terminal shows now, without blank lines at its end."""
        return self._tmux("capture-pane", "-p", "-t", "edge").rstrip()

    def output(self, most: int = SCREEN_BYTES) -> str:
        """What is new since the last call, from the line on which the cursor stood then; at most `most` bytes.

        Under the heading "New Terminal Output:". Where that cannot be told (a program fills the screen, it was
        cleared, nothing is new) the whole screen, under "Current Terminal Screen:".
        """
        text = self._new_lines()
        heading = "New Terminal Output:"
        if text is None or not text.strip() or text == self._row_text:
            heading, text = "Current Terminal Screen:", self.screen()
        self._mark_place()
        return f"{heading}\n{limit_output(text, most)}"

    def _new_lines(self) -> str | None:
        state = self._tmux(
            "display-message", "-p", "-t", "edge", "#{history_size} #{cursor_y} #{alternate_on}"
        )
        history, row, full_screen = map(int, state.split())
        if full_screen or (not history and row < self._row):
            return None
        if history >= SCROLLBACK * 9 // 10:  # tmux drops a tenth when it is full; all that is left is new
            return self._tmux("capture-pane", "-p", "-t", "edge", "-S", "-").rstrip()
        text = self._tmux("capture-pane", "-p", "-t", "edge", "-S", str(self._row - history)).rstrip()
        return text if text.startswith(self._row_text) else None

    def _mark_place(self) -> None:
        """Remember where the cursor is, and forget what has scrolled away."""
        row = int(self._tmux("display-message", "-p", "-t", "edge", "#{cursor_y}"))
        self._row, self._row_text = row, "\n".join(self.screen().split("\n")[row : row + 1]).rstrip()
        self._tmux("clear-history", "-t", "edge")

    @property
    def ended(self) -> bool:
        """Whether the program in the terminal has ended."""
        if self._server.poll() is not None:
            return True
        try:
            return self._tmux("display-message", "-p", "-t", "edge", "#{pane_dead}").strip() == "1"
        except AgentError:
            return True

    def restart(self, argv: Sequence[str], *, cwd: Path | str) -> None:
        """Run `argv` in place of the program that has ended."""
        self._tmux("respawn-pane", "-k", "-t", "edge", "-c", str(cwd), "--", *argv)
        self._until(lambda: self.screen().strip(), f"{argv[0]} does not start in the terminal")
        self._mark_place()

    def close(self) -> list[str]:
        """End the terminal and what runs in it; what goes on nevertheless, as "PID command", for a person to see."""
        if self._server.poll() is None:
            self._server.terminate()  # hangs up on the pane, as closing a window does
            try:
                self._server.wait(5)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        remove_folder(self.folder)
        return _marked(self._mark)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tmux(self, *arguments: str) -> str:
        try:
            run = subprocess.run(
                ["tmux", "-u", "-S", str(self.folder / "tmux"), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise AgentError(f"tmux does not answer for {_PATIENCE:.0f} seconds") from None
        if run.returncode:
            raise AgentError(f"the terminal is gone: {run.stderr.decode(errors='replace').strip()}")
        return run.stdout.decode(errors="replace")

    def _until(self, done: Callable[[], object], complaint: str) -> None:
        end = time.monotonic() + _PATIENCE
        while not done():
            if self._server.poll() is not None or time.monotonic() > end:
                log = (self.folder / "log").read_text(errors="replace").strip()
                raise AgentError(f"{complaint}: {log}" if log else complaint)
            time.sleep(_POLL)


def _line_editor_is_on(tty: str) -> bool:
    """Whether keys reach the reading program one by one, as readline has it at a prompt and bash nowhere else."""
    try:
        descriptor = os.open(tty, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not termios.tcgetattr(descriptor)[3] & termios.ICANON
    except termios.error:
        return False
    finally:
        os.close(descriptor)


def _is_shell(pid: str, program: str) -> bool:
    """Whether the program in the foreground of process `pid`'s terminal is SHELL, called `program` by tmux."""
    if sys.platform != "linux":
        return program == SHELL[0]
    try:
        group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[5]
        words = Path(f"/proc/{group}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return (words[0].rpartition("/")[2], *words[1:-1]) == SHELL


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _marked(mark: str) -> list[str]:
    """The processes whose environment carries this session's mark, where the system tells (Linux)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"EDGE_SESSION={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if words:
                    found.append(f"{place.name} {words[:80]}")
        except OSError:
            continue
    return found
