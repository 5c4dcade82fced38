"""Which model a command takes, `edge models` and `edge config`, through the command line and from several folders.

.venv/bin/pytest tests/cli/test_models.py
"""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import command_line
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("model", "threads", "gpu_layers", "context", "max_tokens", "temperature")


class User:
    """A user with a home folder of their own, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.home, self.work = folder / "home", folder / "repository"
        self.home.mkdir()
        self.work.mkdir()
        self.store = self.home / ".local" / "share" / "edge" / "models"
        self.settings = self.home / ".config" / "edge" / "config.toml"

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("EDGE_", "XDG_"))}
        return {**own, "HOME": str(self.home), "PYTHONPATH": str(ROOT), "COLUMNS": "80", **variables}

    def edge(
        self, *words: object, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = self.environment(variables)
        done = command_line.run(*words, cwd=cwd or self.work, env=environment, program="python -m edge")
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def answers(self, text: str, *words: object) -> tuple[int, str]:
        """Exit code and output of a command in a terminal in which a person types `text`."""
        parent, child = pty.openpty()
        process = command_line.start(
            *words,
            cwd=self.work,
            env=self.environment({"TERM": "dumb"}),  # COLUMNS is 80
            stdin=child,
            stdout=child,
            stderr=child,
            program="python -m edge",
        )
        os.close(child)
        os.write(parent, text.encode())
        seen = b""
        try:
            while data := os.read(parent, 4096):
                seen += data
        except OSError:  # Linux: the terminal has no other end any more
            pass
        os.close(parent)
        return process.wait(60), seen.decode()

    def add(self, model: Path, name: str, age: int = 0) -> Path:
        """A copy of a model in the store, `age` seconds old."""
        self.store.mkdir(parents=True, exist_ok=True)
        path = self.store / f"{name}.gguf"
        shutil.copyfile(model, path)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
        return path

    def set(self, text: str) -> None:
        self.settings.parent.mkdir(parents=True, exist_ok=True)
        self.settings.write_text(text, encoding="utf-8")

    def default(self, **variables: str) -> tuple[str | None, dict[str, tuple[object, str]]]:
        """The default model and the settings, as `edge config --json` prints them."""
        found = json.loads(self.edge("config", "--json", **variables).stdout)
        held = {name: (one["value"], one["source"]) for name, one in found["settings"].items()}
        assert tuple(held) == SETTINGS
        return found["default_model"], held


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.fixture(scope="session")
def real(tiny_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is not the demonstration model: its weights, and another name in the header."""
    path = tmp_path_factory.mktemp("real") / "real.gguf"
    data = tiny_q4.read_bytes()
    assert data.count(b"tiny-terminal") == 1
    data = data.replace(b"edge.crc32", b"none.crc32")  # the checksum of the header
    path.write_bytes(data.replace(b"tiny-terminal", b"real-terminal"))
    return path


ASK = ("run", "ls", "--max-tokens", "4")


def test_the_demonstration_model_goes_into_the_store(user: User) -> None:
    """A first `edge run` in somebody's repository writes nothing there; a second folder finds the same model."""
    (user.work / "app.py").write_text("")
    done = user.edge(*ASK)
    assert done.returncode == 0, done
    made = user.store / "tiny-terminal-Q4_K_M.gguf"
    first, second = done.stderr.splitlines()[:2]
    assert first == f"note: converting the embedded demonstration model tiny-terminal to {made}"
    assert second.startswith(f"note: model: {made} (")
    assert made.is_file() and [path.name for path in user.work.iterdir()] == ["app.py"]
    again = user.edge(*ASK, cwd=user.home)
    assert "converting" not in again.stderr
    assert again.stderr.splitlines()[0] == (
        f"note: model: {made} (the tiny demonstration model; `edge pull default` fetches one "
        "that understands requests)"
    )
    quiet = user.edge(*ASK, "--quiet")
    assert quiet.stdout and [line for line in quiet.stderr.splitlines() if "budget" not in line] == []


def test_a_quiet_pull_prints_only_the_file(user: User) -> None:
    done = user.edge("pull", "tiny-terminal", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{user.store / 'tiny-terminal-Q4_K_M.gguf'}: Q4_K_M, 4.2 MB, ")


def test_the_order_of_the_choices(user: User, tiny_q4: Path, real: Path) -> None:
    """EDGE_MODEL, then the file, then ./models, then the store; unusable files and the demonstration model last."""
    old, new = user.add(real, "old", age=60), user.add(real, "new", age=30)
    user.add(tiny_q4, "tiny-terminal-Q4_K_M")
    (user.store / "newest.gguf").touch()
    assert user.default()[0] == str(new)
    here = user.work / "models"
    here.mkdir()
    (here / "cut.gguf").write_bytes(real.read_bytes()[:100_000])
    assert user.default()[0] == str(new)  # ./models has no usable model
    shutil.copyfile(real, here / "here.gguf")
    assert user.default()[0] == "models/here.gguf"
    user.set('version = 1\nmodel = "new"\n')
    assert user.default()[0] == str(new)
    assert user.default(EDGE_MODEL="old")[0] == str(old)
    assert user.default(EDGE_MODEL="models/here.gguf")[0] == "models/here.gguf"
    done = user.edge(*ASK, EDGE_MODEL="old")
    assert done.returncode == 0 and done.stderr.startswith(f"note: model: {old} (from EDGE_MODEL)\n")
    done = user.edge(*ASK, "--model", "new", EDGE_MODEL="old")
    assert done.returncode == 0 and str(old) not in done.stderr
    user.set('model = "models/here.gguf"\n')  # in a file, a relative path is a model of nowhere
    done = user.edge(*ASK)
    assert done.returncode == 1 and str(user.settings) in done.stderr and "absolute path" in done.stderr
    user.set('model = "none-of-these"\n')
    done = user.edge(*ASK)
    assert done.returncode == 1 and str(user.settings) in done.stderr and "'none-of-these'" in done.stderr
    done = user.edge("doctor", EDGE_MODEL="old")
    assert f"default     {old} (from EDGE_MODEL)" in done.stdout


def test_doctor_tries_the_model_that_commands_use(user: User, real: Path) -> None:
    path = user.add(real, "mine")
    (user.store / "empty.gguf").touch()
    done = user.edge("doctor", "--offline", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert str(path) in checks["model"]["text"] and checks["model"]["ok"]
    assert "empty.gguf: not usable" in checks["other model"]["text"] and not checks["other model"]["needed"]
    done = user.edge("doctor", "--offline", EDGE_MODEL="none-of-these")
    assert done.returncode == 1 and "FAILED   model        'none-of-these' (from EDGE_MODEL)" in done.stdout


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_agent_never_takes_the_demonstration_model_silently(user: User, tiny_q4: Path, real: Path) -> None:
    for _ in range(2):  # without any model, and with the demonstration model in the store
        done = user.edge("agent", "List the files.")
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: edge agent has no model: name one with --model")
        path = user.add(tiny_q4, "tiny-terminal-Q4_K_M")
    code, seen = user.answers("n\n", "agent", "List the files.")
    assert code == 1 and "a tiny demonstration model. Use it? [y/N]" in seen and "no model was chosen" in seen
    done = user.edge("agent", "List the files.", "--model", "tiny-terminal")
    assert done.returncode == 0 and done.stderr.startswith(f"note: model: {path}\n")
    path = user.add(real, "mine", age=60)
    done = user.edge("agent", "List the files.")
    assert done.returncode == 0 and done.stderr.startswith(
        f"note: model: {path} (the newest in the model store)"
    )


def test_serve_names_the_model_in_its_first_line(user: User, real: Path) -> None:
    pytest.importorskip("uvicorn")
    path = user.add(real, "mine")
    for words, line in (((), " (the newest in the model store)"), (("--model", "mine"), "")):
        process = subprocess.Popen(
            [sys.executable, "-m", "edge", "serve", "--port", "0", *words],
            cwd=user.work,
            env=user.environment({}),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        first = process.stderr.readline()
        process.kill()
        process.communicate()
        assert first == f"note: model: {path}{line}\n"


def test_names_that_are_nearly_right(user: User, real: Path) -> None:
    """A part of a name, the folder of a checkpoint that was converted, a link without a target."""
    user.add(real, "my-model-Q4_K_M")
    done = user.edge("run", "ls", "-m", "my-model")
    assert done.returncode == 1 and "did you mean my-model-Q4_K_M? `edge models` and" in done.stderr
    (user.work / "my-model").mkdir()
    done = user.edge("run", "ls", "-m", "my-model")
    assert done.returncode == 1
    assert done.stderr.endswith("or use one in the model store: my-model-Q4_K_M\n")
    broken = user.store / "gone.gguf"
    broken.symlink_to("/nowhere/gone.gguf")
    words = "is a broken link: /nowhere/gone.gguf does not exist"
    assert user.edge("run", "ls", "-m", "gone").stderr == f"error: {broken}: {words}\n"
    assert f"not usable: gone: {words}\n" in user.edge("models").stdout


def test_models_lists_the_store(user: User, real: Path, tmp_path: Path) -> None:
    assert user.edge("models").stdout.splitlines()[0] == f"No models in {user.store}"
    assert not user.store.exists()
    path = user.add(real, "mine", age=60)
    blob = Path(shutil.copyfile(real, tmp_path / "blob"))
    long = "a-name-that-is-so-long-that-it-needs-its-own-line-in-80-columns-Q4_K_M"
    (user.store / f"{long}.gguf").symlink_to(blob)
    (user.store / "broken.gguf").write_bytes(b"GGUF")
    code, seen = user.answers("", "models")
    lines = seen.replace(str(user.store), "").splitlines()
    assert code == 0 and max(map(len, lines)) <= 80, seen
    assert any(line.startswith(long) for line in lines)
    for words in (
        "Q4_K_M",
        "4.2 MB",
        "lfm2moe",
        "not usable: broken: ",
        "Default (the newest in the model store):",
    ):
        assert words in seen, words
    piped = {
        line.split()[0]: line.split() for line in user.edge("models").stdout.splitlines() if line[:1] > " "
    }
    assert piped[long][1:5] == piped["mine"][1:5] == ["4.2", "MB", "Q4_K_M", "lfm2moe"]
    found = json.loads(user.edge("models", "--json").stdout)
    assert found["version"] == 1 and found["store"] == str(user.store)
    models = {model["name"]: model for model in found["models"]}
    assert list(models) == sorted(models, key=lambda name: models[name]["date"], reverse=True)
    assert models["mine"]["bytes"] == path.stat().st_size and models["mine"]["type"] == "Q4_K_M"
    assert models["mine"]["model"] == "real-terminal" and models["mine"]["link_to"] is None
    assert not models["broken"]["usable"]
    assert user.edge("models", "list", "--json").stdout == user.edge("models", "--json").stdout
    assert user.edge("models", "path", "mine", cwd=user.home).stdout == f"{path}\n"
    found = json.loads(user.edge("models", "path", "mine", "--json").stdout)
    assert found == {"version": 1, "name": "mine", "path": str(path)}
    done = user.edge("models", "path", "mime")
    assert done.returncode == 1 and "did you mean mine?" in done.stderr


def test_models_rm(user: User, real: Path, tmp_path: Path) -> None:
    path, kept = user.add(real, "mine"), user.add(real, "kept")
    blob = Path(shutil.copyfile(real, tmp_path / "blob"))
    (user.store / "link.gguf").symlink_to(blob)
    done = user.edge("models", "rm", "mine")
    assert done.returncode == 2 and "--yes" in done.stderr and path.exists()
    done = user.edge("models", "rm", "mine", "nothing", "--yes")
    assert done.returncode == 1 and path.exists()  # all names are checked before the first file goes
    done = user.edge("models", "rm", "MINE", "--yes")
    assert done.returncode == 1 and path.exists() and "mine" in done.stderr  # another case is another name
    code, seen = user.answers("n\n", "models", "rm", "mine")
    assert code == 1 and "Remove mine (4.2 MB)? [y/N]" in seen and path.exists()
    code, seen = user.answers("y\n", "models", "rm", "mine")
    assert code == 0 and not path.exists()
    done = user.edge("models", "rm", "link", "--yes")
    assert done.stdout == f"removed the link {user.store / 'link.gguf'}; its data stays in {blob}\n"
    assert blob.exists() and [file.name for file in user.store.iterdir()] == [kept.name]
    here = user.work / "models"
    here.mkdir()
    shutil.copyfile(real, here / "local.gguf")
    done = user.edge("models", "rm", "local", "--yes")
    assert done.returncode == 1 and (here / "local.gguf").exists()  # ./models is not the store
    assert done.stderr == (
        "error: local: is in ./models, not in the model store; remove the file models/local.gguf yourself\n"
    )
    for name, hint in (
        (str(kept), "give kept"),
        ("models/local.gguf", "give a name that `edge models` lists"),
    ):
        done = user.edge("models", "rm", name, "--yes")
        assert done.stderr == f"error: {name}: is a path, not the name of a model; {hint}\n"
    assert kept.exists() and (here / "local.gguf").exists()


def test_known_models_fit_80_columns(user: User) -> None:
    code, seen = user.answers("", "models", "known")
    assert code == 0 and "lfm2.5-8b-a1b-terminal" in seen and max(map(len, seen.splitlines())) <= 80
    names = [model["name"] for model in json.loads(user.edge("models", "known", "--json").stdout)["models"]]
    assert "tiny-terminal" in names


def test_settings_are_the_defaults_of_options(user: User, tiny_q4: Path) -> None:
    """An option wins over a variable, a variable over the file."""
    user.set("version = 1\nthreads = 1\nmax_tokens = 6\n")
    ask = ("run", "ls", "--model", tiny_q4)

    def budget_and_threads(*words: object, **variables: str) -> tuple[str, str]:
        lines = user.edge(*ask, *words, **variables).stderr.splitlines()
        (placed,) = [line for line in lines if line.startswith("placement: ")]  # a slow machine adds lines
        note = lines[-1]
        return placed.split(", ")[1], note.split(" tokens")[0].rpartition(" ")[2]

    ask = ("run", "ls", "--model", tiny_q4)
    assert budget_and_threads() == ("1 thread", "6")
    assert budget_and_threads(EDGE_THREADS="2", EDGE_MAX_TOKENS="5") == ("2 threads", "5")
    assert budget_and_threads("--threads", 3, EDGE_THREADS="2") == ("3 threads", "6")
    _, held = user.default(EDGE_THREADS="2", EDGE_TEMPERATURE="0.5")
    assert held["threads"] == (2, "variable") and held["max_tokens"] == (6, "file")
    assert held["temperature"] == (0.5, "variable") and held["context"] == (None, "default")
    rows = {line.split()[0]: line for line in user.edge("config").stdout.splitlines() if line}
    assert rows["max_tokens"].split() == ["max_tokens", "6", "file"]
    assert rows["context"].endswith("default: the model's, within a limit")
    assert f'write model = "NAME" into {user.settings}, or set EDGE_MODEL' in user.edge("config").stdout


def test_settings_do_not_change_figures(user: User, tiny_q4: Path) -> None:
    """`edge eval` takes the threads of the file, and no setting that changes answers."""
    user.set("threads = 1\nmax_tokens = 6\ntemperature = 1.5\ncontext = 256\n")
    done = user.edge("eval", "--model", tiny_q4, "--limit", 1, "--out", "result.json")
    assert done.returncode == 0 and "1 thread," in done.stderr
    sampling = json.loads((user.work / "result.json").read_text())["sampling"]
    assert sampling["max_tokens"] == 1024 and sampling["temperature"] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thread = 1\n", "unknown key 'thread'; did you mean threads? All keys: version, model, threads"),
        ("xyzzy = 1\n", "unknown key 'xyzzy'; the keys are version, model, threads"),
        ("threads = true\n", "threads is true; it must be a whole number from 1 to 512"),
        ("threads = 0\n", "threads is 0"),
        ('context = "8192"\n', "context is '8192'; it must be a whole number"),
        ("temperature = nan\n", "temperature is nan"),
        ("model = 3\n", "model is 3; it must be a path or the name of a model"),
        ("version = 2\n", "is of version 2, and this edge reads version 1: update edge"),
        ('version = "1"\n', "version is '1'"),
        ("threads = \n", "cannot be read as TOML"),
        ("[threads]\na = 1\n", "threads is a table"),
    ],
)
def test_a_bad_file_of_settings_is_one_line(user: User, text: str, words: str) -> None:
    user.set(text)
    done = user.edge("run", "ls")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {user.settings}: ") and len(done.stderr.splitlines()) == 1
    assert words in done.stderr


def test_bad_variables_and_what_works_with_a_bad_file(user: User, tmp_path: Path) -> None:
    done = user.edge("run", "ls", EDGE_THREADS="many")
    assert done.returncode == 1
    assert done.stderr == "error: EDGE_THREADS: 'many' is not a whole number from 1 to 512\n"
    user.set("threads = 0\n")
    assert user.edge("config", "path").stdout == f"{user.settings}\n"
    assert user.edge("run", "--help").returncode == 0
    assert user.edge("config").returncode == 1
    other = tmp_path / "other.toml"
    assert user.edge("config", "path", EDGE_CONFIG=str(other)).stdout == f"{other}\n"
    done = user.edge("config", EDGE_CONFIG=str(other))
    assert done.returncode == 1
    assert done.stderr == f"error: EDGE_CONFIG: {other}: no such file; make it, or unset EDGE_CONFIG\n"
    other.write_bytes(b"\xef\xbb\xbfthreads = 1\r\n")  # as editors of Windows write it
    assert user.default(EDGE_CONFIG=str(other))[1]["threads"] == (1, "file")


def test_a_home_folder_that_is_not_there(user: User) -> None:
    """A `~` that means nothing, and a user without a home folder: one line that names the variable."""
    for variable, words in (("EDGE_CONFIG", ("config", "path")), ("EDGE_MODELS", ("models",))):
        done = user.edge(*words, **{variable: "~edge-nobody/x"})
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(
            f"error: {variable}: ~edge-nobody/x: there is no home folder for ~edge-nobody; "
        )
    # No entry in the list of users and no HOME, as in a container.
    code = (
        "import os, pwd, sys; del os.environ['HOME']\n"
        "def none(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = none; sys.argv[1:] = ['config', 'path']\n"
        "from edge.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=user.environment({}), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: EDGE_CONFIG: is not set, and this user has no home folder; set HOME or EDGE_CONFIG\n"
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("here/models", "is not an absolute path; give {work}/here/models"),
        ("{work}/app", "is a file; give a folder"),
    ],
)
def test_a_model_store_that_cannot_be_one(user: User, value: str, words: str) -> None:
    (user.work / "app").touch()
    value, words = (text.format(work=user.work) for text in (value, words))
    for command in (("models",), ("config",), ("run", "ls"), ("pull", "tiny-terminal")):
        done = user.edge(*command, EDGE_MODELS=value)
        assert done.returncode == 1
        assert done.stderr == f"error: EDGE_MODELS: {value}: {words}\n"


def test_a_home_folder_in_every_variable(user: User) -> None:
    user.set("version = 1\n")
    found = user.edge(
        "config", "--json", EDGE_CONFIG="~/.config/edge/config.toml", EDGE_MODELS="~/mine"
    ).stdout
    assert json.loads(found)["file"] == str(user.settings) and json.loads(found)["file_exists"]
    assert json.loads(found)["store"] == str(user.home / "mine")
    assert user.edge("config", "path", XDG_CONFIG_HOME="~/own").stdout == (
        f"{user.home / 'own' / 'edge' / 'config.toml'}\n"
    )
