"""Trials in edge report: matched by model, the solved share first, paired differences, the score against the share.

pytest tests/report/test_report_trials.py
"""

import html
import itertools
import json
import math
import re
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from random import Random

import command_line
import numpy as np
import pytest
from small_results import EVIDENCE, FILES, small_results, trials
from test_sentences import is_listed

from edge.compare.trial_pairs import compare_trials
from edge.errors import ResultError
from edge.report import trial_words, words
from edge.report.build import report
from edge.report.collect import collect
from edge.report.verify import verify

LOST = {"bf16": 0, "Q8_0": 3, "Q4_K_M": 20, "Q2_K": 25}


def tried(folder: Path, names: Sequence[str] = tuple(FILES), attempts: int = 1) -> list[Path]:
    return [trials(folder / f"tried-{name}.json", name, LOST[name], attempts) for name in names]


def edited(path: Path, to: Path, **changes: object) -> Path:
    to.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return to


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A page with the trials of all files, and with those of the default model, of which there is no result."""
    folder = tmp_path_factory.mktemp("tried")
    files = [*small_results(folder), *tried(folder), EVIDENCE]
    page = folder / "page.html"
    report(files, page, files[0], markdown=folder / "short.md")
    return page, files


@pytest.mark.slow
def test_the_solved_share_stands_first(made: tuple[Path, list[Path]]) -> None:
    text = html.unescape(made[0].read_text(encoding="utf-8"))
    lead = re.search(r'<p class="lead">(.*)</p>', text)
    assert lead is not None and lead[1].replace("\u00a0", " ").startswith(
        "In a sandbox, the unquantized model (bf16) solved 25 of 84 tasks (29.8 %, 95 %: 21.0 to 40.2); Q8_0 22 of 84 "
        "(26.2 %, 95 %: 18.0 to 36.5), "
    )
    row = re.search(r'<th scope="row">Q4_K_M.*?</td>', text[text.index('id="quantizations"') :], re.DOTALL)
    assert row is not None and '"Tasks solved, %">6.0<span class="ci">2.6 … 13.2</span></td>' in row[0]
    assert text.index('<h2 id="trials">') < text.index('<h2 id="files">')
    row = re.search(r'<th scope="row">Q4_K_M.*?</tr>', text[text.index('id="score-solved"') :], re.DOTALL)
    assert row is not None and ">75.00<" in row[0] and ">6.0<" in row[0]
    assert "Does the replay score predict it?" in text


@pytest.mark.slow
def test_the_difference_is_that_of_edge_compare(made: tuple[Path, list[Path]]) -> None:
    page, files = made
    pair = compare_trials(files[-3], files[-5])["pairs"][0]
    assert files[-3].name == "tried-Q4_K_M.json" and pair["low"] is not None and pair["high"] is not None
    text = html.unescape(page.read_text(encoding="utf-8"))
    assert f"<p>Q4_K_M: {pair['sentence']}</p>" in text
    span = " … ".join(words.fixed(bound, 1, sign=True) for bound in (pair["low"], pair["high"]))
    assert f'{words.fixed(pair["difference"], 1, sign=True)}<span class="ci">{span}</span>' in text
    short = (page.parent / "short.md").read_text(encoding="utf-8")
    assert span in short and "No result here is about the model of these trials: default.json." in short


def test_no_bound_is_beyond_what_can_be_lost(tmp_path: Path) -> None:
    base, ours = tried(tmp_path, ("bf16", "Q2_K"))
    pair = compare_trials(ours, base)["pairs"][0]
    assert pair["low"] == pytest.approx(-100 * 25 / 84, abs=1e-4)
    assert pair["sentence"].startswith("A loss of 29.8 points (95 % interval: 20.8 to 29.8).")


@pytest.mark.slow
def test_verify_checks_the_trials(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    page, files = made
    moved = [Path(shutil.copy(path, tmp_path / f"renamed-{i}.json")) for i, path in enumerate(files)]
    found = verify(page, moved[::-1])
    assert (found.faults, found.notes) == ((), ())
    other = tmp_path / "other.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("22 of 84 (26.2") == 1
    other.write_text(text.replace("22 of 84 (26.2", "23 of 84 (26.2"), encoding="utf-8")
    (fault,) = verify(other, files).faults
    assert fault.startswith("top of the page: ")
    cell = "<td>22 of 84 tasks</td>"
    other.write_text(text.replace(cell, "<td>24 of 84 tasks</td>"), encoding="utf-8")
    (fault,) = verify(other, files).faults
    assert fault == (
        'Tasks solved in a sandbox, row Q8_0, column Solved: the page says "24 of 84 tasks", the files give "22 of 84 '
        'tasks"'
    )
    (fault,) = verify(page, files[:-1]).faults
    assert fault.startswith("default.json: is missing")
    changed = edited(files[-4], tmp_path / files[-4].name, timestamp="2026-01-01T00:00:00Z")
    (fault,) = verify(page, [*files[:-4], changed, *files[-3:]]).faults
    assert fault.startswith(f"{changed}: was changed")


@pytest.mark.slow
def test_the_command_recognises_trials_by_their_content(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    own = tried(tmp_path, ("bf16",))[0]
    oddly = own.rename(tmp_path / "a.measure.json")
    done = command_line.run("report", oddly, EVIDENCE, *files, "--out", tmp_path / "p.html")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "note: No result here is about the model of these trials: default.json.\n"
    assert done.stdout == f"{tmp_path / 'p.html'}\n"
    done = command_line.run("report", "--verify", tmp_path / "p.html", oddly, EVIDENCE, *files)
    assert done.returncode == 0, done.stdout


def test_wrong_files_are_one_line(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    own = tried(tmp_path, ("bf16",))[0]
    again = edited(own, tmp_path / "again.json", timestamp="")
    with pytest.raises(ResultError, match=r"again\.json: has trials of the same model as .*tried-bf16\.json"):
        collect([*files, own, again])
    with pytest.raises(ResultError, match="is given twice"):
        collect([*files, EVIDENCE, EVIDENCE])
    with pytest.raises(ResultError, match="give the result of edge eval of the same model too"):
        collect([own])
    with pytest.raises(ResultError, match=r"tried-bf16\.json: is not a result of edge eval"):
        collect(files, own)
    with pytest.raises(ResultError, match=r"old\.json: .*update edge"):
        collect([*files, edited(own, tmp_path / "old.json", trials_version=99)])
    with pytest.raises(ResultError, match=r"bad\.json: figures"):
        collect([*files, edited(own, tmp_path / "bad.json", figures=3)])


def test_other_adapters_are_another_model(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    own = tried(tmp_path, ("Q8_0",))[0]
    told = json.loads(own.read_text(encoding="utf-8"))
    adapter = {"name": "a.gguf", "sha256": "0" * 64, "scale": 1.0, "base": "base"}
    other = edited(own, tmp_path / "other.json", provenance=told["provenance"] | {"adapters": [adapter]})
    assert [one.is_matched for one in collect([*files, own]).tried] == [True]
    assert [one.is_matched for one in collect([*files, other]).tried] == [False]


def test_shares_of_other_tasks_do_not_stand_beside_the_reference(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    base, ours = tried(tmp_path, ("bf16", "Q8_0"))
    told = json.loads(ours.read_text(encoding="utf-8"))
    for trial in told["trials"]:
        trial["task"] += "-other"
    other = edited(ours, tmp_path / "other.json", trials=told["trials"])
    found = collect([*files, base, other])
    assert "In a sandbox" not in words.layman(found)
    said = dict(trial_words.sentences(found))
    assert said["Q8_0"] == "Q8_0 was tried on other tasks than bf16, so the shares do not compare."
    assert found.tried[1].comparison is None
    assert (
        trial_words.prediction(found) == "One file cannot show whether the score predicts the solved share."
    )


def test_every_sentence_is_listed(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    four = tried(tmp_path)
    texts = []
    for given in ([four[1]], four[:2], four[:3], four, [EVIDENCE]):
        found = collect([*files, *given])
        texts += [words.layman(found), trial_words.unmatched(found), trial_words.prediction(found)]
        texts += [text for _, text in trial_words.sentences(found)]
    alone = collect([files[1], four[1]])
    assert words.layman(alone).startswith(
        f"Solved in a sandbox: {alone.entries[0].label} 22 of 84 tasks (26.2 %"
    )
    texts.append(words.layman(alone))
    assert [text for text in texts if text and not is_listed(text)] == []
    assert len(set(texts)) > 8


def test_several_attempts_count_trials(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    found = collect([*files, *tried(tmp_path, ("bf16", "Q4_K_M"), attempts=2)])
    assert "solved 50 of 168 trials (29.8 %" in words.layman(found)
    assert "Q4_K_M 10 of 168 (6.0 %" in words.layman(found)
    assert found.tried[1].pair is not None and found.tried[1].pair["p"] is None


def ranks(values: Sequence[float]) -> list[float]:
    return [statistics.mean(i + 1 for i, v in enumerate(sorted(values)) if v == value) for value in values]


def test_the_rank_correlation_is_that_of_all_orders() -> None:
    """Spearman's coefficient is the correlation of the ranks; p is the share of orders that have one as large."""
    random = Random(7)
    for count in (5, 6, 9):
        ours = [float(random.randrange(5)) for _ in range(count)]
        theirs = [random.random() for _ in range(count)]
        rho, p = trial_words.rank_correlation(np.array(ours), np.array(theirs))
        assert rho == pytest.approx(statistics.correlation(ranks(ours), ranks(theirs)))
        orders = itertools.permutations(ranks(theirs))
        if count > 6:
            orders = (random.sample(ranks(theirs), count) for _ in range(2000))  # type: ignore[assignment]
        sizes = [abs(statistics.correlation(ranks(ours), order)) for order in orders]
        expected = statistics.mean(size >= abs(rho) - 1e-9 for size in sizes)
        assert p == pytest.approx(expected, abs=0.04 if count > 6 else 1e-9)


def test_the_smallest_p_of_a_perfect_order() -> None:
    for count in (3, 4, 5, 7):
        rho, p = trial_words.rank_correlation(np.arange(count) * 1.0, np.arange(count) ** 2.0)
        assert rho == pytest.approx(1.0) and p == pytest.approx(2 / math.factorial(count))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("tmux") and shutil.which("bwrap")), reason="needs tmux and bubblewrap")
def test_trials_of_the_solutions_have_no_model(tmp_path: Path) -> None:
    for agent in ("oracle", "nop"):
        done = command_line.run(
            *("trial", "--agent", agent, "--task", "make-folder-1", "--out", tmp_path / "t"), cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    files = [*small_results(tmp_path), tmp_path / "t" / "oracle.json", tmp_path / "t" / "nop.json"]
    done = command_line.run("report", *files, "--out", tmp_path / "p.html")
    assert done.returncode == 0, done.stderr
    assert "of these trials: oracle.json, nop.json." in done.stderr
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    shares = re.findall(r'<th scope="row">(oracle|nop) .*?<td>([\d.]+)<span', text)
    assert shares == [("oracle", "100.0"), ("nop", "0.0")]
    assert not verify(tmp_path / "p.html", files).faults
