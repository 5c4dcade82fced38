"""The action's JSON schema, for engines that keep to one; edge's own engine has grammar.gbnf, which says more.

A schema knows nothing of the keys' order (engines write them in the order of `properties`), of white space or of how a
number is spelled. In all else it and the grammar agree, which tests/answer/test_schema.py holds them to.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

from edge.system.hashes import text_sha256

Api = Literal["completions", "chat"]


@cache
def _text() -> str:
    return Path(__file__).with_name("action.schema.json").read_text(encoding="utf-8")


def action_schema() -> dict[str, Any]:
    """The schema, edge/answer/action.schema.json, as a JSON value."""
    schema: dict[str, Any] = json.loads(_text())
    return schema


def schema_sha256() -> str:
    """The SHA-256 of the schema's file, in hexadecimal: in a result's provenance where the grammar's else stands."""
    return str(text_sha256(_text()))


def schema_request(api: Api, server: str) -> dict[str, Any]:
    """The fields of a request that asks a server for the schema.

    `response_format` is OpenAI's, and vLLM and SGLang read it in completions too. llama-server reads it in chats
    alone, and in completions its own `json_schema`.
    """
    if api == "completions" and server == "llama-server":
        return {"json_schema": action_schema()}
    wrapped = {"name": "action", "schema": action_schema(), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": wrapped}}
