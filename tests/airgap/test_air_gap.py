"""Every command works without a network and does not try to connect; bundles install without a network.

The commands run under strace in a network namespace without an interface.

.venv/bin/pytest tests/airgap/test_air_gap.py
EDGE_TEST_WHEELS=DIR .venv/bin/pytest tests/airgap/test_air_gap.py
    with the wheels that `edge bundle --wheels DIR` made; the default is build/wheels, if it exists

Without these wheels, the tests make bundles from the installed packages, with llama.cpp for this processor.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.tags import parse_tag

from edge.airgap.bundle import pack
from edge.airgap.wheels import EDGE, Needed, make_wheels, needed, repack
from edge.answer.action import parse_action

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# Every call that can reach another machine. A name lookup sends to the address of a name server.
CALLS = "trace=connect,sendto,sendmsg,sendmmsg,socket"
STRACE = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", CALLS, "-e", "signal=none")
REACHES_OUT = re.compile(r"\b(connect|sendto|sendmsg|sendmmsg)\(.*AF_INET")


def no_network() -> list[str]:
    """The prefix that runs a command in a network namespace without an active interface."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    command = [unshare, "-n" if os.geteuid() == 0 else "-rn"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this system allows no new network namespace")
    return command


PORTABLE = Path(os.environ.get("EDGE_TEST_WHEELS", ROOT / "build" / "wheels"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Needed, dict[str, Path]]:
    """The packages and wheels of a bundle: from PORTABLE if it has them, else made from the installed packages."""
    if any(PORTABLE.glob("llama_cpp_python-*.whl")):
        return make_wheels(PORTABLE, print)
    pytest.importorskip("hatchling", reason="hatchling is not installed (make test installs it)")
    folder = tmp_path_factory.mktemp("wheels")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT,
    ]
    subprocess.run(pip, check=True)
    (own,) = folder.iterdir()
    wanted = needed(own)
    made = {name: wheel_of(distribution(name), folder) for name in wanted.packages if name != EDGE}
    return wanted, {**made, EDGE: own}


def wheel_of(package: Distribution, folder: Path) -> Path:
    tags = {
        part
        for line in (package.read_text("WHEEL") or "").splitlines()
        if line.startswith("Tag: ")
        for part in parse_tag(line.removeprefix("Tag: "))
    }
    parts = ({tag.interpreter for tag in tags}, {tag.abi for tag in tags}, {tag.platform for tag in tags})
    name = re.sub(r"[-_.]+", "_", package.name).lower()
    place = folder / "-".join([name, package.version, *(".".join(sorted(part)) for part in parts)])
    place = place.with_name(place.name + ".whl")
    repack(package, place)
    return place


def strace(log: Path) -> list[str]:
    """The prefix that writes the calls of a command and of its child processes to `log`."""
    if not can_trace():
        pytest.skip("strace is not installed, or cannot trace here")
    return [*STRACE, "-o", str(log)]


@functools.cache
def can_trace() -> bool:
    if sys.platform != "linux" or shutil.which("strace") is None:
        return False
    return subprocess.run([*STRACE, "-o", os.devnull, "true"], capture_output=True).returncode == 0


def in_namespace(command: Sequence[object], home: Path, cwd: Path) -> str:
    """The output of a command that runs without a network."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "EDGE_"))}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home / "cache")}
    run = subprocess.run(
        [*no_network(), *map(str, command)],
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def tried(log: Path) -> list[str]:
    """The calls with which a traced command tried to reach a network."""
    return [line for line in log.read_text(errors="replace").splitlines() if REACHES_OUT.search(line)]


@pytest.mark.parametrize(
    "attempt",
    [
        "s = socket.socket(); s.settimeout(1); s.connect(('192.0.2.1', 9))",
        "socket.create_connection(('2001:db8::1', 9), 1)",
        "socket.getaddrinfo('edge.invalid', 443)",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
        "import subprocess; subprocess.run([sys.executable, '-c', 'import socket; "
        'socket.socket().connect(("192.0.2.1", 9))\'], stderr=-3)',
    ],
)
def test_an_attempt_to_reach_out_is_seen(attempt: str, tmp_path: Path) -> None:
    """So the tests below can fail. None of these attempts leaves the namespace."""
    code = f"import socket, sys\ntry: {attempt}\nexcept OSError: pass"
    in_namespace([*strace(tmp_path / "log"), sys.executable, "-c", code], tmp_path, tmp_path)
    assert tried(tmp_path / "log")


def run_all(commands: Sequence[Sequence[object]], folder: Path, statuses: Sequence[int] = (0,)) -> list[str]:
    """Run commands of edge in one process without a network. Returns the calls that tried to reach one."""
    script = folder / "commands.json"
    script.write_text(json.dumps([[str(word) for word in command] for command in commands]))
    code = (
        "import json, sys; from edge.cli.main import app\n"
        "for command in json.load(open(sys.argv[1])):\n"
        "    try: app(command, prog_name='edge')\n"
        f"    except SystemExit as end: assert (end.code or 0) in {statuses!r}, (command, end.code)\n"
        "    print('done:', command[0], flush=True)\n"
    )
    out = in_namespace([*strace(folder / "log"), sys.executable, "-c", code, script], folder, folder)
    assert re.findall("^done: (.*)$", out, re.MULTILINE) == [command[0] for command in commands]
    return tried(folder / "log")


def test_no_command_tries_to_reach_a_network(tmp_path: Path, tiny_folder: Path, tiny_bf16: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = (tiny_folder / "eval.jsonl").read_bytes().splitlines(keepends=True)[:2]
    rows.write_bytes(b"".join(lines))
    predictions = tmp_path / "predictions.jsonl"
    with predictions.open("w") as file:
        for line in lines:
            row = json.loads(line)
            key = {name: row[name] for name in ("task_id", "sample_idx", "step_idx") if name in row}
            print(json.dumps({**key, "pred_text": row["ref_raw"]}), file=file)
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps([{"role": "user", "content": "List the files."}]))
    model = ["--model", "models/q4.gguf"]
    few = ["--replay", rows, "--max-tokens", 32, "--threads", 1, "--quiet"]
    commands: list[Sequence[object]] = [
        ["convert", tiny_folder, "--quant", "Q4_K_M", "--out", "models/q4.gguf"],
        ["inspect", "models/q4.gguf", "--verify"],
        ["models"],
        ["config"],
        ["schema"],
        ["rows", "check", rows],
        ["pull", "tiny-terminal"],
        ["chat", *model, "--max-tokens", 32, "--threads", 1, "List the files."],
        ["run", "List the files.", "--max-tokens", 32, "--threads", 1],
        ["eval", *model, *few, "--out", "q4.json"],
        ["eval", "--model", tiny_bf16, *few, "--out", "bf16.json"],
        ["score", predictions, "--replay", rows, "--out", "scored.json"],
        ["compare", "q4.json", "--reference", "bf16.json"],
        ["imatrix", *model, "--replay", rows, "--out", "matrix.gguf", "--threads", 1],
        ["measure", *model, "--base", tiny_bf16, "--replay", rows, "--out", "measure.json", "--quiet"],
        ["report", "q4.json", "measure.json", "--reference", "bf16.json", "--out", "report.html"],
        ["prompt", *model, "--messages", messages, "--tokens"],
        ["prompt", "--model", tiny_folder, "--messages", messages, "--tokens"],
        ["doctor", *model],
        ["doctor", *model, "--offline"],
        ["sweep", tiny_folder, "--quants", "Q8_0", *few, "--out", "sweep"],
    ]
    assert run_all(commands, tmp_path) == []
    assert (tmp_path / "sweep" / "report.html").is_file()


def test_the_agent_tries_no_network(tmp_path: Path, tiny_q4: Path) -> None:
    """strace also follows the processes in the sandbox."""
    if shutil.which("tmux") is None or shutil.which("bwrap") is None:
        pytest.skip("tmux or bubblewrap is not installed")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old.log").write_text("old\n")
    (folder / "kept.txt").write_text("edge does not delete all files unasked\n")
    little = ["--model", tiny_q4, "--threads", 1, "--max-tokens", 96, "--workdir", folder, "--max-steps", 2]
    commands: list[Sequence[object]] = [
        ["agent", "Remove the file old.log.", *little],
        ["agent", "Remove the file old.log.", *little, "--sandbox", "--yes", "--record", "session.jsonl"],
        ["replay", "session.jsonl"],
    ]
    assert run_all(commands, tmp_path, statuses=(0, 1)) == []  # 1: the task is not complete after two steps
    assert not (folder / "old.log").exists()


# Runs in a namespace: activates only the loopback interface (SIOCSIFFLAGS, IFF_UP), starts the server that the
# arguments name, sends it one request and stops it.
ASK = """
import fcntl, json, os, re, signal, socket, struct, subprocess, sys, urllib.request
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))
server = subprocess.Popen(sys.argv[1:], stderr=subprocess.PIPE, text=True, start_new_session=True)
found = next(filter(None, (re.search("http://127[.]0[.]0[.]1:[0-9]+", line) for line in server.stderr)))
body = {"model": "edge", "messages": [{"role": "user", "content": "List the files."}], "max_tokens": 48}
head = {"Content-Type": "application/json"}
request = urllib.request.Request(found[0] + "/v1/chat/completions", json.dumps(body).encode(), head)
with urllib.request.urlopen(request, timeout=120) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
os.killpg(server.pid, signal.SIGINT)  # strace blocks it for itself
server.communicate(timeout=60)
"""


def test_the_server_answers_and_reaches_out_to_nobody(tmp_path: Path, tiny_q4: Path) -> None:
    """The server is traced, its client is not."""
    edge = [sys.executable, "-c", "from edge.cli.main import main; main()"]
    served = [*strace(tmp_path / "log"), *edge, "serve", "--model", tiny_q4, "--port", 0, "--threads", 1]
    out = in_namespace([sys.executable, "-c", ASK, *served], tmp_path, tmp_path)
    assert parse_action(out)
    assert tried(tmp_path / "log") == []


def test_bundling_finished_wheels_tries_no_network(tmp_path: Path, tiny_q4: Path, tiny_folder: Path) -> None:
    if not any(PORTABLE.glob("llama_cpp_python-*.whl")):
        pytest.skip(f"no wheels in {PORTABLE} (edge bundle --wheels makes them, which takes minutes)")
    rows = tiny_folder / "eval.jsonl"
    command = ["bundle", "--model", tiny_q4, "--replay", rows, "--wheels", PORTABLE, "--out", "bundle.tar"]
    assert run_all([command], tmp_path) == []


def edge(folder: Path, *arguments: object, traced: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the edge of an installed bundle in its folder, without a network, in a clean environment."""
    return subprocess.run(
        [*no_network(), *traced, folder / "venv" / "bin" / "edge", *map(str, arguments)],
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder.parent)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def same(result: Any) -> Any:
    """A result without the values that can differ between two equal runs: times, paths, measured memory."""
    different = (
        "timestamp",
        "seconds",
        "sec",
        "peak",
        "memory",
        "model_path",
        "eval_path",
        "available",
        "_at",
    )
    if isinstance(result, dict):
        return {
            name: same(value) for name, value in result.items() if not any(word in name for word in different)
        }
    return [same(value) for value in result] if isinstance(result, list) else result


def test_a_bundle_installed_twice_answers_the_same(
    tmp_path: Path, tiny_q4: Path, tiny_folder: Path, wheels: tuple[Needed, dict[str, Path]]
) -> None:
    """Install one bundle twice without a network: with tar and install.sh, and with edge unbundle.

    edge unbundle is traced where strace works: it tries no network.
    """
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"".join((tiny_folder / "eval.jsonl").read_bytes().splitlines(keepends=True)[:4]))
    sources = {"models/tiny.gguf": tiny_q4, "rows/rows.jsonl": rows}
    done = pack(tmp_path / "bundle.tar", sources, *wheels)
    assert "torch" not in done.manifest.packages and "transformers" in done.manifest.packages
    again = pack(tmp_path / "again.tar", sources, *wheels)
    assert again.sha256 == done.sha256
    assert (tmp_path / "again.tar").read_bytes() == done.path.read_bytes()

    by_tar, by_edge = tmp_path / "first" / "edge-bundle", tmp_path / "second"
    by_tar.parent.mkdir()
    subprocess.run(["tar", "xf", done.path], cwd=by_tar.parent, check=True)
    clean = {"PATH": os.defpath, "HOME": str(tmp_path)}
    command = [*no_network(), "sh", by_tar / "install.sh", "--python", sys.executable]
    run = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    assert done.sha256 in run.stdout and "ready: edge works here without a network" in run.stdout
    log = tmp_path / "log"
    run = edge(by_tar, "unbundle", done.path, "--to", by_edge, traced=strace(log) if can_trace() else ())
    assert run.returncode == 0, run.stdout + run.stderr
    assert not can_trace() or tried(log) == []

    results = []
    for folder in (by_tar, by_edge):
        run = edge(
            folder,
            "eval",
            "--replay",
            "rows/rows.jsonl",
            "--max-tokens",
            64,
            "--threads",
            1,
            "--parallel",
            1,
            "--out",
            "r.json",
        )
        assert run.returncode == 0, run.stderr
        results.append(json.loads((folder / "r.json").read_bytes()))
    assert same(results[0]) == same(results[1])
    assert len(results[0]["per_step"]) == 4
    ready = json.loads(edge(by_edge, "doctor", "--offline", "--json").stdout)
    assert ready["ready"], ready


def damaged_install(folder: Path, *words: str) -> None:
    """install.sh refuses this folder with one line, and leaves no venv."""
    command = ["sh", str(folder / "install.sh"), "--python", sys.executable]
    run = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    lines = run.stderr.splitlines()
    assert run.returncode == 1 and len(lines) == 1 and lines[0].startswith("error: "), run.stderr
    for word in words:
        assert word in lines[0], lines[0]
    assert not (folder / "venv").exists()


def test_the_install_script_checks_before_it_installs(tmp_path: Path, tiny_q4: Path) -> None:
    from edge.airgap.bundle import pack
    from edge.airgap.wheels import Needed

    pack(tmp_path / "bundle.tar", {"models/tiny.gguf": tiny_q4}, Needed({}), {})
    folder = tmp_path / "edge-bundle"

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["tar", "xf", tmp_path / "bundle.tar"], cwd=tmp_path, check=True)
        (folder / "wheels").mkdir(exist_ok=True)

    fresh()
    model = folder / "models" / "tiny.gguf"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    damaged_install(folder, "models/tiny.gguf", "SHA-256")
    fresh()
    model.write_bytes(model.read_bytes()[:-1])
    damaged_install(folder, "models/tiny.gguf", "another size")
    fresh()
    shutil.move(model, tmp_path / "elsewhere.gguf")
    damaged_install(folder, "models/tiny.gguf: is missing; unpack the bundle again")
    model.symlink_to(tmp_path / "elsewhere.gguf")
    damaged_install(folder, "models/tiny.gguf", "a link")
    fresh()
    (folder / "wheels" / "rogue-1.0-py3-none-any.whl").write_bytes(b"")
    damaged_install(folder, "wheels/rogue-1.0-py3-none-any.whl is not in the manifest")
    for name, value, word in (
        ("python", "2.7", "is for python 2.7, not "),
        ("machine", "pdp11", "is for machine pdp11"),
        ("glibc", "99.1", "needs glibc 99.1"),
    ):
        if name == "glibc" and not hasattr(os, "confstr"):
            continue
        fresh()
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["machine"][name] = value
        (folder / "manifest.json").write_text(json.dumps(manifest))
        damaged_install(folder, word)
    for text in ("", "{}", "[]", "\xff", '{"version": 1, "machine": {}, "files": []}'):
        fresh()
        (folder / "manifest.json").write_text(text, encoding="latin-1")
        damaged_install(folder, "manifest.json: is damaged")
    fresh()
    (folder / "venv").mkdir()
    run = subprocess.run(
        ["sh", folder / "install.sh", "--python", sys.executable], capture_output=True, text=True
    )
    assert run.returncode == 1 and "already exists" in run.stderr and (folder / "venv").is_dir()


@pytest.mark.skipif(shutil.which("dash") is None, reason="dash is not installed")
def test_the_install_script_is_plain_shell() -> None:
    subprocess.run(["dash", "-n", ROOT / "edge" / "airgap" / "install.sh"], check=True)
