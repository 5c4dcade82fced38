"""`edge rank`: which results are ranked, which cannot be told apart, and the table, the page and the JSON.

pytest tests/compare/test_rank.py
"""

import html
import json
import random
import re
from pathlib import Path
from typing import Any

import command_line
import pytest
from jsonschema import Draft202012Validator

from edge.compare.ranking import rank
from edge.compare.ranking_text import spans
from edge.compare.run import compare
from edge.errors import ResultError
from edge.replay.result import step_result, write_result
from edge.replay.rows import Row
from edge.schemas import schema

TASKS = 40


def answer(*keystrokes: str) -> str:
    commands = [{"keystrokes": keys, "duration": 1.0} for keys in keystrokes]
    return json.dumps({"analysis": "a", "plan": "p", "commands": commands, "task_complete": False})


REF = answer("ls -la\n")
RIGHT, WRONG = REF, answer("pwd\n")


def steps(right: set[int], tasks: int = TASKS, prefix: str = "t", ref: str = REF) -> list[Any]:
    """One step of each task, right for the tasks in `right`."""
    return [
        step_result(Row(f"{prefix}{i:03}", 0, 0, None, "s", "g", [], ref), RIGHT if i in right else WRONG)
        for i in range(tasks)
    ]


def result(path: Path, rows: list[Any], **head: Any) -> Path:
    sampling = {"temperature": 0.0, "max_tokens": 1024, **head.pop("sampling", {})}
    template = {"template_status": "chat_template", "rank_eligible": True}
    write_result(
        path,
        {  # type: ignore[typeddict-item]
            "model": path.stem,
            "model_path": f"org/{path.stem}",
            "eval_path": "data/rows.jsonl",
            "sampling": sampling,
            "prompt_template": template,
            **head,
        },
        rows,
    )
    return path


def edited(path: Path, **changes: Any) -> Path:
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}), encoding="utf-8")
    return path


def half(extra: int, start: int = 0) -> set[int]:
    return {i for i in range(start, start + 20 + extra)}


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Two results that differ in few tasks, and one that is far worse."""
    return [
        result(tmp_path / "good.json", steps(half(10))),
        result(tmp_path / "alike.json", steps(half(9))),
        result(tmp_path / "bad.json", steps(set(range(4)))),
    ]


def test_places_are_spans(three: list[Path]) -> None:
    ranking = rank(three)
    assert [entry.model for entry in ranking.entries] == ["good", "alike", "bad"]
    assert [(e.first_place, e.last_place) for e in ranking.entries] == [(1, 2), (1, 2), (3, 3)]
    assert [entry.not_distinguishable for entry in ranking.entries] == [(2,), (1,), ()]
    assert [entry.score for entry in ranking.entries] == [75.0, 72.5, 10.0]
    assert (ranking.rows, ranking.steps, ranking.tasks) == ("rows.jsonl", TASKS, TASKS)
    assert ranking.left_out == ()
    # One task of 40 differs: too few for an interval. The other difference is that of `edge compare`.
    assert (ranking.entries[1].low, ranking.entries[1].difference) == (None, -2.5)
    score = next(f for f in compare([three[2]], three[0]).parts[0].figures if f.name == "score")
    last = ranking.entries[2]
    assert (last.difference, last.low, last.high) == (score.difference, score.low, score.high)
    assert last.score_interval == score.our_interval


def test_the_order_of_the_files_does_not_matter(three: list[Path]) -> None:
    assert rank(three).entries == rank(three[::-1]).entries


@pytest.mark.slow
def test_forty_results(tmp_path: Path) -> None:
    """Each pair is told apart as `edge compare` tells it, and the spans follow from the pairs."""
    numbers = random.Random(1)
    paths = [
        result(tmp_path / f"m{i:02}.json", steps({t for t in range(TASKS) if numbers.random() < i / 40}))
        for i in range(40)
    ]
    ranking = rank(paths)
    entries = ranking.entries
    assert len(entries) == 40
    by_name = {entry.result: number for number, entry in enumerate(entries)}
    for base in paths[::13]:
        for part in compare([path for path in paths if path != base], base).parts:
            score = next(f for f in part.figures if f.name == "score")
            apart = score.low is not None and score.high is not None and not score.low <= 0 <= score.high
            mine = entries[by_name[part.result]]
            assert (by_name[str(base)] + 1 in mine.not_distinguishable) == (not apart)
    for number, entry in enumerate(entries, 1):
        assert entry.first_place <= entry.last_place
        assert entry.last_place - entry.first_place == len(entry.not_distinguishable)
        assert all(number in entries[other - 1].not_distinguishable for other in entry.not_distinguishable)
    assert any("780 pairs" in note for note in ranking.notes)


def reasons(ranking: Any) -> dict[str, str]:
    return {Path(one.result).stem: one.why for one in ranking.left_out}


def test_what_is_not_ranked_and_why(three: list[Path], tmp_path: Path) -> None:
    def one(name: str, rows: Any = None, **head: Any) -> Path:
        return result(tmp_path / f"{name}.json", steps(half(0)) if rows is None else rows, **head)

    failed = steps(half(0))
    failed[0] = {**failed[0], "error": "500"}
    others = [
        one("unfinished", steps(half(0), tasks=30), complete=False, total_input_steps=TASKS),
        one("stopped", steps(half(0), tasks=30), total_input_steps=TASKS),
        one("short", steps(half(0), tasks=30), sampling={"skipped_too_long": 10}),
        one("elsewhere", steps(half(0), prefix="u")),
        one("otherwise", steps(half(0), ref=answer("cat x\n"))),
        one("failed", failed),
        one("raw", prompt_template={"template_status": "mixed_or_raw", "rank_eligible": False}),
        one("believed", prompt_template={"template_status": "chatml_fallback", "rank_eligible": True}),
        edited(one("figures"), per_step=...),
        edited(one("changed"), aggregate={"steps": TASKS, "avg_command_f1": 0.9}),
        one(
            "shard",
            steps(half(0), tasks=20),
            shard={"index": 1, "count": 2, "rows": 40, "places": [*range(20)]},
        ),
    ]
    (tmp_path / "text.json").write_text("no JSON", encoding="utf-8")
    ranking = rank([*three, *others, tmp_path / "text.json"])
    assert [entry.model for entry in ranking.entries] == ["good", "alike", "bad"]
    assert reasons(ranking) == {
        "unfinished": "is unfinished: it has 30 of 40 steps",
        "stopped": "is unfinished: it has 30 of 40 steps",
        "short": "rows missing: it has 30 of the 40 ranked steps (10 did not fit into its context)",
        "elsewhere": "other rows: it has none of the ranked steps",
        "otherwise": "other rows: 40 steps of 40 are of another row",
        "failed": "errors: 1 answer has an error of a server",
        "raw": "prompts: they are not from the model's own chat template (mixed_or_raw)",
        "believed": "prompts: they are not from the model's own chat template (chatml_fallback)",
        "figures": "has no steps: edge can neither check its scoring rules nor pair it",
        "changed": reasons(ranking)["changed"],
        "shard": "is shard 1 of 2: put the shards together with edge join",
        "text": "is damaged, or is not a result of `edge eval` or `edge score`",
    }
    assert "aggregate.avg_command_f1 is 0.9, but its steps give 0.5" in reasons(ranking)["changed"]


def test_other_scoring_rules_are_said(three: list[Path]) -> None:
    """Steps that older rules scored are scored again, and the entry says so."""
    value = json.loads(three[0].read_text(encoding="utf-8"))
    for step in value["per_step"][:3]:
        step["command_f1"] = 0.25
    edited(three[0], per_step=value["per_step"], aggregate={"steps": TASKS})
    first = rank(three).entries[0]
    assert (first.model, first.score) == ("good", 75.0)
    assert "3 steps scored again: other rules had scored them" in first.notes


def test_the_newest_duplicate_counts(three: list[Path], tmp_path: Path) -> None:
    """Of one model and settings. A naive time is UTC; other settings, adapters or files are no duplicates."""
    head: dict[str, Any] = {"model_path": "org/good", "model": "good"}
    older = edited(result(tmp_path / "older.json", steps(half(5)), **head), timestamp="2026-06-01T10:00:00")
    newer = edited(
        result(tmp_path / "newer.json", steps(half(6)), **head), timestamp="2026-06-01T11:30:00+01:00"
    )
    zone = edited(three[0], timestamp="2026-06-01T10:15:00")
    warm = result(tmp_path / "warm.json", steps(half(7)), **head, sampling={"max_tokens": 512})
    lora = result(tmp_path / "lora.json", steps(half(8)), **head, lora_path="adapter")
    ranking = rank([zone, older, newer, warm, lora])
    assert {Path(entry.result).stem for entry in ranking.entries} == {"newer", "warm", "lora"}
    assert reasons(ranking) == {
        name: f"duplicate: {newer} is of the same model and settings, which is newer"
        for name in ("good", "older")
    }
    assert any("max_tokens: 1024 in 2, 512 in " in note for note in ranking.notes)
    entry = next(entry for entry in ranking.entries if entry.result == str(newer))
    assert "the newest of 3 results of this model and settings" in entry.notes
    for path in (older, newer):
        edited(path, timestamp=None)
    ranking = rank([newer, older])
    assert "the last given of 2 results of this model and settings" in ranking.entries[0].notes
    assert reasons(ranking) == {
        "newer": f"duplicate: {older} is of the same model and settings, which is given later"
    }


def test_a_duplicate_names_another_seed_or_a_missing_time(tmp_path: Path) -> None:
    head: dict[str, Any] = {"model_path": "org/good", "model": "good"}
    made = {
        name: result(
            tmp_path / f"{name}.json", steps(half(5)), **head, sampling={"temperature": warmth, "seed": seed}
        )
        for name, warmth, seed in (("one", 0.7, 1), ("two", 0.7, 2), ("cold", 0.0, 1), ("colder", 0.0, 2))
    }
    for name, time in (
        ("one", "2026-06-01"),
        ("two", "2026-06-02"),
        ("cold", None),
        ("colder", "2026-06-02"),
    ):
        edited(made[name], timestamp=time)
    assert reasons(rank(list(made.values()))) == {
        "one": f"duplicate: {made['two']} is of the same model and settings, but another seed, which is newer",
        "cold": f"duplicate: {made['colder']} is of the same model and settings, which says when it was written",
    }


def test_the_rows_that_most_have_or_those_that_are_chosen(three: list[Path], tmp_path: Path) -> None:
    long = result(tmp_path / "long.json", steps(half(10), tasks=60))
    ranking = rank([long, *three])
    assert ranking.steps == TASKS and len(ranking.entries) == 4
    entry = next(entry for entry in ranking.entries if entry.result == str(long))
    assert (entry.steps, entry.score) == (TASKS, 75.0)
    assert "40 of its 60 steps are ranked" in entry.notes
    ranking = rank([long, *three], rows_of=long)
    assert ranking.steps == 60 and [entry.result for entry in ranking.entries] == [str(long)]
    assert set(reasons(ranking).values()) == {"rows missing: it has 40 of the 60 ranked steps"}


def test_partial_results_do_not_choose_the_rows(three: list[Path], tmp_path: Path) -> None:
    easy = [
        result(tmp_path / f"easy{i}.json", steps({0, 1, 2}, tasks=8), engine={"rows_missing": 32})
        for i in range(4)
    ]
    ranking = rank([*three, *easy])
    assert ranking.steps == TASKS and len(ranking.entries) == 3
    assert {one.why for one in ranking.left_out} == {
        "rows missing: it has 8 of the 40 ranked steps (32 have no prediction)"
    }


def test_a_thought_and_an_engine_that_differ_are_said(tmp_path: Path) -> None:
    grammar = {"constrained": True, "backend": "edge", "style": "auto"}
    given = [
        result(tmp_path / "a.json", steps({0, 1}), sampling={**grammar, "think": 0}),
        result(tmp_path / "b.json", steps({0, 1}), sampling={**grammar, "think": None}),
        result(tmp_path / "c.json", steps({0, 1}), sampling={**grammar, "think": 0, "style": "compact"}),
        result(tmp_path / "d.json", steps({0, 1}), sampling={"backend": "vllm"}),
    ]
    notes = " ".join(rank(given).notes)
    assert f"The results differ in think: 0 in 2, 256 in {given[1]}, not named in {given[3]}." in notes
    assert f"The results differ in style: auto in 2, compact in {given[2]}, not named in {given[3]}." in notes
    assert f"The results differ in backend: edge in 3, vllm in {given[3]}." in notes


def test_a_setting_that_a_result_does_not_name_has_no_value(tmp_path: Path) -> None:
    """Not even the usual one: another program may have another."""
    given = [result(tmp_path / f"{i}.json", steps({0, i})) for i in range(3)]
    bare = result(tmp_path / "bare.json", steps({0, 9}))
    value = json.loads(bare.read_text())
    del value["sampling"]["temperature"]
    bare.write_text(json.dumps(value))
    notes = " ".join(rank([*given, bare]).notes)
    assert f"The results may differ in temperature: 0.0 in 3, not named in {bare}." in notes
    hot = result(tmp_path / "hot.json", steps({0, 5}), sampling={"temperature": 0.7, "top_p": 0.9})
    notes = " ".join(rank([*given, bare, hot]).notes)
    assert f"The results differ in temperature: 0.0 in 3, 0.7 in {hot}, not named in {bare}." in notes
    assert "The results may differ in top_p: 0.9 in 1, not named in " in notes
    # A usual value that only some name is no news.
    usual = result(tmp_path / "usual.json", steps({0, 6}), sampling={"min_p": 0.0})
    assert "min_p" not in " ".join(rank([*given, usual]).notes)


def test_a_duplicate_that_names_fewer_settings_is_one_as_far_as_they_are_named(tmp_path: Path) -> None:
    given = [
        result(tmp_path / f"{i}.json", steps({0}), sampling=extra, model_path="org/one")
        for i, extra in enumerate(({}, {"top_p": 1.0}))
    ]
    (older,) = rank(given).left_out
    assert older.why.endswith(
        "is of the same model and settings, as far as both name them, which is given later"
    )


def test_few_tasks(tmp_path: Path) -> None:
    paths = [result(tmp_path / f"{n}.json", steps(set(range(n)), tasks=5)) for n in (0, 5)]
    ranking = rank(paths)
    assert [(e.first_place, e.last_place) for e in ranking.entries] == [(1, 2), (1, 2)]
    assert "Only 5 tasks: too few to tell any two results apart." in ranking.notes


@pytest.mark.slow
def test_table_page_and_json(three: list[Path], tmp_path: Path) -> None:
    hostile = result(tmp_path / "x.json", steps(half(8)), model="<script>alert(1)</script>|\x1b[31m")
    page, out = tmp_path / "rank.html", tmp_path / "rank.json"
    words = ("rank", *three, hostile, "--json", out, "--html", page, "--title", "Mine & yours")
    done = command_line.run(*words)
    assert done.returncode == 0, done.stderr
    assert "| 1–3 |" in re.sub(" +", " ", done.stdout) and "\x1b" not in done.stdout
    value = json.loads(out.read_text(encoding="utf-8"))
    assert list(Draft202012Validator(schema("ranking")).iter_errors(value)) == []
    assert value["entries"][0]["model"] == "good"
    assert value["entries"][0]["not_distinguishable"] == [2, 3]
    text = page.read_text(encoding="utf-8")
    assert "<script>" not in text and "\x1b" not in text
    assert "&lt;script&gt;" in text and "Mine &amp; yours" in text
    for entry in value["entries"]:
        assert f"{entry['score']:.2f}" in text and html.escape(Path(entry["result"]).name) in text
    # The same again replaces its own files; another ranking, another file and an input are kept.
    assert command_line.run(*words).returncode == 0
    for more, wanted in (
        (("rank", *three, "--json", out), "holds a ranking of another run"),
        (("rank", *three, "--html", page), "holds a ranking of another run"),
        (("rank", *three, "--html", out), "is not a ranking that edge wrote"),
        (("rank", *three, "--json", three[0], "--force"), "is an input of this command"),
        (("rank", *three, "--json", tmp_path / "y", "--html", tmp_path / "y"), "is given for two outputs"),
        (("rank", three[0], three[0]), "is given twice"),
        (("rank", three[0], tmp_path / "none.json"), "none.json: no such file"),
        (("compare", out, "--reference", three[0]), "is a ranking of edge rank, not a result"),
    ):
        done = command_line.run(*more)
        assert done.returncode == 1 and wanted in done.stderr, (more, done.stderr)
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "y").exists()


def test_nothing_to_rank(tmp_path: Path) -> None:
    only = edited(result(tmp_path / "a.json", steps(half(0))), per_step=...)
    with pytest.raises(ResultError, match="nothing to rank"):
        rank([only])
    with pytest.raises(ResultError, match=r"a\.json: has figures but no steps; nothing to rank"):
        rank([only])
    (rows := tmp_path / "rows.jsonl").write_text('{"task_id": "a"}\n{"task_id": "b"}\n')
    (model := tmp_path / "q4.gguf").write_bytes(b"GGUF" + bytes(8))
    words = (
        r"rows\.jsonl: is damaged, or is not a result .* \(and 1 more file without steps\); nothing to rank"
    )
    with pytest.raises(ResultError, match=words):
        rank([rows, model])
    failed = result(tmp_path / "b.json", [{**step, "error": "x"} for step in steps(half(0))])
    with pytest.raises(ResultError, match="no result can be ranked"):
        rank([failed])


def test_spans() -> None:
    assert [spans(some) for some in ([], [3], [1, 2, 3, 5, 7, 8])] == ["–", "3", "1–3, 5, 7–8"]


def test_a_published_result_is_ranked_with_our_own(shared: Path) -> None:
    """A real vLLM run beside edge's, on its rows: their prompts have no hashes, and one has no grammar."""
    evidence = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence" / "smollm2"
    published = shared / "data" / "smollm2_vllm_bf16.json"
    ranking = rank([published, evidence / "Q8_0-free.json", evidence / "bf16-grammar.json"])
    assert {entry.engine for entry in ranking.entries} == {"vllm", "edge"}
    assert ranking.steps == 36 and ranking.left_out == ()
    assert [entry.type for entry in ranking.entries if entry.engine == "vllm"] == ["BF16"]
    assert any(note.startswith("1 of 3 results was written with a grammar") for note in ranking.notes)
