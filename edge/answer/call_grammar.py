"""The grammar of calls of tools in a model's own form, for llguidance: what its chat template writes, and nothing else.

A value has one text: that of Python's json.dumps, or what the form has for it. So a call that comes back in the next
request is written as the same text.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from edge.answer.call_formats import GEMMA_QUOTE, ID, ID_LENGTH, XML_END, CallFormat, Style, plain, write
from edge.answer.call_schema import (
    Schema,
    Shape,
    Tool,
    alternatives,
    choices,
    kinds_of,
    resolve,
    shape,
    standalone,
    unknown_names,
)
from edge.answer.client_schema import check_controls, patterns_apart
from edge.answer.number_grammar import NUMBER, integer, number
from edge.answer.pattern import FORMAT_TEXTS, whole_expressions
from edge.errors import GrammarError

Mark = Callable[[str], Sequence[str | int]]
"""Splits a text at the names of special tokens: texts and token ids."""

_CHARACTER = r'([^"\\\x00-\x1f]|\\["\\nrtbf])'
# What Python's repr writes for texts: in double quotes only with ' and without ", with \\' only where both occur.
_SHOWN = r"[ \p{L}\p{M}\p{N}\p{P}\p{S}&&[^'\x22\\]]|\\[\\nrt]"
_REPR = (
    rf"'({_SHOWN}|\x22)*'",
    rf"\x22({_SHOWN})*'({_SHOWN}|')*\x22",
    rf"'({_SHOWN}|\x22|\\')*(\x22({_SHOWN}|\x22|\\')*\\'|\\'({_SHOWN}|\x22|\\')*\x22)({_SHOWN}|\x22|\\')*'",
)
_GUIDANCE = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "json_allowed_escapes": 'nrtbf"\\',
}
_WORDS: dict[Style, tuple[str, str, str]] = {
    "json": ("true", "false", "null"),
    "repr": ("True", "False", "None"),
    "double": ("True", "False", "None"),
    "gemma": ("true", "false", "None"),
}
_MOST_RULES = 20_000
_LONGEST_CHAIN = 600
_LONGEST = 4000  # characters of a text, or parts of a list, that must be there
_RULE_NAME = re.compile(r"\b[a-zA-Z]+[0-9]+\b")


def calls_grammar(form: CallFormat, tools: Sequence[Tool], mark: Mark, *, many: bool) -> str:
    """The grammar, in llguidance's Lark, of all that follows the opening of the first call.

    `many`: several calls may follow each other. Raises GrammarError that names the tool for a schema that cannot be
    kept.
    """
    maker = _Maker(form, tools, mark, many and form.many)
    return maker.whole()


class _Maker:
    """Makes the rules. `rules`: their texts by name; `known`: their names by what they are for."""

    def __init__(self, form: CallFormat, tools: Sequence[Tool], mark: Mark, many: bool) -> None:
        self.form, self.tools, self.mark, self.many = form, tools, mark, many
        self.rules: dict[str, str] = {}
        self.known: dict[tuple[str, ...], str] = {}

    def whole(self) -> str:
        form = self.form
        if form.values == "pythonic":
            start = " | ".join(self.tail(tool) for tool in self.tools)
        else:
            one = self.rule("call", " | ".join(map(self.call, self.tools)))
            more = f"({self.text(form.between + form.begin)} {one})*" if self.many else ""
            start = f"{one} {more} {self.text(form.after)}"
        if self.longest_chain() > _LONGEST_CHAIN:
            raise GrammarError("the tools have too many optional parts, or too many parts in each other")
        return "\n".join((f"start: {start}", *(f"{name}: {body}" for name, body in self.rules.items())))

    def longest_chain(self) -> int:
        """Length of the longest chain of rules that name each other: llguidance needs stack for each of them."""
        bodies = {name.partition("[")[0]: body for name, body in self.rules.items()}
        lengths: dict[str, int] = {}
        waiting = [(name, False) for name in bodies]
        while waiting:
            name, ready = waiting.pop()
            inner = [one for one in _RULE_NAME.findall(bodies[name]) if one in bodies]
            if ready:
                lengths[name] = 1 + max((lengths.get(one, 0) for one in inner), default=0)
            elif name not in lengths:
                lengths[name] = 0  # also for a rule that leads to itself
                waiting.append((name, True))
                waiting += [(one, False) for one in inner if one not in lengths]
        return max(lengths.values(), default=0)

    def call(self, tool: Tool) -> str:
        try:
            arguments = self.arguments(tool)
        except GrammarError as error:
            raise GrammarError(f"the tool {tool.name}: {error}") from None
        return f"{self.text(tool.name)} {self.with_id(self.form.middle)} {arguments} {self.with_id(self.form.end)}"

    def with_id(self, text: str) -> str:
        before, found, after = text.partition(ID)
        id_ = self.terminal(f"[a-zA-Z0-9]{{{ID_LENGTH}}}") if found else ""
        return f"{self.text(before)} {id_} {self.text(after)}"

    # --- rules ---

    def rule(self, kind: str, body: str, attribute: str = "") -> str:
        """The name of the rule with this body."""
        key = ("rule", attribute, body)
        if key not in self.known:
            self.known[key] = self.reserve(kind, attribute)
            self.rules[self.known[key] + attribute] = body
        return self.known[key]

    def reserve(self, kind: str, attribute: str = "") -> str:
        """A new name; its rule follows."""
        if len(self.rules) > _MOST_RULES:
            raise GrammarError("the tools have too many parts")
        name = f"{kind}{len(self.rules)}"
        self.rules[name + attribute] = ""
        return name

    def terminal(self, expression: str) -> str:
        return self.rule("T", f"/{expression}/")

    def lazy(self, contents: Sequence[str], end: str) -> str:
        """A text up to the first `end` that follows a whole content, `end` included. `contents`: regular expressions
        that all hold for it."""
        return self.rule("raw", " & ".join(f"/({one}){_literal(end)}/" for one in contents), "[lazy]")

    def text(self, text: str) -> str:
        """A fixed text."""
        parts = (f"<[{part}]>" if isinstance(part, int) else _quoted(part) for part in self.mark(text))
        return " ".join(parts) if text else ""

    # --- arguments ---

    def arguments(self, tool: Tool) -> str:
        values = self.form.values
        if kinds_of(tool.root, tool.root) != {"object"}:
            raise GrammarError("parameters must be the schema of an object")
        if values == "json":
            return self.value(tool.root, tool.root, "json")
        found = _shape(tool, values)
        names = enumerate(found.names)
        if values == "xml":
            items = [(self.xml(name, found), name in found.required) for _, name in names]
            return self.sequence(items, "")
        style: Style = "gemma" if values == "gemma" else "double"
        sign = ":" if values == "gemma" else "="
        items = [
            (
                f"{self.text(name + sign)} {self.value(found.properties[name], found.root, style)}",
                name in found.required,
            )
            for _, name in names
        ]
        return self.sequence(items, "," if values == "gemma" else ", ")

    def xml(self, name: str, found: Shape) -> str:
        ways = []
        for one in _ways(found.properties[name], found.root):
            if (content := self.content(one)) is not None:
                ways.append(self.lazy(content, XML_END))
            elif (values := _some(choices(one))) is not None:
                ways += [self.text(plain(value) + XML_END) for value in values]
            else:
                kinds = kinds_of(one, found.root)
                if "string" in kinds:
                    raise GrammarError(_refused(sorted(unknown_names(one, ()))))
                nested = kinds & {"array", "object"}
                value = self.value(one, found.root, "json" if nested else "repr")
                ways.append(f"{value} {self.text(XML_END)}")
        return f"{self.text(f'<parameter={name}>' + chr(10))} ({' | '.join(ways)})"

    def tail(self, tool: Tool) -> str:
        """Of the pythonic form: a call with all that follows it, because the end of a text depends on that."""
        try:
            found = _shape(tool, "pythonic")
            key = ("tail", tool.name)
            if key not in self.known:
                self.known[key] = name = self.reserve("tail")
                self.rules[name] = " | ".join(self.after(found, -1))
        except GrammarError as error:
            raise GrammarError(f"the tool {tool.name}: {error}") from None
        return f"{self.text(tool.name + self.form.middle)} {self.known[key]}"

    def after(self, found: Shape, number_: int, quote: Sequence[str] | None = None) -> list[str]:
        """What may follow the argument with this number.

        `quote`: the argument is a text without its closing quote, and these are the expressions of its content.
        """
        separator = "" if number_ < 0 else ", "
        ways = [
            (f"{separator}{name}=", self.pythonic(found, found.names.index(name)))
            for name in found.next_names(number_)
        ]
        if found.may_end(number_):
            ends = [("]", self.text(self.form.after[1:]))]
            if self.many:
                ends += [(f", {other.name}(", self.entry(other)) for other in self.tools]
            ways += [(")" + end, rest) for end, rest in ends]
        if quote is None:
            return [f"{_quoted(text)} {rest}" for text, rest in ways]
        return [f"{self.lazy(quote, chr(39) + text)} {rest}" for text, rest in ways]

    def entry(self, tool: Tool) -> str:
        return self.tail(tool).rpartition(" ")[2]

    def pythonic(self, found: Shape, index: int) -> str:
        """An argument with all that follows it."""
        name = found.names[index]
        key = ("pythonic", str(id(found.root)), name)
        if key in self.known:
            return self.known[key]
        self.known[key] = rule = self.reserve("arg")
        ways = []
        for one in _ways(found.properties[name], found.root):
            if (content := self.content(one)) is not None:
                ways.append(f"{_quoted(chr(39))} ({' | '.join(self.after(found, index, content))})")
                continue
            if (values := _some(choices(one))) is not None:
                value = self.either(
                    write(one, "json" if isinstance(one, dict) else "repr")
                    for one in values
                    if not isinstance(one, str)
                )
                texts = self.either(f"'{one}'" for one in values if isinstance(one, str))
                value = " | ".join(filter(None, (value, texts)))
            else:
                value = self.value(
                    one, found.root, "json" if "object" in kinds_of(one, found.root) else "repr"
                )
            ways.append(f"({value}) ({' | '.join(self.after(found, index))})")
        self.rules[rule] = " | ".join(ways)
        return rule

    def either(self, texts: Any) -> str:
        return " | ".join(self.text(text) for text in texts)

    def content(self, schema: Schema) -> list[str] | None:
        """The expressions of a text that is written without quotes, which all hold for it; None for a schema of other
        values."""
        if choices(schema) is not None or schema.get("type") not in ("string", None):
            return None
        if schema.get("type") is None and unknown_names(schema, ()):
            return None
        if strange := unknown_names(schema, ("type", "minLength", "maxLength", "pattern", "format")):
            raise GrammarError(_refused(sorted(strange)))
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        pattern, form = schema.get("pattern"), schema.get("format")
        found = []
        if pattern is not None:
            expressions = whole_expressions(str(pattern))
            if expressions is None:
                raise GrammarError(
                    f"the pattern {str(pattern)[:60]!r} cannot be kept in this model's form of calls"
                )
            found += expressions
        if form is not None:
            if not isinstance(form, str) or form not in FORMAT_TEXTS:
                raise GrammarError(f"has the format {str(form)[:60]!r}, which is not a text")
            found.append(FORMAT_TEXTS[form])
        if least or most is not None or not found:
            found.append(f"(?s:.){_times(least, most)}")
        return found

    # --- values ---

    def value(self, schema: Any, root: Schema, style: Style) -> str:
        """The name of the rule of a value inside others."""
        schema = resolve(schema, root)
        if not isinstance(schema, dict):
            raise GrammarError("has a part that allows no value")
        key = ("value", style, json.dumps(schema), str(id(root)))
        if key not in self.known:
            self.known[key] = name = self.reserve("value")
            self.rules[name] = " | ".join(self.one(one, root, style) for one in _ways(schema, root))
        return self.known[key]

    def one(self, schema: Schema, root: Schema, style: Style) -> str:
        """A value of one kind."""
        if not unknown_names(schema, ()):
            return self.anything(style)
        values = _some(choices(schema))
        if values is not None:
            return self.either(write(value, style) for value in values)
        kind = schema.get("type")
        kind = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
        if kind == "string":
            return self.string(schema, root, style)
        if kind in ("integer", "number") and not unknown_names(
            schema, ("type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        ):
            expression = integer(schema) if kind == "integer" else number(schema)
            if expression is not None:
                return self.terminal(expression)
        if kind in ("boolean", "null") and not unknown_names(schema, ("type",)):
            words = _WORDS[style]
            return " | ".join(map(_quoted, words[:2] if kind == "boolean" else words[2:]))
        known = ("type", "items", "minItems", "maxItems")
        if kind == "array" and not unknown_names(schema, known) and not isinstance(schema.get("items"), list):
            item = self.value(schema.get("items", {}), root, style)
            return self.array(item, schema.get("minItems", 0), schema.get("maxItems"), style)
        known = ("type", "properties", "required", "additionalProperties")
        if kind == "object" and not unknown_names(schema, known):
            found = self.object(schema, root, style)
            if found is not None:
                return found
        return self.leaf(schema, root, style)

    def leaf(self, schema: Schema, root: Schema, style: Style) -> str:
        """A part that llguidance reads itself; JSON only, but numbers and texts in double quotes have the same form."""
        same = ("integer", "number", "string" if style == "double" else "number")
        if style != "json" and schema.get("type") not in same:
            raise GrammarError(_refused(sorted(unknown_names(schema, ("type",)))))
        check_controls(schema)
        text = standalone({**schema, "x-guidance": _GUIDANCE}, root)
        return self.rule("json", "%json " + patterns_apart(text))

    def anything(self, style: Style) -> str:
        """Any value."""
        key = ("any", style)
        if key in self.known:
            return self.known[key]
        self.known[key] = name = self.reserve("any")
        string = self.string({"type": "string"}, {}, style)
        words = " | ".join(map(_quoted, _WORDS[style]))
        ways = [string, self.terminal(NUMBER), words, self.array(name, 0, None, style)]
        if style == "json":
            ways.append(self.object({"type": "object"}, {}, style) or "")
        self.rules[name] = " | ".join(ways)
        return name

    def string(self, schema: Schema, root: Schema, style: Style) -> str:
        """A text in its quotes."""
        sized = not unknown_names(schema, ("type", "minLength", "maxLength"))
        times = _times(schema.get("minLength", 0), schema.get("maxLength"))
        if style in ("json", "double"):
            return self.terminal(f'"{_CHARACTER}{times}"') if sized else self.leaf(schema, root, style)
        if style == "repr":
            if sized and times != "*":  # those that repr writes in single quotes
                return self.terminal(_REPR[0].replace(")*", f"){times}"))
            if not sized:
                raise GrammarError(_refused(sorted(unknown_names(schema, ("type",)))))
            return " | ".join(self.terminal(one) for one in _REPR)
        quote = list(self.mark(GEMMA_QUOTE))
        contents = self.content(schema) or ["(?s:.)*"]
        if len(quote) == 1 and isinstance(quote[0], int):
            content = " & ".join(f"/({one})/" for one in contents)
            clean = f"{content} & ~/(?s:.)*{_literal(GEMMA_QUOTE)}(?s:.)*/ & /(?s:.)+/"
            inner = self.rule("T", clean)
            return f"<[{quote[0]}]> {inner}{'?' if times.startswith(('*', '{0')) and sized else ''} <[{quote[0]}]>"
        end = _literal(GEMMA_QUOTE)
        content = " & ".join(f"/({one}){end}/" for one in contents)
        inner = self.rule("raw", f"{content} & ~/(?s:.)*{end}(?s:.)+/", "[lazy]")
        return f"{_quoted(GEMMA_QUOTE)} {inner}"

    def array(self, item: str, least: int, most: int | None, style: Style) -> str:
        separator = _quoted("," if style == "gemma" else ", ")
        if most == 0:
            return '"[" "]"'
        more = _times(max(0, least - 1), None if most is None else most - 1)
        inner = f"{item} ({separator} {item}){more}"
        return f'"[" {inner} "]"' if least else f'"[" ({inner})? "]"'

    def object(self, schema: Schema, root: Schema, style: Style) -> str | None:
        """An object with its listed names in their order, then others; None if a required name is not listed."""
        properties = schema.get("properties", {})
        required = set(map(str, schema.get("required", ())))
        if not isinstance(properties, dict) or not required <= set(properties):
            return None
        names = sorted(properties, key=str.lower) if style == "gemma" else list(properties)
        items = [
            (f"{self.text(_key(name, style))} {self.value(properties[name], root, style)}", name in required)
            for name in names
        ]
        others = schema.get("additionalProperties", True)
        more = ""
        if others is not False and style == "json":
            listed = "|".join(_literal(json.dumps(name, ensure_ascii=False)) for name in names)
            except_listed = f" & ~/{listed}/" if listed else ""
            key = self.rule("T", f'/"{_CHARACTER}*"/{except_listed}')
            more = f'{key} ": " {self.value({} if others is True else others, root, style)}'
        return f'"{{" {self.sequence(items, "," if style == "gemma" else ", ", more)} "}}"'

    def sequence(self, items: list[tuple[str, bool]], separator: str, more: str = "") -> str:
        """Items in their order; only the required ones must be there. Then any number of `more`."""
        between = _quoted(separator) if separator else ""
        rest = f"({between} {more})*" if more else ""
        first = f"({more} {rest})?" if more else ""
        optional = True  # `first` may be empty
        for item, required in reversed(items):
            with_item = f"{item} {rest}"
            if required or not first:
                first = with_item if required else f"({with_item})?"
            else:
                first = f"({with_item} | {first})"
            first = self.rule("seq", first)
            optional = optional and not required
            mine = f"{between} {item}" if separator else item
            rest = self.rule("seq", f"{mine} {rest}" if required else f"({mine})? {rest}")
        return first


def _some(values: list[Any] | None) -> list[Any] | None:
    """The same. Raises GrammarError for an empty list."""
    if values == []:
        raise GrammarError("has an enum without a value of its type")
    return values


def _shape(tool: Tool, values: str) -> Shape:
    found = shape(tool, alphabetical=values == "gemma")
    if found is None:
        strange = sorted(unknown_names(tool.root, ("type", "properties", "required", "additionalProperties")))
        raise GrammarError(_refused(strange or ["required"]))
    return found


def _ways(schema: Any, root: Schema) -> list[Schema]:
    found = alternatives(schema, root)
    ways = [one for one in found if isinstance(one, dict)]
    if not ways:
        raise GrammarError("has a part that allows no value")
    return ways


def _refused(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:4])
    return f"cannot be guaranteed in this model's form of calls: {shown}"


def _key(name: str, style: Style) -> str:
    if style == "gemma":
        if ":" in name:
            raise GrammarError(f"the name {name[:60]!r} cannot be written in this model's form of calls")
        return f"{name}:"
    return f"{write(name, style)}: "


def _times(least: Any, most: Any) -> str:
    if type(least) is not int or not (most is None or type(most) is int):
        raise GrammarError("has a length that is not a whole number")
    if least < 0:
        raise GrammarError("has a length below 0")
    if least > _LONGEST:
        raise GrammarError(f"has a text or list of at least {least:,} parts, which no answer has room for")
    if most is None:
        return "*" if least == 0 else f"{{{least},}}"
    if most < least:
        raise GrammarError("has a part that allows no value")
    return f"{{{least},{most}}}"


def _quoted(text: str) -> str:
    """A text in Lark."""
    return json.dumps(text, ensure_ascii=False)


def _literal(text: str) -> str:
    """A text in a regular expression."""
    return "".join(one if one.isalnum() else f"\\x{{{ord(one):x}}}" for one in text)


def shortest_text(form: CallFormat, name: str, arguments: dict[str, Any]) -> str:
    """The text of one call, from its name to the end of all calls."""
    return form.call(name, arguments, "a" * ID_LENGTH) + form.after


def closing_texts(form: CallFormat, tools: Sequence[Tool]) -> list[str]:
    """Texts that end a value or a call where no JSON mark does."""
    names = list(dict.fromkeys(name for tool in tools for name in tool.root.get("properties", {})))
    if form.values == "xml":
        return [XML_END + form.end, XML_END, *(f"{XML_END}<parameter={name}>\n" for name in names)]
    if form.values == "pythonic":
        return ["')]", *(f"', {name}=" for name in names)]
    return [GEMMA_QUOTE] if form.values == "gemma" else []
