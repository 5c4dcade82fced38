"""Write docs/sentences.md: every sentence that a comparison, a report or a model card prints, and when it is true.

python scripts/sentences_page.py            write the page (`make docs`)
python scripts/sentences_page.py --check    write nothing; exit 1 if the page is stale (`make check`)
"""

import re
import sys
from pathlib import Path

from edge.compare import patterns as compare_patterns
from edge.compare.patterns import Pattern, patterns_of
from edge.report import patterns as report_patterns

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sentences.md"
MODULES = {"edge/compare/patterns.py": compare_patterns, "edge/report/patterns.py": report_patterns}

HEAD = """\
# Sentences

<!-- Written by scripts/sentences_page.py. Do not edit this page: run `make docs`. -->

This page lists every sentence that `edge compare`, `edge report`, its model card and `edge sweep` can print about
results, and when the sentence is true. A word in braces stands for a value. The tables have figures only. The page of a
report also has fixed explanations, for example under How to read it; they do not depend on the results.

The sentences are the constants of two modules. `tests/report/test_sentences.py` checks that the code prints no others,
and that the pages in `benchmarks/evidence` have no others.
"""


def text() -> str:
    """The page."""
    lines = [HEAD]
    for name, module in MODULES.items():
        lines += [f"## {name}", ""]
        for heading, patterns in _sections(Path(module.__file__ or ""), patterns_of(vars(module))):
            lines += [f"### {heading}", "", "| sentence | when |", "|---|---|"]
            lines += [f"| {_cell(pattern.text)} | {_cell(pattern.when)} |" for pattern in patterns]
            lines.append("")
    return "\n".join(lines)


def _sections(path: Path, patterns: dict[str, Pattern]) -> list[tuple[str, list[Pattern]]]:
    """The patterns of a module under the comments that stand before them."""
    found: list[tuple[str, list[Pattern]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if comment := re.match(r"# (.+?)\.?( `.*)?$", line):
            found.append((comment[1].partition(". ")[0].rstrip("."), []))
        elif name := re.match(r"([A-Z][A-Z0-9_]*) = Pattern\(", line):
            found[-1][1].append(patterns[name[1]])
    return [(heading, listed) for heading, listed in found if listed]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def main() -> int:
    """Write or check the page; the exit code."""
    if "--check" in sys.argv[1:]:
        stale = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text()
        if stale:
            print(f"{PAGE}: is stale: run `make docs`")
        return int(stale)
    PAGE.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
