"""What a model is, by its provenance: a name that contradicts it, and two results of one file.

pytest tests/compare/test_labels.py
"""

import shutil
from pathlib import Path
from typing import Any

import command_line
import pytest

from edge.compare import compare
from edge.compare.labels import contradicted, named_types, stated_type
from edge.report.evidence import read_runs
from edge.system.paths import embedded_rows


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("tiny-Q8_0", ["Q8_0"]),
        ("model.q4_k_m-exact", ["Q4_K_M"]),
        ("model_IQ3_XXS_v2", ["IQ3_XXS"]),
        ("Model-Q4_K", ["Q4_K"]),
        ("vllm_bf16", ["BF16"]),
        ("x-float16-Q5_1", ["F16", "Q5_1"]),
        ("Qwen3.5-2B", []),
        ("Q8_01", []),
        ("IQ4_XSL", []),
        ("", []),
    ],
)
def test_types_in_names(name: str, types: list[str]) -> None:
    assert named_types(name) == types


@pytest.mark.parametrize(
    ("name", "quantization", "wrong"),
    [
        ("copy-Q8_0", "BF16", "Q8_0"),
        ("copy-Q8_0", "Q8_0", None),
        ("copy-q4_k", "Q4_K_M", None),
        ("copy-q4_k_s", "Q4_K_M", "Q4_K_S"),
        ("Q4_K_M-from-bf16", "Q4_K_M", None),
        ("ours", "BF16", None),
        ("copy-Q8_0", None, None),
        ("vllm-f16", "bfloat16", "F16"),
        ("copy-Q8_0", "something new", None),
    ],
)
def test_contradictions(name: str, quantization: str | None, wrong: str | None) -> None:
    result: Any = {"provenance": {"quantization": quantization}}
    assert contradicted(name, result) == wrong


def test_the_stated_type() -> None:
    assert stated_type({"sampling": {"dtype": "bfloat16"}}) == "BF16"
    assert (
        stated_type({"provenance": {"quantization": "Q4_K_M"}, "sampling": {"dtype": "float16"}}) == "Q4_K_M"
    )
    assert stated_type({}) is None


@pytest.fixture(scope="module")
def runs(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a bf16 file, of its copy that is called Q8_0, and of the copy without a grammar."""
    folder = tmp_path_factory.mktemp("labels")
    copy = folder / "tiny-Q8_0.gguf"
    shutil.copyfile(tiny_bf16, copy)
    for name, model, more in (
        ("tiny-BF16", tiny_bf16, ()),
        ("tiny-Q8_0", copy, ()),
        ("free", copy, ("--unconstrained",)),
    ):
        done = command_line.run(
            *(
                "eval",
                "--quiet",
                "--model",
                model,
                "--replay",
                embedded_rows(),
                "--limit",
                2,
                "--max-tokens",
                4,
            ),
            *("--parallel", 1, "--threads", 1, "--out", folder / f"{name}.json", *more),
        )
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_copy_with_another_name_is_told(runs: Path) -> None:
    paths = [runs / "tiny-Q8_0.json", runs / "free.json"]
    copy, free = compare(paths, runs / "tiny-BF16.json").parts
    for wanted in (
        "Our result: its file is named tiny-Q8_0.json, but its weights are BF16, as the model file says.",
        f"(SHA-256 {_sha(runs)}",
    ):
        assert any(wanted in note for note in copy.notes), copy.notes
    assert not any("The reference: its file is named" in note for note in copy.notes)
    assert any("its model file is named tiny-Q8_0.gguf" in note for note in free.notes)
    assert any(f"Of the same model file (SHA-256 {_sha(runs)}…): {paths[0]}." == note for note in free.notes)


def _sha(runs: Path) -> str:
    from edge.formats.gguf import sha256

    return sha256(runs / "tiny-Q8_0.gguf")[:12]


@pytest.mark.slow
def test_rank_goes_by_the_file(runs: Path) -> None:
    """The copy is a duplicate of the file, the newest counts, and its name is a note."""
    done = command_line.run("rank", *(runs / f"{name}.json" for name in ("tiny-BF16", "tiny-Q8_0", "free")))
    assert done.returncode == 0, done.stderr
    assert "duplicate: " in done.stdout and "is of the same model and settings" in done.stdout
    assert "its model file is named tiny-Q8_0.gguf, but its weights are BF16" in done.stdout
    assert "Of the same model file (SHA-256 " in done.stdout


@pytest.mark.slow
def test_the_report_labels_by_the_file(runs: Path) -> None:
    """A copy that is called Q8_0 has the type of its weights in the report's tables and plots."""
    found = read_runs([runs / "tiny-BF16.json", runs / "tiny-Q8_0.json"])
    assert [run.label for run in found] == ["BF16", "BF16 (named Q8_0)"]


@pytest.mark.slow
def test_compare_has_the_type_of_each_result(runs: Path) -> None:
    comparison = compare([runs / "tiny-Q8_0.json", runs / "free.json"], runs / "tiny-BF16.json")
    assert [part.type for part in comparison.parts] == ["BF16", "BF16"]
    assert len({part.model_sha256 for part in comparison.parts}) == 1
    overview = [line for line in comparison.to_markdown().splitlines() if line.startswith("|")][:4]
    assert "| type" in overview[0] and all("| BF16" in line for line in overview[2:])
