"""Small results, measurements and trials of four files, written without a model, for tests of pages."""

import json
from pathlib import Path
from typing import Any

from edge.compare.trial_figures import figures, levels
from edge.replay.result import step_result, write_result
from edge.replay.rows import Row

EVIDENCE = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence" / "trials" / "default.json"
"""Trials of the default model: it solved 25 of 84 tasks."""
TASKS = 12
_COMMANDS = ("ls", "pwd", "df -h", "cat a.txt")
# Of the tasks, those whose answer is wrong; the size of the file; the mean KL divergence from the base.
FILES: dict[str, tuple[set[int], int, float | None]] = {
    "bf16": ({0}, 16_000_000, None),
    "Q8_0": ({0}, 8_500_000, 0.0001),
    "Q4_K_M": ({0, 1, 2}, 5_000_000, 0.004),
    "Q2_K": (set(range(8)), 3_000_000, 0.2),
}


def answer(command: str) -> str:
    told = {"analysis": "a", "plan": "p", "commands": [{"keystrokes": f"{command}\n", "duration": 0.1}]}
    return json.dumps({**told, "task_complete": False})


def result(path: Path, name: str, **more: Any) -> Path:
    """The result of a file; `more` replaces fields of its `sampling`."""
    wrong, n_bytes, _ = FILES[name]
    steps = []
    for task in range(TASKS):
        command = _COMMANDS[task % len(_COMMANDS)]
        row = Row(f"task-{task}", 0, 0, None, "early", "group", [], answer(command))
        steps.append(step_result(row, answer("rm x" if task in wrong else command)))
    head = {
        "model": f"small ({name}, edge)",
        "model_path": f"out/small-{name}.gguf",
        "eval_path": "data/rows.jsonl",
        "sampling": {
            "backend": "edge",
            "temperature": 0.0,
            "max_tokens": 64,
            "constrained": True,
            "think": 0,
            "dtype": name,
            **more,
        },
        "engine": {"parallel": 4, "completion_tokens": 999, "peak_memory_bytes": n_bytes + 10**7},
        "gen_time_sec": 2.0,
        "provenance": {
            "edge": "0.2.0",
            "backend": "edge",
            "model_sha256": digest(name),
            "model_bytes": n_bytes,
            "bits_per_weight": n_bytes / 1e6,
            "quantization": name,
            "source": "owner/small",
        },
    }
    write_result(path, head, steps)
    return path


def digest(name: str) -> str:
    """A SHA-256 for the model file of a name."""
    return name.encode().hex().ljust(64, "0")


def measurement(path: Path, name: str) -> Path:
    """The measurement of a file."""
    mean = FILES[name][2]
    assert mean is not None
    spread = {"kl_median": mean / 5, "kl_p90": mean * 2, "kl_p99": mean * 9, "kl_max": mean * 60}
    told = {
        "measurement": 1,
        "model_sha256": digest(name),
        "kind": "rows",
        "base": "small (BF16, edge)",
        "base_sha256": digest("bf16"),
        "aggregate": {"tokens": 4321, "nll": 0.31, "perplexity": 1.363, "kl_mean": mean, **spread},
        "intervals": {"kl_mean": [mean * 0.8, mean * 1.3]},
        "by_position": [],
        "by_field": [],
        "per_step": [],
    }
    path.write_text(json.dumps(told))
    return path


def small_results(folder: Path) -> list[Path]:
    """Results of all four files, the base first, then the measurements."""
    paths = [result(folder / f"small-{name}.json", name) for name in FILES]
    paths += [
        measurement(folder / f"small-{name}.measure.json", name)
        for name in FILES
        if FILES[name][2] is not None
    ]
    return paths


def trials(path: Path, name: str, lost: int = 0, attempts: int = 1) -> Path:
    """The trials of the default model as those of a file, which fails the first `lost` of the 25 solved tasks.

    `attempts`: each trial is there so many times.
    """
    told: dict[str, Any] = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    solved = [trial for trial in told["trials"] if trial["state"] == "solved"]
    for trial in solved[:lost]:
        trial.update(state="failed", ended="wrong", reward=0.0)
    repeated = [{**trial, "attempt": k} for trial in told["trials"] for k in range(1, attempts + 1)]
    told |= {"trials": repeated, "attempts": attempts}
    told |= {"figures": figures(repeated), "by_level": levels(repeated)}
    told["provenance"] |= {"model_sha256": digest(name), "adapters": []}
    told["run"] |= {"model_sha256": digest(name), "adapters": {}}
    path.write_text(json.dumps(told), encoding="utf-8")
    return path
