"""Checks of replay files: `edge rows check`, notes about references that are not actions, and lines of errors.

.venv/bin/pytest tests/replay/test_check.py
"""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import command_line
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeWarning, ReplayError
from edge.metrics import score_step
from edge.replay.check import check_rows, reference_notes, reference_problem
from edge.replay.rows import read_rows
from edge.replay.score import score
from edge.schemas import example
from edge.system.paths import embedded_rows

SEE = "(see `edge schema replay-row`)"
ACTION = '{"analysis": "", "plan": "", "commands": [{"keystrokes": "ls\\n", "duration": 0.1}], "task_complete": false}'
ROW: dict[str, Any] = {
    "task_id": "t",
    "step_idx": 0,
    "messages": [{"role": "user", "content": "x"}],
    "ref_raw": ACTION,
}


def edge(
    *words: str | Path, folder: Path, stdin: Path = Path(os.devnull)
) -> subprocess.CompletedProcess[str]:
    with open(stdin, "rb") as read:
        return command_line.run(*words, cwd=folder, stdin=read, program="python -m edge")


def write(path: Path, *values: Any) -> Path:
    data = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    path.write_bytes(b"".join(line + b"\n" for line in data))
    return path


def found(path: Path) -> list[tuple[int | None, str, str]]:
    return [(one.line, one.level, one.text) for one in check_rows(path).findings]


# --- edge rows check ---


def test_every_problem_is_found_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        ROW,
        b"",
        b'{"task_id": "t",',
        {"task_id": 3, "step_idx": -1, "messages": [{"content": 5}, {"role": "user", "content": "x"}]},
        [],
        ROW | {"ref_raw": "other"},
        ROW | {"task_id": "u", "messages": None},
        b'{"task_id": "\xff"}',
    )
    assert found(path) == [
        (3, "error", "not JSON at column 17: unexpected end of data"),
        (4, "error", "task_id is 3; it must be a non-empty string"),
        (4, "error", "step_idx is -1; it must be a non-negative whole number"),
        (4, "error", "messages[0].role is missing"),
        (4, "error", "messages[0].content is 5; it must be a string, a list or null"),
        (4, "error", "ref_raw is missing"),
        (5, "error", "not a JSON object but a list"),
        (6, "error", "duplicate row for t step 0; the first is in line 1"),
        (7, "error", "it must be an object with messages, or with a prompt that is a string"),
        (8, "error", "is not UTF-8 text (byte 14 of the line)"),
    ]
    done = edge("rows", "check", "rows.jsonl", folder=tmp_path)
    assert done.returncode == 1 and done.stderr == ""
    first, *_, summary, system, where = done.stdout.splitlines()
    assert first == "rows.jsonl:3: error: not JSON at column 17: unexpected end of data"
    assert "rows.jsonl:6: error: t step 0: duplicate row for t step 0; the first is in line 1" in done.stdout
    assert summary == "rows.jsonl: 1 valid row of 1 task, 10 errors, 0 warnings"
    assert system == "0 of 1 row with a system message; 0 references with a completed task"
    assert where == "the format: see `edge schema replay-row`"


def test_probable_mistakes_are_warnings(tmp_path: Path) -> None:
    system = {"role": "system", "content": "s"}
    path = write(
        tmp_path / "rows.jsonl",
        ROW | {"messages": [system, *ROW["messages"]], "sampel_idx": 1, "ref_comands": [], "my_own": 1},
        ROW | {"step_idx": 1},
        ROW | {"task_id": "u"},
        ROW | {"task_id": "u", "step_idx": 1, "messages": [{"role": "wizard", "content": "x"}]},
        ROW | {"task_id": "u", "step_idx": 2, "messages": [{"role": "assistant", "content": "x"}]},
        ROW | {"task_id": "v", "ref_raw": "rm x"},
        ROW | {"task_id": "v", "step_idx": 1, "ref_raw": '{"commands": [], "task_complete": true}'},
    )
    assert found(path) == [
        (1, "warning", "edge does not read the field 'sampel_idx'; did you mean sample_idx?"),
        (1, "warning", "edge does not read the field 'ref_comands'; did you mean ref_commands?"),
        (2, "warning", "has no system message, but step 0 of the task has one"),
        (
            4,
            "warning",
            "messages[0].role is 'wizard'; chat templates know system, developer, user, assistant, tool",
        ),
        (
            5,
            "warning",
            "the last message is the assistant's; the model answers a message of the user or of a tool",
        ),
        (6, "warning", "ref_raw is not an action: it has no JSON object; every answer scores 0"),
    ]
    checked = check_rows(path)
    assert (checked.rows, checked.tasks, checked.with_system, checked.completed) == (7, 3, 1, 1)
    assert (checked.without_command, checked.other_form) == (2, 1)
    assert len(read_rows(path)) == 7
    assert edge("rows", "check", path, folder=tmp_path).returncode == 0
    assert edge("rows", "check", path, "--strict", folder=tmp_path).returncode == 1
    told = json.loads(edge("rows", "check", path, "--json", folder=tmp_path).stdout)
    assert told["warnings"] == 6 and told["errors"] == 0 and told["rows"] == 7
    assert told["findings"][2] == {
        "line": 2,
        "level": "warning",
        "step": "t step 1",
        "text": found(path)[2][2],
    }


def test_real_rows_have_no_findings() -> None:
    checked = check_rows(embedded_rows())
    assert checked.findings == () and checked.rows == 143 and checked.other_form == 0


def test_files_that_are_not_rows(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([ROW], indent=2), encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    several = "not JSON Lines: the file is one JSON value over several lines; write each row on one"
    assert found(tmp_path / "list.json") == [(1, "error", several)]
    assert found(tmp_path / "empty.jsonl") == [(None, "error", "contains no rows")]
    with pytest.raises(ReplayError, match="several lines"):
        read_rows(tmp_path / "list.json")
    missing = edge("rows", "check", "none.jsonl", folder=tmp_path)
    assert missing.returncode == 1 and missing.stdout == ""
    assert missing.stderr == f"error: none.jsonl: cannot be read: No such file or directory {SEE}\n"


def test_a_binary_file_and_standard_input(tmp_path: Path) -> None:
    """A file of another kind has a problem on each line: only the first ones are printed."""
    data = b"\xff\x00\n" * 500
    (tmp_path / "program").write_bytes(data)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    done = edge("rows", "check", "program", folder=tmp_path)
    assert done.returncode == 1
    *shown, more, summary, _ = done.stdout.splitlines()
    assert len(shown) == 20 and shown[-1] == "program:20: error: is not UTF-8 text (byte 1 of the line)"
    assert more == "… and 480 more; --json prints all"
    assert summary == "program: 0 valid rows of 0 tasks, 500 errors, 0 warnings"
    piped = edge("rows", "check", "-", folder=tmp_path, stdin=tmp_path / "program")
    assert piped.returncode == 1 and f"standard input: {summary.partition(': ')[2]}" in piped.stdout
    rows = edge("rows", "check", "-", "--json", folder=tmp_path, stdin=tmp_path / "rows.jsonl")
    assert rows.returncode == 0 and json.loads(rows.stdout)["path"] == "standard input"


def test_a_finding_cannot_control_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW | {"task_id": "\x1b[2J\u009b", "ref_raw": ""})
    for words in ((), ("--json",)):
        shown = edge("rows", "check", path, *words, folder=tmp_path).stdout
        assert "step 0" in shown and "\x1b" not in shown and "\u009b" not in shown


lines = st.lists(
    st.one_of(
        st.just(ROW),
        st.builds(
            lambda i, r: ROW | {"step_idx": i, "ref_raw": r},
            st.integers(-1, 3),
            st.sampled_from(["", ACTION]),
        ),
        st.sampled_from([b"", b"{", b"[]", b"\xff", b'{"a": 1}']),
    ),
    max_size=6,
)


@given(lines)
def test_errors_are_what_readers_refuse(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.jsonl", *values)
    errors = [one for one in check_rows(path).findings if one.level == "error"]
    try:
        assert len(read_rows(path)) == check_rows(path).rows
        assert errors == []
    except ReplayError as error:
        where = f"{path}:{errors[0].line}" if errors[0].line else str(path)
        assert str(error) == f"{where}: {errors[0].text} {SEE}"


# --- references that are not actions ---


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ACTION, None),
        (f"<think>easy</think>{ACTION}", None),
        (f"```json\n{ACTION}\n```", None),
        ('{"commands": [{"keystrokes": ""}]}', None),
        ('{"task_complete": true, "commands": []}', None),
        ("", "it is empty"),
        ("ls", "it has no JSON object"),
        ("[1, 2]", "it has no JSON object"),
        (f"<think>use {{}}</think>{ACTION}", "braces in the thought before the JSON make it invalid"),
        (ACTION[:-1] + ",}", "its JSON is invalid at character "),
        ('{"a": ' * 3000 + "1" + "}" * 3000, "its JSON cannot be read"),
        ("{}", "commands is missing"),
        ('{"commands": "ls"}', "commands is 'ls'; it must be a list of objects"),
        ('{"commands": ["ls"]}', "commands[0] is 'ls'; it must be an object"),
        ('{"commands": [{"keystrokes": 5}]}', "commands[0].keystrokes is 5; it must be a string"),
        ('{"commands": [], "task_complete": "yes"}', "task_complete is 'yes'; it must be true or false"),
    ],
)
def test_what_an_action_is(text: str, problem: str | None) -> None:
    found = reference_problem(text)
    assert found == problem if problem is None else (found or "").startswith(problem)


@given(st.text() | st.text(alphabet='{}[]":, ') | st.sampled_from([ACTION[:n] for n in range(len(ACTION))]))
def test_the_note_about_the_score_is_true(text: str) -> None:
    """Where edge says that every answer scores 0, it does: even the reference itself does."""
    if reference_problem(text) is None:
        return
    rows = read_rows_of(text)
    (note,) = reference_notes("r.jsonl", rows)
    zero = score_step(ACTION, text, 0)["command_f1"] == 0 == score_step(text, text, 0)["command_f1"]
    assert ("every answer to this row scores 0" in note) == zero


def read_rows_of(text: str) -> Any:
    from edge.replay.rows import Row

    return [Row("t", 0, 3, None, "", "", [{"role": "user", "content": "x"}], text)]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows, of which five have a reference that is not an action."""
    path = tmp_path_factory.mktemp("bad") / "rows.jsonl"
    texts = [ACTION, "ls", "ls", "ls", "ls", ACTION[:-1]]
    return write(
        path, *(ROW | {"step_idx": i, "sample_idx": 2, "ref_raw": text} for i, text in enumerate(texts))
    )


WHAT = (
    "note: {}: 5 of 6 references (ref_raw) are not actions: t step 1 sample 2 (it has no JSON object), "
    "t step 2 sample 2 (it has no JSON object), t step 3 sample 2 (it has no JSON object) and 2 more; {}; "
    "`edge rows check {}` shows all problems\n"
)


@pytest.mark.slow
def test_eval_and_score_name_such_rows_once(bad: Path, tmp_path: Path, tiny_q4: Path) -> None:
    wanted = WHAT.format(bad, "every answer to 4 of these rows scores 0", bad)
    words = ("eval", "-m", tiny_q4, "-r", bad, "-o", "r.json", "--max-tokens", "8", "--quiet")
    done = edge(*words, folder=tmp_path)
    assert done.returncode == 0 and done.stderr == wanted
    one = edge(*words, "--limit", "2", "--force", folder=tmp_path)
    assert one.stderr == (
        f"note: {bad}: 1 of 2 references (ref_raw) is not an action: t step 1 sample 2 (it has no JSON object); "
        f"every answer to this row scores 0; `edge rows check {bad}` shows all problems\n"
    )
    assert edge(*words, "--limit", "1", "--force", folder=tmp_path).stderr == ""
    answers = [{"task_id": "t", "step_idx": i, "pred_text": ACTION} for i in range(6)]
    write(tmp_path / "mine.jsonl", *answers)
    scored = edge("score", "mine.jsonl", "-r", bad, "-o", "s.json", folder=tmp_path)
    assert scored.returncode == 0 and scored.stderr == wanted
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        score(tmp_path / "mine.jsonl", bad, tmp_path / "s2.json")
    assert [(one.category, f"note: {one.message}\n") for one in caught] == [(EdgeWarning, wanted)]


def test_measure_and_imatrix_name_such_rows(bad: Path, tmp_path: Path, tiny_q4: Path) -> None:
    wanted = WHAT.format(bad, "edge reads them as plain text", bad)
    done = edge("measure", "-m", tiny_q4, "-r", bad, "-o", "m.json", folder=tmp_path)
    assert done.returncode == 0 and done.stderr.count(wanted) == 1
    notes = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["method"]["notes"]
    assert f"note: {notes[-1]}\n" == wanted
    done = edge("imatrix", "-m", tiny_q4, "-r", bad, "-o", "i.gguf", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.count(wanted.strip()) == 1


@pytest.mark.slow
def test_a_pipe_is_read_once(bad: Path, tmp_path: Path, tiny_q4: Path) -> None:
    if os.name == "nt":
        pytest.skip("Windows has no /dev/stdin")
    command = [sys.executable, "-m", "edge", "eval", "-m", str(tiny_q4), "-r", "/dev/stdin", "-o", "r.json"]
    with bad.open("rb") as file:
        cat = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
        assert cat.stdout is not None
        done = subprocess.run(
            [*command, "--max-tokens", "8", "--quiet"],
            cwd=tmp_path,
            stdin=cat.stdout,
            capture_output=True,
            text=True,
        )
        cat.stdout.close()
        cat.wait()
    assert done.returncode == 0 and "r.json: 6 steps" in done.stdout
    assert done.stderr == WHAT.format("/dev/stdin", "every answer to 4 of these rows scores 0", "/dev/stdin")


# --- errors about a --replay file ---

COMMANDS = {
    "eval": ("eval", "-m", "MODEL", "-o", "out", "-r"),
    "score": ("score", "mine.jsonl", "-o", "out", "-r"),
    "measure": ("measure", "-m", "MODEL", "-o", "out", "-r"),
    "imatrix": ("imatrix", "-m", "MODEL", "-o", "out", "-r"),
    "convert": ("convert", "FOLDER", "-o", "out", "--calibrate"),
    "sweep": ("sweep", "FOLDER", "--quants", "Q8_0", "-o", "out", "-r"),
    "replay": ("replay",),
    "rows": ("rows", "check"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_where_the_format_is(
    name: str, tmp_path: Path, tiny_q4: Path, tiny_folder: Path
) -> None:
    write(tmp_path / "bad.jsonl", ROW, b'{"task_id": "t", step_idx: 1}')
    write(tmp_path / "mine.jsonl", {"task_id": "t", "step_idx": 0, "pred_text": ""})
    see = SEE.replace("replay-row", "session-record") if name == "replay" else SEE
    places = {"MODEL": tiny_q4, "FOLDER": tiny_folder}
    words = [places.get(word, word) for word in COMMANDS[name]]
    missing = edge(*words, "none.jsonl", folder=tmp_path)
    assert missing.stderr.splitlines()[-1:] == [
        f"error: none.jsonl: cannot be read: No such file or directory {see}"
    ]
    wrong = edge(*words, "bad.jsonl", folder=tmp_path)
    if name == "rows":
        assert wrong.stdout.startswith("bad.jsonl:2: error: not JSON at column 18: ")
        assert wrong.stdout.endswith(f"the format: {SEE[1:-1]}\n")
    else:
        line = wrong.stderr.splitlines()[-1]
        assert line.startswith("error: bad.jsonl:2: not JSON at column 18: ") and line.endswith(see)
    assert missing.returncode == wrong.returncode == 1
    assert not (tmp_path / "out").exists()


def test_the_position_is_that_in_the_line(tmp_path: Path) -> None:
    """One position: the line of the file and the column in it, also after letters of several bytes."""
    path = write(tmp_path / "rows.jsonl", ROW, '{"é": "ü", x'.encode())
    with pytest.raises(ReplayError) as caught:
        read_rows(path)
    line = str(caught.value).removeprefix(f"{path}:2: not JSON at column 12: ").removesuffix(SEE)
    assert not re.search(r"\d|line|char ", line)


def test_predictions_and_messages_name_their_formats(tmp_path: Path, tiny_q4: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(example("replay-row") or "", encoding="utf-8")
    write(tmp_path / "mine.jsonl", {"task_id": "remove-log", "step_idx": 0})
    done = edge("score", "mine.jsonl", "-r", "rows.jsonl", "-o", "out", folder=tmp_path)
    assert done.stderr == "error: mine.jsonl:1: pred_text is missing (see `edge schema prediction`)\n"
    write(tmp_path / "m.json", [{"content": "x"}])
    done = edge("prompt", "--messages", "m.json", "-m", tiny_q4, folder=tmp_path)
    assert done.stderr == "error: m.json: messages[0].role is missing (see `edge schema messages`)\n"
