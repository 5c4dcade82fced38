"""edge report: the page shows the figures of the files, loads nothing, and no text in a file can break it.

pytest tests/report/test_report.py
"""

import json
import os
import re
import struct
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import command_line
import pytest
from conftest import ROOT, converted
from hypothesis import given
from hypothesis import strategies as st

from edge.answer.answering import Answering
from edge.compare.run import compare
from edge.errors import ReplayError, ResultError
from edge.llama.loading import Loading
from edge.replay.result import step_result, write_result
from edge.replay.rows import Row
from edge.replay.run import evaluate
from edge.report.build import report
from edge.report.contents import Report
from edge.report.evidence import short_labels
from edge.report.measurements import check_measurement
from edge.report.plots import Point, front
from edge.report.words import fixed, kl, size
from edge.report.worse import diff
from edge.system.paths import embedded_rows
from edge.system.text import visible

pytestmark = pytest.mark.slow

_VOID = {"meta", "br", "link", "img", "input", "hr", "path", "use", "rect"}
HOSTILE = "</td></pre><script>alert(1)</script>\x1b[31m\u202eevil\x00\ud800 {{7*7}} $\\frac{1}{2}$ &lt; \"'"


class Page(HTMLParser):
    """Checks the nesting of tags, and collects tags, ids and the text of table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.ids: dict[str, int] = {}
        self.words: list[str] = []
        self.inside: list[str] | None = None
        self.feed(html)
        self.close()
        assert not self.open
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
            if name := dict(attrs).get("id"):
                self.ids[name] = len(self.tables) - 1
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if any(tag in ("td", "th") for tag in self.open):
            self.tables[-1][-1][-1] += data

    def cells(self, table: str) -> dict[str, list[str]]:
        """The rows of a table, by their first cell."""
        return {row[0]: row[1:] for row in self.tables[self.ids[table]][1:]}


def check_page(path: Path) -> Page:
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "img", "base", "form"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "srcset", "action") for name in attributes), (
            tag
        )
        for name, value in attributes.items():
            if name.endswith("href"):
                assert value is not None and value.startswith("#") and value[1:] in ids
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target[1:] in ids
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policies = [
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert headers and all(a.get("scope") in ("col", "row", "rowgroup") for a in headers)
    plots = [attributes for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert all(a.get("aria-label") for a in plots)
    assert not set(re.findall(r"[^\n\t -~\xa0-\U0010ffff]", html))
    return page


def band(name: dict[str, Any], mean: float) -> dict[str, Any]:
    spread = {"kl_median": mean / 5, "kl_p90": mean * 2, "kl_p99": mean * 9}
    return {**name, "tokens": 99, "kl_mean": mean, **spread, "top1_agreement_pct": 98.7}


def measurement(path: Path, result: Path, mean: float, **more: Any) -> Path:
    """A measurement JSON as edge measure writes it, for the model of a result."""
    told = {
        "measurement": 1,
        "model_sha256": json.loads(result.read_text())["provenance"]["model_sha256"],
        "kind": "rows",
        "base": "somewhere/tiny-bf16.gguf",
        "base_sha256": "0" * 64,
        "aggregate": {
            "tokens": 4321,
            "nll": 0.31,
            "perplexity": 1.363,
            "base_perplexity": 1.21,
            "kl_mean": mean,
            "kl_median": mean / 7,
            "kl_p90": mean * 3,
            "kl_p99": mean * 11,
            "kl_max": mean * 60,
            "kl_error_bound": mean / 5000,
            "top1_agreement_pct": 93.27,
            "first_command_prob": 0.734,
        },
        "intervals": {"kl_mean": [mean * 0.8, mean * 1.3]},
        "by_position": [band({"from": 2**i, "to": 2 ** (i + 1) - 1}, mean * (1 + i / 9)) for i in range(7)],
        "by_field": [band({"field": name}, mean) for name in ("analysis", "keystrokes", "structure")],
        "per_step": [],
        **more,
    }
    path.write_text(json.dumps(told))
    return path


@pytest.fixture(scope="module")
def files(tiny_bf16: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real results of the embedded model in bf16 and in Q2_K, and a measurement."""
    folder = tmp_path_factory.mktemp("report")
    models = {"bf16": tiny_bf16, "Q2_K": converted(tiny_folder, "tiny-terminal-Q2_K.gguf", "Q2_K")}
    made = {}
    for name, model in models.items():
        made[name] = folder / f"tiny-{name}.json"
        evaluate(
            model,
            embedded_rows(),
            made[name],
            limit=60,
            answering=Answering(max_tokens=160),
            loading=Loading(threads=1),
        )
    made["measured"] = measurement(folder / "measured.json", made["Q2_K"], 0.1234567)
    return made


@pytest.fixture(scope="module")
def made(files: dict[str, Path]) -> tuple[Report, Path]:
    """A report with all outputs, and their folder."""
    folder = files["bf16"].parent / "out"
    found = report(
        [files["bf16"], files["Q2_K"], files["measured"]],
        folder / "page.html",
        markdown=folder / "card.md",
        plots=folder / "plots",
        replay=embedded_rows(),
    )
    return found, folder


def test_the_page_is_whole_and_loads_nothing(made: tuple[Report, Path]) -> None:
    page = check_page(made[1] / "page.html")
    headings = [text for tag, text in re.findall(r"<(h2)[^>]*>([^<]*)", (made[1] / "page.html").read_text())]
    assert headings[0] == "Files"
    assert {"Size and quality", "Steps that got worse", "How it was made", "How to read it"} <= set(headings)
    assert "on 60 steps of" in page.text
    assert len((made[1] / "page.html").read_bytes()) < 300_000


def test_every_figure_of_the_table_is_that_of_its_file(
    made: tuple[Report, Path], files: dict[str, Path]
) -> None:
    rows = check_page(made[1] / "page.html").cells("quantizations")
    assert [name.split()[0].removesuffix("edge") for name in rows] == ["bf16", "Q2_K"]
    part = compare([files["Q2_K"]], files["bf16"]).parts[0]
    score = next(figure for figure in part.figures if figure.name == "score")
    for row, name in zip(rows.values(), ("bf16", "Q2_K"), strict=True):
        result = json.loads(files[name].read_text())
        told, engine, figures = result["provenance"], result["engine"], result["aggregate"]
        assert row[0] == size(told["model_bytes"]) + f"{told['bits_per_weight']:.2f}"
        assert row[1].startswith(f"{100 * figures['avg_command_f1']:.2f}")
        low, high = (float(bound) for bound in row[1][5:].split(" … "))
        assert low < 100 * figures["avg_command_f1"] < high
        assert row[5:7] == [f"{figures['first_cmd_exact_pct']:.1f}", f"{figures['valid_json_pct']:.1f}"]
        assert row[7] == f"{engine['completion_tokens'] / result['gen_time_sec']:.1f}"
        assert row[8] == size(engine["peak_memory_bytes"])
    assert rows[next(iter(rows))][2:5] == ["–"] * 3
    row = list(rows.values())[1]
    interval = "no interval" if score.low is None else f"{score.low:+.2f} … {score.high:+.2f}"
    assert row[2].replace("−", "-") == f"{score.difference:+.2f}{interval}"
    share = part.agreement["same_commands_pct"]
    low, high = part.agreement_intervals["same_commands_pct"]
    assert row[3] == f"{share:.1f}{low:.1f} … {high:.1f}" and row[4] == "0.1231.36"


def test_measurements_differences_and_groups_are_told_in_full(
    made: tuple[Report, Path], files: dict[str, Path]
) -> None:
    page = check_page(made[1] / "page.html")
    (row,) = page.cells("measurements").values()
    assert row == [
        "1.36base 1.21",
        "0.1230.0988 … 0.160",
        "0.0176",
        "0.370",
        "1.36",
        "7.41",
        "2.5·10⁻⁵",
        "93.3",
        "0.734",
    ]
    part = compare([files["Q2_K"]], files["bf16"]).parts[0]
    tables = {table[0][0]: table for table in page.tables if table}
    told = {row[0]: row[1:] for row in tables["Figure"][1:]}
    # The score is 100 times the command F1, which has no row. Equal verdicts of neighbors stand once.
    figures = [figure for figure in part.figures if figure.name != "avg_command_f1"]
    assert len(told) == len(figures) == len(part.figures) - 1
    before = None
    for figure, row in zip(figures, told.values(), strict=True):
        assert [float(cell.replace("−", "-")) for cell in row[:3]] == [
            figure.reference,
            figure.ours,
            figure.difference,
        ]
        assert (row[-1] == figure.sentence) == (figure.sentence != before)
        before = figure.sentence
    groups = {row[0]: row[1:] for row in tables["Place in the task"][1:]}
    for group in part.groups:
        if group.kind == "bucket":
            found = groups[group.name]
            assert found[:2] == [str(group.steps), f"{group.reference:.4f}"]
            assert found[2].startswith(f"{group.ours:.4f}")


def test_the_steps_that_got_worse_are_shown_with_both_answers(
    made: tuple[Report, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    part = compare([files["Q2_K"]], files["bf16"]).parts[0]
    assert len(part.worse) > 1
    entry = made[0].compared[0]
    assert [step.name for step in entry.worse] == [f"{w.task_id} step {w.step_idx}" for w in part.worse]
    page = check_page(made[1] / "page.html")
    rows = {
        (row["task_id"], row["step_idx"]): row
        for row in map(json.loads, embedded_rows().read_text().splitlines())
    }
    for worse, step in zip(part.worse, entry.worse, strict=True):
        row = rows[worse.task_id, worse.step_idx]
        assert row["messages"][-1]["content"][-100:] in page.text
        assert list(step.wanted) == row["ref_command_units"]
        assert any(not line.same for line in step.lines)
    one = report([files["Q2_K"]], tmp_path / "one.html", files["bf16"], worse=1)
    assert [step.name for step in one.compared[0].worse] == [entry.worse[0].name]
    assert check_page(tmp_path / "one.html").text.count("Recorded commands") == 1
    report([files["Q2_K"]], tmp_path / "none.html", files["bf16"], worse=0, title="My model")
    assert "<h1>My model</h1>" in (tmp_path / "none.html").read_text()
    assert "Recorded commands" not in check_page(tmp_path / "none.html").text


def test_markdown_and_plots(made: tuple[Report, Path], files: dict[str, Path], tmp_path: Path) -> None:
    folder = made[1]
    text = (folder / "card.md").read_text()
    figures = json.loads(files["Q2_K"].read_text())["aggregate"]
    (line,) = [line for line in text.splitlines() if line.startswith("| Q2_K") and " MB " in line]
    assert f" {100 * figures['avg_command_f1']:.2f} " in line
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| Q2_K") and " MB " in line}
    assert widths == {text[: text.index("\n| ---")].splitlines()[-1].count("|")}
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert "plots/size-score.png" in links
    assert all((folder / link).is_file() for link in links)
    pictures = sorted((folder / "plots").iterdir())
    assert {path.suffix for path in pictures} == {".png"} and len(pictures) >= 3
    for path in pictures:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
        width, height = struct.unpack(">II", data[16:24])
        assert width > 800 and height > 200
    report([files["Q2_K"]], tmp_path / "r.html", files["bf16"], markdown=tmp_path / "no plots.md")
    assert "![" not in (tmp_path / "no plots.md").read_text()


def test_the_same_files_give_the_same_bytes_from_the_command_line_too(
    made: tuple[Report, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    names = ["page.html", "card.md", *(f"plots/{path.name}" for path in (made[1] / "plots").iterdir())]
    done = edge(
        *("report", files["bf16"], files["Q2_K"], files["measured"], "--out", tmp_path / "page.html"),
        *("--markdown", tmp_path / "card.md", "--plots", tmp_path / "plots", "--replay", embedded_rows()),
        PYTHONHASHSEED="7",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(tmp_path / name) for name in ("page.html", "card.md", "plots")]
    for name in names:
        assert (tmp_path / name).read_bytes() == (made[1] / name).read_bytes(), name


def test_without_a_reference_nothing_is_compared(files: dict[str, Path], tmp_path: Path) -> None:
    found = report([files["Q2_K"]], tmp_path / "r.html")
    assert found.comparison is None and found.reference is None
    page = check_page(tmp_path / "r.html")
    assert "without a reference" in page.text and "Differences from" not in page.text
    # The only unquantized one of several results is the reference. With two of them there is no reference.
    assert report([files["Q2_K"], files["bf16"]], tmp_path / "two.html").entries[0].label == "bf16"
    twin = tmp_path / "twin-bf16.json"
    twin.write_bytes(files["bf16"].read_bytes())
    found = report([files["bf16"], twin, files["Q2_K"]], tmp_path / "three.html")
    assert found.comparison is None
    assert found.notes == (
        "No reference was given and 2 of the results are unquantized, so edge compared nothing. "
        "Give one with --reference.",
    )


def test_published_figures_are_marked_wherever_they_stand(
    files: dict[str, Path], shared: Path, tmp_path: Path
) -> None:
    report([files["Q2_K"]], tmp_path / "r.html", "lfm2.5-8b-a1b-terminal", markdown=tmp_path / "r.md")
    page = check_page(tmp_path / "r.html")
    published, ours = page.cells("quantizations").values()
    assert published[1] == "52.30†" and "49.5†" in published and "76.9†" in published
    assert not any("†" in cell for cell in ours) and "not paired" in ours[2]
    assert "| LFM2.5-8B-A1B-Terminal-ToolBench-Full-SFT-1Epoch †" in (tmp_path / "r.md").read_text()
    # edge did not measure a vLLM result either. Here half of its answers are emptied.
    vllm = shared / "data" / "smollm2_vllm_bf16.json"
    half = json.loads(vllm.read_text())
    half["provenance"] = {"edge": "0.1.0", "backend": "vllm", "quantization": "Q4_0"}
    for step in half["per_step"][::2]:
        step |= {"pred_command_units": [], "command_f1": 0.0, "valid_json": False, "pred_preview": "no"}
        step |= {"command_precision": 0.0, "command_recall": 0.0, "first_cmd_exact": 0.0}
    del half["aggregate"]
    (tmp_path / "half.json").write_text(json.dumps(half))
    found = report([tmp_path / "half.json"], tmp_path / "r.html", vllm, force=True)
    page = check_page(tmp_path / "r.html")
    assert [entry.published for entry in found.entries] == [True, False]
    assert found.compared[0].worse
    assert "first 1,200 characters" not in page.text
    first, second = page.cells("quantizations").values()
    assert first[0].startswith("13.29†") and "†" not in second[0]


def test_one_task_gives_no_interval(tmp_path: Path) -> None:
    paths = []
    for name, answers in (("base", ("ls", "pwd")), ("ours", ("ls", "no"))):
        texts = [json.dumps({"commands": [{"keystrokes": f"{text}\n"}]}) for text in answers]
        wanted = json.dumps({"commands": [{"keystrokes": "ls\n"}]})
        steps = [
            step_result(Row("t", 0, i, None, "s", "g", [], wanted), text) for i, text in enumerate(texts)
        ]
        paths.append(tmp_path / f"{name}.json")
        result = write_result(paths[-1], {"model": name}, steps)
        del result["aggregate"]  # then the figures are made from the steps
        paths[-1].write_text(json.dumps(result))
    report(paths[1:], tmp_path / "r.html", paths[0])
    base, ours = check_page(tmp_path / "r.html").cells("quantizations").values()
    assert (base[0], ours[0], ours[1]) == ("50.00†", "50.00†", "0.00no interval")


def test_an_aggregate_alone_is_a_row(files: dict[str, Path], tmp_path: Path) -> None:
    figures = {"steps": 303, "avg_command_f1": 0.523, "first_cmd_exact_pct": 49.5, "valid_json_pct": 76.9}
    (tmp_path / "theirs.json").write_text(json.dumps({"model": "theirs", "aggregate": figures}))
    found = report([files["Q2_K"], tmp_path / "theirs.json"], tmp_path / "r.html", files["bf16"])
    assert [entry.part is not None for entry in found.entries] == [False, True, False]
    rows = list(check_page(tmp_path / "r.html").cells("quantizations").values())
    assert rows[2][1] == "52.30†"


def hostile(path: Path, right: bool) -> Path:
    def answer(command: str) -> str:
        told = {"analysis": HOSTILE, "plan": "p", "commands": [{"keystrokes": command, "duration": HOSTILE}]}
        return json.dumps({**told, HOSTILE: [HOSTILE]})

    steps = [
        step_result(
            Row(f"{HOSTILE}{i}", 0, 0, None, "s", HOSTILE + "ab"[i % 2], [], answer(HOSTILE)),
            answer(HOSTILE) if right else (HOSTILE, answer("no" + HOSTILE), "")[i % 3],
        )
        for i in range(6)
    ]
    engine = {HOSTILE: HOSTILE}
    provenance = {
        "model_sha256": "ab" * 32,
        "source": HOSTILE,
        "tensor_types": {HOSTILE: {"tensors": 3, "bytes": 9}},
        "model_bytes": 10**6,
        "imatrix": {"a": HOSTILE},
    }
    head = {"model": HOSTILE, "provenance": provenance, "engine": engine, "sampling": {"backend": HOSTILE}}
    write_result(path, head, steps)
    return path


def test_nothing_in_a_file_gets_out_of_its_place(tmp_path: Path) -> None:
    base = hostile(tmp_path / "<b>base<b>&amp;.json", True)
    ours = hostile(tmp_path / "<i>$x^2$|`ours`_*.json", False)
    folder = tmp_path / "a (folder) [x]"
    paths = {"markdown": folder / "r.md", "plots": folder / "p"}
    bands = {"by_field": [band({"field": HOSTILE}, 0.1)], "by_position": [band({"from": 0}, 0.1)] * 2}
    measured = measurement(tmp_path / "m.json", ours, 0.1, base=HOSTILE, **bands)
    found = report([ours, measured], folder / "r.html", base, **paths, title=HOSTILE)
    assert found.compared[0].worse
    page = check_page(folder / "r.html")
    assert "<script>alert(1)</script>␛[31m⟨U+202E⟩evil␀⟨U+D800⟩ {{7*7}}" in page.text
    assert "<b>base<b>&amp;" in page.text and "<i>$x^2$|`ours`_*" in page.text
    text = (folder / "r.md").read_text()
    assert "<script" not in re.sub(r"\\.", "", text) and text.isprintable() is False
    assert not set(re.findall(r"[^\n -~\xa0-\U0010ffff]", text))
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({re.sub(r"\\.", "", line).count("|") for line in table[:4]}) == 1


def cut(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


ERRORS: dict[str, tuple[Callable[[dict[str, Path], Path], dict[str, Any]], str]] = {
    "no such file": (lambda f, t: {"results": [t / "nope.json"]}, "cannot be read"),
    "none at all": (lambda f, t: {"results": []}, "no result to report"),
    "truncated": (
        lambda f, t: {"results": [cut(t / "c.json", f["Q2_K"].read_bytes()[:999])]},
        "is damaged, or",
    ),
    "no result": (lambda f, t: {"results": [cut(t / "c.json", b"[1]")]}, "is not a result"),
    "twice": (lambda f, t: {"results": [f["Q2_K"], f["Q2_K"]]}, "is given twice"),
    "a measurement alone": (lambda f, t: {"results": [f["measured"]]}, "is a measurement: give the result"),
    "of another model": (
        lambda f, t: {"results": [f["bf16"], f["measured"]]},
        "no result is about that model",
    ),
    "of the future": (
        lambda f, t: {"results": [f["Q2_K"], measurement(t / "m.json", f["Q2_K"], 0.1, measurement=2)]},
        "is a measurement of format 2",
    ),
    "without figures": (
        lambda f, t: {"results": [f["Q2_K"], measurement(t / "m.json", f["Q2_K"], 0.1, aggregate={})]},
        "aggregate.tokens is missing",
    ),
    "half a band": (
        lambda f, t: {
            "results": [f["Q2_K"], measurement(t / "m.json", f["Q2_K"], 0.1, by_field=[{"kl_mean": 1}])]
        },
        "by_field[0] lacks one of",
    ),
    "a measurement as reference": (
        lambda f, t: {"results": [f["Q2_K"]], "reference": f["measured"]},
        "the reference must be one",
    ),
    "the reference alone": (
        lambda f, t: {"results": [f["bf16"]], "reference": f["bf16"]},
        "there is no other result",
    ),
    "unknown reference": (lambda f, t: {"results": [f["Q2_K"]], "reference": "gpt-9"}, "no known model"),
    "no folder": (lambda f, t: {"results": [f["Q2_K"]], "plots": f["bf16"]}, "give a folder with --plots"),
    "two outputs in one": (lambda f, t: {"results": [f["Q2_K"]], "markdown": t / "r.html"}, "two outputs"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_wrong_is_told_in_one_line_and_the_old_page_stays(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    make, message = ERRORS[name]
    (tmp_path / "r.html").write_text("old")
    arguments = make(files, tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ResultError, match=re.escape(message)) as caught:
        report(out=tmp_path / "r.html", **arguments)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "r.html").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_no_input_is_written_over_and_rows_must_be_those_of_the_results(
    files: dict[str, Path], shared: Path, tmp_path: Path
) -> None:
    before = files["Q2_K"].read_bytes()
    with pytest.raises(ResultError, match="is an input of this command"):
        report([files["Q2_K"]], files["Q2_K"], files["bf16"])
    assert files["Q2_K"].read_bytes() == before
    other = shared / "data" / "replay_terminal_dev.jsonl"
    with pytest.raises(ReplayError, match="rows of --replay do not contain tiny-"):
        report([files["Q2_K"]], tmp_path / "r.html", files["bf16"], replay=other)
    changed = [json.loads(line) | {"ref_raw": "{}"} for line in embedded_rows().read_text().splitlines()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    with pytest.raises(
        ReplayError, match="reference answer in the rows of --replay is not that of the results"
    ):
        report([files["Q2_K"]], tmp_path / "r.html", files["bf16"], replay=tmp_path / "rows.jsonl")
    with pytest.raises(ResultError, match="has no step in common"):
        report([files["Q2_K"]], tmp_path / "r.html", shared / "data" / "smollm2_vllm_bf16.json")
    assert not (tmp_path / "r.html").exists()
    done = edge("report", tmp_path / "nope.json", "--out", tmp_path / "r.html")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path / 'nope.json'}: cannot be read: No such file or directory\n"


def edge(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return command_line.run(*arguments, env={**os.environ, **environment})


@given(st.text(st.characters()))
def test_visible_texts_hold_nothing_that_is_not_seen(text: str) -> None:
    assert all(char.isprintable() or char in "\n\t" for char in visible(text))
    assert visible(visible(text)) == visible(text)


LINES = st.lists(st.text("ab c\u0301<", max_size=12), max_size=8)


@given(LINES, LINES)
def test_a_diff_holds_both_texts_in_full(left: list[str], right: list[str]) -> None:
    lines = diff(left, right)
    sides = [
        ["".join(text for _, text in side) for line in lines if (side := getattr(line, name)) is not None]
        for name in ("left", "right")
    ]
    assert sides == [left, right]
    for line in lines:
        assert line.same == (line.left == line.right)
        if not line.same:
            assert any(changed for changed, _ in (*(line.left or ()), *(line.right or ())))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12), st.booleans())
def test_the_front_is_what_no_point_beats(pairs: list[tuple[int, int]], less_is_better: bool) -> None:
    points = [Point(str(i), x, y, None, None) for i, (x, y) in enumerate(pairs)]
    sign = -1 if less_is_better else 1

    def beaten(p: Point) -> bool:
        return any(
            q.megabytes <= p.megabytes
            and sign * q.value >= sign * p.value
            and (q.megabytes, q.value) != (p.megabytes, p.value)
            for q in points
        )

    found = front(points, less_is_better=less_is_better)
    assert sorted(p.label for p in found) == sorted(p.label for p in points if not beaten(p))
    assert [p.megabytes for p in found] == sorted(p.megabytes for p in found)


def test_the_verdict_is_about_the_quantized_ones(files: dict[str, Path], tmp_path: Path) -> None:
    twin = tmp_path / "twin.json"
    twin.write_bytes(files["bf16"].read_bytes())
    found = report([files["Q2_K"], twin, files["measured"]], tmp_path / "r.html", files["bf16"])
    assert [entry.label for entry in found.others] == ["twin"]
    html = (tmp_path / "r.html").read_text()
    assert '(<span class="whole">tiny-bf16</span>)' in html
    html = re.sub("</?span[^>]*>", "", html)
    (lead,) = re.findall(r'<p class="lead">([^<]*)</p>', html)
    (expert,) = re.findall(r'<p class="expert">([^<]*)</p>', html)
    # No line of them ends between a number and its unit.
    assert not re.search(r"\d (%|points)", lead + expert) and lead.count("\u00a0%") == 2
    lead, expert = lead.replace("\u00a0", " "), expert.replace("\u00a0", " ")
    part = compare([files["Q2_K"]], files["bf16"]).parts[0]
    share, sizes = part.agreement["same_commands_pct"], [e.n_bytes or 0 for e in found.files]
    assert lead == (
        f"tiny-Q2_K takes {100 * sizes[1] / sizes[0]:.0f} % of the space of the unquantized model (tiny-bf16), and "
        f"proposed the same commands in {share:.1f} % of the steps."
    )
    score = next(figure for figure in part.figures if figure.name == "score")
    assert ("no loss" in expert) == (score.low is not None and score.low <= 0 <= score.high)
    assert expert.startswith("Compared with tiny-bf16 on 60 steps of ") and "twin" not in expert
    assert expert.endswith("the mean KL divergence from tiny-bf16.gguf is 0.123 (tiny-Q2_K) nats per token.")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("kl_mean", 0.001, "aggregate.kl_mean is 0.001, but its rows give 0.003"),
        ("tokens", 99, "aggregate.tokens is 99, but its rows give 40"),
        ("top1_agreement_pct", 101, "aggregate.top1_agreement_pct is 101; it must be from 0 to 100"),
        ("kl_p99", -5.0, "aggregate.kl_p99 is -5; a divergence is not negative"),
    ],
)
def test_a_measurement_that_contradicts_its_rows_is_refused(name: str, value: float, why: str) -> None:
    rows = [{"tokens": 10, "nll": 0.1, "kl_mean": 0.006}, {"tokens": 30, "nll": 0.1, "kl_mean": 0.002}]
    figures = {"tokens": 40, "nll": 0.1, "kl_mean": 0.003, "kl_p99": 0.1, "top1_agreement_pct": 99.0}
    stored = {"measurement": 1, "model_sha256": "0", "kind": "rows", "aggregate": figures, "per_step": rows}
    assert check_measurement("m.json", stored).aggregate == figures
    with pytest.raises(ResultError, match=re.escape(why)):
        check_measurement("m.json", {**stored, "aggregate": {**figures, name: value}})


def test_words_and_labels() -> None:
    assert [kl(value) for value in (None, 0, 0.12345, 1.0, 12.345, 0.00012, 0.00001234, 2345.6)] == (
        ["–", "0", "0.123", "1.00", "12.3", "0.000120", "1.2·10⁻⁵", "2,346"]
    )
    assert [size(value) for value in (None, 4_158_048, 5_012_345_678)] == ["–", "4.2 MB", "5.01 GB"]
    assert [fixed(value, 1, sign=True) for value in (-0.04, 0.04, -1.25, 2.0)] == [
        "0.0",
        "0.0",
        "−1.2",
        "+2.0",
    ]
    assert short_labels(["a/tiny-Q4_K_M.json", "b/tiny-Q8_0.json"]) == ["Q4_K_M", "Q8_0"]
    assert short_labels(["a/x.json", "b/x.json"]) == ["a/x.json", "b/x.json"]
    assert short_labels(["/home/me/x.json", "/home/me/b/x.json"]) == ["x.json", "b/x.json"]
    assert short_labels(["q4.json", "q4-free.json"]) == ["q4", "q4-free"]
    assert short_labels(["only-one.json"]) == ["only-one"]
    long = "owner__a-model-with-a-long-name"
    named = ["base.json", f"{long}-Q4_K_M.json", f"{long}-Q8_0.json"]  # the base has its own name
    assert short_labels(named) == ["base", "Q4_K_M", "Q8_0"]
    assert short_labels(["a.json", f"{long}-Q8_0.json", f"{long}-Q8_0-x.json"]) == ["a", "Q8_0", "Q8_0-x"]
    assert short_labels(["tiny-Q8_0.json", "tiny-Q8_0-free.json"]) == ["Q8_0", "Q8_0-free"]


def test_the_shipped_pages_are_of_the_shipped_results(tmp_path: Path) -> None:
    """Their figures, and the author's note, escaped."""
    folder = ROOT / "benchmarks" / "evidence" / "tiny"
    names = ["bf16", "Q4_K_M", "Q2_K"]
    given = [folder / f"tiny-terminal-{name}.json" for name in names]
    given += [folder / f"tiny-terminal-{name}.measure.json" for name in names[1:]]
    out, short = tmp_path / "report.html", tmp_path / "report.md"
    report(given, out, given[0], markdown=short, notes=["Widths are <multiples> of 256."])
    assert "<p" in out.read_text() and "Widths are &lt;multiples&gt; of 256." in out.read_text()
    assert "Widths are" in short.read_text()
    shipped = (folder / "report.md").read_text(encoding="utf-8")
    for path in given[:3]:
        score = 100 * json.loads(path.read_text(encoding="utf-8"))["aggregate"]["avg_command_f1"]
        assert f"{score:.2f}" in shipped and f"{score:.2f}" in short.read_text()
