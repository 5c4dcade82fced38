"""`edge eval --backend vllm`: with vLLM where it is installed; what it says where it is not.

pytest tests/replay/test_vllm.py
"""

import importlib.util
import json
from pathlib import Path

import pytest

from edge.answer.answering import Answering
from edge.errors import BackendError, CheckpointError
from edge.replay.vllm import evaluate_vllm
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow

HERE = importlib.util.find_spec("vllm") is not None


@pytest.mark.skipif(HERE, reason="vllm is installed")
def test_without_vllm_one_line_says_how_to_get_it(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="vLLM is not installed here: `pip install vllm`") as caught:
        evaluate_vllm(tiny_folder, embedded_rows(), tmp_path / "result.json")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_is_no_checkpoint(tiny_q4: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="runs a Hugging Face checkpoint, not a GGUF"):
        evaluate_vllm(tiny_q4, embedded_rows(), tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not HERE, reason="vllm is not installed")
def test_answers_of_vllm(smollm2_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = evaluate_vllm(
        smollm2_folder, embedded_rows(), out, limit=3, answering=Answering(max_tokens=16, constrained=False)
    )
    assert json.loads(out.read_text())["aggregate"] == result["aggregate"]
    assert [step["completion_tokens"] for step in result["per_step"]] == [16] * 3
    assert result["provenance"]["backend"] == "vllm"
    assert result["prompt_template"]["rank_eligible"]
