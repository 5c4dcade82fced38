"""`edge chat` as a person and a script use it: a pseudo-terminal and pipes, with real models.

pytest tests/chat/test_chat.py
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import command_line
import pytest
from own_state import own_state

from edge.answer.action import parse_action

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EDGE = [sys.executable, "-c", "from edge.cli.main import main; main()"]
THINK = "You are a terminal automation assistant. Think first, then return JSON."
SMOLLM2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
STATS = re.compile(r"prompt: ([\d,]+) tokens, ([\d,]+) of them new.*?answer: ([\d,]+) tokens")


def chat(*options: object, stdin: str | bytes = "", **environment: str) -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    process = command_line.start(
        *("chat", "--threads", "1", *options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, error = process.communicate(data, timeout=300)
    assert process.returncode is not None
    return subprocess.CompletedProcess(options, process.returncode, out.decode(), error.decode())


class Terminal:
    """A pseudo-terminal of 24 lines with `edge chat` in it."""

    def __init__(self, state: Path, *options: object, width: int = 80, **environment: str) -> None:
        self.main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        env = {
            **own,
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
            "EDGE_STATE": str(own_state(state)),
        } | environment
        line = ("chat", "--threads", "1", *options)
        self.process = command_line.start(
            *line, stdin=other, stdout=other, stderr=other, env=env, controlled=True
        )
        os.close(other)
        self.all = ""
        self._data = b""

    def until(self, text: str) -> str:
        """Wait for a text; what came up to its end since the last call."""
        begin = time.monotonic()
        while text not in (seen := _plain(self._data)):
            assert time.monotonic() - begin < 120, f"{text!r} did not come: {self.all}{seen}"
            if select.select([self.main], [], [], 1)[0]:
                try:
                    self._data += os.read(self.main, 4096)
                except OSError:
                    raise AssertionError(f"ended without {text!r}: {self.all}{seen}") from None
        head, found, tail = seen.partition(text)
        self._data = tail.encode()
        self.all += head + found
        return head + found

    def type(self, text: str) -> None:
        os.write(self.main, text.encode())

    def say(self, text: str) -> str:
        """Type a line at the prompt; what came until the next prompt."""
        self.type(text + "\r")
        return self.until(">>> ")

    def end(self) -> int:
        with contextlib.suppress(OSError):  # how Linux ends a pseudo-terminal
            while part := os.read(self.main, 4096):
                self.all += _plain(part)
        return self.process.wait(60)


def _plain(data: bytes) -> str:
    """The text without the marks that turn the pasting of lines on and off."""
    text = re.sub("\x1b\\[\\?2004[hl]\r?", "", data.decode("utf-8", "ignore"))
    return text.replace("\r\n", "\n")


@contextlib.contextmanager
def terminal(state: Path, *options: object, width: int = 80, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(state, *options, width=width, **environment)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.wait()
        os.close(opened.main)


def test_text_is_what_llama_cpp_writes(smollm2_q4: Path) -> None:
    """The same greedy text as llama-cpp-python's own generation, over two turns."""
    import llama_cpp

    questions = ["Say hello to Ann.", "What is the capital of France?"]
    done = chat(
        "-m", smollm2_q4, "--temperature", 0, "--max-tokens", 16, "--stats", stdin="\n".join(questions)
    )
    assert done.returncode == 0, done.stderr
    llm = llama_cpp.Llama(str(smollm2_q4), n_ctx=512, n_threads=1, verbose=False, flash_attn=False)
    prompt = f"<|im_start|>system\n{SMOLLM2}<|im_end|>\n"
    expected = []
    for question in questions:
        prompt += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        tokens = llm.tokenize(prompt.encode(), add_bos=False, special=True)
        made = llm.create_completion(tokens, max_tokens=16, temperature=0, repeat_penalty=1.0)
        expected.append(made["choices"][0]["text"])
        prompt += f"{expected[-1]}<|im_end|>\n"
    llm.close()
    assert done.stdout == "".join(f"{text}\n" for text in expected)
    first, second = (tuple(int(number) for number in found) for found in STATS.findall(done.stderr))
    assert first[0] == first[1] and second[1] <= second[0] - first[0] - first[2] + 2


def test_actions_on_a_pipe(tiny_q4: Path, tmp_path: Path) -> None:
    """One line each, those of edge run; the screen goes with the first message only."""
    (tmp_path / "screen").write_text("user@lab:/app$ ls\nnotes.txt\n")
    done = chat(
        "-m", tiny_q4, "--screen", tmp_path / "screen", stdin="Read notes.txt.\n\nRemove the file old.log."
    )
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    run = [
        *EDGE,
        "run",
        "Read notes.txt.",
        "-m",
        str(tiny_q4),
        "--screen",
        str(tmp_path / "screen"),
        "--quiet",
    ]
    single = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert parse_action(lines[0]) == parse_action(single.stdout)
    assert parse_action(lines[1])["commands"] and lines[1] == json.dumps(
        json.loads(lines[1]), ensure_ascii=False
    )
    once = chat("Read notes.txt.", "-m", tiny_q4, "--screen", "-", stdin="user@lab:/app$ ls\nnotes.txt\n")
    assert once.stdout.splitlines() == lines[:1]


def test_what_a_model_writes_cannot_control_a_terminal(tiny_q4: Path) -> None:
    """At a very high temperature it writes any byte, also those of control characters."""
    done = chat(
        *(
            "-m",
            tiny_q4,
            "--answers",
            "text",
            "--temperature",
            1000,
            "--top-k",
            0,
            "--top-p",
            1,
            "--min-p",
            0,
        ),
        *("--seed", 1, "--max-tokens", 1500),
        stdin="a\n",
    )
    assert done.returncode == 0 and len(done.stdout) > 1000
    assert re.search(r"\\x[01][0-9a-f]", done.stdout)
    assert all(char.isprintable() or char in "\n\t\u200c\u200d" for char in done.stdout)


def test_a_session_on_a_terminal(tiny_q4: Path, tmp_path: Path) -> None:
    with terminal(tmp_path, "-m", tiny_q4) as person:
        assert "action answers, context 8,192. /help lists commands" in person.until(">>> ")
        answer = person.say("Remove the file old.log.")
        assert '\n{\n  "analysis": "old.log must go.",\n' in answer
        assert '\n      "keystrokes": "rm old.log\\n",\n' in answer
        person.type('"""Remove\r')
        person.until("... ")
        person.type('the file new.log."""\r')
        assert '{\n  "analysis": ' in person.until(">>> ")
        time.sleep(0.5)  # readline misses a signal that comes between its prompt and its first wait for a key
        person.type("\x03")
        assert "/bye or press Ctrl-D" in person.until(">>> ")
        person.type("\x1b[200~/one\r/two\r\x1b[201~")  # pasted lines are one entry
        assert '{\n  "analysis": ' in person.say("")
        assert "user: /one\n/two\n" in person.say("/show messages")
        assert "user: Remove\nthe file new.log.\n" in person.say("/show messages")
        assert "error: /nope: no command has this name" in person.say("/nope")
        assert "error: top_p is 2.0; it must be above 0" in person.say("/set top_p 2")
        assert "system prompt: none" in person.say('/system ""')
        assert "2 lines" in person.say('/screen -\r$ ls\ra b\r"""')
        assert "/clear" in person.say("/help")
        assert "the conversation is empty" in person.say("/clear")
        shown = person.say("/show")
        assert "0 messages, 0 of 8,192 tokens" in shown and "answers       action" in shown
        assert "Traceback" not in person.all
        person.type("\x04")
        assert person.end() == 0
    with terminal(tmp_path, "-m", tiny_q4) as person:  # the arrow key finds the line of the other session
        person.until(">>> ")
        person.type("\x1b[A")
        person.until("/show")
        person.type("\x1b[A")
        assert "the conversation is empty" in person.say("")
        person.type("/bye\r")
        assert person.end() == 0
    assert (tmp_path / "chat_history").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_the_history_in_a_locale_without_its_letters(tiny_q4: Path, tmp_path: Path) -> None:
    """readline's history is in the locale's encoding. What it cannot hold is a message, and stays in edge's file."""
    for _ in range(2):  # the second session reads the entry of the first
        with terminal(tmp_path, "-m", tiny_q4, "--max-tokens", 4, LC_ALL="POSIX") as person:
            person.until(">>> ")
            person.say("/nopé")
            person.type("\x04")
            assert person.end() == 0 and "Traceback" not in person.all
    assert "nop" in (tmp_path / "chat_history").read_text()


def test_one_message_on_a_terminal(tiny_q4: Path, tmp_path: Path) -> None:
    with terminal(tmp_path, "-m", tiny_q4, "Remove the file old.log.") as person:
        assert person.end() == 0
        assert person.all.startswith('{\n  "analysis": "old.log must go.",\n') and person.all.endswith(
            "\n}\n"
        )
    assert not (tmp_path / "chat_history").exists()


def test_ctrl_c_ends_only_the_answer(smollm2_q4: Path, tmp_path: Path) -> None:
    with terminal(tmp_path, "-m", smollm2_q4, "--temperature", 0, "--context", 2048) as person:
        person.until(">>> ")
        person.type("Write a very long story about the sea.\r")
        person.until("sea.\n")
        begun = person.until(" ")
        person.type("\x03")
        assert "note: stopped; the conversation keeps the answer so far" in person.until(">>> ")
        assert f"assistant: {begun.strip()}" in person.say("/show messages").replace("\n", " ")
        assert "max_tokens is 4\n" in person.say("/set max_tokens 4")
        refused = "error: think: this model has no tokens that mark a thought"
        assert refused in person.say("/set think on") and refused in person.say("/set think 5")
        assert "cut after 4 tokens" in person.say("Go on.")
        person.type("/bye\r")
        assert person.end() == 0


def test_a_text_on_a_terminal(tiny_q4: Path, tmp_path: Path) -> None:
    """Lines break between words, and what is typed during an answer is the next line, not a part of the answer."""
    with terminal(
        tmp_path, "-m", tiny_q4, "--answers", "text", "--temperature", 0, "--max-tokens", 400
    ) as person:
        person.until(">>> ")
        person.type("Remove the file old.log.\r")
        person.until("\n{")
        person.type("/set nowordwrap\r")
        wrapped = "{" + person.until(">>> ").removesuffix(">>> ")
        assert "/set" not in wrapped
        person.until(">>> ")
        person.say("/clear")
        whole = person.say("Remove the file old.log.")
    lines = wrapped.split("note:")[0].strip().split("\n")
    assert len(lines) > 1 and all(len(line.rstrip()) <= 80 for line in lines)
    assert " ".join(lines) in whole


def test_thoughts_are_folded(tiny_q4: Path, tmp_path: Path) -> None:
    options = ("-m", tiny_q4, "--system", THINK)
    with terminal(tmp_path, *options) as person:
        person.until(">>> ")
        folded = person.say("Remove the file old.log.")
        assert re.search(r"\x1b\[2m\rthought: \d+ tokens \x1b\[0m\n\{", folded)
    with terminal(tmp_path, *options, "--show-thoughts", NO_COLOR="1", TERM="dumb") as person:
        person.until(">>> ")
        shown = person.say("Remove the file old.log.")
        assert "think is off\n" in person.say("/set nothink")
        assert "think is on\n" in person.say("/set think on") and "think is on\n" in person.say("/set think")
        assert "stats is on\n" in person.say("/set verbose")
    piped = chat(*options, "--show-thoughts", stdin="Remove the file old.log.\n")
    thought = piped.stderr.strip()
    assert thought and thought in shown and "\x1b" not in shown and thought not in folded
    assert parse_action(piped.stdout)["commands"]
    assert chat(*options, stdin="Remove the file old.log.\n").stderr == ""


@pytest.mark.parametrize("width", [80, 40])
def test_no_line_of_edge_is_wider_than_the_terminal(tiny_q4: Path, tmp_path: Path, width: int) -> None:
    with terminal(tmp_path, "-m", tiny_q4, width=width) as person:
        person.until(">>> ")
        for command in ("/help", "/show", "/set", "/set nothing x", "/nope", "/load none.json"):
            person.say(command)
        person.type("\x04")
        assert person.end() == 0
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", person.all).split("\n")
    assert max(map(len, shown)) <= width, shown


def test_options_are_checked_before_a_download(tmp_path: Path) -> None:
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    (tmp_path / "bad.json").write_text("[]")
    for words, error in (
        (("--temperature", "-1"), "temperature"),
        (("--load", tmp_path / "none.json"), "none.json: cannot be read"),
        (("--load", tmp_path / "bad.json"), "messages is an empty list"),
        (("--screen", tmp_path / "none.txt", "hi"), "none.txt: cannot be read"),
    ):
        done = chat("-m", "org/nothing", *words, **hub)
        assert done.returncode in (1, 2) and error in done.stderr and "org/nothing" not in done.stderr


def test_the_log_of_llama_cpp(tiny_q4: Path) -> None:
    done = chat("-m", tiny_q4, "--max-tokens", 4, "-v", "ls")
    assert done.returncode == 0 and "llama_model_loader: loaded meta data" in done.stderr


def test_save_never_replaces_the_model_or_a_screen(tiny_q4: Path, tmp_path: Path) -> None:
    model, screen = tmp_path / "m.gguf", tmp_path / "screen.txt"
    model.write_bytes(tiny_q4.read_bytes())
    screen.write_text("$ ls\n")
    for path in (model, screen):
        before = path.read_bytes()
        done = chat("-m", model, "--commands", stdin=f"/screen {screen}\n/save {path}\n")
        assert done.returncode == 1 and f"{path}: is an input of this command" in done.stderr
        assert path.read_bytes() == before


def test_save_and_load(tiny_q4: Path, tmp_path: Path) -> None:
    saved, other = tmp_path / "talk one.json", tmp_path / "other.txt"
    other.write_text("mine")
    lines = f'Remove the file old.log.\n/save "{saved}"\nRemove new.log.\n/save {saved}\n'
    done = chat("-m", tiny_q4, "--commands", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"{saved}: 3 messages saved", f"{saved}: 5 messages saved"]
    stored = json.loads(saved.read_text())
    assert stored["schema_version"] == 1 and stored["answers"] == "action"
    assert [message["role"] for message in stored["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]

    # Another run may not replace it, nor any other file, unless a person says so.
    for file in (saved, other):
        before = file.read_bytes()
        refused = chat("-m", tiny_q4, "--commands", stdin=f"/save {file}\nnot asked any more\n")
        assert refused.returncode == 1 and refused.stdout == "" and file.read_bytes() == before
        assert refused.stderr == f"error: {file}: exists; choose another name, or remove the file first\n"
    with terminal(tmp_path, "-m", tiny_q4, "--load", saved) as person:
        person.until(">>> ")
        person.type(f"/save {other}\r")
        person.until("[y/N] ")
        assert "not saved" in person.say("")
        assert other.read_text() == "mine"
        person.type(f"/save {other}\r")
        person.until("[y/N] ")
        assert "5 messages saved" in " ".join(person.say("y").split())
        again = person.say(f"/save {other}")  # it is this conversation's file now
        assert "5 messages saved" in " ".join(again.split())
    assert json.loads(other.read_text())["messages"] == stored["messages"]

    again = chat(
        "-m", tiny_q4, "--commands", "--stats", stdin=f"/load {saved}\nList the files.\n/save {saved}\n"
    )
    assert again.returncode == 0, again.stderr
    assert len(json.loads(saved.read_text())["messages"]) == 7
    prompt = subprocess.run(
        [*EDGE, "prompt", "--messages", str(saved), "--model", str(tiny_q4)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "List the files." in prompt.stdout


def test_foreign_conversations(tiny_q4: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    for text, words in (
        ("{", "is not JSON in UTF-8"),
        ("[]", "messages is an empty list"),
        ('[{"role": "user"}]', "messages[0] is an object; it must be an object with content or tool_calls"),
        (
            '{"schema_version": 2, "messages": [{"role": "user", "content": "a"}]}',
            "this edge reads up to 1: update edge",
        ),
    ):
        file.write_text(text)
        done = chat("-m", tiny_q4, "--commands", stdin=f"/load {file}\n")
        assert done.returncode == 1 and done.stderr.startswith(f"error: {file}: ") and words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    file.write_text('[{"role": "user", "content": "\\u001b[2J\\u009b"}]')
    done = chat("-m", tiny_q4, "--commands", stdin=f"/load {file}\n/show messages\n")
    assert done.returncode == 0 and "user: \\x1b[2J\\x9b\n" in done.stderr
    gone = chat("-m", tiny_q4, "--load", tmp_path / "none.json")
    assert gone.returncode == 1 and "none.json: cannot be read: No such file or directory" in gone.stderr


def test_a_pipe_cannot_run_commands(tiny_q4: Path, tmp_path: Path) -> None:
    """The text of a pipe may be of anybody: a line of it must not write or read a file."""
    file = tmp_path / "talk.json"
    lines = f"Remove the file old.log.\n/save {file}\n"
    done = chat("-m", tiny_q4, "--max-tokens", 60, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 and not file.exists()
    done = chat("-m", tiny_q4, "--max-tokens", 60, "--commands", stdin=lines)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and file.exists()


def test_a_conversation_from_a_pipe(tiny_q4: Path, tmp_path: Path) -> None:
    """`--load <(...)`: the file can be read only once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = '[{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello Ann."}]'
    writer = subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write({text!r})"])
    done = chat("-m", tiny_q4, "--load", pipe, "--commands", stdin="/show messages\n")
    assert writer.wait(60) == 0
    assert done.returncode == 0 and "assistant: Hello Ann.\n" in done.stderr, done.stderr


def test_a_home_that_is_not_there(tiny_q4: Path, tmp_path: Path) -> None:
    there = tmp_path / "talk.json"
    there.write_text('[{"role": "user", "content": "Hello."}]')
    for command in ("/save ~edge-nobody/x", "/load ~edge-nobody/x", "/screen ~edge-nobody/x"):
        done = chat("-m", tiny_q4, "--commands", stdin=command)
        begin = f"error: {command.split()[0]}: ~edge-nobody/x: there is no home folder for ~edge-nobody; "
        assert done.returncode == 1 and done.stderr.startswith(begin), done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = chat("-m", tiny_q4, "--load", "~edge-nobody/x", "hello")
    assert done.returncode == 1 and done.stderr.startswith("error: ~edge-nobody/x: cannot be read")


def test_a_full_context(tiny_q4: Path) -> None:
    lines = "".join(f"Remove the file old{i}.log.\n" for i in range(6))
    done = chat("-m", tiny_q4, "--context", 256, "--max-tokens", 60, stdin=lines)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 6
    note = (
        "note: the conversation does not fit into the context of 256 tokens any more: the model does not see "
    )
    assert note in done.stderr
    long = chat("-m", tiny_q4, "--context", 256, stdin="word " * 300 + "\nnot reached\n")
    assert long.returncode == 1 and long.stdout == ""
    assert (
        long.stderr.startswith("error: the message and what belongs to it have ")
        and "larger --context" in long.stderr
    )


def test_wrong_usage(tiny_q4: Path) -> None:
    for options, code, words in (
        ([" "], 2, "the message is empty"),
        (["--screen", "-"], 2, "--screen"),
        (["--think", "much"], 2, "--think"),
        (["--answers", "json"], 2, "--answers"),
        (["hello", "--top-p", 5], 2, "error: --top-p: 5 is not above 0 and at most 1"),
        (["hello", "--load", "/nowhere"], 1, "/nowhere: cannot be read"),
    ):
        done = chat("-m", tiny_q4, *options)
        assert done.returncode == code and words in done.stderr and done.stdout == "", done.stderr
    bad = chat("-m", tiny_q4, stdin=b"\xff\xfe\n")
    assert bad.returncode == 1 and bad.stderr == "error: the line is not UTF-8 text\n"
    assert chat("-m", tiny_q4).stdout == ""
