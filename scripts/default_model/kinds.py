"""Kinds of requests: the tables in kinds/*.toml, read and checked. kinds/README.md describes a table."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "kinds"
PLACEHOLDER = re.compile(r"<([a-z]+)(\d+)>")
FIELDS = {"say", "world", "turns", "flows", "fails"}
KEYS = ("", "C-c", "C-d", "C-z", "q", "y", "n")  # typed as they are, not run as commands


@dataclass(frozen=True)
class Step:
    """One turn of a flow. `output` is what the terminal prints; None: run the commands and record it."""

    analysis: str
    plan: str
    commands: tuple[str, ...]
    output: str | None


@dataclass(frozen=True)
class Kind:
    """One kind of request: its wordings, the bash that makes its files, and the courses that an episode can take."""

    name: str
    say: tuple[str, ...]
    world: str
    flows: tuple[tuple[Step, ...], ...]
    fails: bool
    """Whether the first command is meant to fail."""


def read_kinds(*files: Path) -> list[Kind]:
    """The kinds of these files, by default all of kinds/. Raises ValueError that names the file and the kind."""
    kinds: dict[str, Kind] = {}
    for path in files or sorted(FOLDER.glob("*.toml")):
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            try:
                kind = _kind(name, table)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}: [{name}]: {error}") from None
            if name in kinds:
                raise ValueError(f"{path}: [{name}]: another kind has this name")
            kinds[name] = kind
    return list(kinds.values())


def _kind(name: str, table: dict[str, Any]) -> Kind:
    if unknown := set(table) - FIELDS:
        raise ValueError(f"unknown field {', '.join(sorted(unknown))}")
    if ("turns" in table) == ("flows" in table):
        raise ValueError("needs either turns or flows")
    flows = tuple(tuple(_step(turn) for turn in flow) for flow in table.get("flows", [table.get("turns")]))
    kind = Kind(name, tuple(table["say"]), table.get("world", ""), flows, bool(table.get("fails", False)))
    if len(kind.say) < 4 or len(set(kind.say)) != len(kind.say):
        raise ValueError("needs at least four different wordings in say")
    if not all(kind.flows):
        raise ValueError("a flow has no turn")
    for wording in kind.say:
        missing = {match[0] for command in flows[0][0].commands for match in PLACEHOLDER.finditer(command)}
        missing -= {match[0] for match in PLACEHOLDER.finditer(wording)}
        if missing and len(flows[0]) == 1:
            raise ValueError(f"the wording {wording!r} lacks {', '.join(sorted(missing))}")
    return kind


def _step(turn: list[Any]) -> Step:
    if not 3 <= len(turn) <= 4:
        raise ValueError(f"a turn needs analysis, plan, command and perhaps an output: {turn!r}")
    commands = (turn[2],) if isinstance(turn[2], str) else tuple(turn[2])
    if not all(isinstance(text, str) for text in (*turn[:2], *commands, *turn[3:])):
        raise ValueError(f"a turn has something that is not text: {turn!r}")
    return Step(turn[0], turn[1], commands, turn[3] if len(turn) == 4 else None)
