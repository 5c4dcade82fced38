"""The form that a request asks for, in the words of several servers, and the fields that edge does not know."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge.serve.tools import FieldError
from edge.system.text import printable

_MOST_SHOWN = 20  # unknown fields in a warning


@dataclass(frozen=True)
class Guide:
    """The form of an answer: the action, a JSON schema, a GBNF grammar, or any text."""

    kind: Literal["action", "schema", "gbnf", "text"]
    text: str = ""
    param: str | None = None


def read_guide(body: Mapping[str, Any], default: Guide) -> Guide:
    """The form that a request asks for in one of the fields of FORMS. Raises FieldError."""
    given = [name for name in FORMS if body.get(name) is not None]
    if len(given) > 1:
        raise FieldError(f"give either {given[0]} or {given[1]}, not both", given[1])
    try:
        return FORMS[given[0]](body[given[0]], given[0]) if given else default
    except RecursionError:
        raise FieldError(f"{given[0]} is nested too deeply", given[0]) from None


def check_fields(
    body: Mapping[str, Any],
    known: Collection[str],
    inside: Mapping[str, Collection[str]] | None = None,
    use: str = "response_format or grammar",
) -> tuple[str, ...]:
    """Refuse unknown fields that limit the answer; a sentence about the others, which are ignored.

    A limit that is ignored would be an answer of another form than the client expects. So a field is refused if its
    name says that it is a form (`responseSchema`, `guided_regex`), or if it holds a schema or such a name, at any
    depth. `known`: the fields that the server reads; `inside`: fields of which it reads only these parts; `use`: what
    the client can use instead. Raises FieldError.
    """
    if body.get("store"):
        raise FieldError(
            "store is not supported: the server keeps no answers; send store: false, or leave it out", "store"
        )
    ignored = []
    for name, value in body.items():
        if name in (inside or {}) and isinstance(value, dict):
            parts = {key: one for key, one in value.items() if key not in (inside or {})[name]}
        elif name in known or name in _NO_EFFECT or _is_nothing(value):
            continue
        else:
            parts = {name: value}
            ignored.append(printable(name[:40]))
        if (found := _limit(parts)) is not None:
            place = found if name in parts else f"{name}.{found}"
            raise FieldError(f"{place} is not supported; use {use}, or leave it out", printable(name[:80]))
    if not ignored:
        return ()
    shown = ", ".join(ignored[:_MOST_SHOWN]) + (", …" if len(ignored) > _MOST_SHOWN else "")
    return (f"the server does not know these fields, and ignores them: {shown}",)


def _limit(value: Mapping[str, Any]) -> str | None:
    """The place of the first part that limits an answer, as far as its name or its value tells; None without one."""
    waiting: list[tuple[str, Any]] = [(key, one) for key, one in value.items()]
    for place, one in waiting:  # it grows
        if not _is_nothing(one) and (_names_a_limit(place.rpartition(".")[2]) or _is_schema(one)):
            return printable(place[:80])
        waiting += _parts(place, one)
    return None


def _parts(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"{place[-200:]}.{key}", one) for key, one in value.items())
    if isinstance(value, list):
        yield from ((place, one) for one in value if isinstance(one, dict | list))


def _is_nothing(value: Any) -> bool:
    """Whether a value asks for nothing: null, false, or empty."""
    return value is None or value is False or value in ("", [], {})


def _names_a_limit(name: str) -> bool:
    words = set(re.findall(r"[a-z]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()))
    formed = bool(words & _ANSWERS and words & {"format", "formats", "type"})
    return formed or bool(words & _LIMITS) or name in _LIMITING or name in FORMS


def _is_schema(value: Any) -> bool:
    """Whether a value looks like a JSON schema. Gemini writes types in capitals."""
    if not isinstance(value, dict):
        return False
    kind = value.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    return (
        any(isinstance(one, str) and one.lower() in _KINDS for one in kinds)
        or isinstance(value.get("properties"), dict)
        or any(isinstance(value.get(name), list) for name in ("anyOf", "oneOf", "allOf", "enum"))
        or any(name in value for name in ("$ref", "$defs", "$schema"))
    )


_KINDS = ("string", "integer", "number", "boolean", "null", "array", "object")
_LIMITS = frozenset(
    "json schema schemas grammar grammars gbnf ebnf bnf lark regex regexp pattern patterns guided guidance structured "
    "structural constraint constraints constrained constrain choice choices mime xgrammar outlines logit logits".split()
)
"""Words in the names of fields that limit an answer."""
_ANSWERS = frozenset("response output answer result reply".split())
_LIMITING = ("allowed_token_ids", "bad_words", "bad_words_ids", "force_words_ids")
_NO_EFFECT = frozenset(
    "user metadata store service_tier prompt_cache_key prompt_cache_retention safety_identifier stream_options "
    "include".split()
)
"""Fields that change no answer."""


def _gbnf(value: object, name: str) -> Guide:
    if not isinstance(value, str) or not value.strip():
        raise FieldError(f"{name} must be a text in GBNF", name)
    return Guide("gbnf", value, name)


def _schema(value: object, name: str) -> Guide:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise FieldError(f"{name} must be an object: a JSON schema", name)
    return Guide("schema", json.dumps(value), name)


def _choice(value: object, name: str) -> Guide:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise FieldError(f"{name} must be a list of texts", name)
    return Guide("gbnf", "root ::= " + " | ".join(map(_quoted, value)), name)


def _quoted(text: str) -> str:
    """A text as a literal of GBNF."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def _structured(value: object, name: str) -> Guide:
    """vLLM's structured_outputs: one of its forms."""
    given = {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else {}
    forms: dict[str, Callable[[object, str], Guide]] = {"json": _schema, "choice": _choice, "grammar": _gbnf}
    if len(given) != 1 or (key := next(iter(given))) not in (*forms, "json_object"):
        raise FieldError(f"{name} must have exactly one of json, choice, grammar, json_object", name)
    return forms[key](given[key], name) if key in forms else Guide("schema", _ANY_OBJECT, name)


def _format(value: object, name: str) -> Guide:
    """Ollama's format: "json", or a schema."""
    return Guide("schema", _ANY_OBJECT, name) if value == "json" else _schema(value, name)


def _response_format(form: object, name: str) -> Guide:
    """OpenAI's format. A schema can be in `json_schema.schema`, or in `schema` as other servers have it."""
    kind = form.get("type") if isinstance(form, dict) else None
    if not isinstance(form, dict) or kind not in ("text", "json_object", "json_schema"):
        raise FieldError(f"{name}.type must be text, json_object or json_schema", name)
    inner = form.get("json_schema")
    held = inner if isinstance(inner, dict) else {} if inner is None else {"schema": inner}
    rest = {key: one for key, one in form.items() if key not in ("type", "schema", "json_schema")}
    rest |= {key: one for key, one in held.items() if key not in ("schema", "description", "name")}
    if (place := _limit(rest)) is not None:
        raise FieldError(f"{name} has {place}, which is not supported", name)
    schemas = [one for one in (form.get("schema"), held.get("schema")) if one is not None]
    if not all(isinstance(one, dict) for one in schemas):
        raise FieldError(f"{name}: the schema must be an object", name)
    if schemas and kind == "text":
        raise FieldError(f"{name} has a schema, so its type must be json_schema", name)
    if len(schemas) == 2 and schemas[0] != schemas[1]:
        raise FieldError(f"{name} has two schemas; give one of them", name)
    if kind == "json_schema" and not schemas:
        raise FieldError(f"{name}.json_schema.schema must be an object", name)
    if kind == "text":
        return Guide("text")
    return Guide("schema", json.dumps(schemas[0]) if schemas else _ANY_OBJECT, name)


_ANY_OBJECT = '{"type": "object"}'
FORMS: dict[str, Callable[[object, str], Guide]] = {
    "response_format": _response_format,
    "grammar": _gbnf,
    "json_schema": _schema,
    "guided_json": _schema,
    "guided_choice": _choice,
    "guided_grammar": _gbnf,
    "structured_outputs": _structured,
    "format": _format,
}
"""The fields in which a request can ask for a form. Other servers have other names for it."""
