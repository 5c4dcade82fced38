"""Terminus-2's own parser reads what edge closes. It is one file of the harbor wheel and needs only Python.

Run: python -m pytest tests/answer/test_harbor.py
`make test` puts the wheel into build/harbor; without it these tests are skipped.
"""

import json
from typing import Any

import pytest
from actions import random_runs, references, sample_texts
from terminus import check

from edge.answer.action import ActionScanner


def test_the_parser_does_find_faults(terminus: Any) -> None:
    assert terminus.parse_response('{"analysis": "", "plan": ""}').error
    assert terminus.parse_response('x {"plan": "", "analysis": "", "commands": [], "a": 1}').warning
    assert "AUTO-CORRECTED" in terminus.parse_response('{"analysis": "", "plan": "", "commands": []').warning


def closed_beginnings(data: bytes, every: int = 1) -> list[str]:
    """The text as edge closes it if the budget ends after each `every` bytes."""
    scanner, texts = ActionScanner(), []
    for at in range(0, len(data) + every, every):
        keep, ending = scanner.closing()
        texts.append(data[:keep].decode("utf-8") + ending)
        scanner.feed(data[at : at + every])
    return [*dict.fromkeys(texts), data.decode("utf-8")]


def test_every_beginning_of_every_sample(terminus: Any) -> None:
    for data in sample_texts():
        for text in closed_beginnings(data, every=3):
            check(terminus, text)


def test_every_beginning_of_real_answers(terminus: Any) -> None:
    for i, reference in enumerate(references()):
        for text in closed_beginnings(reference.encode(), every=1 if i % 12 == 0 else 37):
            check(terminus, text)


@pytest.mark.slow
def test_random_runs_closed_at_random_budgets(terminus: Any) -> None:
    for data, keep, ending in random_runs():
        check(terminus, data[:keep].decode("utf-8") + ending)


def test_a_cut_command_is_not_sent(terminus: Any) -> None:
    command = json.dumps({"keystrokes": "rm -rf /tmp/x\n", "duration": 0.5})
    data = f'{{"analysis": "clean up", "plan": "", "commands": [{command}'.encode()
    for text in closed_beginnings(data)[:-2]:
        assert terminus.parse_response(text).commands == []
    *_, last, _ = closed_beginnings(data)
    assert terminus.parse_response(last).commands[0].keystrokes == "rm -rf /tmp/x\n"
