import pytest

from edge.system.hosts import is_this_machine


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.1.2.3", "::1", "[::1]"]
)
def test_only_this_machine_can_reach_it(host: str) -> None:
    assert is_this_machine(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "128.0.0.1", "10.0.0.1", "127.0.0.1.example.org", "localhost.example.org", "127.1"],
)
def test_others_can_reach_it_or_nobody_knows(host: str) -> None:
    assert not is_this_machine(host)
