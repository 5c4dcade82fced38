"""`--allow FILE`: a TOML list of the commands that an agent may type, each with patterns for its arguments.

The keystrokes must be whole lines of plain commands (see edge/shell.py), each of them on the list. A list is not a
wall: what an allowed program does with its arguments is its own affair. The sandbox is the wall.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import re2  # type: ignore[import-untyped]

from edge.errors import AllowError
from edge.shell import UnreadableError, read_commands
from edge.terminal import is_key_name

# Programs whose arguments name another program, or are one.
RUN_OTHERS = frozenset(
    (
        "ash awk bash busybox chroot command csh dash dd doas docker emacs env eval exec expect find fish "
        "flock gawk gdb git ionice java ksh ld.so less lua make man mawk more nice node nohup npm npx nsenter "
        "parallel perl php pip podman printf pytest python python3 rlwrap rsync ruby run-parts sed setpriv "
        "setsid sh socat sort source ssh stdbuf strace sudo su systemd-run tar taskset tcsh tee time timeout "
        "tmux uv vi vim watch xargs zip zsh"
    ).split()
)
_SHELL_OWN = frozenset(
    (
        ". alias bg bind builtin command coproc declare disown enable eval exec export fc fg function hash "
        "history jobs let local mapfile readarray readonly set shopt source suspend time trap typeset unalias "
        "unset"
    ).split()
)


@dataclass(frozen=True)
class AllowedCommand:
    """A program's plain name, and the patterns of which each argument must match one as a whole."""

    program: str
    arguments: tuple[Any, ...]  # compiled by re2, which has no types
    most: int


@dataclass(frozen=True)
class Allowlist:
    """What may be typed: commands, and keys by their tmux names. `warnings`: what the list's author should know."""

    commands: tuple[AllowedCommand, ...]
    keys: frozenset[str]
    warnings: tuple[str, ...]


def read_allowlist(path: Path | str) -> Allowlist:
    """Read a list: `keys = ["C-c"]` and any number of `[[command]]` with `program`, `arguments` and `max_arguments`.

    Patterns are regular expressions of RE2, so that none can take long. Raises AllowError.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise AllowError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AllowError(f"{path}: is not TOML: {error}") from None
    _known_keys(data, {"keys", "command"}, str(path))
    keys = _texts(data.get("keys", []), f"{path}: keys")
    for key in keys:
        if not is_key_name(key):
            raise AllowError(f"{path}: keys: {key!r} is no key's name, such as C-c")
    entries = data.get("command", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AllowError(f"{path}: write each command as a table [[command]]")
    commands = tuple(_command(entry, f"{path}: command {number}") for number, entry in enumerate(entries, 1))
    names = dict.fromkeys(
        command.program for command in commands if command.program in RUN_OTHERS and command.arguments
    )
    warnings = tuple(
        f"{path}: {name} can run other programs through its arguments: allow only arguments that name none, and use "
        "--sandbox"
        for name in names
    )
    return Allowlist(commands, frozenset(keys), warnings)


def _command(entry: dict[str, Any], where: str) -> AllowedCommand:
    _known_keys(entry, {"program", "arguments", "max_arguments"}, where)
    program = entry.get("program")
    if not isinstance(program, str) or not program:
        raise AllowError(f'{where}: program is missing: write program = "ls"')
    where = f"{where} ({program})"
    if program in _SHELL_OWN:
        raise AllowError(
            f"{where}: is a command of the shell that changes what other commands mean; it cannot be allowed"
        )
    try:
        plain = [(c.program, c.arguments) for c in read_commands(program + "\n")] == [(program, ())]
    except UnreadableError:
        plain = False
    if not plain:
        raise AllowError(f"{where}: program must be a program's plain name")
    patterns = _texts(entry.get("arguments", []), f"{where}: arguments")
    most = entry.get("max_arguments", 20)
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise AllowError(f"{where}: max_arguments must be a whole number from 0")
    return AllowedCommand(program, tuple(_pattern(pattern, where) for pattern in patterns), most)


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
        raise AllowError(f"{where}: {pattern!r} is no regular expression of RE2: {why}") from None


def _known_keys(table: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise AllowError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")


def _texts(value: object, where: str) -> Sequence[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise AllowError(f"{where} must be a list of texts")
    return value


def refusal(allowlist: Allowlist, keystrokes: str) -> str | None:
    """Why these keystrokes may not be typed, in one line; None if they may.

    They must be empty (waiting), a key on the list, or lines that end with a line break: what is typed without one
    would become part of what is typed next.
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
