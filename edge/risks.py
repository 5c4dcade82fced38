"""What in an agent's keystrokes deserves a second look: for a person's eye, with no claim to be complete."""

import re
from dataclasses import dataclass

import tree_sitter

from edge.shell import MAX_BYTES, parse

_NAMES = {
    "delete": "rm rmdir unlink shred truncate mkfs wipefs userdel groupdel dropdb",
    "overwrite": "mv cp dd tee install rsync ln",
    "privilege": "sudo su doas pkexec chown chgrp chmod setcap setfacl visudo passwd usermod useradd mount umount",
    "network": "curl wget ssh scp sftp nc ncat netcat socat telnet ftp rsync ping dig nslookup host",
    "runs a text as a program": "eval source . exec xargs parallel",
    "stops things": "kill pkill killall shutdown reboot halt poweroff systemctl service",
    "schedules": "crontab at batch",
    "changes what commands mean": "alias enable hash trap",
}
_KINDS: dict[str, list[str]] = {}
for _kind, _words in _NAMES.items():
    for _word in _words.split():
        _KINDS.setdefault(_word, []).append(_kind)
# A command's words that make it risky, where its name alone does not.
_PHRASES = [
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (r"find\b.*\s-delete\b", "delete"),
        (r"find\b.*\s-(?:exec|execdir|ok|okdir)\b", "runs a text as a program"),
        (
            r"git\s+(?:-\S+\s+)*(?:clean|reset\s+--hard|checkout\s+--|branch\s+-D|stash\s+(?:drop|clear))",
            "delete",
        ),
        (r"git\s+(?:-\S+\s+)*(?:push|pull|fetch|clone|submodule)\b", "network"),
        (
            r"(?:pip3?|npm|pnpm|yarn|cargo|gem|go|uv|apt|apt-get|dnf|yum|brew|conda)\s+(?:\S+\s+)*(?:install|add|get|update|upgrade|i)\b",
            "network",
        ),
        (r"(?:docker|podman)\b", "privilege"),
        (r"git\s+(?:-\S+\s+)*(?:restore|checkout\s+(?:\S+\s+)*\.)", "overwrite"),
        (r"python[0-9.]*\s+-m\s+pip\b", "network"),
        (r"sed\b.*\s(?:-[a-zA-Z]*i|--in-place)", "overwrite"),
        (
            r"(?:sh|bash|dash|zsh|ksh|python[0-9.]*|perl|ruby|node|php)\s+(?:-\S+\s+)*-[a-zA-Z]*[ce]\b",
            "runs a text as a program",
        ),
        (r"(?:env|nohup|setsid|nice|timeout)\s", "runs another program"),
    )
]
_INTERPRETER = re.compile(
    r"(?:\S*/)?(?:ba|da|z|k|c|tc|a|fi)?sh\b|(?:\S*/)?(?:python[0-9.]*|perl|ruby|node|php)\b"
)
_NODES = {
    "command_substitution": "substitution",
    "process_substitution": "substitution",
    "function_definition": "defines a function",
}
_OBEYED = re.compile(
    r"(?:PATH|IFS|ENV|BASH_ENV|PROMPT_COMMAND|PS[0-4]|CDPATH|SHELLOPTS|LD_\w+|DYLD_\w+|PYTHON\w+|GIT_\w+)\b"
)
_WRAPPERS = frozenset(
    "sudo doas env nohup nice time timeout xargs command builtin exec setsid ionice".split()
)


@dataclass(frozen=True)
class Risk:
    """A part of the keystrokes, from character `start` to before `end`, and what it may do."""

    kind: str
    start: int
    end: int


def risks(keystrokes: str) -> list[Risk]:
    """What is risky in these keystrokes, in their order; each kind once a place."""
    found: dict[Risk, None] = {}
    for match in re.finditer(r"[^\n\x20-\x7e]+", keystrokes):
        for start, end in _unseen(match.group()):
            found[Risk("control characters", match.start() + start, match.start() + end)] = None
    if len(keystrokes) > MAX_BYTES:  # the parser's time grows with the square of the length
        found[Risk("too long to be read", MAX_BYTES, len(keystrokes))] = None
        keystrokes = keystrokes[:MAX_BYTES]
    text = keystrokes.encode(errors="replace")
    places = _character_places(keystrokes)
    tree = parse(text)
    if tree.root_node.has_error:
        found[Risk("cannot be read as shell", 0, len(keystrokes.rstrip()))] = None
    waiting = [tree.root_node]
    while waiting:
        node = waiting.pop()
        waiting += reversed(node.children)
        start, end = places[node.start_byte], places[node.end_byte]
        for kind in _kinds(node, text):
            found[Risk(kind, start, end)] = None
    return sorted(found, key=lambda risk: (risk.start, risk.end))


def _unseen(text: str) -> list[tuple[int, int]]:
    """Where characters stand that a person does not see, or that turn what is seen around."""
    seen = "".join("x" if c.isprintable() and not c.isspace() else " " for c in text)
    return [match.span() for match in re.finditer(" +", seen)]


def _character_places(text: str) -> list[int]:
    """For each byte of the UTF-8 text, and its end, the character that it belongs to."""
    places = []
    for index, character in enumerate(text):
        places += [index] * len(character.encode(errors="replace"))
    return [*places, len(text)]


def _kinds(node: tree_sitter.Node, data: bytes) -> list[str]:
    text = data[node.start_byte : node.end_byte].decode(errors="replace")
    if node.type == "command":
        return _command_kinds(text)
    if node.type in ("file_redirect", "herestring_redirect"):
        return (
            ["overwrite"]
            if re.match(r"\d*(?:>\||&?>(?!>|&))", text) and not text.endswith("/dev/null")
            else []
        )
    if node.type == "pipeline":
        commands = [child for child in node.children if child.is_named]
        later = [data[child.start_byte : child.end_byte].decode(errors="replace") for child in commands[1:]]
        return ["pipe into an interpreter"] if any(_INTERPRETER.match(part) for part in later) else []
    if node.type == "&":
        return ["goes on in the background"]
    if node.type == "variable_assignment" and _OBEYED.match(text):
        return ["changes what commands mean"]
    return [_NODES[node.type]] if node.type in _NODES else []


def _command_kinds(text: str) -> list[str]:
    kinds = []
    words = text.split()
    while words:
        name = words.pop(0).strip("\"'\\").rpartition("/")[2] or "."
        kinds += _KINDS.get(name, [])
        if name not in _WRAPPERS:
            break
        while words and (words[0].startswith("-") or "=" in words[0]):
            words.pop(0)
    kinds += [kind for pattern, kind in _PHRASES if pattern.match(text)]
    return list(dict.fromkeys(kinds))
