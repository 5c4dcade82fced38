"""Attempts to escape from the sandbox, typed into its real shell. The tests check the result from outside.

.venv/bin/pytest tests/terminal/test_escapes.py
EDGE_WRITE_DOCS=1 .venv/bin/pytest tests/terminal/test_escapes.py -k table    writes docs/safety.md

Each attempt runs twice: in the sandbox, where it must not touch anything, and without one, where it must succeed.
"""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from escape_attempts import BREAK, OTHER_ATTEMPTS, SHELL_ATTEMPTS, Attempt
from escape_rows import MORE_ROWS
from escapes import POSSIBLE, Shell, World, free, has, sandboxed

from edge.terminal.check import WORK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSSIBLE, reason="bubblewrap, tmux, bash, tar or awk is not installed"),
]

HERE = Path(__file__).parent
ids = [attempt.name for attempt in SHELL_ATTEMPTS]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World.made() as world:
        world.names["base64"] = base64.b64encode(BREAK.format(**world.names).encode()).decode()
        yield world


@pytest.fixture(scope="module")
def box(world: World) -> Iterator[Shell]:
    with sandboxed(world) as shell:
        yield shell


@pytest.fixture(scope="module")
def outside(world: World) -> Iterator[Shell]:
    with free(world) as shell:
        yield shell


def keystrokes(attempt: Attempt, world: World) -> list[str]:
    """The keystrokes of an attempt, with names filled in. A name in braces may be split between two parts."""
    parts = (attempt.script,) if isinstance(attempt.script, str) else attempt.script
    whole = "\0".join(parts).replace("{can\0ary}", "{canary}")
    return whole.format(**world.names).split("\0")


def try_it(attempt: Attempt, world: World, shell: Shell) -> tuple[list[str], str]:
    """What the attempt touched outside, and what the shell showed."""
    if not has(*attempt.needs):
        pytest.skip(f"needs {', '.join(attempt.needs)}")
    world.restore()
    assert world.touched() == []
    shown = shell.run(f"cd; rm -rf t {WORK}/t; mkdir t; cd t; clear\n", *keystrokes(attempt, world))
    return world.touched(), shown


@pytest.mark.parametrize("attempt", SHELL_ATTEMPTS, ids=ids)
def test_it_fails_in_the_sandbox(attempt: Attempt, world: World, box: Shell, tmp_path: Path) -> None:
    assert box.sandbox is not None
    touched, shown = try_it(attempt, world, box)
    assert touched == []
    assert world.secret not in shown
    assert not [place for place in Path("/tmp").glob("edge-test-*") if not place.is_dir()]
    assert box.sandbox.trouble() is None
    box.run(f"cd; mv t {WORK}/\n")
    box.sandbox.save(tmp_path / "saved.tar")
    assert world.secret.encode() not in (tmp_path / "saved.tar").read_bytes()


@pytest.mark.parametrize("attempt", SHELL_ATTEMPTS, ids=ids)
def test_it_succeeds_without_a_sandbox(attempt: Attempt, world: World, outside: Shell) -> None:
    if attempt.control:
        pytest.skip(attempt.control)
    if "{tcp6}" in attempt.script and "tcp6" not in world.names:
        pytest.skip("no IPv6 here")
    touched, shown = try_it(attempt, world, outside)
    for place in Path("/tmp").glob("edge-test-*"):
        if not place.is_dir() or place.is_symlink():
            touched.append(place.name)
            place.unlink()
    assert touched or world.secret in shown


def test_the_table_in_the_docs() -> None:
    """docs/safety.md lists every attempt, and each test that it names exists."""
    rows = [
        (one.name, one.stops, "test_escapes.py", "test_it_fails_in_the_sandbox") for one in SHELL_ATTEMPTS
    ]
    rows += [*OTHER_ATTEMPTS, *MORE_ROWS]
    table = "| | attempt | result | what stops it | test |\n|---|---|---|---|---|\n"
    for number, (name, stops, file, test) in enumerate(rows, 1):
        (source,) = HERE.parent.rglob(file)
        assert f"def {test}(" in source.read_text(encoding="utf-8")
        where = f"`{file}`" if file == "test_escapes.py" else f"`{file}::{test}`"
        cell = name.replace("|", "\\|")
        table += f"| {number} | {cell} | fails | {stops} | {where} |\n"
    page = HERE.parents[1] / "docs" / "safety.md"
    text = page.read_text(encoding="utf-8")
    begin, end = text.index("| | attempt |"), text.index("\n\n", text.index("| | attempt |")) + 1
    if "EDGE_WRITE_DOCS" in os.environ:
        page.write_text(text[:begin] + table + text[end:], encoding="utf-8")
    else:
        assert text[begin:end] == table
