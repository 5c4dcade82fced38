"""`edge compare`: figures, joins and intervals against what can be worked out by hand, and the printed form.

Run: .venv/bin/python -m pytest tests/compare/test_compare.py
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.compare.findings import Comparison, Figure, Group
from edge.compare.ranking import rank
from edge.compare.run import compare
from edge.errors import ResultError
from edge.metrics import FIGURES, aggregate
from edge.replay.known import find_known
from edge.replay.result import step_result, write_result
from edge.replay.rows import Row
from edge.system.tables import code, display_width, table

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


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


def test_figures_by_hand(tmp_path: Path) -> None:
    """Two tasks that differ: the figures of both sides, and no interval."""
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
    assert (score.reference, score.ours, score.difference) == (91.67, 66.67, -25.0)
    assert (f1.low, score.high) == (None, None)
    assert f1.verdict == score.verdict == "too few tasks differ"
    assert score.sentence == (
        "2 of 2 tasks differ: too few for an interval, which needs 6. At most 100 % of all such tasks differ "
        "(95 % confidence)."
    )
    # first command: all right in base; ours loses one of the two steps of a, none of b
    first = found["first_cmd_exact_pct"]
    assert (first.reference, first.ours, first.difference, first.low) == (100.0, 75.0, -25.0, None)
    assert brief(found["valid_json_pct"]) == (100.0, 100.0, 0.0, None, None, "no step differs")
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
    # 25 % of two independent tasks: Wilson's interval
    assert part.agreement_intervals["same_commands_pct"] == (2.7, 80.2)
    assert part.notes[-1] == "Only 2 tasks: too few for the interval of a difference."


def test_clear_differences_have_a_direction(tmp_path: Path) -> None:
    tasks = [(f"t{i}", 0) for i in range(12)]
    base = result(tmp_path / "base.json", steps(dict.fromkeys(tasks, HALF)))
    better = figures(compare([result(tmp_path / "good.json", steps(dict.fromkeys(tasks, GOOD)))], base))
    assert brief(better["score"]) == (66.67, 100.0, 33.33, 10.3, 33.33, "better")
    assert better["score"].sentence == "A gain of 33.33 points (95 % interval: 10.30 to 33.33)."
    assert better["avg_pred_cmds"].verdict == "higher"
    empty = steps(dict.fromkeys(tasks, answer()))
    worse = figures(compare([result(tmp_path / "empty.json", empty)], base))
    assert worse["score"].verdict == "worse"
    assert brief(worse["empty_commands_pct"]) == (0.0, 100.0, 100.0, 53.9, 100.0, "worse")
    assert worse["empty_commands_pct"].sentence.startswith("Worse: a rise of 100.0 points (")
    assert worse["avg_pred_cmds"].verdict == "lower"
    early = steps(dict.fromkeys(tasks, answer("ls -la\n", complete=True)))
    early_figures = figures(compare([result(tmp_path / "early.json", early)], base))
    assert early_figures["premature_complete_rate_pct"].verdict == "worse"


def test_interval_agrees_with_a_plain_bootstrap(tmp_path: Path) -> None:
    """Many tasks of unequal length, against the textbook loop: draw tasks, pool their steps, take the mean difference.

    The interval is wider by at most 12 % on each side.
    """
    random.seed(3)
    keys = [(f"t{i}", step) for i in range(60) for step in range(1 + i % 4)]
    ours = steps({key: random.choice([GOOD, HALF, BAD]) for key in keys})
    base = steps({key: random.choice([GOOD, HALF, HALF]) for key in keys})
    found = figures(compare([result(tmp_path / "ours.json", ours)], result(tmp_path / "base.json", base)))
    differences: dict[str, list[float]] = {}
    for a, b in zip(ours, base, strict=True):
        differences.setdefault(a["task_id"], []).append(a["command_f1"] - b["command_f1"])
    means = []
    for _ in range(10_000):
        drawn = [value for task in random.choices(list(differences), k=60) for value in differences[task]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    f1 = found["avg_command_f1"]
    assert f1.low is not None and f1.high is not None
    low, high = means[250], means[9_750]
    assert f1.low <= low + 0.01 and f1.high >= high - 0.01
    assert (f1.high - f1.low) / (high - low) == pytest.approx(1.14, abs=0.06)


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
    assert "Paired: 2 steps of 2 tasks. Not paired: 1 only in ours, 2 only in the reference." in text


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
        "too few tasks differ",
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
    assert "published figures of 303 steps; our result has 2 steps." in text and "interval |" not in text
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
            r"no-such-model: no such file, and no known model has this name; `edge models known` lists the names$",
        ),
        (
            [ours],
            "smollm2",
            "smollm2: no such file, and no known model has this name; did you mean smollm2-135m",
        ),
        ([ours], "/missing", "/missing: no such file$"),
        ([ours], "smollm2-135m-instruct", "no figures were published for this model"),
        ([ours], tmp_path / "none.json", "none.json: cannot be read: No such file"),
        ([tmp_path / "none.json"], str(ours), "none.json: cannot be read: No such file"),
        (
            [other],
            ours,
            "other.json: has no step in common with .*ours.json; compare results of the same rows",
        ),
        (
            [another],
            ours,
            r"another.json and .*: 1 step has different rows \(a step 0\): the results cannot be paired",
        ),
        ([empty], ours, "empty.json: contains no steps"),
        ([empty], "lfm2.5-8b-a1b-terminal", "empty.json: contains no steps"),
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
    assert (
        "(none)" in comparison.to_markdown()
        and "1 more step got worse; the JSON output lists all of them." in text
    )
    assert "Our result is not rank-eligible: its prompts come from chatml_fallback." in text
    assert "- same commands 100.0 % (95 % interval: 43.9 to 100.0), same first command 100.0 % (" in text


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
        Group("source_group", "seen", 2, 2, 1.0, 1.0, 0.0, None, None),
        Group("source_group", "unseen", 1, 1, 1.0, 0.6667, -0.3333, None, None),
        Group("bucket", "early", 3, 3, 1.0, 0.8889, -0.1111, None, None),
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


@pytest.mark.slow
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
    turned = {"better": "worse", "worse": "better", "higher": "lower", "lower": "higher"}
    for there, here in zip(forth.parts[0].figures, back.parts[0].figures, strict=True):
        assert here.verdict == turned.get(there.verdict, there.verdict)
        assert (here.p, here.counts) == (there.p, there.counts and there.counts[::-1])
        assert here.detectable == there.detectable
        assert (here.our_interval, here.reference_interval) == (
            there.reference_interval,
            there.our_interval,
        )
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
    groups = {(group.kind, group.name): group for group in back.parts[0].groups}
    for group in forth.parts[0].groups:
        other = groups[group.kind, group.name]
        assert (group.difference, group.ours) == (-other.difference, other.reference)
        if group.low is not None:
            assert (group.low, group.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 3)),
        st.sampled_from([GOOD, HALF, BAD, "", answer(), answer("ls\n", complete=True)]),
        min_size=1,
    )
)
def test_a_result_does_not_differ_from_itself(tmp_path: Path, texts: dict[tuple[str, int], str]) -> None:
    a = result(tmp_path / "a.json", steps(texts))
    part = compare([a], a).parts[0]
    for figure in part.figures:
        assert (figure.difference, figure.detectable) == (0, None)
        assert figure.verdict in ("no step differs", "no such steps")
        assert figure.sentence in (
            "No step differs, because both sides are the same.",
            "There are no such steps.",
        )
        assert (figure.low, figure.high) == (None, None)
        assert (figure.p, figure.counts) in ((1, (0, 0)), (None, None))
    assert part.notes[0] == "Both sides are the same file: this compares nothing."
    copied = tmp_path / "copy.json"
    copied.write_bytes(a.read_bytes())
    assert compare([copied], a).parts[0].notes[0].startswith("Both sides have the same content")
    assert (part.better, part.same, part.worse) == (0, len(texts), ())
    assert set(part.agreement.values()) == {100}
    assert all(group.difference == 0 for group in part.groups)


@pytest.mark.skipif(not DATA.exists(), reason="../shared is not beside this checkout")
def test_a_real_vllm_run_with_itself() -> None:
    run = DATA / "smollm2_vllm_bf16.json"
    comparison = compare([run], run)
    found = figures(comparison)
    assert found["score"].reference == found["score"].ours == 13.29
    assert {figure.verdict for figure in found.values()} == {"no step differs", "no such steps"}
    assert comparison.parts[0].joined == 36 and not comparison.parts[0].worse


def told(ours: list[dict[str, Any]], base: list[dict[str, Any]], tmp_path: Path) -> dict[str, Figure]:
    return figures(compare([result(tmp_path / "o.json", ours)], result(tmp_path / "b.json", base)))


def tasks(*texts: str, steps_each: int = 1) -> list[dict[str, Any]]:
    """A task for each text, which answers all of its steps."""
    return steps({(f"t{i:02}", step): text for i, text in enumerate(texts) for step in range(steps_each)})


@pytest.mark.slow
def test_sentences_where_less_is_better(tmp_path: Path) -> None:
    """The rise of a figure that should be low is a loss, its fall a gain."""
    found = told(tasks(*[GOOD] * 8, *[answer()] * 2), tasks(*[answer()] * 10), tmp_path)["empty_commands_pct"]
    assert (found.difference, found.verdict) == (-80.0, "better")
    assert found.sentence.startswith("Better: a fall of 80.0 points (") and found.low < found.high < 0
    few = tasks(*[answer()] * 5, *[GOOD] * 95), tasks(*[GOOD] * 95, *[answer()] * 5)
    found = told(*few, tmp_path)["empty_commands_pct"]
    assert found.verdict.startswith("no difference detected") and found.difference == 0
    assert found.sentence == (
        "No rise was detected. This comparison would have detected a rise of more than "
        f"{found.detectable} points (80 % power, 5 % level)."
    )
    # with every command empty in the reference nothing can get worse, with four of 20 not empty little can
    found = told(tasks(*[answer()] * 12, *[GOOD] * 8), tasks(*[answer()] * 20), tmp_path)[
        "empty_commands_pct"
    ]
    assert found.verdict == "better"
    found = told(tasks(*[answer()] * 14, *[GOOD] * 6), tasks(*[answer()] * 20), tmp_path)[
        "empty_commands_pct"
    ]
    assert found.sentence == "The reference has 100.0, so no rise is possible."
    found = told(
        tasks(*[answer()] * 17, *[GOOD] * 3), tasks(*[answer()] * 14, *[GOOD] * 3, *[answer()] * 3), tmp_path
    )["empty_commands_pct"]
    assert found.difference == 0 and found.sentence == (
        "No rise was detected. With so few tasks, edge could miss even the largest possible rise."
    )


def test_sentences_without_a_direction(tmp_path: Path) -> None:
    rise = told(tasks(*[GOOD] * 9, HALF), tasks(*[HALF] * 10), tmp_path)["avg_pred_cmds"]
    assert rise.verdict == "higher" and rise.sentence.startswith("A rise of 0.90 commands a step (")
    fall = told(tasks(*[HALF] * 9, GOOD), tasks(*[GOOD] * 10), tmp_path)["avg_pred_cmds"]
    assert fall.verdict == "lower" and fall.sentence.startswith("A fall of 0.90 commands a step (")
    few = tasks(*[GOOD] * 4, *[HALF] * 96), tasks(*[HALF] * 96, *[GOOD] * 4)
    none = told(*few, tmp_path)["avg_pred_cmds"]
    assert none.sentence == (
        "No change was detected. This comparison would have detected a change of more than "
        f"{none.detectable:.2f} commands a step (80 % power, 5 % level)."
    )


def test_sentences_where_more_is_better(tmp_path: Path) -> None:
    loss = told(tasks(*[BAD] * 10, GOOD, GOOD), tasks(*[GOOD] * 12), tmp_path)
    score = loss["score"]
    assert score.verdict == "worse" and score.sentence == (
        f"A loss of 83.33 points (95 % interval: {-score.high:.2f} to {-score.low:.2f})."
    )
    assert loss["avg_command_f1"].sentence.startswith("A loss of 0.8333 (95 % interval: 0.")
    none = told(tasks(*[BAD] * 4, *[GOOD] * 96), tasks(*[GOOD] * 96, *[BAD] * 4), tmp_path)["score"]
    assert 5 < none.detectable < 20  # test_paired.py simulates it
    assert none.sentence == (
        "No loss was detected. This comparison would have detected a loss of more than "
        f"{none.detectable:.2f} points (80 % power, 5 % level)."
    )
    nothing = told(tasks(*[GOOD] * 20), tasks(*[GOOD] * 20), tmp_path)["score"]
    assert nothing.sentence == (  # 1 - 0.05^(1 / 20)
        "No step differs. At most 14 % of all such tasks differ (95 % confidence)."
    )
    assert nothing.detectable is None


@pytest.mark.slow
def test_a_loss_that_cannot_be_is_not_said_to_have_been_found(tmp_path: Path) -> None:
    """The reference has a score of 3: it cannot lose the points that these tasks would show."""
    score = told(tasks(*[BAD] * 3, *[GOOD] * 3, *[BAD] * 94), tasks(*[GOOD] * 3, *[BAD] * 97), tmp_path)[
        "score"
    ]
    assert score.reference == 3 and score.detectable > 3
    assert score.sentence == (
        "No loss was detected. With so few tasks, edge could miss even the largest possible loss."
    )
    zero = told(tasks(*[GOOD] * 6, *[BAD] * 14), tasks(*[BAD] * 20), tmp_path)["score"]
    assert zero.sentence == "The reference has 0.00, so no loss is possible."
    text = compare([tmp_path / "o.json"], tmp_path / "b.json").to_markdown()
    assert "- score (100 × F1), next-action score: The reference has 0.00" in text  # one line for both


def test_differences_that_cancel_within_each_task(tmp_path: Path) -> None:
    ours = steps({(task, step): (GOOD, BAD)[step] for task in "abcdef" for step in (0, 1)})
    base = steps({(task, step): (BAD, GOOD)[step] for task in "abcdef" for step in (0, 1)})
    found = told(ours, base, tmp_path)
    score = found["score"]
    assert (score.difference, score.low, score.high, score.detectable) == (0, None, None, None)
    assert score.sentence.startswith(
        "Steps differ, but their differences cancel in every task. At most 39 % of"
    )
    assert found["first_cmd_exact_pct"].counts == (6, 6) and found["first_cmd_exact_pct"].p == 1


def test_few_differing_tasks_give_no_verdict(tmp_path: Path) -> None:
    """Five tasks of 50 that lose all: they say little about the others. Six give an interval."""
    five = told(tasks(*[BAD] * 5, *[GOOD] * 45), tasks(*[GOOD] * 50), tmp_path)["score"]
    assert (five.low, five.high, five.verdict) == (None, None, "too few tasks differ")
    assert five.sentence == (
        "5 of 50 tasks differ: too few for an interval, which needs 6. At most 20 % of all such tasks differ "
        "(95 % confidence)."
    )
    six = told(tasks(*[BAD] * 6, *[GOOD] * 44), tasks(*[GOOD] * 50), tmp_path)["score"]
    assert six.low is not None and six.low < six.difference < six.high
    one = told(tasks(BAD, steps_each=9), tasks(GOOD, steps_each=9), tmp_path)["score"]
    assert one.sentence.startswith("1 of 1 task differs: too few for an interval")
    for count, note in [
        (1, "Only 1 task: its steps are not independent, so differences and means have no intervals."),
        (4, "Only 4 tasks: too few for the interval of a difference."),
        (9, "Only 9 tasks: the intervals over tasks are widened for so few, but they are still rough."),
        (10, None),
    ]:
        path = result(tmp_path / f"{count}.json", tasks(*[GOOD] * count))
        few = [text for text in compare([path], path).parts[0].notes if text.startswith("Only ")]
        assert [text.startswith(note or "Only") for text in few] == [True] * (note is not None)


def test_an_interval_without_width_is_not_shown(tmp_path: Path) -> None:
    found = compare(
        [result(tmp_path / "o.json", tasks(*[GOOD] * 20), model="o")],
        result(tmp_path / "b.json", tasks(*[GOOD] * 20), model="b"),
    )
    row = next(line for line in found.to_markdown().splitlines() if line.startswith("| score"))
    assert [cell.strip() for cell in row.split("|")[5:8]] == ["–", "–", "no step differs"]
    assert found.parts[0].figures[0].sentence.startswith("No step differs. At most 14 % of all such tasks")


@pytest.mark.slow
def test_mcnemar_may_disagree(tmp_path: Path) -> None:
    """It takes steps as independent: it finds a loss in six long tasks of 60, where the interval includes 0."""
    base = steps({(f"t{i}", step): GOOD for i in range(60) for step in range(8)})
    ours = steps({(f"t{i}", step): BAD if i < 6 else GOOD for i in range(60) for step in range(8)})
    first = told(ours, base, tmp_path)["first_cmd_exact_pct"]
    assert first.counts == (48, 0) and first.p is not None and first.p < 0.001
    assert first.low is not None and first.low < 0 <= first.high
    assert first.sentence.endswith(
        " McNemar's test finds a difference (p < 0.001), but it treats steps as independent."
    )
    text = compare([tmp_path / "o.json"], tmp_path / "b.json").to_markdown()
    assert "(McNemar: 48 right only in the reference, 0 only in ours, p < 0.001.)" in text
    first = told(tasks(*[BAD] * 5), tasks(*[GOOD] * 5), tmp_path)["first_cmd_exact_pct"]
    assert first.counts == (5, 0) and first.p == 0.0625 and first.verdict == "too few tasks differ"
    agreed = told(tasks(*[BAD] * 12), tasks(*[GOOD] * 12), tmp_path)["first_cmd_exact_pct"]
    assert agreed.verdict == "worse" and "McNemar" not in agreed.sentence
    assert "0 only in ours, p < 0.001.)" in compare([tmp_path / "o.json"], tmp_path / "b.json").to_markdown()


def changed(
    rows: list[dict[str, Any]], fields: dict[int, dict[str, Any]], **all_of: Any
) -> list[dict[str, Any]]:
    """Steps with some fields set in all, then in those of an index."""
    return [{**row, **all_of, **fields.get(i, {})} for i, row in enumerate(rows)]


SAME, OTHER = "1" * 64, "2" * 64


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"row_sha256": OTHER}, "different rows"),
        ({"row_sha256": None, "ref_command_units": ["pwd"]}, "different reference answers"),
        ({"row_sha256": None, "ref_task_complete": True}, "different reference answers"),
        ({"prompt_sha256": OTHER}, "different prompts"),
        ({"prompt_sha256": None, "prompt_tokens": 8}, "prompts of different lengths"),
    ],
)
def test_what_is_not_the_same_is_not_paired(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    """In one step of six, or in five: the refusal names them, up to three, and what to do."""
    rows = changed(tasks(*[GOOD] * 6), {}, row_sha256=SAME, prompt_sha256=SAME, prompt_tokens=7)
    base = result(tmp_path / "base.json", rows)
    compare([result(tmp_path / "ours.json", rows)], base)
    one = result(tmp_path / "one.json", changed(rows, {4: fields}))
    with pytest.raises(ResultError) as caught:
        compare([one], base)
    said = str(caught.value)
    assert said.startswith(
        f"{one} and {base}: 1 step has {reason} (t04 step 0): the results cannot be paired; "
    )
    assert "on both sides" in said and "\n" not in said
    many = result(tmp_path / "many.json", changed(rows, dict.fromkeys(range(5), fields)))
    with pytest.raises(ResultError) as caught:
        compare([many], base)
    assert f"5 steps have {reason} (t00 step 0, t01 step 0, t02 step 0, …): " in str(caught.value)


def test_a_refusal_names_all_that_differs(tmp_path: Path) -> None:
    rows = changed(tasks(*[GOOD] * 4), {}, row_sha256=SAME, prompt_sha256=SAME)
    other = changed(rows, {0: {"prompt_sha256": OTHER}, 2: {"row_sha256": OTHER, "prompt_sha256": OTHER}})
    with pytest.raises(
        ResultError, match=r"1 step has different rows \(t02 step 0\), 1 step has different prompts \(t00"
    ):
        compare([result(tmp_path / "ours.json", other)], result(tmp_path / "base.json", rows))


def test_steps_of_one_side_alone_may_be_anything(tmp_path: Path) -> None:
    rows = changed(tasks(*[GOOD] * 4), {}, prompt_sha256=SAME)
    ours = [*rows[:3], {**rows[3], "task_id": "elsewhere", "prompt_sha256": OTHER, "row_sha256": OTHER}]
    part = compare([result(tmp_path / "ours.json", ours)], result(tmp_path / "base.json", rows)).parts[0]
    assert (part.joined, part.only_ours, part.only_reference) == (3, 1, 1)


def test_what_could_not_be_checked_is_said(tmp_path: Path) -> None:
    """A server that renders the chat itself tells no prompt; a published result tells neither row nor prompt."""
    rows = changed(tasks(*[GOOD] * 10), {}, row_sha256=SAME, prompt_sha256=SAME, prompt_tokens=7)
    base = result(tmp_path / "base.json", rows)

    def notes(name: str, steps: list[dict[str, Any]]) -> tuple[str, ...]:
        return compare([result(tmp_path / f"{name}.json", steps)], base).parts[0].notes

    assert notes("same", rows) == ()
    server = tmp_path / "server.json"
    end = f"{server} has no prompt hashes (a server that renders the chat itself sends none)."
    assert notes("server", changed(rows, {}, prompt_sha256=None)) == (
        f"edge checked the prompts by their lengths only: {end}",
    )
    assert notes("server", changed(rows, {}, prompt_sha256=None, prompt_tokens=None)) == (
        f"edge could not check the prompts: {end}",
    )
    assert notes("server", changed(rows, {3: {"prompt_sha256": None, "prompt_tokens": None}})) == (
        f"edge could not check the prompts of 1 step: {end}",
    )
    published = notes("published", changed(rows, {}, row_sha256=None, prompt_sha256=None))
    assert len(published) == 2 and "checked the rows by their reference answers only" in published[0]
    assert notes("tokens", changed(rows, {2: {"prompt_tokens": 8}})) == (
        "1 step has the same prompt text but a different number of tokens: the tokenizers differ, or one side added a "
        "token.",
    )
    bare = result(tmp_path / "bare.json", changed(rows, {}, row_sha256=None, prompt_sha256=None))
    both = compare(
        [bare], result(tmp_path / "bare2.json", changed(rows, {}, row_sha256=None, prompt_sha256=None))
    )
    assert all("neither side has " in note for note in both.parts[0].notes)


def test_settings_that_differ_are_said(tmp_path: Path) -> None:
    """A budget for thoughts that was not named is a quarter of the answer's, not none."""
    rows = tasks(*[GOOD] * 10)

    def notes(ours: dict[str, Any], reference: dict[str, Any]) -> list[str]:
        base = result(tmp_path / "base.json", rows, sampling=reference)
        found = compare([result(tmp_path / "ours.json", rows, sampling=ours)], base).parts[0].notes
        return [note for note in found if note.startswith("The runs differ: ")]

    held = {"constrained": True, "max_tokens": 1024, "think": None, "style": "auto", "min_p": 0.0}
    assert notes(held, held) == notes({**held, "think": 256}, held) == []
    assert notes(held, {**held, "think": 0}) == [
        "The runs differ: think is off in the reference, up to 256 tokens in ours."
    ]
    assert notes({**held, "max_tokens": 512, "think": 2}, held) == [
        "The runs differ: max_tokens is 1024 in the reference, 512 in ours.",
        "The runs differ: think is up to 256 tokens in the reference, off in ours.",
    ]
    skipped = {**held, "skipped_too_long": 2}
    path = result(tmp_path / "skipped.json", rows, sampling=skipped)
    notes_of = compare([path], result(tmp_path / "base.json", rows, sampling=held)).parts[0].notes
    assert notes_of[0] == "Our result left out 2 rows that did not fit into its context."
    free = {"constrained": False, "max_tokens": 1024, "think": None, "style": None}
    assert notes(held, free) == ["The runs differ: constrained is off in the reference, on in ours."]
    assert notes({"temperature": 0.7, "dtype": "x"}, {"temperature": 0.0}) == [
        "The runs differ: temperature is 0.0 in the reference, 0.7 in ours."
    ]


def test_groups_by_prompt_length(tmp_path: Path) -> None:
    """By the prompt's tokens, from either side, shortest first; steps without are in no such group."""
    lengths = [999, 1000, 1999, 2000, 4000, 8000, 16000, 70000, None]
    rows = tasks(*[GOOD] * len(lengths))
    told_here = changed(rows, {i: {"prompt_tokens": length} for i, length in enumerate(lengths)})
    for ours, base in ((told_here, rows), (rows, told_here)):
        part = compare([result(tmp_path / "o.json", ours)], result(tmp_path / "b.json", base)).parts[0]
        groups = [(g.name, g.steps) for g in part.groups if g.kind == "prompt_length"]
        assert groups == [("< 1k", 1), ("1–2k", 2), ("2–4k", 1), ("4–8k", 1), ("8–16k", 1), ("≥ 16k", 2)]
    assert (
        "| command F1 by prompt tokens |" in compare([tmp_path / "o.json"], tmp_path / "b.json").to_markdown()
    )


def test_groups_have_intervals_of_their_own(tmp_path: Path) -> None:
    """Short prompts lose, long ones do not: the interval of each is that of its own tasks."""
    lengths = {i: {"prompt_tokens": 500 if i < 10 else 5000} for i in range(20)}
    base = changed(tasks(*[GOOD] * 20), lengths)
    ours = changed(tasks(*[BAD] * 10, *[GOOD] * 10), lengths)
    part = compare([result(tmp_path / "o.json", ours)], result(tmp_path / "b.json", base)).parts[0]
    short, long = [group for group in part.groups if group.kind == "prompt_length"]
    assert (short.name, short.difference, short.low, short.high) == ("< 1k", -1, -1.0, -0.4267)
    assert (long.name, long.difference, long.low, long.high) == ("4–8k", 0, None, None)


def test_published_figures_are_marked(tmp_path: Path) -> None:
    """Each published cell has its dagger and none of ours has; nothing of them is called paired."""
    name = "lfm2.5-8b-a1b-terminal"
    known = find_known(name).reference
    ours = result(tmp_path / "ours.json", tasks(*[GOOD] * 12, *[BAD] * 8))
    comparison = compare([ours], name)
    text = comparison.to_markdown()
    table_ = next(block for block in text.split("\n\n") if block.startswith("| metric"))
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_.splitlines()]
    assert header == ["metric", "reference †", "95 %", "ours", "95 %", "difference", "verdict"]
    for cells in rows:
        assert all(cell == "–" or cell.endswith("†") for cell in cells[1:3]), cells
        assert not any("†" in cell for cell in cells[3:]), cells
    assert (
        "† published elsewhere, or computed from published figures. Everything else was measured here" in text
    )
    found = figures(comparison)
    valid = found["valid_json_pct"]
    # 76.9 % of 303 steps, and 20 of 20: Wilson's intervals, by the closed form
    z, n, p = 1.959964, known["steps"], known["valid_json_pct"] / 100
    middle, reach = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n)
    reach *= (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert valid.reference_interval == (
        pytest.approx(100 * (middle - reach), abs=0.051),
        pytest.approx(100 * (middle + reach), abs=0.051),
    )
    assert valid.our_interval == (pytest.approx(100 * 20 / (20 + z * z), abs=0.051), 100.0)
    assert (valid.p, valid.counts, valid.detectable, valid.low, valid.high) == (None,) * 5
    assert valid.sentence == (
        f"Not paired. The published {valid.reference} is outside our interval ({valid.our_interval[0]} to 100.0). Its "
        f"own interval is {valid.reference_interval[0]} to {valid.reference_interval[1]}."
    )
    assert found["avg_command_f1"].sentence.endswith(" Its own interval is unknown.")
    assert found["has_plan_pct"].sentence == "Not published."
    assert found["first_cmd_exact_pct"].our_interval[0] < 60 < found["first_cmd_exact_pct"].our_interval[1]
    one = figures(compare([result(tmp_path / "one.json", tasks(GOOD))], name))["score"]
    assert one.sentence == "Not paired, and our steps give no interval."


def test_published_groups_are_marked_too(tmp_path: Path) -> None:
    by_group = {"seen": {"avg_command_f1": 0.9}, "unseen": {"avg_command_f1": 0.5}}
    published = tmp_path / "published.json"
    aggregate_ = {"avg_command_f1": 0.7, "by_source_group": by_group}
    published.write_text(json.dumps({"model": "M", "aggregate": aggregate_}), encoding="utf-8")
    rows = [
        {**step, "source_group": group, "task_id": group}
        for group in ("seen", "unseen")
        for step in tasks(GOOD)
    ]
    text = compare([result(tmp_path / "ours.json", rows)], published).to_markdown()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "seen" in line]
    assert lines == [
        ["seen", "1", "1", "0.9000 †", "1.0000", "+0.1000"],
        ["unseen", "1", "1", "0.5000 †", "1.0000", "+0.5000"],
    ]


def test_a_difference_is_of_the_exact_figures(tmp_path: Path) -> None:
    """20 of 36 after 21 of 36 is -2.78 points: -2.8, although 55.6 - 58.3 is -2.7. Groups and ranks follow."""
    keys = [(f"t{number:02d}", 0) for number in range(36)]

    def right(count: int) -> list[dict[str, Any]]:
        return steps({key: GOOD if place < count else BAD for place, key in enumerate(keys)})

    base, ours = result(tmp_path / "base.json", right(21)), result(tmp_path / "ours.json", right(20))
    comparison = compare([ours], base)
    first = figures(comparison)["first_cmd_exact_pct"]
    assert (first.reference, first.ours, first.difference) == (58.3, 55.6, -2.8)
    assert {group.difference for group in comparison.parts[0].groups} == {-0.0278}
    assert [entry.difference for entry in rank([base, ours]).entries] == [0.0, -2.78]


def test_one_other_answer_among_many_never_reads_100(tmp_path: Path) -> None:
    keys = [(f"t{number}", 0) for number in range(2001)]
    base = result(tmp_path / "base.json", steps(dict.fromkeys(keys, GOOD)))
    ours = result(tmp_path / "ours.json", steps({key: BAD if key == ("t7", 0) else GOOD for key in keys}))
    lines = compare([ours], base).to_markdown().splitlines()
    assert any(line.startswith("- same commands > 99.9 % (95 % interval: ") for line in lines)
    first = next(line for line in lines if line.startswith("| first command exact %"))
    assert [cell.strip() for cell in first.split("|")[2:5]] == ["100.0", "> 99.9", "0.0"]
