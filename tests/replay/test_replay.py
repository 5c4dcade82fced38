"""Replay rows: what is read, and that every damaged line is named.

Run: .venv/bin/python -m pytest tests/replay/test_replay.py
"""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import ReplayError
from edge.replay.rows import Row, describe, read_rows
from edge.system.places import read_text

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ROW: dict[str, Any] = {
    "task_id": "t",
    "sample_idx": 1,
    "step_idx": 2,
    "total_steps": 5,
    "source": "bench/x",
    "source_group": "x",
    "prompt": "never used",
    "messages": [{"role": "user", "content": "List 파일."}],
    "ref_raw": "{}",
}


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in ROW.items() if name not in names}


def test_rows(tmp_path: Path) -> None:
    second = without("sample_idx", "total_steps", "source_group") | {"step_idx": 3}
    third = without("messages", "source", "source_group") | {"task_id": "u", "prompt": "USER:\nList."}
    rows = read_rows(
        write(tmp_path / "rows.jsonl", b"\xef\xbb\xbf" + json.dumps(ROW).encode(), b" ", second, third)
    )
    assert rows == [
        Row("t", 1, 2, 5, "bench/x", "x", ROW["messages"], "{}"),
        Row("t", 0, 3, None, "bench/x", "bench/x", ROW["messages"], "{}"),
        Row("u", 1, 2, 5, "", "unknown", [{"role": "user", "content": "USER:\nList."}], "{}"),
    ]
    assert [describe(row.key) for row in rows] == ["t step 2 sample 1", "t step 3", "u step 2 sample 1"]


def test_line_ends_and_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\r\n\r\n" + json.dumps(ROW | {"step_idx": 3}).encode())
    assert [row.step_idx for row in read_rows(path)] == [2, 3]


def test_limit_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW, ROW | {"step_idx": 3}, b"damaged")
    assert len(read_rows(path, limit=2)) == 2
    with pytest.raises(ReplayError, match="at least 1"):
        read_rows(path, limit=0)
    with pytest.raises(ReplayError, match=r"rows\.jsonl:3: not JSON"):
        read_rows(path, limit=3)


BAD: dict[str, tuple[Any, str]] = {
    "cut": (b'{"task_id": "t"', "not JSON"),
    "list": (b"[]", "not a JSON object"),
    "NaN": (b'{"task_id": "t", "x": NaN}', "not JSON"),
    "half a pair": (b'{"task_id": "\\ud800"}', "not JSON"),
    "not UTF-8": (b'{"task_id": "\xff"}', "is not UTF-8 text"),
    "zeros": (b"\x00" * 20, "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "no task": (without("task_id"), "task_id is missing"),
    "empty task": (ROW | {"task_id": ""}, "task_id is ''"),
    "task number": (ROW | {"task_id": 3}, "task_id is 3; it must be a non-empty string"),
    "no step": (without("step_idx"), "step_idx is missing"),
    "step text": (ROW | {"step_idx": "2"}, "step_idx is '2'; it must be a non-negative whole number"),
    "step below 0": (ROW | {"step_idx": -1}, "step_idx is -1; "),
    "step bool": (ROW | {"step_idx": True}, "step_idx is true; "),
    "step fraction": (ROW | {"step_idx": 1.5}, "step_idx is 1.5; "),
    "sample text": (ROW | {"sample_idx": "0"}, "sample_idx is '0'"),
    "total text": (ROW | {"total_steps": "5"}, "total_steps is '5'; it must be a whole number or null"),
    "group list": (ROW | {"source_group": []}, "source_group is an empty list; it must be a string or null"),
    "no reference": (without("ref_raw"), "ref_raw is missing"),
    "reference null": (ROW | {"ref_raw": None}, "ref_raw is null"),
    "no messages": (
        without("messages", "prompt"),
        "must be an object with messages, or with a prompt that is a string",
    ),
    "prompt list": (without("messages") | {"prompt": ["x"]}, "a prompt that is a string"),
    "messages empty": (ROW | {"messages": []}, "at least one"),
    "messages text": (ROW | {"messages": "x"}, "at least one"),
    "no role": (ROW | {"messages": [{"content": "x"}]}, r"messages\[0\].role is missing"),
    "no content": (
        ROW | {"messages": [*ROW["messages"], {"role": "user"}]},
        r"messages\[1\] is an object; it must be an object with content or tool_calls",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_line_is_named(tmp_path: Path, name: str) -> None:
    row, reason = BAD[name]
    path = write(tmp_path / "rows.jsonl", ROW | {"task_id": "before"}, row)
    with pytest.raises(ReplayError, match=reason) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:2: ") and "\n" not in str(caught.value)


def test_a_step_that_is_there_twice_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW, ROW | {"sample_idx": 0}, ROW | {"ref_raw": "other"})
    with pytest.raises(ReplayError, match=r":3: duplicate row for t step 2 sample 1; the first is in line 1"):
        read_rows(path)
    path = write(tmp_path / "rows.jsonl", without("sample_idx"), ROW | {"sample_idx": 0})
    with pytest.raises(ReplayError, match=r":2: duplicate row for t step 2; "):
        read_rows(path)


@pytest.mark.parametrize("data", [b"", b"\n \n\r\n"])
def test_no_rows(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(ReplayError, match="contains no rows"):
        read_rows(tmp_path / "rows.jsonl")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "Is a directory")):
        for read in (read_rows, read_text):
            with pytest.raises(ReplayError, match=reason):
                read(path)
    (tmp_path / "screen").write_bytes(b"ok \xff")
    with pytest.raises(ReplayError, match=r"not UTF-8 text \(byte 3\)"):
        read_text(tmp_path / "screen")
    (tmp_path / "screen").write_bytes("$ 파일\n".encode())
    assert read_text(tmp_path / "screen") == "$ 파일\n"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
changed_rows = st.dictionaries(st.sampled_from(sorted(ROW)), json_values, max_size=4).map(
    lambda changes: json.dumps(ROW | changes).encode()
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(changed_rows | st.binary(max_size=20), max_size=4))
def test_any_bytes_are_rows_or_one_clear_error(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        rows = read_rows(path)
    except ReplayError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert len({row.key for row in rows}) == len(rows) > 0
        assert all(row.messages and isinstance(row.ref_raw, str) and row.step_idx >= 0 for row in rows)


@pytest.mark.skipif(not DATA.exists(), reason="../shared is not beside this checkout")
def test_real_rows() -> None:
    rows = read_rows(DATA / "replay_terminal_dev.jsonl")
    assert len(rows) == 132 and len({row.task_id for row in rows}) == 16
    for before, row in itertools.pairwise(rows):
        if before.task_id == row.task_id:
            assert row.messages[: len(before.messages)] == before.messages
