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
from edge.formats.template_contents import Contents, constants, within

# Filters and methods whose arguments are in the result, but not in each result.
_PUTTING = frozenset("replace join truncate indent wordwrap center default d translate".split())
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
_APART = re.compile(r"(?:\b\w[\s_.-]+){6}\w\b")  # a word whose letters stand apart
_LETTERS = re.compile(r"(?:%c|\{[^{}]*:c\}){4}")  # letters from their numbers
_DEEPEST = 20  # macros in macros
_MOST_CALLS = 500  # of macros that are followed


def conditional_texts(template: str, shown: str = "") -> list[str]:
    """The lines that depend on what a message says, in the order of the template. [] if it cannot be parsed.

    `shown`: what the template writes for ordinary conversations. A line in it is not hidden.
    Raises RecursionError if the template is nested too deep.
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
    if _ADDRESS.search(text) or _SENTENCE.search(text) or _LETTERS.search(text):
        return True
    for line in _MARKUP.sub("\n", text).splitlines():
        if any(len(part) > _LONG or len(_WORD.findall(part)) >= _JOINED for part in line.split()):
            return True
        if _APART.search(line):
            return True
        parts = [found[0] for part in line.split() if (found := _WORD.search(part))]
        words = [word for word in parts if word.lower() not in _ROLES]
        if len(words) >= least or any(len(word) >= 4 and not word.isascii() for word in words):
            return True
    return False


def _given(node: Any) -> list[nodes.Node]:
    """The arguments of a call or a filter."""
    return [*node.args, *(word.value for word in node.kwargs)]


class _Search(Contents):
    """The texts that depend on contents. `called`: how many calls were followed."""

    called = 0

    def found(self) -> Iterator[str]:
        """Each line of words that a test of contents decides about, or that a replacement puts into them."""
        for part in self._texts(self.tree, False):
            yield from (line for line in part.split("\n") if _has_words(line))
        for one in self.tree.find_all(nodes.Filter):
            name, given = one.name, [*one.args, *(word.value for word in one.kwargs if word.key != "old")]
            if name == "map" and one.args:  # a filter for each item
                name, given = str(getattr(one.args[0], "value", "")), given[1:]
            elif name == "replace" and any(word.key == "old" for word in one.kwargs):
                given = [nodes.Const(""), *given]
            yield from self._replaced(name, one.node, given)
        for call in self.tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Getattr):
                yield from self._replaced(call.node.attr, call.node.node, call.args)

    def _texts(self, node: nodes.Node, chosen: bool) -> Iterator[str]:
        """What a test of contents decides about below a node: the texts of a choice in one, "\\n" for what varies.

        `chosen`: such a test decides about this node.
        """
        if chosen:
            yield "".join(self._written(node))
            return
        if isinstance(node, nodes.If):
            for body in (node.body, node.elif_, node.else_):
                yield from self._branches(body, self.tests(node.test))
        elif isinstance(node, nodes.CondExpr):
            for one in (node.expr1, node.expr2):
                yield from self._branches([one] if one else [], self.tests(node.test))
        elif isinstance(node, nodes.For):
            chosen = self.tests(node.test) or self.may_be_empty(node.iter)
            yield from self._branches([*node.body, *node.else_], chosen)
            yield from self._in_loop(node)
        elif isinstance(node, nodes.CallBlock):
            yield from self._branches(node.body, self.tests(node.call))
        elif isinstance(node, nodes.FilterBlock):
            yield from self._branches(node.body, any(map(self.is_content, _given(node.filter))))
        elif isinstance(node, nodes.Filter) and node.node is not None and not self.is_content(node.node):
            yield from self._branches([node.node], any(map(self.is_content, _given(node))))
        elif (
            isinstance(node, nodes.Filter)
            and node.name in ("sort", "min", "max")
            and self.is_content(node.node)
        ):
            yield " ".join(constants(node))  # which item comes first
        elif isinstance(node, nodes.Mod) and self.is_made(node.right):
            yield " ".join(constants(node.right))
        elif isinstance(node, nodes.And | nodes.Or):
            yield from self._texts(node.left, False)
            yield from self._branches([node.right], self.tests(node.left))
        elif isinstance(node, nodes.Mul):
            for one, other in ((node.left, node.right), (node.right, node.left)):
                yield from self._branches([one], self.tests(other))
        elif getattr(getattr(node, "node", None), "attr", None) == "format" and any(
            map(self.is_made, _given(node))
        ):
            yield " ".join(constants(node))
        elif isinstance(node, nodes.Getitem | nodes.Call) and self._looks_up(node):
            subject = node.node if isinstance(node, nodes.Getitem) else getattr(node.node, "node", node.node)
            yield "".join(f"{text}\n" for text in sorted(self.known(subject)))
        elif not isinstance(node, nodes.Compare | nodes.Test):
            for child in node.iter_child_nodes():
                yield from self._texts(child, False)

    def _in_loop(self, loop: nodes.For) -> Iterator[str]:
        """The rest of a loop's body after a test that leaves it, and what the number of a text's pieces decides."""
        for at, part in enumerate(loop.body):
            leaves = isinstance(part, nodes.If) and any(within(part, (nodes.Continue, nodes.Break)))
            if leaves and isinstance(part, nodes.If) and self.tests(part.test):
                yield from self._branches(loop.body[at + 1 :], True)
        for choice in within(loop, nodes.If) if self.is_made(loop.iter) else ():
            if any(name.name == "loop" for name in within(choice.test, nodes.Name)):
                yield from self._branches([*choice.body, *choice.else_], True)

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
        elif isinstance(node, nodes.Assign) and self.open and isinstance(node.node, nodes.List | nodes.Dict):
            yield "\n"  # a macro's own table; what it writes of it has a name
        elif isinstance(node, nodes.List | nodes.Tuple | nodes.Dict):
            yield " ".join(constants(node))
        elif isinstance(node, nodes.If):
            for body in (node.body, node.elif_, node.else_):
                yield from (text for part in body for text in self._written(part))
                yield "\n"
        elif isinstance(node, nodes.CondExpr):
            for one in (node.expr1, node.expr2):
                yield from self._written(one) if one else ()
                yield "\n"
        elif isinstance(node, nodes.Getitem | nodes.Getattr):
            yield "\n".join(("", *sorted(self.known(node)), ""))
        elif isinstance(node, nodes.Call):
            yield "\n"
            yield from self._called(node)
            yield "\n"
        elif isinstance(node, nodes.Compare | nodes.Test):
            yield "\n"
        elif isinstance(node, nodes.Assign | nodes.AssignBlock | nodes.For | nodes.Filter):
            yield "\n"
            if isinstance(node, nodes.For | nodes.Filter):
                items = node.iter if isinstance(node, nodes.For) else node.node
                if isinstance(items, nodes.List | nodes.Tuple):  # words or letters, one after another
                    yield f"{' '.join(constants(items))}\n{''.join(constants(items))}\n"
            inner = node.body if isinstance(node, nodes.AssignBlock | nodes.For) else [node.node]
            for part in inner:
                if part is not None:
                    yield from self._written(part)
            yield "\n"
        else:
            for child in node.iter_child_nodes():
                yield from self._written(child)

    def _called(self, node: nodes.Call) -> Iterator[str]:
        """What a macro writes that is called, or a block; and the texts that a text is formatted with."""
        name = getattr(node.node, "name", "")
        macro = self.macros.get(self.aliases.get(name, name))
        inner: list[nodes.Node] = []
        if macro is not None and macro not in self.open:
            inner = [*macro.defaults, *_given(node), *macro.body]
        elif isinstance(node.node, nodes.Getattr) and node.node.attr == "format":
            inner = [node.node.node, *_given(node)]
        elif isinstance(node.node, nodes.Getattr) and getattr(node.node.node, "name", None) == "self":
            inner = [one for one in self.tree.find_all(nodes.Block) if one.name == node.node.attr]
            inner = [part for block in inner if isinstance(block, nodes.Block) for part in block.body]
        self.called += 1
        if len(self.open) > _DEEPEST or self.called > _MOST_CALLS:
            return
        self.open.append(macro)
        for part in inner:
            yield from self._written(part)
        self.open.pop()

    def _looks_up(self, node: nodes.Getitem | nodes.Call) -> bool:
        """Whether an expression takes a value from constants by a text of a message, or by a test of one."""
        if isinstance(node, nodes.Getitem):
            chosen = self.is_content(node.arg) or self.tests(node.arg)
            return chosen and bool(self.known(node.node))
        return (
            isinstance(node.node, nodes.Getattr)
            and node.node.attr == "get"
            and bool(self.known(node.node.node))
            and any(self.is_content(argument) for argument in node.args)
        )

    def _replaced(self, name: str, subject: nodes.Node | None, given: list[nodes.Expr]) -> Iterator[str]:
        """The words that a filter or a method puts into contents. `subject`: None in {% filter replace(…) %}."""
        if name == "replace":
            given = given[1:]
        least = 1 if name == "replace" else 2
        if name == "join" and isinstance(subject, nodes.Const) and any(self.is_content(one) for one in given):
            given, subject = [subject], None
        if name in ("default", "d") and subject is not None:
            counts = self.is_piece(subject) or self.tests(subject)
        else:
            counts = subject is None or self.is_content(subject)
        if name in _PUTTING and counts:
            known = {text for one in given for text in self.known(one)}
            yield from (text for text in sorted(known) if _has_words(text, least=least))
