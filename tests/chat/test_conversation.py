"""What a conversation is made of: entries, settings, layouts, files, the kind of a model; without a terminal.

pytest tests/chat/test_conversation.py
"""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import gguf
import pytest
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata
from hypothesis import given
from hypothesis import strategies as st

from edge.chat.conversation import Conversation, Reply
from edge.chat.entries import Entry, read_block, read_entry
from edge.chat.history import MOST_ENTRIES, History
from edge.chat.kind import default_answers
from edge.chat.layout import JsonLayout, WordWrap, safe_text
from edge.chat.settings import Settings, changed, default_sampling, shown
from edge.errors import ContextError, EdgeError, PromptError
from edge.runner import Runner

THINK = "You are a terminal automation assistant. Think first, then return JSON."


def entries(*lines: str) -> list[Entry]:
    left = iter(lines)

    def read_line(prompt: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    found = []
    while True:
        try:
            found.append(read_entry(read_line))
        except EOFError:
            return found


def test_entries() -> None:
    quotes = '"""'
    found = entries(
        "  hello ", "/show", f"{quotes}/a", "", f" b{quotes}", quotes, "c", "d", quotes, f"{quotes}e{quotes}"
    )
    assert [entry.text for entry in found] == ["hello", "/show", "/a\n\n b", "c\nd", "e"]
    assert [entry.command for entry in found] == [False, True, False, False, False]
    assert entries(f"{quotes}open", "end")[0].text == "open\nend"
    assert [entries(text)[0].command for text in ("/a\n/b", "/system a\nb")] == [False, True]  # pasted
    assert entries(found[2].raw)[0].text == "/a\n\n b"  # as the history gives it back
    lines = iter(["$ ls", "", quotes, "after"])
    assert read_block(lambda prompt: next(lines)) == "$ ls\n\n"
    assert next(lines) == "after"


@pytest.mark.parametrize(
    ("name", "value", "attribute", "number"),
    [
        ("temperature", "0.5", "temperature", 0.5),
        ("top-k", "7", "top_k", 7),
        ("repeat_penalty", "1.1", "repetition_penalty", 1.1),
        ("seed", "default", "seed", None),
        ("num_predict", "9", "max_tokens", 9),
        ("think", "off", "think", 0),
        ("think", "on", "think", None),
        ("thoughts", "ON", "thoughts", True),
    ],
)
def test_settings(name: str, value: str, attribute: str, number: object) -> None:
    settings = changed(Settings(default_sampling("text")), name, value)
    owner = settings if hasattr(settings, attribute) else settings.sampling
    assert getattr(owner, attribute) == number
    assert (
        changed(settings, attribute, dict(shown(settings))[attribute]) == settings
    )  # what is shown can be typed


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("heat", "1", "no setting has this name; the settings are temperature"),
        ("temperature", "hot", "temperature is hot; it must be a number"),
        ("temperature", "", "temperature is empty"),
        ("temperature", "-1", "0 or more"),
        ("temperature", "nan", "0 or more"),
        ("top_k", "1.5", "a whole number"),
        ("top_p", "0", "above 0"),
        ("max_tokens", "0", "at least 1"),
        ("think", "-1", "off, or a number"),
        ("stats", "maybe", "on or off"),
    ],
)
def test_wrong_settings(name: str, value: str, words: str) -> None:
    with pytest.raises(EdgeError, match=words):
        changed(Settings(), name, value)


def test_budgets() -> None:
    settings = Settings()
    assert settings.budget("action", 5000) == 1024 and settings.budget("text", 5000) == 5000
    assert settings.thought("action", 100) == 25 and settings.thought("text", 100) == 100
    assert Settings(max_tokens=80, think=9).budget("text", 5000) == 80
    assert Settings(max_tokens=80, think=9).thought("text", 80) == 9


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.slow
@given(JSON, st.sampled_from([None, 1, 4]), st.booleans(), st.integers(1, 9))
def test_layouts_change_only_white_space(
    value: object, indent: int | None, indented: bool, size: int
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    layout = JsonLayout(indented=indented)
    laid = "".join(layout.feed(text[at : at + size]) for at in range(0, len(text), size))
    assert json.loads(laid) == value
    assert all(char.isprintable() or char == "\n" for char in laid)
    if text.isprintable() or indent:
        printable = json.dumps(value, ensure_ascii=False)
        if printable.isprintable():
            assert laid == json.dumps(value, indent=2 if indented else None, ensure_ascii=False)


@given(st.text("ab \t\n한", max_size=120), st.integers(4, 20), st.integers(1, 9))
def test_lines_break_between_words(text: str, width: int, size: int) -> None:
    wrap = WordWrap(width)
    shown = "".join(wrap.feed(text[at : at + size]) for at in range(0, len(text), size)) + wrap.end()
    words = text.split()
    assert "".join(shown.split()) == "".join(words)
    if "한" not in text:
        assert shown.split() == words
        lines = [line.rstrip() for line in shown.split("\n") if line.strip() and not line[0].isspace()]
        if "\t" not in text and all(len(word) <= width for word in words):
            assert all(len(line) <= width for line in lines)
    if all(len(line) + line.count("한") + 7 * line.count("\t") <= width for line in text.split("\n")):
        assert shown == text


def test_text_cannot_control_a_terminal() -> None:
    assert safe_text("a\x1b[31m\tb\r\n\x9b2J\u202e") == "a\\x1b[31m\tb\\r\n\\x9b2J\\u202e"
    assert safe_text("می\u200cخواهم 👨\u200d👩 é 한") == "می\u200cخواهم 👨\u200d👩 é 한"


def test_history(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history"
    one, other = History(path), History(path)
    for history, entry in ((one, "a"), (other, "b\nc é"), (one, "a"), (one, " "), (one, "d")):
        history.add(entry)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes() + b'3\n"torn\n')
    assert History(path).entries == ["a", "b\nc é", "d"]
    path.chmod(0o644)  # another program made it
    assert History(path).entries[-1] == "d" and path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    one.add("e")
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("".join(f'"{i}"\n' for i in range(3 * MOST_ENTRIES)))
    assert len(History(path).entries) == MOST_ENTRIES
    assert path.read_text().splitlines()[-1] == f'"{3 * MOST_ENTRIES - 1}"'
    assert len(path.read_text().splitlines()) == MOST_ENTRIES and path.stat().st_mode & 0o777 == 0o600
    assert History(tmp_path).entries == []  # a folder
    History(tmp_path).add("lost")


@pytest.mark.slow
def test_which_models_answer_with_actions(tiny_q4: Path, smollm2_q4: Path, tmp_path: Path) -> None:
    assert default_answers(tiny_q4) == "action"
    assert default_answers(smollm2_q4) == "text"
    shutil.copy(tiny_q4, tmp_path / "any.gguf")
    assert default_answers(tmp_path / "any.gguf") == "action"  # by general.name
    repository = "https://huggingface.co/LLM-OS-Models/LFM2.5-8B-A1B-Terminal-ToolBench-Full-SFT-1Epoch"
    named = {
        "other-name.gguf": ("Other", {}, "text"),
        "lfm2.5-8b-a1b-terminal-Q4_K_M.gguf": ("Other", {}, "action"),
        "Lfm2.5-8B-A1B-Terminal-ToolBench-Full-SFT-1Epoch.IQ2_XXS.gguf": ("Other", {}, "action"),
        "lfm2.5-8b-a1b-Q4_K_M.gguf": ("LFM2.5 8B A1B", {}, "text"),  # the base model
        "converted.gguf": ("LFM2.5 8B A1B Terminal ToolBench Full SFT 1Epoch", {}, "action"),
        "base.gguf": ("Other", {"general.base_model.0.repo_url": repository}, "action"),
        "source.gguf": ("Other", {"general.source.repo_url": repository}, "action"),
        "tiny-terminal-chat.gguf": ("tiny-terminal-chat", {}, "text"),
    }
    for file, (name, further, kind) in named.items():
        reader = gguf.GGUFReader(tiny_q4)
        writer = gguf.GGUFWriter(tmp_path / file, "lfm2moe")
        changes = {"general.name": name, **further}
        details = {key: MetadataDetails(gguf.GGUFValueType.STRING, text) for key, text in changes.items()}
        copy_with_new_metadata(reader, writer, details, [])
        assert default_answers(tmp_path / file) == kind, file


@pytest.fixture
def tiny(tiny_q4: Path) -> Iterator[Runner]:
    with Runner.load(tiny_q4, threads=1) as runner:
        yield runner


def talk_of(runner: Runner, context: int = 2048, **settings: int) -> Conversation:
    return Conversation(runner, "action", context, Settings(**settings))  # type: ignore[arg-type]


@pytest.mark.slow
def test_each_turn_reads_only_what_is_new(tiny: Runner, smollm2_q4: Path) -> None:
    with Runner.load(smollm2_q4, threads=1) as smollm2:
        for talk in (
            talk_of(tiny, max_tokens=200),
            Conversation(smollm2, "text", 2048, Settings(max_tokens=12)),
        ):
            replies: list[Reply] = []
            for text in ("Remove the file old.log.", "And now new.log.", "Which files are left?"):
                replies.append(talk.ask(text))
            assert replies[0].read == replies[0].prompt_tokens
            for last, reply in pairwise(replies):
                # All of the last prompt and of its answer is kept, but for the token that ended the answer.
                assert reply.read <= reply.prompt_tokens - last.prompt_tokens - last.written + 2


@pytest.mark.slow
def test_old_turns_go_when_the_context_is_full(tiny: Runner) -> None:
    talk = talk_of(tiny, 512, max_tokens=60)
    replies = [talk.ask(f"Remove the file old{i}.log.") for i in range(12)]
    dropped = [reply.dropped for reply in replies]
    assert sum(map(bool, dropped)) >= 2 and dropped[0] == 0
    assert all(number % 2 == 0 for number in dropped)
    assert len(talk.messages) == 24  # nothing is lost for the person
    for reply in replies:
        assert reply.prompt_tokens + 60 <= 512
        assert reply.rendered.text.count("<|im_start|>system") == 1
        assert not reply.dropped or reply.prompt_tokens <= 256
    cut = next(i for i, number in enumerate(dropped) if number)
    assert "old0.log" in replies[cut - 1].rendered.text and "old0.log" not in replies[cut].rendered.text
    assert f"old{cut}.log" in replies[cut].rendered.text
    assert replies[cut + 1].read < replies[cut + 1].prompt_tokens / 2  # not read again each time


@pytest.mark.slow
def test_an_error_changes_nothing(tiny: Runner) -> None:
    talk = talk_of(tiny, 256, max_tokens=60)
    talk.ask("Remove the file old.log.")
    talk.screen = "$ "
    before = list(talk.messages)
    for error, text in ((ContextError, "word " * 400), (PromptError, "half \ud800 pair")):
        with pytest.raises(error):
            talk.ask(text)
        assert talk.messages == before and talk.screen == "$ "
    with pytest.raises(
        ContextError, match=r"shorten the message, or start edge chat with a larger --context$"
    ):
        talk.ask("word " * 400)
    assert talk.ask("List the files.").kept and talk.screen is None
    assert "Current terminal state:\n$ " in talk.messages[2]["content"]


@pytest.mark.slow
def test_a_stopped_answer(tiny: Runner, smollm2_q4: Path) -> None:
    calls = 0

    def stopped() -> bool:
        nonlocal calls
        calls += 1
        return calls > 8

    talk = talk_of(tiny)
    reply = talk.ask("Remove the file old.log.", stopped=stopped)
    assert reply.answer is None and not reply.kept and talk.messages == []
    with Runner.load(smollm2_q4, threads=1) as smollm2:
        talk, calls = Conversation(smollm2, "text", 1024, Settings(max_tokens=30)), 0
        parts: list[str] = []
        reply = talk.ask("Tell me a story.", parts.append, stopped=stopped)
        assert reply.answer is None and reply.kept and reply.text == "".join(parts) != ""
        assert talk.messages[1] == {"role": "assistant", "content": reply.text}
        again = talk.ask("Go on.")
        assert again.answer is not None and again.read <= again.prompt_tokens - reply.prompt_tokens


@pytest.mark.slow
def test_thoughts_are_kept_apart(tiny: Runner) -> None:
    """Text and thought together are what the model writes freely."""
    for kind in ("action", "text"):
        talk = Conversation(tiny, kind, 1024, Settings(max_tokens=200), THINK)  # type: ignore[arg-type]
        texts: list[str] = []
        thoughts: list[str] = []
        answer = talk.ask("Remove the file old.log.", texts.append, thoughts.append).answer
        assert answer is not None and answer.thought
        assert "".join(texts) == answer.text and "<think>" not in answer.text
        assert "".join(thoughts).strip() == answer.thought
        assert len(thoughts) < answer.thought_tokens < answer.completion_tokens
        assert talk.messages[1]["content"].startswith("<think>")
    without = Conversation(tiny, "text", 1024, Settings(max_tokens=200, think=0), THINK)
    answer = without.ask("Remove the file old.log.").answer
    assert answer is not None and answer.thought is None and "<think>" not in answer.text
    short = Conversation(tiny, "text", 1024, Settings(max_tokens=200, think=5), THINK)
    answer = short.ask("Remove the file old.log.").answer
    assert answer is not None and answer.thought and answer.thought_tokens <= 9 and answer.text.strip()
