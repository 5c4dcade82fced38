"""Renders a chat template as transformers does, with limits on work and text.

A chat template is a Jinja program from an untrusted checkpoint. jinja2's sandbox hides Python's internals from it. This
module also counts its work, so that it can neither loop forever nor fill the memory: it measures a long text before the
template makes it. Counting never changes the output.

The settings are those of transformers' `utils/chat_template_utils.py` (5.x). tests/formats/test_chat_template.py
compares both outputs byte for byte.
"""

import functools
import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from datetime import datetime
from itertools import chain
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

MAX_WORK = 2_000_000  # a few seconds, and many times the work of real templates; see _spend
MAX_SIZE = 1 << 25  # bytes of one value, or of the prompt
MAX_WIDTH = 10**6  # a number that may be a width
MAX_BITS = 1 << 16  # bits of a product or power

_work_left: ContextVar[int] = ContextVar("work_left", default=MAX_WORK)


class TooMuchWork(Exception):
    """The template loops too often or makes too much text."""


def _spend(value: Any = None, rounds: int = 1) -> Any:
    # A round of a loop costs 1, and 128 bytes cost 1: the work left also limits the memory in use.
    size = 0
    if isinstance(value, str):
        size = len(value) * (1 if value.isascii() else 4)
    elif isinstance(value, bytes | list | tuple):
        size = len(value) * (1 if isinstance(value, bytes) else 8)
    left = _work_left.get() - rounds - size // 128
    if left < 0 or size > MAX_SIZE:
        raise TooMuchWork("it loops too often or makes too much text")
    _work_left.set(left)
    return value


def _limit(size: int) -> None:
    """Raise TooMuchWork for a value of more than MAX_SIZE characters, before the template makes it."""
    if size > MAX_SIZE:
        raise TooMuchWork("it makes too much text")


_TEXTS = (str, bytes)
_SIMPLE = (*_TEXTS, int, float, type(None))
_CONTAINERS = (list, tuple, set, Mapping, KeysView, ValuesView, ItemsView)


def _measure(value: Any) -> tuple[int, int]:
    """An upper estimate of a value's characters as text, and how many values are in it. Raises TooMuchWork.

    A list can hold the same text many times; as text it is then much longer than in memory.
    """
    size, count, stack = 0, 0, [iter((value,))]
    while stack:
        for item in stack[-1]:
            count += 1
            size += 8 + (len(item) if isinstance(item, _TEXTS) else 0)
            if size > MAX_SIZE:
                _limit(size)
            if isinstance(item, _SIMPLE):
                continue
            if isinstance(item, Namespace):
                item = object.__getattribute__(item, "_Namespace__attrs")
            if isinstance(item, _CONTAINERS):
                items = item.items() if isinstance(item, Mapping) else item
                pairs = isinstance(items, ItemsView)
                stack.append(chain.from_iterable(items) if pairs else iter(items))
                break
        else:
            stack.pop()
    return size, count


def _measured(value: Any) -> Any:
    """The value, if its text is not too long. For values that are about to become text."""
    if not isinstance(value, str):
        _measure(value)
    return value


def _limit_replace(text: Any, old: Any, new: Any, count: Any = -1) -> None:
    text, old, new = (item if isinstance(item, bytes) else str(_measured(item)) for item in (text, old, new))
    times = text.count(old)
    times = min(times, count) if isinstance(count, int) and count >= 0 else times
    _limit(len(text) + times * len(new))


def _limit_join(items: Any, separator: Any) -> None:
    size, count = _measure(items)
    count = len(items) if isinstance(items, str | bytes) else count
    _limit(size + count * len(separator if isinstance(separator, bytes) else str(_measured(separator))))


def _limit_format(text: Any, values: Sequence[Any], each_once: bool = False) -> None:
    """For `%` and str.format. `each_once`: the text contains no value twice."""
    text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
    if _WIDE.search(text):
        raise TooMuchWork("it asks for a width of six digits or more")
    fields = text.count("{") + text.count("%")
    width = max(map(int, re.findall(r"\d{1,5}", text)), default=0) if fields else 0
    if "*" in text or re.search(r":[^{}]*\{", text):
        _check_widths(values)
        width = max([width, *(abs(int(value)) for value in values if isinstance(value, int | float))])
    sizes = [_measure(value)[0] for value in values]
    _limit(len(text) + fields * width + (sum(sizes) if each_once else fields * max(sizes, default=0)))


def _limit_percent(text: Any, values: Any) -> None:
    if isinstance(values, Mapping):
        _limit_format(text, list(values.values()))
    else:
        _limit_format(text, values if isinstance(values, tuple) else (values,), each_once=True)


_TEXT_FILTERS = (
    *("string", "escape", "e", "forceescape", "safe"),
    *("urlencode", "xmlattr", "upper", "lower", "title"),
)


def _limit_filter(name: str, value: Any, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Raise TooMuchWork if a filter would make too long a text. Other filters make about as much as they get."""
    given = [*args, *named.values()]
    if name == "replace":
        _limit_replace(value, *(given[:2] if len(given) > 1 else ("", "")))
    elif name == "join":
        _limit_join(value, named.get("d", args[0] if args else ""))
    elif name == "format":
        _limit_percent(value, named or tuple(args))
    elif name == "sum":  # with lists, each step copies the whole list
        size, count = _measure(value)
        numbers = isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value)
        _limit(0 if numbers else size * count)
    elif name in ("indent", "wordwrap", "urlize", "tojson", "pprint"):
        size, count = _measure(value)
        if isinstance(value, str):  # its lines, words or links get longer
            count = 1 + (
                value.count("\n") if name == "indent" else len(value) // (1 if len(given) > 2 else 4)
            )
        widths = [] if name == "wordwrap" else [item for item in given if isinstance(item, int)]
        wide = sum(widths) + sum(_measure(item)[0] for item in given if not isinstance(item, int))
        # Each level of a nested value has one more indentation.
        _limit(size + count * wide * (_depth(value) if name == "tojson" else 1))
    elif name in _TEXT_FILTERS:
        _measured(value)


def _depth(value: Any) -> int:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return 1 + max(map(_depth, items), default=0)


_LIMITS_OF_METHODS: dict[str, Callable[..., None]] = {
    "replace": _limit_replace,
    "join": lambda separator, items: _limit_join(items, separator),
    "expandtabs": lambda text, tabsize=8: _limit(len(text) * max(tabsize, 1)),
    "translate": lambda text, table: _limit(len(text) * max(map(_size, _values(table)), default=0)),
}


def _values(table: Any) -> Iterable[Any]:
    return table.values() if isinstance(table, Mapping) else table


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else 1


def _check_widths(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int | float) and abs(value) > MAX_WIDTH:
            raise TooMuchWork(f"it asks for a width of {value:g}")


# A width of six digits in "%…d" or "{:…}".
_WIDE = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*\d{6}|\d{6}[^{}]*\}")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend()
        yield item


def _limited_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    before = 1 + hasattr(filter_, "jinja_pass_arg")  # the filtered value itself may be any number

    @functools.wraps(filter_)  # this also copies the mark with which jinja2 passes the context
    def limited(*args: Any, **kwargs: Any) -> Any:
        if name not in ("default", "d"):
            _check_widths((*args[before:], *kwargs.values()))
        if name in ("join", "sum") and len(args) >= before and isinstance(args[before - 1], Iterator):
            args = (*args[: before - 1], list(_counted(args[before - 1])), *args[before:])
        if len(args) >= before:
            _limit_filter(name, args[before - 1], args[before:], kwargs)
        return _spend(filter_(*args, **kwargs))

    return limited


class _Counting(NodeTransformer):
    """Adds the count to each loop and each joined text of a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            nodes.Filter(item, "_measured", [], [], None, None, lineno=node.lineno) for item in node.nodes
        ]
        return nodes.Filter(node, "_spent", [], [], None, None, lineno=node.lineno)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        if node.filter is None:  # the value of a filter is counted already
            node.filter = nodes.Filter(None, "_spent", [], [], None, None, lineno=node.lineno)
        return node


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks text of the assistant. It writes its body unchanged."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Macro) -> Any:
        return caller()


class _Namespace(Namespace):
    """jinja2's namespace(), which refuses names that begin with an underscore."""

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
    """`dict` for templates, without the other attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    _limit(len(format) * 64)  # no field makes more characters
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which is wrong for prompts.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            finalize=lambda value: _spend(_measured(value), rounds=0),  # called for each written value
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _limited_filter(name, filter_) for name, filter_ in self.filters.items()}
        self.filters |= {"_counted": _counted, "_spent": _spend, "_measured": _measured}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]  # makes random text of any length

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        of = getattr(__obj, "__self__", None)
        if isinstance(of, str | bytes | int | float) or isinstance(__obj, FunctionType):
            _check_widths((*args, *kwargs.values()))
        if isinstance(of, str | bytes) and __obj.__name__ in _LIMITS_OF_METHODS:
            # jinja2 adds its own _loop_vars and _block_vars.
            named = {name: value for name, value in kwargs.items() if not name.startswith("_")}
            _LIMITS_OF_METHODS[__obj.__name__](of, *args, **named)
        _spend(rounds=3)
        return _spend(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            # Bits of the result: the sum of both for a product, about bits times exponent for a power.
            bits = left.bit_length() + right.bit_length() if operator == "*" else 0
            bits = left.bit_length() * right if operator == "**" else bits
            if bits > MAX_BITS:
                raise TooMuchWork("its numbers grow without end")
        elif operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(items, str | bytes | list | tuple) and isinstance(times, int):
                    _limit(len(items) * times * (8 if isinstance(items, list | tuple) else 1))
        elif operator == "%" and isinstance(left, str | bytes):
            _limit_percent(left, right)
        return _spend(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = str(value.__self__)

        @functools.wraps(wrapped)
        def limited(*args: Any, **kwargs: Any) -> str:
            _limit_format(text, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return limited


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    sandbox = _Sandbox()
    tree = _Counting().visit(sandbox.parse(template))
    return jinja2.Template.from_code(sandbox, sandbox.compile(tree), sandbox.make_globals(None))


# Attributes with which a template could reach Python's internals, also as an argument of `attr` and `map`.
_INSIDES = re.compile(
    r"(?:\w+\.)*__(?:class|bases?|mro|subclasses|globals|builtins|import|init|new|dict|code|func|self|module|"
    r"getattribute|getattr|reduce|reduce_ex|call|closure|loader)__(?:\.\w+)*"
)
_SAMPLES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "ls"}],
    [
        {"role": "system", "content": "Return JSON only."},
        {"role": "user", "content": "ls"},
        {"role": "assistant", "content": "<think>\nx\n</think>\n{}"},
        {"role": "user", "content": "a.py"},
    ],
)


def find_hostile(template: str, tokens: Mapping[str, str]) -> str | None:
    """What a template does that no honest template does, as a clause; None if it finds nothing.

    It finds access to Python's internals anywhere in the template, and endless loops and growth only as far as a short
    conversation shows them. `tokens`: the special tokens by name, such as `bos_token`.
    """
    try:
        for node in _Sandbox().parse(template).find_all((nodes.Getattr, nodes.Const)):
            name = node.attr if isinstance(node, nodes.Getattr) else getattr(node, "value", None)
            if isinstance(name, str) and _INSIDES.fullmatch(name):
                return f"it accesses {name}"
    except Exception:  # it cannot be parsed: `render` reports why
        return None
    for messages in _SAMPLES:
        variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            render(template, {**variables, **tokens})
        except TooMuchWork as error:
            return str(error)
        except RecursionError:
            return "it calls itself without end"
        except jinja2.exceptions.SecurityError as error:
            if "'_" in str(error):  # else it tries to change a message, which transformers refuses too
                return " ".join(str(error).split())
        except Exception:  # many templates need another kind of conversation
            continue
    return None


def parsed(template: str) -> nodes.Template:
    """The template as jinja2's nodes, to look at and not to run. Raises what jinja2 raises."""
    return _Sandbox().parse(template)


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text of a template for these variables, which must be plain JSON values.

    Raises TooMuchWork, and whatever the template raises: jinja2's errors, TypeError and others.
    """
    token = _work_left.set(MAX_WORK)
    try:
        parts, size = [], 0
        for part in _compiled(template).generate(**variables):
            parts.append(part)
            size += len(_spend(part))
            _limit(size)
        return "".join(parts)
    finally:
        _work_left.reset(token)
