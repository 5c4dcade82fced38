"""What the child process of an unknown file can reach: a real script in it tries, with and without the sandbox.

.venv/bin/pytest tests/system/test_confined.py
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from escapes import World

from edge.errors import SandboxError
from edge.system.confined import run_confined, run_plain

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bwrap") is None, reason="bubblewrap is not installed"
)

# Prints what it could do. `python -m cProfile -o/dev/null FILE` runs it.
ATTACK = """
import ctypes, json, os, socket, sys
from pathlib import Path
def tries(action):
    try:
        return action() is not False
    except (OSError, AttributeError) as error:
        return False
def call(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(address)
def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", ("127.0.0.1", {udp}))
def start():
    return os.waitstatus_to_exitcode(os.system("touch {world}/touched")) == 0
done = dict(
    read=tries(lambda: Path("{secret}").read_text()),
    write=tries(lambda: Path("{canary}").write_text("lost")),
    file=tries(lambda: Path(__file__).write_text("changed")),
    tcp=tries(lambda: call(socket.AF_INET, ("127.0.0.1", {tcp}))),
    start=tries(start),
    unix=tries(lambda: call(socket.AF_UNIX, "{sock}")),
    abstract=tries(lambda: call(socket.AF_UNIX, chr(0) + "{abstract}")),
    kill=tries(lambda: os.kill({parent}, 0)),
    core=tries(lambda: Path("/proc/sys/kernel/core_pattern").open("w").close()),
    memfd=tries(lambda: os.memfd_create("x")),
    keyring=ctypes.CDLL(None).syscall({keyctl}, 0, -3, 1) >= 0,
)
tries(send)
numbers = [p for p in os.listdir("/proc") if p.isdigit()]
done["others"] = [p for p in numbers if tries(lambda: Path("/proc", p, "environ").read_bytes())]
done["environment"] = dict(os.environ)
done["oom"] = Path("/proc/self/oom_score_adj").read_text().strip()
print(json.dumps(done))
"""


@pytest.fixture
def world() -> Iterator[World]:
    with World.made() as world:
        yield world


@pytest.fixture
def script(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKEN_OF_THE_PERSON", world.secret)
    values = world.names | {
        "parent": os.getpid(),
        "keyctl": {"x86_64": 250, "aarch64": 219}.get(os.uname().machine, 250),
    }
    text = ATTACK
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    path = tmp_path / "attack.py"
    path.write_text(text)
    return path


@SANDBOX
def test_the_child_of_an_unknown_file_reaches_nothing(script: Path, world: World) -> None:
    before = script.read_text()
    outcome = run_confined("cProfile", "-o/dev/null", [script], 60)
    assert outcome.status == 0, outcome.output
    done = json.loads(outcome.output.splitlines()[-1])
    environment = done.pop("environment")
    assert world.secret not in str(environment) and str(Path.home()) not in environment["HOME"]
    assert done.pop("oom") == "1000"
    assert len(done.pop("others")) <= 3  # bubblewrap and itself
    assert {name: able for name, able in done.items() if able} == {}
    assert world.touched() == [] and script.read_text() == before


@pytest.mark.skipif(sys.platform != "linux", reason="the script reads /proc")
def test_without_a_sandbox_only_the_environment_is_empty(script: Path, world: World) -> None:
    """The control: the script does what the sandbox stops."""
    outcome = run_plain("cProfile", "-o/dev/null", [script], 60)
    assert outcome.status == 0, outcome.output
    done = json.loads(outcome.output.splitlines()[-1])
    assert world.secret not in str(done["environment"]) and done["environment"]["HOME"] != str(Path.home())
    assert all(done[name] for name in ("read", "write", "tcp", "kill", "start"))
    assert {"canary", "touched", "tcp"} <= set(world.touched())


@SANDBOX
def test_a_child_that_writes_without_end_ends_in_time(tmp_path: Path) -> None:
    path = tmp_path / "endless.py"
    path.write_text("print('began', flush=True)\nwhile True: print('x' * 100000)\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run_confined("cProfile", "-o/dev/null", [path], 3)


@SANDBOX
def test_a_signal_is_reported_as_of_the_child(tmp_path: Path) -> None:
    path = tmp_path / "abort.py"
    path.write_text("import os\nprint('began', flush=True)\nos.abort()\n")
    outcome = run_confined("cProfile", "-o/dev/null", [path], 60)
    assert outcome.status == -6 and outcome.output.startswith("began")


@SANDBOX
def test_a_file_with_holes_leaves_the_sandbox(tmp_path: Path) -> None:
    """Of any size that its file system holds: a limit of twice its bytes can be no number for the system."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        os.truncate(file.fileno(), (1 << 63) - 4096)
        outcome = run_confined("this", "", [Path(file.name)], 60)
    assert outcome.status == 0 and "Beautiful is better than ugly." in outcome.output


@SANDBOX
def test_an_adapter_beside_a_file_of_any_name(tmp_path: Path) -> None:
    """Their folders in the sandbox have no name in common."""
    files = [tmp_path / name for name in ("untrusted-0", "more-0", "x/more-0")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"print({str(file)!r})")
    for first, other in ((0, 2), (1, 2), (2, 1)):
        assert run_confined("cProfile", "-o/dev/null", [files[first]], 60, [files[other]]).status == 0


@SANDBOX
def test_a_python_that_imports_from_the_home_folder_itself_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "nothing.py"
    path.write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, os.environ["HOME"]])
    with pytest.raises(SandboxError, match="holds more than programs"):
        run_confined("cProfile", "-o/dev/null", [path], 60)


def test_the_sandbox_hides_the_folder_of_edges_own_sources(tmp_path: Path) -> None:
    if sys.platform != "linux" or shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    path = tmp_path / "list.py"
    path.write_text(f"import os\nprint(os.listdir({str(ROOT)!r}))\n")
    said = run_confined("cProfile", "-o/dev/null", [path], 60).output.splitlines()[-1]
    assert "'edge'" in said and not any(f"'{name}'" in said for name in ("docs", ".git", "models"))


@SANDBOX
def test_a_hard_limit_of_0_for_core_dumps_leaves_the_sandbox(tmp_path: Path) -> None:
    """An ordinary user cannot raise a hard limit: containers and careful systems set it to 0."""
    path = tmp_path / "nothing.py"
    path.write_text("print('ran')\n")
    script = (
        "from pathlib import Path; from edge.system.confined import run_confined; "
        f"print(run_confined('cProfile', '-o/dev/null', [Path({str(path)!r})], 60).output)"
    )
    no_power = ["setpriv", "--bounding-set=-sys_resource"] if os.geteuid() == 0 else []
    done = subprocess.run(
        ["prlimit", "--core=0:0", *no_power, sys.executable, "-c", script], capture_output=True, text=True
    )
    assert (done.stdout.split(), done.returncode) == (["ran"], 0), done.stderr
