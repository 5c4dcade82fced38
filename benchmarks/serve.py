r"""Compare `edge serve` and llama-server under load: the same GGUF and the same clients, one server after the other.

python benchmarks/serve.py --model SmolLM2-135M-Instruct.Q4_1.gguf --replay replay_terminal_dev.jsonl \
    --llama-server llama-server

Each client plays recorded tasks step by step, as an agent does. It sends the messages of a step, waits for the whole
streamed answer, and continues with the task's next step. A seed determines the tasks and their order, the same for both
servers. Both servers write actions: edge by default, llama-server with grammar.gbnf. With --tools, both get the same
three tools with tool_choice "required" instead.
A request is lost if no answer reaches its end. An answer is valid if its text is an action; with --tools, if it has
calls and all their arguments are valid.
"""

import argparse
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from edge.answer.action import parse_action
from edge.errors import GrammarError
from edge.llama.encode import encode_with
from edge.prompt import prompt_source, render_prompt
from edge.replay.rows import Row, read_rows

Task = list[Row]


def _tool(name: str, description: str, required: Sequence[str], **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


TOOLS = [
    _tool(
        "bash",
        "Run a shell command.",
        ["command"],
        command={"type": "string"},
        timeout={"type": "integer", "minimum": 1, "maximum": 600},
    ),
    _tool(
        "read_file",
        "Show lines of a file.",
        ["path"],
        path={"type": "string"},
        first={"type": "integer", "minimum": 1},
        lines={"type": "integer", "minimum": 1, "maximum": 2000},
    ),
    _tool("finish", "End the task.", ["success"], success={"type": "boolean"}, note={"type": "string"}),
]


@dataclass
class Load:
    """What the clients of one server measured."""

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    valid: int = 0
    tokens: int = 0
    lost: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)  # KiB, once a second
    wall: float = 0.0
    read: float = 0.0  # prompt tokens, counted by the server
    lock: threading.Lock = field(default_factory=threading.Lock)


def tasks_of(model: Path, replay: Path, under: int) -> list[Task]:
    """The tasks' steps whose prompts have fewer than `under` tokens."""
    source = prompt_source(model)
    tasks: dict[str, Task] = {}
    for row in read_rows(replay):
        if len(encode_with(model, render_prompt(row.messages, source).text)) < under:
            tasks.setdefault(f"{row.task_id} {row.sample_idx}", []).append(row)
    return list(tasks.values())


def ask(port: int, body: dict[str, Any], load: Load) -> None:
    """Send one streamed request and add its outcome to `load`."""
    began = time.perf_counter()
    first = None
    text = ""
    calls: dict[int, list[str]] = {}  # the name and the arguments of each
    tokens = 0
    ended = False
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"status {response.status}: {response.read()[:200]!r}")
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                ended = True
                break
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise OSError(str(chunk["error"]))
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                part = choice["delta"].get("content") or ""
                pieces = choice["delta"].get("tool_calls") or []
                if (part or pieces) and first is None:
                    first = time.perf_counter() - began
                text += part
                for piece in pieces:
                    call = calls.setdefault(piece["index"], ["", ""])
                    call[0] += piece["function"].get("name") or ""
                    call[1] += piece["function"].get("arguments") or ""
        connection.close()
        if not ended:
            raise OSError("the stream ended early")
    except (OSError, ValueError, http.client.HTTPException) as error:
        with load.lock:
            load.lost.append(f"{type(error).__name__}: {error}")
        return
    valid = are_valid(list(calls.values())) if "tools" in body else is_action(text)
    with load.lock:
        load.seconds.append(time.perf_counter() - began)
        load.first.append(first if first is not None else load.seconds[-1])
        load.valid += valid
        load.tokens += tokens


def is_action(text: str) -> bool:
    try:
        parse_action(text)
    except GrammarError:
        return False
    return True


def are_valid(calls: Sequence[Sequence[str]]) -> bool:
    """Whether there are calls, and each has a tool's name and arguments that are valid for its schema."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    try:
        for name, arguments in calls:
            Draft202012Validator(schemas[name]).validate(json.loads(arguments))
    except (KeyError, ValueError, ValidationError):
        return False
    return bool(calls)


def client(
    port: int, tasks: Sequence[Task], seed: int, extra: dict[str, Any], end: float, load: Load
) -> None:
    """Play tasks until the time is over, then wait for the current request."""
    draw = random.Random(seed)
    while time.monotonic() < end:
        for row in draw.choice(tasks):
            if time.monotonic() >= end:
                return
            ask(port, {"model": "any", "messages": row.messages, "stream": True, **extra}, load)


def resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def run(
    name: str, command: list[str], port: int, tasks: Sequence[Task], extra: dict[str, Any], options: Any
) -> Load:
    """Start a server, put it under load, stop it."""
    load = Load()
    with (
        open(os.devnull, "w") as nowhere,
        subprocess.Popen(command, stdout=nowhere, stderr=nowhere) as process,
    ):
        try:
            until = time.monotonic() + 120
            while not healthy(port):
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"{name} does not start: {' '.join(command)}")
                time.sleep(0.1)
            began = time.monotonic()
            end = began + 60 * options.minutes
            clients = [
                threading.Thread(target=client, args=(port, tasks, number, extra, end, load))
                for number in range(options.clients)
            ]
            for one in clients:
                one.start()
            while any(one.is_alive() for one in clients):
                time.sleep(1)
                load.resident.append(resident(process.pid))
            load.wall = time.monotonic() - began
            load.read = counted(port)
            if process.poll() is not None:
                load.lost.append("the server stopped unexpectedly")
        finally:
            process.terminate()
            process.wait()
    return load


def healthy(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def counted(port: int) -> float:
    """The server's count of the prompt tokens that it has read, without those from its cache."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    found = re.search(
        r"^(?:edge_prompt_tokens_decoded|llamacpp:prompt_tokens_total) (\S+)$", text, re.MULTILINE
    )
    return float(found[1]) if found else float("nan")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] if ordered else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--replay", type=Path, required=True)
    parser.add_argument("--llama-server", help="llama-server binary; without it only edge runs")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--under", type=int, default=2000, help="use only steps with fewer prompt tokens")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cache-ram", type=int, default=1024, help="size in MiB of the prompt cache of each server"
    )
    parser.add_argument("--tools", action="store_true", help="give tools, and require a call of them")
    options = parser.parse_args()

    tasks = tasks_of(options.model, options.replay, options.under)
    room = (
        options.under + options.max_tokens + (1024 if options.tools else 0)
    )  # the prompt also shows the tools
    context = -(-room // 256) * 256
    extra: dict[str, Any] = {
        "max_tokens": options.max_tokens,
        "temperature": 0,
        "stream_options": {"include_usage": True},
    }
    if options.tools:
        extra |= {"tools": TOOLS, "tool_choice": "required"}
    print(
        f"{len(tasks)} tasks, {sum(map(len, tasks))} steps; {options.clients} clients, {options.slots} slots"
    )
    loads: dict[str, Load] = {}
    port = free_port()
    edge = [
        sys.executable,
        "-c",
        "from edge.cli.main import main; main()",
        "serve",
        "--model",
        str(options.model),
    ]
    edge += ["--port", str(port), "--parallel", str(options.slots), "--context", str(context)]
    edge += ["--threads", str(options.threads), "--queue", str(options.clients)]
    edge += ["--cache-ram", str(options.cache_ram), "--no-state-cache"]
    loads["edge serve"] = run("edge serve", edge, port, tasks, extra, options)
    if options.llama_server:
        port = free_port()
        peer = [
            options.llama_server,
            "--model",
            str(options.model),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        peer += [
            "--ctx-size",
            str(context * options.slots),
            "--parallel",
            str(options.slots),
            "--cache-ram",
            str(options.cache_ram),
            "--metrics",
            "--offline",
            "--jinja",
        ]
        peer += ["--threads", str(options.threads), "--threads-batch", str(options.threads)]
        if not options.tools:
            extra["grammar"] = resources.files("edge").joinpath("grammar.gbnf").read_text(encoding="utf-8")
        loads["llama-server"] = run("llama-server", peer, port, tasks, extra, options)

    print(
        f"| server | answers | lost | valid {'calls' if options.tools else 'actions'} | p50 s | p95 s "
        "| first text p50 s | p95 s | tokens/s "
        "| prompt tokens read an answer "
        "| MiB by fifths of the time |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, load in loads.items():
        size = max(1, len(load.resident) // 5)
        fifths = [max(load.resident[size * i : size * (i + 1)] or [0]) >> 10 for i in range(5)]
        print(
            f"| {name} | {len(load.seconds)} | {len(load.lost)} | {load.valid} "
            f"| {quantile(load.seconds, 0.5):.2f} | {quantile(load.seconds, 0.95):.2f} "
            f"| {quantile(load.first, 0.5):.2f} | {quantile(load.first, 0.95):.2f} | {load.tokens / load.wall:.1f} "
            f"| {load.read / max(1, len(load.seconds)):.0f} | {' '.join(map(str, fifths))} |"
        )
    for name, load in loads.items():
        for what in sorted(set(load.lost)):
            print(f"lost by {name}: {what}")


if __name__ == "__main__":
    main()
