"""Text of others made safe to show.

.venv/bin/pytest tests/system/test_text.py
"""

import json
import re
from pathlib import Path

import pytest

from edge.system.tables import clean, code, display_width, table
from edge.system.text import did_you_mean, is_visible, masked, printable, safe_json, size, visible


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


@pytest.mark.parametrize(
    "code",
    [
        0x3164,
        0x2800,
        0xFE0F,
        0x34F,
        0xE0041,
        0x115F,
        0xFFA0,
        0x180B,
        0x17B4,
        0xE0101,
        0x200B,
        0xFFFC,
        0x13441,
        0x13442,
    ],
)
def test_invisible_characters_become_escapes(code: int) -> None:
    assert (
        not is_visible(chr(code))
        and printable(f"a{chr(code)}b") == f"a{chr(code).encode('unicode_escape').decode()}b"
    )
    assert masked(f"a{chr(code)}b") == "a·b" and chr(code) not in safe_json(f'"{chr(code)}"')
    assert json.loads(safe_json(f'"{chr(code)}"')) == chr(code)


def test_accents_in_piles_and_without_a_letter_become_escapes() -> None:
    """They are painted over the lines around them, or over what edge writes before the text."""
    assert (
        printable("e\u0301" * 9 + "\u1ec7 \u0e01\u0e35\u0e48") == "e\u0301" * 9 + "\u1ec7 \u0e01\u0e35\u0e48"
    )
    assert printable("a" + "\u0301" * 7) == "a" + "\u0301" * 4 + r"\u0301" * 3
    assert printable("\u0336a/\u0337b \u20e0") == r"\u0336a/\u0337b \u20e0"
    assert printable("\u3164\u0301\n\u0301", lines=True) == "\\u3164\\u0301\n\\u0301"


def test_no_console_reads_emoji_codes() -> None:
    """A file named :skull: is shown by its name."""
    root = Path(__file__).resolve().parents[2]
    made = [
        call
        for path in (root / "edge").rglob("*.py")
        for call in re.findall(r"[^_]Console\([^)]+\)", path.read_text())
    ]
    assert len(made) > 4 and all("emoji=False" in call for call in made)


def test_json_on_a_terminal_is_the_same_json() -> None:
    """No character may hide a command, or show it in another order (CVE-2021-42574)."""
    value = "rm \u202e\u2066 x\u2069\ufeff\u200b\x7f\x9b\U000e0041 \u00e9\u65e5"
    text = json.dumps({"keystrokes": value}, ensure_ascii=False, indent=2)
    shown = safe_json(text)
    assert json.loads(shown) == {"keystrokes": value}
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "\\u202e\\u2066 x\\u2069\\ufeff\\u200b\\u007f\\u009b\\udb40\\udc41 \u00e9\u65e5" in shown
    assert safe_json('{"a":\t"b"}') == '{"a":\t"b"}'


def test_a_similar_name() -> None:
    assert did_you_mean("resutl", ["row", "result"]) == "did you mean result?"
    assert did_you_mean("xyz", ["row", "result"]) == did_you_mean("row", []) == ""


def test_a_part_of_a_name() -> None:
    names = ["Tiny-terminal", "big-terminal", "org/tiny-base", "tiny-b"]
    assert did_you_mean("tiny", names) == "did you mean tiny-b, Tiny-terminal or org/tiny-base?"
    assert did_you_mean("TERMINAL", names) == "did you mean big-terminal or Tiny-terminal?"
    assert did_you_mean("ti", names) == ""
    assert did_you_mean("tiny", names, 0.85, parts=False) == ""


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
