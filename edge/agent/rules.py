"""The rules of an allowlist: the first words of a command in order, and which words may follow them.

A rule reads a command as most programs do. A word that begins with a dash is an option, and may stand anywhere after
the prefix. Every other word has a place. So `git config` never passes as a `git log` whose path is `config`.
"""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import re2  # type: ignore[import-untyped]

Decision = Literal["allow", "ask", "forbid"]
DECISIONS: tuple[Decision, ...] = ("allow", "ask", "forbid")  # the later is the stricter
NAMED = ("<path>", "<file>", "<revision>", "<text>", "<name>", "<number>")
"""Patterns by name. `<path>`, `<file>` and `<revision>` depend on the folder."""

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|[./][A-Za-z0-9_])*"  # never "..", and no dot-file


# HEAD, a branch, a commit, and what is before it (HEAD~2); two of them with .. or ... between.
_ONE = rf"(?:HEAD|@|{_NAME})(?:[~^][0-9]*)*"
_REVISION = rf"{_ONE}(?:\.\.\.?(?:{_ONE})?)?"


class PatternError(ValueError):
    """A text is not an RE2 regular expression or the name of a pattern. The message says why."""


@dataclass(frozen=True)
class Place:
    """Where commands run. `folder`: the work folder; None where only the form of a path counts.

    `inside`: the same folder as the shell in the sandbox names it; None without a sandbox. Links are followed only
    without a sandbox: in it, the links are other ones, and the kernel keeps the commands in.
    """

    folder: Path | None = None
    inside: str | None = None

    @property
    def sandbox(self) -> bool:
        """Whether commands run in the sandbox."""
        return self.inside is not None


@dataclass(frozen=True)
class Word:
    """What one word of a command may be: one of these patterns, compiled by re2 (which has no types) or by name."""

    patterns: tuple[Any, ...]

    def fits(self, word: str, place: Place) -> bool:
        """Whether the word as a whole matches one of the patterns."""
        return any(_matches(pattern, word, place) for pattern in self.patterns)


@dataclass(frozen=True)
class Rule:
    """One rule. `where` names it for people, as in "rule 2 (git)"."""

    where: str
    decision: Decision
    in_sandbox: Decision
    """The decision in the sandbox."""
    prefix: tuple[frozenset[str], ...]
    """The words that are allowed at each of the first places, the program first."""
    options: tuple[tuple[Word, ...], ...] = ()
    """Options that may follow, each with the words of its value."""
    places: tuple[Word, ...] = ()
    """What the words after the prefix that are not options may be, in order."""
    rest: Word | None = None
    """What all further words may be; None: there may be none."""
    open: bool = False
    """Anything may follow the prefix."""

    @property
    def has_paths(self) -> bool:
        """Whether the rule has the pattern `<path>` or `<file>`."""
        words = [*self.places, *(part for option in self.options for part in option)]
        return any(
            {"<path>", "<file>"}.intersection(word.patterns)
            for word in [*words, *([self.rest] if self.rest else [])]
        )

    def decides(self, place: Place) -> Decision:
        """The decision at that place."""
        return self.in_sandbox if place.sandbox else self.decision

    def fits(self, words: Sequence[str], place: Place) -> bool:
        """Whether the rule is about this command."""
        begin = len(self.prefix)
        if self.begins(words) < begin:
            return False
        return self.open or self._follows(words, begin, place)

    def begins(self, words: Sequence[str]) -> int:
        """How many words at the beginning match the prefix.

        What is forbidden, or asked, is so by any path of the program.
        """
        count = 0
        for word, known in zip(words, self.prefix, strict=False):
            by_path = count == 0 and self.decision != "allow" and word.rpartition("/")[2] in known
            if word not in known and not by_path:
                break
            count += 1
        return count

    def knows(self, word: str, place: Place) -> bool:
        """Whether the rule accepts the word at any place after the prefix."""
        if self.open:
            return True
        words = [*self.places, *([self.rest] if self.rest else [])]
        words = [part for option in self.options for part in option] if _is_option(word) else words
        return any(one.fits(word, place) for one in words)

    def _follows(self, words: Sequence[str], begin: int, place: Place) -> bool:
        """Whether the words from `begin` on can be read as options and places."""
        waiting = [(begin, 0, False)]
        seen = set(waiting)
        while waiting:
            index, placed, no_options = waiting.pop()
            if index == len(words):
                return True
            word, after = words[index], []
            if _is_option(word) and not no_options:
                for option in self.options:
                    end = index + len(option)
                    value = words[index:end]
                    if len(value) == len(option) and all(
                        part.fits(one, place) for part, one in zip(option, value, strict=True)
                    ):
                        after.append((end, placed, word == "--"))
            else:
                known = self.places[placed] if placed < len(self.places) else self.rest
                if known is not None and known.fits(word, place):
                    after.append((index + 1, min(placed + 1, len(self.places)), no_options))
            for state in after:
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)
        return False


def compile_pattern(pattern: str) -> Any:
    """The compiled pattern, whose time to match is bounded; a name as it is. Raises PatternError."""
    if pattern in NAMED:
        return pattern
    if re.fullmatch(r"<\w*>", pattern):
        raise PatternError(f"{pattern!r} is not the name of a pattern; the names: {', '.join(NAMED)}")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        why = (
            error.args[0].decode(errors="replace")
            if error.args and isinstance(error.args[0], bytes)
            else error
        )
        raise PatternError(f"{pattern!r} is not an RE2 regular expression: {why}") from None


def leads_inside(word: str, place: Place) -> bool:
    """Whether a word names the work folder or something in it, and no dot-file.

    Refuses "..", links that leave the folder, and what programs may read as something other than a path.
    """
    if not word or word[0] in "-~:@+" or ".." in word:
        return False
    root = place.inside or (None if place.folder is None else str(place.folder.absolute()))
    inner = word
    if word.startswith("/"):
        if root is None or not Path(word).is_relative_to(root):
            return False
        inner = str(Path(word).relative_to(root))
    # A colon: tests/test_a.py::test_b of pytest, HEAD:a/b of git.
    if any(part.startswith(".") and part != "." for part in re.split("[/:]", inner)):
        return False
    return _stays({inner, inner.partition("::")[0], inner.partition(":")[2]}, place)


def _stays(names: Collection[str], place: Place) -> bool:
    """Whether no link leads these relative names out of the work folder, or to a dot-file in it."""
    if place.folder is None or place.sandbox:
        return True
    folder = os.path.realpath(place.folder)
    for name in names:
        end = Path(os.path.realpath(os.path.join(folder, name)))
        if not end.is_relative_to(folder):
            return False
        if any(part.startswith(".") for part in end.relative_to(folder).parts):
            return False
    return True


def _is_folder(word: str, place: Place) -> bool:
    return place.folder is not None and not place.sandbox and os.path.isdir(os.path.join(place.folder, word))


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _matches(pattern: Any, word: str, place: Place) -> bool:
    if pattern == "<path>":
        return leads_inside(word, place)
    if pattern == "<file>":  # in a folder, a program can find links that leave
        return leads_inside(word, place) and not _is_folder(word, place)
    if pattern == "<revision>":  # where there is no repository, git takes it for the name of a file
        return re.fullmatch(_REVISION, word) is not None and _stays({word}, place)
    if pattern == "<text>":
        return not word.startswith("-")
    if pattern == "<name>":
        return re.fullmatch(_NAME, word) is not None
    if pattern == "<number>":
        return re.fullmatch("[0-9]{1,9}", word) is not None
    return pattern.fullmatch(word) is not None
