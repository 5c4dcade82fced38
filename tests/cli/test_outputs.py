"""No command replaces one of its inputs, and the output of another run is replaced only with --force.

pytest tests/cli/test_outputs.py
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import run

from edge.cli.main import main

pytestmark = pytest.mark.slow


@dataclass
class Place:
    """A folder with one good input of each kind."""

    root: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __getattr__(self, name: str) -> Path:
        return self.root / name.replace("_", ".", 1)

    def edge(self, *arguments: object) -> tuple[int, str]:
        """The exit code and stderr of a command, run in the folder."""
        self.monkeypatch.chdir(self.root)
        self.monkeypatch.setattr("sys.argv", ["edge", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), self.capsys.readouterr().err

    def good(self, *arguments: object) -> None:
        code, errors = self.edge(*arguments)
        assert code == 0, errors

    def refused(self, *arguments: object, words: str) -> None:
        """The command ends with one line, and no file of the folder changes or appears."""
        before = self.files()
        code, errors = self.edge(*arguments)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(lines) == 1 and words in lines[0], (arguments, errors)
        assert not re.search("[0-9a-f]{12}", lines[0]), f"a checksum tells nobody anything: {lines[0]}"
        assert self.files() == before, arguments

    def files(self) -> dict[str, tuple[int, ...]]:
        """What changes if a file is written or replaced; a checksum of each would take most of the time."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                status = path.stat()
                what = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
                found[str(path.relative_to(self.root))] = what
        return found


ROWS = ("--replay", "rows.jsonl")
EVAL = ("eval", "--model", "q4.gguf", *ROWS, "--max-tokens", "24", "--quiet")


@pytest.fixture(scope="module")
def inputs(
    tiny_q4: Path, tiny_bf16: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    lines = (tiny_folder / "eval.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "rows.jsonl").write_bytes(b"".join(lines[:4]))
    (folder / "fewer.jsonl").write_bytes(b"".join(lines[:2]))
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    (folder / "notes.txt").write_text("my notes", encoding="utf-8")
    shutil.copy(tiny_q4, folder / "q4.gguf")
    shutil.copy(tiny_bf16, folder / "bf16.gguf")
    shutil.copytree(tiny_folder, folder / "checkpoint")
    return folder


@pytest.fixture(scope="module")
def outputs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs, two results, a measurement, predictions and an importance matrix."""
    folder = tmp_path_factory.mktemp("outputs")
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    for command in (
        (*EVAL, "--out", "a.json"),
        ("eval", "--model", "bf16.gguf", *ROWS, "--max-tokens", "24", "--quiet", "--out", "b.json"),
        ("measure", "--model", "q4.gguf", "--base", "bf16.gguf", *ROWS, "--out", "m.json", "--quiet"),
        ("imatrix", "--model", "bf16.gguf", *ROWS, "--out", "matrix.gguf"),
    ):
        done = run(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    steps = json.loads((folder / "a.json").read_text())["per_step"]
    predictions = "".join(json.dumps(step) + "\n" for step in steps)
    (folder / "answers.jsonl").write_text(predictions, encoding="utf-8")
    return folder


@pytest.fixture
def place(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Place:
    """A new folder with the inputs."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path, capsys, monkeypatch)


@pytest.fixture
def results(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Place:
    """A new folder with the outputs too."""
    shutil.copytree(outputs, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path, capsys, monkeypatch)


def links(root: Path, name: str) -> list[str]:
    """Names of a file: its own, another spelling, a symbolic link and a hard link.

    A new file replaces only the name of a hard link, so a checkpoint's files need none.
    """
    (root / "linked").symlink_to(root / name)
    os.link(root / name, root / "hard")
    return [name, f"../{root.name}/{name}", "linked", *(["hard"] if "/" not in name else [])]


# Command without its output, the option of the output, and each input that it has.
PAIRS = [
    (("convert", "checkpoint"), "--out", ("checkpoint/model.safetensors", "checkpoint/config.json")),
    (("convert", "checkpoint", "--quant", "Q4_K_M", "--imatrix", "matrix.gguf"), "--out", ("matrix.gguf",)),
    (("convert", "checkpoint", "--calibrate", "rows.jsonl"), "--out", ("rows.jsonl",)),
    (("imatrix", "--model", "q4.gguf", *ROWS), "--out", ("q4.gguf", "rows.jsonl")),
    (("imatrix", "--model", "q4.gguf", "--text", "text.txt"), "--out", ("text.txt",)),
    ((*EVAL, "--rows-of", "a.json"), "--out", ("q4.gguf", "rows.jsonl", "a.json")),
    (("score", "answers.jsonl", *ROWS), "--out", ("answers.jsonl", "rows.jsonl")),
    (
        ("measure", "--model", "q4.gguf", "--base", "bf16.gguf", *ROWS),
        "--out",
        ("q4.gguf", "bf16.gguf", "rows.jsonl"),
    ),
    (("measure", "--model", "q4.gguf", "--text", "text.txt"), "--out", ("text.txt",)),
    (("compare", "a.json", "--reference", "b.json"), "--json", ("a.json", "b.json")),
    (("compare", "a.json", "b.json", "--causes"), "--json", ("a.json", "b.json")),
    (
        ("report", "a.json", "m.json", "--reference", "b.json", *ROWS),
        "--out",
        ("a.json", "m.json", "b.json", "rows.jsonl"),
    ),
    (
        ("report", "a.json", "--reference", "b.json", *ROWS, "--out", "new.html"),
        "--markdown",
        ("a.json", "b.json", "rows.jsonl"),
    ),
    (("rank", "a.json", "b.json", "--rows-of", "a.json"), "--json", ("a.json", "b.json")),
    (("rank", "a.json", "b.json"), "--html", ("a.json", "b.json")),
    (("join", "a.json", "b.json"), "--out", ("a.json", "b.json")),
    (
        ("bundle", "--model", "q4.gguf", *ROWS, "--reference", "a.json"),
        "--out",
        ("q4.gguf", "rows.jsonl", "a.json"),
    ),
]


def test_an_input_is_never_replaced(results: Place) -> None:
    """Each command with each pair of options; also with --force, and with it through links."""
    for command, option, inputs in PAIRS:
        for name in inputs:
            words = "is an input of this command"
            results.refused(*command, option, name, words=words)
            for spelling in links(results.root, name):
                results.refused(*command, option, spelling, "--force", words=words)
            (results.root / "linked").unlink()
            (results.root / "hard").unlink()


def test_the_file_of_settings_is_an_input_of_each_command(
    results: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = results.root / "config.toml"
    settings.write_text("threads = 1\n", encoding="utf-8")
    (results.root / "linked").symlink_to(settings)
    monkeypatch.setenv("EDGE_CONFIG", str(settings))
    for command, option, _ in PAIRS:
        results.refused(*command, option, "linked", "--force", words="is an input of this command")


def test_all_that_an_input_consists_of_is_an_input(place: Place) -> None:
    """The other parts of a split model, files that a checkpoint links to, the folder of wheels, the key file."""
    for name in ("s-00001-of-00002.gguf", "s-00002-of-00002.gguf"):
        shutil.copy(place.root / "q4.gguf", place.root / name)
    shutil.move(place.root / "checkpoint" / "config.json", place.root / "blob")
    (place.root / "checkpoint" / "config.json").symlink_to("../blob")
    (place.root / "wheels").mkdir()
    for name in ("wheels/a.whl", "key"):
        (place.root / name).write_text("x", encoding="utf-8")
    model = ("--model", "s-00001-of-00002.gguf")
    server = ("--backend", "openai", "--base-url", "http://localhost:1/v1", "--api-key-file", "key")
    for command, out in (
        (("eval", *model, *ROWS), "s-00002-of-00002.gguf"),
        (("measure", *model, *ROWS), "s-00002-of-00002.gguf"),
        (("imatrix", *model, *ROWS), "s-00002-of-00002.gguf"),
        (("bundle", *model), "s-00002-of-00002.gguf"),
        (("bundle", "--model", "q4.gguf", "--wheels", "wheels"), "wheels/a.whl"),
        (("convert", "checkpoint"), "blob"),
        (("eval", *ROWS, *server), "key"),
    ):
        place.refused(*command, "--out", out, "--force", words=f"{out}: is an input of this command")


def test_a_file_in_a_checkpoint_would_change_it(place: Place) -> None:
    place.refused(
        "convert", "checkpoint", "--out", "checkpoint/new.json", words="would become a part of checkpoint"
    )
    place.good("convert", "checkpoint", "--out", "checkpoint/new.gguf", "--quant", "bf16")


def test_a_plot_replaces_no_page_and_no_input(results: Place) -> None:
    (results.root / "plots").mkdir()
    report = ("report", "a.json", "--plots", "plots", "--out")
    known = ("--reference", "b.json")
    results.good(*report, "x.html", *known, "--force")
    drawn = sorted(path.name for path in (results.root / "plots").glob("*.png"))
    assert drawn
    for name in drawn:
        results.refused(
            *report, f"plots/{name}", *known, "--force", words=f"{name}: is given for two outputs"
        )
    shutil.copy(results.root / "b.json", results.root / "plots" / drawn[0])
    reference = ("--reference", f"plots/{drawn[0]}")
    results.refused(
        *report, "x.html", *reference, "--force", words=f"{drawn[0]}: is an input of this command"
    )


def test_two_checkpoints_of_one_name_are_two_models(place: Place) -> None:
    """Fine-tuned models of one base have the same header; only their weights and their folders differ."""
    (place.root / "second").mkdir()
    shutil.copytree(place.root / "checkpoint", other := place.root / "second" / "checkpoint")
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    convert = ("--quant", "Q8_0", "--out", "x.gguf")
    place.good("convert", "checkpoint", *convert)
    place.refused(
        "convert", "second/checkpoint", *convert, words="x.gguf: holds a GGUF of another run (checkpoint was"
    )
    place.good("convert", "../" + place.root.name + "/checkpoint", *convert)
    place.good("convert", "second/checkpoint", *convert, "--force")


def test_a_matrix_of_other_rows_in_the_same_file_is_not_replaced(place: Place) -> None:
    command = ("imatrix", "--model", "bf16.gguf", "--replay", "fewer.jsonl", "--out", "x.imatrix")
    place.good(*command)
    place.good(*command)
    place.refused(*command, "--process-output", words="(--process-output was off, is on)")
    shutil.copy(place.root / "rows.jsonl", place.root / "fewer.jsonl")
    place.refused(*command, words="of another run (other replay rows)")
    place.good(*command, "--force")


def test_the_same_files_under_another_path_are_the_same_run(place: Place) -> None:
    """Some formats have the path of an input as the command named it."""
    place.good("imatrix", "--model", "bf16.gguf", *ROWS, "--out", "m.gguf")
    calibrate, matrix = ("--calibrate", "rows.jsonl"), ("--imatrix", "m.gguf")
    for name, given in (("c.gguf", calibrate), ("i.gguf", matrix)):
        place.good("convert", "checkpoint", *given, "--no-check", "--out", name)
        place.good(
            "convert", "checkpoint", given[0], place.root / given[1], "--quant", "Q4_K_M", "--out", name
        )
    again = ("imatrix", "--model", "bf16.gguf", "--replay", place.root / "rows.jsonl", "--out", "m.gguf")
    place.good(*again)
    place.good("imatrix", "--model", "bf16.gguf", *ROWS, "--out", "m.gguf", "--force")
    place.monkeypatch.setenv("EDGE_CACHE", str(place.root / "empty"))  # edge remembers nothing of the matrix
    place.good(*again)
    shutil.copy(place.root / "fewer.jsonl", place.root / "other.jsonl")
    command = ("imatrix", "--model", "bf16.gguf", "--replay", "other.jsonl", "--out", "m.gguf")
    place.refused(*command, words="of another run (other replay rows)")


def test_the_base_that_is_kept_is_not_an_input(place: Place) -> None:
    (place.root / "m.json.base-scores").write_bytes((place.root / "bf16.gguf").read_bytes())
    command = ("measure", "--model", "q4.gguf", "--base", "m.json.base-scores", *ROWS, "--out", "m.json")
    place.refused(*command, "--keep-base", words="is an input of this command")


def test_a_kept_base_of_another_run_needs_force(place: Place) -> None:
    command = (
        "measure",
        "--model",
        "q4.gguf",
        "--base",
        "bf16.gguf",
        "--keep-base",
        "--quiet",
        "--out",
        "m.json",
    )
    kept = place.root / "m.json.base-scores"
    shutil.copy(place.root / "notes.txt", kept)
    words = "m.json.base-scores: exists and is not the distributions of a base that edge wrote; choose another name"
    place.refused(*command, *ROWS, words=words)
    place.good(*command, *ROWS, "--force")
    assert kept.stat().st_size > 1000
    (place.root / "m.json").unlink()
    words = "m.json.base-scores: holds the distributions of a base of another run (other replay rows"
    place.refused(*command, "--replay", "fewer.jsonl", words=words)
    place.good(*command, "--replay", "fewer.jsonl", "--force")


@pytest.mark.parametrize(
    "command",
    [
        ("convert", "checkpoint", "--out"),
        ("imatrix", "--model", "bf16.gguf", *ROWS, "--out"),
        (*EVAL, "--out"),
        ("score", "answers.jsonl", *ROWS, "--out"),
        ("measure", "--model", "q4.gguf", *ROWS, "--quiet", "--out"),
        ("compare", "a.json", "--reference", "b.json", "--json"),
        ("report", "a.json", "--reference", "b.json", "--out"),
        ("report", "a.json", "--reference", "b.json", "--out", "page.html", "--markdown"),
        ("bundle", "--model", "q4.gguf", "--out"),
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)
def test_a_file_of_somebody_else_is_not_replaced(results: Place, command: tuple[str, ...]) -> None:
    results.refused(*command, "notes.txt", words="notes.txt: exists")
    if command[0] != "bundle":  # compiling wheels takes minutes
        results.good(*command, "notes.txt", "--force")
        assert (results.root / "notes.txt").read_bytes()[:8] != b"my notes"


# A command that succeeds twice, its output, and changes that make it another run, with the words that name them.
AGAIN = [
    (
        ("convert", "checkpoint", "--quant", "Q4_K_M", "--out", "x.gguf"),
        [("--quant", "Q8_0", "the quantization type was Q4_K_M, is Q8_0")],
    ),
    (
        ("imatrix", "--model", "bf16.gguf", "--replay", "rows.jsonl", "--out", "x.imatrix"),
        [("--replay", "fewer.jsonl", "other replay rows")],
    ),
    (
        (*EVAL, "--out", "x.json"),
        [
            ("--model", "bf16.gguf", "another model file"),
            ("--replay", "fewer.jsonl", "other replay rows"),
            ("--max-tokens", "25", "--max-tokens was 24, is 25"),
            ("--limit", "3", "other replay rows"),
        ],
    ),
    (
        ("score", "answers.jsonl", *ROWS, "--out", "x.json"),
        [("--model", "another", "model was answers, is another")],
    ),
    (
        ("measure", "--model", "q4.gguf", *ROWS, "--quiet", "--out", "x.json"),
        [
            ("--model", "bf16.gguf", "another model file"),
            ("--base", "bf16.gguf", "now with base"),
            ("--limit", "3", "other replay rows"),
        ],
    ),
    (
        ("compare", "a.json", "--reference", "b.json", "--json", "x.json"),
        [("--reference", "a.json", "another reference")],
    ),
    (
        ("report", "a.json", "--reference", "b.json", "--out", "x.html"),
        [("--title", "Another", '--title was "", is Another')],
    ),
]


@pytest.mark.parametrize(("command", "changes"), AGAIN, ids=lambda value: value[0] if value else "")
def test_the_same_command_runs_again_and_another_needs_force(
    results: Place, command: tuple[str, ...], changes: list[tuple[str, str, str]]
) -> None:
    results.good(*command)
    spoken = [word for word in command if word != "--quiet"]
    code, errors = results.edge(*spoken)
    place = command[-1]
    what = (
        "is already complete"
        if command[0] == "eval"
        else "was there before"
        if command[0] == "convert"
        else "replaced"
    )
    assert code == 0 and f"{place}: {what}" in errors
    if command[0] in ("convert", "imatrix", "eval", "measure"):
        assert results.edge(*spoken, "--quiet") == (0, "")
    for option, value, words in changes:
        other = list(command)
        if option in other:
            other[other.index(option) + 1] = value
        else:
            other += [option, value]
        results.refused(*other, words=f"of another run ({words}")
    results.good(*other, "--force")
    results.good(*other)


def test_a_complete_result_is_not_answered_again(results: Place) -> None:
    """Except with --force, for a sampled answer without a seed, and if a row's answer is missing."""

    def answered(*more: str) -> bool:
        before = os.stat(results.root / "x.json").st_mtime_ns
        results.good(*EVAL, "--out", "x.json", *more)
        return os.stat(results.root / "x.json").st_mtime_ns != before

    results.good(*EVAL, "--out", "x.json")
    assert not answered() and answered("--force")
    stored = json.loads((results.root / "x.json").read_text())
    stored["per_step"] = stored["per_step"][1:]
    (results.root / "x.json").write_text(json.dumps(stored))
    assert answered() and not answered()
    (results.root / "x.json").unlink()
    results.good(*EVAL, "--out", "x.json", "--temperature", "1")
    assert answered("--temperature", "1")


def test_another_output_than_a_result_is_not_a_result(results: Place) -> None:
    """A measurement, a comparison and a result are all JSON, and none replaces another."""
    results.good("compare", "a.json", "--reference", "b.json", "--json", "c.json")
    for name in ("m.json", "c.json"):
        results.refused(*EVAL, "--out", name, words="is not a result that edge wrote")
    for name in ("a.json", "m.json"):
        results.refused(
            "compare", "b.json", "--reference", "b.json", "--json", name, words="is not a comparison"
        )


def test_a_result_of_an_older_edge_is_read_and_not_replaced(results: Place) -> None:
    old = json.loads((results.root / "a.json").read_text())
    assert old.pop("schema_version") == 1
    del old["run"]
    (results.root / "old.json").write_text(json.dumps(old), encoding="utf-8")
    results.good("compare", "old.json", "--reference", "b.json")
    results.refused(*EVAL, "--out", "old.json", words="does not say which run wrote it")


def test_a_result_of_a_newer_edge_says_so(results: Place) -> None:
    new = json.loads((results.root / "a.json").read_text()) | {"schema_version": 99}
    (results.root / "new.json").write_text(json.dumps(new), encoding="utf-8")
    results.refused("compare", "new.json", "--reference", "b.json", words="schema version 99")


def test_a_reports_card_and_plots_go_with_its_page(results: Place) -> None:
    command = ("report", "a.json", "--reference", "b.json", "--markdown", "card.md", "--plots", "plots")
    results.good(*command, "--out", "x.html")
    results.good(*command, "--out", "x.html")
    results.refused(*command, "--out", "y.html", words="is not as this report wrote it")
    (results.root / "card.md").write_text("edited", encoding="utf-8")
    results.refused(*command, "--out", "x.html", words="card.md: exists")
    results.good(*command, "--out", "x.html", "--force")
    results.good("report", "a.json", "--reference", "b.json", "--out", "z.html")
    results.refused(*command[:4], "--out", "z.html", "--markdown", "notes.txt", words="notes.txt: exists")


def test_results_of_one_file_name_are_told_apart(results: Place) -> None:
    for folder, name in (("one", "a.json"), ("two", "b.json")):
        (results.root / folder).mkdir()
        shutil.copy(results.root / name, results.root / folder / "r.json")
    report = ("report", "one/r.json", "two/r.json", "--reference", "b.json", "--out", "x.html")
    compare = ("compare", "one/r.json", "two/r.json", "--reference", "b.json", "--json", "x.json")
    for command in (report, compare):
        results.good(*command)
    shutil.copy(results.root / "b.json", results.root / "one" / "r.json")
    for command in (report, compare):
        results.refused(*command, words="of another run")


SWEEP = ("sweep", "checkpoint", "--quants", "Q8_0,Q4_K_M", *ROWS, "--max-tokens", "16", "--out", "sweep")


@pytest.mark.parametrize(
    "name",
    [
        "report.html",
        "report.md",
        "plots/causes.png",
        "checkpoint-bf16.gguf",
        "checkpoint-Q4_K_M.gguf",
        "checkpoint-base.scores",
    ],
)
def test_a_sweep_replaces_and_removes_only_its_own_files(place: Place, name: str) -> None:
    path = place.root / "sweep" / name
    path.parent.mkdir(parents=True)
    path.write_bytes((place.root / "q4.gguf").read_bytes())
    place.refused(*SWEEP, words=f"{path.name}: exists, and this sweep did not write it")


def test_a_sweep_removes_its_models_and_starts_again(place: Place) -> None:
    place.good(*SWEEP, "--quiet")
    place.good(*SWEEP, "--quiet")
    assert not list((place.root / "sweep").glob("*.gguf"))
    place.refused(*SWEEP[:-1], ".", "--replay", "sweep.json", words="sweep.json")


def test_a_link_in_the_store_is_not_written_through(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.root / "store").mkdir()
    (place.root / "store" / "linked.gguf").symlink_to(place.root / "q4.gguf")
    monkeypatch.setenv("EDGE_MODELS", str(place.root / "store"))
    place.refused(
        "convert", "checkpoint", "--out", "store/linked.gguf", "--force", words="is a link to another"
    )


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_a_device_or_a_fifo_is_written_to(results: Place, make: Callable[[Path], None]) -> None:
    make(results.root / "stream")
    reader = subprocess.Popen(["cat", results.root / "stream"], stdout=subprocess.DEVNULL)
    try:
        results.good("score", "answers.jsonl", *ROWS, "--out", "stream")
    finally:
        reader.kill()
        reader.wait()
