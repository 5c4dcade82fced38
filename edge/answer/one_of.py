"""`oneOf` in a client's JSON schema: where no text fits two of its schemas, it says the same as `anyOf`."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from edge.answer.client_schema import all_schemas, referred
from edge.answer.pattern import read_pattern

_TYPES = {"string", "number", "boolean", "null", "object", "array"}
_MOST_SCHEMAS = 60
_MOST_NESTED = 4
_MOST_CHARACTERS = 1000  # of a value that is held against a pattern: its automaton gives up on long ones


def replace_one_of(schema: object) -> None:
    """Make `anyOf` of each `oneOf` whose schemas exclude each other by their types or by the values that they list, or
    do so in a property that they need.

    llguidance takes a `oneOf` whose schemas it finds apart, but does not hold values against a pattern. A `oneOf` that
    stays is left to it. Changes `schema`.
    """
    for one in all_schemas(schema):
        several = one.get("oneOf")
        if not isinstance(several, list) or "anyOf" in one or len(several) > _MOST_SCHEMAS:
            continue
        resolved = [referred(part, schema) for part in several]
        if all(_exclude(first, second, schema, 0) for first, second in combinations(resolved, 2)):
            one["anyOf"] = one.pop("oneOf")


def _exclude(first: object, second: object, root: object, depth: int) -> bool:
    """Whether certainly no value is valid for both schemas."""
    if not isinstance(first, dict) or not isinstance(second, dict) or "$ref" in first or "$ref" in second:
        return False
    if not _types(first) & _types(second):
        return True
    values, others = _values(first), _values(second)
    if values is not None and others is not None:
        return not any(_equal(one, other) for one in values for other in others)
    if values is None and others is None:
        return _exclude_as_objects(first, second, root, depth)
    return all(_refuses(second if others is None else first, one) for one in values or others or [])


def _exclude_as_objects(first: dict[str, Any], second: dict[str, Any], root: object, depth: int) -> bool:
    """Whether both are of objects and need a property whose schemas exclude each other."""
    if depth > _MOST_NESTED or (_types(first) & _types(second)) != {"object"}:
        return False
    mine, others = first.get("properties"), second.get("properties")
    if not isinstance(mine, dict) or not isinstance(others, dict):
        return False
    return any(
        _exclude(referred(mine[name], root), referred(others[name], root), root, depth + 1)
        for name in set(_needed(first)) & set(_needed(second))
        if name in mine and name in others
    )


def _needed(schema: dict[str, Any]) -> list[str]:
    names = schema.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _types(schema: dict[str, Any]) -> set[str]:
    named = schema.get("type")
    names = {named} if isinstance(named, str) else set(map(str, named)) if isinstance(named, list) else _TYPES
    if (values := _values(schema)) is not None:
        names = names & set(_types_of(values))
    return {"number" if name == "integer" else name for name in names}


def _types_of(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, bool):
            yield "boolean"
        elif isinstance(value, int | float):
            yield from ("number", "integer")
        elif isinstance(value, str):
            yield "string"
        else:
            yield "null" if value is None else "array" if isinstance(value, list) else "object"


def _values(schema: dict[str, Any]) -> list[Any] | None:
    """The only values that a schema allows, as far as it lists them."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _equal(one: object, other: object) -> bool:
    """Equality as in JSON: true is not 1. Of lists and objects it says too often that they are equal."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _refuses(schema: dict[str, Any], value: object) -> bool:
    """Whether a schema certainly does not allow a value."""
    types = set(_types_of([value]))
    if not types & _types(schema):
        return True
    if not isinstance(value, str):
        return False
    least, most, pattern = schema.get("minLength"), schema.get("maxLength"), schema.get("pattern")
    if (type(least) is int and len(value) < least) or (type(most) is int and len(value) > most):
        return True
    read = read_pattern(pattern) if isinstance(pattern, str) and len(value) < _MOST_CHARACTERS else None
    return read is not None and read.end(value) != ""
