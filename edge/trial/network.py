"""Finds what a shell script loads from a network, as far as the names of its programs say so.

A name counts wherever it is, unless the shell's syntax shows that nothing is loaded there: it is a comment, a text that
is only printed or compared, or a call that needs no network. In doubt it counts: a task that is refused wrongly says
nothing about a model, but tests that fail without a network would be counted as the model's failure.
"""

import re
from collections.abc import Iterator
from functools import cached_property

import tree_sitter

from edge.agent.shell import parse
from edge.system.hosts import leads_here

# Programs that load something from a network, with the word after them where the program alone does not say so.
_NETWORK = re.compile(
    r"(?<![\w./-])(apt-get|apt|aptitude|apk|yum|dnf|microdnf|zypper|pacman|snap|brew|pip3?|pipx|uvx?|conda|mamba|npm|npx|"
    r"yarn|pnpm|curl|wget|gem|rustup|cpanm?|cpan|ssh|scp|docker|add-apt-repository|"
    r"cargo (?:install|fetch|build)|git (?:clone|fetch|pull)|go (?:get|install|mod)|"
    r"(?:mvn|gradle|dotnet|nuget)\b)(?![\w-])"
)
_MOST_BYTES = 100_000  # of a script that is parsed: the parser's time can grow with the square of the length
_MOST_FOUND = 200  # names that are judged one by one
_MOST_VARIABLES = 20  # and functions that get their texts one from another
_MOST_STEPS = 2000
# They do nothing with their arguments but print, compare, find or remove what has this name.
_PRINTERS = frozenset(
    "[ basename cat cd cmp cut diff dirname echo egrep exit false fgrep grep hash head ls mkdir printf return rm rmdir "
    "stat tail test touch tr true type uniq wc which :".split()
)
_DATA = (
    ".txt",
    ".log",
    ".json",
    ".csv",
    ".tsv",
    ".xml",
    ".md",
    ".html",
)  # endings of files that nothing runs
_VERSION = frozenset(("--version", "-V", "-v", "version", "--help"))
_OFFLINE = {
    "go": ("mod init", "mod edit"),
    "pip": ("list", "show", "freeze", "check"),
    "pip3": ("list", "show", "freeze", "check"),
}
_URL = re.compile(
    r"(?:https?://)?([^/?#:@\[\]]+|\[[^\]]*\])(?::(?:\d+|\$\w+|\$\{\w+\}))?(?:[/?#]|$)", re.IGNORECASE
)
# Options of curl and wget: short and long ones without a value, short and long ones with a value. With any other one
# the host can be another than that of the URL.
_LOADERS = {
    "curl": (
        "sSfLkviIGgN#46",
        "silent show-error fail fail-with-body location insecure verbose include head get globoff compressed no-buffer "
        "retry-connrefused retry-all-errors no-progress-meter http1.1 http2",
        "owXHdmubcFAe",
        "output write-out request header data data-raw data-binary data-urlencode json form user cookie cookie-jar "
        "user-agent referer max-time connect-timeout retry retry-delay retry-max-time",
    ),
    "wget": (
        "qSdvnc46",
        "quiet spider server-response verbose no-verbose content-on-error no-check-certificate",
        "OotTU",
        "output-document output-file tries timeout header post-data method body-data user-agent",
    ),
}


def network_program(script: str) -> str | None:
    """The first program of a script that needs a network, as far as its name says so; None if there is none."""
    data = script.encode(errors="replace")
    text = data.decode("latin-1")  # a character for each byte, as the parser counts
    found = [match for match in _NETWORK.finditer(text) if not _in_comment_line(text, match.start())]
    if not found:
        return None
    tree = parse(data) if len(data) <= _MOST_BYTES and len(found) <= _MOST_FOUND else None
    if tree is None or tree.root_node.has_error:
        return found[0][1]
    read = _Script(tree.root_node, text)
    try:
        return next((match[1] for match in found if not read.is_harmless(*match.span())), None)
    except RecursionError:
        return found[0][1]


def _in_comment_line(text: str, place: int) -> bool:
    return text[text.rfind("\n", 0, place) + 1 : place].lstrip().startswith("#")


class _Script:
    """The syntax of a script without errors."""

    def __init__(self, root: tree_sitter.Node, text: str) -> None:
        self.root, self.text, self.steps = root, text, 0

    def is_harmless(self, start: int, end: int) -> bool:
        """Whether what stands there loads nothing."""
        node = self.root.descendant_for_byte_range(start, end)
        return node is not None and self._harmless(node, frozenset())

    def _harmless(self, node: tree_sitter.Node, seen: frozenset[str]) -> bool:
        """Whether the text of a node is not run. `seen`: variables and functions that are judged already."""
        self.steps += 1
        if self.steps > _MOST_STEPS:
            return False
        at: tree_sitter.Node | None = node
        while at is not None:
            match at.type:
                case "comment" | "test_command" | "case_item" | "case_statement" | "file_redirect":
                    return True
                case "command":
                    return self._loads_nothing(at) or self._only_printed(at, seen)
                case "heredoc_redirect" | "herestring_redirect" if at.parent and at.parent.type != "command":
                    body = at.parent.child_by_field_name("body")
                    return body is not None and body.type == "command" and self._only_printed(body, seen)
                case "variable_assignment" if at.parent and at.parent.type != "command":
                    exported = re.match(r"export|\w+ (?:-\w+ )*-\w*x", self._text(at.parent))
                    return exported is None and self._value_harmless(at, seen)
                case "for_statement":
                    return self._value_harmless(at, seen)
            at = at.parent
        return False

    def _value_harmless(self, node: tree_sitter.Node, seen: frozenset[str]) -> bool:
        """Whether no use of a variable runs its value: that of an assignment, or of a loop."""
        name = next((self._text(one) for one in _below(node) if one.type == "variable_name"), "")
        if name in seen:
            return True
        if not name or self._evaluates or len(seen) >= _MOST_VARIABLES:
            return False
        uses = [
            one
            for one in self._nodes
            if one.type == "variable_name"
            and self._text(one) == name
            and one.parent is not None
            and (one.parent.type in ("simple_expansion", "expansion") or one.parent.type == "subscript")
        ]
        return all(self._harmless(one, seen | {name}) for one in uses)

    def _loads_nothing(self, command: tree_sitter.Node) -> bool:
        """Whether a command asks for a version, or talks to this machine alone."""
        name, *rest = self._words(command) or [""]
        if len(rest) == 1 and rest[0] in _VERSION:
            return True
        if any(" ".join(rest).startswith(words) for words in _OFFLINE.get(name, ())):
            return True
        return name in _LOADERS and _is_local(name, rest)

    def _only_printed(self, command: tree_sitter.Node, seen: frozenset[str]) -> bool:
        """Whether a command only prints or compares its words, and no other program runs what it prints."""
        return self._prints(command) and not self._evaluates and self._is_kept(command, seen)

    def _is_kept(self, command: tree_sitter.Node, seen: frozenset[str]) -> bool:
        """Whether what a command prints gets to no other program that can run it."""
        at = command
        while (above := at.parent) is not None:
            match above.type:
                case "pipeline":
                    after = [one for one in above.named_children if one.start_byte >= at.end_byte]
                    if not all(self._takes(one) for one in after):
                        return False
                case "redirected_statement":
                    if not self._targets_are_data(above):
                        return False
                case "command_substitution":
                    return above.parent is not None and self._harmless(above.parent, seen)
                case "process_substitution":
                    return False
                case "function_definition":
                    return self._calls_are_kept(above, seen)
            at = above
        return True

    def _calls_are_kept(self, function: tree_sitter.Node, seen: frozenset[str]) -> bool:
        """`_is_kept` for each call of a function."""
        named = function.child_by_field_name("name")
        name = "" if named is None else self._text(named)
        if f"{name}()" in seen:
            return True
        if len(seen) >= _MOST_VARIABLES:
            return False
        calls = [one for one in self._nodes if one.type == "command" and self._words(one)[:1] == [name]]
        return all(self._is_kept(one, seen | {f"{name}()"}) for one in calls)

    def _prints(self, command: tree_sitter.Node) -> bool:
        name, *rest = self._words(command) or [""]
        if name == "command":
            return rest[:1] in (["-v"], ["-V"])
        return name in _PRINTERS and not (name == "printf" and rest[:1] == ["-v"])

    def _takes(self, node: tree_sitter.Node) -> bool:
        """Whether a part of a pipeline only prints what it gets, or writes it into files of data."""
        if node.type == "redirected_statement":
            body = node.child_by_field_name("body")
            return body is not None and self._takes(body) and self._targets_are_data(node)
        if node.type != "command":
            return node.type == "comment"
        name, *rest = self._words(node) or [""]
        if name == "tee":
            return all(self._is_data(word) for word in rest if not word.startswith("-"))
        return self._prints(node)

    def _targets_are_data(self, statement: tree_sitter.Node) -> bool:
        """Whether the redirections of a statement write only into files of data."""
        for one in statement.named_children:
            inner = [one]
            if one.type == "heredoc_redirect":
                inner = [
                    part
                    for part in one.named_children
                    if part.type not in ("heredoc_start", "heredoc_body", "heredoc_end")
                ]
            elif one.type not in ("file_redirect", "herestring_redirect"):
                continue
            for part in inner:
                if part.type == "herestring_redirect":
                    continue
                if part.type != "file_redirect":
                    return False  # a pipe after a here-document
                target = re.fullmatch(r"\d*([<>]&|&?>[>|]?|<)\s*(.*)", self._text(part), re.DOTALL)
                if target is None:
                    return False
                if target[1] not in ("<", "<&", ">&") and not self._is_data(_plain(target[2])):
                    return False
                if target[1] == ">&" and target[2] not in ("1", "2", "-"):
                    return False
        return True

    def _is_data(self, path: str) -> bool:
        """Whether a file is one that no other command of the script can run."""
        if path == "/dev/null":
            return True
        base = path.rpartition("/")[2]
        return path.endswith(_DATA) and not any(base in text for text in self._used)

    @cached_property
    def _used(self) -> list[str]:
        """Each command that can run a file that it names, and each file that a command reads from."""
        return [
            self._text(one)
            for one in self._nodes
            if (one.type == "file_redirect" and re.match(r"\d*<", self._text(one)))
            or (one.type == "command" and not self._prints(one) and self._words(one)[:1] != ["tee"])
        ]

    @cached_property
    def _evaluates(self) -> bool:
        """Whether the script runs texts that it makes: with eval, or as the name or the input of a program."""
        for one in self._nodes:
            match one.type:
                case "command" if (self._words(one) or [""])[0] in ("eval", "source", ".", "coproc"):
                    return True
                case "command_name" if any(part.type == "command_substitution" for part in _below(one)):
                    return True
                case "expansion" if self._text(one).startswith("${!"):
                    return True
                case "process_substitution" if self._text(one).startswith(">("):
                    if not all(self._takes(part) for part in one.named_children):
                        return True
        return False

    @cached_property
    def _nodes(self) -> list[tree_sitter.Node]:
        return list(_below(self.root))

    def _words(self, command: tree_sitter.Node) -> list[str]:
        """The words of a command without quotes, and without assignments and redirections."""
        return [
            _plain(self._text(one))
            for one in command.named_children
            if one.type != "variable_assignment" and not one.type.endswith("redirect")
        ]

    def _text(self, node: tree_sitter.Node) -> str:
        return self.text[node.start_byte : node.end_byte]


def _below(node: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    """A node and all below it, in order. Not recursive: a script can nest deeper than Python's recursion limit."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += reversed(one.children)


def _plain(text: str) -> str:
    return re.sub(r"[\"'\\]", "", text)


def _is_local(program: str, words: list[str]) -> bool:
    """Whether curl or wget has at least one URL, and each is of this machine; False for an option that is not known."""
    short, long, short_value, long_value = _LOADERS[program]
    alone, valued = set(long.split()), set(long_value.split())
    urls, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, equals, _ = word[2:].partition("=")
            if name in valued:
                rest = rest if equals else rest[1:]
            elif name not in alone or equals:
                return False
        elif word.startswith("-") and len(word) > 1:
            letters = word[1:].lstrip(short)
            if letters and letters[0] not in short_value:
                return False
            rest = rest[1:] if len(letters) == 1 else rest
        else:
            urls.append(word)
    hosts = [_URL.match(url) for url in urls]
    return bool(hosts) and all(host and leads_here(host[1]) for host in hosts)
