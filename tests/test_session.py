"""A conversation is read once: each turn reads only what is new, whatever the template does with old thoughts.

pytest tests/test_session.py
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import gguf
import pytest
from conftest import keyed
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from edge.answer.action import Action
from edge.errors import ContextError, EdgeError, PromptError
from edge.llama.loading import Loading
from edge.llama.prefixes import common_length
from edge.prompt import Message, task_messages
from edge.runner import Runner, Session

pytestmark = pytest.mark.slow

THINK = "You are a terminal automation assistant. Think first, then return JSON."
TASK = task_messages("Read the last 5 lines of notes.txt.", "user@lab:/app$ ")
THINKING_TASK = [{"role": "system", "content": THINK}, *TASK[1:]]

TURNS = """
{{- bos_token -}}
{%- set ns = namespace(last=-1) -%}
{%- for message in messages -%}
    {%- if message["role"] == "assistant" -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- set content = message["content"] -%}
    {%- if message["role"] == "assistant" and (loop.index0 != ns.last or KEEP_NONE) and "</think>" in content -%}
        {%- set content = content.split("</think>")[-1] | trim -%}
    {%- endif -%}
    {{- "<|im_start|>" + message["role"] + "\\n" + content + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\nOPENING" -}}{%- endif -%}
""".strip()
KEEPS_THE_LAST_THOUGHT = TURNS.replace("KEEP_NONE", "false").replace("OPENING", "")
OPENS_THE_THOUGHT = TURNS.replace("KEEP_NONE", "true").replace("OPENING", "<think>\\n")


def screen(turn: int) -> list[Message]:
    text = f"New Terminal Output:\nuser@lab:/app$ tail -n {turn} notes.txt\nline {turn} of the notes\n"
    return [{"role": "user", "content": text}]


@dataclass
class Turn:
    """What one turn's prompt was and what it took."""

    prompt: list[int]
    read: int  # prompt tokens decoded
    written: int  # answer tokens decoded: these the cache has behind the prompt
    action: Action


def take(session: Session, messages: Sequence[Message], max_tokens: int) -> Turn:
    runner = session.runner
    prompt = runner.encode(runner.render([*session.messages, *messages]).text)
    read, written = runner.engine.prompt_tokens_decoded, runner.engine.answer_tokens_decoded
    action = session.act(messages, max_tokens)
    return Turn(
        prompt,
        runner.engine.prompt_tokens_decoded - read,
        runner.engine.answer_tokens_decoded - written,
        action,
    )


def talk(session: Session, task: Sequence[Message], turns: int, max_tokens: int) -> list[Turn]:
    return [take(session, screen(i) if i else task, max_tokens) for i in range(turns)]


@pytest.fixture
def tiny(tiny_bf16: Path) -> Iterator[Runner]:
    with Runner.load(tiny_bf16, threads=1) as runner:
        yield runner


@pytest.fixture(params=["tiny_bf16", "smollm2_q4"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """A hybrid, and a transformer."""
    with Runner.load(request.getfixturevalue(request.param), threads=1) as runner:
        yield runner


def check(turns: Sequence[Turn]) -> int:
    """No turn reads more than was added since the one before; how many went on from the whole answer."""
    assert turns[0].read <= len(turns[0].prompt)
    went_on = 0
    for last, turn in pairwise(turns):
        assert common_length(turn.prompt, last.prompt) == len(last.prompt)
        added = len(turn.prompt) - len(last.prompt)
        assert added - last.written <= turn.read <= added
        went_on += turn.read == added - last.written
    return went_on


def test_each_turn_goes_on_from_the_answer_before(runner: Runner) -> None:
    """Answers are read again only where their text becomes other tokens than were written."""
    turns = talk(runner.session(), TASK, 4, 56)
    check(turns)
    prompts = [len(turn.prompt) for turn in turns]
    written = sum(turn.written for turn in turns[:-1])
    assert sum(turn.read for turn in turns) <= prompts[-1] - 0.6 * written
    assert runner.engine.cells > 1.5 * (prompts[0] + 56)  # the cache has grown, and no turn paid for that


def test_a_conversation_without_its_thoughts_is_read_once(tiny: Runner) -> None:
    session = tiny.session(THINKING_TASK)
    turns = talk(session, [], 6, 120)
    check(turns)
    assert sum(turn.action.thought is not None for turn in turns) >= 4
    assert session.messages[2]["content"].startswith("<think>")
    assert "<think>" not in tiny.render(session.messages[:-1]).text
    for last, turn in pairwise(turns):
        if last.action.thought is not None:  # back to the end of the prompt before
            assert turn.read == len(turn.prompt) - len(last.prompt)
    assert sum(turn.read for turn in turns) <= len(turns[-1].prompt)


def test_thoughts_are_kept_until_the_user_speaks_again(tiny: Runner) -> None:
    """The template keeps them over tool messages; the next user message goes back to the prompt before them."""
    session = tiny.session(THINKING_TASK)
    turns = [take(session, [], 100)]
    for i in range(3):
        turns.append(take(session, [{**screen(i)[0], "role": "tool"}], 100))
    assert check(turns) >= 2
    after = take(session, screen(9), 100)
    common = common_length(after.prompt, turns[-1].prompt)
    assert common == len(turns[0].prompt) and after.read == len(after.prompt) - common


@pytest.mark.parametrize(
    ("name", "template", "again"),
    [("keeps-last", KEEPS_THE_LAST_THOUGHT, 150), ("opens-thought", OPENS_THE_THOUGHT, 2)],
)
def test_templates_that_rewrite_what_was_read(tiny_bf16: Path, name: str, template: str, again: int) -> None:
    """Where the next prompt parts before this one's end, a hybrid too goes on from there."""
    path = keyed(f"{name}.gguf", [tiny_bf16, Path(__file__)], lambda path: put(template, tiny_bf16, path))
    with Runner.load(path, threads=1) as runner:
        turns = talk(runner.session(), THINKING_TASK, 6, 120)
    assert sum(turn.action.thought is not None for turn in turns) >= 4
    for last, turn in pairwise(turns):
        common = common_length(last.prompt, turn.prompt)
        assert len(last.prompt) - again <= common < len(turn.prompt)
        assert turn.read <= len(turn.prompt) - common


def put(template: str, source: Path, target: Path) -> None:
    """A copy of a GGUF with another chat template."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    key = gguf.Keys.Tokenizer.CHAT_TEMPLATE
    changed = {key: MetadataDetails(gguf.GGUFValueType.STRING, template)}
    copy_with_new_metadata(reader, writer, changed, [])


def test_answers_are_those_of_a_fresh_runner(tiny: Runner, tiny_bf16: Path) -> None:
    """But for rounding: other chunk sizes take other kernels, which may turn one of them."""
    session, asked, texts = tiny.session(THINKING_TASK), [], []
    for i in range(5):
        new = screen(i) if i else []
        asked.append([*session.messages, *new])
        texts.append(session.act(new, 120).text)
    fresh = []
    for messages in asked:
        with Runner.load(tiny_bf16, threads=1) as runner:
            fresh.append(runner.act(messages, 120).text)
    assert sum(a == b for a, b in zip(texts, fresh, strict=True)) >= 4


def test_sessions_take_turns_and_share_their_beginning(runner: Runner) -> None:
    other = task_messages("Count the Python files.", "ci@web:~$ ")
    sessions = [(runner.session(), TASK), (runner.session(), other)]
    turns: list[list[Turn]] = [[], []]
    for i in range(3):
        for (session, task), taken in zip(sessions, turns, strict=True):
            taken.append(take(session, screen(i) if i else task, 24))
        runner.act(task_messages("Something else."), 4)
    assert all(check(taken) >= 1 for taken in turns)
    assert [session.messages[1] for session, _ in sessions] == [TASK[1], other[1]]


def test_an_error_leaves_the_conversation_as_it_was(tiny: Runner) -> None:
    session = tiny.session(TASK)
    first = take(session, [], 60)
    before = list(session.messages)

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    calls: list[tuple[type[BaseException], Callable[[], Action]]] = [
        (ContextError, lambda: session.act([{"role": "user", "content": "word " * 40000}], 10)),
        (ContextError, lambda: session.act(screen(1), 10**6)),
        (PromptError, lambda: session.act([{"role": "user"}], 10)),
        (PromptError, lambda: session.act([{"role": "user", "content": "half \ud800 pair"}], 10)),
        (EdgeError, lambda: session.act(screen(1), 0)),
        (KeyboardInterrupt, lambda: session.act(screen(1), 60, emit=stop)),
    ]
    for kind, call in calls:
        with pytest.raises(kind):
            call()
        assert session.messages == before
    second = take(session, screen(1), 60)
    assert second.read <= len(second.prompt) - len(first.prompt)
    with Runner.load(tiny.engine.path, threads=1) as fresh:
        assert fresh.act([*before, *screen(1)], 60).commands == second.action.commands


def test_messages_are_the_conversation_with_the_answers_whole(tiny: Runner) -> None:
    session = tiny.session(THINKING_TASK)
    thinking, plain = session.act(max_tokens=120), session.act(screen(1), 60, think=0)
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert [message["role"] for message in session.messages] == roles
    assert [session.messages[i] for i in (0, 1, 3)] == [*THINKING_TASK, *screen(1)]
    whole = session.messages[2]["content"]
    assert thinking.thought and whole.startswith("<think>") and thinking.thought in whole
    assert whole.endswith(thinking.text) and session.messages[4]["content"] == plain.text
    assert len(THINKING_TASK) == 2


def test_a_closed_session_holds_nothing_and_can_go_on(tiny: Runner) -> None:
    session = tiny.session(TASK)
    session.act(max_tokens=40)
    session.close()
    session.close()
    again = take(session, screen(1), 40)
    assert again.read == len(again.prompt)
    check([again, take(session, screen(2), 40)])


def test_a_session_of_a_closed_runner_says_so(tiny: Runner) -> None:
    session = tiny.session(TASK)
    session.act(max_tokens=4)
    tiny.close()
    with pytest.raises(EdgeError, match="closed"):
        session.act(screen(1), 4)
    session.close()


def test_a_session_that_is_collected_during_an_answer(tiny_q4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its states are dropped before the next answer, not in the middle of this one: any thread may collect it."""
    with Runner.open(tiny_q4, Loading(threads=1)) as runner:
        held = [runner.session()]
        held[0].act(TASK, 48)
        alone = runner.engine.held_by_others(None)
        forgotten: list[str] = []
        forget = runner.engine.cache.forget
        busy = ["answer"]
        monkeypatch.setattr(
            runner.engine.cache, "forget", lambda owner: (forgotten.append(busy[-1]), forget(owner))
        )
        session = runner.session()
        session.act(TASK, 48)
        assert alone > 0 and forgotten == []

        def collect() -> None:
            held.clear()
            gc.collect()

        with runner.before_each_batch(collect):
            session.act(screen(1), 48)
        assert held == [] and forgotten == []
        busy.append("between")
        assert runner.engine.held_by_others(session) > 0
        assert forgotten == ["between"]
