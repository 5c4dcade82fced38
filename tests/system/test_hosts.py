import pytest

from edge.system.hosts import is_this_machine, leads_here

HERE = (
    "localhost",
    "LOCALHOST",
    "localhost.",
    "127.0.0.1",
    "127.1.2.3",
    "127.1",
    "::1",
    "[::1]",
    "::ffff:127.0.0.1",
)
ELSEWHERE = (
    "",
    "128.0.0.1",
    "10.0.0.1",
    "1",
    "::2",
    "127.0.0.1.example.org",
    "localhost.example.org",
    "Ⅰ",
    "a b",
)


@pytest.mark.parametrize("host", HERE)
def test_only_this_machine_can_reach_it(host: str) -> None:
    assert is_this_machine(host) and leads_here(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "::", "a.localhost"])
def test_a_connection_reaches_this_machine(host: str) -> None:
    """But a server on 0.0.0.0 is open to others, and a name can have another address."""
    assert leads_here(host) and not is_this_machine(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_it_is_another_machine_or_nobody_knows(host: str) -> None:
    assert not leads_here(host) and not is_this_machine(host)
