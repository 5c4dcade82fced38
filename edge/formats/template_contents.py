"""What a chat template does with the contents of messages: which names hold them, and which expressions test them.

It reads the parsed template and runs nothing. edge/formats/template_triggers.py uses it to find text that a template
writes only for certain contents.
"""

from collections.abc import Iterator
from typing import Any

from jinja2 import nodes

_CONTENTS = (
    "content",
    "text",
    "reasoning_content",
    "thinking",
    "reasoning",
    "arguments",
    "description",
    "title",
)
# What a message or a part of one is, not what it says.
_KINDS = ("role", "type", "name", "tool_calls", "tool_call_id", "function", "id")
_TESTING_METHODS = frozenset(
    "startswith endswith find rfind index rindex count isdigit isupper islower isalpha isalnum isascii isdecimal "
    "isnumeric isspace istitle isidentifier isprintable".split()
)
_COMPARING_TESTS = frozenset(
    "eq equalto == ne != gt greaterthan > ge >= lt lessthan < le <= in upper lower divisibleby odd even".split()
)
# Filters that keep messages as they are; all others make a text of them.
_AS_LISTS = frozenset(
    "list first last reverse sort selectattr rejectattr select reject slice batch unique default d length count "
    "map".split()
)
# Filters of a text that keep it whole: a test of the result asks only if there is a text.
_WHOLE = frozenset(
    "trim string list default d length count first last tojson lower upper title capitalize e escape safe indent items "
    "dictsort reverse".split()
)

_ROUNDS = 40  # of following names; honest templates need six


class Contents:
    """Which names and expressions of a template hold contents, and which test them.

    `messages`, `contents`: names that hold messages, or texts of them; `pieces`: those that hold what is made from a
    text. `choices`: names set by a test of a text. `constants`: names and the texts that they are set to. `aliases`:
    other names of macros.
    """

    def __init__(self, tree: nodes.Template) -> None:
        self.tree = tree
        self.messages: set[str] = {"messages", "documents"}
        self.contents: set[str] = set()
        self.choices: set[str] = set()
        self.pieces: set[str] = set()
        self.constants: dict[str, set[str]] = {}
        self.aliases: dict[str, str] = {}
        self.open: list[nodes.Macro | None] = []  # the macros that are being written
        self.macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
        self.decided: dict[str, bool] = {}  # whether a macro tests a text, in this round
        rounds = 0
        while self._spread() and rounds < _ROUNDS:
            rounds += 1

    def _spread(self) -> bool:
        """One round of following assignments, loops and macros. Returns whether a name was added."""
        before = self._size()
        self.decided.clear()
        for assign in self.tree.find_all(nodes.Assign):
            self._take(assign.target, assign.node)
        for block in self.tree.find_all(nodes.AssignBlock):
            for part in block.body:
                self._take_part(block.target, part)
            for name in _names(block.target):
                self.constants.setdefault(name, set()).update(_literals(block))
        for scope in self.tree.find_all(nodes.With):
            for target, value in zip(scope.targets, scope.values, strict=True):
                self._take(target, value)
        for loop in self.tree.find_all(nodes.For):
            self._take(loop.target, loop.iter, pieces=self.may_be_empty(loop.iter))
        for call in self.tree.find_all(nodes.Call):
            name = getattr(call.node, "name", "")
            macro = self.macros.get(self.aliases.get(name, name))
            if macro is not None:
                self._take_arguments(macro, call)
            elif isinstance(call.node, nodes.Getattr) and call.node.attr in ("append", "extend", "update"):
                for argument in call.args:
                    if isinstance(call.node.node, nodes.Name | nodes.Getattr):
                        self._take_into(call.node.node, argument)
        for choice in self.tree.find_all(nodes.If):
            if self.tests(choice.test):
                for part in (*choice.body, *choice.elif_, *choice.else_):
                    self.choices |= set(_assigned(part)) | set(_filled(part))
        return self._size() > before

    def _size(self) -> int:
        constants = sum(map(len, self.constants.values()))
        names = (self.messages, self.contents, self.choices, self.pieces, self.aliases)
        return sum(map(len, names)) + constants

    def _take(self, target: nodes.Node, value: nodes.Node, *, pieces: bool = True) -> None:
        names = set(_names(target))
        texts = self.known(value)
        if texts:
            for name in names:
                self.constants.setdefault(name, set()).update(texts)
        if self.tests(value, False):
            self.choices |= names
        elif self.is_content(value):
            self.contents |= names
            self.pieces |= names if pieces and self.is_made(value) else set()
        elif self.is_message(value):
            self.messages |= names
        elif isinstance(value, nodes.Name) and value.name in self.macros:
            self.aliases |= dict.fromkeys(names, value.name)

    def _take_into(self, target: nodes.Name | nodes.Getattr, value: nodes.Node) -> None:
        """What a list or a dictionary gets."""
        path = _path(target)
        self.constants.setdefault(path, set()).update(self.known(value))
        if self.tests(value, False):
            self.choices.add(path)
        elif self.is_content(value):
            self.contents.add(path)

    def _take_part(self, target: nodes.Node, part: nodes.Node) -> None:
        """A part of the block that a name is set to."""
        if any(self.tests(choice.test) for choice in within(part, (nodes.If, nodes.CondExpr))):
            self.choices |= set(_names(target))
        if any(self.is_content(one) for output in within(part, nodes.Output) for one in output.nodes):
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
        if any(self.is_content(value) for value in beyond):
            self.contents |= {"varargs", "kwargs"}

    def known(self, node: nodes.Node) -> set[str]:
        """The texts of a constant, or of a list or dictionary of constants; also those that its items are set to."""
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            return self.known(node.node.node) if node.node.attr in ("items", "values", "keys") else set()
        if isinstance(node, nodes.Call) and getattr(node.node, "name", None) in ("namespace", "dict"):
            return {text for word in node.kwargs for text in self.known(word.value)}
        if isinstance(node, nodes.Name):
            return self.constants.get(node.name, set())
        if isinstance(node, nodes.Filter | nodes.Getitem | nodes.Getattr):
            return (self.known(node.node) if node.node is not None else set()) | self.constants.get(
                _path(node) if isinstance(node, nodes.Getattr) else "", set()
            )
        return (
            set(constants(node))
            if isinstance(node, nodes.Const | nodes.List | nodes.Tuple | nodes.Dict)
            else set()
        )

    def is_message(self, node: nodes.Node | None) -> bool:
        """Whether an expression is a message or a list of them."""
        if isinstance(node, nodes.Name | nodes.Getattr):
            return _path(node) in self.messages
        if isinstance(node, nodes.Getitem):
            return self.is_message(node.node) and not isinstance(getattr(node.arg, "value", None), str)
        if isinstance(node, nodes.Or):
            return self.is_message(node.left) or self.is_message(node.right)
        return isinstance(node, nodes.Filter) and node.name in _AS_LISTS and self.is_message(node.node)

    def is_content(self, node: nodes.Node | None) -> bool:
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
            return node.attr not in _KINDS and self.is_content(node.node)
        if isinstance(node, nodes.Getitem):
            key = node.arg.value if isinstance(node.arg, nodes.Const) else None
            named = isinstance(node.arg, nodes.Name | nodes.Concat | nodes.Add)  # a key that is made up
            if named and self.is_message(node.node) and self._has_key(node.arg):
                return True
            return key in _CONTENTS or (key not in _KINDS and self.is_content(node.node))
        if isinstance(node, nodes.Filter):
            if node.name not in _AS_LISTS and (self.is_message(node.node) or _is_of_tools(node.node)):
                return True
            attributes = [
                str(getattr(word.value, "value", "")) for word in node.kwargs if word.key == "attribute"
            ]
            if node.name == "map" and any(one.partition(".")[0] in _CONTENTS for one in attributes):
                return True
            if node.name == "map" and node.args and self.is_message(node.node):
                return True
        if isinstance(node, nodes.Call):
            return self._is_call_of_content(node)
        if isinstance(node, nodes.CondExpr):
            return any(self.is_content(one) for one in (node.expr1, node.expr2))
        if isinstance(node, nodes.Concat | nodes.Add | nodes.Mod):  # a message in a text
            parts = list(node.iter_child_nodes())
            if any(self.is_message(one) for one in parts) and any(
                isinstance(one, nodes.Const) for one in parts
            ):
                return True
        return any(self.is_content(child) for child in node.iter_child_nodes())

    def _has_key(self, node: nodes.Node) -> bool:
        """Whether a key that is not written as a constant can be that of a text."""
        texts = self.known(node) or set(constants(node))
        return not texts or not texts.isdisjoint(_CONTENTS) or "".join(sorted(texts)) not in _KINDS

    def _is_call_of_content(self, node: nodes.Call) -> bool:
        if isinstance(node.node, nodes.Name) and node.node.name == "strftime_now":
            return True  # the date, too, can decide what a prompt says
        if not isinstance(node.node, nodes.Getattr):
            return any(self.is_content(argument) for argument in node.args)
        if node.node.attr == "get" and node.args and isinstance(node.args[0], nodes.Const):
            key = node.args[0].value
            return key in _CONTENTS or (key not in _KINDS and self.is_content(node.node.node))
        if node.node.attr in ("items", "values") and self.is_message(node.node.node):
            return True
        if node.node.attr in ("format", "changed", "join") and any(
            self.is_content(one) or self.is_message(one) for one in node.args
        ):
            return True
        return self.is_content(node.node.node)

    def tests(self, node: nodes.Node | None, truth: bool = True) -> bool:
        """Whether an expression asks what a text says: not only whether there is one, or of which kind it is.

        `truth`: the expression itself is asked for. Then what is made from a text, such as a piece of it, asks too.
        """
        if node is None or self._is_plain(node):
            return False
        if isinstance(node, nodes.Name | nodes.Getattr) and _path(node) in self.choices:
            return True
        if isinstance(node, nodes.Compare):
            sides = (node.expr, *(operand.expr for operand in node.ops))
            inner = any(self.tests(one, False) for one in sides)
            return inner or self._compares(node) or self._compares_name(node)
        if isinstance(node, nodes.Test):
            if node.name in _COMPARING_TESTS:
                return self.is_content(node.node) or self.tests(node.node, False)
            return self.is_piece(node.node) if node.name in ("defined", "undefined") else False
        if isinstance(node, nodes.Not):
            return self.tests(node.node)
        if isinstance(node, nodes.And | nodes.Or):
            return self.tests(node.left) or self.tests(node.right, truth)
        if isinstance(node, nodes.CondExpr):
            parts = (node.expr1, node.expr2)
            return self.tests(node.test) or any(self.tests(one, truth) for one in parts)
        if self._asks(node) or (truth and self.is_made(node)):
            return True
        return any(self.tests(child, False) for child in node.iter_child_nodes())

    def _asks(self, node: nodes.Node) -> bool:
        """Whether a call or a filter tests a text."""
        if (
            isinstance(node, nodes.Filter)
            and node.name in ("selectattr", "rejectattr")
            and len(node.args) > 1
        ):
            return str(getattr(node.args[0], "value", None)).partition(".")[0] in _CONTENTS
        if isinstance(node, nodes.Getitem):
            return self.is_content(node.arg)
        if not isinstance(node, nodes.Call):
            return False
        method = node.node
        if isinstance(method, nodes.Getattr):
            asks = method.attr in _TESTING_METHODS and self.is_content(method.node)
            return asks or (method.attr in ("changed", "get") and any(map(self.is_content, node.args)))
        return isinstance(method, nodes.Name) and self._decides(node)

    def _decides(self, call: nodes.Call) -> bool:
        """Whether a macro that is called tests a text."""
        name = self.aliases.get(call.node.name, call.node.name) if isinstance(call.node, nodes.Name) else ""
        if name not in self.macros:
            return False
        if name not in self.decided:
            self.decided[name] = False  # what it says of itself is not a test
            tests = within(self.macros[name], (nodes.If, nodes.CondExpr))
            self.decided[name] = any(self.tests(choice.test) for choice in tests)
        return self.decided[name]

    def _is_plain(self, node: nodes.Node | None) -> bool:
        """Whether an expression is a whole text of a message or its length: a test of it asks only if there is one."""
        if isinstance(node, nodes.Name):
            return node.name not in self.pieces and node.name not in self.choices
        if isinstance(node, nodes.Getattr):
            return (
                _path(node) not in self.choices
                and _path(node) not in self.pieces
                and self._is_plain(node.node)
            )
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and self._is_plain(node.node)
        if isinstance(node, nodes.Filter):
            bare = not node.args or node.name in ("default", "d", "tojson", "indent")
            return node.name in _WHOLE and bare and self._is_plain(node.node)
        if isinstance(
            node, nodes.Concat | nodes.Add | nodes.List | nodes.CondExpr
        ):  # there is one if there is a part
            parts = [part for part in node.iter_child_nodes() if part is not getattr(node, "test", None)]
            return any(map(self.is_content, parts)) and all(
                self._is_plain(part) or not self.is_content(part) for part in parts
            )
        if isinstance(node, nodes.Call) and getattr(node.node, "name", None) in self.macros:
            plain = all(self._is_plain(one) or not self.is_content(one) for one in node.args)
            return plain and not self._decides(node)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            plain = node.node.attr in ("strip", "lstrip", "rstrip", "items") and not node.args
            key = node.node.attr == "get" and bool(node.args) and isinstance(node.args[0], nodes.Const)
            return (plain or key) and self._is_plain(node.node.node)
        return False

    def is_made(self, node: nodes.Node | None) -> bool:
        """Whether an expression is made from a text: a piece, a count, a number in it."""
        return self.is_content(node) and not self._is_plain(node) and not isinstance(node, nodes.CondExpr)

    def _compares_name(self, node: nodes.Compare) -> bool:
        """Whether it asks for the name of who wrote a message."""
        sides = (node.expr, *(operand.expr for operand in node.ops))
        names = [one for one in sides if isinstance(one, nodes.Getattr | nodes.Getitem)]
        keys = [
            one.attr if isinstance(one, nodes.Getattr) else getattr(one.arg, "value", None) for one in names
        ]
        named = any(
            key in ("name", "tool_call_id") and (self.is_message(one.node) or _is_called(one.node))
            for one, key in zip(names, keys, strict=True)
        )
        return named and any(
            text for one in sides if not isinstance(one, nodes.Getitem) for text in constants(one)
        )

    def is_piece(self, node: nodes.Node) -> bool:
        """Whether an expression is a part that a text has only if it says something certain."""
        cuts = [
            one for one in within(node, nodes.Call) if getattr(one.node, "attr", None) in ("split", "rsplit")
        ]
        if not isinstance(node, nodes.Getitem):
            return False
        named = isinstance(node.node, nodes.Name) and node.node.name in self.pieces
        return named or any(self.is_content(one) for one in cuts)

    def _compares(self, node: nodes.Compare) -> bool:
        left = node.expr
        for operand in node.ops:
            right = operand.expr
            if operand.op in ("in", "notin"):
                key = left.value if isinstance(left, nodes.Const) else None
                if self.is_content(left) or (self.is_content(right) and key not in (*_CONTENTS, *_KINDS)):
                    return True
            elif self.is_content(left) or self.is_content(right):
                other = right if self.is_content(left) else left
                text = left if other is right else right
                plain = self._is_plain(text) or not isinstance(text, nodes.Sub | nodes.Mod | nodes.FloorDiv)
                if not (plain and isinstance(other, nodes.Const) and _is_empty(other.value)):
                    return True
            left = right
        return False

    def may_be_empty(self, items: nodes.Node) -> bool:
        """Whether a text decides if a loop has items: `split` always gives one."""
        if isinstance(items, nodes.Filter) and items.node is not None and items.name in ("list", "reverse"):
            return self.may_be_empty(items.node)
        whole = isinstance(items, nodes.Call) and getattr(items.node, "attr", None) in ("split", "splitlines")
        return not isinstance(items, nodes.Name | nodes.Getattr) and not whole and self.is_made(items)


def _is_empty(value: object) -> bool:
    """Whether a comparison with this value only asks if there is a text."""
    return value is None or isinstance(value, bool) or value in ("", 0)


def constants(node: nodes.Node) -> list[str]:
    """The texts that are constants in a node or below it."""
    found = [node] if isinstance(node, nodes.Const) else list(node.find_all(nodes.Const))
    return [one.value for one in found if isinstance(one.value, str)]


def within(node: nodes.Node, kind: Any) -> Iterator[Any]:
    """The nodes of a kind below a node, and itself."""
    if isinstance(node, kind):
        yield node
    yield from node.find_all(kind)


def _is_called(node: nodes.Node) -> bool:
    """Whether an expression is the function of a call."""
    return (
        getattr(node, "attr", None) == "function"
        or getattr(getattr(node, "arg", None), "value", None) == "function"
    )


def _is_of_tools(node: nodes.Node | None) -> bool:
    """Whether an expression is the list of tools, or that of calls."""
    key = getattr(node, "name", None) or getattr(node, "attr", None)
    return key == "tools" or "tool_calls" in (key, getattr(getattr(node, "arg", None), "value", None))


def _literals(block: nodes.AssignBlock) -> set[str]:
    """The texts in a block."""
    return {data.data for data in block.find_all(nodes.TemplateData) if data.data.strip()}


def _filled(node: nodes.Node) -> Iterator[str]:
    """The lists and dictionaries that a node changes with a method."""
    for call in within(node, nodes.Call):
        method = call.node
        fills = isinstance(method, nodes.Getattr) and method.attr in ("append", "extend", "insert", "update")
        if fills and isinstance(method.node, nodes.Name | nodes.Getattr):
            yield _path(method.node)


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
