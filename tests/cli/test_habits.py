"""What people expect of a command line: encodings, widths, Ctrl-C, paths, names of options, help, pipes.

pytest tests/cli/test_habits.py
"""

import codecs
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import command_line
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.cli.common import one_line
from edge.runner import Runner
from edge.system.progress import Watch

pytestmark = pytest.mark.slow
COMMANDS = [
    *("convert", "run", "agent", "serve", "eval", "compare", "report", "sweep", "measure", "score"),
    *("replay", "prompt", "imatrix", "inspect", "models", "doctor", "bundle", "unbundle"),
]
PROGRAM = [sys.executable, "-m", "edge"]
ROW = {
    "task_id": "tâche-日本",
    "step_idx": 0,
    "messages": [{"role": "user", "content": "écran 😀 → …"}],
    "ref_raw": json.dumps(
        {"analysis": "é😀", "plan": "", "commands": [], "task_complete": True}, ensure_ascii=False
    ),
}


def edge(
    *arguments: object, stdin: bytes = b"", cwd: Path | None = None, **env: str
) -> tuple[int, bytes, str]:
    process = command_line.start(
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, **env},
        program="python -m edge",
    )
    out, error = process.communicate(stdin, timeout=300)
    assert process.returncode is not None
    return process.returncode, out, error.decode(errors="replace")


def on_a_terminal(width: int, *arguments: object, cwd: Path, **env: str) -> str:
    """What a command writes on a terminal of this width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", **env}
    child = command_line.start(
        *arguments,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env=environment,
        program="python -m edge",
    )
    os.close(slave)
    data = b""
    try:
        while part := os.read(master, 65536):
            data += part
    except OSError:  # the other end is closed
        pass
    os.close(master)
    assert child.wait() == 0, data
    return data.decode()


def lines(text: str) -> list[str]:
    """The lines that a terminal shows at any time, without their escape sequences."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", text)
    return re.split(r"[\r\n]+", plain)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "é.jsonl"
    path.write_text("".join(json.dumps({**ROW, "step_idx": i}) + "\n" for i in range(3)))
    return path


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_streams_of_any_encoding(encoding: str, rows: Path, tmp_path: Path, tiny_q4: Path) -> None:
    model = tmp_path / "modèle-日本.gguf"
    model.symlink_to(tiny_q4)
    eval_ = ("eval", "-m", model, "-r", rows, "-o", "ré.json", "--max-tokens", 8)
    calls: tuple[tuple[object, ...], ...] = (
        *(eval_, ("compare", "ré.json", "--reference", "ré.json"), ("replay", rows), ("inspect", model)),
        *(("measure", "-m", model, "-r", rows, "-o", "mé.json"), ("report", "ré.json", "-o", "pé.html")),
        ("doctor", "-m", model),
    )
    for call in calls if encoding == "ascii" else calls[:2]:
        code, out, error = edge(*call, cwd=tmp_path, PYTHONIOENCODING=encoding)
        assert code == 0 and "Traceback" not in error, (call, error)
        out.decode(encoding)
    # Escapes in text are those of JSON, also above U+FFFF: nothing is lost.
    _, shown, _ = edge("replay", rows, PYTHONIOENCODING=encoding)
    text = json.loads(f'"{shown.decode(encoding)}"', strict=False)
    assert "écran 😀 → …" in text and "tâche-日本" in text
    code, out, error = edge("convert", "nö/日本", "--offline", PYTHONIOENCODING=encoding, cwd=tmp_path)
    assert code == 1 and error.count("\n") == 1
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps(ROW["messages"]))
    _, out, _ = edge("prompt", "--messages", messages, "-m", model, PYTHONIOENCODING=encoding)
    assert "écran" in out.decode(encoding) or "\\u00e9cran" in out.decode(encoding)
    # A model's JSON stays the same JSON.
    asked = ("run", "Écris → 日本.", "-m", model, "--json", "--quiet", "--temperature", "3", "--seed", "4")
    plain, escaped = (edge(*asked, PYTHONIOENCODING=name)[1].decode(name) for name in ("utf-8", encoding))
    assert json.loads(plain) == json.loads(escaped)
    if encoding == "ascii":
        assert not plain.isascii() and codecs.lookup(encoding).name == "ascii"


BROKEN = {
    "raise ModuleNotFoundError(\"No module named 'llama_cpp'\", name='llama_cpp')": "is missing",
    "raise RuntimeError('Failed to load shared library libllama.so')": "Failed to load shared library",
    "raise OSError('libcudart.so.12: cannot open shared object file')": "libcudart.so.12",
    "version = 1": "has no attribute",
}


@pytest.mark.parametrize("source", BROKEN)
def test_a_missing_or_broken_llama_cpp_is_one_line(source: str, tiny_q4: Path, tmp_path: Path) -> None:
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    root = str(Path(__file__).resolve().parents[2])
    commands: tuple[tuple[object, ...], ...] = (
        *(("run", "x", "-m", tiny_q4), ("serve", "-m", tiny_q4, "--port", 0)),
        ("convert", Path("models/tiny-terminal").absolute(), "-o", "x.gguf"),
    )
    for command in commands[: 3 if "version" not in source else 2]:
        code, _, error = edge(*command, cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{root}")
        assert code == 1 and error.count("\n") == 1 and error.startswith("error: "), error
        assert BROKEN[source] in error and "pip install" in error and "llama-cpp-python" in error


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["run", "x", "--top-p", "3"], "--top-p"),
        (["run", "x", "--top-p", "0"], "--top-p"),
        (["run", "x", "--min-p=-1"], "--min-p"),
        (["eval", "--repetition-penalty=-1"], "--repetition-penalty"),
        (["run", "x", "--temperature", "nan"], "--temperature"),
        (["agent", "x", "--time-limit", "inf"], "--time-limit"),
        (["run", "x", "--style", "x"], "--style"),
        (["run", "x", "--model", ""], "--model"),
        (["eval", "--replay", ""], "--replay"),
        (["convert", ""], "SOURCE"),
        (["convert", "x/y", "--quant", "Q9"], "--quant"),
        (["convert", "x/y", "--tensor-type", "a=Q9"], "--tensor-type"),
        (["convert", "x/y", "--output-tensor-type", "Q9"], "--output-tensor-type"),
        (["sweep", "x/y", "--out", "o", "--quants", "Q8_0,Q9"], "--quants"),
        (["measure", "-m", "x", "-o", "y", "--text", "t", "--ctx", "9"], "--context"),
    ],
)
def test_a_wrong_value_names_its_option(arguments: list[str], option: str, tmp_path: Path) -> None:
    code, _, error = edge(*arguments, cwd=tmp_path)
    assert code == 2 and option in error and "Value error" not in error, error


def test_a_pattern_that_is_no_regular_expression(tiny_folder: Path, tmp_path: Path) -> None:
    code, _, error = edge("convert", tiny_folder, "--tensor-type", "[=Q8_0", "-o", tmp_path / "x.gguf")
    assert code == 2 and "--tensor-type: [: is not a regular expression" in error
    assert not list(tmp_path.iterdir())


def test_flash_attention_has_a_remedy(tiny_q4: Path) -> None:
    code, _, error = edge("run", "x", "-m", tiny_q4, "--kv-type", "q8_0", "--no-flash-attention")
    assert code == 1 and "leave out --no-flash-attention" in error


def test_the_same_options_everywhere() -> None:
    helps = {command: edge(command, "--help")[1].decode() for command in COMMANDS}
    layers = set()
    for command, text in helps.items():
        shown = text.partition("Arguments:" if "Arguments:" in text else "Options:")[2]
        assert not re.search(r"<(str|int|float|path|list|file|dir)\b", shown), command
        assert ("--context" in text) == ("--context, --ctx N" in text), command
        options = (" ".join(part.split()) for part in re.split(r"\n  (?=-)", text))
        layers |= {option for option in options if option.startswith("--gpu-layers")}
    assert len(layers) == 1
    for command in (
        "run",
        "agent",
        "serve",
        "eval",
        "measure",
        "imatrix",
        "sweep",
        "convert",
        "doctor",
        "prompt",
    ):
        assert "-v, --verbose" in helps[command], command


def test_paths_with_a_tilde(tiny_q4: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(tiny_q4)
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    code, out, error = edge("inspect", "~/m.gguf", "--json", **home)
    assert code == 0 and json.loads(out), error
    call = ("eval", "--model=~/m.gguf", f"--replay=~/{rows.name}", "--out=~/r.json", "--max-tokens", 4)
    assert edge(*call, **home)[0] == 0
    assert edge("compare", "~/r.json", "--reference=~/r.json", **home)[0] == 0


def test_help_version_and_the_name_of_the_program() -> None:
    assert edge("-V")[1] == edge("--version")[1]
    assert edge("help", "run")[1] == edge("run", "--help")[1]
    assert edge("help")[1] == edge("--help")[1]
    assert edge("run", "--help")[1].startswith(b"Usage: python -m edge run ")
    code, _, error = edge("help", "nothing")
    assert code == 2 and "error: no command nothing" in error


@pytest.mark.parametrize(("words", "found"), [("edge ins", {"inspect"}), ("edge run --sty", {"--style"})])
def test_the_shell_completes(words: str, found: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from edge.cli.main import main; main()"],
        env={
            **os.environ,
            "_EDGE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        },
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.split()) == found, done.stderr


def test_standard_input_as_a_file(tiny_q4: Path) -> None:
    options = ("-m", tiny_q4, "--quiet")
    screen = edge("run", "List it.", "--screen", "-", *options, stdin="$ é\n".encode())
    messages = json.dumps([{"role": "user", "content": "Hello."}]).encode()
    conversation = edge("run", "--messages", "-", *options, stdin=messages)
    for code, out, error in (screen, conversation):
        assert code == 0 and json.loads(out), error
    assert edge("prompt", "--messages", "-", "-m", tiny_q4, stdin=messages)[0] == 0
    code, _, error = edge("run", "--screen", "-", *options, stdin=b"x")
    assert code == 2 and "standard input is the screen" in error
    code, _, error = edge("run", "x", "--screen", "-", *options, stdin=b"\xff")
    assert code == 1 and "is not UTF-8" in error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_one_line_keeps_every_string_and_number(
    value: object, indent: int | str | None, ascii_: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    assert one_line(text) == json.dumps(value, ensure_ascii=ascii_)


def test_one_line_keeps_the_spelling() -> None:
    written = '{\r\n"a" :"\\u00e9 :, \\" \\\\","b":[ 1.0e+01 ,-0,\n{} , [] ]}'
    assert one_line(written) == '{"a": "\\u00e9 :, \\" \\\\", "b": [1.0e+01, -0, {}, []]}'


def test_a_pipe_gets_one_line_unless_a_style_is_given(tiny_q4: Path) -> None:
    call = ("run", "Remove the file old.log.", "-m", tiny_q4, "--quiet")
    assert edge(*call)[1].count(b"\n") == 1
    assert edge(*call, "--style", "indented")[1].count(b"\n") > 5


def test_a_prompt_in_another_encoding_and_a_long_thought_are_noted(tiny_q4: Path, tmp_path: Path) -> None:
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps(ROW["messages"]))
    call = ("prompt", "--messages", messages, "-m", tiny_q4)
    code, _, error = edge(*call, PYTHONIOENCODING="ascii")
    assert code == 0 and "4 characters of the prompt printed as an escape such as \\u00e9" in error
    assert "PYTHONIOENCODING=utf-8" in error
    assert edge(*call, PYTHONIOENCODING="utf-8")[2] == ""
    call = ("run", "x", "-m", tiny_q4, "--max-tokens", 8, "--quiet")
    assert "--think 5000 is not below --max-tokens 8" in edge(*call, "--think", 5000)[2]
    assert "--think" not in edge(*call, "--think", 7)[2]


def test_the_log_of_llama_cpp(tiny_q4: Path) -> None:
    quiet, verbose = (edge("run", "x", "-m", tiny_q4, "--max-tokens", 1, *more)[2] for more in ((), ("-v",)))
    assert "llama_model_loader: loaded meta data" in verbose and "llama_model_loader" not in quiet
    assert "is not marked as EOG" not in verbose or verbose.count("\n") < 400


@pytest.mark.parametrize("width", [80, 40])
def test_no_line_is_wider_than_the_terminal(width: int, rows: Path, tmp_path: Path, smollm2_q4: Path) -> None:
    call = ("eval", "-m", smollm2_q4, "-r", rows, "-o", f"{width}.json", "--max-tokens", 30, "--parallel", 1)
    text = on_a_terminal(width, *call, cwd=tmp_path)
    assert "tokens/s in" in text and "0 of 0 valid" not in text
    compare = ("compare", f"{width}.json", "--reference", f"{width}.json")
    for command in (call, ("inspect", smollm2_q4), compare, ("config",), ("models", "known")):
        for line in lines(on_a_terminal(width, *command, cwd=tmp_path)):
            assert len(line) <= width, line


def test_a_terminal_that_cannot_draw(rows: Path, tmp_path: Path, tiny_q4: Path) -> None:
    call = ("eval", "-m", tiny_q4, "-r", rows, "-o", "r.json", "--max-tokens", 30)
    assert "\x1b" not in on_a_terminal(80, *call, cwd=tmp_path, TERM="dumb")


def test_a_resumed_run_shows_no_zero_of_zero() -> None:
    watch = Watch(12, 3, lambda: (10, 10), None)
    assert not any("valid" in figure for figure in watch.figures())
    watch.finished(10, True)
    assert "1 of 1 valid now" in watch.figures()


def test_ctrl_c_while_a_prompt_is_read(smollm2_q4: Path, tmp_path: Path) -> None:
    """Off a terminal, a line says how far it is; Ctrl-C ends a batch of minutes early."""
    screen = tmp_path / "screen.txt"
    screen.write_text(" ".join(f"word{i} is here" for i in range(1200)))
    call = ("run", "Look.", "--screen", screen, "-m", smollm2_q4, "--max-tokens", 64, "--threads", 1)
    with subprocess.Popen([*PROGRAM, *map(str, call)], stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if re.match(r"reading the prompt: [\d,]+ of [\d,]+ tokens, [\d:]+ left$", line):
                break
        else:
            pytest.fail("no line of progress")
        time.sleep(0.3)  # inside the next batch
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == "interrupted; nothing was written\n"
        assert child.wait() == 130 and time.monotonic() - began < 3


@pytest.mark.parametrize("model", ["smollm2_q4", "tiny_q4"])  # a transformer and a hybrid
def test_a_runner_stays_usable_after_ctrl_c(model: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    short = [{"role": "user", "content": "Remove old.log."}]
    with Runner.load(path, batch=4096, threads=1) as runner:
        long = runner.encode("word is here. " * 1200)[:4000]
        expected = runner.act(short, 40).text
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        began = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            runner.act_on(long)
            time.sleep(5)  # a computer that read it in less than 0.3 s
        assert time.monotonic() - began < 4
        assert runner.act(short, 40).text == expected


def test_a_server_logs_requests_and_its_end(tiny_q4: Path) -> None:
    call = [*PROGRAM, "serve", "-m", str(tiny_q4), "--port", "0"]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        url = next(found[0] for line in child.stderr if (found := re.search(r"http://\S+?(?=/v1)", line)))
        for path, status in (("/v1/models", 200), ("/health", 200), ("/%1b[31m", 404)):
            assert httpx.get(url + path).status_code == status
        child.send_signal(signal.SIGINT)
        log = child.stderr.read()
    assert re.search(
        r"^\d{4}-\d\d-\d\d [\d:]{8} 127.0.0.1 GET /v1/models 200 \d+\.\d\d s$", log, re.MULTILINE
    )
    assert r"GET /\x1b[31m 404" in log and "\x1b" not in log and "/health" not in log
    assert log.endswith("stopped\n") and child.wait() == 0


def test_no_character_of_an_action_is_hidden_on_a_terminal(tiny_q4: Path, tmp_path: Path) -> None:
    """A person reviews it there. At a very high temperature the model writes any byte, also of invisible characters."""
    words = ("run", "List the files.", "-m", tiny_q4, "--quiet", "--threads", 1, "--max-tokens", 1500)
    words += ("--temperature", 1000, "--seed", 3)
    code, piped, _ = edge(*words)
    text = piped.decode()
    assert code == 0 and not text.strip().isprintable()  # as the model wrote it
    streamed = on_a_terminal(80, *words, cwd=tmp_path)
    shown = on_a_terminal(80, *words, "--json", cwd=tmp_path)
    for seen in (streamed, shown):
        assert all(char.isprintable() or char in "\r\n\t" for char in seen)
    assert json.JSONDecoder().raw_decode(streamed.lstrip())[0] == json.loads(text)  # a note follows
    assert json.loads(json.loads(shown)["text"]) == json.loads(text)


def test_streams_that_are_closed(tiny_q4: Path, tmp_path: Path) -> None:
    """`<&-`: there is no terminal, so nobody answers."""
    for words, code in (("agent", 0), ("chat", 0), ("run", 2)):
        ended = subprocess.run(
            ["sh", "-c", 'exec "$@" <&-', "sh", *PROGRAM, words, "-m", str(tiny_q4), "--max-tokens", "8"]
            + (["List the files."] if words == "agent" else []),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in ended.stderr and ended.returncode == code, ended.stderr
