#!/usr/bin/env python3
"""Where the memory of `edge serve` goes: what edge reckons for each part, and what the process has (Linux).

python benchmarks/serve_memory.py MODEL.gguf [--prompts 4] [--parallel 4] [--context 8192] [--cache-ram 1024]

The script starts the server and sends prompts of about 2,300 tokens, one after the other. Each shares only its first
tokens with the others, so the server keeps each of them.

reckoned   the parts that edge knows: the file, `edge.llama.memory.buffers` for the cache and llama.cpp's buffers,
           `edge.llama.memory.OWN_BYTES` for Python, edge and its libraries, and the `edge_cache_ram_bytes` of /metrics
measured   resident memory of the mappings in /proc/PID/smaps: the model file, other files, and all else
"""

import argparse
import http.client
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from edge.llama.memory import OWN_BYTES, buffers, read_shape
from edge.system.tables import table

MIB = 1 << 20


def resident(pid: int, model: Path) -> dict[str, int]:
    """Resident bytes of a process: of the model file, of other mapped files, and of all other memory."""
    found, place = {"model": 0, "files": 0, "memory": 0}, "memory"
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)", line):
            name = mapping[1]
            place = "model" if name == str(model) else "files" if name.startswith("/") else "memory"
        elif line.startswith("Rss:"):
            found[place] += int(line.split()[1]) * 1024
    return found


class Client:
    """A client of one server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: object = None) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        if response.status != 200:
            raise SystemExit(f"{path}: {response.status} {text}")
        return text

    def kept(self) -> int:
        found = re.search(r"^edge_cache_ram_bytes ([0-9.e+]+)$", self.ask("GET", "/metrics"), re.MULTILINE)
        assert found
        return int(float(found[1]))

    def prompt(self, number: int) -> None:
        text = " ".join(f"word{number}x{place}" for place in range(400))
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
        self.ask("POST", "/v1/chat/completions", body)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=4, help="number of prompts to send")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--cache-ram", type=int, default=1024)
    args = parser.parse_args()
    model = args.model.resolve()
    words = ["--model", model, "--port", 0, "--no-state-cache", "--answers", "text"]
    words += ["--parallel", args.parallel, "--context", args.context, "--cache-ram", args.cache_ram]
    command = [sys.executable, "-m", "edge", "serve", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        log = ""
        while not (found := re.search(r"at http://127\.0\.0\.1:(\d+)/v1", log)):
            line = server.stderr.readline()
            if not line:
                raise SystemExit(log)
            log += line
        client = Client(int(found[1]))
        shape = read_shape(model)
        sizes = buffers(shape, args.context * args.parallel, sequences=args.parallel, apart=True)
        rows = []
        for sent in range(args.prompts + 1):
            if sent:
                client.prompt(sent)
                time.sleep(1)  # a prompt is kept after its answer ended
            parts = [
                model.stat().st_size,
                sizes.kv_cache + sizes.state,
                sizes.compute + sizes.output,
                OWN_BYTES,
                client.kept(),
            ]
            there = resident(server.pid, model)
            figures = [*parts, sum(parts), *there.values(), sum(there.values())]
            rows.append([str(sent), *(f"{figure / MIB:,.0f}" for figure in figures)])
        server.terminate()
    head = [
        "prompts",
        "file",
        "KV cache",
        "buffers",
        "edge",
        "kept",
        "sum",
        "model",
        "files",
        "memory",
        "sum",
    ]
    print(
        "MiB: five parts that edge reckons with their sum, then three that the process has with their sum\n"
    )
    print("\n".join(table(head, rows, right=range(11))))


if __name__ == "__main__":
    main()
