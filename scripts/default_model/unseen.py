#!/usr/bin/env python3
"""List the held-out requests whose command form is in no kind.

    python scripts/default_model/unseen.py

A form is that of a pipeline: its programs, their subcommands, options and redirections. Operands, values of options,
the scripts of sed, awk and jq, and sudo do not count. `head -n 5 a.txt` and `head -3 b.txt` have the same form;
`head -n 5 a.txt > b.txt` has another form. `./a.sh` counts as `bash a.sh`, and `apt install -y` as `apt install`.
A command in the body of a loop has a form of its own.

A request is in the list if its solution has a pipeline whose form is in no command of any kind.
"""

import re
from collections import Counter

from judge import Request, read_requests, words_of
from kinds import PLACEHOLDER, Kind, read_kinds

_SUBCOMMANDS = frozenset(
    "git apt apt-mark systemctl timedatectl hostnamectl npm pip docker ip snap ufw openssl".split()
)
# Subcommands that have subcommands of their own.
_GROUPS = frozenset("stash remote worktree submodule bisect compose container cache".split())
# Programs with options of several letters behind one dash: `-name` is one option, not four.
_LONG_OPTIONS = frozenset("find gcc openssl kill pkill sqlite3".split())
_SAME = {"python": "python3", "pip3": "pip", "apt-get": "apt", "sh": "bash"}
_IP_OBJECTS = {"a": "addr", "r": "route", "l": "link", "n": "neigh"}
_BEFORE_COMMANDS = frozenset("sudo do then else { !".split())
_ENDS = frozenset("done fi }".split())
_NUMBERS = frozenset("num col big pid".split())  # placeholders that stand for a number


def forms(line: str) -> set[str]:
    """The forms of the pipelines in a command line. A command in `$(…)` is a pipeline too."""
    plain = re.sub(r"\$\(\(.*\)\)", " --arithmetic ", line)
    inner = re.findall(r"\$\(([^()]+)\)", plain)
    plain = re.sub(r"\$\([^()]+\)", " --substitution ", plain)
    plain = re.sub(r"(?<=\s)2> ?&1", " --errors-too ", plain)
    plain = re.sub(r"(?<=\s)2>", " --errors > ", plain).replace("\n", " ; ")
    found: set[str] = set()
    stages: list[str] = []
    words: list[str] = []
    for word in [*words_of(plain), ";"]:
        if not re.fullmatch(r"[;&|()]+", word):
            words.append(word)
            continue
        if stage := _command(words):
            stages.append(stage)
        words = []
        if word not in ("|", "|&") and stages:
            found.add(" | ".join(stages))
            stages = []
    return found.union(*map(forms, inner))


def _command(words: list[str]) -> str:
    """The form of a command; empty if there is none."""
    marks: set[str] = set()
    while words and (words[0] in _BEFORE_COMMANDS or re.match(r"[A-Za-z_]\w*=", words[0])):
        marks |= {"VAR="} if "=" in words[0] else {"(in a loop)"} if words[0] == "do" else set()
        words = words[1:]
    if not words or words[0] in _ENDS:
        return ""
    program, rest = _SAME.get(words[0], words[0]), words[1:]
    if program.startswith(("./", "../", "/")):
        program = "bash"
    for before, word in zip(["", *rest], rest, strict=False):
        marks |= set() if before in ("-perm", "-mtime", "-size") else _marks(program, word)
        marks |= {f"{before} {word}"} if before in ("-exec", "-execdir") else set()
    return " ".join([program, *_subcommand(program, rest), *sorted(marks - {"-exec", "-execdir"})])


def _subcommand(program: str, rest: list[str]) -> list[str]:
    """The subcommand of a program, the module that Python runs, or the program that xargs runs."""
    operands = [word for word in rest if not word.startswith("-")]
    if program == "ip":
        return [_IP_OBJECTS.get(word, word) for word in operands[:1]]
    if program in _SUBCOMMANDS:
        return operands[: 2 if operands and operands[0] in _GROUPS else 1]
    if program == "python3" and "-m" in rest[:-1]:
        return [rest[rest.index("-m") + 1]]
    return operands[:1] if program == "xargs" else []


def _marks(program: str, word: str) -> set[str]:
    """The options in a word, or the redirection that it is."""
    if re.fullmatch(r"[<>&]+", word):
        return {word}
    if not word.startswith("-") or " " in word or (program == "apt" and word in ("-y", "--yes")):
        return set()
    if re.fullmatch(r"-\d+", word) and program in ("head", "tail", "git", "find", "seq"):
        return {"-n"} if program in ("head", "tail", "git") else set()
    if word.startswith("--") or word == "-" or program in _LONG_OPTIONS:
        return {word.split("=")[0]}
    return {f"-{letter}" for letter in re.findall(r"^-(\d+|[A-Za-z]*)", word)[0]}


def forms_of_kinds(kinds: list[Kind]) -> set[str]:
    """The forms of all commands of the kinds, in each course and turn."""
    commands = {
        command for kind in kinds for flow in kind.flows for step in flow for command in step.commands
    }
    filled = (
        PLACEHOLDER.sub(lambda match: "1" if match[1] in _NUMBERS else match[1], command)
        for command in commands
    )
    return set().union(*map(forms, filled))


def unseen(requests: list[Request], kinds: list[Kind]) -> dict[str, set[str]]:
    """The id of each request whose solution has forms that no kind has, and these forms."""
    known = forms_of_kinds(kinds)
    new = {request.id: forms(request.solution) - known for request in requests}
    return {id: some for id, some in new.items() if some}


def main() -> None:
    requests, kinds = read_requests(), read_kinds()
    found = unseen(requests, kinds)
    for id, new in found.items():
        print(f"{id:28}{'; '.join(sorted(new))}")
    rare = Counter(request.rare for request in requests if request.id in found)
    print(f"\n{len(found)} of {len(requests)} requests have a form that none of the {len(kinds)} kinds has:")
    print(f"{rare[False]} everyday, {rare[True]} rare")


if __name__ == "__main__":
    main()
