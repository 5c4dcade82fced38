"""Check JSON values against the TypedDict that describes them.

A TypedDict says what a stored object must hold. mypy reads it, and `check` enforces it where a file is read: the type
and the check cannot differ. Fields that the TypedDict does not name are allowed.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    """What a value must be beyond its type: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


Name = Annotated[str, Rule("a non-empty string", bool)]
Index = Annotated[int, Rule("a non-negative whole number", lambda value: value >= 0)]

_WORDS = {str: "a string", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}
_PLURALS = {str: "strings", int: "whole numbers", float: "numbers"}
_LARGEST = sys.float_info.max
_SHOWN = 40  # characters of a wrong value in an error line


def check(value: object, kind: type[T], where: str, error: type[EdgeError] = ResultError) -> T:
    """`value`, which must be a JSON object that has the fields of the TypedDict `kind`.

    Supported field types: str, bool, int, float, object, None, Annotated with a `Rule`, unions, lists, dicts and
    Mappings with string keys, and other TypedDicts. A float must be finite; an int is also a float, a bool is not an
    int. Raises `error` with one line that begins with `where` and names the first wrong field and what it must be.
    """
    if not isinstance(value, dict):
        raise error(f"{where} is not an object")
    if (problem := _problem(value, kind, where, "")) is not None:
        raise error(problem)
    return cast(T, value)


def _problem(value: Any, kind: Any, where: str, name: str) -> str | None:
    """The first thing in `value` that `kind` does not allow, as one line; None where there is none."""
    if is_typeddict(kind):
        return _object_problem(value, kind, where, name)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        inner = [part for part in arguments if part is not NoneType]
        if value is None and len(inner) < len(arguments):
            return None
        if len(inner) == 1 and _holds_fields(inner[0]):
            return _problem(value, inner[0], where, name)
        fits = any(_problem(value, part, where, name) is None for part in inner)
        return None if fits else _wrong(value, kind, where, name)
    if origin is Annotated:
        base, *rules = arguments
        fits = _problem(value, base, where, name) is None and all(rule.fits(value) for rule in rules)
        return None if fits else _wrong(value, kind, where, name)
    if origin is list and isinstance(value, list):
        return _first_problem(value, enumerate(value), arguments[0], kind, where, name)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return _first_problem(value, value.items(), arguments[1], kind, where, name)
    return None if _fits(value, kind) else _wrong(value, kind, where, name)


def _object_problem(value: Any, kind: Any, where: str, name: str) -> str | None:
    if not isinstance(value, dict):
        return _wrong(value, kind, where, name)
    prefix = f"{name}." if name else ""
    for field, inner, required in _fields(kind):
        if field in value:
            problem = _problem(value[field], inner, where, prefix + field)
        else:
            problem = f"{where}: {prefix}{field} is missing" if required else None
        if problem is not None:
            return problem
    return None


def _first_problem(value: Any, parts: Any, inner: Any, kind: Any, where: str, name: str) -> str | None:
    """That of the parts of a list or dict; a part that has no fields of its own makes the whole wrong."""
    for key, part in parts:
        problem = _problem(part, inner, where, f"{name}[{_shown(key)}]")
        if problem is not None:
            return problem if _holds_fields(inner) else _wrong(value, kind, where, name)
    return None


def _fits(value: Any, kind: Any) -> bool:
    if kind is object:
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def _holds_fields(kind: Any) -> bool:
    return is_typeddict(kind) or (
        get_origin(kind) in (list, dict, Mapping) and _holds_fields(get_args(kind)[-1])
    )


@functools.cache
def _fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """(name, type, whether it is required) of each field of a TypedDict, in its order."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple((name, _bare(hint), name in kind.__required_keys__) for name, hint in hints.items())


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) in (Required, NotRequired) else hint


def _wrong(value: Any, kind: Any, where: str, name: str) -> str:
    return f"{where}: {name} is {_shown(value)}; it must be {' or '.join(_words(kind))}"


def _shown(value: object) -> str:
    """A JSON value for an error line. Lists and objects are only named: str() fails for those nested very deep."""
    if isinstance(value, str):
        return repr(value[:_SHOWN])
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
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
        return [f"a list of {_PLURALS.get(arguments[0], 'objects')}"]
    return ["true", "false"] if kind is bool else [_WORDS.get(kind, "an object")]
