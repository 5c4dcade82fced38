"""The generator of the default model's training data: its kinds, its values, its episodes.

pytest tests/test_default_model.py
"""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from edge.answer.action import parse_action

FOLDER = Path(__file__).resolve().parents[1] / "scripts" / "default_model"
sys.path.insert(0, str(FOLDER))

from check_kinds import faults  # noqa: E402
from examples import make_episode, plain, request  # noqa: E402
from judge import read_requests  # noqa: E402
from kinds import Kind, read_kinds  # noqa: E402
from values import Values, held_out  # noqa: E402


@pytest.fixture(scope="module")
def kinds() -> list[Kind]:
    return read_kinds()


def needs_bubblewrap() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("needs bubblewrap")


def test_there_are_hundreds_of_kinds_each_with_wordings(kinds: list[Kind]) -> None:
    assert len(kinds) > 1000
    assert sum(len(kind.say) for kind in kinds) > 8 * len(kinds)


def test_commands_run_in_their_world(kinds: list[Kind]) -> None:
    """A sample, another one each time kinds change; check_kinds.py runs all."""
    needs_bubblewrap()
    rng = random.Random(len(kinds))
    found = {kind.name: faults(kind, rng) for kind in rng.sample(kinds, 60)}
    assert not {name: wrong for name, wrong in found.items() if wrong}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('say = ["a", "b", "c"]\nturns = [["A.", "P.", "ls"]]', "four different wordings"),
        ('say = ["a", "b", "c", "d"]', "either turns or flows"),
        ('say = ["a", "b", "c", "d"]\nturns = [["A.", "P.", "ls <dir1>"]]', "lacks <dir1>"),
        ('say = ["a", "b", "c", "d"]\nturns = [["A.", "P."]]', "analysis, plan, command"),
        ('say = ["a", "b", "c", "d"]\nturns = [["A.", "P.", "ls"]]\nword = 1', "unknown field word"),
    ],
)
def test_a_wrong_kind_is_named(table: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "kinds.toml"
    path.write_text(f"[one]\n{table}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"kinds\.toml: \[one\]: .*{problem}"):
        read_kinds(path)


def test_an_episode_depends_on_its_number_alone(kinds: list[Kind]) -> None:
    needs_bubblewrap()
    for number in range(12):
        first, second = (make_episode(kinds, number).messages[:3] for _ in range(2))
        assert first == second


def test_answers_are_actions_and_roles_alternate(kinds: list[Kind]) -> None:
    needs_bubblewrap()
    for number in range(60):
        messages = make_episode(kinds, number).messages
        roles = [message["role"] for message in messages]
        assert roles == ["system", *["user", "assistant"] * (len(roles) // 2)]
        for message in messages[2::2]:
            assert parse_action(message["content"])["analysis"]
            assert list(json.loads(message["content"])) == ["analysis", "plan", "commands", "task_complete"]


def test_held_out_names_are_never_in_training() -> None:
    names = {held: set[str]() for held in (False, True)}
    for held in names:
        for seed in range(200):
            values = Values(random.Random(seed), held)
            names[held] |= {values.value(f"<{kind}1>") for kind in ("file", "txt", "dir", "branch", "text")}
        assert all(held_out(value) == held for value in names[held])
    assert not names[True] & names[False]


def test_no_held_out_request_is_a_training_request(kinds: list[Kind]) -> None:
    held = {plain(request.text) for request in read_requests()}
    assert len(held) == 250
    rng = random.Random(0)
    made = {plain(request(kind, Values(rng, held=False), rng)) for kind in kinds for _ in range(12)}
    assert len(made) > 10_000
    assert not held & made
