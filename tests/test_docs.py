"""README.md and docs/ say what is true: help texts, command lines, examples, links.

.venv/bin/pytest tests/test_docs.py -m "not slow"    options, links, and that docs/commands.md is fresh
.venv/bin/pytest tests/test_docs.py                  also runs each command line on the embedded model

The command lines are those in `sh` and `console` blocks. A comment before a block changes that:

<!-- not run: REASON -->      the commands do not run here; their options must still exist
<!-- needs: PROGRAM ... -->   the commands run only where these programs work
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge import __version__

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "commands_page.py"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r" {0,3}```(\w*)\s*$")
OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
HUB_ID = "LLM-OS-Models/LFM2.5-8B-A1B-Terminal-ToolBench-Full-SFT-1Epoch"


@dataclass(frozen=True)
class Block:
    """A fenced block and the comment right before it."""

    page: Path
    line: int
    language: str
    text: str
    comment: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def console(self) -> bool:
        """Whether it is a recorded session: `$ command` lines with their output."""
        return self.language in ("console", "") and re.search(r"^\$ ", self.text, re.MULTILINE) is not None

    @property
    def commands(self) -> list[str]:
        """Its command lines; none where it has no commands."""
        if self.console:
            return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]
        if self.language in ("sh", "powershell"):
            return self.text.replace("\\\n", " ").splitlines()
        return []

    @property
    def not_run(self) -> bool:
        return re.match(r"<!-- not run: \S.* -->", self.comment) is not None

    @property
    def needs(self) -> list[str]:
        found = re.match(r"<!-- needs: (.+) -->", self.comment)
        return found[1].split() if found else []


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start, language = None, ""
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence and start is None:
            start, language = number, fence[1]
        elif fence and start is not None:
            text = "\n".join(lines[start + 1 : number])
            yield Block(page, start + 1, language, text, lines[start - 1].strip() if start else "")
            start = None


def options_of_commands() -> dict[str, set[str]]:
    """The options of each command, from docs/commands.md, which another test compares with the help texts."""
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    found = {"": {"--version", "-V", "-h", "--help", "--install-completion", "--show-completion"}}
    for section in text.split("\n## edge ")[1:]:
        name, _, body = section.partition("\n")
        found[name] = set(OPTION.findall(body.partition("Options:")[2]))
    return found


def edge_calls(line: str) -> Iterator[list[str]]:
    """The words of each call of edge in a command line, without the word `edge`."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();&|")
    lexer.whitespace_split = True
    call: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("();&|"):
            call.append(word)
            continue
        while call and (call[0] in ("do", "then", "time") or re.match(r"\w+=", call[0])):
            call.pop(0)
        if call and re.split(r"[/\\]", call[0])[-1] == "edge":
            yield call[1:]
        call = []


def wrong_words(words: list[str], known: dict[str, set[str]]) -> list[str]:
    """What edge does not know in one call."""
    name = words[0] if words and not words[0].startswith("-") else ""
    if name not in known:
        return [name]
    if len(words) > 1 and f"{name} {words[1]}" in known:
        name = f"{name} {words[1]}"
    used = [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    return [option for option in used if option not in known[name]]


# Help texts


@pytest.mark.slow
def test_help_texts_are_fresh() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    if done.stdout.startswith("note: not checked"):
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr


def test_a_copy_of_a_help_text_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from commands_page import with_copies  # type: ignore[import-not-found]

    seed = "  --seed N          A number,\n                    or none."
    help_text = f"Usage: edge run\n\nOptions:\n  -m, --model PATH  A GGUF.\n{seed}\n  --top-k N         Few."
    page = "a\n<!-- help: edge run --seed -->\nold\n<!-- end help -->\nb\n<!-- help: edge run -->\n<!-- end help -->\n"
    assert with_copies("page", page, {"run": help_text}) == (
        f"a\n<!-- help: edge run --seed -->\n```text\n{seed}\n```\n<!-- end help -->\nb\n"
        f"<!-- help: edge run -->\n```text\n{help_text}\n```\n<!-- end help -->\n"
    )
    for wrong in ("edge run --sed", "edge walk"):
        with pytest.raises(SystemExit):
            with_copies("page", page.replace("edge run --seed", wrong), {"run": help_text})


# Command lines


def test_every_option_in_the_docs_exists() -> None:
    known = options_of_commands()
    assert set(known) > {"", "convert", "run", "eval", "score", "compare", "prompt", "models", "doctor"}
    wrong = []
    for page in PAGES:
        for block in blocks(page):
            for line in block.commands:
                for words in edge_calls(line):
                    wrong += [f"{block.where}: edge {line}: {word}" for word in wrong_words(words, known)]
        if page.name != "commands.md":
            for span in re.findall(r"(?<!`)`edge ([^`\n]+)`(?!`)", page.read_text(encoding="utf-8")):
                words = span.split()
                if not words[0].isupper():
                    wrong += [f"{page.name}: `edge {span}`: {word}" for word in wrong_words(words, known)]
    assert not wrong


def test_wrong_options_are_found() -> None:
    known = {"": {"--help"}, "run": {"--model", "-m"}}
    line = (
        "A=1 edge run -m x 'a task' && .venv/bin/edge walk; for x in a; do edge run --modl=x; done # edge fly"
    )
    assert [wrong_words(words, known) for words in edge_calls(line)] == [[], ["walk"], ["--modl"]]


def works(program: str) -> bool:
    """Whether a program is there; bubblewrap must also be permitted to make a namespace."""
    path = shutil.which(program)
    if path is None or program != "bwrap":
        return path is not None
    return (
        subprocess.run([path, "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True).returncode
        == 0
    )


def workplace(page: Path, folder: Path, q4: Path, bf16: Path) -> dict[str, str]:
    """A folder with the names that the docs use, each for the embedded model. Returns the environment for it."""
    converted = "--out models/terminal-Q4_K_M.gguf" in page.read_text(
        encoding="utf-8"
    )  # the page makes it itself
    embedded = ROOT / "models" / "tiny-terminal"
    for copy in (folder / "models" / "tiny-terminal", folder / HUB_ID):
        shutil.copytree(embedded, copy)
    if not converted:
        shutil.copy(q4, folder / "models" / "terminal-Q4_K_M.gguf")
    shutil.copy(bf16, folder / "models" / "terminal-bf16.gguf")
    with (embedded / "eval.jsonl").open(encoding="utf-8") as rows:
        (folder / "replay.jsonl").write_text("".join(next(rows) for _ in range(6)), encoding="utf-8")
    for name, source in {
        "MODEL-bf16.gguf": bf16,
        "BF16.gguf": bf16,
        "Q4_K_M.gguf": q4,
        "ROWS.jsonl": folder / "replay.jsonl",
        "FILE.txt": ROOT / "LICENSE",
    }.items():
        shutil.copy(source, folder / name)
    if "my-adapter" in page.read_text(encoding="utf-8"):
        from make_adapter import make_adapter

        make_adapter(embedded, folder / "my-adapter")
    (folder / "screen.txt").write_text("user@host:/app$ ls\ntest_app.py\nuser@host:/app$ \n")
    module, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][
        "edge"
    ].split(":")
    programs = folder.with_name(folder.name + "-bin")
    programs.mkdir()
    code = f"from {module} import {function}; {function}()"
    (programs / "edge").write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n'
    )
    (programs / "edge").chmod(0o755)
    home = folder.with_name(folder.name + "-home")
    home.mkdir()
    return {
        **{
            name: value for name, value in os.environ.items() if not name.startswith(("EDGE_", "HF_", "XDG_"))
        },
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "EDGE_CACHE": str(home / "cache"),
        "EDGE_STATE": str(home / "state"),
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "passive",  # llama.cpp's idle threads leave the cores to other tests
    }


def run(command: list[str], folder: Path, environment: dict[str, str], where: str) -> str:
    """What a command prints on both streams. It must succeed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, f"{where}: {command[-1]}\n{done.stdout}"
    return done.stdout


def form(text: str) -> list[object]:
    """A text's lines without what differs between machines: numbers, hashes, what the model writes."""
    found: list[object] = []
    for line in text.splitlines():
        if line.startswith("{"):
            found.append(list(json.loads(line)))
        else:
            found.append(re.sub(r"\b[0-9a-f]{64}\b|\d[\d.,]*", "N", line).rstrip())
    return found


def run_block(block: Block, folder: Path, environment: dict[str, str]) -> None:
    if not block.console:
        run(["sh", "-ec", block.text], folder, environment, block.where)
        return
    session = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    for part in session:
        command, _, recorded = part.partition("\n")
        printed = run(["sh", "-ec", command], folder, environment, block.where)
        assert form(printed) == form(recorded), f"{block.where}: {command} prints\n{printed}"


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.commands and not block.not_run]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_the_command_lines_run(page: Path, tmp_path: Path, tiny_q4: Path, tiny_bf16: Path) -> None:
    folder = tmp_path / "work"
    environment = workplace(page, folder, tiny_q4, tiny_bf16)
    if page.name == "README.md":  # its reader has the base's result already
        command = "edge eval --quiet --model models/terminal-bf16.gguf --replay replay.jsonl --out bf16.json"
        run(["sh", "-ec", command], folder, environment, "set-up")
    left_out = []
    for block in runnable(page):
        missing = [program for program in block.needs if not works(program)]
        if missing:
            left_out.append(f"{block.where} needs {', '.join(missing)}")
        else:
            run_block(block, folder, environment)
    if left_out:
        pytest.skip("; ".join(left_out))  # the rest has run


@pytest.mark.slow
def test_the_python_examples_run(tmp_path: Path, tiny_q4: Path, tiny_bf16: Path) -> None:
    folder = tmp_path / "work"
    page = ROOT / "docs" / "python.md"
    environment = workplace(page, folder, tiny_q4, tiny_bf16)
    examples = [block for block in blocks(page) if block.language == "python"]
    assert len(examples) >= 4
    for block in examples:
        printed = run([sys.executable, "-c", block.text], folder, environment, block.where)
        assert "Error" not in printed and "error" not in printed, printed
    assert (folder / "report.html").is_file()


def test_a_recorded_session_that_differs_is_found(tmp_path: Path) -> None:
    same = Block(ROOT / "README.md", 1, "console", '$ echo 12.5 s; echo \'{"a": 1}\'\n0.7 s\n{"a": "x"}', "")
    run_block(same, tmp_path, dict(os.environ))
    other = Block(ROOT / "README.md", 1, "console", "$ echo one\ntwo", "")
    with pytest.raises(AssertionError):
        run_block(other, tmp_path, dict(os.environ))
    with pytest.raises(AssertionError):
        run_block(Block(ROOT / "README.md", 1, "sh", "false\ntrue", ""), tmp_path, dict(os.environ))


# Links, lengths, names


def markdown_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]


def without_code(text: str) -> str:
    text = re.sub(r"^ {0,3}```.*?^ {0,3}```\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(`+).+?\1", "", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    text = re.sub(
        r"^ {0,3}```.*?^ {0,3}```\s*$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M
    )
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = next(n for n in range(1000) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def test_every_link_leads_somewhere() -> None:
    files = markdown_files()
    assert len(files) > 20
    broken = []
    for page in files:
        for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            place = (page.parent / name).resolve() if name else page
            if not place.exists() or (anchor and anchor not in anchors(place)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == {name for name in pages if f"]({name})" in index}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_architecture_page_names_every_folder_and_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "edge"
    folders = {path.parent.relative_to(package).as_posix() for path in package.rglob("*.py")} - {"."}
    assert {f"{folder.rpartition('/')[2]}/" for folder in folders} <= set(re.findall(r"`(\w+/)`", text))
    listed = re.findall(
        r"^\| `(\w+)/` \|", text.partition("## The folders")[2].partition("## ")[0], re.MULTILINE
    )
    assert sorted(listed) == sorted(folder for folder in folders if "/" not in folder)
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert modules <= set(re.findall(r"`(\w+\.py)`", text))


def test_files_of_the_repository_that_the_pages_name_exist() -> None:
    missing = []
    for page in PAGES:
        for name in re.findall(
            r"[` ]((?:edge|tests|scripts|benchmarks)/[\w./]+)(?![\w./{*…-])", page.read_text(encoding="utf-8")
        ):
            if not (ROOT / name.rstrip(".")).exists():
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == __version__


# The lock file


def test_the_lock_file_is_complete_and_names_no_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {re.split(r"[\[<>=~! ;]", text)[0].lower().replace("_", "-") for text in wanted}
    locked = set()
    files = sorted((ROOT / "requirements").glob("*.txt"))
    assert len(files) == 2
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "://" not in text and "file:" not in text and "--index" not in text
        for line in text.splitlines():
            if not line.startswith("#"):
                match = re.fullmatch(r"([a-z0-9-]+)==\S+ --hash=sha256:[0-9a-f]{64}", line)
                assert match, line
                locked.add(match[1])
    assert names <= locked, "run `make lock`"


def test_tests_that_pages_name_exist() -> None:
    """`test_x.py::test_name` in a page names a test of that file."""
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    missing = []
    for page in PAGES:
        for file, name in re.findall(r"(test_\w+\.py)(?:::(\w+))?", page.read_text(encoding="utf-8")):
            if file not in files or (name and f"def {name}(" not in files[file]):
                missing.append(f"{page.name}: {file}::{name}")
    assert missing == []
