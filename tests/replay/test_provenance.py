"""What a result tells of where it comes from, held against what other programs say of the same files.

pytest tests/replay/test_provenance.py
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from safetensors import safe_open

from edge.answer.answering import Answering
from edge.answer.style import load_grammar
from edge.llama.loading import Loading
from edge.prompt import prompt_source, render_prompt
from edge.replay.provenance import folder_provenance, gguf_provenance, provenance
from edge.replay.result import read_result
from edge.replay.rows import read_rows, row_sha256, rows_sha256
from edge.replay.run import evaluate
from edge.replay.score import score
from edge.system.machine import peak_memory
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow

ROWS = 3
HEX = set("0123456789abcdef")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def result(tiny_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("provenance") / "result.json"
    evaluate(
        tiny_q4,
        embedded_rows(),
        out,
        limit=ROWS,
        answering=Answering(max_tokens=8),
        loading=Loading(threads=1, parallel=1),
    )
    return read_result(out)


def test_a_result_says_what_it_is_of(result: dict[str, Any], tiny_q4: Path, tiny_folder: Path) -> None:
    told = result["provenance"]
    assert told["backend"] == result["sampling"]["backend"] == "edge"
    assert told["backend_version"] == told["edge"]
    assert told["llama_cpp"].startswith("ggml ") and told["llama_cpp_python"]
    assert told["model_sha256"] == result["model_sha256"] == sha256(tiny_q4.read_bytes())
    assert told["model_bytes"] == tiny_q4.stat().st_size
    assert told["quantization"] == "Q4_K_M" and told["imatrix"] is None
    assert told["grammar_sha256"] == sha256(load_grammar().encode())
    template = (tiny_folder / "chat_template.jinja").read_bytes()
    assert told["prompt_template_sha256"] == sha256(template)
    assert told["rows_file_sha256"] == sha256(embedded_rows().read_bytes())
    assert told["rows_sha256"] == rows_sha256(read_rows(embedded_rows(), ROWS))
    assert told["threads"] == 1 and told["platform"] and told["cpu"]
    assert set(told) == set(provenance({}))
    assert result["engine"]["peak_memory_bytes"] > tiny_q4.stat().st_size


def test_types_as_the_gguf_package_counts_them(result: dict[str, Any], tiny_q4: Path) -> None:
    tensors = GGUFReader(tiny_q4).tensors
    told = result["provenance"]
    counts = Counter(tensor.tensor_type.name for tensor in tensors)
    assert {name: share["tensors"] for name, share in told["tensor_types"].items()} == counts
    n_bytes = sum(int(tensor.n_bytes) for tensor in tensors)
    n_params = sum(int(tensor.n_elements) for tensor in tensors)
    assert sum(share["bytes"] for share in told["tensor_types"].values()) == n_bytes
    assert told["n_params"] == n_params
    assert told["bits_per_weight"] == pytest.approx(8 * n_bytes / n_params, abs=1e-4)


def test_each_step_names_its_row_and_its_prompt(result: dict[str, Any], tiny_q4: Path) -> None:
    lines = embedded_rows().read_text(encoding="utf-8").splitlines()
    source = prompt_source(tiny_q4)
    for line, step in zip(lines, result["per_step"], strict=False):
        row = json.loads(line)
        wanted = {"messages": row["messages"], "ref_raw": row["ref_raw"]}
        text = json.dumps(wanted, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        assert step["row_sha256"] == sha256(text.encode())
        prompt = render_prompt(row["messages"], source).text
        assert step["prompt_sha256"] == sha256(prompt.encode())


def test_a_row_is_known_by_what_it_says(tmp_path: Path) -> None:
    """Spelling, order of fields and names do not count; a message or the reference does."""
    row = json.loads(embedded_rows().read_text(encoding="utf-8").splitlines()[0])

    def of(changed: dict[str, Any], **how: Any) -> str:
        (tmp_path / "rows.jsonl").write_text(json.dumps(changed, **how))
        return row_sha256(read_rows(tmp_path / "rows.jsonl")[0])

    told = of(row)
    swapped = [dict(reversed(message.items())) for message in row["messages"]]
    assert of({**row, "messages": swapped, "task_id": "another"}, ensure_ascii=False) == told
    assert of({**row, "ref_raw": row["ref_raw"] + " "}) != told
    longer = [*row["messages"], {"role": "user", "content": ""}]
    assert of({**row, "messages": longer}) != told


def test_a_folder_and_the_gguf_made_of_it(tiny_folder: Path, tiny_bf16: Path, tmp_path: Path) -> None:
    folder, gguf = folder_provenance(tiny_folder), gguf_provenance(tiny_bf16)
    assert folder["prompt_template_sha256"] == gguf["prompt_template_sha256"]
    assert folder["n_params"] == gguf["n_params"]
    with safe_open(tiny_folder / "model.safetensors", "pt") as stored:
        assert folder["tensor_types"]["BF16"]["tensors"] == len(list(stored.keys()))
    assert folder["source"] == str(tiny_folder) and gguf["source"] is None

    # The documented recipe, on a copy as a hub's cache lays it out; another template makes another model.
    commit = "c" * 40
    copy = tmp_path / "models--some--model" / "snapshots" / commit
    copy.mkdir(parents=True)
    for file in tiny_folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    names = sorted(p.name for p in copy.iterdir() if p.suffix in (".json", ".jinja", ".safetensors"))
    lines = "".join(f"{name} {sha256((copy / name).read_bytes())}\n" for name in names)
    told = folder_provenance(copy)
    assert told["model_sha256"] == sha256(lines.encode()) == folder["model_sha256"]
    assert (told["source"], told["source_revision"]) == ("some/model", commit)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert folder_provenance(copy)["model_sha256"] != told["model_sha256"]


def test_scored_predictions_tell_of_their_rows_alone(tmp_path: Path, result: dict[str, Any]) -> None:
    keys = ("task_id", "sample_idx", "step_idx", "pred_text", "prompt_sha256")
    lines = [json.dumps({key: step[key] for key in keys}) for step in result["per_step"]]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    scored = score(tmp_path / "p.jsonl", embedded_rows(), tmp_path / "s.json", partial=True)
    told = scored["provenance"]
    assert told["rows_sha256"] == result["provenance"]["rows_sha256"]
    assert told["rows_file_sha256"] == result["provenance"]["rows_file_sha256"]
    known = {name for name, value in told.items() if value is not None}
    assert known == {"edge", "rows_sha256", "rows_file_sha256"}
    for ours, theirs in zip(scored["per_step"], result["per_step"], strict=True):
        assert ours["row_sha256"] == theirs["row_sha256"]
        assert ours["prompt_sha256"] == theirs["prompt_sha256"]


def test_peak_memory_is_in_bytes() -> None:
    before = peak_memory()
    assert before is not None
    block = b"x" * (before + (64 << 20))  # more than the process ever had
    after = peak_memory()
    assert after is not None and after >= before + (32 << 20)
    assert len(block) < after < 3 * len(block)
