"""Test the replay scorer: figures computed by hand, the published figures, and random text.

Run: .venv/bin/python -m pytest tests/test_metrics.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import metrics

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REF = (
    '{"analysis": "look", "plan": "go", "commands": [{"keystrokes": "ls -la\\n", "duration": 0.1},'
    ' {"keystrokes": "cd project\\n", "duration": 0.1}], "task_complete": false}'
)


def action(*keystrokes: Any, **fields: Any) -> str:
    commands = [{"keystrokes": keys, "duration": 0.1} for keys in keystrokes]
    return json.dumps({"analysis": "a", "plan": "p", "commands": commands, "task_complete": False} | fields)


# Each expectation is computed by hand from the rules. REF's units are "ls -la" and "cd project".
# Columns: prediction, its units, valid_json, first_cmd_exact, precision, recall, f1.
GOLDEN = {
    "both commands": (action("ls -la\n", "cd project\n"), ["ls -la", "cd project"], True, 1.0, 1.0, 1.0, 1.0),
    # one of two found: recall 1/2, precision 1, f1 2/3
    "first only": (action("ls -la\n"), ["ls -la"], True, 1.0, 1.0, 0.5, 0.6667),
    # {ls} against {ls, -la}: 2*(1*1/2)/(3/2) = 2/3 as precision; recall (2/3 + 0)/2 = 1/3; f1 4/9
    "half a command": (action("ls\n"), ["ls"], True, 0.0, 0.6667, 0.3333, 0.4444),
    # units compare without regard to case and runs of white space
    "case and blanks": (action("LS   -LA\n"), ["LS   -LA"], True, 1.0, 1.0, 0.5, 0.6667),
    # several lines in one command are several units, \r\n and \r end lines too
    "lines": (action("ls -la\r\ncd project\r"), ["ls -la", "cd project"], True, 1.0, 1.0, 1.0, 1.0),
    # empty keystrokes are one unit <WAIT>: precision mean(0, 1), recall mean(1, 0)
    "waiting": (action(" \n", "ls -la"), ["<WAIT>", "ls -la"], True, 0.0, 0.5, 0.5, 0.5),
    "no JSON": ("I would run ls -la.", [], False, 0.0, 0.0, 0.0, 0.0),
    "nothing": ("", [], False, 0.0, 0.0, 0.0, 0.0),
    "no object": ('["ls -la"]', [], False, 0.0, 0.0, 0.0, 0.0),
    "thought before": ("<think>list</think>\n" + action("ls -la\n"), ["ls -la"], True, 1.0, 1.0, 0.5, 0.6667),
    # a brace in the thought makes the JSON invalid; the command is then read from the raw text
    "brace in thought": ("<think>{x}</think>" + action("ls -la\n"), ["ls -la"], False, 1.0, 1.0, 0.5, 0.6667),
    # the published pattern: a backslash before a real line break is no escape, before a letter it is one
    "broken line": ('x {"keystrokes": "ls -la \\\n"}{', [], False, 0.0, 0.0, 0.0, 0.0),
    "real line": ('x {"keystrokes": "ls -la\n"}{', ["ls -la"], False, 1.0, 1.0, 0.5, 0.6667),
    "fence": (
        "So:\n```json\n" + action("ls -la\n") + "\n```\nDone {ok}",
        ["ls -la"],
        True,
        1.0,
        1.0,
        0.5,
        0.6667,
    ),
    # cut at the token budget: only a complete keystrokes string counts
    "cut": (action("ls -la\n", "cd project\n")[:-55], ["ls -la"], False, 1.0, 1.0, 0.5, 0.6667),
    # no units from the payload, so the raw text is searched, without a match
    "empty list": (action(), [], True, 0.0, 0.0, 0.0, 0.0),
    "not a list": (action(commands={"keystrokes": "ls -la"}), ["ls -la"], True, 1.0, 1.0, 0.5, 0.6667),
    # str() of values that are not text: no word in common with the reference
    "odd types": (action(7, None), ["7", "None"], True, 0.0, 0.0, 0.0, 0.0),
    "missing keystrokes": (action(commands=[{"duration": 1}, 3]), ["<WAIT>"], True, 0.0, 0.0, 0.0, 0.0),
    # shlex fails on the open quote, split gives {cd, 'project}: 1 of 2 words of "cd project" shared
    "open quote": (action("cd 'project\n"), ["cd 'project"], True, 0.0, 0.5, 0.25, 0.3333),
    # in broken JSON the UTF-8 bytes are read as Latin-1
    "garbled": ('{"keystrokes" : "echo é\\tx"', ["echo Ã©\tx"], False, 0.0, 0.0, 0.0, 0.0),
    # a broken escape leaves the text unchanged
    "broken escape": ('{"keystrokes": "cat \\u12"', ["cat \\u12"], False, 0.0, 0.0, 0.0, 0.0),
    # \d is not an escape: it is unchanged, without a warning
    "unknown escape": ('{"keystrokes": "grep \\d"', ["grep \\d"], False, 0.0, 0.0, 0.0, 0.0),
    "empty in raw text": ('{"keystrokes": ""', [], False, 0.0, 0.0, 0.0, 0.0),
    "NaN": (action("ls -la\n").replace("0.1", "NaN"), ["ls -la"], True, 1.0, 1.0, 0.5, 0.6667),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_rules_by_hand(name: str) -> None:
    text, units, valid, first, precision, recall, f1 = GOLDEN[name]
    row = metrics.score_step(text, REF, 2)
    assert row["ref_command_units"] == ["ls -la", "cd project"]
    assert row["pred_command_units"] == units
    assert row["valid_json"] is valid
    assert row["bucket"] == "mid"
    assert (row["first_cmd_exact"], row["command_precision"], row["command_recall"], row["command_f1"]) == (
        first,
        precision,
        recall,
        f1,
    )


def test_flags() -> None:
    done = action("ls\n", task_complete=True)
    assert metrics.score_step(done, done, 0)["pred_task_complete_true"] is True
    assert metrics.score_step(done, REF, 0)["pred_task_complete_true"] is False
    row = metrics.score_step(action("ls\n", task_complete="true", analysis="", plan=[]), REF, 0)
    assert row["pred_task_complete"] is None and row["ref_task_complete"] is False
    assert row["has_analysis"] is False and row["has_plan"] is False
    assert [metrics.bucket(step) for step in (0, 1, 2, 4, 5)] == ["early", "early", "mid", "mid", "late"]


def test_token_f1() -> None:
    assert metrics.token_f1("ls -la", "LS") == pytest.approx(2 / 3)
    assert metrics.token_f1("echo 'a b'", 'echo "a b"') == 1.0
    assert metrics.token_f1("a a b", "a b b") == pytest.approx(2 / 3)  # multisets: one a and one b shared
    assert metrics.token_f1("", " <wait> ") == 1.0
    assert metrics.token_f1("''", "ls") == 0.0


def test_the_last_closing_fence_counts() -> None:
    inner = action("cat <<E\n```\n{}\n```\nE\n")
    assert metrics.payload("```json\n" + inner + "\n```") == json.loads(inner)
    assert (
        metrics.payload("``` {} ``` and ``` {} ```") is None
    )  # from the first brace to the last, with other text between
    assert metrics.payload("```\nno braces\n```\n" + inner) == json.loads(inner)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        "[" * 100_000,
        '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"a": ' + "9" * 5000 + "}",
        '{"commands": [{"keystrokes": ' + "[" * 900 + "]" * 900 + "}]}",
    ],
    ids=["open objects", "open lists", "deep", "huge integer", "deep keystrokes"],
)
def test_hostile_json_is_scored(text: str) -> None:
    assert metrics.score_step(text, REF, 0)["command_f1"] == 0.0


def test_aggregate_by_hand() -> None:
    done = action("ls\n", task_complete=True)
    rows = [
        {
            "task_id": "a",
            "source_group": "x",
            **metrics.score_step(action("ls -la\n"), REF, 0),
        },  # f1 2/3, first 1
        {
            "task_id": "a",
            "source_group": "x",
            **metrics.score_step(done, REF, 1),
        },  # f1 4/9, task_complete too early
        {"task_id": "b", "source_group": "y", **metrics.score_step(done, done, 2)},  # f1 1, first 1, complete
        {"task_id": "b", "source_group": "y", **metrics.score_step("", done, 5)},  # nothing
    ]
    assert metrics.aggregate(rows) == {
        "steps": 4,
        "tasks": 2,
        "avg_ref_cmds": 1.5,
        "avg_pred_cmds": 0.75,
        "valid_json_pct": 75.0,
        "has_analysis_pct": 75.0,
        "has_plan_pct": 75.0,
        "first_cmd_exact_pct": 50.0,
        "avg_command_precision": 0.6667,  # (1 + 0.6667 + 1 + 0) / 4 = 0.666675
        "avg_command_recall": 0.4583,  # (0.5 + 0.3333 + 1 + 0) / 4 = 0.458325
        "avg_command_f1": 0.5278,  # (0.6667 + 0.4444 + 1 + 0) / 4 = 0.527775
        "complete_true_recall_pct": 50.0,
        "premature_complete_rate_pct": 50.0,
        "empty_commands_pct": 25.0,
        "by_bucket": {
            "early": {"steps": 2, "avg_command_f1": 0.5555},  # (0.6667 + 0.4444) / 2, a little under 0.55555
            "late": {"steps": 1, "avg_command_f1": 0.0},
            "mid": {"steps": 1, "avg_command_f1": 1.0},
        },
        "by_source_group": {
            "x": {"steps": 2, "avg_command_f1": 0.5555, "first_cmd_exact_pct": 50.0},
            "y": {"steps": 2, "avg_command_f1": 0.5, "first_cmd_exact_pct": 50.0},
        },
        "next_action_score": 51.95,  # 100 * (0.7 * 0.5278 + 0.3 * 0.5) = 51.946
    }
    assert metrics.headline({"avg_command_f1": 0.523}) == 52.3
    # as in the published aggregate: F1 0.5230 and first command 49.5 % give 51.46
    assert metrics.next_action_score(0.5230, 49.5) == 51.46


def test_no_rows_is_all_zero() -> None:
    figures = metrics.aggregate([])
    assert figures.pop("by_bucket") == {} and figures.pop("by_source_group") == {}
    assert set(metrics.FIGURES) < set(figures)
    assert not any(figures.values())


@pytest.mark.skipif(not DATA.exists(), reason="../shared is not beside this checkout")
def test_published_golden_rows() -> None:
    golden = json.loads((DATA / "scorer_golden.json").read_text(encoding="utf-8"))
    rows = []
    for row in golden["rows"]:
        scored = metrics.score_step(row["pred_text"], row["ref_raw"], row["step_idx"])
        assert scored == row["expect"], row["id"]
        rows.append({"task_id": row["task_id"], "source_group": row["source_group"], **scored})
    assert len(rows) == 140
    figures = metrics.aggregate(rows)
    figures.pop("empty_commands_pct")  # not in the published aggregate
    assert figures == golden["aggregate"]


@pytest.mark.skipif(not DATA.exists(), reason="../shared is not beside this checkout")
def test_real_vllm_run_is_reproduced() -> None:
    run = json.loads((DATA / "smollm2_vllm_bf16.json").read_text(encoding="utf-8"))
    lines = (DATA / "replay_terminal_dev.jsonl").read_text(encoding="utf-8").splitlines()
    ref_raw = {(row["task_id"], row["step_idx"]): row["ref_raw"] for row in map(json.loads, lines)}
    whole = [step for step in run["per_step"] if len(step["pred_preview"]) < 1200]
    assert len(whole) > 30
    for step in whole:
        scored = metrics.score_step(
            step["pred_preview"], ref_raw[step["task_id"], step["step_idx"]], step["step_idx"]
        )
        assert scored.items() <= step.items()
    figures = metrics.aggregate(run["per_step"])
    figures.pop("empty_commands_pct")
    assert figures == run["aggregate"]


# Pieces that reach many branches of the scorer: fences, braces, quotes, escapes, and any text.
marks = [
    "```",
    "json",
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    "\\u",
    "\\x",
    "'",
    "\n",
    "\r",
    "NaN",
    ",",
    ":",
    "true",
    "null",
]
words = ['"keystrokes": "', '"commands": [', '"task_complete": ', "<WAIT>", "ls -la", "é", "\ud800", "\x00"]
pieces = st.sampled_from(marks) | st.sampled_from(words)
any_text = st.lists(pieces | st.text(max_size=5), max_size=30).map("".join)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
actions = st.fixed_dictionaries(
    {},
    optional={
        "analysis": json_values,
        "plan": json_values,
        "commands": json_values
        | st.lists(st.fixed_dictionaries({}, optional={"keystrokes": json_values}), max_size=4),
        "task_complete": json_values,
    },
).map(json.dumps)


@given(any_text | actions, any_text | actions, st.integers(0, 50))
def test_any_text_is_scored(pred: str, ref: str, step_idx: int) -> None:
    row = metrics.score_step(pred, ref, step_idx)
    for name in ("command_precision", "command_recall", "command_f1"):
        assert 0.0 <= row[name] <= 1.0
    assert row["first_cmd_exact"] in (0.0, 1.0)
    assert row["valid_json"] or not (
        row["has_analysis"] or row["has_plan"] or row["pred_task_complete"] is not None
    )
    back = metrics.score_step(ref, pred, step_idx)
    assert (back["command_precision"], back["command_recall"]) == (
        row["command_recall"],
        row["command_precision"],
    )
    same = metrics.score_step(pred, pred, step_idx)
    assert same["command_f1"] == (1.0 if same["pred_command_units"] else 0.0)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6), st.text(max_size=40))
def test_units_survive_a_thought_or_a_fence(keystrokes: list[str], thought: str) -> None:
    text = action(*keystrokes)
    plain = metrics.score_step(text, text, 0)
    thought = thought.replace("{", "").replace("}", "").replace("`", "")
    for wrapped in (f"<think>{thought}</think>{text}", f"{thought}```json\n{text}\n```\n", f"  {text}\n"):
        assert metrics.score_step(wrapped, text, 0) == plain


@given(st.lists(any_text | actions, min_size=1, max_size=6), st.integers(2, 4))
def test_repeating_every_row_changes_no_mean(texts: list[str], times: int) -> None:
    rows = [
        {"task_id": str(i), "source_group": str(i % 2), **metrics.score_step(text, REF, i)}
        for i, text in enumerate(texts)
    ]
    once, again = metrics.aggregate(rows), metrics.aggregate(rows * times)
    for name in metrics.FIGURES:
        # A sum of more terms can round to the other side of a tie: allow half a place.
        assert again[name] == pytest.approx(once[name], abs=0.11 if name.endswith("pct") else 0.031)
    assert again["steps"] == times * once["steps"] and again["tasks"] == once["tasks"]
