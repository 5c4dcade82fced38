"""`edge serve` from outside: the real openai client, the real Terminus-2 parser, unusual clients, many in parallel.

.venv/bin/pytest tests/serve/test_serve.py
"""

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import serving
from terminus import check

from edge.answer.action import parse_action
from edge.answer.sampling import Sampling
from edge.answer.text import text_answer
from edge.answer.writer import Answer
from edge.llama.loading import Loading
from edge.llama.serving import ServingEngine
from edge.replay.rows import read_rows
from edge.runner import Runner
from edge.serve.model import ServedModel, Ticket
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WRONG = {"type": "strange"}
MESSAGES: Any = [{"role": "user", "content": "Remove the file old.log."}]


@pytest.fixture(scope="module")
def server(tiny_q4: Path) -> Iterator[str]:
    with serving(tiny_q4, "--body-limit", "1") as address:
        yield address


def test_text_answers_by_default(tiny_q4: Path, client: openai.OpenAI) -> None:
    """With --answers text a request without a format gets free text; other formats stay as they are."""
    chat = client.chat.completions
    text: Any = {"type": "text"}
    expected = chat.create(model="m", messages=MESSAGES, max_tokens=10, response_format=text).choices[0]
    assert expected.finish_reason == "length"
    with (
        serving(tiny_q4, "--answers", "text") as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as other,
    ):
        chat = other.chat.completions
        answer = chat.create(model="m", messages=MESSAGES, max_tokens=10).choices[0]
        assert answer == expected
        stopped = chat.create(model="m", messages=MESSAGES, max_tokens=64, stop=['"plan"']).choices[0]
        assert stopped.message.content and '"plan"' not in stopped.message.content
        schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
        number = chat.create(model="m", messages=MESSAGES, max_tokens=5, response_format=schema).choices[0]
        assert isinstance(json.loads(number.message.content or ""), int)


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.05)


def metric(server: str, name: str) -> float:
    text = httpx.get(f"{server}/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def test_answers_are_those_of_the_runner(client: openai.OpenAI, tiny_q4: Path) -> None:
    rows = read_rows(embedded_rows(), 12)
    with Runner.load(tiny_q4, threads=1) as runner:
        for row in rows:
            own = runner.act(row.messages, 128)
            got = client.chat.completions.create(
                model="any", messages=row.messages, max_tokens=128, temperature=0
            )  # type: ignore[call-overload]
            assert got.choices[0].message.content == own.text
            assert got.choices[0].finish_reason == "stop"
            closed = (got.choices[0].model_extra or {}).get("closed_at_budget", False)
            assert closed == own.closed_at_budget
            assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (
                own.prompt_tokens,
                own.completion_tokens,
            )


def test_every_chat_answer_is_an_action_at_any_budget_streamed_or_not(client: openai.OpenAI) -> None:
    for room in (1, 2, 5, 9, 14, 20, 25, 30, 33, 36, 60):
        whole = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=room)
        text = whole.choices[0].message.content or ""
        parse_action(text)
        stream = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=room, stream=True)
        parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(parts) == text
        # An open command is held back until it is whole: no part ends inside of one.
        shown = ""
        for part in parts:
            shown += part
            commands = shown.partition('"commands"')[2].partition('"task_complete"')[0]
            assert commands.count("{") == commands.count("}")
        hot = client.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=room, temperature=3, seed=room
        )
        parse_action(hot.choices[0].message.content or "")


def test_terminus_reads_every_answer(client: openai.OpenAI, terminus: Any) -> None:
    for row in read_rows(embedded_rows(), 30):
        got = client.chat.completions.create(model="m", messages=row.messages, max_tokens=48)  # type: ignore[arg-type]
        check(terminus, got.choices[0].message.content or "")


def test_a_stream_tells_usage_and_how_it_ended(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=64, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        "stop"
    ]
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens > 20
    assert len({chunk.id for chunk in chunks}) == 1


def test_other_formats(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "size": {"type": "integer"}},
        "required": ["name", "size"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "file", "schema": schema, "strict": True}}
    for room in (24, 40, 60):
        got = client.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=room, response_format=wanted
        )
        value = json.loads(got.choices[0].message.content or "")
        assert set(value) == {"name", "size"} and isinstance(value["size"], int)
    with pytest.raises(openai.BadRequestError, match="raise max_tokens"):
        client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=2, response_format=wanted)
    anything = client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=20, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(anything.choices[0].message.content or ""), dict)
    gbnf = client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=20, extra_body={"grammar": 'root ::= "yes" | "no"'}
    )
    assert gbnf.choices[0].message.content in ("yes", "no")
    text = client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=64, response_format={"type": "text"}, stop=['"plan"']
    )
    assert "plan" not in (text.choices[0].message.content or "")
    ids = client.completions.create(model="m", prompt=[1, 2, 3], max_tokens=4)
    assert ids.usage is not None and ids.usage.prompt_tokens == 3
    parts = client.completions.create(model="m", prompt="List the files", max_tokens=8, stream=True)
    assert sum(1 for _ in parts) > 1


@pytest.mark.parametrize(
    ("body", "param", "what"),
    [
        (b"{", None, "not JSON"),
        (b"\xff{}", None, "not UTF-8"),
        (b"[]", None, "not a JSON object"),
        (b"[" * 100_000, None, "not JSON"),
        ({}, "messages", "must be a list"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "the role 'robot'"),
        ({"messages": [{"role": "user"}]}, "messages", "content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages", "must be a string, a list or null"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "not UTF-8"),
        ({"messages": MESSAGES, "n": 0}, "n", "at least 1"),
        ({"messages": MESSAGES, "n": 69}, "n", "places for 68"),
        ({"messages": MESSAGES, "best_of": 2}, "best_of", "not supported"),
        ({"messages": MESSAGES, "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"messages": MESSAGES, "max_tokens": "9"}, "max_tokens", "whole number"),
        (
            {"messages": [{"role": "user", "content": "x " * 40_000}]},
            "messages",
            "maximum context length is 8192 tokens",
        ),
        ({"messages": MESSAGES, "max_token": 5}, "max_token", "did you mean max_tokens?"),
        ({"messages": MESSAGES, "temprature": 1}, "temprature", "did you mean temperature?"),
        ({"messages": MESSAGES, "temperature": -1}, "temperature", "0 or more"),
        ({"messages": MESSAGES, "temperature": "hot"}, "temperature", "a number"),
        ({"messages": MESSAGES, "top_p": 0}, "top_p", "above 0"),
        ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools", "must be"),
        ({"messages": MESSAGES, "stop": [""]}, "stop", "list of texts"),
        ({"messages": MESSAGES, "logprobs": True}, "logprobs", "text answers only"),
        ({"messages": MESSAGES, "top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"messages": MESSAGES, "seed": -2}, "seed", "0 or more"),
        ({"messages": MESSAGES, "presence_penalty": 3}, "presence_penalty", "from -2 to 2"),
        ({"messages": MESSAGES, "continue_final_message": True}, "continue_final_message", "assistant"),
        ({"messages": MESSAGES, "stream": "yes"}, "stream", "true or false"),
        ({"messages": MESSAGES, "response_format": {"type": "xml"}}, "response_format", "must be text"),
        (
            {"messages": MESSAGES, "response_format": {"type": "json_schema"}},
            "response_format",
            "must be an object",
        ),
        (
            {
                "messages": MESSAGES,
                "response_format": {"type": "json_schema", "json_schema": {"schema": WRONG}},
            },
            "response_format",
            "cannot be",
        ),
        ({"messages": MESSAGES, "grammar": "root ::= ("}, "grammar", "cannot be"),
        (
            {"messages": MESSAGES, "grammar": "root ::= a", "response_format": {"type": "text"}},
            "grammar",
            "either",
        ),
    ],
)
def test_bad_requests_get_openai_errors(server: str, body: Any, param: str | None, what: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    got = httpx.post(f"{server}/v1/chat/completions", content=data, timeout=60)
    assert got.status_code == 400
    error = got.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param and what in error["message"]


def test_other_paths_and_sizes(server: str, client: openai.OpenAI) -> None:
    assert httpx.get(f"{server}/v1/nothing").status_code == 404
    assert "error" in httpx.get(f"{server}/v1/nothing").json()
    assert httpx.get(f"{server}/v1/chat/completions").status_code == 405
    assert httpx.get(f"{server}/health").json() == {"status": "ok"}
    model, _ = client.models.list().data  # and its second name
    assert client.models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    large = json.dumps({"messages": [{"role": "user", "content": "x" * (1 << 20)}]}).encode()
    assert httpx.post(f"{server}/v1/chat/completions", content=large).status_code == 413

    def pieces() -> Iterator[bytes]:  # chunked: its length is not told before
        for begin in range(0, len(large), 65536):
            yield large[begin : begin + 65536]

    with contextlib.suppress(httpx.WriteError, httpx.ReadError):
        assert httpx.post(f"{server}/v1/chat/completions", content=pieces()).status_code == 413


def test_web_pages_are_not_let_in(server: str) -> None:
    ask = {"messages": MESSAGES, "max_tokens": 4}
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Host": "evil.example:80"}):
        assert httpx.post(f"{server}/v1/chat/completions", json=ask, headers=headers).status_code == 403
    port = server.rpartition(":")[2]
    own = ("localhost", "LOCALHOST", "127.0.0.1", "127.0.0.2", "[::1]", "[0:0:0:0:0:0:0:1]")
    for host in (*(f"{name}:{port}" for name in own), "127.0.0.1"):
        got = httpx.post(f"{server}/v1/chat/completions", json=ask, headers={"Host": host}, timeout=60)
        assert got.status_code == 200


def test_invalid_http_gets_an_openai_error(server: str) -> None:
    port = int(server.rpartition(":")[2])
    for request in (b"nonsense\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(request)
            said = b""
            with contextlib.suppress(ConnectionError):
                while chunk := connection.recv(4096):
                    said += chunk
        head, _, body = said.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert httpx.get(f"{server}/health", headers=upgrade).json() == {"status": "ok"}


def test_odd_paths_do_not_add_to_the_metrics(server: str) -> None:
    for number in range(20):
        httpx.get(f"{server}/v1/{number}")
        httpx.get(f"{server}/health{number}", headers={"Host": "evil.example"})
    paths = set(
        re.findall(r'^edge_requests_total{path="([^"]*)"', httpx.get(f"{server}/metrics").text, re.MULTILINE)
    )
    assert "other" in paths
    assert paths <= {
        "other",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/health",
        "/metrics",
    }


def test_many_at_once_lose_nothing_and_do_not_mix(client: openai.OpenAI) -> None:
    def ask(number: int) -> tuple[int, str]:
        messages: Any = [{"role": "user", "content": f"Remove the file old{number}.log."}]
        got = client.chat.completions.create(
            model="m", messages=messages, max_tokens=64, stream=number % 2 == 0
        )  # type: ignore[call-overload]
        if number % 2 == 0:
            return number, "".join(chunk.choices[0].delta.content or "" for chunk in got if chunk.choices)
        return number, got.choices[0].message.content

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(40)))
    for number, text in answers:
        parse_action(text)
        assert f"old{number}.log" in text


def test_a_conversation_is_read_once(server: str, client: openai.OpenAI) -> None:
    text = "Here is a long list of files: " + ", ".join(f"file{i}.txt" for i in range(150))
    messages: list[Any] = [{"role": "user", "content": text}]
    sizes = []
    for _ in range(3):
        before = metric(server, "edge_prompt_tokens_decoded")
        got = client.chat.completions.create(model="m", messages=messages, max_tokens=48)
        assert got.usage is not None
        sizes.append((got.usage.prompt_tokens, metric(server, "edge_prompt_tokens_decoded") - before))
        messages += [
            {"role": "assistant", "content": got.choices[0].message.content},
            {"role": "user", "content": "New Terminal Output:\nuser@lab:/app$ "},
        ]
    assert sizes[0][0] > 500
    for prompt, decoded in sizes[1:]:
        assert decoded < prompt / 4


def test_what_is_kept_has_a_bound(tiny_q4: Path) -> None:
    long = ", ".join(f"file{i}.txt" for i in range(100))
    kept = []
    for mebibytes in (0, 2, 64):
        with serving(tiny_q4, "--cache-ram", mebibytes, "--parallel", "2") as server:
            with ThreadPoolExecutor(4) as pool:
                bodies = [{"prompt": f"{i}: {long}", "max_tokens": 4} for i in range(12)]
                for got in pool.map(
                    lambda body: httpx.post(f"{server}/v1/completions", json=body, timeout=60), bodies
                ):
                    assert got.status_code == 200
            kept.append(metric(server, "edge_cache_ram_bytes"))
    assert kept[0] == 0 < kept[1] <= 2 << 20 < kept[2] <= 64 << 20


def test_requests_that_do_not_arrive_are_ended(tiny_q4: Path) -> None:
    with serving(tiny_q4, "--receive-timeout", "1") as server:
        port = int(server.rpartition(":")[2])

        def send(*parts: bytes) -> bytes:
            """The server's answer to a request in parts, half a second apart, until it closes the connection."""
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                with contextlib.suppress(ConnectionError):
                    for part in parts:
                        connection.sendall(part)
                        time.sleep(0.5)
                said = b""
                with contextlib.suppress(ConnectionError):
                    while chunk := connection.recv(4096):
                        said += chunk
                return said

        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 29\r\n"
        assert send() == b""
        assert send(head) == b""
        assert send(head, *[b"X-A: b\r\n"] * 8) == b""  # a header now and then does not prolong it
        assert b" 408 " in send(head + b"\r\n", b"{")
        assert b" 200 " in send(
            head[:20], head[20:] + b"Connection: close\r\n\r\n" + b'{"prompt":"x","max_tokens":1}'
        )
        again = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert send(again, again[:9]).count(b"200 OK") == 1  # nor does an answered request before it


def test_a_client_that_disconnects_frees_its_place(tiny_q4: Path) -> None:
    with serving(tiny_q4, "--parallel", "1", "--queue", "1") as server:
        endless = {"prompt": "lo", "max_tokens": 8000, "stream": True, "ignore_eos": True}
        port = int(server.rpartition(":")[2])

        def begin() -> socket.socket:
            body = json.dumps(endless).encode()
            connection = socket.create_connection(("127.0.0.1", port))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            return connection

        first = begin()
        assert b"200 OK" in first.recv(1000)
        until(lambda: metric(server, "edge_requests_running") == 1)
        second = begin()
        until(lambda: metric(server, "edge_requests_waiting") == 1)
        full = httpx.post(f"{server}/v1/completions", json={"prompt": "x"})
        assert full.status_code == 429 and int(full.headers["Retry-After"]) >= 1
        assert full.json()["error"]["code"] == "queue_full"
        second.close()  # one that waits, streamed or not
        until(lambda: metric(server, "edge_requests_waiting") == 0)
        first.close()
        until(lambda: metric(server, "edge_requests_running") == 0)
        got = httpx.post(f"{server}/v1/completions", json={"prompt": "x", "max_tokens": 4}, timeout=60)
        assert got.status_code == 200
        assert metric(server, "edge_clients_gone_total") == 2


def test_slow_bodies_take_a_place_and_long_prompts_are_refused(tiny_q4: Path) -> None:
    """The number of places limits the memory for requests."""
    with serving(tiny_q4, "--parallel", "1", "--queue", "1") as server:
        port = int(server.rpartition(":")[2])
        ask: Any = {"messages": [{"role": "user", "content": "x " * (6 << 20)}], "max_tokens": 4}
        got = httpx.post(f"{server}/v1/chat/completions", json=ask, timeout=60)
        assert got.status_code == 400 and got.json()["error"]["code"] == "context_length_exceeded"
        assert "characters, so more tokens" in got.json()["error"]["message"]  # told without tokenizing it
        got = httpx.post(f"{server}/v1/completions", json={"prompt": "x " * (6 << 20)}, timeout=60)
        assert got.status_code == 400 and got.json()["error"]["param"] == "prompt"
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                connection.sendall(head + b"{")
            until(lambda: metric(server, "edge_requests_waiting") == 1)
            got = httpx.post(f"{server}/v1/completions", json={"prompt": "x", "max_tokens": 4})
            assert got.status_code == 429 and int(got.headers["Retry-After"]) > 0
        until(lambda: metric(server, "edge_requests_running") == 0)
        got = httpx.post(f"{server}/v1/completions", json={"prompt": "x", "max_tokens": 4}, timeout=60)
        assert got.status_code == 200


def test_a_client_that_goes_away_while_its_last_token_is_computed(tiny_q4: Path) -> None:
    async def run(runner: Runner) -> object:
        served = ServedModel(runner, 2, 8)
        after, prompt = served._next, runner.encode("lo")

        def hand_in() -> Ticket:
            ticket = served.enter()
            options: Any = {"max_tokens": 2, "sampling": Sampling(), "stop": [], "ignore_eos": True}
            served.hand_in(
                ticket,
                prompt,
                2,
                [],
                lambda emit: text_answer(runner.vocabulary, prompt, **options, emit=emit),
            )
            return ticket

        def goes_away(wait: bool) -> Any:  # after the engine has looked whether it has
            if not wait and not ticket.ended:
                ticket.cancel()
                served.leave(ticket)
            return after(wait)

        served._next = goes_away  # type: ignore[method-assign]
        ticket = hand_in()
        served.start()
        try:
            await asyncio.to_thread(until, lambda: ticket.ended)
            second = hand_in()
            while isinstance(event := (await asyncio.wait_for(second.events.get(), 60))[1], str):
                pass
            assert served.running == served.waiting == 0
            return event
        finally:
            served.stop()

    with Runner.open(tiny_q4, Loading(threads=1), ServingEngine) as runner:
        runner.engine.reserve(2048, 2)
        assert isinstance(asyncio.run(run(runner)), Answer)


def test_a_key_is_asked_for_where_there_is_one(tiny_q4: Path) -> None:
    with serving(tiny_q4, EDGE_API_KEY="sesame") as server:
        ask = {"messages": MESSAGES, "max_tokens": 4}
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic sesame"}):
            got = httpx.post(f"{server}/v1/chat/completions", json=ask, headers=headers)
            assert got.status_code == 401 and got.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server}/v1/models").status_code == 401
        assert httpx.get(f"{server}/health").status_code == 200
        with openai.OpenAI(base_url=f"{server}/v1", api_key="sesame", max_retries=0) as client:
            client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4)


@pytest.mark.parametrize(
    ("options", "key", "what"),
    [
        (["--host", "0.0.0.0"], b"", "set an API key in EDGE_API_KEY"),
        (["--host", "192.0.2.1", "--api-key-file", "key"], b"sesame\n", "choose another --port"),
        (["--api-key-file", "nowhere"], b"", "nowhere: cannot be read"),
        (["--api-key-file", "key"], b" \n", "key: a key is one line"),
        (["--api-key-file", "key"], b"open sesame", "key: a key is one line"),
        (["--api-key-file", "key"], b"\xff\xfe", "key: is not UTF-8 text"),
        (["--api-key-file", "."], b"", ".: cannot be read"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    tmp_path: Path, tiny_q4: Path, options: list[str], key: bytes, what: str
) -> None:
    (tmp_path / "key").write_bytes(key)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-c",
        "from edge.cli.main import main; main()",
        "serve",
        "--model",
        str(tiny_q4),
        *options,
    ]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and what in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith("note: model: ")]) == 1


def test_a_port_in_use_is_an_error(tiny_q4: Path, server: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    port = server.rpartition(":")[2]
    command = [
        sys.executable,
        "-c",
        "from edge.cli.main import main; main()",
        "serve",
        "--model",
        str(tiny_q4),
        "--port",
        port,
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "choose another --port" in done.stderr
