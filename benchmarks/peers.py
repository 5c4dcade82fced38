"""Run one peer of benchmarks/replay.py in a separate process: `python benchmarks/peers.py KIND JOB OUT`.

JOB and OUT are JSON files. A job has `model`, `prompts` (lists of token ids), `tasks` (one name for each prompt; the
steps of a task are in order), `max_tokens`, `threads` and further keys that its kind needs. The output of a peer has
`load_sec`, `wall_sec` (from the first prompt sent to the last answer received), `prompt_tokens_decoded`, `tokens_out`
and `texts`.

prepare  choose the rows: render and tokenize them as edge does, keep those that are short enough
python   llama-cpp-python's high-level API, one prompt after the other, with LlamaGrammar
server   llama-server, one client for each slot, the steps of a task on one slot in their order
floor    the time that llama.cpp needs for the rows' distinct tokens, and for one more token at the depth of each row
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

Job = dict[str, Any]

BATCH = 512  # tokens in one batch, llama.cpp's default
WRITTEN = 8  # tokens that the floor writes at each row's depth


def grammar() -> str:
    return resources.files("edge").joinpath("grammar.gbnf").read_text(encoding="utf-8")


def context_size(job: Job) -> int:
    """Tokens for the longest prompt and its answer, rounded up to a multiple of 256 as llama.cpp does."""
    longest: int = max(map(len, job["prompts"])) + job["max_tokens"]
    return -(-longest // 256) * 256


def prepare(job: Job) -> dict[str, Any]:
    """The first `rows` rows (0: all) of `replay` under `under` tokens that fit into the model's context.

    With `task_count`, only rows of that many first tasks. Returns the prompts' ids, the tasks' names, the number of
    each row in the file, and the number of distinct tokens.
    """
    from edge.formats.gguf import read_model_file
    from edge.llama.vocabulary import file_vocabulary
    from edge.prompt import prompt_source, render_prompt
    from edge.replay.rows import read_rows

    model = Path(job["model"])
    source = prompt_source(model)
    context = read_model_file(model).context_length
    prompts, tasks, numbers = [], [], []
    with file_vocabulary(model) as vocabulary:
        for number, row in enumerate(read_rows(job["replay"])):
            ids = vocabulary.encode(render_prompt(row.messages, source).text)
            task = f"{row.task_id} {row.sample_idx}"
            if len({*tasks, task}) > job.get("task_count", len(tasks) + 1):
                continue
            if len(ids) < job["under"] and len(ids) + job["max_tokens"] <= context:
                prompts.append(ids)
                tasks.append(task)
                numbers.append(number)
            if len(prompts) == job["rows"]:
                break
    distinct = sum(len(prompts[row]) - begin for row, begin, _ in reading_order(prompts))
    return {"prompts": prompts, "tasks": tasks, "numbers": numbers, "distinct": distinct}


def python(job: Job) -> dict[str, Any]:
    """llama-cpp-python with its defaults. Where the model can, it resumes from the prefix of the last prompt."""
    from llama_cpp import Llama, LlamaGrammar

    began = time.perf_counter()
    threads = job["threads"]
    model = Llama(
        job["model"], n_ctx=context_size(job), n_threads=threads, n_threads_batch=threads, verbose=False
    )
    rules = LlamaGrammar.from_string(grammar(), verbose=False)
    load_sec = time.perf_counter() - began

    evaluated: list[int] = []
    evaluate = model.eval

    def counting(tokens: Sequence[int]) -> None:
        evaluated.append(len(tokens))
        evaluate(tokens)

    model.eval = counting
    texts: list[str] = []
    decoded = written = 0
    began = time.perf_counter()
    for prompt in job["prompts"]:
        evaluated.clear()
        answer: Any = model.create_completion(
            prompt, max_tokens=job["max_tokens"], temperature=0, grammar=rules
        )
        decoded += evaluated[0]  # the new part of the prompt; the rest are the answer's tokens
        written += answer["usage"]["completion_tokens"]
        texts.append(answer["choices"][0]["text"])
    return {
        "load_sec": load_sec,
        "wall_sec": time.perf_counter() - began,
        "prompt_tokens_decoded": decoded,
        "tokens_out": written,
        "texts": texts,
    }


def server(job: Job) -> dict[str, Any]:
    """llama-server (`binary`) with `slots` slots and its prompt cache on. The longest row fits into each slot.

    Each slot has its own cache. This is llama-server's default if the number of slots is given. `options` are added
    to the command line and can change it.
    """
    slots = job["slots"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [job["binary"], "--model", job["model"], "--host", "127.0.0.1", "--port", str(port)]
    command += ["--ctx-size", str(slots * context_size(job)), "--parallel", str(slots), "--no-kv-unified"]
    command += ["--threads", str(job["threads"]), "--threads-batch", str(job["threads"]), "--offline"]
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen([*command, *job["options"]], stdout=log, stderr=subprocess.STDOUT)
        try:
            while not _healthy(port):
                if not _runs(process):
                    log.seek(0)
                    sys.exit(f"llama-server stopped unexpectedly:\n{log.read()[-2000:]}")
                time.sleep(0.05)
            load_sec = time.perf_counter() - began
            began = time.perf_counter()
            answers = _ask(job, port)
            wall_sec = time.perf_counter() - began
        finally:
            process.terminate()
            peak = peak_memory(process)
    return {
        "load_sec": load_sec,
        "wall_sec": wall_sec,
        "peak_bytes": peak,
        "prompt_tokens_decoded": sum(answer["timings"]["prompt_n"] for answer in answers),
        "tokens_out": sum(answer["tokens_predicted"] for answer in answers),
        "texts": [answer["content"] for answer in answers],
    }


def _runs(process: "subprocess.Popen[Any]") -> bool:
    """Whether a child process still runs. Does not reap it."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _healthy(port: int) -> bool:
    try:
        return _call(port, "GET", "/health")["status"] == "ok"
    except (OSError, http.client.HTTPException, RuntimeError):
        return False


def _call(port: int, method: str, path: str, body: object = None) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode("utf-8")
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"llama-server answered with status {response.status}: {text[:500]}")
    answer: dict[str, Any] = json.loads(text)
    return answer


def _ask(job: Job, port: int) -> list[dict[str, Any]]:
    """Send all rows, one thread for each slot. Tasks take the slots in turn, in the order of their first rows."""
    slot_of: dict[str, int] = {}
    for task in job["tasks"]:
        slot_of.setdefault(task, len(slot_of) % job["slots"])
    rules = grammar()
    answers: list[dict[str, Any]] = [{} for _ in job["prompts"]]
    failures: list[Exception] = []

    def client(slot: int) -> None:
        for i, (task, prompt) in enumerate(zip(job["tasks"], job["prompts"], strict=True)):
            if slot_of[task] != slot or failures:
                continue
            request = {
                "prompt": prompt,
                "id_slot": slot,
                "cache_prompt": True,
                "n_predict": job["max_tokens"],
                "temperature": 0,
                "grammar": rules,
            }
            try:
                answers[i] = _call(port, "POST", "/completion", request)
            except Exception as error:
                failures.append(error)

    clients = [threading.Thread(target=client, args=(slot,)) for slot in range(job["slots"])]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    if failures:
        raise failures[0]
    return answers


def peak_memory(process: "subprocess.Popen[Any]") -> int:
    """Wait for a process to end. Return its ru_maxrss in bytes, which includes mapped pages."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reading_order(prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, list[int]]]:
    """The order that reads every distinct token once: (row, where to resume, where to keep a branch).

    In sorted order a prompt shares most with the one before it, so reading resumes where the two part. A branch is
    kept at each depth to which a later row returns.
    """
    order = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
    shared = [0]
    for a, b in pairwise(order):
        pairs = zip(prompts[a], prompts[b], strict=False)
        shared.append(
            next((n for n, (x, y) in enumerate(pairs) if x != y), min(len(prompts[a]), len(prompts[b])))
        )
    for n, row in enumerate(order):
        branches, lowest = [], len(prompts[row])
        for depth in shared[n + 1 :]:
            lowest = min(lowest, depth)
            if lowest < max(1, shared[n]):
                break
            branches.append(lowest)
        yield row, shared[n], sorted({depth for depth in branches if depth < len(prompts[row])})


def floor(job: Job) -> dict[str, Any]:
    """Seconds to read the prefix tree, and seconds for one token written alone at the depth of each row.

    Uses batches of 512, one sequence at a time, `flash_attention` as given, and the logits of a batch's last token
    only. A hybrid cannot be rewound, so branches are copied sequences. The written tokens repeat the last tokens of
    the row: their value does not change the time. Copying and deleting sequences does not count.
    """
    import llama_cpp

    from edge.llama import library

    began = time.perf_counter()
    library.start()
    model = llama_cpp.llama_model_load_from_file(
        os.fsencode(job["model"]), llama_cpp.llama_model_default_params()
    )
    steps = list(reading_order(job["prompts"]))
    kept: list[int] = []
    most = 0
    for _, begin, branches in steps:
        kept = sorted({*(depth for depth in kept if depth <= begin), *branches})
        most = max(most, len(kept))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = context_size(job) + 256
    params.n_batch = params.n_ubatch = BATCH
    params.n_seq_max = most + 2
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = job["threads"]
    params.flash_attn_type = int(job["flash_attention"])
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        sys.exit(f"{job['model']}: llama.cpp cannot make a context: {library.last_error()}")
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
    load_sec = time.perf_counter() - began

    def decode(tokens: Sequence[int], position: int, sequence: int) -> float:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position + i, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, i == len(tokens) - 1
        began = time.perf_counter()
        if llama_cpp.llama_decode(context, batch):
            sys.exit(f"{job['model']}: llama.cpp failed: {library.last_error()}")
        llama_cpp.llama_synchronize(context)
        return time.perf_counter() - began

    live, answer = 0, 1
    free = list(range(2, most + 2))
    stack: list[tuple[int, int]] = []  # the branches kept: depth, sequence
    depth = read_tokens = 0
    read_sec = 0.0
    write_sec = [0.0] * len(steps)
    decode(job["prompts"][0][:BATCH], 0, live)  # warm-up
    llama_cpp.llama_memory_seq_rm(memory, live, -1, -1)
    began = time.perf_counter()
    for row, begin, branches in steps:
        prompt = job["prompts"][row]
        while stack and stack[-1][0] > begin:
            free.append(stack.pop()[1])
            llama_cpp.llama_memory_seq_rm(memory, free[-1], -1, -1)
        if begin < depth:
            llama_cpp.llama_memory_seq_rm(memory, live, -1, -1)
            if begin:
                llama_cpp.llama_memory_seq_cp(memory, stack[-1][1], live, -1, -1)
        depth = begin
        for stop in dict.fromkeys([*branches, len(prompt)]):
            while depth < stop:
                tokens = prompt[depth : min(depth + BATCH, stop)]
                read_sec += decode(tokens, depth, live)
                depth += len(tokens)
                read_tokens += len(tokens)
            if stop in branches and (not stack or stack[-1][0] < stop):
                stack.append((stop, free.pop()))
                llama_cpp.llama_memory_seq_cp(memory, live, stack[-1][1], -1, -1)
        llama_cpp.llama_memory_seq_cp(memory, live, answer, -1, -1)
        seconds = [decode([prompt[-1 - i]], depth + i, answer) for i in range(min(WRITTEN, len(prompt)))]
        write_sec[row] = sum(seconds) / len(seconds)
        llama_cpp.llama_memory_seq_rm(memory, answer, -1, -1)
    return {
        "load_sec": load_sec,
        "wall_sec": time.perf_counter() - began,
        "prompt_tokens_decoded": read_tokens,
        "read_sec": read_sec,
        "write_sec_per_token": write_sec,
    }


KINDS = {"prepare": prepare, "python": python, "server": server, "floor": floor}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    job = json.loads(args.job.read_text(encoding="utf-8"))
    args.out.write_text(json.dumps(KINDS[args.kind](job)), encoding="utf-8")


if __name__ == "__main__":
    main()
