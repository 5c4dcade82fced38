"""What clients of other servers send: several answers, log probabilities, begun answers, lists of prompts, paths.

.venv/bin/pytest tests/serve/test_doors.py
"""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import serving

from edge.answer.sampling import Sampler, Sampling
from edge.answer.scores import score
from edge.llama.loading import Loading
from edge.llama.serving import ServingEngine
from edge.runner import Runner
from edge.serve.app import make_app
from edge.serve.model import ServedModel
from edge.serve.names import ServedNames
from edge.serve.state import Server

pytestmark = pytest.mark.slow

MESSAGES: Any = [{"role": "user", "content": "Remove the file old.log."}]
PAGE = "http://localhost:3000"


@pytest.fixture(scope="module")
def server(tiny_q4: Path) -> Iterator[str]:
    with serving(tiny_q4, "--answers", "text", "--cors-origin", PAGE) as address:
        yield address


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def post(server: str, path: str, **fields: Any) -> Any:
    got = httpx.post(f"{server}{path}", json=fields, timeout=120)
    assert got.status_code == 200, got.text
    return got.json()


def test_max_tokens_above_the_room_is_clamped(server: str, client: openai.OpenAI) -> None:
    one: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    for most in (10**9, -1):
        got = client.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=most, response_format=one
        )
        assert json.loads(got.choices[0].message.content or "") in ("yes", "no")
    ids = post(server, "/tokenize", content="a b c ")["tokens"]
    prompt = (ids * 8192)[:8190]
    assert post(server, "/v1/completions", prompt=prompt, max_tokens=999, ignore_eos=True)["usage"] == {
        "prompt_tokens": 8190,
        "completion_tokens": 2,
        "total_tokens": 8192,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_stop_is_set_aside_under_a_guarantee(server: str) -> None:
    ask = {"messages": MESSAGES, "max_tokens": 40, "guided_choice": ["stop it"], "stop": ["it"]}
    got = post(server, "/v1/chat/completions", **ask)
    assert got["choices"][0]["message"]["content"] == "stop it"
    assert len(got["edge_warnings"]) == 1 and got["edge_warnings"][0].startswith("stop ")
    events = httpx.post(f"{server}/v1/chat/completions", json={**ask, "stream": True}, timeout=60).text
    assert '"edge_warnings": ["stop ' in events
    assert "edge_warnings" not in post(server, "/v1/chat/completions", messages=MESSAGES, stop=["x"])


def test_several_answers(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    ask: Any = {"model": "m", "messages": MESSAGES, "max_tokens": 12, "n": 3}
    got = create(**ask, temperature=2, seed=5)
    assert [choice.index for choice in got.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in got.choices]
    alone = [
        create(**{**ask, "n": 1}, temperature=2, seed=5 + i).choices[0].message.content for i in range(3)
    ]
    assert len(set(texts)) > 1 and len(alone) == 3
    assert got.usage.prompt_tokens == create(**{**ask, "n": 1}).usage.prompt_tokens
    assert got.usage.completion_tokens > 12
    parts = {0: "", 1: "", 2: ""}
    for chunk in create(**ask, stream=True):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert set(parts.values()) == {create(**{**ask, "n": 1}).choices[0].message.content}
    client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=2, seed=-1, temperature=1)


def test_lists_of_prompts(server: str, client: openai.OpenAI) -> None:
    def texts(prompt: Any, **more: Any) -> list[str]:
        got = client.completions.create(model="m", prompt=prompt, max_tokens=6, **more)
        assert [choice.index for choice in got.choices] == list(range(len(got.choices)))
        return [choice.text for choice in got.choices]

    ids = post(server, "/tokenize", prompt="rm old")["tokens"]
    one, two = texts("rm old"), texts("ls -la")
    assert texts(["rm old", "ls -la"]) == one + two
    assert texts(ids) == texts([ids]) == one
    assert texts([ids, ids]) == texts(["rm old"], n=2) == one * 2
    assert texts([ids, "ls -la"]) == one + two
    stream = client.completions.create(model="m", prompt=["rm old", "ls -la"], max_tokens=6, stream=True)
    found = {0: "", 1: ""}
    for chunk in stream:
        for choice in chunk.choices:
            found[choice.index] += choice.text
    assert list(found.values()) == one + two


@pytest.mark.parametrize(
    "prompt", [[], [[]], "", [""], [1, "a"], [1, None], [[1], 2], [[1.5]], [True], {}, [{}]]
)
def test_other_prompts_are_refused(server: str, prompt: Any) -> None:
    got = httpx.post(f"{server}/v1/completions", json={"prompt": prompt})
    assert got.status_code == 400 and got.json()["error"]["param"] == "prompt"


def test_log_probabilities(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    ask: Any = {"model": "m", "messages": MESSAGES, "max_tokens": 9, "logprobs": True, "top_logprobs": 3}
    got = create(**ask).choices[0]
    scores = got.logprobs.content
    assert "".join(one.token for one in scores) == got.message.content and len(scores) == 9
    for one in scores:
        assert one.logprob <= 0 and len(one.top_logprobs) == 3
        assert one.top_logprobs[0].token == one.token  # greedy
        assert bytes(one.bytes).decode() == one.token
    streamed = [
        one
        for chunk in create(**ask, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert [one.token for one in streamed] == [one.token for one in scores]
    text = client.completions.create(model="m", prompt="rm old", max_tokens=5, logprobs=2).choices[0]
    assert text.logprobs is not None and text.logprobs.tokens is not None
    assert "".join(text.logprobs.tokens) == text.text and text.logprobs.text_offset == [
        sum(map(len, text.logprobs.tokens[:at])) for at in range(5)
    ]


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40), st.integers(0, 39), st.integers(0, 5))
def test_scores_are_log_softmax(values: list[float], token: int, best: int) -> None:
    logits = np.array(values, np.float32)
    found = score(logits, token % len(values), best)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    assert found.logprob == pytest.approx(exact[token % len(values)], abs=1e-9)
    assert [one[1] for one in found.best] == pytest.approx(sorted(exact, reverse=True)[:best])


def test_penalties_are_those_of_openai() -> None:
    """logit - count * frequency_penalty - (count > 0) * presence_penalty, over the tokens of the answer."""
    logits = np.array([5.0, 4.0, 3.0], np.float32)
    for sampling, times, best in (
        (Sampling(presence_penalty=1.5), 1, 1),
        (Sampling(presence_penalty=0.5), 9, 0),
        (Sampling(frequency_penalty=0.6), 1, 0),
        (Sampling(frequency_penalty=0.6), 2, 1),
        (Sampling(frequency_penalty=-2.0), 5, 0),
    ):
        sampler = Sampler(sampling, [0, 1, 2])
        for _ in range(times):
            sampler.saw(0)
        assert sampler.pick(logits) == best
    assert logits.tolist() == [5, 4, 3]


def test_an_answer_that_the_client_began_goes_on(server: str) -> None:
    def answer(*messages: dict[str, str], **more: Any) -> str:
        got = post(server, "/v1/chat/completions", messages=[*MESSAGES, *messages], max_tokens=20, **more)
        return str(got["choices"][0]["message"]["content"])

    whole = answer()
    begun = {"role": "assistant", "content": '{"analysis":'}  # whole tokens
    assert whole.startswith(begun["content"] + answer(begun)[:9])
    assert answer(begun, continue_final_message=True, add_generation_prompt=False) == answer(begun)
    assert answer(begun, continue_final_message=False) != answer(begun)
    for more, name in (
        ({"response_format": {"type": "json_object"}}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
    ):
        ask = {"messages": [*MESSAGES, begun], "continue_final_message": name[0] == "c", **more}
        got = httpx.post(f"{server}/v1/chat/completions", json=ask)
        assert got.status_code == 400 and got.json()["error"]["param"] == name


def test_cached_tokens_are_told(client: openai.OpenAI) -> None:
    words = "Here are many files: " + ", ".join(f"data{i}.csv" for i in range(60))
    ask: Any = {"model": "m", "messages": [{"role": "user", "content": words}], "max_tokens": 4}
    first, second = (client.chat.completions.create(**ask).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens < 100
    assert second.prompt_tokens_details.cached_tokens >= second.prompt_tokens - 1
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    assert list(stream)[-1].usage.prompt_tokens_details.cached_tokens > 100


def test_paths_without_v1_tokens_and_embeddings(server: str) -> None:
    assert post(server, "/chat/completions", messages=MESSAGES, max_tokens=2)["object"] == "chat.completion"
    assert post(server, "/completions", prompt="a", max_tokens=2)["object"] == "text_completion"
    assert httpx.get(f"{server}/models").json() == httpx.get(f"{server}/v1/models").json()
    for path in ("/embeddings", "/v1/embeddings"):
        got = httpx.post(f"{server}{path}", json={"input": "a"})
        assert got.status_code == 400 and "embeddings" in got.json()["error"]["message"]
    text = "naïve <|im_start|> ok"
    ids = post(server, "/v1/tokenize", prompt=text)["tokens"]
    assert post(server, "/detokenize", tokens=ids) == {"prompt": text, "content": text}
    pieces = post(server, "/tokenize", content=text, with_pieces=True)["tokens"]
    assert [one["id"] for one in pieces] == ids and pieces[0]["piece"]
    chat = post(server, "/tokenize", messages=MESSAGES, return_token_strs=True)
    usage = post(server, "/v1/chat/completions", messages=MESSAGES, max_tokens=1)["usage"]
    assert chat["count"] == usage["prompt_tokens"] and len(chat["token_strs"]) == chat["count"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": 1},
        {"prompt": "a", "content": "b"},
        {"messages": []},
        {"content": "a", "with_pieces": 1},
    ],
)
def test_tokenize_refuses_by_name(server: str, body: Any) -> None:
    got = httpx.post(f"{server}/tokenize", json=body)
    assert got.status_code == 400 and got.json()["error"]["param"]
    for tokens in (None, ["a"], [-1], [1 << 40], [True]):
        got = httpx.post(f"{server}/detokenize", json={"tokens": tokens})
        assert got.status_code == 400 and got.json()["error"]["param"] == "tokens"


def test_options_and_origins(server: str) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}

    def cors(headers: httpx.Headers) -> list[str]:
        return [name for name in headers if name.startswith("access-control-")]

    for origin in ("http://evil.example", "null", f"{PAGE}.evil.example", server, "http://localhost:3001"):
        got = httpx.options(f"{server}/v1/chat/completions", headers={"Origin": origin, **preflight})
        assert got.status_code == 204 and not cors(got.headers), origin
    got = httpx.options(f"{server}/v1/chat/completions", headers={"Origin": PAGE, **preflight})
    assert got.status_code == 204 and got.headers["access-control-allow-origin"] == PAGE
    assert httpx.options(f"{server}/", headers={"Host": "evil.example"}).status_code == 403
    port = server.rpartition(":")[2]
    foreign = ("http://evil.example", "null", "http://127.0.0.1", f"https://127.0.0.1:{port}", f"{server}0")
    for origin in (*foreign, f"http://127.0.0.2:{port}", f"http://localhost:{port}", f"{server}/"):
        got = httpx.get(f"{server}/v1/models", headers={"Origin": origin})
        assert got.status_code == 403 and not cors(got.headers), origin
    got = httpx.get(f"{server}/v1/models", headers={"Origin": server})
    assert got.status_code == 200 and not cors(got.headers)
    both = {"Origin": f"http://evil.example:{port}", "Host": f"evil.example:{port}"}
    assert httpx.get(f"{server}/v1/models", headers=both).status_code == 403
    got = httpx.get(f"{server}/v1/nothing", headers={"Origin": PAGE})
    assert got.status_code == 404 and got.headers["access-control-allow-origin"] == PAGE


def test_a_client_that_goes_away_in_its_prompt_frees_its_place(tiny_q4: Path) -> None:
    with serving(tiny_q4, "--parallel", "1", "--queue", "0", "--context", 8192, "--batch", 32) as server:
        ids = post(server, "/tokenize", content="one two three ")["tokens"]
        body = json.dumps({"prompt": (ids * 8000)[:8000], "max_tokens": 4, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", int(server.rpartition(":")[2]))) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            assert b" 200 " in connection.recv(1000)
        end = time.monotonic() + 60
        while (got := httpx.post(f"{server}/v1/completions", json={"prompt": "x", "max_tokens": 2})) and (
            got.status_code == 429
        ):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert got.status_code == 200
        text = httpx.get(f"{server}/metrics").text
        read = next(line for line in text.splitlines() if line.startswith("edge_prompt_tokens_decoded "))
        assert float(read.split()[1]) < 7000


def test_a_long_prompt_is_not_silent(tiny_q4: Path) -> None:
    """While nothing is written a comment comes, and only after all that can be refused was checked."""

    async def run(runner: Runner, body: dict[str, Any]) -> list[bytes]:
        model = ServedModel(runner, 2, 8)
        server = Server(model, ServedNames("m", {}), 512, 64, 1 << 20, 30, None, silence=0.05)
        sent: list[bytes] = []
        asked = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if asked.is_set():
                await asyncio.sleep(3600)
            asked.set()
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))
            if sent.count(b": the model still works\n\n") == 3 and model.running:
                threaded.set()

        threaded = asyncio.Event()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [],
            "query_string": b"",
        }
        answer = asyncio.create_task(make_app(server)(scope, receive, send))  # type: ignore[arg-type]
        waiting = asyncio.create_task(threaded.wait())
        await asyncio.wait({answer, waiting}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        model.start()
        try:
            await asyncio.wait_for(answer, 60)
        finally:
            waiting.cancel()
            model.stop()
        return sent

    with Runner.open(tiny_q4, Loading(threads=1), ServingEngine) as runner:
        runner.engine.reserve(2048, 2)
        sent = asyncio.run(run(runner, {"messages": MESSAGES, "stream": True, "max_tokens": 8}))
        assert sent.count(b": the model still works\n\n") >= 3
        assert sent[-2] == b"data: [DONE]\n\n"
        refused = asyncio.run(run(runner, {"messages": MESSAGES, "stream": True, "grammar": "root ::= ("}))
        assert b"invalid_request_error" in refused[1] and not any(one.startswith(b":") for one in refused)
