"""The shell of a terminal: its command line, its prompts, and its environment."""

import locale
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

# bash without start-up files, history expansion, and the user's key bindings and hooks.
SHELL = ("bash", "--noprofile", "--norc", "+o", "histexpand", "-i")
# The prompt also sets the pane's title to the shell's process and the prompt's number, for `Terminal.prompt`. What a
# program or a file prints can set titles too, but without these letters they are not of a prompt.
TITLE = f"edge-{secrets.token_hex(8)}."
PROMPT = rf"\[\e]2;{TITLE}$$.\#\a\]\u@\h:\w\$ "
# The prompt for the rest of a command sets another title at each line, so edge knows when bash reads the next one.
NEXT_LINE_PROMPT = rf"\[\e]2;{TITLE}$$.\#.$((++_edge_line))\a\]> "
# Before each prompt. In vi mode, keys such as Escape decide what the next characters mean, and with history expansion
# an exclamation mark puts an earlier line in: the shell leaves both. Only a `case` keeps PIPESTATUS (bash 5.2), and its
# trace (`set -x`) goes to /dev/null.
PROMPT_COMMAND = (
    "case :$SHELLOPTS:${PIPESTATUS-} in *:) ;; "
    "*:vi:*|*:histexpand:*) set -o emacs +o histexpand;; esac 2>/dev/null"
)
# The line editor's settings: the letters that stty makes keys stay letters of a line; `processes.restore_keys` does the
# rest. No line begins a paste, which would swallow the next lines. As a file, because no later command can take it back
# but `bind`.
LINE_EDITOR = (
    'set bind-tty-special-chars off\nset enable-bracketed-paste off\n"\\e[200~": redraw-current-line\n'
)
# The same as assignments before a command.
ASSIGNMENTS = f"PROMPT_COMMAND='{PROMPT_COMMAND}' PS1='{PROMPT}' PS2='{NEXT_LINE_PROMPT}'"
# Programs that would wait for a person at the keyboard.
NEVER_WAIT = {
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "MANPAGER": "cat",
    "SYSTEMD_PAGER": "cat",
    "GIT_EDITOR": "true",
    "DEBIAN_FRONTEND": "noninteractive",
}
# Variables that run something in every shell, or that belong to the terminal outside.
_DROPPED = {
    "TMUX",
    "TMUX_PANE",
    "BASH_ENV",
    "ENV",
    "PS0",
    "PS1",
    "PS2",
    "PS4",
    "SHELLOPTS",
    "BASHOPTS",
}


@dataclass
class Prompts:
    """The prompts at which edge typed. Only a later one is new: a file can bring an old title back."""

    _shell: str = ""
    _number: int = 0
    _ended: set[str] = field(default_factory=set)

    def is_new(self, prompt: str) -> bool:
        """Whether edge has not typed at this prompt of `Terminal.prompt` or at a later one."""
        shell, _, number = prompt.partition(".")
        if shell in self._ended or not number.isdecimal():
            return False
        return shell != self._shell or int(number) > self._number

    def use(self, prompt: str) -> None:
        """Remember that edge types at this prompt."""
        shell, _, number = prompt.partition(".")
        if shell != self._shell:
            self._ended.add(self._shell)
        self._shell, self._number = shell, int(number)


def shell_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a shell without the user's hooks, history and prompts, with `extra` added."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.startswith("BASH_FUNC_")
    }
    environment |= {
        **NEVER_WAIT,
        "PROMPT_COMMAND": PROMPT_COMMAND,
        "PS1": PROMPT,
        "PS2": NEXT_LINE_PROMPT,
        "HISTFILE": "/dev/null",
        "LESSHISTFILE": "-",
    }
    name = next((environment[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(name)), "")
    if not _is_utf8(name):
        environment["LC_ALL"] = "C.UTF-8"
    if "PATH" in environment:  # a name on an allowlist must not mean a program of the folder
        environment["PATH"] = absolute_folders(environment["PATH"])
    return environment | dict(extra or {})


def absolute_folders(path: str) -> str:
    """The folders of a PATH that do not depend on the current folder."""
    return os.pathsep.join(place for place in path.split(os.pathsep) if os.path.isabs(place))


def _is_utf8(name: str) -> bool:
    """Whether this is a UTF-8 locale of this system. In another, readline reads bytes of letters as keys (M-C-h, …)."""
    if re.search("utf-?8", name, re.IGNORECASE) is None:
        return False
    if sys.platform == "win32":
        return True
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    return True
