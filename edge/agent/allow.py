"""`--allow FILE`: the allowlist, a TOML file of commands that an agent may type, with patterns for their arguments.

The keystrokes must be whole lines of plain commands (see edge/agent/shell.py), and each command must be on the list.
An allowlist is not a security boundary: it does not control what an allowed program does. The sandbox does.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import re2  # type: ignore[import-untyped]

from edge.agent.shell import UnreadableError, read_commands
from edge.errors import AllowError
from edge.system.typed_json import Index, Name, check
from edge.terminal.tmux import is_key_name

# Programs that can run other programs: through their arguments, files that they read, or keys typed into them.
RUN_OTHERS = frozenset(
    (
        "7z apt apt-get aptitude ar ash at awk bash batch bun bundle busybox byobu c++ cargo cc chroot chrt "
        "clang clang++ cmake cpan cpio cpulimit crontab csh ctags curl dash dc dd deno docker dpkg dvtm "
        "easy_install ed elixir elvish emacs env erl ex expect fakeroot fd fdfind ffmpeg find fish flock ftp "
        "g++ gawk gcc gdb gem ghci git gnuplot go gradle groff hg iex ionice ip irb java jjs joe journalctl "
        "jrunscript jshell julia kak ksh latex ld ld.so less linux32 linux64 lldb logrotate lp ltrace lua "
        "luajit m4 mail make man mawk mc mksh more mosh most mutt mvn mysql nano nawk nc ncat neofetch newgrp "
        "nice ninja nmap node nodejs nohup npm npx nroff nsenter numactl nvim octave openssl pandoc parallel "
        "pdb pdflatex perf perl pg php pico pip pipx pkexec pnpm podman proot psql puppet pwsh pytest python "
        "R rake rbash rc redis-cli rg rlwrap rpm Rscript rsync ruby run-parts runuser rustc rview rvim scp "
        "screen script scriptreplay sed service setarch setpriv setsid sftp sg sh slsh snap socat sort split "
        "sqlite ssh ssh-agent ssh-keygen ssh-keyscan start-stop-daemon stdbuf strace su sudo svn swipl "
        "systemctl systemd-run tar taskset tclsh tcpdump tcsh tee telnet tex timeout tmux top tox troff tsx "
        "unshare unzip uv uvx valgrind vi view vim vimdiff visudo watch wget wish xargs xdotool xelatex yarn "
        "yash zip zsh"
    ).split()
)
# Builtins of bash that change what later commands mean, or evaluate a text: `read`, `printf -v`, `printf %n`, `test -v`
# and `wait -p` set variables such as PATH, or run the substitution in a[$(…)]; `compgen -W` and `jobs -x` run commands.
_SHELL_OWN = frozenset(
    (
        ". [ alias bg bind builtin command compgen complete compopt coproc declare disown enable eval exec "
        "export fc fg function getopts hash history jobs let local mapfile printf read readarray readonly set "
        "shopt source suspend test time trap typeset unalias unset wait"
    ).split()
)
# Keys that do not recall or edit a line. Other keys (Up, Escape, Tab, C-r) would change the line that edge types next.
KEYS = ("C-c", "C-d", "C-z", "C-\\")
_MAX_FILE_BYTES = 1_000_000


_SEE = "`edge schema allowlist --example` prints one"


class CommandTable(TypedDict):
    """A [[command]] table: a program, and what its arguments may be."""

    program: Name
    """Plain name or path of the program."""
    arguments: NotRequired[list[str]]
    """RE2 regular expressions. Each argument must match one of them as a whole. Default: no arguments."""
    max_arguments: NotRequired[Index]
    """Maximum number of arguments. Default: 20."""


class AllowlistFields(TypedDict):
    """The TOML file of `edge agent --allow`: what the agent may type without a review."""

    keys: NotRequired[list[str]]
    """Keys that the agent may press, by their tmux names."""
    command: NotRequired[list[CommandTable]]
    """Programs that the agent may call."""


@dataclass(frozen=True)
class AllowedCommand:
    """A program by its plain name. Each argument must match one of the patterns as a whole.

    `most`: the maximum number of arguments.
    """

    program: str
    arguments: tuple[Any, ...]  # compiled by re2, which has no types
    most: int


@dataclass(frozen=True)
class Allowlist:
    """What an agent may type: commands, and keys by their tmux names. `warnings`: one line each for the user."""

    commands: tuple[AllowedCommand, ...]
    keys: frozenset[str]
    warnings: tuple[str, ...]


def read_allowlist(path: Path | str) -> Allowlist:
    """Read an allowlist: `keys = ["C-c"]`, and `[[command]]` tables with `program`, `arguments` and `max_arguments`.

    Patterns are RE2 regular expressions, whose time is bounded. Raises AllowError if the file is not a valid allowlist.
    """
    data = _toml(Path(path))
    _known_keys(data, set(AllowlistFields.__annotations__), str(path))
    entries = data.get("command", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AllowError(f"{path}: write each command as a table [[command]]")
    for number, entry in enumerate(entries, 1):
        _known_keys(entry, set(CommandTable.__annotations__), f"{path}: command {number}")
    fields = check(data, AllowlistFields, str(path), AllowError)
    keys = fields.get("keys", [])
    for key in keys:
        if key not in KEYS:
            raise AllowError(f"{path}: keys: {key!r} cannot be allowed; use only {', '.join(KEYS)}")
    commands = tuple(
        _command(entry, f"{path}: command {number}")
        for number, entry in enumerate(fields.get("command", []), 1)
    )
    warnings = tuple(
        f"{path}: {name} can run other programs through its arguments, its files or keys: allow only arguments that "
        "do not name a program, and use --sandbox"
        for name in dict.fromkeys(command.program for command in commands if _runs_others(command.program))
    )
    return Allowlist(commands, frozenset(keys), warnings)


def _toml(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # reading a device or a pipe could take forever
            raise AllowError(f"{path}: is not a file; give an allowlist in TOML ({_SEE})")
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise AllowError(f"{path}: is larger than {_MAX_FILE_BYTES:,} bytes; give a shorter allowlist")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise AllowError(f"{path}: cannot be read: {error.strerror}") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, not TOML, or a number that is too long
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise AllowError(f"{path}: is not TOML: {why} ({_SEE})") from None


def _runs_others(program: str) -> bool:
    """Compares the name without its folder, and without a version at its end (python3.11, gcc-12)."""
    name = program.rpartition("/")[2]
    bare = re.sub(r"[-.0-9]+$", "", name)
    return not RUN_OTHERS.isdisjoint((name, bare)) or name.startswith(("ld-linux", "ld.so", "ld-musl"))


def _command(entry: CommandTable, where: str) -> AllowedCommand:
    program = entry["program"]
    where = f"{where} ({program})"
    if program in _SHELL_OWN:
        raise AllowError(
            f"{where}: this shell builtin can change what other commands mean, or run them, so it cannot be allowed: "
            "remove it, or name a program by its path, such as /usr/bin/test"
        )
    try:
        plain = [(c.program, c.arguments) for c in read_commands(program + "\n")] == [(program, ())]
    except UnreadableError:
        plain = False
    if not plain:
        raise AllowError(f"{where}: program must be the plain name of a program")
    patterns = tuple(_pattern(pattern, where) for pattern in entry.get("arguments", []))
    return AllowedCommand(program, patterns, entry.get("max_arguments", 20))


def _pattern(pattern: str, where: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        why = (
            error.args[0].decode(errors="replace")
            if error.args and isinstance(error.args[0], bytes)
            else error
        )
        raise AllowError(f"{where}: {pattern!r} is not an RE2 regular expression: {why}") from None


def _known_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise AllowError(f"{where}: unknown key {unknown[0]!r}; use only {', '.join(sorted(known))}")


def refusal(allowlist: Allowlist, keystrokes: str) -> str | None:
    """The reason why edge may not type these keystrokes, in one line for the model; None if edge may type them.

    edge may type empty keystrokes (a wait), a key on the list, and lines of allowed commands. Each line must end with a
    line break: without it, the text would become a part of what edge types next.
    """
    if not keystrokes or keystrokes in allowlist.keys:
        return None
    if is_key_name(keystrokes):
        return f"the key {keystrokes} is not on the list"
    if not keystrokes.endswith("\n"):
        return "it does not end with a line break: each command must be whole"
    try:
        commands = read_commands(keystrokes)
    except UnreadableError as error:
        return str(error)
    for command in commands:
        entries = [entry for entry in allowlist.commands if entry.program == command.program]
        if not entries:
            return f"{command.program} is not on the list"
        if not any(_fits(entry, command.arguments) for entry in entries):
            wrong = next(
                (word for word in command.arguments if not any(_matches(entry, word) for entry in entries)),
                None,
            )
            what = "these arguments together" if wrong is None else f"the argument {wrong[:80]!r}"
            return f"{command.program} is not allowed with {what}"
    return None


def _fits(entry: AllowedCommand, arguments: Sequence[str]) -> bool:
    return len(arguments) <= entry.most and all(_matches(entry, word) for word in arguments)


def _matches(entry: AllowedCommand, word: str) -> bool:
    return any(pattern.fullmatch(word) is not None for pattern in entry.arguments)
