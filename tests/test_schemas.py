"""The schemas of `edge schema` say what the readers enforce, and docs/formats.md says what the schemas say.

.venv/bin/pytest tests/test_schemas.py
EDGE_WRITE_DOCS=1 .venv/bin/pytest tests/test_schemas.py -k tables    writes the tables of docs/formats.md
"""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edge.agent.allow import read_allowlist
from edge.agent.record import Record
from edge.errors import EdgeError
from edge.measure import measure
from edge.prompt import read_messages
from edge.replay.known import known_models, read_known
from edge.replay.result import read_result
from edge.replay.rows import read_rows
from edge.replay.score import score
from edge.schemas import FORMATS, example, schema
from edge.system.config import SETTINGS
from edge.system.paths import embedded_rows

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "formats.md"
NAMES = [one.name for one in FORMATS]


def edge(*words: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return command_line.run(*words, cwd=folder, program="python -m edge")


def errors(name: str, value: object) -> list[str]:
    """What the schema refuses in a value."""
    return [error.message[:200] for error in Draft202012Validator(schema(name)).iter_errors(value)]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


# --- the command ---


def test_the_command_lists_and_prints() -> None:
    listed = edge("schema")
    assert listed.returncode == 0 and [line.split()[0] for line in listed.stdout.splitlines()[1:]] == NAMES
    for name in ("replay-row", "action"):
        printed = edge("schema", name)
        assert json.loads(printed.stdout) == schema(name)
    wrong = edge("schema", "replay-rov")
    assert wrong.returncode == 2 and "did you mean replay-row?" in " ".join(wrong.stderr.split())
    assert edge("schema", "result", "--example").returncode == 2
    assert edge("schema", "--example").returncode == 2


@pytest.mark.parametrize("name", NAMES)
def test_each_schema_is_one_and_describes_every_field(name: str) -> None:
    found = schema(name)
    assert found["$schema"].endswith("2020-12/schema")
    Draft202012Validator.check_schema(found)
    if name == "action":
        return
    for part in (found, *found.get("$defs", {}).values()):
        for field, described in part.get("properties", {}).items():
            if part.get("title") == "messages" or ("$ref" in described and "description" not in described):
                continue
            assert described.get("description"), (name, field)


# --- real files ---


def test_real_rows_are_valid() -> None:
    paths = [embedded_rows(), ROOT.parent / "shared" / "data" / "replay_terminal_dev.jsonl"]
    for path in filter(Path.exists, paths):
        rows = lines(path)
        assert len(rows) > 100
        for row in rows:
            assert errors("replay-row", row) == []
            assert errors("messages", row["messages"]) == []
            assert errors("messages", {"messages": row["messages"]}) == []


@pytest.mark.slow
def test_examples_run(tmp_path: Path, tiny_q4: Path) -> None:
    """The three rows of docs/formats.md: valid, without a finding, answered and scored."""
    for name in ("replay-row", "prediction", "messages"):
        printed = edge("schema", name, "--example")
        assert printed.returncode == 0
        (tmp_path / name).write_text(printed.stdout, encoding="utf-8")
    for name in ("replay-row", "prediction"):
        assert len(lines(tmp_path / name)) == 3
        for value in lines(tmp_path / name):
            assert errors(name, value) == []
    assert errors("messages", json.loads((tmp_path / "messages").read_text(encoding="utf-8"))) == []
    assert len(read_messages(tmp_path / "messages")) == 2

    checked = edge("rows", "check", "replay-row", "--strict", folder=tmp_path)
    assert checked.returncode == 0 and "3 valid rows of 2 tasks, 0 errors, 0 warnings" in checked.stdout
    words = ("eval", "-m", tiny_q4, "-r", "replay-row", "-o", "r.json", "--max-tokens", "64", "--quiet")
    done = edge(*words, folder=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and "r.json: 3 steps" in done.stdout
    scored = edge("score", "prediction", "-r", "replay-row", "-o", "s.json", folder=tmp_path)
    assert scored.stdout == "s.json: 3 steps, score 55.56, first command 33.3 %, valid JSON 66.7 %\n"
    for result in ("r.json", "s.json"):
        assert errors("result", json.loads((tmp_path / result).read_text(encoding="utf-8"))) == []


def test_the_page_shows_the_shipped_examples() -> None:
    pages = page() + (ROOT / "docs" / "allowlist.md").read_text(encoding="utf-8")
    found = dict(
        re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```\n<!-- end example -->", pages, re.DOTALL)
    )
    assert found == {one.name: example(one.name) for one in FORMATS if one.example}


def test_a_published_result_is_valid(shared: Path) -> None:
    path = shared / "data" / "smollm2_vllm_bf16.json"
    assert errors("result", json.loads(path.read_text(encoding="utf-8"))) == []


def test_measurements_are_valid(tmp_path: Path, tiny_q4: Path, tiny_bf16: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(example("replay-row") or "", encoding="utf-8")
    (tmp_path / "text.txt").write_text("one two three four five " * 60, encoding="utf-8")
    measure(tiny_q4, tmp_path / "a.json", base=tiny_bf16, replay=tmp_path / "rows.jsonl")
    measure(tiny_q4, tmp_path / "b.json", text=tmp_path / "text.txt", chunk=32)
    for name in ("a.json", "b.json"):
        value = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        assert errors("measurement", value) == []
        assert errors("measurement", value | {"measurement": 99}) != []


def test_a_session_record_is_valid(tmp_path: Path) -> None:
    action = {"analysis": "a", "plan": "p", "commands": [{"keystrokes": "ls\n", "duration": 0.1}]}
    path = tmp_path / "session.jsonl"
    with Record.create(path, {"task": "t", "model": "/m.gguf", "workdir": "/w", "sandbox": False}) as record:
        for done in (False, True):
            fields: Any = {**action, "task_complete": done}
            messages = [{"role": "user", "content": "t"}]
            record.append(messages, json.dumps(fields), fields, {"time": "now", "prompt_tokens": 3})
        record.finish("complete", "$ ")
    for row in lines(path):
        assert errors("session-record", row) == [] == errors("replay-row", row)
        assert errors("session-record", {**row, "session": None}) != []
        assert errors("session-record", {**row, "messages": []}) != []


def test_comparisons_are_valid(tmp_path: Path) -> None:
    """With steps and with published figures on the other side, with causes and without."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(example("replay-row") or "", encoding="utf-8")
    (tmp_path / "mine.jsonl").write_text(example("prediction") or "", encoding="utf-8")
    score(tmp_path / "mine.jsonl", rows, tmp_path / "a.json", model="a")
    score(tmp_path / "mine.jsonl", rows, tmp_path / "b.json", model="b")
    for words in (
        ("--reference", "b.json"),
        ("--reference", "lfm2.5-8b-a1b-terminal"),
        ("--causes",),
        ("--reference", "b.json", "--causes"),
    ):
        done = edge("compare", "a.json", *words, "--json", "c.json", "--force", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        value = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
        assert errors("comparison", value) == []
        assert errors("comparison", value | {"run": None}) != []
    assert errors("comparison", value | {"parts": [{}]}) != []


@pytest.mark.slow
def test_the_files_of_chat_and_sweep_are_valid(tmp_path: Path, tiny_q4: Path, tiny_folder: Path) -> None:
    lines = "Remove the file old.log.\n/save talk.json\n"
    chat = ("chat", "-m", tiny_q4, "--commands", "--max-tokens", "16")
    done = command_line.run(*chat, input=lines, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    value = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert errors("conversation", value) == [] == errors("messages", value)
    assert errors("conversation", {**value, "answers": "poem"}) != []
    assert errors("messages", {**value, "schema_version": 2}) != []
    (tmp_path / "rows.jsonl").write_text(example("replay-row") or "", encoding="utf-8")
    words = ("sweep", tiny_folder, "-q", "Q4_0", "-r", "rows.jsonl", "-o", ".", "--max-tokens", "8")
    done = edge(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    value = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert errors("sweep", value) == [] and value["stages"]["Q4_0"]["measured"]
    assert "report.html" in value["report"]["files"]
    assert errors("sweep", {**value, "stages": {"Q4_0": {"begun": 1}}}) != []
    (tmp_path / "sweep.json").write_text(json.dumps(value | {"schema_version": 3}), encoding="utf-8")
    newer = edge(*words, folder=tmp_path)
    assert (
        newer.stderr.splitlines()[-1]
        == "error: sweep.json: has schema version 3; this edge reads up to 2: update edge"
    )


def test_toml_files_are_valid(tmp_path: Path) -> None:
    assert len(known_models()) >= 4
    for model in known_models():
        value = tomllib.loads(model.path.read_text(encoding="utf-8"))
        assert errors("known-model", value) == []
        assert errors("known-model", {**value, "contxt": 1}) != []
    text = edge("schema", "allowlist", "--example").stdout
    (tmp_path / "allow.toml").write_text(text, encoding="utf-8")
    assert len(read_allowlist(tmp_path / "allow.toml").rules) > len(tomllib.loads(text)["rule"]) > 3
    assert errors("allowlist", tomllib.loads(text)) == []
    rule = {"decision": "allow", "prefix": ["ls"]}
    assert errors("allowlist", {"rule": [rule], "command": [{"program": "ls"}]}) == []
    for wrong in (
        *(
            {"keys": ["Up"]},
            {"key": []},
            {"command": [{"argument": []}]},
            {"command": [{}]},
            {"include": ["x"]},
        ),
        *(
            {"rule": [rule | change]}
            for change in ({"prefix": []}, {"decision": "yes"}, {"prefix": [[]]}, {"x": 1})
        ),
    ):
        assert errors("allowlist", wrong) != []


# --- the reader and the schema agree ---

# Not in the schemas: 1.0 is a whole number for JSON Schema. So these values have no such number.
SCALARS = st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from([0.5, -1.5, "", "a", "user"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
DROP = object()


def changed(value: Any, draw: Callable[[Any], Any]) -> Any:
    """A JSON value with one part replaced, removed or added, at any depth."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(value)))
        inner = DROP if not draw(st.integers(0, 3)) else changed(value[name], draw)
        return {
            **{key: part for key, part in value.items() if key != name},
            **({} if inner is DROP else {name: inner}),
        }
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], changed(value[index], draw), *value[index + 1 :]]
    return draw(VALUES)


ROW = {
    "task_id": "t",
    "step_idx": 0,
    "sample_idx": 1,
    "total_steps": 3,
    "source": "s",
    "source_group": None,
    "prompt": "p",
    "messages": [
        {"role": "system", "content": "x"},
        {"role": "user", "content": [{"type": "text"}], "tool_calls": None},
    ],
    "ref_raw": '{"commands": []}',
}


def accepted(read: Callable[[Path], object], path: Path, data: str) -> bool:
    path.write_text(data, encoding="utf-8")
    try:
        read(path)
    except EdgeError:
        return False
    return True


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(
    st.sampled_from(sorted(SETTINGS)), SCALARS | st.sampled_from([256, 1 << 24, 1 << 25, 100.5, " ", "[]"])
)
def test_settings_agree(name: str, value: Any) -> None:
    assert SETTINGS[name].fits(value) == (errors("config", {name: value}) == [])


@pytest.mark.slow
@settings(max_examples=400)
@given(data=st.data())
def test_rows_and_messages_agree(place: Path, data: st.DataObject) -> None:
    """The reader refuses exactly what the schema refuses."""
    row = changed(changed(ROW, data.draw), data.draw) if data.draw(st.booleans()) else changed(ROW, data.draw)
    valid = errors("replay-row", row) == []
    assert accepted(read_rows, place / "rows.jsonl", json.dumps(row) + "\n") == valid, row
    messages = row.get("messages") if isinstance(row, dict) else row
    for value in (messages, {"messages": messages}):
        valid = errors("messages", value) == []
        assert accepted(read_messages, place / "m.json", json.dumps(value)) == valid, value


PREDICTION = {"task_id": "t", "step_idx": 0, "sample_idx": 1, "pred_text": "", "finish_reason": "stop"}
PREDICTION |= {"prompt_tokens": 3, "completion_tokens": None, "closed_at_budget": False, "prompt_sha256": "a"}


@pytest.mark.slow
@settings(max_examples=200)
@given(data=st.data())
def test_predictions_agree(place: Path, data: st.DataObject) -> None:
    """edge score refuses what the schema refuses; of what the schema accepts, it refuses only unknown steps."""
    (place / "one.jsonl").write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    value = changed(PREDICTION, data.draw)
    (place / "p.jsonl").write_text(json.dumps(value) + "\n", encoding="utf-8")
    problem = ""
    try:
        score(place / "p.jsonl", place / "one.jsonl", place / "out.json", force=True)
    except EdgeError as error:
        problem = str(error)
    if errors("prediction", value):
        assert "edge schema prediction" in problem, value
    else:
        assert problem == "" or "is not among the rows" in problem, (value, problem)


@pytest.mark.slow
@settings(max_examples=200)
@given(data=st.data())
def test_what_the_reader_of_a_result_refuses_the_schema_refuses(place: Path, data: st.DataObject) -> None:
    """The reader of results accepts more: defaults of published files, and null for a missing object."""
    (place / "one.jsonl").write_text(
        json.dumps({**ROW, "messages": ROW["messages"][1:]}) + "\n", encoding="utf-8"
    )  # type: ignore[index]
    (place / "p.jsonl").write_text(json.dumps(PREDICTION) + "\n", encoding="utf-8")
    if not (place / "whole.json").exists():
        score(place / "p.jsonl", place / "one.jsonl", place / "whole.json")
    value = changed(json.loads((place / "whole.json").read_text(encoding="utf-8")), data.draw)
    if not accepted(read_result, place / "r.json", json.dumps(value)):
        assert errors("result", value) != [], value


@settings(max_examples=200)
@given(data=st.data())
def test_known_models_agree(place: Path, data: st.DataObject) -> None:
    value = tomllib.loads(known_models()[0].path.read_text(encoding="utf-8"))
    name = data.draw(st.sampled_from([*value, "other"]))
    new = data.draw(st.booleans() | st.integers(-2, 3) | st.sampled_from([0.5]) | st.sampled_from(["", "a"]))
    fields = {key: part for key, part in value.items() if not isinstance(part, dict)} | {name: new}
    text = "".join(f"{key} = {json.dumps(part)}\n" for key, part in fields.items())
    assert accepted(read_known, place / "m.toml", text) == (errors("known-model", fields) == [])


# --- docs/formats.md ---


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def type_words(field: dict[str, Any]) -> str:
    """The type of a field in words, from its schema."""
    if "$ref" in field:
        return "object"
    if "const" in field:
        return json.dumps(field["const"])
    if "enum" in field:
        return " or ".join(f"`{one}`" for one in field["enum"])
    if "anyOf" in field:
        return " or ".join(type_words(part) for part in field["anyOf"])
    kinds = field.get("type", "any value")
    words = []
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind == "array":
            inner = type_words(field["items"])
            many = f"list: each {inner}" if " or " in inner and "`" not in inner else f"list of {inner}s"
            words.append({"any value": "list"}.get(inner, many.removesuffix("s") if "`" in inner else many))
        elif kind == "integer" and field.get("minimum") == 0:
            words.append("integer ≥ 0")
        elif kind == "number" and field.get("maximum") == 1:
            words.append("number from 0 to 1")
        elif kind == "string" and "minLength" in field:
            words.append("non-empty string")
        else:
            words.append(kind)
    return " or ".join(words)


def table_of(name: str, part: str | None, only: list[str]) -> str:
    """The fields of a schema, or of one of its parts, as a table; `only` these fields, if there are any."""
    found = schema(name) if part is None else schema(name)["$defs"][part]
    rows = ["| field | type | meaning |", "|---|---|---|"]
    for field, described in found["properties"].items():
        if field in only or not only:
            shown = f"**`{field}`**" if field in found.get("required", ()) else f"`{field}`"
            about = described.get("description", "").replace("<think>…</think>", "`<think>…</think>`")
            rows.append(f"| {shown} | {type_words(described)} | {about} |")
    return "\n".join(rows) + "\n"


def with_tables(text: str) -> str:
    def fields(match: re.Match[str]) -> str:
        name, *rest = match[2].split()
        return f"{match[1]}{table_of(name, rest[0] if rest else None, rest[1:])}{match[3]}"

    def shown(match: re.Match[str]) -> str:
        kind = "json" if match[2] == "messages" else "jsonl"
        return f"{match[1]}```{kind}\n{example(match[2])}```\n{match[3]}"

    text = re.sub(r"(<!-- fields: ([^\n]+) -->\n).*?(<!-- end fields -->)", fields, text, flags=re.DOTALL)
    return re.sub(r"(<!-- example: (\S+) -->\n).*?(<!-- end example -->)", shown, text, flags=re.DOTALL)


def test_tables_are_fresh() -> None:
    if "EDGE_WRITE_DOCS" in os.environ:
        PAGE.write_text(with_tables(page()), encoding="utf-8")
    assert page() == with_tables(page())


def test_every_field_of_a_table_has_a_meaning() -> None:
    rows = re.findall(r"^\| (?:\*\*)?`[^|]+`(?:\*\*)? \|[^|]*\|[^|\n]*\|$", page(), re.MULTILINE)
    assert len(rows) > 400
    assert [row for row in rows if not row.split("|")[3].strip()] == []


def test_every_field_is_in_a_table() -> None:
    """Each format has its section, and each part of each schema a table, but those shown elsewhere on the page."""
    shown = {tuple(words.split()[:2]) for words in re.findall(r"<!-- fields: ([^\n]+) -->", page())}
    elsewhere = {
        ("messages",),
        ("action",),
        ("replay-row", "MessageFields"),
        ("session-record", "MessageFields"),
        ("conversation", "MessageFields"),
        ("session-record", "CommandFields"),
        ("measurement", "Provenance"),
        ("measurement", "TensorShare"),
        ("measurement", "AdapterFacts"),
        ("measurement", "ShardFields"),
        ("trials", "Provenance"),
        ("trials", "TensorShare"),
        ("trials", "AdapterFacts"),
        ("trials", "ShardFields"),
        ("comparison", "Interval"),
        ("known-model", "Aggregate"),
        ("known-model", "GroupFigures"),
    }
    parts: set[tuple[str, ...]] = {(name,) for name in NAMES}
    parts |= {(name, part) for name in NAMES for part in schema(name).get("$defs", {}) if part != "Messages"}
    assert parts - elsewhere == shown
