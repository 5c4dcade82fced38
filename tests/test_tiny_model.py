"""The embedded checkpoint is what its card says: an LFM2-MoE of K-quant widths, and episodes held out for real.

pytest tests/test_tiny_model.py
"""

import json
import random
import re
import sys
from pathlib import Path

import pytest

from edge.answer.action import parse_action
from edge.replay.rows import read_rows
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from episode_kinds import KINDS  # noqa: E402
from episodes import Values, held_out, held_out_episodes, make_episode, replay_rows  # noqa: E402


def test_widths_and_size(tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    assert config["architectures"] == ["Lfm2MoeForCausalLM"]
    for width in ("hidden_size", "intermediate_size", "moe_intermediate_size"):
        assert config[width] % 256 == 0
    assert config["hidden_size"] // config["num_attention_heads"] % 32 == 0
    assert config["num_experts"] != 8
    files = [path for path in tiny_folder.iterdir() if path.name != "eval.jsonl"]
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert embedded_rows().stat().st_size < 1e6


def test_the_shipped_rows_are_what_the_generator_makes() -> None:
    made = [json.loads(json.dumps(row)) for row in replay_rows(held_out_episodes(100, seed=7))]
    shipped = [json.loads(line) for line in embedded_rows().read_text(encoding="utf-8").splitlines()]
    assert made == shipped
    tasks = {row["task_id"]: row["source_group"] for row in shipped}
    assert len(tasks) == 100 and sum(group == "unseen-wording" for group in tasks.values()) == 25
    assert any("<think>" in row["ref_raw"] for row in shipped)
    assert any(row["messages"][0]["role"] == "system" for row in shipped)
    assert any(row["ref_task_complete"] for row in shipped)


def test_every_reference_is_a_valid_action() -> None:
    for row in read_rows(embedded_rows()):
        fields = parse_action(row.ref_raw.rsplit("</think>", 1)[-1].strip())
        assert fields["commands"]


@pytest.mark.parametrize("held", [False, True])
def test_values_never_cross_the_line(held: bool) -> None:
    """No value that an episode draws lies in the other half; so none of a held-out row is ever trained on."""
    rng = random.Random(3)
    placeholders = sorted({name for kind in KINDS for name in re.findall(r"<([a-z]+\d*)>", repr(kind))})
    assert len(placeholders) > 15
    for _ in range(200):
        values = Values(rng, held)
        for name in placeholders:
            assert held_out(values.fill(f"<{name}>")) == held


def test_unseen_wordings_are_never_used_in_training() -> None:
    for kind in KINDS:
        assert kind.unseen and not set(kind.unseen) & set(kind.say)
    rng = random.Random(5)
    starts = {re.split(r"[<\[]", wording)[0] for kind in KINDS for wording in kind.unseen}
    starts = {start for start in starts if len(start) > 12}
    assert len(starts) > 15
    for _ in range(1500):
        task = make_episode(rng, held=False).messages[0][-1]["content"]
        assert not any(task.startswith(start) for start in starts), task
