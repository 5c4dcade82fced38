"""A number and its noun agree, also if the number is one: on pages, in Markdown, in comparisons and rankings.

pytest tests/report/test_numbers.py
"""

import json
import re
from pathlib import Path

import pytest
from small_results import result, small_results, trials

from edge.compare.ranking import rank
from edge.compare.ranking_text import ranking_markdown
from edge.compare.run import compare
from edge.report import choice
from edge.report.build import report

_NOUNS = "steps tasks results rows files answers trials attempts tokens points pairs faults shards positions places"
_ONE = re.compile(rf"(?<![\d.,])1 (?:more )?(?:{_NOUNS.replace(' ', '|')})\b")


def cut(path: Path, steps: int) -> Path:
    """The first steps of a result, without its figures."""
    value = json.loads(path.read_text())
    del value["aggregate"]
    value["per_step"] = value["per_step"][:steps]
    path.write_text(json.dumps(value))
    return path


def pages(folder: Path, given: list[Path], **options: object) -> str:
    """The text of a page and of its short form."""
    page, short = folder / "page.html", folder / "short.md"
    report(given, page, markdown=short, force=True, **options)  # type: ignore[arg-type]
    html = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"<[^>]+>", " ", html) + short.read_text()


def test_a_page_of_one_result(tmp_path: Path) -> None:
    one = result(tmp_path / "Q4_K_M.json", "Q4_K_M")
    text = pages(tmp_path, [one])
    assert "This is a result without a reference, so it cannot show" in text
    assert "1 result of 12 steps; edge compared nothing." in text
    text = pages(tmp_path, [cut(one, 1)])
    assert "1 result of 1 step; edge compared nothing." in text
    two = result(tmp_path / "Q2_K.json", "Q2_K")
    text = pages(tmp_path, [one, two])
    assert "These are results without a reference, so they cannot show" in text
    assert "2 results of 1 to 12 steps each; edge compared nothing." in text


@pytest.mark.parametrize("steps", [1, 2])
def test_one_step_and_one_task(tmp_path: Path, steps: int) -> None:
    """Everywhere: pages with trials and measurements, comparisons, rankings."""
    base, q8, q4, q2, *measured = small_results(tmp_path)
    for path in (base, q8, q4, q2):
        cut(path, steps)
    value = json.loads(q2.read_text())
    q2.write_text(json.dumps({**value, "complete": False, "total_input_steps": None}))
    tried = [trials(tmp_path / f"{name}.trials.json", name, lost=1) for name in ("bf16", "Q4_K_M")]
    text = pages(tmp_path, [base, q8, q4, q2, *measured, *tried], reference=base)
    text += compare([q4, q2], base).to_markdown(1)
    text += ranking_markdown(rank([base, q8, q4, q2]))
    assert _ONE.findall(text) == []
    assert ("is unfinished: it has 1 step" in text) == (steps == 1)


def test_a_file_against_published_figures(tmp_path: Path) -> None:
    one = result(tmp_path / "Q4_K_M.json", "Q4_K_M")
    text = pages(tmp_path, [one], reference="lfm2.5-8b-a1b-terminal")
    assert "On the 100-point score, this file reached" in text and "cannot pair with its steps" in text
    two = result(tmp_path / "Q2_K.json", "Q2_K")
    text = pages(tmp_path, [one, two], reference="lfm2.5-8b-a1b-terminal")
    assert "On the 100-point score, these files reached" in text and "cannot pair with their steps" in text


def test_a_loss_of_one_point() -> None:
    sure = choice.Candidate("Q8_0", 10, 90.0, 0.0, -0.5, 0.5, 0.1)
    assert "lose at most 1 point of score" in choice.choose([sure], max_loss=1).why
    assert "lose at most 0.2 points of score" in choice.choose([sure], max_loss=0.2).why
