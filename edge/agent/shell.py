"""Reads keystrokes as bash: returns the simple commands in them, or refuses what it cannot read with certainty.

A real parser (the bash grammar of tree-sitter) reads the text. Only plain commands joined by `&&`, `||`, `|`, `;` and
line breaks are accepted. Two parsers can read one text differently, and bash is a third parser. So everything that bash
would expand, redirect or group is refused, and a second parser (shlex) must find the same words.

The model reads the messages of UnreadableError: do not change them.
"""

import shlex
from dataclasses import dataclass
from functools import cache

import tree_sitter
import tree_sitter_bash

from edge.system.text import is_visible

MAX_COMMANDS = 50
MAX_BYTES = 10_000
# The kernel cuts a line that waits while a program runs, at 4,095 bytes (Linux) or 1,024 (macOS). The rest of a
# quoted word would then be commands.
MAX_LINE = 1000

_JOINED = {"program", "list", "pipeline"}
_BETWEEN = {"&&", "||", "|", ";", "\n"}
_NEEDS_MORE = {"&&", "||", "|"}
_WORDS = {"word", "number", "raw_string", "string", "concatenation"}
# The characters that an unquoted word may contain. Not allowed: $ ` (substitution), \\ (escapes), * ? [ ] (globs),
# { } (braces), ~ (home folder), ! ^ (history), # (comment), < > & ( ) ; | (operators), quotes, blanks, and letters
# beyond ASCII: in some locales a shell takes one of their bytes for a blank.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./,:+=@%")
_RESERVED = frozenset(
    "if then else elif fi case esac for select while until do done in function time coproc { } ! [[ ]]".split()
)


class UnreadableError(ValueError):
    """The keystrokes are not only plain commands. The message is one line; the model reads it."""


@dataclass(frozen=True)
class SimpleCommand:
    """A program and its arguments as bash passes them: without quotes."""

    program: str
    arguments: tuple[str, ...]


def read_commands(text: str) -> list[SimpleCommand]:
    """The simple commands of whole lines of shell, in order. Raises UnreadableError if they contain anything else."""
    _check_characters(text)
    data = text.encode()
    tree = parse(data)
    if tree.root_node.has_error:
        raise UnreadableError("it cannot be read as shell")
    commands: list[SimpleCommand] = []
    covered = 0
    waiting = [tree.root_node]  # not recursive: a text can nest deeper than Python's recursion limit
    while waiting:
        node = waiting.pop()
        if data[covered : node.start_byte].strip(b" \n"):
            raise UnreadableError("it cannot be read as shell in full")
        if node.type in _JOINED:
            waiting += reversed(node.children)
            continue
        covered = node.end_byte
        if node.type == "command":
            commands.append(_command(node, data))
        elif node.type in _NEEDS_MORE and data[covered:].lstrip(b" ").startswith(b"\n"):
            # The shell would wait for the rest without the prompt at which edge types.
            raise UnreadableError("a command goes on over a line break")
        elif node.type not in _BETWEEN:
            raise UnreadableError(f"it holds a {node.type.replace('_', ' ')}, not plain commands alone")
    if data[covered:].strip(b" \n"):
        raise UnreadableError("it cannot be read as shell in full")
    if len(commands) > MAX_COMMANDS:
        raise UnreadableError(f"it holds {len(commands)} commands; at most {MAX_COMMANDS} are read")
    _check_again(text, commands)
    return commands


def _check_characters(text: str) -> None:
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise UnreadableError(f"it is longer than {MAX_BYTES:,} bytes")
    if any(len(line.encode(errors="replace")) > MAX_LINE for line in text.split("\n")):
        raise UnreadableError(f"a line is longer than {MAX_LINE:,} bytes")
    for character in text:
        if character != "\n" and (not is_visible(character) or (character.isspace() and character != " ")):
            raise UnreadableError(
                f"it holds the character U+{ord(character):04X}, which a terminal may act on"
            )
        if "\ud800" <= character <= "\udfff":
            raise UnreadableError("it is not UTF-8 text")


def _command(node: tree_sitter.Node, data: bytes) -> SimpleCommand:
    words: list[str] = []
    end = node.start_byte
    for child in node.children:
        if child.type == "command_name" and child.child_count == 1:
            child = child.children[0]
        if child.type not in _WORDS:
            raise UnreadableError(f"it holds a {child.type.replace('_', ' ')}, not plain words alone")
        gap = data[end : child.start_byte]
        if (words and not gap) or gap.strip(b" "):
            raise UnreadableError("it cannot be read as shell in full")
        words.append(_word(child, data))
        end = child.end_byte
    first = data[node.start_byte : node.end_byte].split(b" ")[0].decode()
    if not words or first != words[0]:
        raise UnreadableError("a program's name is quoted")
    if "=" in first or first in _RESERVED or first.startswith("%"):  # %1 names a job
        raise UnreadableError(f"{first} stands where a program must")
    return SimpleCommand(words[0], tuple(words[1:]))


def _word(node: tree_sitter.Node, data: bytes) -> str:
    text = data[node.start_byte : node.end_byte].decode()
    if "\n" in text:
        raise UnreadableError("a word goes on over a line break")
    parts = node.children if node.type == "concatenation" else [node]
    if b"".join(data[part.start_byte : part.end_byte] for part in parts).decode() != text:
        raise UnreadableError("it cannot be read as shell in full")
    return "".join(_unquoted(part, data) for part in parts)


def _unquoted(node: tree_sitter.Node, data: bytes) -> str:
    text = data[node.start_byte : node.end_byte].decode()
    if node.type == "raw_string":
        inner = text[1:-1]
        if len(text) < 2 or text[0] != "'" or text[-1] != "'" or "'" in inner:
            raise UnreadableError("a quotation cannot be read")
        return inner
    if node.type == "string":
        inner = text[1:-1]
        if len(text) < 2 or text[0] != '"' or text[-1] != '"' or any(c in inner for c in '"$`\\!'):
            raise UnreadableError('between double quotes stands one of " $ ` \\ !')
        return inner
    if node.type not in ("word", "number"):
        raise UnreadableError(f"it holds a {node.type.replace('_', ' ')}, not plain words alone")
    for character in text:
        if character not in _PLAIN:
            raise UnreadableError(f"{character} stands outside quotes")
    return text


def _check_again(text: str, commands: list[SimpleCommand]) -> None:
    """Check that a second, different parser finds the same words in the same order."""
    reader = shlex.shlex(text.replace("\n", " ; "), posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    reader.commenters = ""
    try:
        second = [word for word in reader if word.strip("&|;")]
    except ValueError:
        raise UnreadableError("its quotes do not close") from None
    # Both sides leave out an argument of only ; | &: without its quotes, shlex returns it like an operator.
    words = [
        word for command in commands for word in (command.program, *command.arguments) if word.strip("&|;")
    ]
    if second != words:
        raise UnreadableError("two parsers read it differently")


def parse(data: bytes) -> tree_sitter.Tree:
    """The syntax tree of UTF-8 shell text, including its syntax errors.

    The grammar's scanner calls isdigit of C for every character, which stops the process for characters far beyond
    Latin-1 (tree-sitter-bash 0.25.1). So the parser gets a letter for each byte beyond ASCII. The positions in the tree
    stay the same, and such a byte is part of a word to bash too.
    """
    return _parser().parse(bytes(byte if byte < 0x80 else ord("x") for byte in data))


@cache
def _parser() -> tree_sitter.Parser:
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))
