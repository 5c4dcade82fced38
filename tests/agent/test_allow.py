"""The allowlist and its reading of shell text, compared with real bash; and the marks for risks.

.venv/bin/pytest tests/agent/test_allow.py
"""

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.agent.allow import Allowlist, judge, read_allowlist
from edge.agent.proposal import Proposal
from edge.agent.risks import risks
from edge.agent.rules import Place
from edge.agent.shell import MAX_COMMANDS, UnreadableError, read_commands
from edge.agent.show import shown_proposal
from edge.answer.action import Command
from edge.errors import AllowError
from edge.system.paths import embedded_rows

BASH = shutil.which("bash") or "/bin/bash"
BUILTINS = set(subprocess.run([BASH, "-c", "compgen -b"], capture_output=True, text=True).stdout.split())
ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "replay_terminal_dev.jsonl"
LIST = r"""
keys = ["C-c", "C-d"]

[[command]]
program = "ls"
arguments = ["-[alhrt1]+", "[A-Za-z0-9_./-]+"]

[[command]]
program = "cat"
arguments = ["[A-Za-z0-9_][A-Za-z0-9_./-]*"]

[[command]]
program = "grep"
arguments = ["-[rnil]+", "[A-Za-z0-9_ ./;|-]+"]
max_arguments = 3

[[command]]
program = "pwd"
"""


def refusal(allowlist: Allowlist, keystrokes: str) -> str | None:
    """Why edge does not type the keystrokes unasked."""
    verdict = judge(allowlist, keystrokes, Place())
    return None if verdict.decision == "allow" else verdict.reason


@pytest.fixture(scope="module")
def allowlist(tmp_path_factory: pytest.TempPathFactory) -> Allowlist:
    path = tmp_path_factory.mktemp("list") / "allow.toml"
    path.write_text(LIST)
    return read_allowlist(path)


@pytest.mark.parametrize(
    "keystrokes",
    [
        "",
        "C-c",
        "C-d",
        "ls\n",
        "ls -la\n",
        "ls -la src/edge && cat README.md\n",
        "ls; pwd\n",
        "cat a.txt | grep -n x\n",
        "ls\npwd\n",
        "grep -rn 'a; rm' .\n",
        'grep "a|b" x\n',
        "pwd || ls\n",
        "cat 'a'b\"c\"\n",
    ],
)
def test_what_is_on_the_list_passes(allowlist: Allowlist, keystrokes: str) -> None:
    assert refusal(allowlist, keystrokes) is None


ATTACKS = {
    "chained after an allowed word": "ls; rm -rf x\n",
    "chained with and": "ls && rm x\n",
    "chained with or": "ls || rm x\n",
    "in a pipe": "cat a | sh\n",
    "in the background": "ls & rm x\n",
    "on the next line": "ls\nrm x\n",
    "more than fifty commands": "ls;" * (MAX_COMMANDS + 1) + "ls\n",
    "carriage return": "ls\rrm x\n",
    "carriage return between words": "ls \r\nrm x\n",
    "a tab, which completes": "ls \t\n",
    "escape": "ls \x1b[A\n",
    "a control key": "ls \x16\x03\n",
    "no line break at the end": "ls ",
    "half a command": "rm -rf",
    "the rest of it": " / \n",
    "another key": "C-z",
    "Up recalls a command": "Up",
    "redirection": "ls > x\n",
    "appending": "cat a >> b\n",
    "from a file": "cat < /etc/shadow\n",
    "to a file descriptor": "ls 2>&1\n",
    "here-document": "cat <<E\nrm x\nE\n",
    "here-string": "cat <<< x\n",
    "substitution": "ls $(rm x)\n",
    "substitution in quotes": 'ls "$(rm x)"\n',
    "backticks": "ls `rm x`\n",
    "process substitution": "cat <(rm x)\n",
    "arithmetic": "ls $((1))\n",
    "a variable": "ls $HOME\n",
    "a variable in quotes": 'ls "${x:-y}"\n',
    "IFS": "IFS=/ ls\n",
    "an assignment": "PATH=/tmp ls\n",
    "an assignment alone": "PATH=/tmp\n",
    "LD_PRELOAD": "LD_PRELOAD=./x.so ls\n",
    "ANSI quotes": "ls $'\\x2d'\n",
    "a quoted name": "'r'm x\n",
    "a backslash in the name": "l\\s\n",
    "a backslash before a line break": "ls \\\nrm x\n",
    "an open quote": "ls 'a\n",
    "a quote over lines": "ls 'a\nb'\n",
    "braces": "ls {a,b}\n",
    "a glob": "ls *\n",
    "another glob": "cat /et?/shadow\n",
    "a tilde": "ls ~\n",
    "a comment": "ls # x\n",
    "history": "ls !!\n",
    "history in quotes": 'ls "!x"\n',
    "quick substitution": "^ls^rm\n",
    "a subshell": "(ls)\n",
    "a group": "{ ls; }\n",
    "a negation": "! ls\n",
    "time": "time ls\n",
    "coproc": "coproc ls\n",
    "a loop": "for i in a; do ls; done\n",
    "if": "if ls; then rm x; fi\n",
    "a test": "[[ -e x ]]\n",
    "a function": "ls() { rm x; }\n",
    "a function in other words": "function ls { rm x; }\n",
    "exec": "exec ls\n",
    "eval": "eval ls\n",
    "command": "command ls\n",
    "builtin": "builtin pwd\n",
    "source": ". x\n",
    "env": "env ls\n",
    "xargs": "ls | xargs rm\n",
    "find": "find . -exec rm x\n",
    "a path to it": "/bin/ls\n",
    "a path beside it": "./ls\n",
    "a job": "%1\n",
    "a wrong option": "ls --color=always\n",
    "a wrong argument": "cat /etc/shadow\n",
    "an option in place of a file": "cat -A\n",
    "too many arguments": "grep a b c d\n",
    "no-break space": "ls\u00a0-la\n",
    "zero width": "l\u200bs\n",
    "right to left": "ls \u202ex\n",
    "line separator": "ls\u2028rm x\n",
    "half a surrogate pair": "ls \ud800\n",
    "null": "ls \x00\n",
    "fullwidth letters": "ｌｓ\n",
    "an alias": "alias ls=rm\n",
    "case": "case a in a) rm x;; esac\n",
    "a pipe with errors": "ls |& sh\n",
    "two semicolons": "ls;;rm x\n",
    "an empty command": "ls; ; rm x\n",
    "extglob": "ls +(x)\n",
    "an array": "a=(rm x)\n",
    "a line that the kernel cuts": "cat " + "a " * 500 + "\n",
    "letters that a locale may take for blanks": "cat \u00e0\n",
    "an open pipe": "ls |\n",
    "an open list": "ls &&\n",
    "printf sets PATH": "printf -v PATH x\n",
    "printf runs a text": "printf -v 'a[$(rm x)]' x\n",
    "test runs a text": "test -v 'a[$(rm x)]'\n",
    "compgen runs a text": "compgen -W '$(rm x)'\n",
    "read takes the next line": "read -n 3\n",
    "much text": "ls;pwd\n" * 5000,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_not_on_the_list_is_refused_in_one_line(allowlist: Allowlist, name: str) -> None:
    why = refusal(allowlist, ATTACKS[name])
    assert why and "\n" not in why and len(why) < 300


_WORDS = r"""p1 p2 p3 -x a.b a=b 'a_b' 'a;b' "c|d" "e'f" 'g"h' '' "" ; && || | & ( ) { } < > >> << $ $x ${x} ` \ # !
%1 %a @a +x x+=1 a[1]=2 2 10 08 1> 2 then do esac if for time coproc [[ ]] ! !! ^a^b ~ a~b =~ a#b '#' "#" '\' "~" '!x'
'$x' '`x`' "é" 'é' a'b'c ''a a'' '&&' ';' "||" '>' '{a,b}' "*" |& ;; <<< $'x' {a,b} p1= p1() ()"""
_pieces = st.sampled_from([*_WORDS.split(), "*", "?", "[", "]", "~", "'", '"', "="]) | st.sampled_from(
    [" ", " ", " ", "\n", "é", "\t", "\r", "p1", "p2 'x y' z", '"', " && p3 ", " | p2 ", " ; p1 -l "]
)
_calls = st.lists(
    st.sampled_from("p1 p2 p3 -x a=b 'a b' 'a;b' \"c|d\" \"e'f\"g '' --y=1".split(" ")), max_size=4
).map(lambda words: " ".join(["p1", *words]))


@st.composite
def _nearly_plain(draw: st.DrawFn) -> str:
    """Plain commands, with up to two other pieces inserted."""
    text = draw(_calls)
    for call in draw(st.lists(_calls, max_size=3)):
        text += draw(st.sampled_from([" && ", "; ", " | ", "\n", "||", ";", "|", " ;\n"])) + call
    for piece in draw(st.lists(_pieces, max_size=2)):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + piece + text[place:]
    return text + "\n"


_shell = _nearly_plain() | st.lists(_pieces, min_size=1, max_size=12).map(lambda parts: "".join(parts) + "\n")


@pytest.fixture(scope="module")
def recorders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with programs that only record how they were called."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("p1", "p2", "p3", "mark"):
        (folder / name).write_text("#!/bin/sh\nprintf '%s\\0' '" + name + '\' "$@" END >> "$LOG"\n')
        (folder / name).chmod(0o755)
    return folder


def _ran(recorders: Path, texts: Sequence[str], history: str) -> list[list[tuple[str, ...]]]:
    """What real bash runs for each text. All texts go into one shell, in order."""
    log = recorders / f"log-{os.getpid()}"
    log.write_text("")
    (recorders / "history").write_text("p1 from-history\np2\n")
    subprocess.run(
        [BASH, "--noprofile", "--norc", history, "histexpand", "-i"],
        input="".join(f"{text}mark {number}\n" for number, text in enumerate(texts)).encode(),
        env={
            "PATH": str(recorders),
            "LOG": str(log),
            "PS1": "",
            "HISTFILE": str(recorders / "history"),
            "LC_ALL": "C.UTF-8",
            # for programs that do not exist
            "BASH_FUNC_command_not_found_handle%%": "() { printf '%s\\0' \"$@\" END >> $LOG; }",
        },
        cwd=recorders,
        capture_output=True,
        timeout=120,
        start_new_session=True,
    )
    ran: list[list[tuple[str, ...]]] = [[]]
    for call in log.read_text().split("END\0")[:-1]:
        words = tuple(call.split("\0")[:-1])
        if words == ("mark", str(len(ran) - 1)):
            ran.append([])
        else:
            ran[-1].append(words)
    return ran


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(_shell, min_size=10, max_size=30), history=st.sampled_from(["+o", "-o"]))
def test_bash_runs_exactly_what_was_read(recorders: Path, texts: list[str], history: str) -> None:
    passed = []
    for text in texts:
        try:
            commands = read_commands(text)
        except UnreadableError:
            continue
        # Builtins leave no record, and bash does not search for names that contain a folder.
        if not any(command.program in BUILTINS or "/" in command.program for command in commands):
            passed.append((text, [(command.program, *command.arguments) for command in commands]))
    ran = _ran(recorders, [text for text, _ in passed], history)
    assert len(ran) == len(passed) + 1  # after each text the shell is at a new prompt
    for (text, read), calls in zip(passed, ran, strict=False):
        if "||" in text:  # the command after it may not run
            assert not Counter(calls) - Counter(read) and bool(calls) == bool(read), text
        else:
            assert sorted(calls) == sorted(read), text  # the commands of a pipe run in parallel


def test_the_recorders_see_what_bash_does(recorders: Path) -> None:
    assert _ran(recorders, ["p1 a\n", "p2 $((1+1)) {x,y} #z\n", "p3 'a\n", "b'\n"], "+o")[:2] == [
        [("p1", "a")],
        [("p2", "2", "x", "y")],
    ]
    assert _ran(recorders, ["!p1\n"], "-o")[0] == [("p1", "from-history")]
    assert len(_ran(recorders, ["p3 'a\n"], "+o")) == 1  # the mark became a part of the quoted text


def test_each_builtin_of_bash_is_refused_or_harmless(tmp_path: Path) -> None:
    harmless = set(
        ": break caller cd continue dirs echo exit false help kill logout popd pushd pwd return shift times "
        "true type ulimit umask".split()
    )
    assert len(BUILTINS) > 50
    allowed = set()
    for name in BUILTINS:
        (tmp_path / "allow.toml").write_text(f"[[command]]\nprogram = '{name}'\n")
        try:
            read_allowlist(tmp_path / "allow.toml")
            allowed.add(name)
        except AllowError as error:
            assert "cannot be allowed" in str(error)
    assert allowed <= harmless


@pytest.mark.parametrize("key", ["Up", "Escape", "Tab", "C-r", "C-v", "M-.", "C-y", "Enter", "Left"])
def test_keys_that_change_the_next_line_cannot_be_allowed(tmp_path: Path, key: str) -> None:
    (tmp_path / "allow.toml").write_text(f"keys = ['{key}']\n")
    with pytest.raises(AllowError, match="cannot be allowed"):
        read_allowlist(tmp_path / "allow.toml")


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(text=st.text(max_size=300) | _shell)
def test_no_text_breaks_the_readers(allowlist: Allowlist, text: str) -> None:
    refusal(allowlist, text)
    for risk in risks(text):
        assert 0 <= risk.start <= risk.end <= len(text)


def test_a_letter_of_any_plane_after_a_brace_is_read(allowlist: Allowlist) -> None:
    # The scanner of tree-sitter-bash looks up such letters in a C table of 384 entries: other ones stopped the process.
    for letter in [*range(0x80, 0xD800, 97), *range(0xE000, 0x110000, 4099), 0x10FFFF]:
        for text in (f"echo ${{{chr(letter)}}}\n", f"echo {{{chr(letter)}\n", f"{{1..{chr(letter)}}}\n"):
            assert refusal(allowlist, text)
            risks(text)


@pytest.mark.parametrize(
    "text", ["(" * 5000, "$(" * 3000, "{" * 3000 + "\n", "'" * 9999, "a|" * 4000, "if " * 3000]
)
def test_deep_nesting_is_refused_soon(allowlist: Allowlist, text: str) -> None:
    begin = time.monotonic()
    assert refusal(allowlist, text + "\n")
    risks(text)
    assert time.monotonic() - begin < 20


def keystrokes_of(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [command["keystrokes"] for row in rows for command in row["ref_commands"]]


@pytest.mark.parametrize("path", [embedded_rows(), SHARED], ids=["embedded", "terminal-bench"])
def test_real_keystrokes_are_read(allowlist: Allowlist, path: Path) -> None:
    if not path.exists():
        pytest.skip("the recorded sessions are missing")
    found = keystrokes_of(path)
    readable = 0
    for keystrokes in found:
        refusal(allowlist, keystrokes)
        risks(keystrokes)
        try:
            readable += bool(read_commands(keystrokes))
        except UnreadableError:
            continue
    assert len(found) > 100 and readable > len(found) / 4


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[[command]]\nprogram = 'ls'\nargument = []\n", "unknown key 'argument'"),
        ("[[command]]\nprogram = 'ls'\narguments = ['(']\n", "is not an RE2 regular expression"),
        ("[[command]]\nprogram = 'ls'\narguments = '-l'\n", "must be a list of strings"),
        ("[[command]]\nprogram = 'ls -l'\n", "the plain name of a program"),
        ("[[command]]\nprogram = 'eval'\n", "cannot be allowed"),
        ("[[command]]\narguments = []\n", "program is missing"),
        ("[[command]]\nprogram = 'ls'\nmax_arguments = -1\n", "whole number"),
        ("keys = ['Ctrl-C']\n", "cannot be allowed; use only"),
        ("command = ['ls']\n", "[[command]]"),
        ("[[command\n", "is not TOML"),
        ("keys = 1\n", "must be a list"),
        ("[[command]]\nprogram = '%1'\n", "the plain name of a program"),
        ("[[command]]\nprogram = 'l s'\n", "the plain name of a program"),
        ("[[command]]\nprogram = '../x\\n'\n", "the plain name of a program"),
        (
            "[[command]]\nprogram = 'ls'\narguments = ['(a{1000}){1000}']\n",
            "is not an RE2 regular expression",
        ),
        ("x = " + "[" * 20_000, "nested too deeply"),
        ("x = " + "9" * 5_000, "is not TOML"),
        ("#" * 1_100_000, "larger than"),
    ],
)
def test_a_wrong_list_gives_one_line(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "allow.toml"
    path.write_text(text)
    with pytest.raises(AllowError) as caught:
        read_allowlist(path)
    assert what in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(AllowError, match="is not a file"):
        read_allowlist(tmp_path / "none.toml")


@pytest.mark.parametrize("place", ["/dev/zero", "/", "pipe"])
def test_edge_does_not_wait_for_a_list_that_is_not_a_file(tmp_path: Path, place: str) -> None:
    if place == "pipe":
        os.mkfifo(tmp_path / place)
    with pytest.raises(AllowError, match="is not a file"):
        read_allowlist(tmp_path / place)


@pytest.mark.parametrize(
    "name", ["/usr/bin/find", "python3.11", "gcc-12", "ld-linux-x86-64.so.2", "less", "vi", "rg"]
)
def test_programs_that_run_others_are_known_by_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "allow.toml").write_text(f"[[command]]\nprogram = '{name}'\n")
    (warning,) = read_allowlist(tmp_path / "allow.toml").warnings
    assert name in warning and "--sandbox" in warning


@pytest.mark.parametrize("pattern", ["a|ab", "^a$", "(?i)A", "a", "."])
def test_a_pattern_must_match_an_argument_as_a_whole(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "allow.toml").write_text(f"[[command]]\nprogram = 'ls'\narguments = ['{pattern}']\n")
    allowlist = read_allowlist(tmp_path / "allow.toml")
    assert refusal(allowlist, "ls a\n") is None
    assert refusal(allowlist, "ls ab\n") is None or pattern != "a|ab"
    assert all(refusal(allowlist, f"ls {word}\n") for word in ("abc", "xa", "ax", "'a b'", "-a", "''"))


def test_edge_warns_of_programs_that_run_others(tmp_path: Path) -> None:
    path = tmp_path / "allow.toml"
    path.write_text(
        "[[command]]\nprogram = 'find'\narguments = ['.*']\n[[command]]\nprogram = 'ls'\narguments = ['.*']\n"
    )
    assert [warning.split(": ")[1].split(" ")[0] for warning in read_allowlist(path).warnings] == ["find"]


def test_patterns_take_bounded_time(tmp_path: Path) -> None:
    path = tmp_path / "allow.toml"
    path.write_text("[[command]]\nprogram = 'ls'\narguments = ['(a|a)*b', '(x+x+)+y']\n")
    begin = time.monotonic()
    assert refusal(read_allowlist(path), "ls " + "a" * 900 + " " + "x" * 900 + "\n")
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("keystrokes", "kinds"),
    [
        ("ls -la\n", []),
        ("rm -rf build\n", ["delete"]),
        ("/bin/rm x\n", ["delete"]),
        ("find . -name '*.pyc' -delete\n", ["delete"]),
        ("git clean -fdx\n", ["delete"]),
        ("echo a > b\n", ["overwrite"]),
        ("echo a >> b\n", []),
        ("make 2>&1 > /dev/null\n", ["runs code of the folder"]),
        ("sed -i s/a/b/ x\n", ["overwrite"]),
        ("mv a b\n", ["overwrite"]),
        ("dd if=/dev/zero of=x\n", ["overwrite"]),
        ("sudo ls\n", ["privilege"]),
        ("sudo rm x\n", ["privilege", "delete"]),
        ("chmod +s x\n", ["privilege"]),
        ("curl http://x\n", ["network"]),
        ("pip install x\n", ["network"]),
        ("git push\n", ["network", "publishes"]),
        ("apt-get install -y x\n", ["network", "changes the system"]),
        ("curl -s x | sh\n", ["network", "pipe into an interpreter"]),
        ("echo eA== | base64 -d | bash\n", ["pipe into an interpreter"]),
        ("python3 -c 'x'\n", ["runs text as a program"]),
        ("eval x\n", ["runs text as a program"]),
        ("ls | xargs rm\n", ["runs text as a program", "delete"]),
        ("echo $(rm x)\n", ["substitution", "delete"]),
        ("sleep 9 &\n", ["runs in the background"]),
        ("ls \x1b[2J\n", ["control or invisible characters"]),
        ("echo 'a\n", ["not valid shell syntax"]),
        ("kill 1\n", ["stops processes or services"]),
        ("f() { ls; }\n", ["defines a function"]),
        ("ls \u202ex\n", ["control or invisible characters"]),
        ("ls\u00a0é\n", ["control or invisible characters"]),
        ("PATH=/tmp ls\n", ["changes what commands mean"]),
        ("export LD_PRELOAD=./x.so\n", ["changes what commands mean"]),
        ("alias ls=pwd\n", ["changes what commands mean"]),
        ("git restore .\n", ["overwrite"]),
        ("python3 -m pip install x\n", ["network"]),
        ("echo " + "x" * 20_000 + "\n", ["too long to check"]),
        ("FOO=1 rm x\n", ["delete"]),
        ("r\\m -rf x\n", ["delete"]),
        ("r''m x\n", ["delete"]),
        ("/bin/rm x\n", ["delete"]),
        ("sudo -u x rm y\n", ["privilege", "delete"]),
        ("timeout 5 rm y\n", ["runs another program", "delete"]),
        ("sudo git push\n", ["privilege", "network", "publishes"]),
        ("git -C x push\n", ["network", "publishes"]),
        ("git commit -m push\n", ["changes the repository"]),
        ("apt remove x\n", ["delete", "changes the system"]),
        ("pip uninstall x\n", ["delete"]),
        ("curl x | sudo bash\n", ["network", "privilege", "pipe into an interpreter"]),
        ("curl x | env bash\n", ["network", "runs another program", "pipe into an interpreter"]),
        ("cat x | busybox sh\n", ["pipe into an interpreter"]),
        ("cat <<E | sh\nrm x\nE\n", ["pipe into an interpreter"]),
        ("sh <<E\nrm x\nE\n", ["runs text as a program"]),
        ("bash < x\n", ["runs text as a program"]),
        ("bash <<< 'rm x'\n", ["runs text as a program"]),
        ("python3 a.py < x\n", ["runs code of the folder"]),
        ("cat < /dev/tcp/1.2.3.4/80\n", ["network"]),
        ("echo x >> ~/.bashrc\n", ["writes a file that other programs act on"]),
        ("echo x > .env\n", ["overwrite", "writes a file that other programs act on"]),
        ("grep sh x | cat\n", []),
    ],
)
def test_risks_are_marked(keystrokes: str, kinds: list[str]) -> None:
    assert {risk.kind for risk in risks(keystrokes)} == set(kinds)


# A kind that a command must have, beside others.
MARKED = {
    "network": (
        "npx x; uvx ruff; bunx x; pipx run x; npm ci; pnpm dlx x; yarn add x; uv sync; "
        "cargo install x; go get x; docker pull x; git ls-remote x; aria2c x; psql; mysql -h x; "
        "terraform plan; kubectl get pods; gh pr list; aws s3 ls; python3 -m http.server; "
        "brew install x; conda install x; gem install x; bundle install; poetry add x; "
        "composer require x"
    ),
    "runs another program": (
        "npx x; uvx ruff; npm ci; yarn dlx x; tar xf a --to-command=sh; tar -I ./x -xf a; "
        "tar cf a b --checkpoint-action=exec=sh; awk 'BEGIN{system(\"id\")}'; "
        "gawk '{ print | \"sh\" }' x; awk '{\"id\" | getline}' x; sed 's/a/id/e' x; sed '1e id' x; "
        "git -c core.pager=sh log; git rebase -x id; git submodule foreach id; git bisect run x; "
        "rsync -e ./x a b; sort --compress-program=x a; rg --pre ./x a; vim -c '!id'; "
        "less '+!id' x; make SHELL=x; watch id; strace id; script -c id; man -P x ls"
    ),
    "runs code of the folder": (
        "bash x.sh; sh -x ./x.sh; zsh x; ./x; ./gradlew test; ../x.sh; /tmp/x; python3 a.py; "
        "python3 -u a.py; node x.js; ruby x.rb; awk -f x.awk y; rails x; source x; . ./x; make; make test; pytest; "
        "python -m pytest; npm test; npm run build; yarn test; cargo test; go run .; tox; "
        "mvn package; gradle build; just; uv run x; poetry run x; cmake --build b; npm ci"
    ),
    "changes the system": (
        "make install; sudo make install; ninja install; cmake --install b; cargo install x; "
        "npm install -g x; apt install x; dpkg -i x; sysctl -w a=b; modprobe x; iptables -F; "
        "systemctl enable x; python3 setup.py install"
    ),
    "changes the repository": (
        "git commit -m x; git -C a commit; git merge x; git rebase x; git reset x; git add x; "
        "git tag v1; git checkout x; git stash; git cherry-pick x; git branch x"
    ),
    "publishes": (
        "git push; npm publish; twine upload x; cargo publish; docker push x; gh pr create; "
        "gh release create x; gem push x; poetry publish; hg push; svn commit -m x; jj git push; p4 submit"
    ),
    "changes another system": (
        "terraform apply; terraform destroy; tofu apply; kubectl apply -f x; kubectl delete pod x; "
        "kubectl exec x -- sh; helm upgrade x y; gh repo delete x; ansible-playbook x; "
        "aws ec2 terminate-instances; pulumi up; gcloud run deploy; az group delete; "
        "heroku ps:scale; fly deploy"
    ),
    "delete": (
        "terraform destroy; kubectl delete pod x; gh repo delete x; aws s3 rm s3://x; "
        "aws s3 rb s3://x; aws s3 sync a b --delete; aws ec2 terminate-instances; "
        "gcloud compute instances delete x; az group delete -n x; heroku apps:destroy x; "
        "gsutil rm x; rclone purge x; helm uninstall x; pulumi destroy; psql -c 'DROP TABLE x'; "
        "mysql -e 'truncate x'; redis-cli flushall; docker rm x; docker system prune; "
        "vagrant destroy; zfs destroy x; git branch -D x; git push --delete o x; git push o :x; "
        "git stash drop; mkfs.ext4 x; rsync -a --delete a b; gh api -X DELETE x; "
        "doctl compute droplet delete x; rails db:drop; flyway clean; alembic downgrade base; liquibase drop-all; "
        "gpg --delete-keys x; svn delete x; hg strip x; jj abandon x; dvc gc; nvme format /dev/x; dmsetup remove x; "
        "nix-collect-garbage -d; guix gc; pm2 delete all; kafka-topics --delete; celery -A x purge; "
        "rabbitmqctl reset; prisma migrate reset; flask db downgrade; ar d x.a y"
    ),
    "overwrite": (
        "find . -fprintf x y; find . -fls x; find . -fprint0 x; sort -o x y; uniq a b; "
        "awk '{print > \"x\"}' y; tar xf a; tar -xzf a; unzip a; gzip a; patch x y; git push -f; "
        "git push origin +x; sed -n 'w x' y; curl -o x y; wget -O x y; perl -pi -e s/a/b/ x; "
        "ffmpeg -y -i a b; convert a b; exiftool -overwrite_original x; sponge x; 7z x a.7z; black .; strip x"
    ),
    "runs text as a program": (
        "php -r x; node -p x; node --eval x; perl -ne x y; ruby -e x; lua -e x; deno eval x; fd -x rm; "
        "$X x; ${X:-rm} x; rm${IFS}x; /bin/r? x; sudo $X x; $'\\162m' x; /???/rm x; env X=1 $Y"
    ),
    "acts on a database": (
        "psql; psql -c 'select 1'; mysql x; sqlite3 x.db; mongosh; redis-cli get x; knex x; cockroach sql"
    ),
    "reads keys or passwords": (
        "cat ~/.ssh/id_rsa; cat .env; cat /etc/shadow; cp ~/.aws/credentials x; printenv; "
        "gh auth token; cat server.key; grep x ~/.netrc; cat /proc/1/environ; kubectl get secrets"
    ),
    "writes a file that other programs act on": (
        "cp x Makefile; tee .git/hooks/pre-commit; mv x package.json; echo x > Makefile; "
        "echo x >> AGENTS.md; tee -a ~/.bashrc; sed -i s/a/b/ pyproject.toml; ln -s x .envrc; "
        "dd if=x of=conftest.py; touch setup.py"
    ),
}
INCIDENTS = {
    "delete": (
        "prisma db push --accept-data-loss; drizzle-kit push --force; npx prisma migrate reset --force; "
        "typeorm schema:drop; django-admin flush --noinput; dotnet ef database drop -f; airflow db reset; "
        "rimraf node_modules; cmd.exe /c del /f /s /q x; cmd /c rd /s /q D:; "
        "powershell -Command 'Remove-Item -Recurse -Force C:/x'; restic forget --prune; borg delete repo; "
        "hf repo delete a/b; ollama rm x; himalaya message delete 1; pscale database delete x; "
        "turso db destroy x; "
        "colima delete -f; multipass delete x; snapper delete 1-5; bfg --delete-files x; "
        "zip -d a.zip x; tar --delete -f a.tar x; setfattr -x user.a x"
    ),
    "runs another program": (
        "claude --dangerously-skip-permissions -p x; gemini --yolo -p x; "
        "q chat --trust-all-tools --no-interactive x; codex exec x; aider --yes --message x; "
        "code --install-extension evil.vsix; vim -es x"
    ),
    "reads keys or passwords": "trufflehog filesystem / --json; gitleaks detect --source /",
    "changes what commands mean": (
        "stty intr x; stty kill '#'; npm config set registry x; pip config set global.index-url x"
    ),
    "publishes": "cargo yank --vers 1.0.0; gem yank x; npm dist-tag add x; himalaya message send x",
    "changes the system": "nmcli con delete x; adb shell rm -rf /sdcard; diskutil eraseDisk x; flashrom -w x; "
    "tune2fs -O x y; "
    "reg delete HKCU; schtasks /create /tn x; icacls x /grant y; bcdedit /set x; dconf reset -f /",
}
FIELD = {
    "changes what commands mean": (
        "unset PROMPT_COMMAND; unset -v PATH; read PATH; printf -v PATH /tmp; set -o vi; set -H; go env -w x=y; "
        "nvm use 20; "
        "pyenv global 3; rustup default nightly; corepack enable"
    ),
    "delete": (
        "hdfs dfs -rm -r x; hadoop fs -rm x; xcrun simctl erase all; swift package reset; brew cleanup; pass rm x; "
        "uv venv --clear; dmesg -C; dnf history undo 1; scw instance server delete x; nats stream rm x; cfdisk x; "
        "debugfs -w x"
    ),
    "reads keys or passwords": (
        "ssh-add x; git credential fill; gpg -d x; age -d x; sops -d x; bw get password x; lpass show x; keyring "
        "get a b; "
        "ansible-vault view x; git-crypt unlock; npm login; docker login; hf auth login; printenv "
        "AWS_SECRET_ACCESS_KEY; "
        "xclip -o; pbpaste; cat ~/.bash_history; cat terraform.tfstate; cat secrets.yaml; cat service-account.json; "
        "strings /proc/1/mem; gcore 1; doppler secrets; cat ~/.config/op/x; set; declare -p; declare; export; "
        "typeset -x; readonly; compgen -v; cat token; impacket-secretsdump x; ./linpeas.sh"
    ),
    "network": (
        "python3 -mhttp.server; python -m SimpleHTTPServer; tailscale up; openvpn x; sshfs h: m; croc send x; "
        "pastebinit x; "
        "http-server; tcpdump -i any; git daemon; git instaweb; npm audit fix; go mod tidy; ollama pull x; mongodump; "
        "cpanm x; sqlmap x; mitmproxy; kaggle datasets create; wandb sync x; tsh ssh x"
    ),
    "changes the system": (
        "date -s x; hwclock -w; netplan apply; add-apt-repository x; apt-mark hold x; nixos-rebuild switch; "
        "update-rc.d x enable; nvram x; arp -d x; fusermount -u x; brew services stop x; nix-env -e x"
    ),
    "changes the repository": (
        "git update-index --assume-unchanged x; git maintenance start; git bundle unbundle x; git fast-import; "
        "git worktree prune"
    ),
    "overwrite": (
        "git archive -o x HEAD; git format-patch -1; cargo fmt; cargo fix; rubocop -A; biome check --apply; "
        "dart format .; ktlint -F; dos2unix x; restic restore x --target /; borg extract x; unrar x a.rar; jar xf "
        "a.jar; "
        "dpkg-deb -x a b; vi x; history -w"
    ),
    "runs code of the folder": (
        "flask run; uvicorn a:b; jupyter lab; streamlit run x.py; celery -A x worker; buck2 run x"
    ),
    "publishes": "pod repo push x; nuget push x; flutter pub publish",
    "privilege": "umask 000; umask 0; setpriv x; capsh x",
    "records the screen, the camera or the microphone": (
        "screencapture x; scrot; import x.png; arecord x.wav; fswebcam x; ffmpeg -f x11grab -i :0 y.mp4; "
        "ffmpeg -i a -f pulse b"
    ),
    "encrypts files": (
        "gpg -c x; gpg -e x; gpg --batch --symmetric x; zip -e x y; zip -r -P pw x y; 7z a -ppw x y; ccrypt x; "
        "openssl enc -aes-256-cbc -in x -out y; openssl aes-256-cbc -in x"
    ),
    "takes all of the processor": "xmrig x; minerd x; stress -c 4; stress-ng x; sysbench cpu run",
    "writes the clipboard": "pbcopy < x; wl-copy < x; xclip -sel clip x; xsel -b",
}
UNMARKED = """zip -r x.zip d; gpg --verify x; gpg --list-packets x; openssl x509 -in a; openssl version; export
A=1; declare -i n; readonly A=1; cat tokens.py; ffmpeg -i a b.mp4; 7z l x; git archive HEAD;
gpg --list-keys; umask; umask 022; umask 077; unset x; set -e; set -o pipefail;
read x; printf '%s' a;
date; date -u; go env; go version; cargo --version; restic snapshots; borg list; ollama list; pass; xclip; dmesg;
history;
git worktree list; git bundle verify x; brew list; nvm ls; arp -a; cat token.py; cat credentials_test.py; cat
src/secrets.py;
npm --version; docs; keyring; jar tf a.jar; ls secrets; mypy x; ls -la; cat README.md; git status; git log
--oneline -5; git diff; git show HEAD; git branch -a; git
tag; grep -rn x .; find . -name x; awk '{print $1}' x; sed -n 1,20p x; sed 's/e/w/' x; sort x; uniq
-c x; tar tf a; pip list; npm ls; cd x; mkdir -p x; touch x; echo x; wc -l x; python3 --version;
node --version; less x; awk 'NR > 3' a; hg log; svn status; which python3; ip addr; ps aux; df -h"""


@pytest.mark.parametrize("kind", MARKED)
def test_each_command_of_a_kind_is_marked(kind: str) -> None:
    for command in MARKED[kind].split("; "):
        assert kind in {risk.kind for risk in risks(command + "\n")}, command


@pytest.mark.parametrize("kind", INCIDENTS)
def test_what_agents_did_in_reports_is_marked(kind: str) -> None:
    """Commands in reports of what agents destroyed, and of packages that used agents."""
    for command in INCIDENTS[kind].split("; "):
        assert kind in {risk.kind for risk in risks(command + "\n")}, command


@pytest.mark.parametrize("kind", FIELD)
def test_what_deletes_sends_or_reads_keys_in_the_field_is_marked(kind: str) -> None:
    for command in FIELD[kind].split("; "):
        assert kind in {risk.kind for risk in risks(command + "\n")}, command


def test_harmless_commands_are_not_marked() -> None:
    for command in UNMARKED.replace("\n", " ").split("; "):
        assert risks(command + "\n") == [], command


@pytest.mark.parametrize(
    "text",
    [
        "git " + "-c " * 3000,
        "sed s" + "/" * 9000,
        "npm " + "a " * 4000,
        "tar " + "x " * 4000,
        "make " + "install" * 1200,
    ],
)
def test_marks_take_bounded_time(text: str) -> None:
    begin = time.monotonic()
    assert "too long to check" in {risk.kind for risk in risks(text + "\n")}
    assert time.monotonic() - begin < 20


INVISIBLE = (
    "\u3164\u2800\ufe0f\u034f\U000e0041\u115f\uffa0\u180b\u17b4\U000e0101"
    "\u200b\u00ad\u2060\ufeff\U0001d173\u2066"
)


@pytest.mark.parametrize("character", INVISIBLE, ids=lambda c: f"{ord(c):04X}")
def test_invisible_characters_are_marked_shown_and_refused(allowlist: Allowlist, character: str) -> None:
    keystrokes = f"rm x{character}y\n"
    found = [risk for risk in risks(keystrokes) if risk.kind == "control or invisible characters"]
    assert [keystrokes[risk.start : risk.end] for risk in found] == [character]
    shown = shown_proposal(Proposal(character, character, (Command(keystrokes, 0.1),), False)).plain
    assert character not in shown and shown.count(f"{ord(character):x}") >= 3
    assert f"U+{ord(character):04X}" in str(refusal(allowlist, f"cat 'x{character}y'\n"))


def test_a_risk_is_marked_at_its_place() -> None:
    keystrokes = "cd é && rm x; ls\n"
    (risk,) = risks(keystrokes)
    assert keystrokes[risk.start : risk.end] == "rm x"


def test_the_list_in_the_docs_does_what_it_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "allowlist.md").read_text().partition("```toml\n")[2].partition("```")[0]
    path = tmp_path / "allow.toml"
    path.write_text(text)
    allowlist = read_allowlist(path)
    assert not allowlist.warnings
    for allowed in (
        "ls -la\n",
        "cat src/a.py\n",
        "head -n 20 a.txt | grep -n x\n",
        "grep -rn 'def x' src\n",
        "git log --oneline src/a.py\n",
        "pwd\n",
    ):
        assert refusal(allowlist, allowed) is None
    for wrong in (
        "rm a\n",
        "cat /etc/passwd\n",
        "ls > a\n",
        "find . -delete\n",
        "grep -f a b\n",
        "head --x\n",
        "C-d",
        "grep -r . /home/me/.ssh\n",
        "grep -r . ../other\n",
        "cat a/../../b\n",
        "cat .env\n",
        "git config core.pager sh\n",
        "git submodule foreach id\n",
        "python3 -m pip install evil\n",
        "python3 -m pytest tests\n",
        "git commit -m x\n",
    ):
        assert refusal(allowlist, wrong)


@pytest.mark.parametrize("between", ["&&", "||", "|", "&&  ", "|\n"])
def test_a_command_that_goes_on_over_a_line_break_is_refused(tmp_path: Path, between: str) -> None:
    """The shell would wait for the rest without the prompt at which edge types lines."""
    (tmp_path / "allow.toml").write_text("[[command]]\nprogram = 'ls'\n")
    allowlist = read_allowlist(tmp_path / "allow.toml")
    assert "over a line break" in str(refusal(allowlist, f"ls {between}\nls\n"))
    assert refusal(allowlist, f"ls {between.strip()} ls\nls\n") is None
