"""`edge agent --base-url`: sessions whose model is behind a real `edge serve`, and behind servers that fail.

.venv/bin/pytest tests/agent/test_remote.py
"""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from served import serving

from edge.agent.loop import Limits
from edge.agent.options import Ending, Interface, Permission, ServerOptions, SessionOptions
from edge.agent.proposal import read_answer
from edge.agent.session import run_session
from edge.answer.answering import Answering
from edge.errors import EdgeError, GrammarError
from edge.llama.loading import Loading

ROOT = Path(__file__).resolve().parents[2]
EDGE = [sys.executable, "-c", "from edge.cli.main import main; main()"]
KEY = "sk-a-very-secret-key"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "old.log").write_text("old\n")
    return folder


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "session.jsonl"


def action(*keystrokes: str, done: bool = False, duration: float = 0.3) -> str:
    commands = [{"keystrokes": keys, "duration": duration} for keys in keystrokes]
    fields = {"analysis": "a", "plan": "p", "commands": commands, "task_complete": done}
    return json.dumps(fields)


MAKE, DONE = action("mkdir reports\n"), action(done=True)


# --- a server that gives what a test wants


Given = str | Callable[["Handler"], None]
"""An answer of the model, or what the server does with a request."""


class Handler(BaseHTTPRequestHandler):
    server: "Scripted"

    def log_message(self, *_: object) -> None:
        pass

    def give(self, status: int, value: object, kind: str = "application/json", **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.server.keys.add(self.headers.get("Authorization"))
        self.give(200, {"data": [{"id": name, "owned_by": self.server.owner} for name in self.server.models]})

    def do_POST(self) -> None:
        self.server.keys.add(self.headers.get("Authorization"))
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        left = self.server.given
        given = left.pop(0) if len(left) > 1 else left[0]
        if not isinstance(given, str):
            return given(self)
        usage = {"prompt_tokens": 100 * len(self.server.asked), "completion_tokens": 7}
        choice = {"message": {"role": "assistant", "content": given}, "finish_reason": "stop"}
        self.give(200, {"choices": [choice], "usage": usage})


class Scripted(ThreadingHTTPServer):
    """Gives these answers in turn, and the last one for ever."""

    daemon_threads = True

    def __init__(self, *given: Given, models: tuple[str, ...] = ("big-model",)) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.given, self.models, self.owner = list(given), models, ""
        self.asked: list[dict[str, Any]] = []
        self.keys = set[str | None]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:  # a client that went away
        pass


@contextlib.contextmanager
def scripted(*given: Given, models: tuple[str, ...] = ("big-model",)) -> Iterator[Scripted]:
    with Scripted(*given, models=models) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def refuse(status: int, message: str = "no", **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.give(status, {"error": {"message": message}}, **headers)


def no_model(name: str | None) -> Path:
    raise AssertionError("a session with a server needs no model here")


class Run:
    """One session in this process: how it ended, and what a person sees."""

    def __init__(
        self, folder: Path, record: Path | None, url: str | None, *, resume: bool = False, **options: Any
    ):
        self.text = io.StringIO()
        self.notes: list[str] = []
        person = options.pop("person", False)
        server = ServerOptions(url, options.pop("key_file", None), options.pop("timeout", 60.0), pause=0.01)
        chosen = SessionOptions(
            task=None if resume else "Make a folder named reports.",
            permission=options.pop("permission", Permission(person, sandbox=True, yes=True)),
            workdir=None if resume else folder,
            record=None if resume else record,
            resume=record if resume else None,
            server=server,
            limits=Limits(options.pop("steps", 6), options.pop("seconds", 600.0)),
        )
        interface = Interface(
            console=Console(file=self.text, width=200, emoji=False, highlight=False),
            say=self.notes.append,
            waiting=contextlib.nullcontext,
            find_model=no_model,
        )
        self.ending: Ending | None = None
        self.error = ""
        try:
            self.ending = run_session(replace(chosen, **options), interface)
        except EdgeError as error:
            self.error = str(error)

    @property
    def outcome(self) -> str:
        assert self.ending is not None, self.error
        return self.ending.outcome

    @property
    def line(self) -> str:
        """The last line."""
        line = self.error if self.ending is None else self.ending.text or ""
        assert "\n" not in line
        return line


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- whole sessions


def test_a_session_with_a_model_behind_edge_serve(folder: Path, record: Path, tiny_q4: Path) -> None:
    """The same task with the same model, here and behind a server, has the same first action and record."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "COLUMNS": "150"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [*EDGE, "agent", *map(str, arguments), "--max-tokens", "96", "--sandbox", "--yes"]
        return subprocess.run(
            words, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
        )

    task = ("Make a folder named reports.", "--workdir", folder)
    with serving(tiny_q4) as url:
        done = run(*task, "--base-url", f"{url}/v1", "--record", record, "--max-steps", 2)
        assert done.returncode in (0, 1), done.stderr
        assert (folder / "reports").is_dir(), done.stderr + done.stdout
        assert f"note: server: {url}/v1: it sees the terminal" in done.stderr
        rows = rows_of(record)
        assert rows[0]["ref_commands"][0]["keystrokes"] == "mkdir -p reports\n"
        facts = rows[0]["session"]
        assert facts["server"] == f"{url}/v1" and facts["served_model"] == "tiny-terminal-Q4_K_M"
        assert "model" not in facts and facts["prompt_tokens"] > 20 and facts["completion_tokens"] > 5
        if rows[-1]["session"]["outcome"] == "steps":
            again = run("--resume", record, "--max-steps", 1)
            assert again.returncode in (0, 1), again.stderr
            assert len(rows_of(record)) == len(rows) + 1
        other = run("--resume", record, "--model", "other", "--max-steps", 1)
        assert other.returncode == 1 and "does not serve other; it serves tiny" in other.stderr
    shutil.rmtree(folder / "reports")
    here = record.with_name("here.jsonl")
    done = run(*task, "--model", tiny_q4, "--threads", 1, "--record", here, "--max-steps", 1)
    assert done.returncode == 1 and rows_of(here)[0]["ref_raw"] == rows[0]["ref_raw"]
    assert rows_of(here)[0]["messages"] == rows[0]["messages"]


def test_a_session_that_begins_while_the_model_of_another_opens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same task in the same second: each has its own record."""
    monkeypatch.setattr("edge.agent.record.time.strftime", lambda *_: "20260101-000000")
    runs: list[Run] = []

    class Slow(Scripted):
        def __getattribute__(self, name: str) -> Any:
            if name == "models" and not runs:
                runs.append(Run(folder, None, other.url))
            return super().__getattribute__(name)

    with scripted(action("echo b > b\n"), DONE) as other, Slow(action("echo a > a\n"), DONE) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            runs.append(Run(folder, None, server.url))
        finally:
            server.shutdown()
            thread.join()
    assert [run.outcome for run in runs] == ["complete", "complete"], runs
    assert (folder / "a").exists() and (folder / "b").exists()
    assert len({run.line for run in runs}) == 2


@pytest.mark.parametrize("steps", [1, 3])
def test_the_last_command_runs_to_its_end(folder: Path, record: Path, steps: int) -> None:
    """Also if the model waits less, and gives no more commands."""
    with scripted(action("sleep 1.5; mkdir reports; echo $((6 * 7))\n", duration=0.1), DONE) as server:
        run = Run(folder, record, server.url, steps=steps)
    assert run.outcome == ("steps" if steps == 1 else "complete")
    assert (folder / "reports").is_dir()
    assert "\n| 42\n" in run.text.getvalue() and "\\n42\\n" in record.read_text()


def test_the_schema_is_asked_for_and_the_record_names_server_and_model(folder: Path, record: Path) -> None:
    with scripted(MAKE, DONE, DONE) as server:
        run = Run(folder, record, server.url)
    assert run.outcome == "complete" and (folder / "reports").is_dir()
    for asked in server.asked:
        wanted = asked["response_format"]
        assert wanted["type"] == "json_schema" and wanted["json_schema"]["strict"]
        assert wanted["json_schema"]["schema"]["required"][-1] == "task_complete"
        assert asked["model"] == "big-model" and asked["max_tokens"] == 1024 and asked["temperature"] == 0
    rows = rows_of(record)
    assert rows[0]["session"]["server"] == server.url and rows[0]["session"]["served_model"] == "big-model"
    assert [row["session"]["prompt_tokens"] for row in rows] == [100, 200, 300]
    assert "If all that the task asks for is done" in rows[2]["messages"][-1]["content"]


def test_a_server_that_refuses_the_schema_is_asked_without_it(folder: Path, record: Path) -> None:
    def strict(handler: Handler) -> None:
        if "response_format" in handler.server.asked[-1]:
            return handler.give(422, {"detail": "response_format: extra fields not permitted"})
        handler.give(200, {"choices": [{"message": {"content": f"```json\n{MAKE}\n```"}}]})

    with scripted(strict) as server:
        run = Run(folder, record, server.url, steps=3)
    assert run.outcome == "steps" and (folder / "reports").is_dir()
    assert ["response_format" in asked for asked in server.asked] == [True, False, False, False]
    (note,) = [note for note in run.notes if "without the JSON schema" in note]
    assert "response_format: extra fields not permitted" in note
    assert "prompt_tokens" not in rows_of(record)[0]["session"]


@pytest.mark.parametrize("owner", ["", "me"])
def test_the_server_of_llama_cpp_python(folder: Path, record: Path, owner: str) -> None:
    """It takes a schema in its own form, and calls each other form an internal error."""

    def server_of_llama_cpp_python(handler: Handler) -> None:
        wanted = handler.server.asked[-1].get("response_format")
        if wanted and wanted["type"] not in ("text", "json_object"):
            message = (
                "1 validation error:\n  {'type': 'literal_error', 'loc': ('body', 'response_format', 'type')}"
            )
            return refuse(500, message)(handler)
        handler.give(200, {"choices": [{"message": {"content": MAKE}}]})

    with scripted(server_of_llama_cpp_python) as server:
        server.owner = owner
        run = Run(folder, record, server.url, steps=2)
    assert run.outcome == "steps" and (folder / "reports").is_dir()
    forms = [asked["response_format"]["type"] if "response_format" in asked else "" for asked in server.asked]
    assert forms == (["json_object", "json_object"] if owner else ["json_schema", "", ""])
    if owner:
        assert server.asked[0]["response_format"]["schema"]["required"][-1] == "task_complete"
        assert server.asked[0]["top_k"] == 0 and server.asked[0]["repeat_penalty"] == 1.0


def test_an_invalid_answer_is_told_and_the_session_goes_on(folder: Path, record: Path) -> None:
    with scripted("I would make a folder.", "", MAKE, "{}", DONE, DONE) as server:
        run = Run(folder, record, server.url)
    assert run.outcome == "complete" and (folder / "reports").is_dir()
    messages = rows_of(record)[0]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2 + ["user"]
    assert messages[1]["content"] == "I would make a folder."
    assert messages[2]["content"].startswith(
        "Note: your answer was not a valid action: the action is not JSON"
    )
    assert messages[4]["content"].startswith("Note: your answer was not a valid action: it is empty. Nothing")
    assert "The answer is not a valid action: it is empty" in run.text.getvalue()
    assert server.asked[2]["messages"] == messages


def test_three_invalid_answers_end_the_session(folder: Path, record: Path) -> None:
    def cut(handler: Handler) -> None:
        choice = {"message": {"content": MAKE[:40]}, "finish_reason": "length"}
        handler.give(200, {"choices": [choice]})

    with scripted(MAKE, cut) as server:
        run = Run(folder, record, server.url)
        assert run.outcome == "invalid" and len(server.asked) == 4
        assert run.line == (
            "three answers in a row were not valid actions: it was cut at the maximum number of tokens; "
            f"session record: {record}; continue it with --resume {record}"
        )
        assert not (folder / "reports").exists()  # nothing is brought back; the archive has it
        assert rows_of(record)[-1]["session"]["outcome"] == "invalid"
        server.given = [DONE]
        again = Run(folder, record, None, resume=True)
    assert again.outcome == "complete" and (folder / "reports").is_dir()
    assert f"server: {server.url}: it sees the terminal" in again.notes


def test_a_first_answer_that_is_no_action_three_times(folder: Path, record: Path) -> None:
    with scripted("no") as server:
        run = Run(folder, record, server.url)
    assert run.outcome == "invalid" and "the action is not JSON" in run.line
    assert not record.exists() and "--resume" not in run.line


@pytest.mark.parametrize(
    "answer",
    [
        MAKE,
        f"<think>First {{this}}.</think>\n\n{MAKE}",
        f"I think.</think>{MAKE}",
        f"```json\n{MAKE}\n```",
        f"Here it is:\n{MAKE}\nThat is all.",
        '{"task_complete": false, "plan": "p", "commands": [{"duration": 0.3, "keystrokes": "mkdir reports\\n"}], '
        '"analysis": "a"}',
    ],
)
def test_answers_of_other_engines_are_read(answer: str) -> None:
    proposal = read_answer(answer)
    assert proposal.to_json() == MAKE


def test_a_long_duration_of_another_engine_is_kept() -> None:
    assert read_answer(action("make\n", duration=300)).commands[0].duration == 300


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "mkdir reports",
        MAKE + MAKE,
        MAKE.replace('"duration": 0.3', '"duration": -1'),
        MAKE.replace('"duration": 0.3', '"duration": 1e999'),
        MAKE.replace('"duration": 0.3', '"duration": "1"'),
        MAKE.replace('"plan": "p", ', ""),
        MAKE.replace('"plan": "p", ', '"plan": "p", "plan": "q", '),
        MAKE.replace('"plan": "p", ', '"plan": "p", "tool": "q", '),
        MAKE.replace("mkdir reports", "\\ud83d"),
        "{" * 100_000 + "}",
    ],
)
def test_what_is_no_action_is_refused(answer: str) -> None:
    with pytest.raises(GrammarError):
        read_answer(answer)


def test_half_of_a_surrogate_pair_and_a_huge_answer_are_told(folder: Path, record: Path) -> None:
    half = MAKE.replace("mkdir reports", "echo \\ud83d")
    huge = action("x" * 300_000)
    with scripted(half, huge, MAKE, DONE) as server:
        run = Run(folder, record, server.url)
    assert run.outcome == "complete"
    messages = rows_of(record)[0]["messages"]
    assert "half of a surrogate pair" in messages[2]["content"]
    assert "it has 300,1" in messages[4]["content"] and len(messages[3]["content"]) < 11_000


def test_a_conversation_that_is_too_long_is_shortened(folder: Path, record: Path) -> None:
    """By the server's word, and by --context with the tokens that the server counted."""

    def small(handler: Handler) -> None:
        asked = handler.server.asked[-1]
        if len(asked["messages"]) > 5:
            return refuse(400, "This model's maximum context length is 100 tokens")(handler)
        handler.give(200, {"choices": [{"message": {"content": action("date +%N\n")}}]})

    with scripted(small) as server:
        run = Run(folder, record, server.url, steps=5)
    assert run.outcome == "steps"
    assert "left out for want of room" in rows_of(record)[-1]["messages"][0]["content"]

    def counts(handler: Handler) -> None:
        size = sum(len(message["content"]) for message in handler.server.asked[-1]["messages"])
        choice = {"message": {"content": action(f"echo {'x' * 500}{len(handler.server.asked)}\n")}}
        handler.give(200, {"choices": [choice], "usage": {"prompt_tokens": size, "completion_tokens": 1}})

    second = record.with_name("second.jsonl")
    with scripted(counts) as server:
        run = Run(
            folder,
            second,
            server.url,
            steps=5,
            loading=Loading(context=3000),
            answering=Answering(max_tokens=100),
        )
    assert run.outcome == "steps"
    sizes = [sum(len(one["content"]) for one in asked["messages"]) for asked in server.asked]
    assert max(sizes) < 3000 and "left out" in rows_of(second)[-1]["messages"][0]["content"]


# --- the key


def test_the_key_is_sent_only_to_the_server_and_written_nowhere(
    folder: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with scripted(MAKE, action("env\n", "cat /proc/1/environ\n"), refuse(400, f"{KEY} is wrong")) as server:
        run = Run(folder, record, server.url)
        assert server.keys == {f"Bearer {KEY}"}
    assert run.outcome == "failed" and "[the key] is wrong" in run.line
    everything = [record.read_text(), run.text.getvalue(), run.line, *run.notes, json.dumps(server.asked)]
    assert not any("very-secret" in text for text in everything)


@pytest.mark.parametrize(
    "given",
    [
        lambda handler: handler.give(302, {}, Location=f"http://other/?key={KEY}"),
        lambda handler: handler.give(200, {}, Content_Encoding=KEY),
        lambda handler: handler.give(200, b"x", KEY),
        None,
    ],
    ids=["address", "coding", "kind", "models"],
)
def test_no_message_repeats_the_key_of_a_server_that_sends_it_back(
    folder: Path, record: Path, monkeypatch: pytest.MonkeyPatch, given: Given | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    names = ("big-model",) if given else (f"{KEY}-1", f"{KEY}-2")
    with scripted(given or DONE, models=names) as server:
        run = Run(folder, record, server.url)
    assert "[the key]" in run.line
    assert not any("very-secret" in text for text in (run.text.getvalue(), run.line, *run.notes))


def test_the_shell_outside_a_sandbox_does_not_get_the_key(
    folder: Path, record: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    allow = tmp_path / "allow.toml"
    allow.write_text('[[rule]]\ndecision = "allow"\nprefix = ["env"]\n')
    with scripted(action("env\n"), DONE) as server:
        run = Run(folder, record, server.url, permission=Permission(True, allow=Path(allow)))
    assert run.outcome == "complete", run.text.getvalue()
    assert "PATH=" in record.read_text() and "very-secret" not in record.read_text()


def test_a_key_file_in_the_work_folder_is_not_in_the_sandbox(folder: Path, record: Path) -> None:
    key = folder / "key.txt"
    key.write_text(f"{KEY}\n")
    with scripted(action("cat key.txt; ls\n"), DONE, refuse(401, "bad key")) as server:
        run = Run(folder, record, server.url, key_file=key)
        assert server.keys == {f"Bearer {KEY}"}
    assert run.outcome == "failed" and f"(is the key in {key} right?)" in run.line
    assert "very-secret" not in record.read_text() and "No such file" in record.read_text()
    assert key.read_text() == f"{KEY}\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"one two\n", "is not a key"),
        (b"one\ntwo\n", "is not a key"),
        ("schlüssel".encode(), "is not a key"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"k" * 5000, "is not a key"),
    ],
)
def test_a_file_without_a_key(folder: Path, record: Path, content: bytes, what: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    with scripted(DONE) as server:
        run = Run(folder, record, server.url, key_file=key)
    assert what in run.line and str(key) in run.line and server.asked == []
    words = content.decode(errors="replace").split()
    assert not any(word in run.line for word in words if len(word) > 3)


def test_a_key_variable_with_an_escape_is_one_line(
    folder: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\x1b[0m")
    with scripted(DONE) as server:
        run = Run(folder, record, server.url)
    assert run.line.startswith("OPENAI_API_KEY: is not a key") and "secret" not in run.line


# --- what fails


def slow(handler: Handler) -> None:
    time.sleep(3)


def drip(handler: Handler) -> None:
    """A byte every 50 ms, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.05)


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" " * (1 << 20))


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def stream(handler: Handler) -> None:
    handler.give(200, b'data: {"choices": [{"delta": {"content": "{"}}]}\n\n', "text/event-stream")


FAULTS: dict[str, tuple[Callable[[Handler], None], str]] = {
    "401": (refuse(401, "who are you"), "401 who are you (is the key in OPENAI_API_KEY right?)"),
    "404": (refuse(404, "no such page"), "404 no such page (does the URL end as"),
    "429": (refuse(429, "slow down"), "no answer in 6 tries: 429 slow down"),
    "429 for a day": (refuse(429, "tomorrow", Retry_After="86400"), "asks to wait 86400 s"),
    "500": (refuse(500, "out of memory"), "no answer in 6 tries: 500 out of memory"),
    "an HTML page": (
        lambda handler: handler.give(200, b"<html>log in</html>", "text/html"),
        "is not a JSON object but text/html",
    ),
    "a stream": (stream, "it sends a stream (text/event-stream), which edge did not ask for"),
    "half an answer": (lambda handler: handler.give(200, b'{"choices": [{"me'), "is not a JSON object"),
    "deep JSON": (lambda handler: handler.give(200, b"[" * 200_000), "is not a JSON object"),
    "no choices": (lambda handler: handler.give(200, {"object": "x"}), "an answer has no choices"),
    "no text": (
        lambda handler: handler.give(200, {"choices": [{"message": {"content": [1]}}]}),
        "the text of an answer is not a string",
    ),
    "a redirect": (
        lambda handler: handler.give(307, b"", Location="http://192.0.2.1/v1/chat/completions"),
        "redirects to http://192.0.2.1/v1/chat/completions, which edge does not follow",
    ),
    "hang up": (hang_up, "no answer in 6 tries: Server disconnected"),
    "an endless answer": (endless, "its answer is larger than 64 MiB"),
    "slow": (slow, "no answer in 6 tries: no answer in 1 s"),
    "a byte at a time": (drip, "no answer in 6 tries: no answer in 1 s"),
    "a full context": (refuse(400, "exceeds the available context size"), "exceeds the available context"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_in_one_line_with_the_way_to_resume(name: str, folder: Path, record: Path) -> None:
    fault, what = FAULTS[name]
    quick = 1.0 if name in ("slow", "a byte at a time") else 60.0
    with scripted(MAKE, fault) as server:
        run = Run(folder, record, server.url, timeout=quick)
    assert run.outcome == "failed"
    assert run.line.startswith(f"the model could not answer: {server.url}: ")
    assert what in run.line
    assert run.line.endswith(f"; session record: {record}; continue it with --resume {record}")
    assert rows_of(record)[-1]["session"]["outcome"] == "failed"
    assert any(note.startswith("to bring it back: ") for note in run.notes), run.notes


def test_a_server_that_goes_away_and_comes_back(folder: Path, record: Path) -> None:
    with scripted(MAKE) as server:

        def leave(handler: Handler) -> None:
            server.socket.close()
            hang_up(handler)

        server.given = [MAKE, leave]
        run = Run(folder, record, server.url)
    assert run.outcome == "failed" and "refused" in run.line
    gone = Run(folder, record, None, resume=True)
    assert "no answer in 6 tries" in gone.line and gone.ending is None
    with scripted(DONE) as other:
        again = Run(folder, record, other.url, resume=True)
    assert again.outcome == "complete" and (folder / "reports").is_dir()


def test_the_time_limit_ends_an_answer(folder: Path, record: Path) -> None:
    begin = time.monotonic()
    with scripted(MAKE, drip) as server:
        run = Run(folder, record, server.url, seconds=4)
    assert run.outcome == "time" and time.monotonic() - begin < 60
    assert (folder / "reports").is_dir()


@pytest.mark.parametrize(
    ("models", "options", "what"),
    [
        (("a", "b"), {}, "serves 2 models (a, b): name one with --model"),
        ((), {}, "serves 0 models (none): name one with --model"),
        (("a",), {"model": "b"}, "does not serve b; it serves a"),
        (("a\ud800",), {}, "the name of its model has a character that edge cannot send: 'a\\ud800'"),
    ],
)
def test_the_model_of_a_server(
    folder: Path, record: Path, models: tuple[str, ...], options: dict[str, Any], what: str
) -> None:
    with scripted(DONE, models=models) as server:
        run = Run(folder, record, server.url, **options)
    assert what in run.line and server.asked == [] and not record.exists()


def test_options_that_do_not_fit(folder: Path, record: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "150"}
    with scripted(MAKE) as server:
        Run(folder, record, server.url, steps=1)
    for arguments, what in (
        (
            ["x", "--base-url", "http://localhost:1/v1", "--threads", "1"],
            "--threads: is for a model on this",
        ),
        (["--resume", str(record), "--style", "free"], "--style: is for a model on this machine"),
        (["x", "--timeout", "5"], "--timeout: is for a server: add --base-url"),
        (["x", "--api-key-file", "none"], "--api-key-file: is for a server: add --base-url"),
        (["x", "--base-url", "http://me:word@localhost:1/v1"], "must not have a user name"),
        (["x", "--base-url", "localhost:1"], "is not an http or https URL"),
    ):
        words = [*EDGE, "agent", *arguments, "--sandbox", "--yes"]
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=100)
        assert what in done.stderr and "word" not in done.stderr and done.returncode in (1, 2), done.stderr
        assert "Traceback" not in done.stderr
