"""What Terminus-2's parser must say about a valid action."""

from typing import Any

from edge.answer.action import parse_action


def check(terminus: Any, text: str) -> None:
    """Read without an error, and without a warning but the one about a command that its author did not end."""
    result = terminus.parse_response(text)
    fields = parse_action(text)
    assert result.error == "", text
    assert [w for w in result.warning.splitlines() if "should end with newline" not in w] == [], text
    assert [(c.keystrokes, c.duration) for c in result.commands] == [
        (c.keystrokes, c.duration) for c in fields["commands"]
    ]
    assert result.is_task_complete == fields["task_complete"]
    assert (result.analysis, result.plan) == (fields["analysis"], fields["plan"])
