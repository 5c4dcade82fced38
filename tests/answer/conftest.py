"""The embedded model for the tests of answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.answer.guided import Endings
from edge.runner import Runner


@pytest.fixture(scope="module")
def tiny(tiny_q4: Path) -> Iterator[Runner]:
    with Runner.load(tiny_q4, threads=1) as runner:
        yield runner


@pytest.fixture(scope="module")
def endings(tiny: Runner) -> Endings:
    return Endings(tiny.vocabulary.matcher_tokens(), sorted(tiny.vocabulary.end_ids))
