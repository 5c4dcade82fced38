"""`edge compare`: figures, joins and intervals against what can be worked out by hand, and the printed form.

Run: .venv/bin/python -m pytest tests/test_compare.py
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.compare import compare
from edge.comparison import Comparison, Figure, Group
from edge.errors import ResultError
from edge.known import find_known
from edge.markdown import code, display_width, table
from edge.metrics import FIGURES, aggregate
from edge.replay import Row
from edge.result import step_result, write_result

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def answer(*keystrokes: str, complete: bool = False) -> str:
    commands = [{"keystrokes": keys, "duration": 1.0} for keys in keystrokes]
    return json.dumps({"analysis": "a", "plan": "p", "commands": commands, "task_complete": complete})


REF = answer("ls -la\n", "cd x\n")
GOOD, HALF, BAD = REF, answer("ls -la\n"), answer("pwd\n")  # F1 1, 2/3 and 0


def steps(texts: dict[tuple[str, int], str], ref: str = REF, sample: int = 0) -> list[dict[str, Any]]:
    return [
        step_result(Row(task, sample, step, None, "s", "g", [], ref), text)
        for (task, step), text in texts.items()
    ]


def result(path: Path, rows: list[dict[str, Any]], **head: Any) -> Path:
    write_result(path, {"model": path.stem, **head}, rows)
    return path


def brief(figure: Figure) -> tuple[Any, ...]:
    return (
        figure.reference,
        figure.ours,
        figure.difference,
        figure.low,
        figure.high,
        figure.verdict,
    )


def figures(comparison: Comparison) -> dict[str, Figure]:
    return {figure.name: figure for figure in comparison.parts[0].figures}


def test_figures_and_intervals_by_hand(tmp_path: Path) -> None:
    """With two tasks each of the draws (a, a), (a, b), (b, b) is likely, so the interval is that of the extremes."""
    base = result(
        tmp_path / "base.json", steps({("a", 0): GOOD, ("a", 1): GOOD, ("b", 0): GOOD, ("b", 1): HALF})
    )
    ours = result(
        tmp_path / "ours.json", steps({("a", 0): HALF, ("a", 1): BAD, ("b", 0): GOOD, ("b", 1): GOOD})
    )
    comparison = compare([ours], base)
    found = figures(comparison)
    # F1: base (1 + 1 + 1 + 0.6667) / 4, ours (0.6667 + 0 + 1 + 1) / 4; task a loses 0.66665, task b gains 0.16665
    f1, score = found["avg_command_f1"], found["score"]
    assert (f1.reference, f1.ours, f1.difference) == (0.9167, 0.6667, -0.25)
    assert (f1.low, f1.high) == (pytest.approx(-0.66665, abs=1e-4), pytest.approx(0.16665, abs=1e-4))
    assert (score.reference, score.ours, score.difference) == (91.67, 66.67, -25.0)
    assert (score.low, score.high) == (pytest.approx(-66.665, abs=0.01), pytest.approx(16.665, abs=0.01))
    assert f1.verdict == score.verdict == "no difference detected (interval includes 0)"
    # first command: all right in base; ours loses one of the two steps of a, none of b
    first = found["first_cmd_exact_pct"]
    assert (first.reference, first.ours, first.difference, first.low, first.high) == (
        100.0,
        75.0,
        -25.0,
        -50.0,
        0.0,
    )
    # 70 * F1 + 0.3 * first: task a -46.67 - 15, task b 11.67
    assert (found["next_action_score"].low, found["next_action_score"].high) == (-61.67, 11.67)
    assert brief(found["valid_json_pct"]) == (100.0, 100.0, 0.0, 0.0, 0.0, "no difference")
    assert found["complete_true_recall_pct"].verdict == "no such steps"
    part = comparison.parts[0]
    assert (part.joined, part.tasks, part.better, part.same, len(part.worse)) == (4, 2, 1, 1, 2)
    assert [(w.task_id, w.step_idx, w.reference_f1, w.our_f1) for w in part.worse] == [
        ("a", 1, 1.0, 0.0),
        ("a", 0, 1.0, 0.6667),
    ]
    assert (part.worse[0].wanted, part.worse[0].reference_first, part.worse[0].our_first) == (
        "ls -la",
        "ls -la",
        "pwd",
    )
    assert part.agreement == {
        "same_first_command_pct": 75.0,
        "same_commands_pct": 25.0,
        "same_text_pct": 25.0,
    }
    assert part.notes[-1] == "Only 2 tasks: intervals are widened for so few, and still are rough."


def test_clear_differences_have_a_direction(tmp_path: Path) -> None:
    tasks = [(f"t{i}", 0) for i in range(12)]
    base = result(tmp_path / "base.json", steps(dict.fromkeys(tasks, HALF)))
    better = figures(compare([result(tmp_path / "good.json", steps(dict.fromkeys(tasks, GOOD)))], base))
    assert brief(better["score"]) == (66.67, 100.0, 33.33, 33.33, 33.33, "better")
    assert better["score"].sentence == "A gain of 33.33 points (the same in every task)."
    assert better["avg_pred_cmds"].verdict == "higher"
    empty = steps(dict.fromkeys(tasks, answer()))
    worse = figures(compare([result(tmp_path / "empty.json", empty)], base))
    assert worse["score"].verdict == "worse"
    assert brief(worse["empty_commands_pct"]) == (0.0, 100.0, 100.0, 100.0, 100.0, "worse")
    assert worse["empty_commands_pct"].sentence.startswith("Worse: a rise of 100.0 points (")
    assert worse["avg_pred_cmds"].verdict == "lower"
    early = steps(dict.fromkeys(tasks, answer("ls -la\n", complete=True)))
    early_figures = figures(compare([result(tmp_path / "early.json", early)], base))
    assert early_figures["premature_complete_rate_pct"].verdict == "worse"


def test_interval_agrees_with_a_plain_bootstrap(tmp_path: Path) -> None:
    """Tasks of unequal length, against the textbook loop: draw tasks, pool their steps, take the mean difference.

    The percentiles are those of 15 tasks: t(0.975, 14) = 2.1448, times sqrt(15 / 14), is a normal's 1.32 %.
    """
    random.seed(3)
    keys = [(f"t{i}", step) for i in range(15) for step in range(1 + i % 4)]
    ours = steps({key: random.choice([GOOD, HALF, BAD]) for key in keys})
    base = steps({key: random.choice([GOOD, HALF, HALF]) for key in keys})
    found = figures(compare([result(tmp_path / "ours.json", ours)], result(tmp_path / "base.json", base)))
    differences: dict[str, list[float]] = {}
    for a, b in zip(ours, base, strict=True):
        differences.setdefault(a["task_id"], []).append(a["command_f1"] - b["command_f1"])
    means = []
    for _ in range(20_000):
        drawn = [value for task in random.choices(list(differences), k=15) for value in differences[task]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    assert found["avg_command_f1"].low == pytest.approx(means[264], abs=0.015)
    assert found["avg_command_f1"].high == pytest.approx(means[19_735], abs=0.015)


def test_the_same_files_give_the_same_intervals(tmp_path: Path) -> None:
    random.seed(4)
    keys = [(f"t{i}", 0) for i in range(20)]
    ours = result(tmp_path / "ours.json", steps({key: random.choice([GOOD, BAD]) for key in keys}))
    base = result(tmp_path / "base.json", steps(dict.fromkeys(keys, HALF)))
    assert compare([ours], base) == compare([ours], base)


def test_only_common_steps_count(tmp_path: Path) -> None:
    rows = {("a", 0): GOOD, ("a", 1): BAD, ("b", 0): GOOD}
    ours = result(tmp_path / "ours.json", steps(rows))
    base_rows = steps({("b", 0): HALF, ("a", 0): HALF, ("d", 0): BAD, ("e", 0): BAD})
    part = compare([ours], result(tmp_path / "base.json", base_rows)).parts[0]
    assert (part.joined, part.only_ours, part.only_reference) == (2, 1, 2)
    found = {figure.name: figure for figure in part.figures}
    assert (found["score"].reference, found["score"].ours) == (66.67, 100.0)  # of a and b, step 0, alone
    text = compare([ours], tmp_path / "base.json").to_markdown()
    assert "2 steps of 2 tasks joined; not joined: 1 only in ours, 2 only in the reference." in text


def test_steps_without_a_sample(tmp_path: Path) -> None:
    """A side that leaves sample_idx out means the other side's only sample of the step, else sample 0."""
    ours = (
        steps({("a", 0): GOOD, ("b", 0): GOOD}, sample=3)
        + steps({("c", 0): GOOD})
        + steps({("c", 0): BAD}, sample=1)
    )
    bare = steps({("a", 0): HALF, ("b", 0): HALF, ("c", 0): HALF})
    for step in bare:
        step.pop("sample_idx")
    a, b = result(tmp_path / "a.json", ours), result(tmp_path / "b.json", bare)
    part = compare([a], b).parts[0]
    assert (part.joined, part.only_ours, part.only_reference, part.better) == (3, 1, 0, 3)
    part = compare([b], a).parts[0]
    assert (part.joined, part.only_ours, part.only_reference, len(part.worse)) == (3, 0, 1, 3)
    assert part.worse[0].sample_idx == 3


def test_one_task_has_no_interval(tmp_path: Path) -> None:
    ours = result(tmp_path / "ours.json", steps({("a", 0): BAD, ("a", 1): BAD}))
    base = result(tmp_path / "base.json", steps({("a", 0): GOOD, ("a", 1): GOOD}))
    score = figures(compare([ours], base))["score"]
    assert (score.difference, score.low, score.high, score.verdict) == (
        -100.0,
        None,
        None,
        "one task: no interval",
    )


def test_published_figures(tmp_path: Path) -> None:
    rows = steps({("a", 0): GOOD, ("b", 0): BAD})
    ours = result(tmp_path / "ours.json", rows, sampling={"max_tokens": 256, "temperature": 0.0})
    name = "lfm2.5-8b-a1b-terminal"
    known = find_known(name)
    comparison = compare([ours], name)
    assert not comparison.paired and comparison.model == known.name
    found = figures(comparison)
    assert brief(found["score"]) == (52.3, 50.0, -2.3, None, None, "not paired")
    assert found["avg_command_recall"].reference == 0.5431
    assert brief(found["has_plan_pct"]) == (None, 100.0, None, None, None, "not published")
    text = comparison.to_markdown()
    assert "published figures of 303 steps, ours are of 2 steps" in text and "interval |" not in text
    assert "The runs differ: max_tokens is 1024 in the reference, 256 in ours." in text
    # a file that holds an aggregate alone is the same kind of reference
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps({"model": "M", "aggregate": {"avg_command_f1": 0.25}}), encoding="utf-8")
    assert figures(compare([ours], alone))["score"].difference == 25.0


def test_bad_references_and_results(tmp_path: Path) -> None:
    ours = result(tmp_path / "ours.json", steps({("a", 0): GOOD}))
    other = result(tmp_path / "other.json", steps({("b", 0): GOOD}))
    another = result(tmp_path / "another.json", steps({("a", 0): GOOD}, ref=HALF))
    empty = result(tmp_path / "empty.json", [])
    for results, reference, reason in [
        (
            [ours],
            "no-such-model",
            r"no-such-model: no such file; no known model of this name; known: .*smollm2",
        ),
        ([ours], "smollm2-135m-instruct", "no figures were published for this model"),
        ([ours], tmp_path / "none.json", "none.json: cannot be read: No such file"),
        ([tmp_path / "none.json"], str(ours), "none.json: cannot be read: No such file"),
        ([other], ours, "other.json: no step can be joined with .*ours.json: they hold different steps"),
        ([another], ours, "another.json: no step can be joined with .*: their reference answers differ"),
        ([empty], ours, "empty.json: holds no steps"),
        ([], ours, "no result to compare"),
        ([ours, tmp_path / "x" / ".." / "ours.json"], ours, r"x/\.\./ours.json: is given twice"),
    ]:
        with pytest.raises(ResultError, match=reason) as caught:
            compare(results, reference)
        assert "\n" not in str(caught.value)


def test_markdown(tmp_path: Path) -> None:
    texts = {("a|b", 0): "echo `x` | tee\x1b[31m", ("한국", 0): "ls 한글" * 20, ("c", 0): ""}
    ours = steps({key: answer(text + "\n") if text else "" for key, text in texts.items()})
    base = result(tmp_path / "base.json", steps(dict.fromkeys(texts, GOOD)), model="vLLM\nbf16")
    status = {"template_status": "chatml_fallback", "rank_eligible": False}
    first = result(tmp_path / "first.json", ours, prompt_template=status)
    second = result(tmp_path / "second.json", steps(dict.fromkeys(texts, GOOD)))
    comparison = compare([first, second], base)
    text = comparison.to_markdown(worse=2)
    assert text.startswith("# Compared with vLLM·bf16\n")
    assert all(char.isprintable() or char == "\n" for char in text)
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 4  # overview, two of figures, one of steps
    for rows in tables:
        columns = [line.replace("\\|", "").count("|") for line in rows]
        assert len(set(columns)) == 1
        ascii_lines = [line for line in rows if line.isascii()]
        assert len({len(line) for line in ascii_lines}) == 1
    assert "a\\|b step 0" in text and "`` echo `x` \\| tee·[31m ``" in text
    assert "(none)" in comparison.to_markdown() and "1 more got worse; the JSON form lists all." in text
    assert "Ours is not rank-eligible: its prompts are by chatml_fallback." in text
    assert "The same on both sides: first command 100.0 %, commands 100.0 %, text 100.0 %." in text


def test_groups_are_told_apart(tmp_path: Path) -> None:
    """Wordings that were never seen, and steps early and late, each have a line of their own."""

    def grouped(seen: str, unseen: str) -> list[dict[str, Any]]:
        rows = [
            (Row(f"{g}{i}", 0, i, None, "s", g, [], REF), text)
            for g, text, n in (("seen", seen, 2), ("unseen", unseen, 1))
            for i in range(n)
        ]
        return [step_result(row, text) for row, text in rows]

    base = result(tmp_path / "base.json", grouped(GOOD, GOOD))
    ours = result(tmp_path / "ours.json", grouped(GOOD, HALF))
    comparison = compare([ours], base)
    assert comparison.parts[0].groups == (
        Group("source_group", "seen", 2, 2, 1.0, 1.0, 0.0, 0.0, 0.0),
        Group("source_group", "unseen", 1, 1, 1.0, 0.6667, -0.3333, None, None),
        Group("bucket", "early", 3, 3, 1.0, 0.8889, -0.1111, -0.3333, 0.0),
    )
    text = comparison.to_markdown()
    assert "| unseen                     |     1 |     1 |    1.0000 | 0.6667 |    -0.3333 |" in text
    assert "early" not in text  # the only bucket repeats the whole


def test_the_same_model_twice_is_told_apart(tmp_path: Path) -> None:
    rows = steps({("a", 0): GOOD, ("b", 0): GOOD})
    base = result(tmp_path / "base.json", rows, model="M", sampling={"constrained": True})
    again = result(tmp_path / "again.json", rows, model="M", sampling={"constrained": True})
    free = result(tmp_path / "free.json", rows, model="M", sampling={"constrained": False})
    text = compare([again, free], base).to_markdown()
    assert text.startswith("# Compared with base.json: M, constrained\n")
    assert (
        "again.json\n\nModel: M, constrained\n" in text and "free.json\n\nModel: M, unconstrained\n" in text
    )
    assert compare([free], base).to_markdown().startswith("# Compared with M, constrained\n")


def test_commands_in_tables() -> None:
    assert code("") == "(none)"
    assert code("a ``b`` `c`") == "``` a ``b`` `c` ```"
    assert code("x" * 36) == "`" + "x" * 36 + "`" and code("x" * 37) == "`" + "x" * 35 + "…`"
    assert display_width(code("한" * 30)) == 2 + 35  # 17 wide characters and the ellipsis
    assert table(("a", "b"), [("한", "1")], right=[1]) == ["| a   |   b |", "| --- | --: |", "| 한  |   1 |"]


def test_json(tmp_path: Path) -> None:
    base = result(tmp_path / "base.json", steps({("a", 0): GOOD, ("b", 0): GOOD}))
    ours = result(tmp_path / "ours.json", steps({("a", 0): answer("echo \ud800\n"), ("b", 0): BAD}))
    comparison = compare([ours], str(base))
    comparison.write_json(tmp_path / "comparison.json")
    written = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert written == json.loads(comparison.to_json())
    assert written["paired"] is True and written["reference"] == str(base)
    assert [step["our_first"] for step in written["parts"][0]["worse"]] == ["echo \ud800", "pwd"]
    assert [figure["name"] for figure in written["parts"][0]["figures"]] == ["score", *FIGURES]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 3)),
        st.tuples(*[st.sampled_from([GOOD, HALF, BAD, "", answer(), answer("ls\n", complete=True)])] * 2),
        min_size=1,
    )
)
def test_swapping_the_sides_turns_every_sign(
    tmp_path: Path, texts: dict[tuple[str, int], tuple[str, str]]
) -> None:
    ours, base = (steps({key: pair[side] for key, pair in texts.items()}) for side in (0, 1))
    a, b = result(tmp_path / "a.json", ours), result(tmp_path / "b.json", base)
    forth, back = compare([a], b), compare([b], a)
    made = aggregate(ours)
    for there, here in zip(forth.parts[0].figures, back.parts[0].figures, strict=True):
        assert there.name == "score" or there.ours == made[there.name]
        assert (there.ours, there.reference, there.difference) == (
            here.reference,
            here.ours,
            -(here.difference or 0.0),
        )
        if there.low is not None and there.high is not None:
            assert there.low <= there.high
            assert there.low == pytest.approx(-(here.high or 0.0)) and there.high == pytest.approx(
                -(here.low or 0.0)
            )
    assert len(forth.parts[0].worse) == back.parts[0].better
    assert all(figure.difference == 0 for figure in compare([a], a).parts[0].figures)


@pytest.mark.skipif(not DATA.exists(), reason="../shared is not beside this checkout")
def test_a_real_vllm_run_with_itself() -> None:
    run = DATA / "smollm2_vllm_bf16.json"
    comparison = compare([run], run)
    found = figures(comparison)
    assert found["score"].reference == found["score"].ours == 13.29
    assert {figure.verdict for figure in found.values()} == {"no difference", "no such steps"}
    assert comparison.parts[0].joined == 36 and not comparison.parts[0].worse
