"""Find text that a chat template writes only for certain contents of messages.

A template can hide an instruction that stands in the prompt only if, say, a message contains a certain word. Templates
also test contents for honest reasons: to cut a thought, or to tell a tool's result from a request. Those write only
markup, such as `<think>`; so this module looks for words outside of markup.

The search reads the parsed template and runs nothing. It follows contents through variables, macros and loops, and each
choice that depends on a test of them. It is an aid, not a proof: who hides an instruction well is not found.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes

from edge.formats.chat_template import parsed

_CONTENTS = ("content", "text", "reasoning_content", "thinking", "reasoning", "arguments", "description")
# What a message or a part of one is, not what it says.
_KINDS = ("role", "type", "name", "tool_calls", "tool_call_id", "function", "id")
_TESTING_METHODS = frozenset(
    "startswith endswith find rfind index rindex count isdigit isupper islower".split()
)
_COMPARING_TESTS = frozenset(
    "eq equalto == ne != gt greaterthan > ge >= lt lessthan < le <= in upper lower divisibleby odd even".split()
)
# Filters and methods whose arguments stand in the result, but not in each result.
_PUTTING = frozenset("replace join truncate indent wordwrap center default d".split())
# Filters that put a whole message into a text or a list.
_AS_TEXT = frozenset("tojson string pprint dictsort items".split())
# Tags with attributes, such as <param name="x">, also without their end; special tokens; [INST]; what transformers
# puts in for the end of a message that goes on.
_MARKUP = re.compile(
    r"""CONTINUE_FINAL_MESSAGE_TAG|&\w+;|</?[\w:|.｜▁/-]+(?:\s+[\w-]+=(?:"[^"<>]*"?|'[^'<>]*'?|[^\s<>]*))*\s*/?(?:>|$)|\[[^\[\]\s]*\]""",
    re.MULTILINE,
)
_ROLES = frozenset(
    "system user assistant tool model developer ipython think thinking analysis final commentary response tools".split()
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_ADDRESS = re.compile(r"\w+://\w")
_SENTENCE = re.compile(r"""=["'][^"'<>]*?\w\s+\w+\s+\w""")  # in an attribute of a tag
_LONG = 24  # characters without white space, outside of markup: no word
_JOINED = 4  # words in one text without white space


def conditional_texts(template: str, shown: str = "") -> list[str]:
    """The lines that depend on what a message says, in the order of the template. [] if it cannot be parsed.

    `shown`: what the template writes for ordinary conversations. A line in it is not hidden.
    """
    try:
        tree = parsed(template)
    except Exception:
        return []
    seen = " ".join(shown.lower().split())
    texts = dict.fromkeys(" ".join(line.split()) for line in _Search(tree).found())
    return [text for text in texts if text.lower() not in seen]


def _has_words(text: str, least: int = 2) -> bool:
    """Whether a line has words outside of markup: `least` with white space between them, or a long one not in ASCII.

    An address, a long text without white space, several words that are joined, or a sentence in an attribute count too.
    """
    if _ADDRESS.search(text) or _SENTENCE.search(text):
        return True
    for line in _MARKUP.sub("\n", text).splitlines():
        if any(len(part) > _LONG or len(_WORD.findall(part)) >= _JOINED for part in line.split()):
            return True
        parts = [found[0] for part in line.split() if (found := _WORD.search(part))]
        words = [word for word in parts if word.lower() not in _ROLES]
        if len(words) >= least or any(len(word) >= 4 and not word.isascii() for word in words):
            return True
    return False


class _Search:
    """What depends on contents.

    `messages`, `contents`: names that hold messages, or texts of them. `choices`: names set by a test of a text.
    `constants`: names and the texts that they are set to.
    """

    def __init__(self, tree: nodes.Template) -> None:
        self.tree = tree
        self.messages: set[str] = {"messages"}
        self.contents: set[str] = set()
        self.choices: set[str] = set()
        self.constants: dict[str, set[str]] = {}
        self.macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
        while self._spread():
            pass

    def found(self) -> Iterator[str]:
        """Each line of words that a test of contents decides about, or that a replacement puts into them."""
        for part in self._texts(self.tree, False):
            yield from (line for line in part.split("\n") if _has_words(line))
        for filtered in self.tree.find_all(nodes.Filter):
            yield from self._replaced(filtered.name, filtered.node, filtered.args)
        for call in self.tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Getattr):
                yield from self._replaced(call.node.attr, call.node.node, call.args)

    # --- what a name holds ---

    def _spread(self) -> bool:
        """One round of following assignments, loops and macros. Returns whether a name was added."""
        before = self._size()
        for assign in self.tree.find_all(nodes.Assign):
            self._take(assign.target, assign.node)
        for block in self.tree.find_all(nodes.AssignBlock):
            for part in block.body:
                self._take_part(block.target, part)
        for scope in self.tree.find_all(nodes.With):
            for target, value in zip(scope.targets, scope.values, strict=True):
                self._take(target, value)
        for loop in self.tree.find_all(nodes.For):
            self._take(loop.target, loop.iter)
        for call in self.tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name in self.macros:
                self._take_arguments(self.macros[call.node.name], call)
        for choice in self.tree.find_all(nodes.If):
            if self._tests(choice.test):
                for part in (*choice.body, *choice.elif_, *choice.else_):
                    self.choices |= set(_assigned(part))
        return self._size() > before

    def _size(self) -> int:
        constants = sum(map(len, self.constants.values()))
        return len(self.messages) + len(self.contents) + len(self.choices) + constants

    def _take(self, target: nodes.Node, value: nodes.Node) -> None:
        names = set(_names(target))
        texts = self._known(value)
        if texts:
            for name in names:
                self.constants.setdefault(name, set()).update(texts)
        if self._tests(value):
            self.choices |= names
        elif self._is_content(value):
            self.contents |= names
        elif self._is_message(value):
            self.messages |= names

    def _take_part(self, target: nodes.Node, part: nodes.Node) -> None:
        """A part of the block that a name is set to."""
        if any(self._tests(choice.test) for choice in _within(part, (nodes.If, nodes.CondExpr))):
            self.choices |= set(_names(target))
        if any(self._is_content(one) for output in _within(part, nodes.Output) for one in output.nodes):
            self.contents |= set(_names(target))

    def _take_arguments(self, macro: nodes.Macro, call: nodes.Call) -> None:
        named = {argument.name: argument for argument in macro.args}
        pairs = list(zip(macro.args, call.args, strict=False))
        pairs += [(named[word.key], word.value) for word in call.kwargs if word.key in named]
        for argument, value in pairs:
            self._take(argument, value)
        beyond = [
            *call.args[len(macro.args) :],
            *(word.value for word in call.kwargs if word.key not in named),
        ]
        if any(self._is_content(value) for value in beyond):
            self.contents |= {"varargs", "kwargs"}

    def _known(self, node: nodes.Node) -> set[str]:
        """The texts of a constant, or of a list or dictionary of constants; also those that its items are set to."""
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            return self._known(node.node.node) if node.node.attr in ("items", "values", "keys") else set()
        if isinstance(node, nodes.Name):
            return self.constants.get(node.name, set())
        return (
            set(_constants(node))
            if isinstance(node, nodes.Const | nodes.List | nodes.Tuple | nodes.Dict)
            else set()
        )

    def _is_message(self, node: nodes.Node | None) -> bool:
        """Whether an expression is a message or a list of them."""
        if isinstance(node, nodes.Name | nodes.Getattr):
            return _path(node) in self.messages
        if isinstance(node, nodes.Getitem):
            return self._is_message(node.node) and not isinstance(getattr(node.arg, "value", None), str)
        return isinstance(node, nodes.Filter) and node.name not in _AS_TEXT and self._is_message(node.node)

    def _is_content(self, node: nodes.Node | None) -> bool:
        """Whether an expression is the text of a message, or made from it."""
        if node is None or isinstance(
            node, nodes.Compare | nodes.Test | nodes.Not | nodes.Const | nodes.TemplateData
        ):
            return False
        if isinstance(node, nodes.Name):
            return node.name in self.contents
        if isinstance(node, nodes.Getattr):
            if node.attr in _CONTENTS or _path(node) in self.contents:
                return True
            return node.attr not in _KINDS and self._is_content(node.node)
        if isinstance(node, nodes.Getitem):
            key = node.arg.value if isinstance(node.arg, nodes.Const) else None
            return key in _CONTENTS or (key not in _KINDS and self._is_content(node.node))
        if isinstance(node, nodes.Filter):
            if node.name in _AS_TEXT and self._is_message(node.node):
                return True
            attributes = [word.value for word in node.kwargs if word.key == "attribute"]
            if node.name == "map" and any(getattr(one, "value", None) in _CONTENTS for one in attributes):
                return True
        if isinstance(node, nodes.Call):
            return self._is_call_of_content(node)
        if isinstance(node, nodes.CondExpr):
            return any(self._is_content(one) for one in (node.expr1, node.expr2))
        return any(self._is_content(child) for child in node.iter_child_nodes())

    def _is_call_of_content(self, node: nodes.Call) -> bool:
        if isinstance(node.node, nodes.Name) and node.node.name == "strftime_now":
            return True  # the date, too, can decide what a prompt says
        if not isinstance(node.node, nodes.Getattr):
            return any(self._is_content(argument) for argument in node.args)
        if node.node.attr == "get" and node.args and isinstance(node.args[0], nodes.Const):
            key = node.args[0].value
            return key in _CONTENTS or (key not in _KINDS and self._is_content(node.node.node))
        if node.node.attr in ("items", "values") and self._is_message(node.node.node):
            return True
        return self._is_content(node.node.node)

    # --- tests ---

    def _tests(self, node: nodes.Node | None) -> bool:
        """Whether an expression asks what a text says: not only whether there is one, or of which kind it is."""
        if node is None:
            return False
        if isinstance(node, nodes.Name | nodes.Getattr) and _path(node) in self.choices:
            return True
        if isinstance(node, nodes.Compare) and (self._compares(node) or self._compares_name(node)):
            return True
        if isinstance(node, nodes.Test) and node.name in _COMPARING_TESTS and self._is_content(node.node):
            return True
        if (
            isinstance(node, nodes.Test)
            and node.name in ("defined", "undefined")
            and self._is_piece(node.node)
        ):
            return True
        if (
            isinstance(node, nodes.Call)
            and isinstance(node.node, nodes.Name)
            and node.node.name in self.macros
        ):
            tests = _within(self.macros[node.node.name], (nodes.If, nodes.CondExpr))
            if any(self._tests(choice.test) for choice in tests):
                return True
        if (
            isinstance(node, nodes.Filter)
            and node.name in ("selectattr", "rejectattr")
            and len(node.args) > 1
            and getattr(node.args[0], "value", None) in _CONTENTS
        ):
            return True
        method = node.node if isinstance(node, nodes.Call) else None
        if (
            isinstance(method, nodes.Getattr)
            and method.attr in _TESTING_METHODS
            and self._is_content(method.node)
        ):
            return True
        return any(self._tests(child) for child in node.iter_child_nodes())

    def _compares_name(self, node: nodes.Compare) -> bool:
        """Whether it asks for the name of who wrote a message."""
        sides = (node.expr, *(operand.expr for operand in node.ops))
        names = [one for one in sides if isinstance(one, nodes.Getattr | nodes.Getitem)]
        keys = [
            one.attr if isinstance(one, nodes.Getattr) else getattr(one.arg, "value", None) for one in names
        ]
        named = any(
            key == "name" and self._is_message(one.node) for one, key in zip(names, keys, strict=True)
        )
        return named and any(isinstance(one, nodes.Const) and not _is_empty(one.value) for one in sides)

    def _is_piece(self, node: nodes.Node) -> bool:
        """Whether an expression is a part that a text has only if it says something certain."""
        cuts = [
            one for one in _within(node, nodes.Call) if getattr(one.node, "attr", None) in ("split", "rsplit")
        ]
        return isinstance(node, nodes.Getitem) and any(self._is_content(one) for one in cuts)

    def _compares(self, node: nodes.Compare) -> bool:
        left = node.expr
        for operand in node.ops:
            right = operand.expr
            if operand.op in ("in", "notin"):
                key = left.value if isinstance(left, nodes.Const) else None
                if self._is_content(left) or (self._is_content(right) and key not in (*_CONTENTS, *_KINDS)):
                    return True
            elif self._is_content(left) or self._is_content(right):
                other = right if self._is_content(left) else left
                if not (isinstance(other, nodes.Const) and _is_empty(other.value)):
                    return True
            left = right
        return False

    # --- texts ---

    def _texts(self, node: nodes.Node, chosen: bool) -> Iterator[str]:
        """What a test of contents decides about below a node: the texts of a choice in one, "\\n" for what varies.

        `chosen`: such a test decides about this node.
        """
        if chosen:
            yield "".join(self._written(node))
            return
        if isinstance(node, nodes.If):
            for body in (node.body, node.elif_, node.else_):
                yield from self._branches(body, self._tests(node.test))
        elif isinstance(node, nodes.CondExpr):
            for one in (node.expr1, node.expr2):
                yield from self._branches([one] if one else [], self._tests(node.test))
        elif isinstance(node, nodes.For):
            yield from self._branches([*node.body, *node.else_], self._tests(node.test))
        elif isinstance(node, nodes.And | nodes.Or):
            yield from self._texts(node.left, False)
            yield from self._branches([node.right], self._tests(node.left))
        elif isinstance(node, nodes.Mul):
            for one, other in ((node.left, node.right), (node.right, node.left)):
                yield from self._branches([one], self._tests(other))
        elif isinstance(node, nodes.Getitem | nodes.Call) and self._looks_up(node):
            subject = node.node if isinstance(node, nodes.Getitem) else getattr(node.node, "node", node.node)
            yield "".join(f"{text}\n" for text in sorted(self._known(subject)))
        elif not isinstance(node, nodes.Compare | nodes.Test):
            for child in node.iter_child_nodes():
                yield from self._texts(child, False)

    def _branches(self, parts: Iterable[nodes.Node], chosen: bool) -> Iterator[str]:
        parts = list(parts)
        if chosen:
            yield "".join(text for part in parts for text in (*self._written(part),))
        else:
            for part in parts:
                yield from self._texts(part, False)

    def _written(self, node: nodes.Node) -> Iterator[str]:
        """The texts that a node writes, and "\\n" for each value that it does not know."""
        if isinstance(node, nodes.TemplateData):
            yield node.data
        elif isinstance(node, nodes.Const):
            yield node.value if isinstance(node.value, str) else "\n"
        elif isinstance(node, nodes.Name):
            yield "\n".join(("", *sorted(self.constants.get(node.name, ())), ""))
        elif isinstance(node, nodes.List | nodes.Tuple | nodes.Dict):
            yield " ".join(_constants(node))
        elif isinstance(node, nodes.If):
            for body in (node.body, node.elif_, node.else_):
                yield from (text for part in body for text in self._written(part))
                yield "\n"
        elif isinstance(node, nodes.CondExpr):
            for one in (node.expr1, node.expr2):
                yield from self._written(one) if one else ()
                yield "\n"
        elif isinstance(node, nodes.Getitem):
            yield "\n".join(("", *sorted(self._known(node.node)), ""))
        elif isinstance(node, nodes.Call | nodes.Compare | nodes.Test | nodes.Getattr):
            yield "\n"
        elif isinstance(node, nodes.Assign | nodes.AssignBlock | nodes.For | nodes.Filter):
            yield "\n"
            inner = node.body if isinstance(node, nodes.AssignBlock | nodes.For) else [node.node]
            for part in inner:
                if part is not None:
                    yield from self._written(part)
            yield "\n"
        else:
            for child in node.iter_child_nodes():
                yield from self._written(child)

    def _looks_up(self, node: nodes.Getitem | nodes.Call) -> bool:
        """Whether an expression takes a value from constants by a text of a message, or by a test of one."""
        if isinstance(node, nodes.Getitem):
            chosen = self._is_content(node.arg) or self._tests(node.arg)
            return chosen and bool(self._known(node.node))
        return (
            isinstance(node.node, nodes.Getattr)
            and node.node.attr == "get"
            and bool(self._known(node.node.node))
            and any(self._is_content(argument) for argument in node.args)
        )

    def _replaced(self, name: str, subject: nodes.Node | None, given: list[nodes.Expr]) -> Iterator[str]:
        """The words that a filter or a method puts into contents. `subject`: None in {% filter replace(…) %}."""
        if name == "replace":
            given = given[1:]
        least = 1 if name == "replace" else 2
        if (
            name == "join"
            and isinstance(subject, nodes.Const)
            and any(self._is_content(one) for one in given)
        ):
            given, subject = [subject], None
        if name in ("default", "d") and subject is not None:
            counts = self._is_piece(subject) or self._tests(subject)
        else:
            counts = subject is None or self._is_content(subject)
        if name in _PUTTING and counts:
            known = {text for one in given for text in self._known(one)}
            yield from (text for text in sorted(known) if _has_words(text, least=least))


def _is_empty(value: object) -> bool:
    """Whether a comparison with this value only asks if there is a text."""
    return value is None or isinstance(value, bool) or value in ("", 0)


def _constants(node: nodes.Node) -> list[str]:
    found = [node] if isinstance(node, nodes.Const) else list(node.find_all(nodes.Const))
    return [one.value for one in found if isinstance(one.value, str)]


def _within(node: nodes.Node, kind: Any) -> Iterator[Any]:
    """The nodes of a kind below a node, and itself."""
    if isinstance(node, kind):
        yield node
    yield from node.find_all(kind)


def _assigned(node: nodes.Node) -> Iterator[str]:
    """The names that a node and the nodes in it set."""
    for one in (node, *node.find_all((nodes.Assign, nodes.AssignBlock))):
        if isinstance(one, nodes.Assign | nodes.AssignBlock):
            yield from _names(one.target)


def _names(target: nodes.Node) -> Iterator[str]:
    """The names that an assignment sets; `ns.x` for an attribute of a namespace."""
    if isinstance(target, nodes.Name):
        yield target.name
    elif isinstance(target, nodes.NSRef):
        yield f"{target.name}.{target.attr}"
    elif isinstance(target, nodes.Tuple):
        for item in target.items:
            yield from _names(item)


def _path(node: nodes.Name | nodes.Getattr) -> str:
    """The name of a variable, or `ns.x`."""
    if isinstance(node, nodes.Name):
        return node.name
    return f"{node.node.name}.{node.attr}" if isinstance(node.node, nodes.Name) else ""
