"""The known models: the shipped TOML files, finding one by name, the table of `edge models known`.

.venv/bin/pytest tests/replay/test_known.py
"""

from pathlib import Path

import pytest

from edge.cli.store import known_rows
from edge.errors import EdgeError
from edge.llama.memory import buffers, shape_of
from edge.replay.known import find_known, known_models, read_known
from edge.system.paths import shipped_models

TARGET = "LLM-OS-Models/LFM2.5-8B-A1B-Terminal-ToolBench-Full-SFT-1Epoch"


def test_target_has_its_published_figures() -> None:
    model = find_known(TARGET)
    assert model.hub_id == TARGET
    assert model.reference == {
        "steps": 303,
        "avg_command_f1": 0.523,
        "avg_command_precision": 0.5854,
        "avg_command_recall": 0.5431,
        "first_cmd_exact_pct": 49.5,
        "valid_json_pct": 76.9,
        "next_action_score": 51.46,
        "avg_pred_cmds": 21.2,
    }
    assert (model.reference_run["avg_sec_per_step"], model.reference_run["load_time_sec"]) == (0.087, 44.7)
    # The published figures agree with each other by the scorer's own formula.
    f1, first = model.reference["avg_command_f1"], model.reference["first_cmd_exact_pct"]
    assert round(100 * (0.7 * f1 + 0.3 * first / 100), 2) == model.reference["next_action_score"]


def test_every_file_is_read_and_figures_have_a_source() -> None:
    models = known_models()
    assert {model.path for model in models} == set(shipped_models().glob("*.toml"))
    assert len({model.name.lower() for model in models}) == len(models)
    for model in models:
        assert bool(model.reference) == bool(model.reference_source), model.path
        assert model.prompt_style in ("chat_template", "chatml", "gemma"), model.path


@pytest.mark.parametrize(
    "name",
    [TARGET, TARGET.upper(), "lfm2.5-8b-a1b-terminal", "lfm2.5-8b-a1b-terminal-toolbench-full-sft-1epoch"],
)
def test_found_by_name_file_and_hub_id_in_any_case(name: str) -> None:
    assert find_known(name).hub_id == TARGET


@pytest.mark.parametrize(
    ("name", "way"),
    [("", "edge models known"), ("gpt-oss", "edge models known"), ("lfm2.5", "did you mean lfm2.5-")],
)
def test_unknown_name_says_how_to_find_one(name: str, way: str) -> None:
    with pytest.raises(EdgeError) as caught:
        find_known(name)
    assert way in str(caught.value)
    assert "\n" not in str(caught.value)


def test_memory_of_the_target_is_what_its_shape_needs() -> None:
    # 24 layers of width 2048, 6 of them attention with 8 of 32 heads for keys and values, 4 experts of width
    # 1792 at work.
    shape = {
        "general.architecture": "lfm2moe",
        "lfm2moe.block_count": 24,
        "lfm2moe.embedding_length": 2048,
        "lfm2moe.attention.head_count": 32,
        "lfm2moe.attention.head_count_kv": [
            8 if layer in (2, 6, 10, 14, 18, 21) else 0 for layer in range(24)
        ],
        "lfm2moe.shortconv.l_cache": 3,
        "lfm2moe.expert_used_count": 4,
        "lfm2moe.expert_feed_forward_length": 1792,
    }
    model = find_known(TARGET)
    need = buffers(shape_of(shape, 128_000), model.context)
    assert need.kv_cache == model.context * 6 * 8 * (64 + 64) * 2
    assert need.state == 2 * 18 * 2048 * 2 * 4  # two sequences
    weights = 8.3e9 * 4.85 / 8  # llama.cpp's usual bits per weight for Q4_K_M
    needed = (weights + need.total) / 1e9
    assert model.memory_gb is not None
    assert needed <= model.memory_gb < needed + 0.5


GOOD = """\
name = "m"
description = "d"
prompt_style = "chatml"
default_quant = "Q8_0"
context = 512
memory_gb = 1
"""


def test_a_minimal_file_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(GOOD)
    model = read_known(path)
    assert (model.name, model.hub_id, model.memory_gb, model.reference) == ("m", "", 1.0, {})
    assert model.answers == "text" and find_known(TARGET).answers == "action"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "cannot be read as TOML"),
        ('name = "m"', "description is missing"),
        (GOOD.replace("512", '"512"'), "context is '512'; it must be a whole number"),
        (GOOD.replace("= 1\n", "= true\n"), "memory_gb is true; it must be a number"),
        (GOOD + 'answers = "json"\n', 'answers is \'json\'; it must be "action" or "text"'),
        (GOOD + "hub = 1\n", "unknown key 'hub'"),
        (
            GOOD + '[reference]\navg_command_f1 = "0.5"\n',
            "reference.avg_command_f1 is '0.5'; it must be a number",
        ),
        (
            GOOD + "[reference_run]\nmax_tokens = 1.5\n",
            "reference_run.max_tokens is 1.5; it must be a non-negative whole number or null",
        ),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(EdgeError) as caught:
        read_known(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_table_of_known_models() -> None:
    table = {row[0]: row for row in known_rows()}
    assert table["lfm2.5-8b-a1b-terminal"][-1] == TARGET
    assert table["lfm2.5-8b-a1b-terminal"][-2] == "0.5230"
    assert table["tiny-terminal"][-2] == "-"
