"""Write docs/commands.md from the `--help` of every command, and renew the copies of help texts in other pages.

python scripts/commands_page.py            write the pages (`make docs`)
python scripts/commands_page.py --check    write nothing; name each stale page and exit 1 (`make check`)

A page copies a help text between two comments. Without options it copies the whole text; with options, their entries:

    <!-- help: edge run --threads --seed -->
    <!-- end help -->
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "commands.md"
LOCK = ROOT / "requirements" / "linux-x86_64-py311.txt"
COPY = re.compile(r"(<!-- help: edge ?([^\n]*?) ?-->\n).*?(<!-- end help -->)", re.DOTALL)

HEAD = """\
# Commands

<!-- Written by scripts/commands_page.py from the help texts. Do not edit this page: run `make docs`. -->

This page is the `--help` of each command. `edge COMMAND --help` prints the same text.

Exit codes: 0 success, 1 bad input or a failure that one line on stderr explains, 2 wrong usage, 130 interrupted.

"""

# One process prints every help text, since most of the time goes into starting Python.
CHILD = """
import contextlib, importlib, io, json, re, sys

module, function = sys.argv[1].split(":")
main = getattr(importlib.import_module(module), function)

def text(*words):
    sys.argv = ["edge", *words, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                raise
    return out.getvalue()

def below(*words):
    # The help text of a command, and those of the commands below it, by their names.
    found = {" ".join(words): text(*words)}
    commands = found[" ".join(words)].partition("Commands:")[2]
    for name in re.findall(r"^  ([a-z-]+)(?:  |$)", commands, re.MULTILINE):
        found |= below(*words, name)
    return found

print(json.dumps(below()))
"""


def help_texts() -> dict[str, str]:
    """The help text of each command, 80 columns wide; the one of `edge` itself under an empty name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    command = [sys.executable, "-c", CHILD, project["scripts"]["edge"]]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    texts: dict[str, str] = json.loads(done.stdout)
    return {
        name: "\n".join(line.rstrip() for line in text.strip().splitlines()) for name, text in texts.items()
    }


def commands_page(texts: dict[str, str]) -> str:
    rows = ["| command | what it does |", "|---|---|"]
    sections = []
    for name, text in texts.items():
        if not name:
            continue
        rows.append(f"| [`edge {name}`](#edge-{name.replace(' ', '-')}) | {_first_sentence(text)} |")
        sections.append(f"\n## edge {name}\n\n```text\n{text}\n```\n")
    return HEAD + "\n".join(rows) + "\n" + "".join(sections)


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[1].split())
    return re.split(r"(?<=[.;:?!]) ", paragraph)[0].rstrip(".;:")


def with_copies(page: str, text: str, texts: dict[str, str]) -> str:
    """`text`, the content of `page`, with each copy of a help text renewed."""

    def renewed(match: re.Match[str]) -> str:
        words = match[2].split()
        name = ""
        while words and not words[0].startswith("-"):
            name = f"{name} {words.pop(0)}".lstrip()
        if name not in texts:
            raise SystemExit(f"error: {page}: there is no command `edge {name}`")
        return f"{match[1]}```text\n{_entries(page, texts[name], words)}\n```\n{match[3]}"

    return COPY.sub(renewed, text)


def _entries(page: str, text: str, options: list[str]) -> str:
    if not options:
        return text
    entries = re.split(r"\n(?=  -)", text.partition("Options:\n")[2].partition("\n\n")[0])
    found = []
    for option in options:
        matching = [
            entry for entry in entries if option in re.findall(r"(?<![\w-])--?[\w-]+", entry.split("  ")[1])
        ]
        if not matching:
            raise SystemExit(f"error: {page}: there is no option {option} in\n{text}")
        found += matching
    return "\n".join(found)


def locked_version(name: str) -> str | None:
    """The version of a package in the lock file."""
    found = re.search(
        rf"^{name}==(\S+)", LOCK.read_text(encoding="utf-8") if LOCK.exists() else "", re.MULTILINE
    )
    return found[1] if found else None


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    if arguments and not check:
        print(__doc__, file=sys.stderr)
        return 2
    wanted = locked_version("typer")
    if check and wanted not in (None, version("typer")):
        print(
            f"note: not checked: typer {wanted} lays out the help texts, and typer {version('typer')} is installed"
        )
        return 0
    texts = help_texts()
    pages = {PAGE: commands_page(texts)}
    for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]:
        if path != PAGE:
            pages[path] = with_copies(path.name, path.read_text(encoding="utf-8"), texts)
    stale = [
        path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        name = path.relative_to(ROOT).as_posix()
        if check:
            print(f"{name}: a help text in it is stale; run `make docs`", file=sys.stderr)
        else:
            path.write_text(pages[path], encoding="utf-8", newline="\n")
            print(f"{name}: written")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
