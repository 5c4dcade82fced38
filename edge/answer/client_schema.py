"""A client's JSON schema for llguidance: what asserts nothing is left out, and objects have only their listed names."""

import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from edge.answer.expression import UnknownError
from edge.answer.json_pattern import json_pattern, needs_long_escapes
from edge.answer.look_ahead import plain_conditions, plain_pattern
from edge.errors import GrammarError

# Where a schema holds other schemas: one, a list of them, or a name for each.
_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_TOGETHER = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "patternProperties")
_FORMATS = (
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
)
_LEAP = r"(?:[1-9]\d(?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = rf"(?:[1-9]\d{{3}}-(?:(?:0[13-9]|1[0-2])-\d\d|02-(?:[01]\d|2[0-8]))|{_LEAP}-02-29)"
_TIME = r"\d\d:\d\d:[0-5]\d(?:\.\d{1,6})?(?:[Zz]|[+-]\d\d:\d\d)"
_DATES = {"date": _DATE, "time": _TIME, "date-time": f"{_DATE}[Tt]{_TIME}"}
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_EXACT = 2**53  # whole numbers beyond may be no float
_WIDEST = 10**18  # llguidance writes bounds of up to about this size,
_BESIDE = 1e-6
_SMALLEST = 1e-12  # and about this number of digits after the point at most
_ONE_ESCAPE_EACH = (
    'nrtbf"\\'  # each character has one spelling; of the control characters only these can be written
)


def _inner(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in _ONE:
        if isinstance(found := schema.get(name), dict):
            yield found
    for name in _LISTS:
        if isinstance(found := schema.get(name), list):
            yield from (one for one in found if isinstance(one, dict))
    for name in _NAMED:
        if isinstance(found := schema.get(name), dict):
            yield from (one for one in found.values() if isinstance(one, dict))


def all_schemas(schema: object) -> list[dict[str, Any]]:
    """A schema and all schemas in it."""
    found = [schema] if isinstance(schema, dict) else []
    for one in found:  # it grows
        found += _inner(one)
    return found


def close_objects(schema: object) -> None:
    """Set `additionalProperties` to false beside `properties` where it is missing.

    A model that may write any name often writes names until its budget ends. Schemas that apply to one object together
    stay open: each would forbid the names of the others. Changes `schema`.
    """
    schemas = all_schemas(schema)
    together = any(
        len(one.get("allOf") or ()) > 1 or ("properties" in one and any(name in one for name in _TOGETHER))
        for one in schemas
    )
    if together:
        return
    # Closed schemas of a `oneOf` would exclude each other where those of the client do not.
    several = [one["oneOf"] for one in schemas if isinstance(one.get("oneOf"), list)]
    resolved = [[referred(part, schema) for part in parts] for parts in several]
    kept = [id(part) for parts in resolved if not _differ_in_names(parts) for part in parts]
    for one in schemas:
        if id(one) in kept:
            continue
        if isinstance(listed := one.get("properties"), dict):
            required = one.get("required")
            if isinstance(required, list) and not set(map(str, required)) <= set(listed):
                continue  # it would have no valid text
            if "unevaluatedProperties" not in one:
                one.setdefault("additionalProperties", False)


def _differ_in_names(schemas: list[Any]) -> bool:
    """Whether each schema needs a name that no other lists: then a closed one allows no value of another."""
    return all(
        isinstance(other, dict)
        and isinstance(needed := other.get("required"), list)
        and not set(map(str, needed)) <= set(map(str, one.get("properties") or ()))
        for one, other in itertools.permutations(schemas, 2)
        if isinstance(one, dict)
    )


def allowed_escapes(schema: object) -> str | None:
    """The letters of the escapes in strings; None for all.

    Where a listed name and others may stand in one object, a second spelling of the listed name, such as `\\u0063md`
    for `cmd`, would pass as another name, and a parser would take it as the first one again.
    """
    for one in all_schemas(schema):
        others = one.get("additionalProperties", True) is not False or "patternProperties" in one
        if one.get("properties") and others:
            return _ONE_ESCAPE_EACH
    return None


def leave_out_annotations(schema: object) -> None:
    """Leave out what every text meets, and formats that llguidance does not know: to JSON Schema they are notes.

    Patterns with look-ahead become equal ones without it, which llguidance knows. Changes `schema`.
    """
    for one in all_schemas(schema):
        form = one.get("format")
        if isinstance(form, str) and form not in _FORMATS:
            del one["format"]
        if one.get("propertyNames") in (True, {}, {"type": "string"}):
            del one["propertyNames"]
        _require(one)
        _list_names(one, schema)
        _close(one)
        if isinstance(pattern := one.get("pattern"), str):
            one["pattern"] = _without_look_ahead(pattern)
        if isinstance(named := one.get("patternProperties"), dict):
            one["patternProperties"] = {_without_look_ahead(name): value for name, value in named.items()}
        if not isinstance(one.get("items"), list):
            one.pop("additionalItems", None)  # to llguidance it would turn off prefixItems
        if one.get("uniqueItems") is False:
            del one["uniqueItems"]
        if one.get("not") is False:
            del one["not"]
        if one.get("unevaluatedProperties") in (True, {}):
            del one["unevaluatedProperties"]
        _narrow(one)


def _require(schema: dict[str, Any]) -> None:
    """A property that says itself that it is required, as in draft 3. Changes `schema`."""
    listed, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(listed, dict) or not isinstance(required, list):
        return
    for name, one in listed.items():
        if isinstance(one, dict) and isinstance(one.get("required"), bool) and one.pop("required"):
            schema["required"] = required = [*required, *([] if name in required else [name])]


def _close(schema: dict[str, Any]) -> None:
    """What `unevaluatedProperties` and `unevaluatedItems` say of a schema that no other applies beside. Changes it."""
    if set(schema) & {*_TOGETHER, "then", "else", "not", "contains", "$dynamicRef", "$recursiveRef"}:
        return
    for name, same in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if name in schema and same not in schema:
            schema[same] = schema.pop(name)


def referred(schema: object, root: object) -> object:
    """The schema that a reference of the form `#/$defs/name` means; any other schema itself."""
    reference = schema.get("$ref") if isinstance(schema, dict) and len(schema) == 1 else None
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return schema
    found = root
    for part in reference[2:].split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _list_names(schema: dict[str, Any], root: object) -> None:
    """Names from a list, or under one pattern, as pydantic and zod write them for records: llguidance knows them under
    `properties` and `patternProperties`. Changes `schema`."""
    names = referred(schema.get("propertyNames"), root)
    if not isinstance(names, dict) or {"properties", "patternProperties"} & set(schema):
        return
    rest = set(names) - {"type", "title", "description"}
    value = schema.get("additionalProperties", True)
    listed = names.get("enum")
    if rest == {"enum"} and isinstance(listed, list) and all(isinstance(name, str) for name in listed):
        schema["properties"] = dict.fromkeys(listed, value)
    elif rest == {"pattern"} and isinstance(names["pattern"], str):
        schema["patternProperties"] = {names["pattern"]: value}
    else:
        return
    schema["additionalProperties"] = False
    del schema["propertyNames"]


def _narrow(schema: dict[str, Any]) -> None:
    """Put the bounds of numbers where llguidance can keep them: it fails at those of floats and of 64 bits.

    They go further inside, so each number is valid for the client's bounds. Changes `schema`.
    """
    given = {name: schema[name] for name in (*_LOWER, *_UPPER) if type(schema.get(name)) in (int, float)}
    narrowed = {name: _nearer(value, name in _LOWER) for name, value in given.items()}
    low = max((narrowed[name] for name in _LOWER if name in narrowed), default=-_WIDEST)
    high = min((narrowed[name] for name in _UPPER if name in narrowed), default=_WIDEST)
    if low >= high:
        return
    schema |= narrowed
    if high - low < 1:  # llguidance takes an excluded whole number there
        for name, bound, sign in (("minimum", low, 1), ("maximum", high, -1)):
            if narrowed.get(f"exclusive{name.title()}") == bound == int(bound):
                schema[name] = bound + sign * min(_BESIDE, (high - low) / 2)


def _nearer(value: float, lower: bool) -> float:
    if _EXACT < abs(value) <= _WIDEST and (found := int(float(value))) != value and (found < value) == lower:
        return int(math.nextafter(float(value), math.inf if lower else -math.inf))
    if abs(value) > _WIDEST and (value < 0) == lower:
        return -_WIDEST if lower else _WIDEST
    if 0 < abs(value) < _SMALLEST and (value > 0) == lower:
        return _SMALLEST if lower else -_SMALLEST
    return value


def _without_look_ahead(pattern: str) -> str:
    """An equal pattern; the same one if edge finds none: llguidance then refuses it with its reason."""
    try:
        return plain_pattern(pattern)
    except (UnknownError, RecursionError):
        return pattern


def patterns_apart(schema: str) -> str:
    """A schema as JSON, for llguidance: with several patterns where one is not enough. llguidance keeps them all.

    A pattern with look-around that has no equal one becomes several, of which each has one. The formats of dates and
    times get a pattern, because llguidance takes February 29 of each year, and second 60 of each minute.

    Raises GrammarError for a pattern or a number that llguidance would not keep.
    """
    if not any(sign in schema for sign in ('"pattern', *(f'"{form}"' for form in _DATES))):
        if _LONG_NUMBER.search(schema):
            _check_numbers(json.loads(schema))
        return schema
    whole = json.loads(schema)
    _check_numbers(whole)
    for one in all_schemas(whole):
        pattern, form, more = one.get("pattern"), one.get("format"), list[str]()
        if isinstance(form, str) and form in _DATES:
            more.append(f"^{_DATES[form]}$")
        if isinstance(pattern, str):
            if any(sign in pattern for sign in ("(?=", "(?!", "(?<=", "(?<!")):
                with contextlib.suppress(UnknownError, RecursionError):
                    pattern, *others = plain_conditions(pattern)
                    more += others
            one["pattern"] = json_pattern(pattern)
        if more:
            rules = [{"pattern": json_pattern(condition)} for condition in more]
            one["allOf"] = [*(one.get("allOf") or ()), *rules]
        if isinstance(named := one.get("patternProperties"), dict):
            one["patternProperties"] = {json_pattern(name): value for name, value in named.items()}
    return json.dumps(whole)


_LONG_NUMBER = re.compile("[0-9]{16}")


def _check_numbers(schema: object) -> None:
    """llguidance has values as floats: it would write other digits of a long whole number. Raises GrammarError."""
    waiting: list[Any] = [
        one[name] for one in all_schemas(schema) for name in ("const", "enum") if name in one
    ]
    for value in waiting:  # it grows
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif type(value) is int and abs(value) > _EXACT and not _is_exact(value):
            raise GrammarError(f"the value {str(value)[:60]} has more digits than can be kept")


def _is_exact(value: int) -> bool:
    try:
        return Decimal(repr(float(value))) == value
    except OverflowError:
        return False


def check_controls(schema: object) -> None:
    """Where a character has one escape, a control character has none, and llguidance would leave it out. Raises
    GrammarError."""
    for one in all_schemas(schema):
        named = one.get("patternProperties")
        for pattern in (one.get("pattern"), *(named if isinstance(named, dict) else ())):
            if isinstance(pattern, str) and needs_long_escapes(pattern):
                raise GrammarError(
                    f"the pattern {pattern[:80]!r} has a control character, which cannot be kept"
                )


def check_least(schema: object) -> None:
    """llguidance accepts an unlisted name twice and counts it twice, so it cannot guarantee `minProperties`.

    Raises GrammarError.
    """
    for one in all_schemas(schema):
        least = one.get("minProperties")
        others = one.get("additionalProperties", True) is not False or "patternProperties" in one
        if isinstance(least, int) and least > 1 and others:
            raise GrammarError(
                'cannot be guaranteed: "minProperties" with names that are not listed; list them under '
                '"properties", or set "additionalProperties": false'
            )
