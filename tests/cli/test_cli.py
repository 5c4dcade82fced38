"""The command line: help texts, outputs, exit codes, and one line for each error.

pytest tests/cli/test_cli.py
"""

import ast
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import command_line
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

# In the order of `edge --help`: from the first use to the rare one.
COMMANDS = [
    *("pull", "convert", "run", "chat", "agent", "serve", "eval", "trial", "compare", "report", "rank"),
    *(
        "sweep",
        "measure",
        "score",
        "join",
        "replay",
        "prompt",
        "imatrix",
        "inspect",
        "schema",
        "doctor",
        "tune",
    ),
    *("bundle", "unbundle", "help"),
    *("rows", "allow", "models", "config"),
]
LONGEST_SUMMARY = 62  # characters; longer ones are cut in 80 columns


def edge(*arguments: object, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return command_line.run(
        *arguments,
        input=stdin,
        cwd=cwd,
        env={
            **os.environ,
            "EDGE_CACHE": str(cwd or Path("build/test-cache").absolute()),
            "EDGE_MODELS": str(cwd or Path("build/test-models-store").absolute()),
        },
    )


def one_line_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    if code == 1:
        assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_the_list_of_commands() -> None:
    done = edge("--help")
    assert done.returncode == 0
    lines = [line.split(maxsplit=1) for line in done.stdout.split("Commands:\n")[1].splitlines()]
    assert [name for name, _ in lines] == COMMANDS
    for name, summary in lines:
        assert re.fullmatch(r"[A-Z].*[^.]\.", summary) and len(summary) <= LONGEST_SUMMARY, name


def test_help_of_every_command() -> None:
    for command in COMMANDS:
        done = edge(command, "--help")
        assert done.returncode == 0 and "Usage: " in done.stdout
        options = re.split(r"\n  (?=-)", done.stdout.split("Options:")[1])[1:]
        assert options
        for option in options:  # a name, a value, then a sentence
            assert re.search(r"(  |\n {4,})\w[^\n]{8,}", option), option


def test_no_torch_and_nothing_heavy_before_it_is_needed() -> None:
    heavy = "torch numpy llama_cpp gguf llguidance transformers tokenizers jinja2 huggingface_hub"
    code = f"import edge.cli.main, sys; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["run", "task", "--max-tokens", "0"],
        ["run", "task", "--think", "much"],
        ["run", "task", "--messages", "m.json"],
        ["run", "   "],
        ["run"],
        ["eval", "--limit", "0"],
        ["score", "p.jsonl"],
        ["compare", "r.json"],
        ["convert"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    one_line_error(edge(*arguments), 2)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("Interrupted('interrupted after 3 steps\\x1b[2J')", "interrupted after 3 steps\\x1b[2J"),
        ("KeyboardInterrupt()", "interrupted; nothing was written"),
    ],
)
def test_an_interruption_is_one_line_and_exit_code_130(error: str, line: str) -> None:
    code = (
        "import edge.replay.score\nfrom edge.errors import Interrupted\n"
        f"def stop(*arguments, **options): raise {error}\n"
        "edge.replay.score.score = stop\nfrom edge.cli.main import main\nmain()"
    )
    command = [sys.executable, "-c", code, "score", "predictions.jsonl", "--replay", "rows.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{line}\n")


STARTS = {
    "an import": "class Stop:\n    def find_spec(self, name, path=None, target=None):\n"
    "        if name == 'typer': raise KeyboardInterrupt\nsys.meta_path.insert(0, Stop())\n",
    "the commands": "import typer.main\ndef stop(*arguments, **options): raise KeyboardInterrupt\n"
    "typer.main.get_command_from_info = stop\n",
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_an_interruption_of_the_start_is_one_line_too(start: str) -> None:
    """The imports take a quarter of a second, and more on a busy machine; Typer makes the commands after them."""
    code = f"import runpy, sys\n{start}runpy.run_module('edge', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, "run", "ls"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; nothing was written\n")


def test_bad_files_are_one_line_and_exit_code_1(tmp_path: Path, tiny_q4: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_q4.read_bytes()[:5000])
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{\n")
    binary = tmp_path / "binary"
    binary.write_bytes(bytes(range(256)))
    for arguments, word in (
        (["run", "x", "--model", tmp_path / "none.gguf"], "none.gguf"),
        (["run", "x", "--model", broken], "broken.gguf"),
        (["run", "x", "--model", tmp_path], str(tmp_path)),
        (["run", "x", "--model", tiny_q4, "--screen", tmp_path / "none.txt"], "none.txt"),
        (["run", "x", "--model", tiny_q4, "--screen", binary], "binary"),
        (["run", "--messages", tmp_path / "none.json", "--model", tiny_q4], "none.json"),
        (["run", "--messages", rows, "--model", tiny_q4], "rows.jsonl"),
        (["eval", "--model", tiny_q4, "--replay", rows, "--out", tmp_path / "o.json"], "rows.jsonl"),
        (["eval", "--model", tiny_q4, "--replay", binary, "--out", tmp_path / "o.json"], "binary"),
        (["score", binary, "--replay", rows, "--out", tmp_path / "o.json"], "rows.jsonl:1"),
        (["compare", rows, "--reference", rows], "rows.jsonl"),
        (["compare", tmp_path / "none.json", "--reference", "no-such-model"], "no-such-model"),
        (["prompt", "--model", broken, "--messages", rows], "rows.jsonl"),
        (["doctor", "--model", broken], "broken.gguf"),
        (["eval", "--model", tiny_q4, "--out", tmp_path], str(tmp_path)),
        (["eval", "--model", tiny_q4, "--ctx", 10**9, "--out", tmp_path / "o.json"], "context"),
        (["run", b"\xff bad", "--model", tiny_q4], "UTF-8"),
        (["convert", tmp_path / "nowhere"], "nowhere"),
        (["convert", tmp_path], "config.json"),
    ):
        one_line_error(edge(*arguments, cwd=tmp_path), 1, word)
    assert not (tmp_path / "o.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["binary", "broken.gguf", "rows.jsonl"]


def test_no_message_names_a_page_that_an_installed_edge_lacks() -> None:
    """Pages of docs/ are in comments and docstrings only: a wheel has no docs."""
    named = []
    for path in (ROOT / "edge").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        named += [
            f"{path}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
            if re.search(r"docs/[\w-]+\.md", node.value)
        ]
    assert named == []


def test_files_of_another_kind_are_named_plainly(tmp_path: Path, tiny_q4: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes\n")
    (tmp_path / "newer.json").write_text(
        '{"schema_version": 2, "messages": [{"role": "user", "content": "ls"}]}'
    )
    one_line_error(
        edge("replay", "notes.md", cwd=tmp_path), 1, "notes.md:1: ", "(see `edge schema session-record`)"
    )
    other = "error: notes.md: is damaged, or is not a result of `edge eval` or `edge score`\n"
    for words in (
        ("compare", "notes.md", "--causes"),
        ("report", "notes.md"),
        ("compare", "notes.md", "--reference", "notes.md"),
    ):
        assert edge(*words, cwd=tmp_path).stderr == other
    for words in (("run", "--model", tiny_q4), ("prompt", "--model", tiny_q4)):
        newer = edge(*words, "--messages", "newer.json", cwd=tmp_path)
        one_line_error(newer, 1, "newer.json: has schema version 2; this edge reads up to 1: update edge")


def test_run_prints_the_action_alone_to_a_pipe(tiny_q4: Path, tmp_path: Path) -> None:
    done = edge("run", "List the files in notes.", "--model", tiny_q4, "--max-tokens", 200)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("placement: CPU, ")
    assert "1 answer at a time" in done.stderr
    assert list(json.loads(done.stdout)) == ["analysis", "plan", "commands", "task_complete"]
    from_stdin = edge("run", "--model", tiny_q4, "--max-tokens", 200, stdin="List the files in notes.\n")
    assert from_stdin.stdout == done.stdout
    whole = json.loads(
        edge("run", "List the files in notes.", "-m", tiny_q4, "--max-tokens", 200, "--json").stdout
    )
    quiet = edge("run", "List the files in notes.", "-m", tiny_q4, "--max-tokens", 9, "--json", "--quiet")
    assert quiet.returncode == 0 and quiet.stderr == ""
    assert whole["text"] == done.stdout.strip() and whole["prompt_tokens"] > 10
    screen = tmp_path / "screen"
    screen.write_text("user@box:~$ ")
    done = edge("run", "List the files in notes.", "-m", tiny_q4, "--screen", screen, "--max-tokens", 5)
    assert done.returncode == 0 and "budget" in done.stderr
    json.loads(done.stdout)


def test_a_terminal_sees_the_answer_as_it_is_written(tiny_q4: Path) -> None:
    """On a pseudo-terminal, the text comes in several pieces, and no piece ends in an open command."""
    parent, child = pty.openpty()
    code = "from edge.cli.main import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "run",
        "List the files in notes.",
        "-m",
        str(tiny_q4),
        "--max-tokens",
        "200",
    ]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=subprocess.DEVNULL) as process:
        os.close(child)
        pieces = []
        while True:
            try:
                piece = os.read(parent, 4096)
            except OSError:  # Linux reports the end of a pseudo-terminal in this way
                break
            if not piece:
                break
            pieces.append(piece)
        os.close(parent)
    assert process.returncode == 0 and len(pieces) > 5
    so_far = ""
    for piece in pieces:
        so_far += piece.decode()
        assert so_far.count("{") - so_far.count("}") <= 1  # the action itself
    assert list(json.loads(so_far)) == ["analysis", "plan", "commands", "task_complete"]


def test_without_a_model_the_embedded_one_is_converted_once(tiny_folder: Path, tmp_path: Path) -> None:
    first = edge("run", "List the files in notes.", "--max-tokens", 64, cwd=tmp_path)
    assert first.returncode == 0 and "converting the embedded" in first.stderr
    second = edge("run", "List the files in notes.", "--max-tokens", 64, cwd=tmp_path)
    assert second.stdout == first.stdout and "converting" not in second.stderr


def test_prompt_of_a_gguf_and_of_its_folder_are_the_same(
    tiny_q4: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps([{"role": "user", "content": "Grüße, 세계 🙂\n\n   $ ls  -la\t|wc"}]))
    for flags in ([], ["--tokens"]):
        a = edge("prompt", "--model", tiny_q4, "--messages", messages, *flags)
        b = edge("prompt", "--model", tiny_folder, "--messages", messages, *flags)
        assert a.returncode == b.returncode == 0 and a.stdout == b.stdout and a.stdout.strip()


def test_models_and_doctor(tiny_q4: Path) -> None:
    assert "LFM2.5-8B-A1B-Terminal-ToolBench-Full-SFT-1Epoch" in edge("models", "known").stdout
    done = edge("doctor", "--model", tiny_q4)
    assert done.returncode == 0 and "llama" in done.stdout.lower()
