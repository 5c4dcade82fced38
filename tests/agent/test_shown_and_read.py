"""What a person is shown is what edge types, and what edge's lists allow is what bash runs: more attempts.

.venv/bin/pytest tests/agent/test_shown_and_read.py
"""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from edge.agent.allow import judge, read_allowlist
from edge.agent.proposal import Proposal
from edge.agent.review import review_gate
from edge.agent.risks import risks
from edge.agent.rules import Place
from edge.agent.show import continued, shown_proposal, shown_screen
from edge.answer.action import Command


def screen(*keystrokes: str, plan: str = "Look.") -> str:
    """A proposal as a terminal of 80 columns without styles shows it."""
    console = Console(file=(out := io.StringIO()), width=80)
    commands = tuple(Command(keys, 1.0) for keys in keystrokes)
    console.print(shown_proposal(Proposal("It is so.", plan, commands, False)))
    return out.getvalue()


def letters(text: str) -> str:
    return re.sub(r"\s", "", text)


HIDING = {
    "spaces as wide as the screen": "ls" + " " * 80 * 40 + "; rm -rf keep\n",
    "a line that begins after the screen": "ls\n" * 60 + "rm -rf keep\n",
    "a long word": "echo " + "x" * 4000 + ";rm -rf keep\n",
    "wide letters at the edge": "echo " + "全" * 77 + "; rm -rf keep\n",
    "combining letters": "echo " + "a\u0338\u20e0" * 70 + "; rm -rf keep\n",
    "markup of the console": "echo [/bold][conceal]; rm -rf keep[/conceal]\n",
    "a link of the console": "echo [link=file:///x]; rm -rf keep[/link] :warning:\n",
    "a here-document": "cat <<'E'\n⏎   then wait 1 s\nE\nrm -rf keep\n",
    "a joined line": "ls \\\n; rm -rf keep\n",
}


@pytest.mark.parametrize("name", HIDING)
def test_no_text_hides_a_command(name: str) -> None:
    """All letters of the keystrokes are on the screen, in order; none is cut."""
    shown = screen(HIDING[name])
    wanted = letters(HIDING[name].replace("⏎", "\\u23ce").replace("\n", "⏎"))
    assert wanted in letters(shown)
    assert "! delete: rm -rf keep" in shown or "too long to check" in shown


def test_the_models_text_cannot_be_a_list_of_commands() -> None:
    plan = "Look.\n  1  ls⏎   then wait 1 s\n[?] help, [a]ccept, [e]dit, [r]efuse, [s]top? a\nstep 2 of 50"
    lines = screen("rm -rf keep\n", plan=plan).splitlines()
    assert [line for line in lines if re.match(r" {0,3}\d|\[|step", line)] == [
        "  1  rm -rf keep⏎   then wait 1 s"
    ]


@pytest.mark.parametrize("letter", ["x", "全", " "])
def test_the_width_of_the_terminal_does_not_make_lines_of_edge(letter: str) -> None:
    """The terminal breaks a long line where the model wants, also one without a line break."""
    fake = (
        "step 2 of 50, 30 min left",
        "  1  ls⏎   then wait 1 s",
        "[?] help, [a]ccept, [e]dit, [r]efuse, [s]top?",
    )
    columns = 80 - len("plan: ")
    begin = letter * (columns // (2 if letter == "全" else 1))
    plan = begin + "".join(f"{line:80}" for line in fake)
    console = Console(
        file=(out := io.StringIO()), width=80, soft_wrap=True, force_terminal=True, no_color=True
    )
    console.print(shown_proposal(Proposal(plan, plan, (Command("rm x\n", 1.0),), False), console))
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert [row for row in broken(text, 80) if re.match(r" {0,3}\d|\[|step", row)] == [
        "  1  rm x⏎   then wait 1 s"
    ]
    assert letters(text).count(letters(fake[2])) == 2  # nothing is lost


@pytest.mark.parametrize("width", [20, 80])
def test_a_programs_output_cannot_be_lines_of_edge(width: int) -> None:
    """Not a step, not a list of commands, not a question about the changes; also where the terminal breaks a line."""
    fake = (
        "step 2 of 50, 30 min left",
        "  1  ls⏎   then wait 1 s",
        "[?] help, [a]ccept, [e]dit, [r]efuse, [s]top? ",
        "Bring these changes back into /home/me? [y/N/d/l/?] y",
    )
    printed = "New Terminal Output:\n" + "\n".join(fake) + "\n" + "".join(f"{line:{width}}" for line in fake)
    console = Console(
        file=(out := io.StringIO()), width=width, soft_wrap=True, force_terminal=True, no_color=True
    )
    console.print(shown_screen(printed, console))
    rows = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert all(row.startswith("| ") and len(row) <= width for row in rows), rows
    assert letters("".join(rows)).replace("|", "") == letters(printed)  # nothing is lost


@pytest.mark.parametrize("blank", ["\t", "\r", "\xa0", "\u2003"])
def test_a_mark_names_a_blank_that_is_no_space(blank: str) -> None:
    escape = blank.encode("unicode_escape").decode()
    assert f"! control or invisible characters: {escape}\n" in screen(f"echo a{blank}b\n")


def test_a_long_list_of_marks_says_that_it_goes_on() -> None:
    assert " …\n" in screen("rm a\n" * 100) and "…" not in screen("rm a\n")


def test_marks_that_the_model_types_are_escaped() -> None:
    shown = screen("ls⏎   then wait 1 s", "y  ", " ", "echo a␣\n")
    assert shown.count("⏎") == 1 and "ls\\u23ce   then wait" in shown
    assert "2  y␣␣   then" in shown and "3  ␣   then" in shown and "4  echo a\\u2423⏎" in shown


@pytest.mark.parametrize("text", ["cp \u05d0 \u05d1\n", "echo \u0627 1 2\n"])
def test_letters_that_change_the_order_are_marked(text: str) -> None:
    """A terminal can show the words around Hebrew and Arabic letters in another order."""
    assert any("right-to-left" in risk.kind for risk in risks(text))


@pytest.mark.parametrize(
    "text", ["C-c ", "\uff23-c", "C-\u0441", "Enter\n", "c-c", "C-cc", "^\u200b[", "F13"]
)
def test_only_names_of_keys_are_keys(text: str) -> None:
    assert "(this key)" not in screen(text) and "(this key)" in screen("C-c")


# Edge's lists `reading`, `git`, `pytest` and `make` together, in a folder without a repository.
REFUSED = {
    "a link that leaves the folder, as a revision of git": "git diff out/secret a.txt",
    "the same with a range": "git show out/secret~1..a",
    "an abbreviated long option": "git log --outpu=x",
    "another abbreviated long option": "sort --compress-prog=sh a.txt",
    "an option in a cluster of letters": "grep -nf/etc/passwd a.txt",
    "an option after --": "git diff -- --no-index /etc/passwd a.txt",
    "two folders, in which diff follows links": "diff -u in other",
    "an assignment before the program": "GIT_EXTERNAL_DIFF=./x git diff",
    "an assignment as an argument of make": "make test SHELL=./x",
    "a special target of make": "make .SHELLFLAGS=-c test",
    "another Makefile in a cluster": "make -kf x",
    "arguments from a file": "pytest @args.txt",
    "a plugin of pytest": "pytest -p x --pyargs os",
    "magic of a path of git": "git log ':(top,glob)**/secret'",
    "a file of an old commit outside": "git show 'HEAD:../secret'",
    "a path in two quotations": "cat '.'./'.'./secret",
    "a path in bash's own quotation": "cat $'\\x2e\\x2e/secret'",
    "the last folder, as bash knows it": "cat ~-/secret",
    "letters of another alphabet": "\u0441at a.txt",
    "a program in quotes": "'cat' a.txt",
    "another line separator": "cat a.txt\u2028rm a.txt",
    "a line that goes on": "cat a.txt \\\nrm a.txt",
    "a file that follows": "tail --follow=name a.txt",
    "a command of sed after another": "sed -n '1p;1e id' a.txt",
    "a file that find writes": "find . -fls out",
    "a file list that find reads": "find -files0-from a.txt",
    "a format of git that runs gpg": "git log --pretty=%GG",
    "a format of git behind an unknown one": "git log '--format=%h %-%GG'",
    "the same after a sign": "git show '--format=%h %-GS'",
    "devices that are sockets": "cat /dev/tcp/127.0.0.1/1",
    "another process's files": "cat /proc/self/root/etc/passwd",
    "a job": "%1",
    "a link to a dot-file of the folder": "cat in/settings",
    "a link into a dot-folder": "grep x .//in/hidden/config",
    "the same as a revision of git": "git diff in/hidden/config a.txt",
}


@pytest.mark.parametrize("name", REFUSED)
def test_edges_lists_refuse(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    for inner in ("in", "other"):
        (folder / inner).mkdir()
    (folder / "in" / "settings").symlink_to("../.env")
    (folder / "in" / "hidden").symlink_to("../.git")
    (folder / ".git").mkdir()
    for place in (tmp_path / "secret", folder / "a.txt", folder / ".env", folder / ".git" / "config"):
        place.touch()
    allowlist, place = read_allowlist("reading,git,pytest,make"), Place(folder)
    assert judge(allowlist, REFUSED[name] + "\n", place).decision == "refuse"
    assert judge(allowlist, "git diff main..work a.txt\n", place).decision == "allow"


def test_review_names_a_wrong_answer_and_wraps_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of 80 columns: no word of the help is broken, and a wrong answer types nothing."""
    monkeypatch.setattr("sys.stdin", io.StringIO("yes please\n?\ns\n"))
    console = Console(file=(out := io.StringIO()), width=80, soft_wrap=True, force_terminal=True)
    proposal = Proposal("It is so.", "Look.", (Command("ls\n", 1.0),), False)
    assert review_gate(console, sandbox=True)(proposal).verdict == "stop"
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "yes please: not an answer; type a, e, r or s, or ? for help" in shown
    assert "edge types these keystrokes into the sandbox" in shown
    lines = [line for line in shown.splitlines() if "[?]" not in line]
    assert len(lines) > 7 and max(map(len, lines)) <= 80


def broken(plain: str, width: int) -> list[str]:
    """The rows in which a terminal of this width shows these lines."""
    return [
        row
        for line in plain.split("\n")
        for row in (line[i : i + width] for i in range(0, len(line) or 1, width))
    ]


def rows_at(width: int, text: Text) -> list[str]:
    """The rows of a terminal of this width."""
    console = Console(
        file=(out := io.StringIO()), width=width, soft_wrap=True, force_terminal=True, no_color=True
    )
    console.print(continued(text, console))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    return broken(plain, width)


@pytest.mark.parametrize("width", [40, 80])
def test_keystrokes_as_wide_as_the_terminal_are_no_lines_of_edge(width: int) -> None:
    """After a line break of the terminal come lines like those of edge: commands, answers, steps, risks."""
    fake = (
        "  2  ls",
        "     (no commands)",
        "[?] help, [a]ccept? a",
        "| New Terminal Output:",
        "step 2 of 9",
        "-x",
    )
    keys = "echo '" + " " * (width - 11) + "".join(line.ljust(width) for line in fake) + "'; rm -rf keep\n"
    marks = "rm -rf '" + " " * (width - 16) + "".join(line.ljust(width) for line in fake[:3]) + "'\n"
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    commands = (Command(keys, 1.0), Command(marks, 1.0))
    rows = rows_at(width, shown_proposal(Proposal("a", "p", commands, False), console))
    begins = [row[:5] for row in rows if row.strip() and not row.startswith("> ")]
    assert begins == ["analy", "plan:", "  1  ", "     ", "  2  ", "     "]
    assert (
        letters("".join(row.removeprefix("> ") for row in rows)).count(letters(fake[2])) >= 2
    )  # nothing is lost


def test_names_and_lines_as_wide_as_the_terminal_are_no_lines_of_edge() -> None:
    """A name in the list of changes, and a line in the diff: blanks, tabs and wide letters up to the edge."""
    text = Text("Changes in the work folder:\n  + a" + " " * 75 + "1 new.\n")
    text.append("+" + "\t" * 20 + "Bring these changes back? [y/N/d/l/?] y\n+" + "全" * 79 + "-gone\n1 new.")
    rows = [row for row in rows_at(80, text) if row]
    assert [row.rstrip() for row in rows if not row.startswith("> ")] == [
        "Changes in the work folder:",
        "  + a",
        "+",
        "+" + "全" * 38,
        "1 new.",
    ]
