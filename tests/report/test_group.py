"""Only runs that differ in their file alone stand in the headline, the first table and the plots.

pytest tests/report/test_group.py
"""

import json
import re
from pathlib import Path

import pytest
from small_results import result, small_results

from edge.report.build import report
from edge.report.collect import collect
from edge.report.contents import Report

pytestmark = pytest.mark.slow


def labels(found: Report) -> list[str]:
    return [entry.label for entry in found.files]


def others(found: Report) -> dict[str, str]:
    return {entry.label: entry.other for entry in found.others}


def again(folder: Path, name: str, of: str, **engine: object) -> Path:
    path = result(folder / name, of)
    stored = json.loads(path.read_text())
    stored["engine"] |= engine
    path.write_text(json.dumps(stored))
    return path


def test_runs_made_in_another_way_are_others(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    # As a glob gives them: "-" comes before ".", so that each other run comes before the one that compares.
    more = [
        again(tmp_path, "small-Q4_K_M-exact.json", "Q4_K_M", parallel=1),
        result(tmp_path / "small-Q4_K_M-free.json", "Q4_K_M", constrained=False),
        result(tmp_path / "small-Q4_K_M-unthinking.json", "Q4_K_M", think=16),
        result(tmp_path / "small-Q4_K_M-warm.json", "Q4_K_M", temperature=0.7),
        result(tmp_path / "small-bf16-free.json", "bf16", constrained=False),
        again(tmp_path, "small-Q8_0-cache.json", "Q8_0", kv_type="q8_0"),
    ]
    found = collect([*more, *files], files[0])
    assert labels(found) == ["bf16", "Q8_0", "Q4_K_M", "Q2_K"]
    assert others(found) == {
        "Q4_K_M-exact": "another run of the same file, parallel 1",
        "Q4_K_M-free": "no grammar",
        "Q4_K_M-unthinking": "thought of up to 16 tokens",
        "Q4_K_M-warm": "temperature 0.7",
        "bf16-free": "no grammar",
        "Q8_0-cache": "KV cache q8_0",
    }
    report([*more, *files], tmp_path / "p.html", files[0], markdown=tmp_path / "p.md")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    head = "".join(re.findall(r'<p class="(?:lead|expert|scope)">(.*?)</p>', page))
    table = page[page.index('<table class="wide" id="quantizations">') : page.index("Size and quality</h2>")]
    plots = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    for text in (head, table, plots, (tmp_path / "p.md").read_text(encoding="utf-8")):
        assert "Q2_K" in text and not re.search("(M|16|0)-(free|exact|unthinking|warm|cache)", text)
    assert "6 other runs of these files" in head


def test_a_published_reference_takes_the_runs_that_were_made_like_it(tmp_path: Path) -> None:
    """vLLM wrote without a grammar: its engine is another one for all, its grammar for some."""
    vllm = result(tmp_path / "vllm.json", "bf16")
    stored = json.loads(vllm.read_text())
    stored["provenance"] = {"backend": "vllm", "source": "owner/small"}
    stored["sampling"] = {"backend": "vllm", "temperature": 0.0, "max_tokens": 64, "dtype": "bfloat16"}
    vllm.write_text(json.dumps(stored))
    grammar = result(tmp_path / "Q8_0-grammar.json", "Q8_0")
    free = result(tmp_path / "Q8_0-free.json", "Q8_0", constrained=False)
    found = collect([grammar, free], vllm)
    assert labels(found) == ["vllm", "Q8_0-free"]
    assert others(found) == {"Q8_0-grammar": "with a grammar"}
    # If nothing compares, everything does, and the page says what differs besides.
    only = collect([grammar], vllm)
    assert labels(only) == ["vllm", "Q8_0-grammar"] and only.others == []
    from edge.report.words import besides

    assert besides(only).startswith("Besides the model file, the engine (vllm and edge)")
