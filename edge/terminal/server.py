"""The tmux server of a terminal: its own, with a configuration that no file or key of the user changes."""

import os
import subprocess
import sys
from pathlib import Path

from edge.errors import AgentError
from edge.system.signals import signals_later
from edge.terminal.processes import die_with_parent
from edge.terminal.shell import LINE_EDITOR

SCROLLBACK = 5000  # lines
_LONGEST_SOCKET = 103  # bytes of a socket's path; Linux takes 107, macOS 103

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
set -gq remain-on-exit-format ""
set -g default-terminal screen-256color
set -g set-titles off
set -g update-environment ""
set -gq allow-rename off
set -gq allow-passthrough off
set -s set-clipboard off
set -s escape-time 0
"""


def start_server(tmux: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a tmux server whose socket, configuration and log are in `folder`."""
    if len(os.fsencode(folder / "tmux")) > _LONGEST_SOCKET:
        raise AgentError(f"{folder}: the path is too long for tmux's socket: set TMPDIR to a shorter folder")
    (folder / "tmux.conf").write_text(_CONFIGURATION)
    (folder / "inputrc").write_text(LINE_EDITOR)
    own = {"EDGE_SESSION": folder.name, "TERM": "xterm-256color", "INPUTRC": str(folder / "inputrc")}
    # With a preexec_fn, Python forks through callbacks that would lose the exception of a signal.
    with (folder / "log").open("wb") as log, signals_later():
        return subprocess.Popen(
            [tmux, "-u", "-S", str(folder / "tmux"), "-f", str(folder / "tmux.conf"), "-D"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment | own,
            cwd="/",
            start_new_session=True,  # a C-c for edge must not reach the programs in the terminal
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
