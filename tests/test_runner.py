"""The runner on real weights: whatever the budget or the temperature, a valid action comes out.

pytest tests/test_runner.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from terminus import check as check_with_terminus

from edge.answer.action import Action, parse_action
from edge.answer.answering import Answering
from edge.answer.sampling import Sampling
from edge.errors import ContextError, EdgeError, ModelFileError, PromptError
from edge.llama.prefixes import distinct_tokens
from edge.prompt import task_messages
from edge.replay.rows import read_rows
from edge.runner import Runner
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow

BUDGETS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
TASK = task_messages("Inspect the current directory and list Python files.")


@pytest.fixture(scope="module")
def smollm2(smollm2_q4: Path):
    with Runner.load(smollm2_q4, threads=1) as runner:
        yield runner


@pytest.fixture(scope="module")
def tiny(tiny_bf16: Path):
    with Runner.load(tiny_bf16, threads=1) as runner:
        yield runner


def replay_messages(shared: Path, count: int) -> list[list[dict[str, str]]]:
    lines = (shared / "data" / "replay_terminal_dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    return sorted(rows, key=lambda messages: len(json.dumps(messages)))[:count]


def check(action: Action) -> None:
    fields = parse_action(action.text)
    assert json.loads(action.text)["analysis"] == fields["analysis"] == action.analysis
    assert fields["plan"] == action.plan and fields["task_complete"] == action.task_complete
    assert fields["commands"] == action.commands
    assert action.closed_at_budget == (action.finish_reason == "length")


@pytest.fixture(scope="module")
def hard_answers(smollm2: Runner, shared: Path) -> list[tuple[int, Action]]:
    """(budget, answer) on 6 recorded steps: greedy at every budget, and hot; one long answer each."""
    long = [(128, Sampling()), (256, Sampling()), (256, Sampling(temperature=2.0, seed=5))]
    answers = []
    for number, messages in enumerate(replay_messages(shared, 6)):
        for budget, sampling in [*((budget, Sampling()) for budget in BUDGETS[:7]), long[number % len(long)]]:
            answers.append((budget, smollm2.act(messages, budget, sampling=sampling)))
    assert {budget for budget, _ in answers} == set(BUDGETS)
    return answers


def test_every_budget_and_temperature_gives_a_valid_action(hard_answers: list[tuple[int, Action]]) -> None:
    for budget, action in hard_answers:
        check(action)
        assert action.completion_tokens <= budget
    assert sum(len(action.commands) > 0 for _, action in hard_answers) > 4


def test_terminus_reads_every_answer(hard_answers: list[tuple[int, Action]], terminus: Any) -> None:
    for _, action in hard_answers:
        check_with_terminus(terminus, action.text)


def test_the_same_prompt_gives_the_same_action_again(tiny: Runner) -> None:
    first = tiny.act(TASK, 200)
    other = tiny.act(task_messages("Read notes.txt."), 200)
    assert tiny.act(TASK, 200) == first != other


def test_the_embedded_model_lists_python_files(tiny: Runner) -> None:
    action = tiny.act(TASK, 200)
    assert action.finish_reason == "stop" and not action.closed_at_budget
    assert any("*.py" in command.keystrokes for command in action.commands)


def test_a_smaller_budget_never_adds_a_command(tiny: Runner) -> None:
    """A cut answer holds a beginning of the whole answer's commands, each letter for letter."""
    whole = tiny.act(TASK, 300, text_share=1.0).commands
    assert whole
    for budget in range(1, 80):
        cut = tiny.act(TASK, budget, text_share=1.0, think=0).commands
        assert cut == whole[: len(cut)]


def test_the_text_share_leaves_room_for_commands(tiny: Runner) -> None:
    for share in (0.0, 0.02, 0.04):
        action = tiny.act(TASK, 100, text_share=share)
        text_tokens = len(tiny.encode(action.analysis)) + len(tiny.encode(action.plan))
        assert text_tokens <= 100 * share + 1  # a character may still have to end
        assert action.forced_tokens > 0 and action.commands
    assert tiny.act(TASK, 100).text == tiny.act(TASK, 100, text_share=1.0).text


def test_a_style_is_kept_and_what_it_forces_is_as_the_tokenizer_writes(tiny: Runner) -> None:
    free = tiny.act(TASK, 300, style="free")
    for style, indent in (("auto", None), ("compact", None), ("indented", 2)):
        action = tiny.act(TASK, 300, style=style)
        assert action.finish_reason == "stop" and action.forced_tokens > free.forced_tokens
        assert action.text == json.dumps(json.loads(action.text), ensure_ascii=False, indent=indent)
        if indent is None:  # it was trained to write on one line
            assert len(tiny.encode(action.text)) == action.completion_tokens
    assert tiny.act(TASK, 300).text == free.text  # the model's own style
    with pytest.raises(EdgeError, match="style"):
        tiny.act(TASK, 10, style="pretty")  # type: ignore[arg-type]


def test_streaming_gives_the_same_text_and_no_open_command(tiny: Runner) -> None:
    pieces: list[str] = []
    action = tiny.act(TASK, 200, emit=pieces.append)
    assert "".join(pieces) == action.text
    so_far = ""
    for piece in pieces:
        so_far += piece
        commands = so_far.partition('"commands"')[2].partition('"task_complete"')[0]
        assert commands.count("{") == commands.count("}")


def test_thoughts_are_kept_apart_bounded_and_can_be_off(tiny: Runner) -> None:
    system = "You are a terminal automation assistant. Think first, then return JSON."
    messages = [{"role": "system", "content": system}, *TASK[1:]]
    thinking = tiny.act(messages, 300)
    assert thinking.thought and "<think>" not in thinking.text
    assert 3 <= thinking.thought_tokens <= 75
    bounded = tiny.act(messages, 300, think=6)
    assert bounded.thought_tokens == 6 and bounded.thought is not None
    off = tiny.act(messages, 300, think=0)
    assert off.thought is None and off.thought_tokens == 0
    for budget in range(1, 30):
        action = tiny.act(messages, budget, think=budget)
        check(action)
        assert action.completion_tokens <= budget


def test_sampling_is_repeatable_and_varies_with_the_seed(tiny: Runner) -> None:
    def texts(seed: int) -> list[str]:
        sampling = Sampling(5.0, top_p=0.95, top_k=200, min_p=0.001, repetition_penalty=1.1, seed=seed)
        return [tiny.act(TASK, 150, sampling=sampling).text for _ in range(2)]

    first, second = texts(1), texts(2)
    assert first[0] == first[1] != second[0] == second[1]


@pytest.mark.parametrize("constrained", [True, False])
def test_one_at_a_time_a_replay_answers_as_each_prompt_alone(tiny_q4: Path, constrained: bool) -> None:
    """Exact mode on the hybrid: byte for byte, and each distinct token is read once."""
    with Runner.load(tiny_q4) as runner:
        prompts = [runner.encode(runner.render(row.messages).text) for row in read_rows(embedded_rows(), 24)]
        whole = dict(runner.answers(prompts, Answering(96, constrained=constrained)))
        assert runner.engine.prompt_tokens_decoded == distinct_tokens(prompts) < sum(map(len, prompts))
    assert sorted(whole) == list(range(len(prompts)))
    for i in range(0, len(prompts), 3):
        with Runner.load(tiny_q4) as fresh:
            assert list(
                fresh.answers(
                    prompts,
                    Answering(96, constrained=constrained),
                    wanted={i},
                )
            ) == [(i, whole[i])]


def test_recorded_steps_are_answered_as_each_alone(smollm2_q4: Path, shared: Path) -> None:
    """Exact mode on a transformer with K-quants, whose kernels round by the size of a batch."""
    messages = replay_messages(shared, 5)
    with Runner.load(smollm2_q4) as runner:
        prompts = [runner.encode(runner.render(conversation).text) for conversation in messages]
        whole = dict(runner.answers(prompts, Answering(24)))
        assert runner.engine.prompt_tokens_decoded == distinct_tokens(prompts)
    for i in (1, 4):
        with Runner.load(smollm2_q4) as fresh:
            assert dict(fresh.answers(prompts, Answering(24), wanted={i})) == {i: whole[i]}


def test_a_runner_closed_in_the_middle_of_a_replay_ends_it_with_one_line(tiny_q4: Path) -> None:
    with Runner.load(tiny_q4) as runner:
        prompts = [runner.encode(runner.render(row.messages).text) for row in read_rows(embedded_rows(), 12)]
        running = runner.answers(prompts, Answering(32), parallel=4)
        next(running)
    with pytest.raises(EdgeError, match="in the middle"):
        list(running)
    with Runner.load(tiny_q4) as runner:
        left = runner.answers(prompts, Answering(32), parallel=4)
        next(left)
    left.close()  # llama.cpp would end the process if it were asked to free anything now


def test_together_the_answers_are_nearly_the_same(tiny: Runner) -> None:
    prompts = [tiny.encode(tiny.render(row.messages).text) for row in read_rows(embedded_rows(), 40)]
    exact = dict(tiny.answers(prompts, Answering(96)))
    together = dict(tiny.answers(prompts, Answering(96), parallel=6))
    assert sum(exact[i].text == together[i].text for i in exact) >= 34
    for answer in together.values():
        parse_action(answer.text)


def test_bad_values_are_one_line(tiny: Runner, tmp_path: Path) -> None:
    for call in (
        lambda: tiny.act(TASK, 0),
        lambda: tiny.act(TASK, 10, text_share=1.5),
        lambda: tiny.act(TASK, 10, think=-1),
        lambda: Sampling(temperature=-1),
        lambda: Sampling(top_p=0),
        lambda: tiny.act([], 10),
        lambda: tiny.act([{"role": "user", "content": "half \ud800 pair"}], 10),
        lambda: Runner.load(tmp_path / "none.gguf"),
    ):
        with pytest.raises(EdgeError) as caught:
            call()
        assert "\n" not in str(caught.value) and len(str(caught.value)) > 10


def test_a_prompt_longer_than_the_context_is_refused(tiny: Runner) -> None:
    with pytest.raises(ContextError, match="context"):
        tiny.act(task_messages("word " * 40000), 10)
    assert tiny.act(TASK, 30)  # and the runner still works


def test_errors_have_their_kind(tiny: Runner, tmp_path: Path) -> None:
    with pytest.raises(PromptError):
        tiny.act([], 10)
    with pytest.raises(ModelFileError, match=r"none\.gguf"):
        Runner.load(tmp_path / "none.gguf")
