"""A plugin of pytest that prints the processor seconds of each test file and of the dearest tests, children included.

PYTHONPATH=tests/helpers .venv/bin/pytest -p cpu_seconds tests/test_pull.py

It counts processor time, so that other work on the machine changes little. A child counts when its parent has waited
for it. With pytest-xdist, only `-n 0` gives figures.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

TESTS = 25  # that are listed
_files: dict[str, float] = defaultdict(float)
_tests: dict[str, float] = defaultdict(float)
_collected = 0.0


def _seconds() -> float:
    served: Any = sys.modules.get("command_line")
    return sum(os.times()[:4]) + (served.spent if served else 0.0)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    before = _seconds()
    try:
        return (yield)
    finally:
        _files[item.nodeid.partition("::")[0]] += _seconds() - before
        _tests[item.nodeid] += _seconds() - before


def pytest_collection_finish() -> None:
    global _collected
    _collected = _seconds()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("processor seconds")
    terminalreporter.line(f"{_collected:8.1f} start and collection")
    for found, most in ((_files, len(_files)), (_tests, TESTS)):
        for name, seconds in sorted(found.items(), key=lambda one: -one[1])[:most]:
            terminalreporter.line(f"{seconds:8.1f} {name}")
