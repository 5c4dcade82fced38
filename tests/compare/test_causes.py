"""`edge compare --causes`: pairs of real results that differ in one thing, and that no others are told of.

pytest tests/compare/test_causes.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.answer.answering import Answering
from edge.cli.main import app
from edge.compare.causes import KINDS, Cause, causes, causes_json, causes_markdown
from edge.errors import ResultError
from edge.llama.loading import Loading
from edge.replay.result import read_result
from edge.replay.rows import read_rows
from edge.replay.run import evaluate
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow  # its runs take seconds
ROWS = 24  # of the embedded set's 143; 4 of them ask for a thought
THOUGHTLESS = 9  # the first rows ask for none


@pytest.fixture(scope="module")
def runs(tiny_bf16: Path, tiny_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Results of the embedded model by name; each but the first differs from `bf16` in what it is named for."""
    folder = tmp_path_factory.mktemp("causes")
    models = {"bf16": tiny_bf16, "q4": tiny_q4}
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "bf16": ("bf16", {}),
        "q4": ("q4", {}),
        "bf16-free": ("bf16", {"constrained": False}),
        "q4-free": ("q4", {"constrained": False}),
        "bf16-no-thought": ("bf16", {"think": 0}),
        "bf16-parallel": ("bf16", {"parallel": 8}),
        "bf16-short": ("bf16", {"limit": THOUGHTLESS}),
        "bf16-short-no-thought": ("bf16", {"limit": THOUGHTLESS, "think": 0}),
    }
    paths = {}
    for name, (model, how) in made.items():
        paths[name] = folder / f"{name}.json"
        limit, parallel = how.pop("limit", ROWS), how.pop("parallel", 1)
        evaluate(
            models[model],
            embedded_rows(),
            paths[name],
            limit=limit,
            answering=Answering(256, **how),
            loading=Loading(parallel=parallel, threads=1),
        )
    return paths


@pytest.fixture
def changed(runs: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a run with some fields of its objects set; None takes an object out."""

    def change(name: str, copy: str, **parts: dict[str, Any] | str | None) -> Path:
        result = json.loads(runs[name].read_text(encoding="utf-8"))
        for part, fields in parts.items():
            if fields is None:
                result.pop(part)
            elif isinstance(fields, str):
                result[part] = fields
            else:
                result[part] |= fields
        path = tmp_path / f"{copy}.json"
        path.write_text(json.dumps(result), encoding="utf-8")
        return path

    return change


def pairs(found: tuple[Cause, ...]) -> set[tuple[str, str, str]]:
    """(kind, baseline, other) of each cause, the results by their names."""
    return {(cause.kind, Path(cause.first).stem, Path(cause.second).stem) for cause in found}


def only(found: tuple[Cause, ...]) -> Cause:
    assert len(found) == 1, found
    return found[0]


def scores(path: Path) -> float:
    return float(100 * read_result(path)["aggregate"]["avg_command_f1"])


def test_each_cause_is_told_from_the_others(runs: dict[str, Path]) -> None:
    """All runs of the same rows at once: what differs in two things is in no pair, and the baseline is first."""
    names = ["q4-free", "q4", "bf16-parallel", "bf16-no-thought", "bf16-free", "bf16"]
    found = causes([runs[name] for name in names])
    assert pairs(found) == {
        ("quantization", "bf16", "q4"),
        ("quantization", "bf16-free", "q4-free"),
        ("grammar", "bf16-free", "bf16"),
        ("grammar", "q4-free", "q4"),
        ("thought", "bf16-no-thought", "bf16"),
        ("noise floor", "bf16", "bf16-parallel"),
    }
    order = [KINDS.index(cause.kind) for cause in found]
    assert order == sorted(order)
    words = {(cause.kind, cause.what) for cause in found}
    assert words == {
        ("quantization", "BF16 → Q4_K_M, constrained"),
        ("quantization", "BF16 → Q4_K_M, unconstrained"),
        ("grammar", "BF16 unconstrained → constrained"),
        ("grammar", "Q4_K_M unconstrained → constrained"),
        ("thought", "no thought → thought of up to 64 tokens, BF16"),
        ("noise floor", "BF16 twice: parallel 1 and 8"),
    }
    for cause in found:
        assert cause.part.joined == ROWS
        score = next(figure for figure in cause.part.figures if figure.name == "score")
        assert score.difference == pytest.approx(
            scores(Path(cause.second)) - scores(Path(cause.first)), abs=0.011
        )


def test_pairs_do_not_hang_on_the_order_given(runs: dict[str, Path]) -> None:
    names = ["q4-free", "q4", "bf16-parallel", "bf16-no-thought", "bf16-free", "bf16"]
    forth = pairs(causes([runs[name] for name in names]))
    assert forth == pairs(causes([runs[name] for name in reversed(names)])) and forth


def test_two_differences_are_no_cause(runs: dict[str, Path], changed: Callable[..., Path]) -> None:
    for first, second in [
        ("bf16", "q4-free"),  # quantization and grammar
        ("q4", "bf16-no-thought"),  # quantization and thought
        ("bf16-no-thought", "bf16-free"),  # without a grammar the model thinks: grammar and thought
    ]:
        assert causes([runs[first], runs[second]]) == (), (first, second)
    for name, parts in {
        "temperature": {"sampling": {"temperature": 0.7}},
        "penalty": {"sampling": {"repetition_penalty": 1.1}},
        "budget": {"sampling": {"max_tokens": 1024, "think": 64}},
        "cache": {"engine": {"kv_type": "q8_0"}},
        "style": {"sampling": {"style": "compact"}},
        "grammar": {"provenance": {"grammar_sha256": "0" * 64}},
        "thought": {"sampling": {"think": 32}},
        "adapter": {"lora_path": "adapter"},
        "unknown-backend": {"sampling": {"backend": None}, "provenance": {"backend": None}},
        "unknown-grammar": {"sampling": {"constrained": None}},
        "unknown-type": {
            "sampling": {"dtype": None},
            "provenance": {"quantization": None, "model_sha256": "0" * 64},
        },
        "other-model": {"provenance": {"model_sha256": "0" * 64}, "model": "another (BF16, edge)"},
        "other-weights": {"provenance": {"model_sha256": "0" * 64}},
    }.items():
        assert causes([runs["bf16"], changed("bf16", name, **parts)]) == (), name
    # the same change on neither side is the same run twice
    assert only(causes([runs["bf16"], changed("bf16", "again")])).what == "BF16 twice: the same settings"


def test_sources_tell_checkpoints_apart(runs: dict[str, Path], changed: Callable[..., Path]) -> None:
    of = {"source": "org/Model", "source_revision": "a"}
    base = changed("bf16", "base", provenance=of)
    for same in ({"source": "model", "source_revision": "a"}, {**of, "source_revision": None}):
        assert only(causes([base, changed("q4", "same", provenance=same)])).kind == "quantization"
    for other in ({**of, "source_revision": "b"}, {**of, "source": "org/Model-Base"}):
        assert causes([base, changed("q4", "other", provenance=other)]) == ()


def test_a_pair_by_unequal_names_says_so(runs: dict[str, Path], changed: Callable[..., Path]) -> None:
    longer = changed("q4", "longer", model="Tiny Terminal 6M (Q4_K_M, edge)")
    cause = only(causes([runs["bf16"], longer]))
    assert (
        "Check that tiny-terminal and Tiny Terminal 6M come from one checkpoint: edge could compare only their names."
        in (cause.part.notes)
    )
    assert not any("only their names" in note for note in only(causes([runs["bf16"], runs["q4"]])).part.notes)


def test_a_thought_that_never_came_is_none(runs: dict[str, Path]) -> None:
    """Allowed or not, these rows ask for no thought: what differs between the runs is noise, if anything does."""
    short = [runs["bf16-short"], runs["bf16-short-no-thought"]]
    assert all(step["thought"] is None for path in short for step in read_result(path)["per_step"])
    cause = only(causes(short))
    assert cause.kind == "noise floor"
    assert "thought of up to" in cause.what and "no thought was written" in cause.what
    assert all(figure.difference == 0 for figure in cause.part.figures)


def test_an_unconstrained_run_may_lack_thoughts_too(runs: dict[str, Path], tmp_path: Path) -> None:
    """Where the model does not think by itself, the grammar is all that differs from a run with thoughts off."""
    result = read_result(runs["bf16-free"])
    assert any("</think>" in step["pred_text"] for step in result["per_step"])
    result["per_step"] = [step for step in result["per_step"] if "</think>" not in step["pred_text"]]
    thoughtless = tmp_path / "thoughtless.json"
    thoughtless.write_text(json.dumps(result), encoding="utf-8")
    assert pairs(causes([thoughtless, runs["bf16-no-thought"]])) == {
        ("grammar", "thoughtless", "bf16-no-thought")
    }


def test_the_least_quantized_is_the_baseline(runs: dict[str, Path], changed: Callable[..., Path]) -> None:
    """Three types give two pairs, not three; without bf16 the larger one is the baseline."""
    eight = changed(
        "q4",
        "q8",
        provenance={"quantization": "Q8_0", "bits_per_weight": 8.5, "model_sha256": "8" * 64},
    )
    three = [runs["q4"], eight, runs["bf16"]]
    assert pairs(causes(three)) == {("quantization", "bf16", "q8"), ("quantization", "bf16", "q4")}
    assert pairs(causes(three[:2])) == {("quantization", "q8", "q4")}


def test_two_files_of_one_type_differ_in_their_quantization(
    runs: dict[str, Path], changed: Callable[..., Path]
) -> None:
    """With and without an importance matrix, for instance."""
    calibrated = changed("q4", "calibrated", provenance={"model_sha256": "c" * 64, "imatrix": {"chunks": 5}})
    assert only(causes([runs["q4"], calibrated])).kind == "quantization"


def test_pairs_in_the_same_batching_go_first(runs: dict[str, Path], changed: Callable[..., Path]) -> None:
    """Q4 against bf16 is told once; only where nothing else is there, with the batching that differs too."""
    found = causes([runs["bf16"], runs["bf16-parallel"], runs["q4"]])
    assert pairs(found) == {("quantization", "bf16", "q4"), ("noise floor", "bf16", "bf16-parallel")}
    cause = only(causes([runs["bf16-parallel"], runs["q4"]]))
    assert cause.what == "BF16 → Q4_K_M, constrained (batching differs too: parallel 8 and 1)"
    # another machine, version or seed is named as well; a seed that is not used is not
    for parts, what in [
        ({"provenance": {"cpu": "Z80", "edge": "9.9"}}, "cpu"),
        ({"sampling": {"seed": 5}}, "the same settings"),
    ]:
        assert what in only(causes([runs["bf16"], changed("bf16", "elsewhere", **parts)])).what
    sampled = [
        changed("bf16", f"seed-{seed}", sampling={"temperature": 0.7, "seed": seed}) for seed in (1, 2)
    ]
    assert only(causes(sampled)).what == "BF16 twice: seed 1 and 2"


def test_other_rows_are_no_pair(runs: dict[str, Path], tmp_path: Path) -> None:
    result = read_result(runs["q4"])
    result["per_step"][3]["row_sha256"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(result), encoding="utf-8")
    assert causes([runs["bf16"], other]) == ()


def test_results_from_before_provenance(runs: dict[str, Path], changed: Callable[..., Path]) -> None:
    """They tell their backend, type, settings and file's hash: enough for every cause on one engine."""
    names = ("bf16", "q4", "bf16-free", "bf16-no-thought", "bf16-parallel")
    old = [changed(name, name, provenance=None) for name in names]
    assert pairs(causes(old)) == {
        ("quantization", "bf16", "q4"),
        ("grammar", "bf16-free", "bf16"),
        ("thought", "bf16-no-thought", "bf16"),
        ("noise floor", "bf16", "bf16-parallel"),
    }
    bare = [changed(name, f"bare-{name}", provenance=None, sampling=None) for name in ("bf16", "q4")]
    assert causes(bare) == ()


def test_a_version_of_the_engine_is_an_engine(runs: dict[str, Path], changed: Callable[..., Path]) -> None:
    older = changed("bf16", "older", provenance={"llama_cpp_python": "0.2.0"})
    cause = only(causes([older, runs["bf16"]]))
    assert cause.kind == "engine" and "llama-cpp-python 0.2.0" in cause.what
    assert causes([older, runs["q4"]]) == ()


def test_vllm_against_our_bf16(shared: Path, smollm2_bf16: Path, tmp_path: Path) -> None:
    """The published run, which has no provenance, and the same two rows, prompts and limits on llama.cpp."""
    published = shared / "data" / "smollm2_vllm_bf16.json"
    rows = shared / "data" / "replay_terminal_dev.jsonl"
    wanted = {("task-004", 0), ("task-005", 0)}
    lines = rows.read_text(encoding="utf-8").splitlines()
    short = tmp_path / "rows.jsonl"
    chosen = [
        line
        for line, row in zip(lines, read_rows(rows), strict=True)
        if (row.task_id, row.step_idx) in wanted
    ]
    assert len(chosen) == 2
    short.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    free, held = tmp_path / "free.json", tmp_path / "held.json"
    result = evaluate(
        smollm2_bf16,
        short,
        free,
        answering=Answering(constrained=False, max_tokens=256),
        loading=Loading(parallel=1, threads=1),
    )
    result["sampling"]["constrained"] = True  # a run of its own would take ten seconds more
    held.write_text(json.dumps(result), encoding="utf-8")
    assert pairs(causes([held, free, published])) == {
        ("engine", "smollm2_vllm_bf16", "free"),
        ("grammar", "free", "held"),
    }
    cause = only(causes([free, published]))
    assert cause.what == "vLLM → edge, BF16" and cause.part.joined == 2
    assert any("has no row hashes" in note for note in cause.part.notes)
    assert any("only their names" in note for note in cause.part.notes)
    assert causes([held, published]) == ()  # engine and grammar


def test_what_is_no_result_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps({"aggregate": {"avg_command_f1": 0.5}}), encoding="utf-8")
    for results, reason in [
        ([runs["bf16"], figures], "figures.json: contains no steps; --causes compares results step by step"),
        ([runs["bf16"], tmp_path / "none.json"], "none.json: cannot be read"),
        ([runs["bf16"], runs["bf16"]], "bf16.json: is given twice"),
    ]:
        with pytest.raises(ResultError, match=reason):
            causes(results)


def test_markdown(runs: dict[str, Path], changed: Callable[..., Path]) -> None:
    paths = [runs["bf16"], runs["q4"], runs["bf16-parallel"]]
    found = causes(paths)
    text = causes_markdown(found)
    assert "| cause        | from → to " in text and "| quantization | BF16 → Q4_K_M, constrained" in text
    assert "## noise floor: BF16 twice: parallel 1 and 8\n" in text
    assert f"{runs['q4']} compared with {runs['bf16']}." in text
    for cause in found:
        for figure in cause.part.figures:
            if figure.name in ("score", "first_cmd_exact_pct", "valid_json_pct"):
                assert figure.sentence in text
    skipped = causes_markdown(causes([changed("bf16", "a", sampling={"skipped_too_long": 1}), *paths[1:]]))
    assert (
        skipped.count("The reference left out 1 row that did not fit into its context.") == 1
    )  # of two pairs
    assert "No two of these results differ in exactly one thing" in causes_markdown(())


def test_command(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference is one of the runs; both outputs go into one JSON."""

    def edge(*arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            app([*arguments], prog_name="edge")
        return int(left.value.code or 0)

    out = tmp_path / "found.json"
    given = [str(runs["q4"]), str(runs["bf16-parallel"])]
    assert edge("compare", *given, "--causes", "--reference", str(runs["bf16"]), "--json", str(out)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# Compared with ") and "\n# Causes\n" in printed
    written = json.loads(out.read_text(encoding="utf-8"))
    found = causes([runs["bf16"], runs["q4"], runs["bf16-parallel"]])
    assert written["causes"] == json.loads(json.dumps(causes_json(found))) and len(written["parts"]) == 2
    assert edge("compare", *given, "--causes", "--json", str(out), "--force") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# Causes\n") and "Compared with" not in printed
    assert set(json.loads(out.read_text(encoding="utf-8"))) == {"comparison", "run", "causes"}
    # a reference that is among the results is one run, and published figures are none
    assert edge("compare", given[0], "--causes", "--reference", given[0]) == 0
    assert "differ in exactly one thing" in capsys.readouterr().out
    assert edge("compare", given[0], "--causes", "--reference", "lfm2.5-8b-a1b-terminal") == 0
    assert "cannot name the cause" in capsys.readouterr().out
    assert edge("compare", *given) == 2
    assert "--reference: give it a result or a known model" in capsys.readouterr().err
