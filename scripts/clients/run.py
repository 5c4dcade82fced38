"""Run a session of each installed client against `edge serve`, and print the table of docs/serve.md.

python scripts/clients/run.py FOLDER [CLIENT...]

A client runs in bubblewrap: it sees its packages, the system's programs, and a home of its own that is thrown away. It
has no network; 127.0.0.1:8080 leads to a proxy that records its requests.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recorder import recording

HERE = Path(__file__).resolve().parent
SERVER = (
    "--context",
    "32768",
    "--parallel",
    "2",
    "--tool-choice",
    "required",
    "--max-tokens",
    "300",
    "--port",
    "0",
)
SECONDS = int(os.environ.get("CLIENT_SECONDS", "600"))  # for one command of a session


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    folder, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
    sessions = tomllib.loads((HERE / "sessions.toml").read_text(encoding="utf-8"))
    unknown = [name for name in names if name not in sessions]
    if unknown:
        print(f"run.py: there is no session of {unknown[0]}; use {', '.join(sessions)}", file=sys.stderr)
        return 2
    finished = []
    print(
        "| client | version | endpoints | requests | errors | calls, results sent back | ended | finished |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with serving() as address:
        listed = json.loads(urllib.request.urlopen(f"http://{address}/v1/models").read())["data"]
        text = next((one["id"] for one in listed if one["id"].endswith("-text")), "edge")
        for name in names or sessions:
            row: tuple[str, ...] = (name, "not installed", "", "", "", "", "", "no")
            if (folder / name / "installed").is_file():
                row = session(name, sessions[name], folder, address, text)
            print("| " + " | ".join(row) + " |", flush=True)
            finished.append(row[-1] == "yes")
    return not all(finished)


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address (host:port) of a server of the embedded model."""
    command = [sys.executable, "-m", "edge", "serve", *SERVER, *os.environ.get("SERVE_OPTIONS", "").split()]
    with (
        tempfile.TemporaryDirectory() as store,
        subprocess.Popen(
            command, env={**os.environ, "EDGE_MODELS": store}, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", file=sys.stderr)
            if found := re.search(r"at http://(\S+?)/v1", line):
                break
        else:
            raise SystemExit("run.py: edge serve did not start")
        rest = threading.Thread(target=process.stderr.read, daemon=True)  # a full pipe would stop the server
        rest.start()
        try:
            yield found[1]
        finally:
            process.terminate()


def session(name: str, plan: dict[str, Any], folder: Path, address: str, text: str) -> tuple[str, ...]:
    """One row of the table; `text`: the name of the model that gives text."""
    plan = json.loads(json.dumps(plan).replace("@TEXT@", text))
    plan.setdefault("env", {})["TEXT_MODEL"] = text
    package = (folder / name / "installed").read_text(encoding="utf-8").split()[0]
    version = re.split(r"==|(?<=.)@", package)[-1]
    kept = folder / f"{name}.session"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    with (
        tempfile.TemporaryDirectory() as place,
        recording(kept / "socket", address, kept / "record.jsonl") as record,
    ):
        home = Path(place)
        make_home(home, plan)
        if (modules := folder / name / "node_modules").is_dir():
            (home / "node_modules").symlink_to(modules)
        began = time.monotonic()
        codes = [run(command, name, plan, folder, home, kept) for command in plan["commands"]]
        seconds = time.monotonic() - began
    (kept / "socket").unlink(missing_ok=True)
    output = (kept / "output").read_text(encoding="utf-8", errors="replace")
    ended = "itself" if not any(codes) else "no"
    if "turns" in plan and re.search(plan["turns"], output):
        ended = "turn limit"
    print(f"{name}: {seconds:.0f} seconds, exit codes {codes}", file=sys.stderr)
    for error in record.errors:
        print(f"{name}: {error}", file=sys.stderr)
    called = record.calls and record.results
    tools = plan.get("tools", True)
    finished = record.accepted >= 3 and not record.errors and (called or not tools) and ended != "no"
    return (
        plan.get("title", name),
        version,
        ", ".join(f"`{one}`" for one in record.endpoints),
        str(record.accepted),
        str(len(record.errors)),
        f"{record.calls}, {record.results}" if tools else plan["instead"],
        ended,
        "yes" if finished else "no",
    )


def make_home(home: Path, plan: dict[str, Any]) -> None:
    work = home / "work"
    work.mkdir()
    shutil.copytree(HERE / "sessions", home / "sessions")
    (work / "notes.txt").write_text("alpha\nbeta\n", encoding="utf-8")
    subprocess.run(["git", "init", "-q", "."], cwd=work, check=True)
    for path, text in plan.get("files", {}).items():
        file = home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def run(command: list[str], name: str, plan: dict[str, Any], folder: Path, home: Path, kept: Path) -> int:
    """Run one command of a session in its sandbox; its exit code, 124 after SECONDS."""
    place = "venv/bin" if (folder / name / "venv").is_dir() else "node_modules/.bin"
    words = [word.replace("@BIN@", str(folder / name / place)) for word in command]
    box = sandbox(folder / name, home, kept / "socket", plan["env"])
    python = os.path.realpath(sys.executable)
    with (kept / "output").open("a", encoding="utf-8") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        whole = [*box, python, "/clients/relay.py", "/run/edge.sock", *words]
        try:
            return subprocess.run(
                whole, stdout=output, stderr=output, timeout=SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return 124


def sandbox(packages: Path, home: Path, socket: Path, env: dict[str, str]) -> list[str]:
    """bubblewrap's command: the system read-only, the client's packages, and a home of its own."""
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--uid", "1000", "--gid", "1000"]  # Claude Code refuses root
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--dir", "/logs"]
    shown = {Path("/usr"), Path("/etc"), packages, Path(sys.base_prefix)}
    if (venv := packages / "venv/bin/python").exists():
        shown.add(venv.resolve().parents[1])
    if node := shutil.which("node"):
        shown.add(Path(node).resolve().parents[1])
    for path in ("/bin", "/sbin", "/lib", "/lib64"):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            shown.add(Path(path))
    for one in sorted(shown):
        if one == Path("/usr") or not one.is_relative_to("/usr"):
            command += ["--ro-bind", str(one), str(one)]
    command += ["--ro-bind", str(HERE), "/clients", "--bind", str(home), "/home/user"]
    command += ["--bind", str(socket), "/run/edge.sock", "--chdir", "/home/user/work"]
    path = ":".join([*(str(one / "bin") for one in sorted(shown)), "/usr/local/bin", "/usr/bin", "/bin"])
    settings = {
        "HOME": "/home/user",
        "PATH": path,
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "NO_COLOR": "1",
        **env,
    }
    for key, value in settings.items():
        command += ["--setenv", key, value]
    return command


if __name__ == "__main__":
    sys.exit(main())
