"""The schema of a tool's arguments, made ready: references, kinds, the shortest value, whether a value is valid."""

import itertools
import json
import math
import re
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from edge.answer.client_schema import check_least, close_objects, leave_out_annotations, patterns_apart
from edge.answer.number_grammar import bounds
from edge.answer.one_of import replace_one_of
from edge.answer.pattern import read_pattern
from edge.errors import GrammarError

Schema = dict[str, Any]
KINDS = ("string", "integer", "number", "boolean", "null", "array", "object")
_MOST_NESTED = 40
_MOST_PARTS = 20_000
_LONGEST_VALUE = 100_000  # characters
_NOTES = frozenset(
    "title description default examples example $schema $id $comment $anchor deprecated readOnly writeOnly "
    "contentMediaType contentEncoding $defs definitions nullable strict propertyOrdering discriminator".split()
)
_SHORTEST = {
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "date": "2000-01-01",
    "duration": "P1D",
    "email": "a@a.aa",
    "hostname": "a",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "uri": "a:a",
}


@dataclass(frozen=True)
class Tool:
    """A tool as a client declares it. `parameters`: a JSON schema."""

    name: str
    parameters: Schema = field(default_factory=dict)

    @cached_property
    def root(self) -> Schema:
        """The schema without what asserts nothing, with closed objects. Raises GrammarError."""
        root = deepcopy(self.parameters) or {"type": "object", "properties": {}}
        try:
            leave_out_annotations(root)
            replace_one_of(root)
            close_objects(root)
            check_least(root)
            root.setdefault("type", "object") if "properties" in root or not _asserted(root) else None
        except RecursionError:
            raise GrammarError("is nested too deeply") from None
        return root


@dataclass(frozen=True)
class Shape:
    """The arguments of a tool, in the order in which they are written."""

    properties: dict[str, Any]
    required: frozenset[str]
    root: Schema

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names, in the order in which they are written."""
        return tuple(self.properties)

    def next_names(self, after: int) -> list[str]:
        """Those that may be written after the argument with this number: up to the next that is required."""
        found = []
        for name in self.names[after + 1 :]:
            found.append(name)
            if name in self.required:
                break
        return found

    def may_end(self, after: int) -> bool:
        """Whether no required argument is left."""
        return not any(name in self.required for name in self.names[after + 1 :])


def shape(tool: Tool, *, alphabetical: bool = False) -> Shape | None:
    """The arguments of a tool, if its schema is a plain object; otherwise None."""
    root = tool.root
    schema = resolve(root, root)
    if not isinstance(schema, dict) or unknown_names(
        schema, ("type", "properties", "required", "additionalProperties")
    ):
        return None
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    if schema.get("type") != "object" or not isinstance(properties, dict) or not isinstance(required, list):
        return None
    if not set(map(str, required)) <= set(properties):
        return None
    names = sorted(properties, key=str.lower) if alphabetical else list(properties)
    return Shape({name: properties[name] for name in names}, frozenset(map(str, required)), root)


def _asserted(schema: Schema) -> set[str]:
    return set(schema) - _NOTES


def unknown_names(schema: Schema, known: tuple[str, ...]) -> set[str]:
    """The assertions of a schema beside the known ones."""
    return _asserted(schema) - set(known)


def resolve(schema: Any, root: Schema) -> Any:
    """The schema that a reference means: true, or an object. Raises GrammarError for a reference to nothing."""
    for _ in range(_MOST_NESTED):
        if schema is True or schema == {}:
            return {}
        if not isinstance(schema, dict):
            return schema
        parts = schema.get("allOf")
        if isinstance(parts, list) and len(parts) == 1 and not unknown_names(schema, ("allOf",)):
            schema = parts[0]
            continue
        if "$ref" not in schema or unknown_names(schema, ("$ref",)):
            return schema
        schema = _referred(schema["$ref"], root)
    raise GrammarError("has a reference that leads to itself")


def _referred(reference: Any, root: Schema) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise GrammarError(
            f"has the reference {str(reference)[:60]!r}; only references into the same schema are possible"
        )
    found: Any = root
    for part in reference[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or part not in found:
            raise GrammarError(f"has the reference {reference[:60]!r} to a place that does not exist")
        found = found[part]
    return found


def choices(schema: Schema) -> list[Any] | None:
    """The values of `enum` or `const`, those of the schema's type; None without them, or beside other assertions."""
    if unknown_names(schema, ("enum", "const", "type")):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list):
        return None
    if "const" in schema and isinstance(listed := schema.get("enum"), list):
        values = [value for value in values if any(_same(value, one) for one in listed)]
    kinds = _types(schema)
    return [value for value in values if kinds is None or kind_of(value) in kinds or _is_number(value, kinds)]


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is_number(value: Any, kinds: set[str]) -> bool:
    whole = isinstance(value, float) and value.is_integer()
    return ("number" in kinds and kind_of(value) in ("integer", "number")) or ("integer" in kinds and whole)


def kind_of(value: Any) -> str:
    """The kind of a JSON value."""
    if value is None:
        return "null"
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"))
    return next((kind for type_, kind in kinds if isinstance(value, type_)), "object")


def _types(schema: Schema) -> set[str] | None:
    named = schema.get("type")
    if named is None:
        return None
    kinds = {named} if isinstance(named, str) else set(map(str, named)) if isinstance(named, list) else set()
    if not kinds or kinds - set(KINDS):
        raise GrammarError(f"has the type {str(named)[:60]!r}, which JSON Schema does not have")
    return kinds


def alternatives(schema: Schema, root: Schema) -> list[Schema]:
    """The schemas of one kind each whose values together are those of the schema. [{}]: any value; [schema]: one."""
    schema = resolve(schema, root)
    if not isinstance(schema, dict) or not _asserted(schema) or choices(schema) is not None:
        return [schema]
    for name in ("anyOf", "oneOf"):
        parts = schema.get(name)
        if not isinstance(parts, list) or not parts or unknown_names(schema, (name, "type")):
            continue
        inner = [one for part in parts for one in alternatives(part, root)]
        if "type" in schema:
            allowed = _types(schema) or set()
            inner = [one for one in inner if isinstance(one, dict) and (kinds_of(one, root) <= allowed)]
        if name == "anyOf" or _disjoint(inner, root):
            return inner
    kinds = _types(schema)
    if kinds is None or len(kinds) == 1:
        return [schema]
    return [
        _of_kind(schema, kind)
        for kind in KINDS
        if kind in kinds and not (kind == "integer" and "number" in kinds)
    ]


_OF_KIND = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": (
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
    ),
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "minProperties",
        "maxProperties",
    ),
}
_OF_KIND["number"] = _OF_KIND["integer"]
_OF_ONE_KIND = frozenset(name for names in _OF_KIND.values() for name in names)


def _of_kind(schema: Schema, kind: str) -> Schema:
    """The part of a schema of several types that applies to one of them."""
    mine = _OF_KIND.get(kind, ())
    return {
        "type": kind,
        **{
            name: one
            for name, one in schema.items()
            if name != "type" and (name in mine or name not in _OF_ONE_KIND)
        },
    }


def _disjoint(parts: list[Schema], root: Schema) -> bool:
    """Whether no value can be valid for two of these schemas, as far as their kinds tell."""
    seen: set[str] = set()
    for part in parts:
        kinds = kinds_of(part, root)
        if (
            seen & kinds
            or ("number" in kinds and "integer" in seen)
            or ("integer" in kinds and "number" in seen)
        ):
            return False
        seen |= kinds
    return True


def kinds_of(schema: Any, root: Schema) -> set[str]:
    """The kinds of values that a schema allows."""
    schema = resolve(schema, root)
    if not isinstance(schema, dict):
        return set()
    values = choices(schema)
    if values is not None:
        return {kind_of(value) for value in values}
    inner = alternatives(schema, root)
    if inner != [schema]:
        return {kind for one in inner for kind in kinds_of(one, root)}
    found = _types(schema) or set(KINDS)
    parts = schema.get("allOf")
    for part in [*(parts if isinstance(parts, list) else ()), {"$ref": schema.get("$ref")}]:
        if part != {"$ref": None}:
            found &= kinds_of(part, root)
    return found


def shortest(schema: Any, root: Schema) -> Any:
    """A short valid value, most often the shortest. Raises LookupError if none is known."""
    return _shortest(schema, root, 0, itertools.count())


def _shortest(schema: Any, root: Schema, depth: int, parts: "itertools.count[int]") -> Any:
    """`parts`: counts the parts that were looked at, since a schema can refer to itself in many ways."""
    if depth > _MOST_NESTED or next(parts) > _MOST_PARTS:
        raise LookupError
    schema = resolve(schema, root)
    if not isinstance(schema, dict):
        raise LookupError
    if not _asserted(schema):
        return 0
    values = choices(schema)
    if values is not None:
        return _least(values)
    inner = alternatives(schema, root)
    if inner != [schema]:
        found = []
        for one in inner:
            try:
                found.append(_shortest(one, root, depth + 1, parts))
            except LookupError:
                continue
        return _least(found)
    return _shortest_of(schema, root, depth, parts)


def _least(values: list[Any]) -> Any:
    if not values:
        raise LookupError
    return min(values, key=lambda value: len(json.dumps(value, ensure_ascii=False)))


def _shortest_of(schema: Schema, root: Schema, depth: int, parts: "itertools.count[int]") -> Any:
    kinds = _types(schema)
    kind = "object" if kinds is None else next(iter(kinds))
    if kind == "string":
        return _shortest_text(schema)
    if kind in ("integer", "number"):
        return _shortest_number(schema)
    if kind == "array":
        least = schema.get("minItems", 0)
        first = schema.get("prefixItems")
        listed = (
            [_shortest(one, root, depth + 1, parts) for one in first[:least]]
            if isinstance(first, list)
            else []
        )
        if least > len(listed):
            item = _shortest(schema.get("items", {}), root, depth + 1, parts)
            if least * len(json.dumps(item)) > _LONGEST_VALUE:
                raise LookupError
            listed += [item] * (least - len(listed))
        return listed
    if kind == "object":
        properties = schema.get("properties", {})
        required = set(map(str, schema.get("required", ())))
        if not required <= set(properties):
            raise LookupError
        return {
            name: _shortest(one, root, depth + 1, parts)
            for name, one in properties.items()
            if name in required
        }
    return True if kind == "boolean" else None


def _shortest_text(schema: Schema) -> str:
    least = schema.get("minLength", 0)
    if isinstance(pattern := schema.get("pattern"), str):
        known = read_pattern(pattern)
        found = known.end("", least) if known else None
        if found is None:
            raise LookupError
        return found
    form = schema.get("format")
    return _SHORTEST[form] if isinstance(form, str) and form in _SHORTEST else "a" * int(least)


def _shortest_number(schema: Schema) -> int | float:
    found = bounds(schema)
    if found is None:
        raise LookupError
    ends = [end for end in found[:2] if math.isfinite(end)]
    near = [math.floor(end) + more for end in ends for more in (-1, 0, 1, 2)]
    if type(step := schema.get("multipleOf")) is int and step > 0:
        near += [math.floor(end) // step * step + more for end in ends for more in (0, step)]
    tried: list[int | float] = [*range(10), *range(-1, -10, -1), *near, *ends]
    text = json.dumps(schema)
    return next((value for value in tried if is_valid(value, text)), 0)


@lru_cache(maxsize=256)
def _matcher(schema: str) -> LLMatcher:
    return LLMatcher(_bytes(), LLMatcher.grammar_from_json_schema(patterns_apart(schema)), log_level=0)


@lru_cache(maxsize=1)
def _bytes() -> LLTokenizer:
    return LLTokenizer("byte")


def standalone(schema: Schema, root: Schema) -> str:
    """A part of a schema as JSON, with what its references mean."""
    text = json.dumps(schema)
    if re.search(r'"\$ref": "#(?!/(?:\$defs|definitions)/)', text) or re.search(
        r'"\$ref": "#(?!/(?:\$defs|definitions)/)', json.dumps([root.get("$defs"), root.get("definitions")])
    ):
        return json.dumps(
            {**_moved(schema), "$defs": {_ROOT: _moved(root)}}  # no part has definitions of its own
        )
    return json.dumps({**{name: root[name] for name in ("$defs", "definitions") if name in root}, **schema})


_ROOT = "edge-root"


def _moved(value: Any) -> Any:
    """A schema whose references lead to a root that is one of the definitions."""
    if isinstance(value, list):
        return [_moved(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: _moved(one) for name, one in value.items()}
    if isinstance(reference := value.get("$ref"), str) and reference.startswith("#"):
        found["$ref"] = f"#/$defs/{_ROOT}{reference[1:]}"
    return found


def is_valid(value: Any, schema: str) -> bool:
    """Whether a value is valid for a schema (JSON as text), as llguidance reads it."""
    return is_valid_text(json.dumps(value, ensure_ascii=False), schema)


def is_valid_text(text: str, schema: str) -> bool:
    """Whether a value in JSON is valid for a schema."""
    matcher = _matcher(schema).deep_copy()
    if matcher.is_error():
        return False
    tokens = _bytes().tokenize_bytes(text.replace("\x7f", "\\u007f").encode())  # it takes only the escape
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())
