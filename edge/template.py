"""A chat template, rendered as transformers renders it, within limits of work and text.

Chat templates are Jinja programs that come with a checkpoint from anywhere. jinja2's sandbox keeps them
from Python's insides; the work counted here keeps them from looping for ever or building endless text by the
ways that are cheap to watch. Counting never changes what a template writes.

Source of the settings: transformers' `utils/chat_template_utils.py` (5.x), with whose output
tests/test_templates.py compares this one byte for byte.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from types import FunctionType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_WORK = 2_000_000  # a few seconds, and many times what real templates take; see _spend
MAX_TEXT = 1 << 25  # characters or items in one value, or of the prompt
MAX_WIDTH = 10**6  # a number where it may be a width
MAX_BITS = 1 << 16  # of a product or power

_work_left: ContextVar[int] = ContextVar("work_left", default=MAX_WORK)


class TooMuchWork(Exception):
    """The template loops or grows without end."""


def _spend(value: Any = None, rounds: int = 1) -> Any:
    # A round of a loop costs 1, as do 256 characters, since the work left also bounds the memory in use.
    size = len(value) if isinstance(value, str | bytes | list | tuple) else 0
    left = _work_left.get() - rounds - size // 256
    if left < 0 or size > MAX_TEXT:
        raise TooMuchWork("it loops too often or makes too much text")
    _work_left.set(left)
    return value


def _check_widths(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int | float) and abs(value) > MAX_WIDTH:
            raise TooMuchWork(f"it asks for a width of {value:g}")


# A width of six digits within "%…d" or "{:…}".
_WIDE = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*\d{6}|\d{6}[^{}]*\}")


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise TooMuchWork("it asks for a width of six digits or more")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend()
        yield item


def _limited_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    before = 1 + hasattr(filter_, "jinja_pass_arg")  # the filtered value itself may be any number

    @functools.wraps(filter_)  # also carries over the mark that asks jinja2 for the context
    def limited(*args: Any, **kwargs: Any) -> Any:
        if name not in ("default", "d"):
            _check_widths((*args[before:], *kwargs.values()))
        if name == "format":
            _check_format(str(args[0]))
        return _spend(filter_(*args, **kwargs))

    return limited


class _Counting(NodeTransformer):
    """Puts the count into each loop and each joined text of a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, "_spent", [], [], None, None, lineno=node.lineno)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        if node.filter is None:  # a filter's own value is counted anyway
            node.filter = nodes.Filter(None, "_spent", [], [], None, None, lineno=node.lineno)
        return node


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant wrote; it writes its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Macro) -> Any:
        return caller()


class _Namespace(Namespace):
    """jinja2's namespace(), without names that begin with an underscore."""

    def __init__(
        *args: Any, **kwargs: Any
    ) -> None:  # no named parameter, so that `namespace(self=...)` works
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold the name {name!r}")


class _Dict:
    """`dict` for templates, without the class's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML; prompts must not.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.filters["tojson"] = _tojson
        self.filters = {name: _limited_filter(name, filter_) for name, filter_ in self.filters.items()}
        self.filters |= {"_counted": _counted, "_spent": _spend}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]  # random text, as much as asked for

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(__obj, "__self__", None), str) or isinstance(__obj, FunctionType):
            _check_widths((*args, *kwargs.values()))
        _spend(rounds=3)
        return _spend(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            # Bits of the result: their sum for a product, about the first times the second for a power.
            bits = left.bit_length() + right.bit_length() if operator == "*" else 0
            bits = left.bit_length() * right if operator == "**" else bits
            if bits > MAX_BITS:
                raise TooMuchWork("its numbers grow without end")
        elif operator == "*":
            for items, times in ((left, right), (right, left)):
                if (
                    isinstance(items, str | list | tuple)
                    and isinstance(times, int)
                    and len(items) * times > MAX_TEXT
                ):
                    raise TooMuchWork("it makes too much text")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            if "*" in left:
                _check_widths(right if isinstance(right, tuple) else (right,))
        return _spend(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(str(value.__self__))
        return wrapped


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    sandbox = _Sandbox()
    tree = _Counting().visit(sandbox.parse(template))
    return jinja2.Template.from_code(sandbox, sandbox.compile(tree), sandbox.make_globals(None))


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text of a template for these variables, which must be plain JSON-like values.

    Raises whatever the template raises: jinja2's errors, TypeError and the like, and TooMuchWork.
    """
    token = _work_left.set(MAX_WORK)
    try:
        parts, size = [], 0
        for part in _compiled(template).generate(**variables):
            parts.append(part)
            size += len(_spend(part))
            if size > MAX_TEXT:
                raise TooMuchWork("it makes too much text")
        return "".join(parts)
    finally:
        _work_left.reset(token)
