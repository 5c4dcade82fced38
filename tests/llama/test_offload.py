"""Layers on a device, beside the CPU: llama.cpp's RPC backend is an offload device that needs no GPU.

pytest tests/llama/test_offload.py

With EDGE_TEST_DEVICE=1 in the environment, the first half runs on the GPU of this machine (scripts/gpu_check.sh).
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command_line
import conftest
import httpx
import pytest
import rpc_server
from llama_cpp_sources import SDIST
from make_adapter import make_adapter
from rpc_server import RpcServer, serving_device
from served import serving

from edge.convert import convert_adapter
from edge.formats.imatrix import read_imatrix
from edge.system.tuned import read_tuned

pytestmark = pytest.mark.slow
ROWS = conftest.ROOT / "models" / "tiny-terminal" / "eval.jsonl"
TASK = "Inspect the current directory and list Python files."
SANDBOX = shutil.which("bwrap") and shutil.which("tmux")
OWN = bool(os.environ.get("EDGE_TEST_DEVICE"))
HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": ""} if OWN else {}


@dataclass(frozen=True)
class Device:
    """Where layers go in these tests: to an RPC server, or to the GPU of this machine."""

    name: str
    words: tuple[str, ...]
    environment: dict[str, str]

    def edge(self, *words: object, **options: Any) -> "subprocess.CompletedProcess[str]":
        """What a command of edge wrote that computes on the device."""
        return command_line.run(*words, *self.words, env=self.environment, **options)


@pytest.fixture(scope="session")
def backend() -> Path:
    """llama.cpp's RPC backend as a library."""
    if why := rpc_server.missing():
        pytest.skip(why)
    sources = [Path(rpc_server.__file__), rpc_server.DEVICE, SDIST]
    return conftest.keyed("libggml-rpc.so", sources, rpc_server.compile_backend)


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if OWN:
        from edge.llama.devices import devices, offload_devices

        found = offload_devices(devices())
        assert found, "EDGE_TEST_DEVICE is set, and llama.cpp finds no GPU"
        yield Device(found[0].name, (), dict(os.environ))
        return
    with serving_device(request.getfixturevalue("backend")) as server:
        yield on(server)


def on(server: RpcServer) -> Device:
    return Device("RPC0", ("--rpc", server.endpoint), server.environment)


def on_cpu(*words: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """What a command of edge wrote that computes on the CPU, also where llama.cpp finds a GPU."""
    return command_line.run(*words, env={**os.environ, **HIDDEN}, **options)


def alike(here: list[str], there: list[str]) -> bool:
    """The same answers to the letter; on a GPU, whose products are rounded in another way, half of them."""
    same = sum(a == b for a, b in zip(here, there, strict=True))
    return same == len(here) if not OWN else 2 * same >= len(here)


def evaluation(model: Path, out: Path) -> tuple[object, ...]:
    """The words of `edge eval` that all runs share."""
    words = ("eval", "--model", model, "--replay", ROWS, "--out", out)
    return (*words, "--max-tokens", "64", "--threads", "1")


def evaluated(device: Device | None, model: Path, out: Path, *words: object) -> dict[str, Any]:
    """The result of `edge eval` of eight rows on the device, or on the CPU; what it said on stderr beside it."""
    chosen = (*evaluation(model, out), "--limit", "8", *words)
    done = on_cpu(*chosen) if device is None else device.edge(*chosen)
    assert done.returncode == 0, done.stderr
    return {**json.loads(out.read_text()), "stderr": done.stderr}


def answers(result: dict[str, Any]) -> list[str]:
    return [step["pred_text"] for step in result["per_step"]]


def rows_of(folder: Path, count: int) -> Path:
    """A file with the first embedded rows."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(ROWS.read_text().splitlines(keepends=True)[:count]))
    return rows


def test_run_answers_as_the_cpu(device: Device, tiny_q4: Path) -> None:
    words = ("run", "--model", tiny_q4, "--max-tokens", "64", "--threads", "1", TASK)
    here, there = on_cpu(*words), device.edge(*words)
    assert json.loads(there.stdout) and (OWN or here.stdout == there.stdout)
    assert f"placement: {device.name} (7 of 7 layers)" in there.stderr
    assert ("fragile and insecure" in there.stderr) == bool(device.words)


@pytest.mark.parametrize(
    "words",
    [("--parallel", "1"), ("--parallel", "8"), ("--parallel", "8", "--kv-type", "q8_0")],
    ids=" ".join,
)
def test_eval_answers_as_the_cpu(
    device: Device, tiny_q4: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """One answer at a time, eight, and a quantized cache: the same answers, so the same score."""
    here = evaluated(None, tiny_q4, tmp_path / "cpu.json", *words)
    there = evaluated(device, tiny_q4, tmp_path / "device.json", *words)
    assert alike(answers(here), answers(there))
    assert OWN or here["aggregate"] == there["aggregate"]
    assert (here["gpu"], there["gpu"]) == ("cpu", f"{device.name} (7 of 7 layers)")
    assert here["engine"]["prompt_tokens_decoded"] == there["engine"]["prompt_tokens_decoded"]


def test_some_layers_on_the_device(device: Device, tiny_q4: Path, tmp_path: Path) -> None:
    """Without flash attention on both sides: it changes answers, and a device has it by default."""
    here = evaluated(None, tiny_q4, tmp_path / "cpu.json", "--no-flash-attention")
    there = evaluated(device, tiny_q4, tmp_path / "device.json", "--no-flash-attention", "--gpu-layers", "3")
    assert there["gpu"] == f"{device.name} (3 of 7 layers)"
    assert alike(answers(here), answers(there))


def test_a_conversation_continues_and_rewinds(device: Device, tiny_q4: Path) -> None:
    """The second message continues from the first answer; after /clear the third goes back to the beginning."""
    typed = "Show the size of /var/log.\nNow count its files.\n/clear\nShow the size of /var/log.\n"
    words = ("chat", "--model", tiny_q4, "--max-tokens", "48", "--threads", "1", "--commands")
    here, there = on_cpu(*words, input=typed), device.edge(*words, input=typed)
    assert here.returncode == there.returncode == 0, there.stderr
    assert OWN or here.stdout == there.stdout
    assert there.stdout.count('"analysis"') == 3


def test_a_server_answers_as_the_cpu(device: Device, tiny_q4: Path) -> None:
    messages = [{"role": "user", "content": TASK}]

    def talk(address: str) -> list[str]:
        said = list(messages)
        for request in ("", "Now show their sizes."):
            said += [{"role": "user", "content": request}] if request else []
            body = {"messages": said, "max_tokens": 48, "temperature": 0}
            reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120).json()
            said.append(reply["choices"][0]["message"])
        return [one["content"] for one in said]

    with serving(tiny_q4, **HIDDEN) as here:
        expected = talk(here)
    with serving(tiny_q4, *device.words, **device.environment) as there:
        assert alike(expected, talk(there))


def test_predictions_are_those_of_the_cpu(device: Device, tiny_q4: Path, tmp_path: Path) -> None:
    """The distributions on the device beside those on the CPU, of the same file."""
    words = ("measure", "--model", tiny_q4, "--replay", ROWS, "--limit", "4", "--threads", "1", "--quiet")
    cpu, both = tmp_path / "cpu.json", tmp_path / "device.json"
    done = on_cpu(*words, "--out", cpu, "--base", tiny_q4, "--keep-base")
    assert done.returncode == 0, done.stderr
    done = device.edge(*words, "--out", both, "--base", f"{cpu}.base-scores")
    assert done.returncode == 0, done.stderr
    figures = json.loads(both.read_text())["aggregate"]
    assert 0 <= figures["kl_mean"] < 1e-3
    assert figures["top1_agreement_pct"] > 99
    assert figures["nll"] == pytest.approx(figures["base_nll"], abs=0.01)


def test_an_importance_matrix_is_that_of_the_cpu(device: Device, tiny_q4: Path, tmp_path: Path) -> None:
    words = ("imatrix", "--model", tiny_q4, "--replay", rows_of(tmp_path, 4), "--threads", "1", "--quiet")
    done = (
        on_cpu(*words, "--out", tmp_path / "cpu.gguf", "--gpu-layers", "0"),
        device.edge(*words, "--out", tmp_path / "device.gguf"),
    )
    assert [one.returncode for one in done] == [0, 0], done
    here, there = (read_imatrix(tmp_path / f"{name}.gguf").entries for name in ("cpu", "device"))
    assert here.keys() == there.keys() and len(here) > 20
    for name, sums in here.items():
        # A GPU rounds in another way, so that a token can go to another expert.
        total, other = float(sums.in_sum2.sum()), float(there[name].in_sum2.sum())
        assert other == pytest.approx(total, rel=0.1 if OWN else 1e-3), name


def test_a_sweep_uses_the_device(device: Device, tiny_folder: Path, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 2)
    words = ("sweep", tiny_folder, "--quants", "Q4_0", "--replay", rows, "--calibrate", rows, "--same-rows")
    done = device.edge(
        *words, "--out", tmp_path / "s", "--max-tokens", "32", "--threads", "1", "--quiet", timeout=600
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "s").glob("*.json")]
    assert [one["gpu"] for one in results if "gpu" in one] == [f"{device.name} (7 of 7 layers)"] * 2
    assert [one["aggregate"]["kl_mean"] > 0 for one in results if "measurement" in one] == [True]


@pytest.mark.skipif(not SANDBOX, reason="bubblewrap or tmux is not installed")
def test_an_agent_and_a_trial_answer_as_on_the_cpu(device: Device, tiny_q4: Path, tmp_path: Path) -> None:
    found = {}
    for name, edge in (("cpu", on_cpu), ("device", device.edge)):
        folder = tmp_path / name / "work"
        folder.mkdir(parents=True)
        record = tmp_path / name / "session.jsonl"
        words = ("agent", TASK, "--workdir", folder, "--record", record, "--sandbox", "--yes")
        limits = ("--max-steps", "2", "--max-tokens", "96", "--threads", "1")
        edge(*words, "--model", tiny_q4, *limits)
        said = [json.loads(line)["ref_raw"] for line in record.read_text().splitlines()]
        done = edge(
            "trial", "--task", "make-folder-1", "--model", tiny_q4, *limits, "--out", tmp_path / name / "t"
        )
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / name / "t" / f"{tiny_q4.stem}.json").read_text())
        found[name] = said, [(one["state"], one["steps"], one["screens"]) for one in result["trials"]]
    assert len(found["cpu"][0]) == 2 and len(found["cpu"][1]) == 1
    assert OWN or found["cpu"] == found["device"]


def test_tuning_measures_the_device(device: Device, tiny_q4: Path) -> None:
    done = device.edge("tune", tiny_q4, "--rounds", "2", timeout=600)
    assert done.returncode == 0, done.stderr
    entry = next(
        one
        for one in read_tuned()
        if any(name.startswith(f"{device.name}:") for name in one["machine"]["devices"])
    )
    assert {row["value"] for row in entry["measured"] if row["option"] == "gpu_layers"} >= {"0"}


def test_an_adapter_changes_the_answers_on_the_device(
    device: Device, tiny_folder: Path, tiny_q4: Path, tmp_path: Path
) -> None:
    made = make_adapter(tiny_folder, tmp_path / "adapter", size=1.0)
    lora = convert_adapter(made, tiny_folder, out=tmp_path / "adapter.gguf").path
    plain = evaluated(device, tiny_q4, tmp_path / "plain.json", "--limit", "4")
    here = evaluated(None, tiny_q4, tmp_path / "cpu.json", "--lora", lora, "--limit", "4")
    there = evaluated(device, tiny_q4, tmp_path / "device.json", "--lora", lora, "--limit", "4")
    assert alike(answers(here), answers(there)) and answers(there) != answers(plain)


# From here on, only on RPC servers.


@pytest.mark.skipif(OWN, reason="needs RPC servers")
def test_a_device_that_dies_costs_one_line_and_no_step(backend: Path, tiny_q4: Path, tmp_path: Path) -> None:
    """llama.cpp's client stops the process: edge says why, and the same command continues on another server."""
    whole = evaluated(None, tiny_q4, tmp_path / "whole.json", "--limit", "24", "--parallel", "1")
    out, journal = tmp_path / "result.json", tmp_path / "result.json.journal"
    chosen = (*evaluation(tiny_q4, out), "--limit", "24", "--parallel", "1")
    with serving_device(backend) as server:
        pipe = subprocess.PIPE
        running = command_line.start(
            *chosen,
            "--rpc",
            server.endpoint,
            env=server.environment,
            stdout=pipe,
            stderr=pipe,
            encoding="utf-8",
        )
        while running.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 4):
            time.sleep(0.01)
        server.process.kill()
        _, said = running.communicate(timeout=120)
    assert running.returncode == 1, said
    last = said.splitlines()[-1]
    assert last.startswith("error: llama.cpp stopped: ggml-rpc.cpp:"), said
    assert "an RPC server ended" in last
    assert said.count("error") == 1 and "Traceback" not in said
    assert not out.exists()
    steps = journal.read_text().splitlines()
    assert all(json.loads(line) for line in steps) and 4 <= len(steps) < 25
    with serving_device(backend) as server:
        done = on(server).edge(*chosen)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["engine"]["steps_done_before"] >= 3
    assert answers(result) == answers(whole)


@pytest.mark.skipif(OWN, reason="needs RPC servers")
def test_a_small_device_gets_the_layers_that_fit(backend: Path, tiny_q4: Path, tmp_path: Path) -> None:
    here = evaluated(None, tiny_q4, tmp_path / "cpu.json", "--limit", "4", "--flash-attention")
    with serving_device(backend, 10_000_000) as server:
        there = evaluated(on(server), tiny_q4, tmp_path / "device.json", "--limit", "4")
        forced = on(server).edge(
            *(
                "eval",
                "--model",
                tiny_q4,
                "--replay",
                ROWS,
                "--out",
                tmp_path / "no.json",
                "--gpu-layers",
                "-1",
            )
        )
    assert 0 < there["engine"]["gpu_layers"] < 7, there["gpu"]
    assert answers(here) == answers(there)
    assert forced.returncode == 1
    assert "is free on RPC0" in forced.stderr and "What would fit: " in forced.stderr
    assert forced.stderr.count("error:") == 1


@pytest.mark.skipif(OWN, reason="needs RPC servers")
def test_a_device_whose_memory_is_taken_is_one_line(backend: Path, tiny_q4: Path) -> None:
    """It reports the memory of the machine, and its process gets none of it."""
    with serving_device(backend, 0, 3_000_000) as server:
        done = on(server).edge("run", "--model", tiny_q4, "--max-tokens", "8", TASK)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    assert "buffer" in done.stderr.splitlines()[-1]


@contextlib.contextmanager
def saying(data: bytes) -> Iterator[str]:
    """The address of a server that answers every client with these bytes, or not at all."""

    def answer() -> None:
        with contextlib.suppress(OSError):  # it is closed at the end
            while True:
                client = listener.accept()[0]
                held.append(client)
                if data:
                    client.sendall(data)
                    client.close()

    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for client in held:
            client.close()


@pytest.mark.skipif(OWN, reason="needs RPC servers")
def test_wrong_servers_are_one_line_each(backend: Path) -> None:
    environment = {**os.environ, "GGML_BACKEND_PATH": str(backend)}
    with (
        saying(b"") as silent,
        saying(b"HTTP/1.1 400 Bad Request\r\n\r\n") as web,
        serving_device(backend) as busy,
    ):
        shown = on(busy).edge("doctor")
        assert f"RPC0: {busy.endpoint} (GPU)" in shown.stdout
        assert "layers are offloaded" in shown.stdout
        host, _, port = busy.endpoint.partition(":")
        with socket.create_connection((host, int(port))):
            cases = {
                "127.0.0.1": (2, "is not HOST:PORT"),
                "127.0.0.1:1": (1, "cannot be reached"),
                silent: (1, "no answer in"),
                web: (1, "is not llama.cpp's RPC server"),
                busy.endpoint: (1, "one client at a time"),
            }
            for endpoint, (status, text) in cases.items():
                done = command_line.run("doctor", "--rpc", endpoint, env=environment)
                errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
                assert (done.returncode, len(errors)) == (status, 1), done.stderr
                assert text in errors[0] and "Traceback" not in done.stderr


USERS = (
    "run --model MODEL x",
    "chat --model MODEL",
    "agent x --model MODEL --sandbox --yes",
    "serve --model MODEL --port 0",
    "eval --model MODEL --replay ROWS --out OUT",
    "measure --model MODEL --replay ROWS --out OUT",
    "imatrix --model MODEL --replay ROWS --out OUT",
    "sweep FOLDER --quants Q4_0 --replay ROWS --out OUT",
    "trial --task make-folder-1 --model MODEL --out OUT",
    "tune MODEL",
    "doctor",
)


@pytest.mark.parametrize("words", USERS, ids=[words.split()[0] for words in USERS])
def test_each_command_asks_the_server(
    words: str, backend: Path, tiny_q4: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """A server that cannot be reached is one error line, so no command ignores --rpc."""
    names = {"MODEL": tiny_q4, "FOLDER": tiny_folder, "ROWS": ROWS, "OUT": tmp_path / "out"}
    environment = {**os.environ, "GGML_BACKEND_PATH": str(backend)}
    done = command_line.run(
        *(names.get(word, word) for word in words.split()),
        "--rpc",
        "127.0.0.1:1",
        env=environment,
        cwd=tmp_path,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (1, 1), done.stderr
    assert "127.0.0.1:1 cannot be reached" in errors[0] or "127.0.0.1:1: cannot be reached" in errors[0]
    assert list(tmp_path.glob("out/*.gguf")) == [], "before any long work"
    assert not (tmp_path / "out").is_file()


def test_without_the_backend_there_is_one_line(tiny_q4: Path) -> None:
    done = command_line.run("run", "--model", tiny_q4, "--rpc", "127.0.0.1:1", TASK)
    assert done.returncode == 1
    assert "built without its RPC backend" in done.stderr.splitlines()[-1]
    assert "GGML_RPC=on" in done.stderr
