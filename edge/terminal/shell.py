"""The shell of a terminal: its command line, its prompts, and its environment."""

import os
import re
from collections.abc import Mapping

# bash without start-up files, history expansion, and the user's key bindings and hooks.
SHELL = ("bash", "--noprofile", "--norc", "+o", "histexpand", "-i")
# The prompt also sets the pane's title to the shell's process and the prompt's number, for `Terminal.prompt`.
PROMPT = r"\[\e]2;$$.\#\a\]\u@\h:\w\$ "
# The prompt for the rest of a command sets another title at each line, so edge knows when bash reads the next one.
NEXT_LINE_PROMPT = r"\[\e]2;$$.\#.$((++_edge_line))\a\]> "
# Before each prompt. In vi mode, keys such as Escape decide what the next characters mean: the shell leaves it. Only a
# `case` keeps PIPESTATUS (bash 5.2), and its trace (`set -x`) goes to /dev/null.
PROMPT_COMMAND = "case :$SHELLOPTS: in *:vi:*) set -o emacs;; esac 2>/dev/null"
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
        "INPUTRC": "/dev/null",
        "LESSHISTFILE": "-",
    }
    locale = next((environment[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(name)), "")
    if not re.search("utf-?8", locale, re.IGNORECASE):  # readline would show other characters as numbers
        environment["LC_ALL"] = "C.UTF-8"
    return environment | dict(extra or {})
