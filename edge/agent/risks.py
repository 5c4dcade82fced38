"""Marks the risks in an agent's keystrokes for a person. The marks are a help; they are not complete."""

import re
import unicodedata
from dataclasses import dataclass

import tree_sitter

from edge.agent.dangers import (
    ACTED_ON,
    INTERPRETER,
    KEYS,
    KINDS,
    PRINTS_VARIABLES,
    RUNS_TEXT,
    WRAPPERS,
    kinds_of,
)
from edge.agent.shell import MAX_BYTES, parse
from edge.system.text import is_visible
from edge.terminal.obeyed import acted_on

_DOT_FILE = re.compile(r"(?:^|/)\.[^./]")
_EXPANDED = re.compile(r"[$`*?{\[]")
_NODES = {
    "command_substitution": "substitution",
    "process_substitution": "substitution",
    "function_definition": "defines a function",
}
_OBEYED = re.compile(
    r"(?:PATH|IFS|ENV|BASH_ENV|PROMPT_COMMAND|PS[0-4]|CDPATH|SHELLOPTS|LD_\w+|DYLD_\w+|PYTHON\w+|GIT_\w+)\b"
)


@dataclass(frozen=True)
class Risk:
    """A part of the keystrokes, from character `start` to before `end`, and what it can do."""

    kind: str
    start: int
    end: int


def risks(keystrokes: str) -> list[Risk]:
    """The risks in these keystrokes, in order of position, without duplicates."""
    marked: dict[Risk, None] = {}
    for match in re.finditer(r"[^\n\x20-\x7e]+", keystrokes):
        for start, end in _unseen(match.group()):
            marked[Risk("control or invisible characters", match.start() + start, match.start() + end)] = None
        if any(unicodedata.bidirectional(character) in ("R", "AL") for character in match.group()):
            marked[Risk("right-to-left letters, shown in another order", match.start(), match.end())] = None
    if len(keystrokes) > MAX_BYTES:  # the parser's time grows with the square of the length
        marked[Risk("too long to check", MAX_BYTES, len(keystrokes))] = None
        keystrokes = keystrokes[:MAX_BYTES]
    text = keystrokes.encode(errors="replace")
    places = _character_places(keystrokes)
    tree = parse(text)
    if tree.root_node.has_error:
        marked[Risk("not valid shell syntax", 0, len(keystrokes.rstrip()))] = None
    waiting = [tree.root_node]
    while waiting:
        node = waiting.pop()
        waiting += reversed(node.children)
        start, end = places[node.start_byte], places[node.end_byte]
        for kind in _kinds(node, text):
            marked[Risk(kind, start, end)] = None
    return sorted(marked, key=lambda risk: (risk.start, risk.end))


def _unseen(text: str) -> list[tuple[int, int]]:
    """The ranges of characters that a person cannot see, or that change the order of what a person sees."""
    seen = "".join("x" if is_visible(c) and not c.isspace() else " " for c in text)
    return [match.span() for match in re.finditer(" +", seen)]


def _character_places(text: str) -> list[int]:
    """The index of the character for each byte of the UTF-8 text, and for its end."""
    places = []
    for index, character in enumerate(text):
        places += [index] * len(character.encode(errors="replace"))
    return [*places, len(text)]


def _kinds(node: tree_sitter.Node, data: bytes) -> list[str]:
    text = _text(node, data)
    if node.type == "command":
        return _command_kinds(_words(node, data)) + _redirected_program(node, node.children, data)
    if node.type == "redirected_statement":
        body = node.child_by_field_name("body")
        return [] if body is None else _redirected_program(body, node.children, data)
    if node.type == "file_redirect":
        return _redirect_kinds(text)
    if node.type == "pipeline":
        parts = [child for child in node.children if child.is_named]
        # In a here-document's pipeline, the first part reads from the pipe too.
        if node.parent is None or node.parent.type != "heredoc_redirect":
            parts = parts[1:]
        commands = [part.child_by_field_name("body") or part for part in parts]
        return ["pipe into an interpreter"] if any(_interprets(_words(one, data)) for one in commands) else []
    if node.type == "&":
        return ["runs in the background"]
    if node.type == "declaration_command" and PRINTS_VARIABLES.fullmatch(text):
        return [KEYS]
    unset = node.type == "unset_command" and any(map(_OBEYED.fullmatch, text.split()))
    if unset or (node.type == "variable_assignment" and _OBEYED.match(text)):
        return ["changes what commands mean"]
    return [_NODES[node.type]] if node.type in _NODES else []


def _text(node: tree_sitter.Node, data: bytes) -> str:
    return data[node.start_byte : node.end_byte].decode(errors="replace")


def _words(node: tree_sitter.Node, data: bytes) -> list[str]:
    """The words of a command without quotes and escapes, and without the assignments before it."""
    if node.type != "command":
        return []
    kept = [
        child
        for child in node.children
        if child.type != "variable_assignment" and not child.type.endswith("redirect")
    ]
    return [re.sub(r"[\"'\\]", "", _text(child, data)) for child in kept]


def _programs(words: list[str]) -> list[tuple[str, str, list[str]]]:
    """The program by its plain name and as typed, with its words; and the program that it runs (sudo, env, …)."""
    programs = []
    rest = list(words)
    while rest:
        name = rest[0].rpartition("/")[2] or "."
        programs.append((name, rest[0], rest[1:]))
        if name not in WRAPPERS:
            break
        rest = rest[1:]
        option = False
        while rest and (rest[0].startswith("-") or "=" in rest[0] or rest[0][:1].isdigit()):
            option = rest.pop(0).startswith("-")
        if option and len(rest) > 1 and not _known(rest[0].rpartition("/")[2]):
            rest.pop(0)  # the option's value
    return programs


def _known(name: str) -> bool:
    return name in KINDS or name in WRAPPERS or INTERPRETER.fullmatch(name) is not None


def _interprets(words: list[str]) -> bool:
    return any(INTERPRETER.fullmatch(name) for name, _, _ in _programs(words))


def _redirected_program(
    command: tree_sitter.Node, redirects: list[tree_sitter.Node], data: bytes
) -> list[str]:
    """The risk of an interpreter without a script file: it reads its program from a redirection."""
    redirected = any(
        one.type in ("heredoc_redirect", "herestring_redirect")
        or (one.type == "file_redirect" and re.match(r"\d*<", _text(one, data)))
        for one in redirects
    )
    if not redirected:
        return []
    name, _, arguments = (_programs(_words(command, data)) or [("", "", [])])[-1]
    alone = all(argument.startswith("-") for argument in arguments)
    return ["runs text as a program"] if alone and INTERPRETER.fullmatch(name) else []


def _redirect_kinds(text: str) -> list[str]:
    kinds = []
    target = text.lstrip("0123456789<>&|").strip().strip("\"'")
    if re.match(r"\d*(?:>\||&?>(?!>|&))", text) and target != "/dev/null":
        kinds.append("overwrite")
    if ">" in text and (target.startswith("~") or _DOT_FILE.search(target) or acted_on(target)):
        kinds.append(ACTED_ON)
    if target.startswith(("/dev/tcp/", "/dev/udp/")):
        kinds.append("network")
    return kinds


def _command_kinds(words: list[str]) -> list[str]:
    kinds: list[str] = []
    for name, path, rest in _programs(words):
        kinds += kinds_of(name, rest, path)
        if path != "[" and _EXPANDED.search(path):  # only the shell knows which program it is
            kinds.append(RUNS_TEXT)
    return list(dict.fromkeys(kinds))
