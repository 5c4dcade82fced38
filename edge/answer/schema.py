"""The JSON schema of the action, for other engines; edge's own engine uses grammar.gbnf, which is stricter.

A schema does not fix the order of keys (engines write them in the order of `properties`), the white space, or the form
of a number. In everything else it agrees with the grammar; tests/answer/test_schema.py checks that.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict

from edge.system.hashes import text_sha256

Api = Literal["completions", "chat"]


class SchemaFields(TypedDict, total=False):
    """The fields of a request that ask a server for a JSON schema: one of the two."""

    json_schema: object
    response_format: object


@cache
def _text() -> str:
    return Path(__file__).with_name("action.schema.json").read_text(encoding="utf-8")


def action_schema() -> dict[str, Any]:
    """The schema in edge/answer/action.schema.json, as a JSON value."""
    schema: dict[str, Any] = json.loads(_text())
    return schema


def schema_sha256() -> str:
    """The SHA-256 of the schema file, in hexadecimal; the provenance of a result has it instead of the grammar's."""
    return str(text_sha256(_text()))


def schema_request(api: Api, server: str) -> SchemaFields:
    """The fields of a request that ask a server for the schema.

    `response_format` is OpenAI's; vLLM and SGLang read it in completions too. llama-server reads it only in chats; in
    completions it has its own `json_schema`. llama-cpp-python's server has its own form of it, in chats only.
    """
    if api == "completions" and server == "llama-server":
        return {"json_schema": action_schema()}
    if server == "llama-cpp-python":
        return {"response_format": {"type": "json_object", "schema": action_schema()}}
    wrapped = {"name": "action", "schema": action_schema(), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": wrapped}}
