"""`edge tune`: what it measures, what it stores, and which command takes which part of it.

.venv/bin/pytest tests/test_tune.py
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import command_line
import conftest
import pytest
from jsonschema import Draft202012Validator

from edge.llama.devices import devices
from edge.llama.loading import Loading
from edge.llama.tuned import this_machine, tuned_for, with_tuned
from edge.schemas import schema
from edge.system.machine import physical_cores, thread_counts
from edge.system.tuned import tuned_file, write_tuned
from edge.tune import forget

ROWS = conftest.ROOT / "models" / "tiny-terminal" / "eval.jsonl"
Edge = Callable[..., Any]


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edge]:
    """Commands with a file of settings of their own; this process has the same."""
    config = tmp_path / "config.toml"
    config.touch()
    monkeypatch.setenv("EDGE_CONFIG", str(config))
    yield lambda *words: command_line.run(*words, env={**os.environ, "EDGE_CONFIG": str(config)})


def stored(model: Path, **values: int | None) -> None:
    """Write an entry for the model on this machine, as a measurement would."""
    from edge.formats.gguf import model_sha256

    write_tuned(
        [
            {
                "model": str(model),
                "model_sha256": model_sha256(model),
                "model_bytes": model.stat().st_size,
                "machine": this_machine(devices()),
                "timestamp": "2026-11-29T00:00:00+00:00",
                "values": {"threads": None, "gpu_layers": None, "batch": None, "parallel": None, **values},  # type: ignore[typeddict-item]
                "suggested": ["--flash-attention"],
                "measured": [],
            }
        ]
    )


@pytest.mark.slow
def test_a_measurement_is_stored_and_shown(edge: Edge, tiny_q4: Path) -> None:
    stored(tiny_q4, threads=77)
    done = edge("tune", tiny_q4, "--rounds", "2")
    assert done.returncode == 0, done.stderr
    data = json.loads(tuned_file().read_text())
    assert list(Draft202012Validator(schema("tuned")).iter_errors(data)) == []
    entry = data["models"][0]
    assert entry["machine"]["cores"] == physical_cores()
    options = {row["option"] for row in entry["measured"]}
    assert options >= {"batch", "parallel", "flash_attention", "kv_type"}
    for row in entry["measured"]:
        assert row["seconds"] > 0 and row["spread"] >= 0 and row["rounds"] in (1, 2)
        taken = entry["values"].get(row["option"])
        if taken is not None and str(taken) == row["value"]:
            assert row["gain"] > row["spread"]
    for option, value in entry["values"].items():
        better = [r for r in entry["measured"] if r["option"] == option and r["gain"] > r["spread"]]
        assert value is None or better, option
    assert "edge tune, 20" in edge("doctor", "--model", tiny_q4).stdout
    assert len(data["models"]) == 1  # it replaced the one before
    assert "1 measurement removed" in edge("tune", tiny_q4, "--forget").stdout
    assert forget(tiny_q4) == 0


def test_who_takes_what(edge: Edge, tiny_q4: Path) -> None:
    stored(tiny_q4, threads=1, batch=64, parallel=3)
    said: list[str] = []
    answering = with_tuned(tiny_q4, Loading(), measures=False, say=said.append)
    assert (answering.threads, answering.batch, answering.parallel) == (1, 64, 3)
    assert said == ["tuned: 1 thread, batch 64, 3 answers at a time (edge tune, 2026-11-29)"]
    measuring = with_tuned(tiny_q4, Loading(), measures=True)
    assert (measuring.threads, measuring.batch, measuring.parallel) == (1, None, None)
    named = Loading(threads=2, batch=128, parallel=1)
    assert with_tuned(tiny_q4, named, measures=False) == named
    assert answering.flash_attention is None and answering.kv_type == "f16"


@pytest.mark.slow
def test_run_uses_all_and_eval_only_the_threads(edge: Edge, tiny_q4: Path, tmp_path: Path) -> None:
    stored(tiny_q4, threads=1, batch=64)
    ran = edge("run", "--model", tiny_q4, "--max-tokens", "8", "Show the date.")
    assert "1 thread, 1 answer at a time" in ran.stderr and "batch 64," in ran.stderr
    assert "tuned: 1 thread, batch 64" in ran.stderr
    out = tmp_path / "r.json"
    words = ("eval", "--model", tiny_q4, "--replay", ROWS, "--limit", "2", "--max-tokens", "8", "--out", out)
    done = edge(*words)
    assert done.returncode == 0, done.stderr
    engine = json.loads(out.read_text())["engine"]
    assert (engine["threads"], engine["batch"]) == (1, 512)
    shown = edge("doctor", "--model", tiny_q4).stdout
    assert "1 thread, batch 64; suggested: --flash-attention (edge tune, 2026-11-29)" in shown


def test_another_model_machine_or_version_has_no_entry(edge: Edge, tiny_q4: Path, tiny_bf16: Path) -> None:
    stored(tiny_q4, threads=1)
    found = devices()
    assert tuned_for(tiny_q4, found) is not None
    assert tuned_for(tiny_bf16, found) is None
    for key, other in (
        ("cores", 999),
        ("cpu", "another"),
        ("devices", ["CUDA0: a GPU"]),
        ("llama_cpp", "0.1"),
    ):
        stored(tiny_q4, threads=1)
        data = json.loads(tuned_file().read_text())
        data["models"][0]["machine"][key] = other
        write_tuned(data["models"])
        assert tuned_for(tiny_q4, found) is None, key


def test_a_damaged_file_is_one_line(edge: Edge, tiny_q4: Path) -> None:
    for text, words in (
        ("{", "is damaged: delete it, and run edge tune again"),
        ("[]", "move it away, and run edge tune again"),
        (
            '{"mine": 1}',
            "edge tune did not write it (it: version is missing): move it away, and run edge tune again",
        ),
        ('{"version": 1}', "move it away, and run edge tune again"),
        ('{"version": 9, "models": []}', "has version 9; this edge reads up to 1: update edge"),
    ):
        tuned_file().write_text(text)
        done = edge("run", "--model", tiny_q4, "--max-tokens", "8", "Show the date.")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        line = done.stderr.splitlines()[-1]
        assert line.startswith(f"error: {tuned_file()}: ") and words in line, line


def test_numbers_of_threads_to_try() -> None:
    found = thread_counts()
    assert found == sorted(set(found)) and physical_cores() in found and found[0] == 1
