"""`--thinking-mode` and `--strip-thinking-history`: what the model gets, and what the result and `edge compare` say.

pytest tests/replay/test_asking.py
"""

import json
from pathlib import Path
from typing import Any

import command_line
import pytest

from edge.compare import compare
from edge.compare.notes import prompt_switches
from edge.errors import EdgeError
from edge.prompt import PromptSource
from edge.replay.asking import Asking

REF = json.dumps({"analysis": "a", "plan": "p", "commands": [{"keystrokes": "ls\n"}], "task_complete": False})
THOUGHT = f"<think>\nA thought\nof two lines</think>\n\n {REF}"
CHANNEL = f"<|channel>thought\nx\n<channel|>\n{REF}"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


@pytest.mark.parametrize(
    ("message", "kept", "count"),
    [
        (said(THOUGHT), said(REF), 1),
        (said(CHANNEL), said(REF), 1),
        (said(f"<think>a</think>{REF}<think>b</think>"), said(REF), 2),
        (said("  no thought"), said("no thought"), 0),
        (said("<think>open"), said("<think>open"), 0),
        (said(REF, reasoning_content="a"), said(REF), 1),
        (said([{"type": "text", "text": THOUGHT}]), said([{"type": "text", "text": REF}]), 1),
        (user(THOUGHT), user(THOUGHT), 0),
        ({"role": "tool", "content": THOUGHT}, {"role": "tool", "content": THOUGHT}, 0),
    ],
)
def test_thoughts_leave_past_answers_only(message: dict[str, Any], kept: dict[str, Any], count: int) -> None:
    assert Asking(strip_thinking_history="on").messages([message]) == ([kept], count)
    assert Asking().messages([message]) == ([message], 0)
    assert Asking(strip_thinking_history="off").messages([message]) == ([message], 0)


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{{ enable_thinking if enable_thinking is defined else 'unset' }}"
)


@pytest.mark.parametrize(("mode", "shown"), [("auto", "unset"), ("on", "True"), ("off", "False")])
def test_the_template_gets_the_mode(mode: Any, shown: str) -> None:
    source = PromptSource(TEMPLATE, None, None, "lfm2moe")
    prompt, _ = Asking(mode).render([user("do")], source)
    assert (prompt.text, prompt.status) == (f"[user]do{shown}", "chat_template")


def test_gemma_4() -> None:
    """The template is told not to think, unless it is asked to. Without past thoughts it gets its format of turns."""
    messages = [user("do "), said(CHANNEL), user("go on")]
    source = PromptSource(TEMPLATE, "<bos>", None, "gemma4", "31B")
    assert Asking().render([user("do")], source)[0].text == "[user]doFalse"
    assert Asking("on").render([user("do")], source)[0].text == "[user]doTrue"
    turns = f"<|turn>user\ndo<turn|>\n<|turn>model\n{REF}<turn|>\n<|turn>user\ngo on<turn|>\n<|turn>model\n"
    prompt, count = Asking(strip_thinking_history="on").render(messages, source)
    assert count == 1 and prompt.status == "gemma4_patched"
    assert prompt.text == f"<bos>{turns}<|channel>thought\n<channel|>"
    prompt, _ = Asking("on", "on").render(messages, source)
    assert prompt.text == f"<bos><|turn>system\n<|think|>\n<turn|>\n{turns}"


def test_other_values_are_refused() -> None:
    with pytest.raises(EdgeError, match="must be one of auto, on, off"):
        Asking("maybe")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ({}, {}),
        ({"sampling": {"thinking_mode": "auto", "strip_thinking_history": "auto"}}, {}),
        (
            {"sampling": {"thinking_mode": "disabled", "strip_thinking_history": "yes"}},
            {"thinking_mode": "off", "strip_thinking_history": "on"},
        ),
        (  # a published run says what auto meant
            {
                "sampling": {"thinking_mode": "auto", "strip_thinking_history": "auto"},
                "prompt_template": {
                    "chat_template_kwargs": {"enable_thinking": False},
                    "prompt_options": {"strip_thinking_history": True},
                },
            },
            {"thinking_mode": "off", "strip_thinking_history": "on"},
        ),
        (
            {"prompt_template": {"chat_template_kwargs": {}, "prompt_options": {}}},
            {"thinking_mode": "not set"},
        ),
    ],
)
def test_what_a_result_says(result: Any, found: dict[str, str]) -> None:
    assert prompt_switches(result) == found


@pytest.mark.slow
def test_a_run_records_its_options_and_compare_notes_them(tiny_q4: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    steps = [
        {
            "task_id": f"t{i}",
            "step_idx": 1,
            "messages": [user("do"), said(CHANNEL), user("go on")],
            "ref_raw": REF,
        }
        for i in range(2)
    ]
    rows.write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")

    def evaluated(name: str, *words: str) -> Path:
        out = tmp_path / name
        done = command_line.run(
            *("eval", "--quiet", "--model", tiny_q4, "--replay", rows, "--out", out, "--max-tokens", 4),
            *("--parallel", 1, "--threads", 1, *words),
        )
        assert done.returncode == 0, done.stderr
        return out

    plain = evaluated("plain.json")
    other = evaluated("other.json", "--strip-thinking-history", "on", "--thinking-mode", "off")
    result = json.loads(other.read_text(encoding="utf-8"))
    assert result["sampling"]["strip_thinking_history"] == "on"
    assert result["sampling"]["thinking_mode"] == "off"
    template = result["prompt_template"]
    assert template["prompt_options"] == {"strip_thinking_history": True}
    assert template["chat_template_kwargs"] == {"enable_thinking": False}
    assert template["stripped_thinking_blocks"] == 2
    assert result["run"]["thinking_mode"] == "off"
    assert "thinking_mode" not in json.loads(plain.read_text(encoding="utf-8"))["run"]
    notes = compare([other], plain).parts[0].notes
    assert "The runs differ: thinking_mode is not set in the reference, off in ours." in notes
    assert "The runs differ: strip_thinking_history is off in the reference, on in ours." in notes
    assert any(note.startswith("2 steps of 2 have different prompts") for note in notes), notes
    done = command_line.run("eval", "--thinking-mode", "maybe", "--out", tmp_path / "x.json")
    assert done.returncode == 2 and "auto, on, off" in done.stderr
