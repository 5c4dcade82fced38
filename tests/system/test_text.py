"""Text of others made safe to show.

.venv/bin/pytest tests/system/test_text.py
"""

import pytest

from edge.system.tables import clean, code, display_width, table
from edge.system.text import masked, printable, size, visible


@pytest.mark.parametrize(
    ("text", "escaped", "symbols", "dots"),
    [
        ("plain ä 🙂", "plain ä 🙂", "plain ä 🙂", "plain ä 🙂"),
        ("a\x1b[2J", "a\\x1b[2J", "a␛[2J", "a·[2J"),
        ("a\nb\tc", "a\\nb\\tc", "a\nb\tc", "a·b·c"),
        ("\x7f\u202e\u00a0\ud800", "\\x7f\\u202e\\xa0\\ud800", "␡⟨U+202E⟩ ⟨U+D800⟩", "····"),
    ],
)
def test_three_ways(text: str, escaped: str, symbols: str, dots: str) -> None:
    assert (printable(text), visible(text), masked(text)) == (escaped, symbols, dots)
    assert printable(text, lines=True) == escaped.replace("\\n", "\n")


def test_sizes() -> None:
    assert [size(0), size(141e6), size(1_234_567_890), size(1_234_567_890, 2)] == [
        "0.0 MB",
        "141.0 MB",
        "1.2 GB",
        "1.23 GB",
    ]


def test_tables() -> None:
    assert clean("a|b\x1b\n") == "a\\|b··"
    assert code("") == "(none)" and code("echo `x`") == "`` echo `x` ``" and code("a|b") == "`a\\|b`"
    assert display_width(code("日本" * 30)) <= 38 and display_width("e\u0301") == 1
    assert table(["a", "b"], [["日本", "1"]], right=[1]) == [
        "| a    |   b |",
        "| ---- | --: |",
        "| 日本 |   1 |",
    ]
