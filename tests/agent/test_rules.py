"""The rules of an allowlist: words by their places, options, paths in the folder, examples, edge's own lists.

.venv/bin/pytest tests/agent/test_rules.py
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import command_line
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.agent.allow import LISTS, Allowlist, Verdict, judge, read_allowlist, shipped_list
from edge.agent.gate import Decision, allow_gate
from edge.agent.proposal import Proposal
from edge.agent.rules import Place
from edge.answer.action import Command
from edge.errors import AllowError

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = Place(Path("/work"), "/app")


def listed(tmp_path: Path, text: str) -> Allowlist:
    (tmp_path / "allow.toml").write_text(text)
    return read_allowlist(tmp_path / "allow.toml")


def decision(allowlist: Allowlist, command: str, place: Place | None = None) -> str:
    return judge(allowlist, command + "\n", place or Place()).decision


# What the natural list of the old form allowed too.
GIT = """
[[rule]]
decision = "allow"
prefix = ["git", ["log", "status"]]
options = ["--oneline", ["-n", "<number>"], "--"]
rest = ["<path>"]

[[rule]]
decision = "allow"
prefix = [["python", "python3"], "-m", "pytest"]
rest = ["<path>"]
"""


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("git log src/a.py", "allow"),
        ("git log --oneline -n 5 -- src", "allow"),
        ("git status", "allow"),
        ("python3 -m pytest tests/test_a.py", "allow"),
        ("python -m pytest", "allow"),
        ("git", "refuse"),
        ("git config core.pager sh", "refuse"),
        ("git submodule foreach id", "refuse"),
        ("git -c core.pager=sh log", "refuse"),
        ("git log -c core.pager=sh", "refuse"),
        ("git log -n config", "refuse"),
        ("git log -n", "refuse"),
        ("git log --output=x", "refuse"),
        ("git log --oneline --", "allow"),
        ("git log -- --output=x", "refuse"),
        ("log git", "refuse"),
        ("python3 -m pip install evil", "refuse"),
        ("python3 pytest -m", "refuse"),
        ("python3 -m pytest -m pip", "refuse"),
        ("python3 tests/test_a.py", "refuse"),
        ("git log; git config x y", "refuse"),
    ],
)
def test_words_count_by_their_places(tmp_path: Path, command: str, wanted: str) -> None:
    assert decision(listed(tmp_path, GIT), command) == wanted


def test_the_reason_names_the_word(tmp_path: Path) -> None:
    allowlist = listed(tmp_path, GIT)
    for command, word in (
        ("git config core.pager sh", "config"),
        ("python3 -m pip install evil", "pip"),
        ("git log --output=x", "--output=x"),
        ("git log /etc", "/etc"),
        ("git lo\u0301g x\u202ey", "U+202E"),
    ):
        why = judge(allowlist, command + "\n", Place()).reason
        assert word in why and "\n" not in why, why


@pytest.mark.parametrize(
    ("places", "rest", "command", "wanted"),
    [
        (["<text>"], ["<path>"], "grep a:b src", "allow"),
        (["<text>"], ["<path>"], "grep src /etc/passwd", "refuse"),
        (["<text>"], ["<path>"], "grep /etc/passwd", "allow"),  # the text that it looks for
        (["<path>", "<path>"], [], "grep a b", "allow"),
        (["<path>", "<path>"], [], "grep a b c", "refuse"),
        ([["a", "b"], "<number>"], [], "grep b 12", "allow"),
        ([["a", "b"], "<number>"], [], "grep 12 b", "refuse"),
        (["<name>"], [], "grep feature/x-1.2", "allow"),
        (["<name>"], [], "grep a..b", "refuse"),
        (["<name>"], [], "grep a/../b", "refuse"),
        (["<name>"], [], "grep ''", "refuse"),
        ([], [], "grep -", "refuse"),
    ],
)
def test_places_and_rest(
    tmp_path: Path, places: list[object], rest: list[str], command: str, wanted: str
) -> None:
    text = f'[[rule]]\ndecision = "allow"\nprefix = ["grep"]\nplaces = {json.dumps(places)}\nrest = {rest}\n'
    assert decision(listed(tmp_path, text), command) == wanted


@pytest.mark.parametrize("order", [1, -1])
def test_the_strictest_rule_decides(tmp_path: Path, order: int) -> None:
    tables = [
        f'[[rule]]\ndecision = "{word}"\nprefix = {prefix}\n'
        for word, prefix in (
            ("allow", '["make"]\nrest = ["<name>"]'),
            ("ask", '["make", "install"]'),
            ("forbid", '["make", "all", "deploy"]'),
        )
    ]
    old = "[[command]]\nprogram = 'rm'\narguments = ['[a-z]+']\n[[rule]]\ndecision = 'forbid'\nprefix = ['rm']\n"
    allowlist = listed(tmp_path, "".join(tables[::order]) + old)
    assert decision(allowlist, "make all") == "allow"
    assert decision(allowlist, "make install all") == "ask"
    assert decision(allowlist, "make all deploy now") == "refuse"
    assert decision(allowlist, "rm a") == "refuse"
    assert decision(allowlist, "make all && make install") == "ask"
    assert decision(allowlist, "make install && make all deploy") == "refuse"


def test_what_is_forbidden_is_so_by_any_path(tmp_path: Path) -> None:
    text = """
    [[rule]]
    decision = "allow"
    prefix = ["/usr/bin/git"]
    rest = ["<name>"]
    [[rule]]
    decision = "forbid"
    prefix = ["git", "push"]
    """
    allowlist = listed(tmp_path, text)
    assert decision(allowlist, "/usr/bin/git log") == "allow"
    assert decision(allowlist, "/usr/bin/git push") == "refuse"


def test_the_sandbox_can_have_its_own_decision(tmp_path: Path) -> None:
    text = '[[rule]]\ndecision = "ask"\ndecision_in_sandbox = "allow"\nprefix = ["make"]\nrest = ["<name>"]\n'
    allowlist = listed(tmp_path, text)
    assert decision(allowlist, "make test") == "ask"
    assert decision(allowlist, "make test", SANDBOX) == "allow"
    assert decision(allowlist, "make CC=x", SANDBOX) == "refuse"


# --- paths ---

PATHS = '[[rule]]\ndecision = "allow"\nprefix = [["cat", "grep"]]\noptions = ["-r"]\nrest = ["<path>"]\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", ".env", "sub/.hidden"):
        (folder / name).touch()
    (tmp_path / "secret").touch()
    (folder / "out").symlink_to(tmp_path)
    (folder / "file").symlink_to("../secret")
    (folder / "inner").symlink_to("sub/b.txt")
    (folder / "sub" / "chain").symlink_to("../out")
    (folder / "test.py").symlink_to("/etc/passwd")
    return folder


def test_paths_stay_in_the_folder(tmp_path: Path, folder: Path) -> None:
    allowlist, place = listed(tmp_path, PATHS), Place(folder)
    for word in (
        "a.txt",
        "./a.txt",
        "sub",
        ".",
        "sub/b.txt",
        "none",
        "inner",
        f"{folder}/a.txt",
        str(folder),
    ):
        assert decision(allowlist, f"cat {word}", place) == "allow", word
    for word in (
        *(
            "/etc/passwd",
            "..",
            "../secret",
            "sub/../../secret",
            "/",
            "out",
            "out/secret",
            "file",
            "sub/chain/secret",
        ),
        *(".env", "./.env", "sub/.hidden", "test.py", "test.py::test_x", "'~/.ssh'", "'~root'", "-", "''"),
        *(
            f"{tmp_path}/secret",
            f"{folder}/../secret",
            f"{folder}2",
            f"{folder}/.env",
            "HEAD:.env",
            ":/x",
            "a/..",
            "//etc",
        ),
    ):
        assert decision(allowlist, f"cat {word}", place) == "refuse", word
    assert decision(allowlist, f"grep -r . {os.path.expanduser('~')}/.ssh", place) == "refuse"
    assert decision(allowlist, "grep -r . ~/.ssh", place) == "refuse"


def test_paths_in_the_sandbox_are_those_of_the_sandbox(tmp_path: Path, folder: Path) -> None:
    allowlist, place = listed(tmp_path, PATHS), Place(folder, "/app")
    assert decision(allowlist, "cat /app/a.txt", place) == "allow"
    assert decision(allowlist, f"cat {folder}/a.txt", place) == "refuse"
    assert decision(allowlist, "cat /app/../etc/passwd", place) == "refuse"


@pytest.mark.slow
@given(word=st.text("ab./-~: '", max_size=12))
def test_no_path_leads_out(word: str) -> None:
    text = re.sub("'", "", word)
    allowlist = Path("/nonexistent/folder")
    read = read_allowlist("reading")
    if decision(read, f"cat '{text}'", Place(allowlist)) == "allow":
        assert os.path.normpath(allowlist / text).startswith(str(allowlist))


@pytest.mark.parametrize("program", ["cd", "pushd", "popd"])
def test_a_list_with_paths_cannot_allow_cd(tmp_path: Path, program: str) -> None:
    with pytest.raises(AllowError, match="changes the folder"):
        listed(tmp_path, PATHS + f"[[command]]\nprogram = '{program}'\narguments = ['[a-z/]+']\n")
    with pytest.raises(AllowError, match="changes the folder"):
        listed(tmp_path, f'include = ["reading"]\n[[rule]]\ndecision = "ask"\nprefix = ["{program}"]\n')
    listed(tmp_path, f"[[command]]\nprogram = '{program}'\narguments = ['[a-z/]+']\n")
    listed(tmp_path, PATHS + f'[[rule]]\ndecision = "forbid"\nprefix = ["{program}"]\n')


# --- files ---

RULE = '[[rule]]\ndecision = "allow"\nprefix = ["git", ["log", "show"]]\nrest = ["<path>"]\n'


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            RULE + 'match = ["git status"]\n',
            "rule 1 (git): 'git status' is in match, but the rule does not fit it",
        ),
        (RULE + 'not_match = ["git log x"]\n', "'git log x' is in not_match, but the rule fits it"),
        (RULE + 'match = ["git log > x"]\n', "in match, but it holds a"),
        (RULE + 'match = ["git log; git log"]\n', "in match, but it holds 2 commands"),
        (RULE + 'match = "git log"\n', "must be a list of strings"),
        (RULE + "x = 1\n", "unknown key 'x'"),
        ('[[rule]]\nprefix = ["git"]\n', "decision is missing"),
        ('[[rule]]\ndecision = "allow"\n', "prefix is missing"),
        ('[[rule]]\ndecision = "yes"\nprefix = ["git"]\n', '"allow", "ask" or "forbid"'),
        ('[[rule]]\ndecision = "allow"\nprefix = []\n', "a list of words"),
        ('[[rule]]\ndecision = "allow"\nprefix = [[]]\n', "a list of words"),
        ('[[rule]]\ndecision = "allow"\nprefix = [1]\n', "a list of words"),
        ('[[rule]]\ndecision = "allow"\nprefix = ["cat", "<path>"]\n', "write <path> in places or rest"),
        (
            '[[rule]]\ndecision = "allow"\nprefix = ["cat"]\nrest = ["<pth>"]\n',
            "'<pth>' is not the name of a pattern",
        ),
        (
            '[[rule]]\ndecision = "allow"\nprefix = ["cat"]\noptions = ["("]\n',
            "is not an RE2 regular expression",
        ),
        ('[[rule]]\ndecision = "allow"\nprefix = ["cat"]\noptions = [1]\n', "a list of patterns"),
        ('[[rule]]\ndecision = "allow"\nprefix = ["eval"]\n', "cannot be allowed"),
        ('[[rule]]\ndecision = "ask"\nprefix = ["alias"]\n', "cannot be allowed"),
        (
            '[[rule]]\ndecision = "forbid"\ndecision_in_sandbox = "allow"\nprefix = ["eval"]\n',
            "cannot be allowed",
        ),
        ('[[rule]]\ndecision = "allow"\nprefix = ["git log"]\n', "the plain name of a program"),
        ('include = ["all"]\n', "include"),
        ("rule = 1\n", "[[rule]]"),
        ("rule = ['ls']\n", "[[rule]]"),
    ],
)
def test_a_wrong_rule_gives_one_line(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(AllowError) as caught:
        listed(tmp_path, text)
    assert what in str(caught.value) and "allow.toml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "patterns", "shown"),
    [
        ("git", ["log", "status", "[A-Za-z0-9./-]+"], 'prefix = ["git", ["log", "status"]]'),
        ("python3", ["-m", "pytest", "[a-z/_.]+"], 'prefix = ["python3", "-m", ["pytest"]]'),
        ("python3.11", ["-m", "pytest", ".*"], 'prefix = ["python3.11", "-m", ["pytest"]]'),
        ("/usr/bin/npm", [".*"], 'prefix = ["/usr/bin/npm", ["WORD"]]'),
    ],
)
def test_an_old_entry_that_allows_other_commands_is_refused_with_the_new_form(
    tmp_path: Path, program: str, patterns: list[str], shown: str
) -> None:
    with pytest.raises(AllowError) as caught:
        listed(tmp_path, f"[[command]]\nprogram = '{program}'\narguments = {patterns}\n")
    line = str(caught.value)
    assert shown in line and "\n" not in line
    rule = re.sub(
        r'.*(decision = "allow"), (prefix = .*\]) and (rest = \[.*?\]).*', r"[[rule]]\n\1\n\2\n\3\n", line
    )
    assert listed(tmp_path, rule).rules


def test_old_lists_load_unchanged(tmp_path: Path) -> None:
    entries = (("ls", ["-[la]+", "[a-z]+"]), ("git", ["status"]))
    text = "".join(f"[[command]]\nprogram = '{name}'\narguments = {words}\n" for name, words in entries)
    allowlist = listed(tmp_path, text)
    assert decision(allowlist, "ls -la a b") == "allow"
    assert decision(allowlist, "git status") == "allow"
    assert decision(allowlist, "git config") == "refuse"


def test_edge_warns_of_a_rule_that_can_run_any_program(tmp_path: Path) -> None:
    def warned(table: str) -> bool:
        return bool(listed(tmp_path, f'[[rule]]\ndecision = "allow"\n{table}\n').warnings)

    for loose in (
        *('prefix = ["bash"]\nrest = ["<path>"]', 'prefix = ["make"]', 'prefix = ["git"]\nrest = [".*"]'),
        *('prefix = ["find"]\noptions = [".*"]', 'prefix = ["find"]\noptions = [["-exec", "x"]]'),
        *(
            'prefix = ["sort"]\noptions = ["--.*"]',
            'prefix = ["git", "commit"]',
            'prefix = [["ls", "python3"]]',
        ),
        'prefix = ["sed", "-n"]\nplaces = [".*"]',
    ):
        assert warned(loose), loose
    for tight in (
        *('prefix = ["find"]\noptions = [["-name", "<text>"]]\nrest = ["<path>"]', 'prefix = ["git", "log"]'),
        *('prefix = ["ls"]\noptions = [".*"]', 'prefix = ["sort"]\noptions = ["-[nr]+"]\nrest = ["<path>"]'),
    ):
        assert not warned(tight), tight


# --- edge's own lists ---


@pytest.mark.parametrize("name", LISTS)
def test_each_rule_of_edges_lists_has_examples(name: str) -> None:
    for number, rule in enumerate(tomllib.loads(shipped_list(name))["rule"], 1):
        assert rule.get("match") or rule.get("not_match") or rule["prefix"] == ["uname"], number
    assert not read_allowlist(name).warnings


def test_lists_go_together(tmp_path: Path) -> None:
    both = read_allowlist("reading,git")
    assert decision(both, "git log && cat a.txt") == "allow" and decision(both, "make") == "refuse"
    included = listed(tmp_path, 'include = ["reading", "make"]\n')
    assert decision(included, "make test") == "ask" and "C-c" in included.keys


def test_a_file_cannot_take_the_name_of_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "git").write_text("[[command]]\nprogram = 'rm'\narguments = ['.*']\n")
    monkeypatch.chdir(tmp_path)
    assert decision(read_allowlist("git"), "rm x") == "refuse"
    assert decision(read_allowlist("./git"), "rm x") == "allow"


# Words that make a program of the lists write, run another program or read outside the folder.
ESCAPES = """
cat /etc/passwd; cat +x; cat ../x; head -n 5 /etc/passwd; tail -F x; ls /; ls -R ..; grep -r . /root/.ssh
grep -f x y; grep -R x .; grep --file=x y; grep -rz x ..; grep --include=x -f y z; rg --pre=./x y
rg --pre ./x y; rg -f x y; rg --files /etc; rg -L x; find / -name x; find . -delete; find . -exec id
find . -execdir id; find . -fls x; find . -fprint x; find . -ok id; find -L .; sed -n '1e id'; sed -n 1p -i x
sed -n -f x y; sed -i s/a/b/ x; sed 's/a/id/e' x; sed -n '1w x' y; sed -n 'r /etc/passwd' x; sort -o x y
sort --compress-program=x y; sort -S1 --compress-prog x y; sort -T / x; sort --files0-from=x; uniq a b
tree -o x; tree -R -H x -o y; file -C -m x; file -f x; wc --files0-from=x; du --files0-from x
diff x /etc/passwd; diff --from-file=/etc/passwd x; stat /etc/passwd; sha256sum -c x; date -f x; date -s 1
date --file=/etc/passwd; cut -f1 /etc/passwd; cmp a /etc/passwd; git config x y; git -c a=b log
git log --output=x; git diff --output x; git diff --no-index a /etc/passwd; git diff /etc/passwd /etc/group
git submodule foreach id; git log --ext-diff; git diff --ext-diff; git show --textconv; git grep -O x
git -p log; git --paginate log; git bisect run x; git rebase -x id; git filter-branch --tree-filter id
git clone x; git fetch ext::x; git push; git archive --exec=x; git log -O/etc/passwd
git blame --contents=/etc/passwd x; git blame -S /etc/passwd x; git blame -S/etc/passwd x; git blame -Sx x
git branch x; git tag -d x; git remote add x y
git status --output=x; git difftool -x id; git mergetool; git help -w x; git stash; git worktree add x
git --git-dir=/x log; git -C / log; git log --format=x --outpu=y; git log --pretty=--output=x
git log -n --output=x; git rev-parse --git-dir /etc; git ls-files -X /etc/passwd; pytest -p x; pytest -c /x
pytest -o a=b; pytest --rootdir=/; pytest /x.py; pytest ../x.py; pytest --confcutdir=/; pytest --basetemp=/x
pytest --junitxml=/x; pytest --pdb --pdbcls=x:y; pytest --debug=/x; pytest @/etc/passwd; python3 -m pip
python3 -c x; python3 x.py; python3 -m pytest -p x; python3 -X importtime -m pytest; python3 -m pytest /x
make -f x; make -C /; make -I /; make --eval=x; make A=b; make SHELL=x test; make install; make -E x
make /etc/passwd; make ../x; make -o x; make -W x; env ls; bash; less x; vim x; xargs ls
"""


@pytest.mark.parametrize("sandbox", [False, True])
@pytest.mark.parametrize("line", ESCAPES.strip().splitlines())
def test_nothing_else_passes_edges_lists(line: str, sandbox: bool) -> None:
    allowlist = read_allowlist(",".join(LISTS))
    asked = {"git rebase -x id"}  # a person decides on what writes; in the sandbox it can do no harm
    for command in line.split("; "):
        verdict = judge(allowlist, command.strip() + "\n", SANDBOX if sandbox else Place(Path.cwd()))
        if command.strip() in asked:
            assert verdict.decision == ("allow" if sandbox else "ask")
        else:
            assert verdict.decision == "refuse", (command, verdict)


def test_what_runs_the_folders_code_is_asked_or_in_the_sandbox() -> None:
    allowlist = read_allowlist(",".join(LISTS))
    for command in (
        "pytest -q",
        "python3 -m pytest tests/test_a.py",
        "make test",
        "make",
        "git commit -m x",
        "git add -A",
    ):
        assert decision(allowlist, command) == "ask", command
        assert decision(allowlist, command, SANDBOX) == "allow", command


def test_the_examples_are_real_commands(tmp_path: Path) -> None:
    """What the lists allow does not change a folder: each example of `allow` runs in real bash."""
    folder = tmp_path / "folder"
    for name in ("src", "tests", "a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("a.txt", "b.txt", "README.md", "src/a.py", "a.csv", "a.bin", "a.py"):
        (folder / name).write_text("x\ny\n")
    if shutil.which("git"):
        quiet = {"cwd": folder, "check": True, "capture_output": True}
        subprocess.run(["git", "init", "-q"], **quiet)

    def state() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "index"
        }

    before = state()
    count = 0
    for name in ("reading", "git"):
        for rule in tomllib.loads(shipped_list(name))["rule"]:
            for example in rule.get("match", []) if rule["decision"] == "allow" else []:
                done = subprocess.run(
                    ["bash", "--norc", "-c", example],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
                )
                assert not re.search("(invalid|unknown|unrecognized|illegal) option", done.stderr), (
                    example,
                    done.stderr,
                )
                count += 1
    assert state() == before and count > 40


# --- the gate ---


def acted(*keystrokes: str) -> Proposal:
    return Proposal("", "", tuple(Command(text, 0.1) for text in keystrokes), False)


def test_the_gate_asks_only_what_the_list_leaves_to_a_person() -> None:
    asked: list[str] = []

    def person(proposal: Proposal, why: str) -> Decision:
        asked.append(why)
        return Decision("type", proposal)

    gate = allow_gate(read_allowlist("reading,make"), Place(Path.cwd()), person)
    assert gate(acted("ls\n")).verdict == "type" and asked == []
    assert gate(acted("ls\n", "make test\n")).verdict == "type"
    assert asked == ["command 2, make: rule 1 (make) asks"]
    refused = gate(acted("make test\n", "rm x\n"))
    assert (
        refused.verdict == "refuse"
        and "command 2 is not allowed here: rm is not on the list" in refused.reason
    )
    assert len(asked) == 1
    alone = allow_gate(read_allowlist("reading,make"), Place(Path.cwd()), None)
    refused = alone(acted("make test\n"))
    assert refused.verdict == "refuse"
    assert refused.reason == (
        "command 1 is not allowed here: make: rule 1 (make) asks a person, and nobody can be asked"
    )
    unattended = allow_gate(read_allowlist("make"), SANDBOX, None)
    assert unattended(acted("make test\n")).verdict == "type"


# --- the commands ---


def edge(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return command_line.run("allow", *words, cwd=folder)


@pytest.mark.slow
def test_edge_allow_check(tmp_path: Path) -> None:
    (tmp_path / "allow.toml").write_text(GIT)
    done = edge("check", "allow.toml", "git log src", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "allow: git log: rule 1 (git) allows it\n"), done.stderr
    done = edge("check", "allow.toml", "git config core.pager sh", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "refuse: git is not allowed with the argument 'config'\n")
    done = edge("check", "make", "make test", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "ask: make: rule 1 (make) asks\n")
    assert edge("check", "make", "make test", "--sandbox", folder=tmp_path).returncode == 0
    done = edge("check", "reading,git", folder=tmp_path)
    assert done.returncode == 0 and re.search(r"\d+ rules, \d+ examples: all as they say", done.stdout)
    (tmp_path / "allow.toml").write_text(RULE + 'match = ["git status"]\n')
    done = edge("check", "allow.toml", folder=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(
        "error: allow.toml: rule 1 (git): 'git status' is in match"
    )
    assert len(done.stderr.splitlines()) == 1
    assert edge("show", folder=tmp_path).stdout.split() == list(LISTS)
    shown = edge("show", "git", folder=tmp_path)
    assert tomllib.loads(shown.stdout) == tomllib.loads(shipped_list("git"))
    wrong = edge("show", "gti", folder=tmp_path)
    assert wrong.returncode == 1 and "did you mean git?" in wrong.stderr


def test_a_verdict_says_why() -> None:
    assert judge(read_allowlist("reading"), "C-c", Place()) == Verdict("allow", "the key is on the list")
