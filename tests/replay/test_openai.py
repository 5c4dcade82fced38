"""`edge eval --backend openai` against a real llama-server (named by EDGE_LLAMA_SERVER or on the PATH), and against a
server of this file's own, whose answers are the embedded model's and which fails in the ways that real ones do.

EDGE_LLAMA_SERVER=llama-server pytest tests/replay/test_openai.py
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge.answer.action import parse_action
from edge.answer.answering import Answering
from edge.answer.sampling import Sampling
from edge.errors import BackendError, EdgeError
from edge.llama.loading import Loading
from edge.replay.client import Server
from edge.replay.openai import Service, evaluate_server
from edge.replay.rows import read_rows
from edge.replay.run import evaluate
from edge.runner import Runner
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow

LIMIT = 6
MAX_TOKENS = 160


def texts(result: dict[str, Any]) -> dict[tuple[str, int], str]:
    return {(step["task_id"], step["step_idx"]): step["pred_text"] for step in result["per_step"]}


@pytest.fixture(scope="module")
def local(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The local engine's result for the same rows."""
    out = tmp_path_factory.mktemp("local") / "result.json"
    return evaluate(
        tiny_bf16,
        embedded_rows(),
        out,
        limit=LIMIT,
        answering=Answering(max_tokens=MAX_TOKENS, constrained=False),
        loading=Loading(parallel=1, threads=1),
    )


# --- a real llama-server


@pytest.fixture(scope="module")
def llama_server(tiny_bf16: Path) -> Iterator[str]:
    program = os.environ.get("EDGE_LLAMA_SERVER") or shutil.which("llama-server")
    if program is None:
        pytest.skip("no llama-server: name one in EDGE_LLAMA_SERVER")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-m", str(tiny_bf16), "--port", str(port), "-t", "1", "-np", "2", "-c", "4096"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(300):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def test_a_llama_server_gives_the_local_engines_answers(
    llama_server: str, tiny_bf16: Path, tiny_folder: Path, local: dict[str, Any], tmp_path: Path
) -> None:
    for name, source in (("gguf", tiny_bf16), ("folder", tiny_folder)):
        result = evaluate_server(
            llama_server,
            embedded_rows(),
            tmp_path / f"{name}.json",
            model=source,
            limit=LIMIT,
            answering=Answering(max_tokens=MAX_TOKENS, constrained=False),
            service=Service(concurrency=2),
        )
        # Two slots are batched as they come; the embedded model is sure enough of its tokens for that not to matter.
        assert texts(result) == texts(local)
        hashes = [[step["prompt_sha256"] for step in each["per_step"]] for each in (result, local)]
        assert hashes[0] == hashes[1]
        assert result["prompt_template"] == local["prompt_template"]
        assert result["sampling"]["prompt"] == "token ids"
        assert result["sampling"]["server"] == "llama-server"
        assert result["provenance"]["backend"] == "openai"
        counts = [[step["prompt_tokens"] for step in each["per_step"]] for each in (result, local)]
        assert counts[0] == counts[1]


def test_a_llama_server_that_renders_the_chat_itself(
    llama_server: str, local: dict[str, Any], tmp_path: Path
) -> None:
    result = evaluate_server(
        llama_server,
        embedded_rows(),
        tmp_path / "chat.json",
        limit=LIMIT,
        answering=Answering(max_tokens=MAX_TOKENS, constrained=False),
        service=Service(concurrency=2),
    )
    assert texts(result) == texts(local)
    assert [step["prompt_sha256"] for step in result["per_step"]] == [None] * LIMIT
    assert result["prompt_template"]["template_status"] == "server_chat"
    assert not result["prompt_template"]["rank_eligible"]


@pytest.mark.parametrize("with_model", [True, False])
def test_structured_answers_of_a_llama_server_are_actions(
    llama_server: str, tiny_bf16: Path, with_model: bool, tmp_path: Path
) -> None:
    result = evaluate_server(
        llama_server,
        embedded_rows(),
        tmp_path / "structured.json",
        model=tiny_bf16 if with_model else None,
        limit=LIMIT,
        answering=Answering(max_tokens=400, constrained=True),
    )
    finished = [step for step in result["per_step"] if step["finish_reason"] == "stop"]
    assert finished
    for step in finished:
        action = json.loads(step["pred_text"])
        assert list(action) == ["analysis", "plan", "commands", "task_complete"]
    assert result["sampling"]["structured"] == "json_schema" and result["provenance"]["grammar_sha256"]


# --- a server that fails


Fault = Callable[[BaseHTTPRequestHandler, int], bool]
"""Is given the request's handler and how many came before; True where it has answered."""


class Fake(ThreadingHTTPServer):
    """Speaks the protocol; its answers are the local engine's, looked up by the prompt's token ids."""

    daemon_threads = True

    def __init__(
        self,
        answers: dict[str, str],
        fault: Fault | None = None,
        models: tuple[str, ...] = ("tiny",),
        address: str = "127.0.0.1",
    ):
        super().__init__((address, 0), Handler)
        self.answers, self.fault, self.models = answers, fault, models
        self.asked = Counter[str]()
        self.keys = set[str | None]()
        self.lock = threading.Lock()
        self.url = f"http://{address}:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:  # a client that went away
        pass


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *_: object) -> None:
        pass

    def give(self, status: int, value: object, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.server.keys.add(self.headers.get("Authorization"))
        if self.path == "/v1/models":
            self.give(200, {"data": [{"id": name, "owned_by": "someone"} for name in self.server.models]})
        else:
            self.give(404, {"error": {"message": "nothing here"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = json.dumps(body.get("prompt"))
        with self.server.lock:
            number = self.server.asked.total()
            if body["max_tokens"] > 1:
                self.server.asked[key] += 1
        if body["max_tokens"] > 1 and self.server.fault is not None and self.server.fault(self, number):
            return
        if body["max_tokens"] == 1:
            self.give(200, {"choices": [{"text": "{", "finish_reason": "length"}]})
            return
        self.give(
            200,
            {
                "choices": [{"text": self.server.answers[key], "finish_reason": "stop"}],
                "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 7},
            },
        )


@pytest.fixture(scope="module")
def answers(tiny_bf16: Path, local: dict[str, Any]) -> dict[str, str]:
    with Runner.load(tiny_bf16, threads=1) as runner:
        prompts = [
            runner.encode(runner.render(row.messages).text) for row in read_rows(embedded_rows(), LIMIT)
        ]
    return {
        json.dumps(prompt): step["pred_text"] for prompt, step in zip(prompts, local["per_step"], strict=True)
    }


@contextlib.contextmanager
def serving(server: Fake) -> Iterator[Fake]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked_of(server: Fake, model: Path | None, out: Path, **options: Any) -> dict[str, Any]:
    names = ("served_model", "concurrency", "timeout", "pause", "context")
    service = {name: options.pop(name) for name in names if name in options}
    answering = Answering(
        options.pop("max_tokens", MAX_TOKENS),
        options.pop("sampling", Sampling()),
        constrained=options.pop("structured", False),
    )
    return evaluate_server(
        server.url,
        embedded_rows(),
        out,
        model=model,
        service=Service(**{"concurrency": 3, "pause": 0.01, **service}),
        answering=answering,
        **{"limit": LIMIT, **options},
    )


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


FAULTS: dict[str, Callable[[Any], None]] = {
    "overloaded": lambda handler: handler.give(503, {"error": {"message": "overloaded"}}),
    "slow down": lambda handler: handler.give(429, {"detail": "slow down"}, Retry_After="0.02"),
    "slow down until": lambda handler: handler.give(
        429, b"", Retry_After=format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    ),
    "hang up": hang_up,
    "half an answer": lambda handler: handler.give(200, b'{"choices": [{"te'),
    "no object": lambda handler: handler.give(200, ["tiny"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_may_pass_is_asked_again(
    name: str, tiny_bf16: Path, answers: dict[str, str], local: dict[str, Any], tmp_path: Path
) -> None:
    def fault(handler: BaseHTTPRequestHandler, number: int) -> bool:
        if number < 2:
            FAULTS[name](handler)
        return number < 2

    with serving(Fake(answers, fault)) as server:
        result = asked_of(server, tiny_bf16, tmp_path / "result.json")
        assert server.asked.total() == LIMIT + 2
    assert texts(result) == texts(local)
    assert not (tmp_path / "result.json.journal").exists()


def test_what_fails_for_good_keeps_what_is_done_and_goes_on(
    tiny_bf16: Path, answers: dict[str, str], local: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "result.json"

    def fault(handler: Any, number: int) -> bool:
        if number >= 3:
            handler.give(500, b"<html><h1>out of order</h1></html>")
        return number >= 3

    with serving(Fake(answers, fault)) as server, pytest.raises(BackendError) as caught:
        asked_of(server, tiny_bf16, out, concurrency=1)
    assert "500 out of order" in str(caught.value) and "3 of 6 steps are kept" in str(caught.value)
    assert "\n" not in str(caught.value) and not out.exists()
    with serving(Fake(answers)) as server:
        # Another port is another server, which may serve another model.
        with pytest.raises(EdgeError, match="url was"):
            asked_of(server, tiny_bf16, out)
        journal = (tmp_path / "result.json.journal").read_bytes()
        assert journal.count(b"\n") == 4


def test_a_killed_run_goes_on_and_asks_nothing_twice(
    tiny_bf16: Path, answers: dict[str, str], local: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    gate = threading.Event()

    def fault(handler: BaseHTTPRequestHandler, number: int) -> bool:
        if number >= 3:
            gate.wait(30)
        return False

    with serving(Fake(answers, fault)) as server:
        command = [
            sys.executable,
            "-c",
            "from edge.cli.main import main; main()",
            "eval",
            "--backend",
            "openai",
        ]
        command += ["--base-url", server.url, "--model", str(tiny_bf16), "--out", str(out), "--quiet"]
        command += ["--limit", str(LIMIT), "--max-tokens", str(MAX_TOKENS), "--concurrency", "1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            journal = tmp_path / "result.json.journal"
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and (
                not journal.exists() or journal.read_bytes().count(b"\n") < 4
            ):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        gate.set()
        assert not out.exists()
        time.sleep(0.1)  # the answer that nobody waits for
        before = server.asked.total()
        result = asked_of(server, tiny_bf16, out, concurrency=1)
        assert server.asked.total() - before == LIMIT - 3
    assert texts(result) == texts(local)
    assert result["engine"]["steps_done_before"] == 3


def test_the_key_is_sent_and_written_nowhere(
    tiny_bf16: Path, answers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with serving(Fake(answers)) as server:
        asked_of(server, tiny_bf16, tmp_path / "result.json")
        assert server.keys == {"Bearer sk-very-secret"}
    assert b"very-secret" not in (tmp_path / "result.json").read_bytes()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.2", "localhost", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
def test_a_server_of_this_machine_is_asked_without_a_proxy(
    host: str, tiny_bf16: Path, answers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy of the environment would see the key and the terminal."""
    if host == "127.0.0.2" and sys.platform != "linux":
        pytest.skip("only Linux gives each process all addresses of 127.0.0.0/8")
    address = "127.0.0.2" if host == "127.0.0.2" else "127.0.0.1"
    with serving(Fake(answers, address=address)) as server, serving(Fake(answers)) as proxy:
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.setattr(server, "url", server.url.replace(address, host))
        asked_of(server, tiny_bf16, tmp_path / "result.json")
        assert server.asked and not proxy.asked


def test_one_line_for_what_another_try_would_not_change(
    tiny_bf16: Path, answers: dict[str, str], tmp_path: Path
) -> None:
    def refuse(status: int) -> Fault:
        def fault(handler: Any, number: int) -> bool:
            handler.give(status, {"error": {"message": "no,\nnever"}})
            return True

        return fault

    out = tmp_path / "result.json"
    for server, options, wanted in (
        (Fake(answers, refuse(401)), {}, "401 no, never (is the key in OPENAI_API_KEY right?)"),
        (Fake(answers, refuse(400)), {}, "completions was refused: 400 no, never"),
        (Fake(answers, models=("a", "b")), {}, "serves 2 models (a, b): name one with --served-model"),
        (Fake(answers, models=()), {}, "serves 0 models (none)"),
        (Fake(answers), {"served_model": "other"}, "does not serve other; it serves tiny"),
        (Fake(answers), {"context": 10**9}, "has a context length of"),
    ):
        with serving(server), pytest.raises(EdgeError) as caught:
            asked_of(server, tiny_bf16, out, **options)
        assert wanted in str(caught.value) and "\n" not in str(caught.value)
        assert server.asked.total() <= 3  # as many as were under way
        assert list(tmp_path.iterdir()) == []
    for url, wanted in (
        ("localhost:8000", "is not an http or https URL"),
        ("http://user:word@localhost", "must not have a user name"),
        ("http://a:b:c", "is not a URL"),
    ):
        with pytest.raises(BackendError, match=wanted) as caught:
            evaluate_server(url, embedded_rows(), out)
        assert "word" not in str(caught.value)


def test_a_retry_after_too_long_is_not_waited_for(
    tiny_bf16: Path, answers: dict[str, str], tmp_path: Path
) -> None:
    def fault(handler: Any, number: int) -> bool:
        handler.give(429, {"error": {"message": "tomorrow"}}, Retry_After="86400")
        return True

    with (
        serving(Fake(answers, fault)) as server,
        pytest.raises(BackendError, match="asks to wait 86400 s before"),
    ):
        asked_of(server, tiny_bf16, tmp_path / "result.json")


def test_close_ends_the_requests_that_wait() -> None:
    """The server takes connections and never answers."""
    errors: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=600)

        def ask() -> None:
            try:
                server.models()
            except BackendError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        taken = [listener.accept()[0] for _ in threads]  # kept: a socket that nobody holds is closed
        server.close()
        for thread in threads:
            thread.join(60)
        for connection in taken:
            connection.close()
    assert len(errors) == 3 and all(error.endswith("stopped") for error in errors)


def test_parse_of_local_answers(local: dict[str, Any]) -> None:
    """The answers that the tests above compare are actions, not empty texts."""
    assert all(parse_action(text)["commands"] is not None for text in texts(local).values())
