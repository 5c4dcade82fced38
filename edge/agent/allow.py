"""`--allow FILE`: the allowlist, a TOML file that says which commands an agent may type, and which need a person.

The keystrokes must be whole lines of plain commands (see edge/agent/shell.py), and each command must be on the list: in
a rule (see edge/agent/rules.py), or in a [[command]] table, the form of edge 0.2 and older.
An allowlist is not a security boundary: it does not control what an allowed program does. The sandbox does.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

from edge.agent.rules import DECISIONS, Decision, PatternError, Place, Rule, Word, compile_pattern
from edge.agent.shell import UnreadableError, read_commands
from edge.errors import AllowError
from edge.system.text import did_you_mean, unknown_key
from edge.system.typed_json import Index, Name, check
from edge.system.typed_json import Rule as Test
from edge.terminal.tmux import is_key_name

# Programs that can run other programs: through their arguments, files that they read, or keys typed into them.
RUN_OTHERS = frozenset(
    (
        "7z apt apt-get aptitude ar ash at awk bash batch bun bundle busybox byobu c++ cargo cc chroot chrt "
        "clang clang++ cmake cpan cpio cpulimit crontab csh ctags curl dash dc dd deno docker dpkg dvtm "
        "easy_install ed elixir elvish emacs env erl ex expect fakeroot fd fdfind ffmpeg find fish flock ftp "
        "g++ gawk gcc gdb gem ghci git gnuplot go gradle groff hg iex ionice ip irb java jjs joe journalctl "
        "jrunscript jshell julia kak ksh latex ld ld.so less linux32 linux64 lldb logrotate lp ltrace lua "
        "luajit m4 mail make man mawk mc mksh more mosh most mutt mvn mysql nano nawk nc ncat neofetch newgrp "
        "nice ninja nmap node nodejs nohup npm npx nroff nsenter numactl nvim octave openssl pandoc parallel "
        "pdb pdflatex perf perl pg php pico pip pipx pkexec pnpm podman proot psql puppet pwsh pytest python "
        "R rake rbash rc redis-cli rg rlwrap rpm Rscript rsync ruby run-parts runuser rustc rview rvim scp "
        "screen script scriptreplay sed service setarch setpriv setsid sftp sg sh slsh snap socat sort split "
        "sqlite ssh ssh-agent ssh-keygen ssh-keyscan start-stop-daemon stdbuf strace su sudo svn swipl "
        "systemctl systemd-run tar taskset tclsh tcpdump tcsh tee telnet tex timeout tmux top tox troff tsx "
        "unshare unzip uv uvx valgrind vi view vim vimdiff visudo watch wget wish xargs xdotool xelatex yarn "
        "yash zip zsh"
    ).split()
)
# Programs whose arguments choose what they do. In the old form, any argument may match any pattern.
_CHOOSE = frozenset(
    (
        "apt apt-get aws az brew bun bundle bunx busybox cargo conda deno dnf docker gcloud gem gh git go helm hg "
        "kubectl node npm npx perl php pip pipx pnpm podman poetry python ruby rustup svn systemctl terraform uv uvx "
        "yarn yum"
    ).split()
)
# Programs that run others only with some of these words (tests of what a rule lets through).
_HARMLESS_WITHOUT = {
    "find": ("-exec", "-execdir", "-ok", "-okdir", "-delete", "-fprintf", "-fls"),
    "fd": ("-x", "-X", "--exec", "--exec-batch"),
    "fdfind": ("-x", "-X", "--exec", "--exec-batch"),
    "git": (
        "--ext-diff",
        "--textconv",
        "--open-files-in-pager=x",
        "-Ox",
        "--output=x",
        "--upload-pack=x",
        "--exec=x",
    ),
    "rg": ("--pre=x", "--pre", "--hostname-bin=x"),
    "sed": ("1e x", "e", "w x", "s/a/b/e", "--in-place", "-i", "-fx"),
    "sort": ("--compress-program=x", "-ox", "--output=x", "-o"),
}
_GIT_READS = frozenset(
    "blame branch cat-file describe diff grep log ls-files ls-tree remote rev-list rev-parse shortlog show stash "
    "status tag".split()
)
# Builtins of bash that change what later commands mean, or evaluate a text: `read`, `printf -v`, `printf %n`, `test -v`
# and `wait -p` set variables such as PATH, or run the substitution in a[$(…)]; `compgen -W` and `jobs -x` run commands.
_SHELL_OWN = frozenset(
    (
        ". [ alias bg bind builtin command compgen complete compopt coproc declare disown enable eval exec "
        "export fc fg function getopts hash history jobs let local mapfile printf read readarray readonly set "
        "shopt source suspend test time trap typeset unalias unset wait"
    ).split()
)
# Keys that do not recall or edit a line. Other keys (Up, Escape, Tab, C-r) would change the line that edge types next.
KEYS = ("C-c", "C-d", "C-z", "C-\\")
_MAX_FILE_BYTES = 1_000_000


# These change the folder that a relative path begins at.
_MOVE = frozenset("cd pushd popd".split())
_LISTS = Path(__file__).with_name("lists")
LISTS = ("reading", "git", "pytest", "make")
"""The lists that edge ships, by name."""

_SEE = "`edge schema allowlist --example` prints one"

_Decision = Annotated[
    str, Test('"allow", "ask" or "forbid"', DECISIONS.__contains__, {"enum": list(DECISIONS)})
]
_List = Annotated[str, Test(f"one of {', '.join(LISTS)}", LISTS.__contains__, {"enum": list(LISTS)})]
_Alternatives = Annotated[list[Name], Test("a list of non-empty strings", bool, {"minItems": 1})]


_Patterns = Annotated[
    list[str | _Alternatives], Test("a list of patterns and of lists of patterns", lambda _: True)
]


class RuleTable(TypedDict):
    """A [[rule]] table: the first words of a command, what may follow them, and the decision."""

    decision: _Decision
    """`allow`: edge types it. `ask`: a person decides; if nobody can be asked, edge refuses it. `forbid`: edge refuses
    it. The strictest rule that fits a command decides."""
    decision_in_sandbox: NotRequired[_Decision]
    """The decision with --sandbox. Default: the same."""
    prefix: Annotated[list[Name | _Alternatives], Test("a list of words", bool, {"minItems": 1})]
    """The first words in order, the program first. Each is a word, or a list of the words that are allowed there."""
    options: NotRequired[_Patterns]
    """Words that begin with a dash and may follow, in any order: each a pattern, or a list of an option's pattern and
    the patterns of the words of its value."""
    places: NotRequired[_Patterns]
    """The other words that may follow, in order: each a pattern, or a list of patterns."""
    rest: NotRequired[list[str]]
    """Patterns of all words after `places`. Default: no more words."""
    match: NotRequired[list[str]]
    """Examples: commands that the rule must fit. edge checks them when it reads the file."""
    not_match: NotRequired[list[str]]
    """Examples: commands that the rule must not fit."""


class CommandTable(TypedDict):
    """A [[command]] table, the form of edge 0.2 and older: a program, and what its arguments may be, in any order."""

    program: Name
    """Plain name or path of the program."""
    arguments: NotRequired[list[str]]
    """RE2 regular expressions. Each argument must match one of them as a whole. Default: no arguments."""
    max_arguments: NotRequired[Index]
    """Maximum number of arguments. Default: 20."""


class AllowlistFields(TypedDict):
    """The TOML file of `edge agent --allow`: what the agent may type without a review."""

    include: NotRequired[list[_List]]
    """Lists of edge that this list begins with."""
    keys: NotRequired[list[str]]
    """Keys that the agent may press, by their tmux names."""
    rule: NotRequired[list[RuleTable]]
    """What edge types, asks or refuses."""
    command: NotRequired[list[CommandTable]]
    """Programs that the agent may call, in the form of edge 0.2 and older."""


@dataclass(frozen=True)
class AllowedCommand:
    """A program by its plain name. Each argument must match one of the patterns as a whole.

    `most`: the maximum number of arguments.
    """

    program: str
    arguments: Word
    most: int

    def fits(self, words: Sequence[str], place: Place) -> bool:
        """Whether the entry allows this command."""
        arguments = words[1:]
        return (
            words[0] == self.program
            and len(arguments) <= self.most
            and all(self.arguments.fits(word, place) for word in arguments)
        )


@dataclass(frozen=True)
class Allowlist:
    """What an agent may type: rules, commands, and keys by their tmux names. `warnings`: one line each for the user.

    `examples`: how many examples the rules have.
    """

    rules: tuple[Rule, ...]
    commands: tuple[AllowedCommand, ...]
    keys: frozenset[str]
    warnings: tuple[str, ...]
    examples: int = 0


@dataclass(frozen=True)
class Verdict:
    """What a list says about keystrokes, and why, in one line. The model reads the reason of "refuse"."""

    decision: Literal["allow", "ask", "refuse"]
    reason: str


def shipped_list(name: str) -> str:
    """The text of one of the LISTS. Raises AllowError for another name."""
    if name not in LISTS:
        meant = did_you_mean(name, LISTS)
        raise AllowError(f"{name}: is not one of edge's lists: {', '.join(LISTS)}" + (meant and f"; {meant}"))
    return (_LISTS / f"{name}.toml").read_text(encoding="utf-8")


def read_allowlist(path: Path | str) -> Allowlist:
    """Read an allowlist from a file, or by name: one of the LISTS, or several with commas between them.

    A name means edge's own list, also where a file has that name: ./git is the file. Patterns are RE2 regular
    expressions, whose time is bounded. Raises AllowError if the file is not a valid allowlist, or if a rule does not do
    what one of its examples says.
    """
    if is_name(path):
        return _joined([_shipped(name) for name in dict.fromkeys(str(path).split(","))], str(path))
    return _read(_toml(Path(path)), str(path))


def is_name(path: Path | str) -> bool:
    """Whether this names lists of edge, and no file."""
    return all(name in LISTS for name in str(path).split(","))


def _shipped(name: str) -> Allowlist:
    return _read(tomllib.loads(shipped_list(name)), f"{name}.toml")


def _read(data: dict[str, Any], path: str) -> Allowlist:
    _known_keys(data, set(AllowlistFields.__annotations__), path)
    for table, fields in (("rule", RuleTable), ("command", CommandTable)):
        entries = data.get(table, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise AllowError(f"{path}: write each {table} as a table [[{table}]]")
        for number, entry in enumerate(entries, 1):
            _known_keys(entry, set(fields.__annotations__), f"{path}: {table} {number}")
    checked = check(data, AllowlistFields, path, AllowError)
    keys = checked.get("keys", [])
    for key in keys:
        if key not in KEYS:
            raise AllowError(f"{path}: keys: {key!r} cannot be allowed; use only {', '.join(KEYS)}")
    rules = [_rule(table, number, path) for number, table in enumerate(checked.get("rule", []), 1)]
    commands = [_command(table, number, path) for number, table in enumerate(checked.get("command", []), 1)]
    loose = [name for rule in rules for name in sorted(rule.prefix[0]) if _is_loose(rule, name)]
    loose += [command.program for command in commands if _runs_others(command.program)]
    warnings = tuple(
        f"{path}: {name} can run other programs through its arguments, its files or keys: allow only arguments that "
        "do not name a program, and use --sandbox"
        for name in dict.fromkeys(loose)
    )
    tables = checked.get("rule", [])
    examples = sum(len(table.get("match", [])) + len(table.get("not_match", [])) for table in tables)
    own = Allowlist(tuple(rules), tuple(commands), frozenset(keys), warnings, examples)
    return _joined([*(_shipped(name) for name in checked.get("include", [])), own], path)


def _joined(lists: Sequence[Allowlist], path: str) -> Allowlist:
    """One list that has all rules of these. Raises AllowError if a command changes what a path of another means."""
    whole = Allowlist(
        tuple(rule for one in lists for rule in one.rules),
        tuple(command for one in lists for command in one.commands),
        frozenset(key for one in lists for key in one.keys),
        tuple(warning for one in lists for warning in one.warnings),
        sum(one.examples for one in lists),
    )
    programs = {command.program for command in whole.commands}
    programs |= {name for rule in whole.rules if rule.decision != "forbid" for name in rule.prefix[0]}
    if any(rule.has_paths for rule in whole.rules) and (moves := sorted(programs & _MOVE)):
        raise AllowError(
            f"{path}: {moves[0]} changes the folder at which <path> begins: remove it, or write other patterns"
        )
    return whole


def _toml(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # reading a device or a pipe could take forever
            raise AllowError(
                f"{path}: is not a file; give an allowlist in TOML ({_SEE}), or one of edge's own: {', '.join(LISTS)}"
            )
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise AllowError(f"{path}: is larger than {_MAX_FILE_BYTES:,} bytes; give a shorter allowlist")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise AllowError(f"{path}: cannot be read: {error.strerror}") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, not TOML, or a number that is too long
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise AllowError(f"{path}: is not TOML: {why} ({_SEE})") from None


def _bare(program: str) -> str:
    """The name without its folder, and without a version at its end (python3.11, gcc-12)."""
    return re.sub(r"[-.0-9]+$", "", program.rpartition("/")[2])


def _runs_others(program: str) -> bool:
    name = program.rpartition("/")[2]
    return not RUN_OTHERS.isdisjoint((name, _bare(name))) or name.startswith(("ld-linux", "ld.so", "ld-musl"))


def _is_loose(rule: Rule, program: str) -> bool:
    """Whether edge types commands of the rule unasked, without the sandbox, that may run any program."""
    if rule.decision != "allow" or not _runs_others(program):
        return False
    name = _bare(program)
    if name not in _HARMLESS_WITHOUT:
        return True
    if name == "git" and (len(rule.prefix) < 2 or not rule.prefix[1] <= _GIT_READS):
        return True
    begin = [next(iter(words)) for words in rule.prefix]
    tried = [(word, *value) for word in _HARMLESS_WITHOUT[name] for value in ((), ("x",))]
    return any(rule.fits([*begin, *words], Place()) for words in tried)


def _rule(table: RuleTable, number: int, path: str) -> Rule:
    prefix = tuple(frozenset([part] if isinstance(part, str) else part) for part in table["prefix"])
    first = table["prefix"][0] if isinstance(table["prefix"][0], str) else table["prefix"][0][0]
    where = f"{path}: rule {number} ({first})"
    decision = cast(Decision, table["decision"])
    in_sandbox = cast(Decision, table.get("decision_in_sandbox", decision))
    for program in sorted(prefix[0]):
        _check_program(program, where, forbidden=decision == in_sandbox == "forbid")
    for word in (word for part in prefix for word in part if re.fullmatch(r"<\w*>", word)):
        raise AllowError(f"{where}: prefix has words, not patterns: write {word} in places or rest")
    follows = {"options", "places", "rest"} & table.keys()
    rule = Rule(
        f"rule {number} ({first})",
        decision,
        in_sandbox,
        prefix,
        tuple(
            tuple(_word([part], where) for part in ([option] if isinstance(option, str) else option))
            for option in table.get("options", [])
        ),
        tuple(_word([part] if isinstance(part, str) else part, where) for part in table.get("places", [])),
        _word(table["rest"], where) if table.get("rest") else None,
        open=not follows and decision != "allow",
    )
    for wanted, examples in ((True, table.get("match", [])), (False, table.get("not_match", []))):
        for example in examples:
            _check_example(rule, example, wanted, where)
    return rule


def _check_example(rule: Rule, example: str, wanted: bool, where: str) -> None:
    why = "the rule fits it" if not wanted else "the rule does not fit it"
    try:
        commands = read_commands(example + "\n")
        fits = len(commands) == 1 and rule.fits((commands[0].program, *commands[0].arguments), Place())
        if len(commands) != 1:
            why = f"it holds {len(commands)} commands, not one"
    except UnreadableError as error:
        fits, why = False, str(error)
    if fits != wanted:
        raise AllowError(f"{where}: {example!r} is in {'match' if wanted else 'not_match'}, but {why}")


def _check_program(program: str, where: str, *, forbidden: bool = False) -> None:
    if program in _SHELL_OWN and not forbidden:
        raise AllowError(
            f"{where}: this shell builtin can change what other commands mean, or run them, so it cannot be allowed: "
            "remove it, or name a program by its path, such as /usr/bin/test"
        )
    try:
        plain = [(c.program, c.arguments) for c in read_commands(program + "\n")] == [(program, ())]
    except UnreadableError:
        plain = False
    if not plain and not forbidden:
        raise AllowError(f"{where}: program must be the plain name of a program")


def _command(table: CommandTable, number: int, path: str) -> AllowedCommand:
    program = table["program"]
    where = f"{path}: command {number} ({program})"
    _check_program(program, where)
    patterns = table.get("arguments", [])
    words = [pattern for pattern in patterns if re.fullmatch(r"[A-Za-z0-9_=/.,:@-]+", pattern)]
    if _bare(program) in _CHOOSE and len(words) < len(patterns):
        first = [word for word in words if not word.startswith("-")] or ["WORD"]
        prefix = ", ".join(f'"{word}"' for word in (program, *(["-m"] if "-m" in words else [])))
        choice = "[" + ", ".join(f'"{word}"' for word in first) + "]"
        raise AllowError(
            f"{where}: in this form any argument may match any pattern, so that the entry also allows other commands "
            f'of {program}: replace it by a [[rule]] with decision = "allow", prefix = [{prefix}, {choice}] and '
            'rest = ["<path>"]'
        )
    return AllowedCommand(program, _word(patterns, where), table.get("max_arguments", 20))


def _word(patterns: Sequence[str], where: str) -> Word:
    try:
        return Word(tuple(compile_pattern(pattern) for pattern in patterns))
    except PatternError as error:
        raise AllowError(f"{where}: {error}") from None


def _known_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise AllowError(f"{where}: {unknown_key(unknown[0], sorted(known))}")


def judge(allowlist: Allowlist, keystrokes: str, place: Place) -> Verdict:
    """Whether edge may type these keystrokes there, must ask a person, or refuses them.

    edge may type empty keystrokes (a wait), a key on the list, and lines of allowed commands. Each line must end with a
    line break: without it, the text would become a part of what edge types next.
    """
    if not keystrokes or keystrokes in allowlist.keys:
        return Verdict("allow", "the key is on the list" if keystrokes else "it is a wait")
    if is_key_name(keystrokes):
        return Verdict("refuse", f"the key {keystrokes} is not on the list")
    if not keystrokes.endswith("\n"):
        return Verdict("refuse", "it does not end with a line break: each command must be whole")
    try:
        commands = read_commands(keystrokes)
    except UnreadableError as error:
        return Verdict("refuse", str(error))
    verdicts = [_judge(allowlist, (one.program, *one.arguments), place) for one in commands]
    for decision in ("refuse", "ask"):
        for verdict in verdicts:
            if verdict.decision == decision:
                return verdict
    return verdicts[0] if verdicts else Verdict("allow", "it is an empty line")


def _judge(allowlist: Allowlist, words: Sequence[str], place: Place) -> Verdict:
    """The verdict on one command: the strictest of the rules that fit it."""
    fitting = [rule for rule in allowlist.rules if rule.fits(words, place)]
    if fitting:
        rule = max(fitting, key=lambda one: DECISIONS.index(one.decides(place)))
        decision = rule.decides(place)
        named = _named(words, len(rule.prefix))
        if decision == "forbid":
            return Verdict("refuse", f"{named} is forbidden here")
        if decision == "ask":
            return Verdict("ask", f"{named}: {rule.where} asks")
        return Verdict("allow", f"{named}: {rule.where} allows it")
    if any(entry.fits(words, place) for entry in allowlist.commands):
        return Verdict("allow", f"{words[0]}: its [[command]] table allows it")
    return Verdict("refuse", _not_listed(allowlist, words, place))


def _named(words: Sequence[str], count: int) -> str:
    """The first words of a command, as the model or a person may read them in one line."""
    return " ".join(words[:count])[:80]


def _not_listed(allowlist: Allowlist, words: Sequence[str], place: Place) -> str:
    """Why a command is not on the list; the model reads it."""
    entries = [entry for entry in allowlist.commands if entry.program == words[0]]
    rules = [rule for rule in allowlist.rules if rule.decides(place) != "forbid" and rule.begins(words)]
    if not entries and not rules:
        return f"{words[0]} is not on the list"
    begun = max((rule.begins(words) for rule in rules), default=1)
    whole = [rule for rule in rules if len(rule.prefix) <= begun]
    if not entries and not whole and len(words) > begun:
        wrong: str | None = words[begun]
    else:
        wrong = next(
            (
                word
                for word in words[begun if whole else 1 :]
                if not any(entry.arguments.fits(word, place) for entry in entries)
                and not any(rule.knows(word, place) for rule in whole)
            ),
            None,
        )
    what = "these arguments together" if wrong is None else f"the argument {wrong[:80]!r}"
    return f"{words[0]} is not allowed with {what}"
