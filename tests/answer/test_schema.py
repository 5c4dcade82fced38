"""The JSON schema of the action agrees with grammar.gbnf: each accepts what the other accepts.

pytest tests/answer/test_schema.py
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge.answer.schema
from edge.answer.action import parse_action
from edge.answer.schema import action_schema, schema_request, schema_sha256
from edge.errors import EdgeError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def ordered(strategies: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the keys in this order, which the grammar requires."""
    return st.tuples(*strategies.values()).map(lambda values: dict(zip(strategies, values, strict=True)))


COMMAND = ordered(
    {"keystrokes": TEXT, "duration": st.integers(0, 60) | st.integers(0, 600).map(lambda tenths: tenths / 10)}
)
ACTION = ordered(
    {
        "analysis": TEXT,
        "plan": TEXT,
        "commands": st.lists(COMMAND, max_size=3),
        "task_complete": st.booleans(),
    }
)
VALIDATOR = jsonschema.Draft202012Validator(action_schema())


def grammar_takes(value: Any) -> bool:
    try:
        parse_action(json.dumps(value))
    except EdgeError:
        return False
    return True


@given(ACTION)
def test_both_take_every_action(action: dict[str, Any]) -> None:
    assert grammar_takes(action)
    assert VALIDATOR.is_valid(action)


@given(ACTION, st.data())
def test_neither_takes_a_broken_action(action: dict[str, Any], data: st.DataObject) -> None:
    names = list(action)
    how = data.draw(st.sampled_from(["missing", "more", "kind", "duration", "command"]))
    if how == "missing":
        del action[data.draw(st.sampled_from(names))]
    elif how == "more":
        action["thoughts"] = ""
    elif how == "kind":
        action[data.draw(st.sampled_from(names))] = data.draw(st.sampled_from([None, 3, {}, [1]]))
    elif how == "duration":
        action["commands"] = [
            {"keystrokes": "", "duration": data.draw(st.sampled_from([-1, 61, 60.5, "1", None]))}
        ]
    else:
        action["commands"] = data.draw(
            st.sampled_from(
                [[{"keystrokes": "ls\n"}], [{"duration": 1}], ["ls"], [{"keystrokes": 1, "duration": 1}]]
            )
        )
    assert not VALIDATOR.is_valid(action)
    assert not grammar_takes(action)


def test_each_server_is_asked_in_its_own_words() -> None:
    assert schema_request("completions", "llama-server") == {"json_schema": action_schema()}
    for api, server in (
        ("chat", "llama-server"),
        ("chat", ""),
        ("completions", "vLLM"),
        ("completions", "SGLang"),
    ):
        wrapped = schema_request(api, server)["response_format"]
        assert wrapped["type"] == "json_schema" and wrapped["json_schema"]["schema"] == action_schema()


def test_the_hash_is_that_of_the_shipped_file() -> None:
    import hashlib

    file = Path(edge.answer.schema.__file__).with_name("action.schema.json")
    assert schema_sha256() == hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate({})
