"""A real terminal in a separate tmux server: sends keystrokes, reads the screen. Needs tmux, which Windows lacks.

The server belongs to one session. Its socket is in a folder that only this user can open. It reads no configuration
file of the user, has no prefix key and no key bindings, and ends with the process that started it. Keystrokes go to the
pane as bytes (`send-keys -H`), so tmux finds neither commands nor key names in them. The only exception: keystrokes
that are exactly the name of a key, such as C-c, go as that key, as in the Terminus-2 agent of Terminal-Bench.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from edge.errors import AgentError
from edge.system.folders import make_folder, remove_folder
from edge.terminal.processes import (
    collects_lines,
    foreground,
    is_shell,
    marked,
    restore_keys,
    running,
    unread,
)
from edge.terminal.server import SCROLLBACK, start_server
from edge.terminal.shell import SHELL, TITLE, Prompts, absolute_folders, shell_environment
from edge.terminal.typed import line_keys

MAX_DURATION = 60.0  # seconds
COLUMNS, LINES = 160, 40
SCREEN_BYTES = 10_000

_KEY_NAME = re.compile(
    r"(?:[CMS]-)*(?:[CM]-[!-~]|Enter|Escape|Space|Tab|BTab|BSpace|Delete|DC|Insert|IC|Home|End|PageUp|PPage|PgUp"
    r"|PageDown|NPage|PgDn|Up|Down|Left|Right|F[1-9]|F1[0-2])|\^[@-_a-z]"
)
_CHUNK = 4000  # bytes a call: tmux takes about 16 KiB of arguments
_ENTER = {"Enter", "C-m", "C-j", "^M", "^J", "^m", "^j"}
_DROPS = {"C-c", "^C", "^c"}  # what was typed and nothing has read yet is gone
_KEY_BYTES = 8  # at most, of one key
# While a program reads whole lines, the kernel cuts one at 4,095 bytes on Linux, at 1,023 on macOS.
_LONGEST_LINE = 4095 if sys.platform == "linux" else 1023
_PATIENCE = 20.0  # seconds for an answer of tmux
_POLL = 0.05  # seconds
_PROMPT_PATIENCE = 5.0  # minimum seconds to wait for the shell's prompt
_STILL = 0.5  # seconds without a change of the screen, after which a wait may end early
_GLANCE = 0.1  # seconds between two looks at the screen
# A program's name can have blanks and line breaks.
_PLACE = "#{pane_pid} #{pane_tty} #{s/[^A-Za-z0-9]/_/:pane_current_command} #{pane_title}"


def is_key_name(keystrokes: str) -> bool:
    """Whether these keystrokes are exactly the name of a key in tmux (C-c, Up, F1), and not text."""
    return _KEY_NAME.fullmatch(keystrokes) is not None


def limit_output(text: str, most: int = SCREEN_BYTES) -> str:
    """The text, cut in its middle to `most` bytes of UTF-8; a line there says how many bytes are left out."""
    data = text.encode()
    if len(data) <= most:
        return text
    head = data[: most // 2].decode(errors="ignore")
    tail = data[len(data) - most // 2 :].decode(errors="ignore")
    left_out = len(data) - len(head.encode()) - len(tail.encode())
    return f"{head}\n[… {left_out:,} bytes of output left out …]\n{tail}"


@dataclass
class Terminal:
    """One pane in which a program runs. `Terminal.start` makes it; its `with` ends all that runs in it."""

    folder: Path
    """Private to this session: the socket, the configuration and the log of tmux."""
    full_waits: bool = field(default=True, kw_only=True)
    """Wait as long as the caller says; otherwise a wait can end early (see `_wait_for_prompt`)."""
    waited: float = field(default=0.0, init=False)
    """Seconds that the last `send` or `send_lines` waited after it had typed."""
    _server: subprocess.Popen[bytes]
    _mark: str
    _program: str  # the path of tmux
    _client: Mapping[str, str]  # the environment of tmux's commands: tmux gives their PATH to the shell
    _row: int = 0  # the cursor's row when the output was last read
    _row_text: str = ""  # the text of that row
    _typed_at: str | None = None  # the prompt at which `send_lines` typed last
    _prompts: Prompts = field(default_factory=Prompts)
    _line: str | None = (
        ""  # the text typed since the last line break; None after a key, which can change the line
    )
    _line_at: str | None = None  # the prompt at which edge typed that text, or pressed that key
    _pending: int = 0  # bytes typed since the last line break, at most: keys can add some
    _read_at: str | None = None  # where the shell read when edge typed the last line break
    _tty: tuple[str, int] | None = None  # the pane's terminal, held open: TIOCEXCL forbids to open it
    _first: frozenset[int] = frozenset()  # the processes before anything was typed

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
        full_waits: bool = True,
    ) -> "Terminal":
        """Start a terminal that runs `argv` in the folder `cwd`.

        `argv`: at least two words; tmux gives a single word to a shell. `env`: its environment, by default
        `shell_environment()`. `ready`: called once the program has started; it must wait until the program shows
        something on the screen, and may raise. Raises AgentError if tmux is missing or the program does not start.
        """
        tmux = check_terminal()
        if len(argv) < 2:
            raise ValueError("tmux would give a single word to a shell")
        if not Path(cwd).is_dir() or not os.access(cwd, os.X_OK):
            raise AgentError(f"{cwd}: is not a folder that edge can enter: choose another --workdir")
        folder = make_folder("edge-terminal-")
        environment = dict(shell_environment() if env is None else env)
        try:
            server = start_server(tmux, folder, environment)
        except BaseException:
            remove_folder(folder)
            raise
        client = {**os.environ, "PATH": environment.get("PATH", os.defpath)}
        terminal = cls(folder, server, folder.name, tmux, client, full_waits=full_waits)
        try:
            terminal._until(lambda: (folder / "tmux").exists(), "tmux does not start")
            # Not -c: tmux expands formats in it, and a format such as #(command) in a folder's name runs a program.
            terminal._tmux("new-session", "-ds", "edge", f"-x{columns}", f"-y{lines}", "--", *argv, cwd=cwd)
            if ready is not None:
                ready()
            terminal._until(
                lambda: terminal.screen().strip() or terminal.ended,
                f"{argv[0]} does not start in the terminal",
            )
            terminal._mark_place()
            terminal._first = terminal._running()
        except BaseException:
            terminal.close()
            raise
        return terminal

    def send(self, keystrokes: str, duration: float = 0.0, *, stop: Callable[[], bool] | None = None) -> bool:
        """Send keystrokes as they are, then wait `duration` seconds (at most 60); see `wait`.

        Text goes as UTF-8 with nothing added: a command runs only if it ends with a line break. Empty keystrokes only
        wait. At the shell's prompt, every line begins anew (see `line_keys`). A tab in a line that ends with a line
        break is text. Returns False if it did not type all: a line is too long for the program that reads it. Raises
        AgentError if the terminal has ended.
        """
        begin = time.monotonic()
        whole, prompt = True, None
        if is_key_name(keystrokes):
            self._press(keystrokes)
        elif keystrokes:
            prompt = self._early_prompt(keystrokes)
            whole = self._type_lines(
                keystrokes, begin + max(min(duration, MAX_DURATION), _PROMPT_PATIENCE), stop
            )
        self._wait_after(duration if whole else 0.0, prompt, stop)
        return whole

    def _press(self, key: str, *, anew: bool = False) -> None:
        """Send a key. Before the first key at a prompt, and Enter after text, type the line again as edge knows it: no
        key works on what else is in it, such as the terminal's reply to a shown file. `anew`: before every key."""
        prompt = None if key in _DROPS else self.prompt()
        if prompt is not None and (anew or self._line is not None or prompt != self._line_at):
            known = (self._line or "") if prompt == self._line_at and not anew else ""
            self._send_bytes(line_keys(known, anew=True))
        self._tmux("send-keys", "-t", "edge", key)
        empty = key in _ENTER or key in _DROPS
        self._line, self._line_at, self._read_at = "" if empty else None, prompt, None
        self._pending = 0 if empty else self._pending + _KEY_BYTES

    def _type_lines(self, text: str, end: float, stop: Callable[[], bool] | None) -> bool:
        """Type the text; a long line, and lines with tabs, each when the shell reads. Returns whether it typed all."""
        lines = re.findall(r"[^\n\r]*[\n\r]|[^\n\r]+", text)
        sizes = [len(line.encode(errors="replace")) for line in lines]
        size = max(self._pending + sizes[0], *sizes)
        if size < _LONGEST_LINE and not ("\t" in text and re.search("[\n\r]", text)):
            self._type(text, at_prompt=self.prompt())
            return True
        begins = True
        for line in lines:
            reads = self._wait_to_read(end, stop)
            if not reads and size >= _LONGEST_LINE and self._cuts_lines():
                return False
            prompt = self.prompt()
            self._type(line, at_prompt=prompt if begins else None, quoted=prompt is not None)
            begins = False
        return True

    def _wait_to_read(self, end: float, stop: Callable[[], bool] | None) -> bool:
        """Wait until the shell reads a line that edge has not typed yet; False at `end` or if another program reads."""
        while (place := self._reads()) is None or place == self._read_at:
            if time.monotonic() > end or self.ended or (stop is not None and stop()):
                return False
            self.wait(_POLL, stop=stop)
        return True

    def _type(self, text: str, *, at_prompt: str | None, quoted: bool = False) -> None:
        """Type the text; at a prompt, on an empty line with what edge itself typed there before."""
        place = self._reads() if text.strip() and text[-1] in "\n\r" else None
        known = self._line or ""
        if at_prompt is not None and at_prompt != self._line_at:
            known = ""
        data = ("" if at_prompt is None else known) + text
        keys = line_keys(data, anew=at_prompt is not None, quoted=quoted)
        self._send_bytes(keys)
        rest = re.split(b"[\n\r]", keys)
        self._pending = len(rest[-1]) + (self._pending if len(rest) == 1 and at_prompt is None else 0)
        if text[-1] in "\n\r":
            self._line, self._read_at = "", place
        else:
            self._line, self._line_at = re.split(r"[\n\r]", known + text)[-1], at_prompt

    def _send_bytes(self, data: bytes) -> None:
        for begin in range(0, len(data), _CHUNK):
            chunk = data[begin : begin + _CHUNK]
            self._tmux("send-keys", "-t", "edge", "-H", *(f"{byte:02x}" for byte in chunk))

    def send_lines(
        self, keystrokes: str, duration: float = 0.0, *, stop: Callable[[], bool] | None = None
    ) -> bool:
        """Like `send`, but line by line, each when the shell waits at its prompt. Returns whether it typed all lines.

        Otherwise a running program could read a part of a line, and the shell would run the rest: a command that
        nobody allowed. It waits `duration` for each prompt, at least 5 seconds. Keys do not wait for a prompt. Raises
        AgentError if the terminal has ended.
        """
        begin = time.monotonic()
        end = begin + max(min(duration, MAX_DURATION), _PROMPT_PATIENCE)
        if is_key_name(keystrokes):
            # A key such as C-c drops typed characters that nothing has read yet: first let the shell read its line.
            while self._typed_at is not None and self.prompt() == self._typed_at:
                if time.monotonic() > end:
                    self._typed_at = None  # the shell never read it
                self.wait(_POLL, stop=stop)
            self._press(keystrokes, anew=True)
        for line in [] if is_key_name(keystrokes) else re.findall(r"[^\n]*\n|[^\n]+", keystrokes):
            while not (prompt := self.prompt()) or not self._prompts.is_new(prompt):
                if time.monotonic() > end or self.ended or (stop is not None and stop()):
                    return False
                self.wait(_POLL, stop=stop)
            if line.strip():  # an empty line brings the same prompt again
                self._typed_at = prompt
                self._prompts.use(prompt)
            self._line = ""
            self._type(line, at_prompt=prompt)
        early = None if is_key_name(keystrokes) or not runs_a_line(keystrokes) else self._typed_at
        self._wait_after(duration - (time.monotonic() - begin), early, stop)
        return True

    def _early_prompt(self, keystrokes: str) -> str | None:
        """The prompt at which the keystrokes are about to run a line; None if the wait for them must not end early."""
        return self.prompt() if not self.full_waits and runs_a_line(keystrokes) else None

    def _wait_after(self, duration: float, prompt: str | None, stop: Callable[[], bool] | None) -> None:
        """Wait after keystrokes; `prompt`: where they ran, None if the wait must not end early."""
        begin = time.monotonic()
        if self.full_waits or prompt is None or duration <= _STILL or sys.platform != "linux":
            self.wait(duration, stop=stop)
        else:
            self._wait_for_prompt(duration, prompt, stop)
        self.waited = time.monotonic() - begin

    def _wait_for_prompt(self, duration: float, before: str, stop: Callable[[], bool] | None) -> None:
        """Wait `duration` seconds; less if the lines that ran at the prompt `before` have ended.

        That is: the shell is at a later prompt and has read all that was typed, the screen did not change for half a
        second, and nothing runs that did not run when the terminal started.
        """
        since = time.monotonic()
        end, seen = since + min(duration, MAX_DURATION), ""
        while (left := end - time.monotonic()) > 0 and not (stop is not None and stop()) and not self.ended:
            place = f"{_PLACE}\n#{{history_size}} #{{cursor_x}} #{{cursor_y}}"
            look = self._tmux(
                "display-message", "-p", "-t", "edge", place, ";", "capture-pane", "-p", "-t", "edge"
            )
            now = time.monotonic()
            if look != seen:
                seen, since = look, now
            elif now - since >= _STILL and _prompt_of(self._place(look.split("\n")[0])) not in (
                None,
                "",
                before,
            ):
                if self._tty is not None and not unread(self._tty[1]) and self._running() <= self._first:
                    return
                return self.wait(left, stop=stop)  # a background job
            time.sleep(min(left, _GLANCE))

    def _running(self) -> frozenset[int]:
        """The processes of the terminal but the shell that has the keyboard."""
        if sys.platform != "linux":
            return frozenset()
        pid = self._tmux("display-message", "-p", "-t", "edge", "#{pane_pid}").strip()
        try:
            return frozenset(running(int(pid), self._mark)) - {foreground(pid), self._server.pid}
        except (OSError, ValueError):  # the pane has just ended
            return frozenset()

    def busy(self) -> bool:
        """Whether a program runs that did not run when the terminal started, such as a background job."""
        return self.prompt() is None or not self._running() <= self._first

    def has_run(self) -> bool:
        """Whether the shell has read and run what was typed: it is at a later prompt."""
        place = self._reads()
        return place not in (None, self._read_at) and (self._tty is None or not unread(self._tty[1]))

    def prompt(self) -> str | None:
        """A name for the prompt at which the shell waits; None while another program reads the keyboard.

        It is empty if a program has changed the title since.
        """
        return _prompt_of(self._reads())

    def _reads(self) -> str | None:
        """A name for the line that the shell reads: of a prompt, or of the rest of a command; None as in `prompt`.

        Empty if a program has set another title since.
        """
        return self._place(self._tmux("display-message", "-p", "-t", "edge", _PLACE).rstrip("\n"))

    def _place(self, state: str) -> str | None:
        """As `_reads`, from what tmux says about _PLACE."""
        pid, tty, program, title = state.split(" ", 3)
        if self._reads_whole_lines(tty) is not False or not is_shell(pid, program):
            return None
        restore_keys(self._tty)  # bash brings back what stty set each time it has run a line
        return title.removeprefix(TITLE) if title.startswith(TITLE) else ""

    def _cuts_lines(self) -> bool:
        """Whether the kernel collects whole lines for the program that reads, or edge cannot know."""
        tty = self._tmux("display-message", "-p", "-t", "edge", "#{pane_tty}").strip()
        return self._reads_whole_lines(tty) is not False

    def _reads_whole_lines(self, tty: str) -> bool | None:
        """Whether the terminal collects lines. At a prompt, readline turns this off; bash does nowhere else."""
        if sys.platform == "win32":
            return None
        for _ in range(2):
            if self._tty is None or self._tty[0] != tty:
                self._close_tty()
                try:
                    self._tty = tty, os.open(tty, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
                except OSError:
                    return None
            collects = collects_lines(self._tty[1])
            if collects is not None:
                return collects
            self._close_tty()  # it was hung up; a new terminal can have the same name
        return None

    def _close_tty(self) -> None:
        if self._tty is not None:
            os.close(self._tty[1])
            self._tty = None

    def wait(self, duration: float, *, stop: Callable[[], bool] | None = None) -> None:
        """Wait `duration` seconds, at most 60; less if the program ends or `stop` returns true."""
        end = time.monotonic() + min(max(duration, 0.0), MAX_DURATION)
        while (left := end - time.monotonic()) > 0 and not (stop is not None and stop()) and not self.ended:
            time.sleep(min(left, _POLL))

    def screen(self) -> str:
        """The text on the screen now, without blank lines at its end."""
        return self._tmux("capture-pane", "-p", "-t", "edge").rstrip()

    def output(self, most: int = SCREEN_BYTES) -> str:
        """The output since the last call, from the line of the cursor at that time; about `most` bytes at most.

        It is under the heading "New Terminal Output:". If nothing is new or edge cannot find what is new (a program
        fills the screen, the screen was cleared), it is the whole screen under "Current Terminal Screen:".
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
        if history >= SCROLLBACK * 9 // 10:  # tmux drops a tenth of a full history; all of the rest is new
            return self._tmux("capture-pane", "-p", "-t", "edge", "-S", "-").rstrip()
        text = self._tmux("capture-pane", "-p", "-t", "edge", "-S", str(self._row - history)).rstrip()
        return text if text.startswith(self._row_text) else None

    def _mark_place(self) -> None:
        """Remember the row of the cursor, and clear the history."""
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

    def restart(self, argv: Sequence[str]) -> None:
        """Run `argv` instead of the program that has ended, in the folder of the terminal."""
        self._close_tty()
        self._line, self._pending, self._read_at = "", 0, None
        # tmux keeps the folder of the pane. Not -c: as in `start`.
        self._tmux("respawn-pane", "-k", "-t", "edge", "--", *argv)
        self._until(lambda: self.screen().strip(), f"{argv[0]} does not start in the terminal")
        self._mark_place()
        self._first = self._running()

    def close(self) -> list[str]:
        """End the terminal and its programs. Returns the programs that still run, as "PID command"."""
        self._close_tty()
        if self._server.poll() is None:
            self._server.terminate()  # tmux sends SIGHUP to the pane, as if its window was closed
            try:
                self._server.wait(5)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        remove_folder(self.folder)
        return [f"{process} {words[:80]}" for process, words in marked(self._mark)]

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tmux(self, *arguments: str, cwd: Path | str | None = None) -> str:
        try:
            run = subprocess.run(
                [self._program, "-u", "-S", str(self.folder / "tmux"), *arguments],
                env=self._client,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise AgentError(f"tmux has not answered for {_PATIENCE:.0f} seconds") from None
        if run.returncode:
            raise AgentError(f"the terminal has ended: {run.stderr.decode(errors='replace').strip()}")
        return run.stdout.decode(errors="replace")

    def _until(self, done: Callable[[], object], complaint: str) -> None:
        end = time.monotonic() + _PATIENCE
        while not done():
            if self._server.poll() is not None or time.monotonic() > end:
                log = (self.folder / "log").read_text(errors="replace").strip()
                raise AgentError(f"{complaint}: {log}" if log else complaint)
            time.sleep(_POLL)


def runs_a_line(keystrokes: str) -> bool:
    """Whether these keystrokes are text that ends with a line break: a shell runs its last line."""
    last = re.split(r"[\n\r]", keystrokes[:-1])[-1] if keystrokes[-1:] in ("\n", "\r") else ""
    return bool(last.strip())


def _prompt_of(place: str | None) -> str | None:
    return None if place is None else ".".join(place.split(".")[:2])


def check_terminal() -> str:
    """The path of tmux. Raises AgentError if this system has no tmux, and says how to get it."""
    if sys.platform == "win32":
        raise AgentError("edge agent needs tmux, which Windows does not have: use WSL")
    tmux = shutil.which("tmux", path=absolute_folders(os.environ.get("PATH", os.defpath)))
    if tmux is None:
        how = (
            "brew install tmux" if sys.platform == "darwin" else "on Debian and Ubuntu: apt-get install tmux"
        )
        raise AgentError(f"edge agent needs tmux, which is not installed; {how}")
    return tmux
