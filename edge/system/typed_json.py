"""Check JSON values against the TypedDict that describes them, and write that TypedDict as a JSON Schema.

A TypedDict says what a stored object must hold. mypy reads it, `check` enforces it where a file is read, and
`json_schema` writes it for other programs: the type, the check and the schema cannot differ. Fields that the TypedDict
does not name are allowed. A string literal after a field is its description.
"""

import ast
import dataclasses
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    NotRequired,
    Required,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from edge.errors import EdgeError, ResultError

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """What a value must be beyond its type: in words, as a test, and as keywords of JSON Schema.

    The keywords must say what the test says.
    """

    words: str
    fits: Callable[[Any], bool]
    keywords: Mapping[str, object] = field(default_factory=dict, hash=False)


Name = Annotated[str, Rule("a non-empty string", bool, {"minLength": 1})]
Index = Annotated[int, Rule("a non-negative whole number", lambda value: value >= 0, {"minimum": 0})]

Amount = Annotated[float, Rule("a non-negative number", lambda value: value >= 0, {"minimum": 0})]

_WORDS = {str: "a string", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}
_PLURALS = {str: "strings", int: "whole numbers", float: "numbers"}
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}
_LARGEST = sys.float_info.max
_SHOWN = 40  # characters of a wrong value in an error line


def check(value: object, kind: type[T], where: str, error: type[EdgeError] = ResultError) -> T:
    """`value`, which must be a JSON object that has the fields of the TypedDict `kind`.

    Raises `error` with one line that begins with `where` and names the first wrong field and what it must be.
    """
    if not isinstance(value, dict):
        raise error(f"{where} is not an object")
    if (problem := next(problems(value, kind), None)) is not None:
        raise error(f"{where}: {problem}")
    return cast(T, value)


def problems(value: Any, kind: Any, name: str = "") -> Iterator[str]:
    """Everything in a JSON value that the type `kind` does not allow: one line for each, which names the field.

    Supported types: str, bool, int, float, object, Any, None, Annotated with a `Rule`, unions, lists, dicts and
    Mappings with string keys, and TypedDicts. A float must be finite; an int is also a float, a bool is not an int.
    `name` is what the lines call the value itself.
    """
    if is_typeddict(kind):
        yield from _object_problems(value, kind, name)
        return
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        inner = [part for part in arguments if part is not NoneType]
        if value is None and len(inner) < len(arguments):
            return
        if len(inner) == 1 and _holds_fields(inner[0]):
            yield from problems(value, inner[0], name)
        elif all(next(problems(value, part, name), None) is not None for part in inner):
            yield _wrong(value, kind, name)
    elif origin is Annotated:
        base, *rules = arguments
        inside = _holds_fields(base) and isinstance(value, list if get_origin(base) is list else dict)
        found = list(problems(value, base, name))
        if found and inside:
            yield from found
        elif found or not all(rule.fits(value) for rule in rules):
            yield _wrong(value, kind, name)
    elif origin is list and isinstance(value, list):
        yield from _part_problems(value, enumerate(value), arguments[0], kind, name)
    elif origin in (dict, Mapping) and isinstance(value, dict):
        yield from _part_problems(value, value.items(), arguments[1], kind, name)
    elif not _fits(value, kind):
        yield _wrong(value, kind, name)


def _object_problems(value: Any, kind: Any, name: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield _wrong(value, kind, name)
        return
    prefix = f"{name}." if name else ""
    for key, inner, required in _fields(kind):
        if key in value:
            yield from problems(value[key], inner, prefix + key)
        elif required:
            yield f"{prefix}{key} is missing"


def _part_problems(value: Any, parts: Any, inner: Any, kind: Any, name: str) -> Iterator[str]:
    """Those of the parts of a list or dict; a part without its own fields makes the whole wrong."""
    for key, part in parts:
        found = list(problems(part, inner, f"{name}[{_shown(key)}]"))
        if found and not _holds_fields(inner):
            yield _wrong(value, kind, name)
            return
        yield from found


def _fits(value: Any, kind: Any) -> bool:
    if kind in (object, Any):
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def _holds_fields(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return _holds_fields(get_args(kind)[0])
    return is_typeddict(kind) or (
        get_origin(kind) in (list, dict, Mapping) and _holds_fields(get_args(kind)[-1])
    )


@functools.cache
def _fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """(name, type, whether it is required) of each field of a TypedDict, in its order."""
    hints = get_type_hints(kind, include_extras=True)
    required = getattr(kind, "__required_keys__", hints)  # a dataclass is written with all its fields
    return tuple((name, _bare(hint), name in required) for name, hint in hints.items())


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) in (Required, NotRequired) else hint


def _wrong(value: Any, kind: Any, name: str) -> str:
    must = f"it must be {' or '.join(_words(kind))}"
    return f"{name} is {_shown(value)}; {must}" if name else must


def _shown(value: object) -> str:
    """A JSON value for an error line. Lists and objects are only named: str() fails for those nested very deep."""
    if isinstance(value, str):
        return repr(value[:_SHOWN])
    if isinstance(value, list | dict):
        kind = "list" if isinstance(value, list) else "object"
        return f"a{'' if value and kind == 'list' else 'n'} {'' if value else 'empty '}{kind}"
    return "null" if value is None else str(value).lower()[:_SHOWN]


def _words(kind: Any) -> list[str]:
    """What a value of a type is called, one entry for each alternative."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        alternatives = [word for part in arguments for word in _words(part)]
        return [", ".join(alternatives[:-1]), alternatives[-1]] if len(alternatives) > 1 else alternatives
    if origin is Annotated:
        return [arguments[1].words]
    if origin is list:
        return (
            ["a list"] if arguments[0] is object else [f"a list of {_PLURALS.get(arguments[0], 'objects')}"]
        )
    return ["true", "false"] if kind is bool else [_WORDS.get(kind, "an object")]


# --- JSON Schema ---

DRAFT = "https://json-schema.org/draft/2020-12/schema"
"""The version of JSON Schema that `json_schema` writes."""


def json_schema(kind: Any, *, title: str, closed: tuple[Any, ...] = ()) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a TypedDict, or of a list of them: it accepts what `problems` accepts.

    A field of a TypedDict may also have the type of a dataclass, which is written as `dataclasses.asdict` gives it.

    Two differences remain, because JSON Schema has one type for numbers: 1.0 counts as a whole number, and a number
    too large for a float is allowed. `closed`: TypedDicts whose reader refuses fields that they do not name.
    """
    definitions: dict[str, Any] = {}
    root = _schema(kind, definitions, closed)
    if "$ref" in root:  # a TypedDict: its schema is the root, with the rules around it
        own = definitions.pop(root.pop("$ref").rpartition("/")[2])
        root = {**own, **root}
    schema = {"$schema": DRAFT, "title": title, **root}
    return {**schema, "$defs": definitions} if definitions else schema


def _schema(kind: Any, definitions: dict[str, Any], closed: tuple[Any, ...]) -> dict[str, Any]:
    """The schema of one type. The schemas of TypedDicts go to `definitions`."""
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        name = _definition(kind)
        if name not in definitions:
            definitions[name] = {}  # reserves its place
            definitions[name] = _object_schema(kind, definitions, closed)
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _any_of([_schema(part, definitions, closed) for part in arguments])
    if origin is Annotated:
        base, *rules = arguments
        schema = _schema(base, definitions, closed)
        for rule in rules:
            schema |= rule.keywords
        return schema
    if origin in (list, tuple):
        items = {"type": "array", "items": _schema(arguments[0], definitions, closed)}
        length = len(arguments)  # a tuple of fixed length has one type in edge's formats
        return (
            items
            if origin is list or arguments[-1] is ...
            else items | {"minItems": length, "maxItems": length}
        )
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions, closed)}
    return {} if kind in (object, Any) else {"type": _TYPES[kind]}


def _any_of(alternatives: list[dict[str, Any]]) -> dict[str, Any]:
    """One schema for a union: with a list of types if no keyword of an alternative touches another one."""
    types = [schema.get("type") for schema in alternatives]
    keywords = [key for schema in alternatives for key in schema if key != "type"]
    plain = all(isinstance(name, str) for name in types) and not {"anyOf", "$ref"} & set(keywords)
    if plain and len(set(keywords)) == len(keywords) and len(set(types)) == len(types):
        return {"type": types} | {
            key: value for schema in alternatives for key, value in schema.items() if key != "type"
        }
    return {"anyOf": alternatives}


def _object_schema(kind: Any, definitions: dict[str, Any], closed: tuple[Any, ...]) -> dict[str, Any]:
    about, described = kind.__dict__.get("__doc__") or "", _descriptions(kind)
    properties = {}
    for name, inner, _ in _fields(kind):
        schema = _schema(inner, definitions, closed)
        properties[name] = {"description": described[name], **schema} if name in described else schema
    required = [name for name, _, required in _fields(kind) if required]
    return {
        **({"description": " ".join(about.split())} if about else {}),
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        **({"additionalProperties": False} if kind in closed else {}),
    }


def _definition(kind: Any) -> str:
    return str(kind.__name__).lstrip("_")


@functools.cache
def _descriptions(kind: Any) -> Mapping[str, str]:
    """The string literals after the fields of a TypedDict, its bases included; empty where its source is missing."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, str] = {}
    if not isinstance(tree, ast.ClassDef):
        return found
    module = sys.modules[kind.__module__]
    for base in tree.bases:  # a TypedDict does not know its bases before Python 3.12
        parent = getattr(module, base.id, None) if isinstance(base, ast.Name) else None
        if is_typeddict(parent):
            found |= _descriptions(parent)
    for statement, after in zip(tree.body, tree.body[1:], strict=False):
        literal = after.value if isinstance(after, ast.Expr) else None
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(literal, ast.Constant)
            and isinstance(literal.value, str)
        ):
            found[statement.target.id] = " ".join(literal.value.split())
    return found
