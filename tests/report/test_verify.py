"""edge report --verify: a page is that of its files, or each change is found and named.

pytest tests/report/test_verify.py
"""

import json
import re
import shutil
from pathlib import Path

import command_line
import pytest
from conftest import ROOT
from small_results import answer, small_results

from edge.errors import ResultError
from edge.report.build import report
from edge.report.verify import verify

pytestmark = pytest.mark.slow

ROW = {
    "task_id": "task-0",
    "sample_idx": 0,
    "step_idx": 0,
    "messages": [{"role": "user", "content": "Do it."}],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("verify")
    files = small_results(folder)
    page = folder / "page.html"
    report(files, page, files[0], plots=folder / "plots", notes=["A note."], title="My files")
    return page, files


def changed(page: Path, to: Path, before: str, after: str) -> Path:
    text = page.read_text(encoding="utf-8")
    assert before in text
    to.write_text(text.replace(before, after, 1), encoding="utf-8")
    return to


def test_a_page_is_that_of_its_files_in_any_order_and_place(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    page, files = made
    moved = [Path(shutil.copy(path, tmp_path / f"renamed-{i}.json")) for i, path in enumerate(files)]
    found = verify(page, moved[::-1])
    assert found.faults == () and found.texts > 100
    assert found.notes == ("the heading and the notes were not checked: the author wrote them",)


def test_a_changed_digit_is_found_and_its_place_is_named(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    page, files = made
    text = page.read_text(encoding="utf-8")
    cell = re.search(r'<td data-name="Score, 95 % interval">([\d.]+)', text)
    assert cell is not None
    (fault,) = verify(changed(page, tmp_path / "a.html", cell[0], cell[0][:-1] + "9"), files).faults
    assert (fault.startswith("Files, row bf16, column Score") and '.69"' in fault) or '.99"' in fault, fault
    lead = re.search(r'<p class="lead">[^<]*?(\d+)\u00a0%', text)
    assert lead is not None
    wrong = lead[0].replace(f"{lead[1]}\u00a0%", f"{int(lead[1]) + 1}\u00a0%")
    (fault,) = verify(changed(page, tmp_path / "b.html", lead[0], wrong), files).faults
    assert fault.startswith("top of the page: ")
    line = re.search(r'<path d="M [\d.]+', text)  # a line of a plot is a figure too
    assert line is not None
    faults = verify(changed(page, tmp_path / "c.html", line[0], line[0][:-1] + "x"), files).faults
    assert len(faults) == 1 and "plot " in faults[0]


def test_a_message_or_a_label_of_the_author_is_no_way_around(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """A block like a task's last message, a label of another type, and a page that names another matplotlib."""
    page, files = made
    message = '<h4>Last message of the task</h4><pre class="message">Q2_K loses 0 %</pre>'
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROW, "ref_raw": answer("ls")}) + "\n")
    with_rows = tmp_path / "with-rows.html"
    report(files, with_rows, files[0], replay=tmp_path / "rows.jsonl", worse=0)
    for each in (page, with_rows):
        assert verify(changed(each, tmp_path / "a.html", "<nav", f"{message}<nav"), files).faults
    head = page.read_text(encoding="utf-8").replace(
        "&#34;label&#34;: &#34;Q2_K&#34;", "&#34;label&#34;: &#34;Q8_0&#34;"
    )
    (tmp_path / "b.html").write_text(head, encoding="utf-8")
    (fault,) = verify(tmp_path / "b.html", files).faults
    assert "small-Q2_K.json: the page names it Q8_0, but its weights are Q2_K" in fault
    text = re.sub(r"(matplotlib&#34;: &#34;)[^&]*", r"\g<1>0.1", page.read_text(encoding="utf-8"))
    (tmp_path / "c.html").write_text(text, encoding="utf-8")
    found = verify(tmp_path / "c.html", files)
    assert found.faults == () and any("lines of the plots were not compared" in note for note in found.notes)


def test_a_removed_row_and_an_added_sentence_are_found(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    page, files = made
    added = changed(page, tmp_path / "a.html", "<nav", "<p>The best file.</p><nav")
    (fault,) = verify(added, files).faults
    assert '"The best file."' in fault and "the files give nothing" in fault
    row = re.search(r'<tr>\n<th scope="row">Q8_0.*?</tr>\n', page.read_text(encoding="utf-8"), re.DOTALL)
    assert row is not None
    assert verify(changed(page, tmp_path / "b.html", row[0], ""), files).faults


def test_a_change_late_in_a_long_text_is_shown(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    page, files = made
    lead = re.search(r'<p class="lead">([^<]{80,})\.</p>', page.read_text(encoding="utf-8"))
    assert lead is not None
    (fault,) = verify(
        changed(page, tmp_path / "a.html", lead[0], f"{lead[0][:-5]} always.</p>"), files
    ).faults
    assert 'always."' in fault and fault.count("…") == 2


def test_the_number_of_faults_counts_those_that_are_not_shown(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    page, files = made
    text = page.read_text(encoding="utf-8")
    other = tmp_path / "a.html"
    other.write_text(re.sub(r"<td data-name=([^>]*)>[^<]+", r"<td data-name=\1>7", text), encoding="utf-8")
    count = len(verify(other, files).faults)
    assert count > 30
    done = command_line.run("report", "--verify", other, *files)
    assert done.returncode == 1 and f"{count} faults" in done.stderr
    assert len(done.stdout.splitlines()) == 21
    assert done.stdout.splitlines()[-1] == f"{count - 20} more places differ"


def test_a_changed_result_and_missing_and_foreign_files_are_named(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    page, files = made
    other = tmp_path / files[1].name
    stored = json.loads(files[1].read_text())
    other.write_text(json.dumps({**stored, "gpu": "another"}))
    (fault,) = verify(page, [files[0], other, *files[2:]]).faults
    assert fault.startswith(f"{other}: was changed: its SHA-256 is ")
    (fault,) = verify(page, files[:-1]).faults
    assert fault.startswith(f"{files[-1].name}: is missing")
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps({**stored, "gpu": "a third"}))
    assert verify(page, [*files, foreign]).faults == (f"{foreign}: is not a file of this page",)


def test_the_command_says_it_and_exits_with_1(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    page, files = made
    done = command_line.run("report", "--verify", page, *files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{page}: is the page of these {len(files)} files: all ")
    done = command_line.run("report", "--verify", page, *files[1:])
    assert done.returncode == 1
    assert done.stdout.startswith(f"{files[0].name}: is missing")
    assert done.stderr.endswith(f"error: {page}: is not the page of these files: 1 fault\n")


def test_what_is_no_page_is_refused(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    page, files = made
    (tmp_path / "x.html").write_text("<p>no</p>")
    with pytest.raises(ResultError, match="is not a page of edge report"):
        verify(tmp_path / "x.html", files)
    with pytest.raises(ResultError, match="cannot be read"):
        verify(tmp_path / "nope.html", files)
    with pytest.raises(ResultError, match=r"nope\.json: cannot be read"):
        verify(page, [tmp_path / "nope.json"])
    old = changed(page, tmp_path / "old.html", '<meta name="edge-run"', '<meta name="other"')
    with pytest.raises(ResultError, match="does not name its files"):
        verify(old, files)


@pytest.mark.parametrize(
    ("page", "files", "rows"),
    [
        ("tiny", ["tiny/*.json"], ROOT / "models" / "tiny-terminal" / "eval.jsonl"),
        ("trials", ["trials/replay/*.json", "trials/tiny/*.json", "trials/default-seeds.json"], None),
    ],
)
def test_the_shipped_pages_are_what_edge_makes_today(page: str, files: list[str], rows: Path | None) -> None:
    """If this fails, make them anew: benchmarks/evidence.sh and benchmarks/evidence/trials/README.md say how."""
    evidence = ROOT / "benchmarks" / "evidence"
    found = verify(
        evidence / page / "report.html", [path for one in files for path in evidence.glob(one)], rows
    )
    assert found.faults == () and found.texts > 1000
