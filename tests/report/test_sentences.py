"""Every sentence about results is a pattern with a condition, and docs/sentences.md lists them all.

pytest tests/report/test_sentences.py
"""

import ast
import functools
import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from small_results import result, small_results

from edge.compare import patterns as compare_patterns
from edge.compare.causes import causes, causes_markdown
from edge.compare.patterns import Pattern, patterns_of
from edge.compare.run import compare
from edge.report import patterns as report_patterns
from edge.report import words
from edge.report.collect import collect
from edge.report.model_card import recommendations

PATTERNS = [*patterns_of(vars(compare_patterns)).values(), *patterns_of(vars(report_patterns)).values()]
# Modules that print sentences about results.
PRINTING = (
    "compare/verdict.py",
    "compare/notes.py",
    "compare/labels.py",
    "compare/run.py",
    "compare/pairing.py",
    "compare/findings.py",
    "compare/causes.py",
    "compare/trial_pairs.py",
    "report/words.py",
    "report/trial_words.py",
    "report/tried.py",
    "report/choice.py",
    "report/collect.py",
    "report/short_form.py",
    "report/model_card.py",
    "report/verify.py",
)
_FIXED = ("DEFINITIONS", "_ADVICE")  # explanations that do not depend on results; advice of an error


@functools.cache
def is_listed(text: str) -> bool:
    """Whether a text consists of sentences that are patterns."""
    if any(pattern.matches(text) for pattern in PATTERNS):
        return True
    ends = [match.end() for match in re.finditer(r"[.)] ", text)]
    return any(
        any(pattern.matches(text[: end - 1]) for pattern in PATTERNS) and is_listed(text[end:])
        for end in ends
    )


def test_the_page_is_that_of_the_patterns() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "sentences_page.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    page = (ROOT / "docs" / "sentences.md").read_text(encoding="utf-8")
    assert page.count("\n| ") == len(PATTERNS) + 2 * page.count("| sentence | when |") - page.count("|---|")
    for pattern in PATTERNS:
        assert pattern.text.replace("*", "\\*") in page and pattern.when


def test_the_code_prints_no_other_sentences() -> None:
    """A text of several words that ends like a sentence stands in the patterns, in a docstring or in an error."""
    found = []
    for name in PRINTING:
        tree = ast.parse((ROOT / "edge" / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                child.parent = node  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            text = literal(node)
            if (
                text is not None
                and len(text.split()) > 3
                and text.rstrip().endswith(".")
                and not excused(node)
            ):
                found.append(f"{name}:{getattr(node, 'lineno', 0)}: {text}")
    assert found == []


def literal(node: ast.AST) -> str | None:
    if isinstance(getattr(node, "parent", None), ast.JoinedStr):
        return None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def excused(node: ast.AST) -> bool:
    parent: ast.AST | None = getattr(node, "parent", None)
    if isinstance(parent, ast.Expr):
        return True
    while parent is not None:
        if isinstance(parent, ast.Raise):
            return True
        if isinstance(parent, ast.Assign) and ast.unparse(parent.targets[0]) in _FIXED:
            return True
        parent = getattr(parent, "parent", None)
    return False


@pytest.mark.slow
def test_what_is_printed_is_listed(tmp_path: Path) -> None:
    """Comparisons of few and many differing tasks, of equal sides, with a grammar on one side, with missing rows."""
    files = small_results(tmp_path)
    free = result(tmp_path / "free.json", "Q8_0", constrained=False, temperature=0.5)
    stored = json.loads(files[2].read_text())
    stored["complete"] = False
    stored["per_step"][0]["closed_at_budget"] = True
    stored["per_step"][1]["error"] = "server"
    (tmp_path / "odd.json").write_text(json.dumps(stored))
    given = [*files[1:4], free, tmp_path / "odd.json"]
    texts = []
    for reference in (files[0], "lfm2.5-8b-a1b-terminal"):
        for part in compare(given, reference).parts:
            texts += [*part.notes, *(figure.sentence for figure in part.figures)]
        report = collect([*given, *files[4:]], reference)
        texts += [words.layman(report), words.expert(report), *words.remarks(report)]
        texts += [words.scope(report), *recommendations(report).values()]
    found = causes(files[:4])
    texts += [line for line in causes_markdown(found).splitlines() if line.endswith(".") and line[0] != "-"]
    texts = [text for text in texts if text]
    assert len(set(texts)) > 20
    assert [text for text in texts if not is_listed(text)] == []


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_the_shipped_pages_have_no_other_verdicts(name: str) -> None:
    page = (ROOT / "benchmarks" / "evidence" / name / "report.html").read_text(encoding="utf-8")
    head = re.findall(r'<p class="(?:lead|expert|scope)">(.*?)</p>', page)
    verdicts = [
        text for text in re.findall(r'<td class="text"[^>]*>([^<]*)</td>', page) if text.endswith(".")
    ]
    assert len(head) > 2 and verdicts
    shown = [html.unescape(text).replace("\u00a0", " ") for text in [*head, *verdicts]]
    assert [text for text in shown if not is_listed(text)] == []


def test_a_pattern_takes_values_with_braces_and_matches_only_itself() -> None:
    pattern = Pattern("{file} lost {points} points.", "always")
    assert pattern(file="{0}", points=3) == "{0} lost 3 points."
    assert pattern.matches("a b lost 3 points.") and not pattern.matches("a won 3 points.")
