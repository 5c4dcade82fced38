"""Tables and reports that fit a terminal: no line is too wide, and no text is lost.

pytest tests/system/test_tables.py
"""

import re

from hypothesis import given
from hypothesis import strategies as st

from edge.system.tables import columns, display_width, fitted, table

WORD = st.text(st.characters(categories=("L", "N", "P", "Z")), max_size=30)
ROWS = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(WORD, min_size=n, max_size=n), min_size=2, max_size=5)
)


def letters(text: str) -> str:
    """The text without white space; wrapped cells stand beside each other, so the order is left out too."""
    return "".join(sorted("".join(text.split())))


@given(ROWS, st.integers(20, 100))
def test_columns_fit_and_lose_nothing(lines: list[list[str]], width: int) -> None:
    header, *rows = lines
    shown = columns(header, rows, width)
    assert all(display_width(line) <= width for line in shown)
    for cell in (cell for row in rows for cell in row):
        kept = letters("".join(shown))
        assert all(kept.count(char) >= letters(cell).count(char) for char in set(letters(cell)) - {"·"})


def test_columns_that_do_not_fit_go_below_their_row() -> None:
    header, rows = (
        ("name", "hub id", "verdict"),
        [("tiny", "owner-name/a-long-repository-name", "no difference")],
    )
    assert columns(header, rows)[1] == "tiny  owner-name/a-long-repository-name  no difference"
    assert columns(header, rows, 40) == [
        "name  hub id",
        "tiny  owner-name/a-long-repository-name",
        "  verdict: no difference",
    ]
    assert columns(header, rows, 20) == [
        "tiny",
        "  hub id: owner-",
        "  name/a-long-",
        "  repository-name",
        "  verdict: no",
        "  difference",
    ]
    figures = [("F1", "0.9417", "0.9417", "0.0000 … 0.0000", "no step differs")]
    assert columns(("metric", "reference", "ours", "95 % interval", "verdict"), figures, 30, (1, 2, 3)) == [
        "metric  reference    ours",
        "F1         0.9417  0.9417",
        "  95 % interval: 0.0000 …",
        "  0.0000",
        "  verdict: no step differs",
    ]


def test_a_last_column_of_text_is_wrapped_between_words() -> None:
    rows = [("model", "-", "default: the newest usable GGUF"), ("threads", "2", "file")]
    assert columns(("setting", "value", "from"), rows, 40) == [
        "setting  value  from",
        "model    -      default: the newest",
        "                usable GGUF",
        "threads  2      file",
    ]


@given(st.text(st.characters(categories=("L", "N", "P", "Zs"))), st.integers(10, 100))
def test_fitted_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    shown = fitted(text, width)
    assert all(display_width(line) <= width for line in shown.split("\n"))
    assert "".join(shown.split()) == "".join(text.split())
    assert fitted(text, None) == text


def test_lines_end_at_blanks_and_keep_the_percent_sign() -> None:
    assert fitted("run first: edge pull org/some-long-repository-name", 40) == (
        "run first: edge pull\n  org/some-long-repository-name"
    )
    assert fitted("At most 18 % of all tasks differ (95 % confidence).", 37) == (
        "At most 18 % of all tasks differ\n  (95 % confidence)."
    )


def test_a_report_keeps_its_second_column_and_its_tables() -> None:
    assert fitted("memory      22.9 GB available of 25.3 GB", 30) == (
        "memory      22.9 GB available\n            of 25.3 GB"
    )
    markdown = table(("figure | a", "value"), [("NLL", "5.25"), ("perplexity", "190.5")], right=(1,))
    assert fitted("\n".join(markdown), 60) == "\n".join(markdown)
    narrow = fitted("\n".join(markdown).replace("figure | a", "figure \\| a"), 16)
    assert not re.search("---", narrow) and "NLL" in narrow and "190.5" in narrow
