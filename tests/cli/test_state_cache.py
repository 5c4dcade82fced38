"""Prompt states on disk through the command line: the same answers, less to read; shown, limited and removed.

pytest tests/cli/test_state_cache.py
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest
from own_state import own_state

pytestmark = pytest.mark.slow

SYSTEM = "You are careful. " + " ".join(f"Rule {i}: use the file number {i}." for i in range(40))
Edge = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def edge(tmp_path: Path) -> Edge:
    """edge with a cache folder of its own."""
    own = {
        **os.environ,
        "EDGE_CACHE": str(tmp_path / "cache"),
        "EDGE_STATE": str(own_state(tmp_path / "state")),
    }
    return lambda *arguments: command_line.run(*arguments, cwd=tmp_path, env=own)


def messages(folder: Path, task: str) -> Path:
    path = folder / f"{task.split()[0]}.json"
    path.write_text(json.dumps([{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]))
    return path


def states(edge: Edge) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(edge("models", "states", "--json").stdout)["states"]
    return found


def answer(edge: Edge, model: Path, path: Path, *options: str) -> str:
    done = edge("run", "--messages", path, "-m", model, "--max-tokens", "60", "--quiet", *options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_run_answers_the_same_and_keeps_the_instructions(edge: Edge, tiny_q4: Path, tmp_path: Path) -> None:
    first, second = messages(tmp_path, "List files."), messages(tmp_path, "Show the date.")
    cold = answer(edge, tiny_q4, second, "--no-state-cache")
    assert states(edge) == []
    answer(edge, tiny_q4, first)
    [kept] = states(edge)
    assert kept["kind"] == "instructions" and kept["model"] == tiny_q4.name
    assert answer(edge, tiny_q4, second) == cold
    [again] = states(edge)
    assert again["path"] == kept["path"]
    assert answer(edge, tiny_q4, second, "--state-cache", "1GB") == cold
    assert sorted(str(state["kind"]) for state in states(edge)) == ["instructions", "prompt"]
    assert answer(edge, tiny_q4, second, "--state-cache", "1GB") == cold  # nothing is read now
    shown = edge("models", "states").stdout
    assert "instructions" in shown and "2 states" not in shown and "cache" in shown
    assert "Prompt states: 2, " in edge("models").stdout
    assert edge("models", "states", "--clear").stdout.startswith("removed 2 states (")
    assert states(edge) == [] and edge("models", "states").stdout.startswith("No states in ")
    answer(edge, tiny_q4, first, "--state-cache", "10")  # no state is so small
    assert states(edge) == []


def test_eval_in_exact_mode_gives_the_same_steps(edge: Edge, tiny_q4: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    tasks = ["List files.", "Show the date.", "Print the user."]
    action = json.dumps({"analysis": "a", "plan": "p", "commands": [], "task_complete": True})
    rows.write_text(
        "".join(
            json.dumps(
                {
                    "task_id": f"task-{i}",
                    "sample_idx": 0,
                    "step_idx": 0,
                    "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}],
                    "ref_raw": action,
                }
            )
            + "\n"
            for i, task in enumerate(tasks)
        )
    )

    def evaluated(out: str, *options: str) -> dict[str, object]:
        common = ("-m", tiny_q4, "--out", out, "--max-tokens", "40", "--parallel", "1", "--quiet")
        done = edge("eval", "--replay", rows, *common, *options)
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads((tmp_path / out).read_text())
        return found

    def texts(result: dict[str, object]) -> list[str]:
        return [step["pred_text"] for step in result["per_step"]]  # type: ignore[attr-defined]

    cold = evaluated("cold.json", "--no-state-cache")
    evaluated("first.json")
    warm = evaluated("warm.json")
    assert texts(warm) == texts(cold)
    engine = warm["engine"]
    assert engine["prompt_tokens_restored"] > 300  # type: ignore[index]
    read = engine["prompt_tokens_restored"] + engine["prompt_tokens_decoded"]  # type: ignore[index]
    assert read == engine["prompt_tokens_distinct"]  # type: ignore[index]
    assert cold["engine"]["prompt_tokens_restored"] == 0  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--state-cache", "much"), "must be a size such as 6GB"),
        (("--state-cache", "1GB", "--no-state-cache"), "belongs to --state-cache"),
    ],
)
def test_wrong_options(edge: Edge, options: tuple[str, ...], words: str) -> None:
    done = edge("run", "List files.", *options)
    assert done.returncode == 2 and words in done.stderr
