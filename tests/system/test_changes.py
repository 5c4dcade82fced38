"""The words that say how two runs differ."""

from edge.system.outputs import differences


def test_a_long_value_is_not_shown() -> None:
    """A chat template or a recipe has kilobytes, and an error is one line."""
    name = "tokenizer.chat_template"
    assert differences({name: "x" * 900}, {name: "y" * 900}) == f"{name} has changed"
    assert differences({}, {name: "y" * 900}) == f"{name} is new"
    assert (
        differences({name: "x" * 900, "top_k": 1}, {"top_k": 2}) == f"--top-k was 1, is 2; {name} is left out"
    )
    assert differences({"out": "a" * 40}, {"out": "b" * 40}) == f"out was {'a' * 40}, is {'b' * 40}"
