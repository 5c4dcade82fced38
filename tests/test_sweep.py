"""`edge sweep`: several types of the embedded model, resumable, with a report and a choice.

pytest tests/test_sweep.py
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import random_folder
from gguf import GGUFReader

import edge.sweep
from edge.answer.answering import Answering
from edge.errors import ConversionError, EdgeError, ResultError
from edge.llama.loading import Loading
from edge.measure.run import measure
from edge.sweep import SweepOptions, Swept, sweep
from edge.system.locks import sole_user
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow

ROWS = 8
QUANTS = ["q8_0", "Q2_K"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(embedded_rows().read_text().splitlines(keepends=True)[:ROWS]))
    return path


@pytest.fixture(scope="module")
def swept(tiny_folder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return run(tiny_folder, rows, tmp_path_factory.mktemp("swept") / "out", budget=10**9)


def run(folder: Path, rows: Path, out: Path, quants: list[str] = QUANTS, **options: Any) -> Swept:
    parallel = options.pop("parallel", 1)
    answering = Answering(options.pop("max_tokens", 128), constrained=options.pop("constrained", True))
    return sweep(
        folder,
        quants,
        rows,
        out,
        SweepOptions(**options),
        answering=answering,
        loading=Loading(parallel=parallel, threads=1),
    )


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def steady(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("aggregate", "per_step", "model_sha256")}


def test_everything_is_there_and_nothing_else(swept: Swept) -> None:
    folder = swept.page.parent
    assert swept.chosen is not None
    assert {path.name for path in folder.iterdir()} == {
        "plots",
        "report.html",
        "report.md",
        "sweep.json",
        swept.chosen.name,
        "tiny-terminal-Q2_K.json",
        "tiny-terminal-Q2_K.measure.json",
        "tiny-terminal-Q8_0.json",
        "tiny-terminal-Q8_0.measure.json",
        "tiny-terminal-bf16.json",
    }
    assert [path.name for path in swept.results] == [
        f"tiny-terminal-{q}.json" for q in ("bf16", "Q8_0", "Q2_K")
    ]
    for path in swept.results:
        assert read(path)["aggregate"]["steps"] == ROWS
    page = swept.page.read_text(encoding="utf-8")
    for quant in ("Q8_0", "Q2_K"):
        kl = read(folder / f"tiny-terminal-{quant}.measure.json")["aggregate"]["kl_mean"]
        assert quant in page and kl > 0
    assert swept.choice is not None


def test_a_measurement_is_that_of_edge_measure(
    swept: Swept, tiny_bf16: Path, tiny_folder: Path, rows: Path, tmp_path: Path
) -> None:
    """The base is read once for all types; the figures are those of both models read for this one."""
    from edge.convert import convert

    convert(tiny_folder, quant="Q2_K", out=tmp_path / "q2.gguf", threads=1)
    alone = measure(
        tmp_path / "q2.gguf", tmp_path / "m.json", base=tiny_bf16, replay=rows, loading=Loading(threads=1)
    )
    found = read(swept.page.parent / "tiny-terminal-Q2_K.measure.json")
    assert found["aggregate"] == alone["aggregate"]


def test_the_chosen_file_is_the_one_that_was_measured(swept: Swept) -> None:
    assert swept.choice is not None and swept.chosen is not None and swept.choice.quant is not None
    from edge.formats.gguf import sha256

    result = swept.page.with_name(f"tiny-terminal-{swept.choice.quant}.json")
    assert sha256(swept.chosen) == read(result)["model_sha256"]


def test_the_same_sweep_again_keeps_the_chosen_file(swept: Swept, tiny_folder: Path, rows: Path) -> None:
    """A chosen file can take an hour to convert, and the checkpoint's disk can be full by then."""
    assert swept.chosen is not None
    before, names = swept.chosen.stat(), sorted(path.name for path in swept.page.parent.iterdir())
    again = run(tiny_folder, rows, swept.page.parent, budget=10**9)
    assert again.chosen == swept.chosen
    after = again.chosen.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(path.name for path in again.page.parent.iterdir()) == names


def test_a_sweep_into_the_checkpoint_is_refused(tiny_folder: Path, rows: Path, tmp_path: Path) -> None:
    """Its JSON files would change the checkpoint's SHA-256, and the same sweep could not be resumed."""
    shutil.copytree(tiny_folder, copy := tmp_path / "copy")
    (link := tmp_path / "link").symlink_to(copy)
    before = sorted(copy.iterdir())
    with pytest.raises(
        ResultError, match=r"link: is the checkpoint's own folder; choose another folder with --out"
    ):
        run(copy, rows, link)
    assert sorted(copy.iterdir()) == before


def test_started_again_nothing_is_done_twice_and_more_types_are(
    swept: Swept, tiny_folder: Path, rows: Path
) -> None:
    folder = swept.page.parent
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json") if path.name != "sweep.json"}
    again = run(tiny_folder, rows, folder, [*QUANTS, "Q4_K_M"])
    assert len(again.results) == 4 and again.choice is None
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "Q4_K_M" in again.page.read_text(encoding="utf-8")
    assert (
        read(folder / "tiny-terminal-Q4_K_M.measure.json")["base_sha256"]
        == read(swept.results[0])["model_sha256"]
    )


def test_a_later_sweep_removes_no_file_that_an_earlier_one_left(
    swept: Swept, tiny_folder: Path, rows: Path, tmp_path: Path
) -> None:
    """Without --budget, with another one, and with other types: the files and their figures in the report stay."""
    out = tmp_path / "out"
    shutil.copytree(swept.page.parent, out)
    kept = out / "tiny-terminal-Q8_0.gguf"
    before, state = kept.stat().st_ino, read(out / "sweep.json")
    # That of edge 0.2.0 does not say which files are for the user.
    stages = {
        name: {k: v for k, v in stage.items() if k != "kept"} for name, stage in state["stages"].items()
    }
    (out / "sweep.json").write_text(json.dumps({"sweep": state["sweep"], "stages": stages}), encoding="utf-8")
    assert run(tiny_folder, rows, out).chosen is None and kept.stat().st_ino == before
    small = read(out / "tiny-terminal-Q2_K.json")["provenance"]["model_bytes"]
    again = run(tiny_folder, rows, out, ["Q2_K"], budget=small)
    assert again.chosen == out / "tiny-terminal-Q2_K.gguf" and again.chosen.is_file()
    assert kept.stat().st_ino == before and not (out / "tiny-terminal-bf16.gguf").exists()
    assert "Q8_0" in again.page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["report.html", "report.md", "tiny-terminal-Q8_0.gguf"])
def test_a_sweep_replaces_no_file_that_the_user_changed(
    swept: Swept, tiny_folder: Path, rows: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(swept.page.parent, tmp_path / "out")
    changed = tmp_path / "out" / name
    data = changed.read_bytes() + b"\nmy notes\n"
    changed.write_bytes(data)
    with pytest.raises(ResultError, match=f"{name}: exists, and this sweep did not write it; .* --force"):
        run(tiny_folder, rows, tmp_path / "out")
    assert changed.read_bytes() == data


def test_a_report_with_another_reference_is_not_replaced(swept: Swept, tiny_folder: Path, rows: Path) -> None:
    page = swept.page.read_bytes()
    with pytest.raises(
        ResultError, match=r"report.html: compares with the base, not with .*Q8_0.json; .* --force"
    ):
        run(tiny_folder, rows, swept.page.parent, reference=str(swept.results[1]))
    assert swept.page.read_bytes() == page


def test_a_sweep_replaces_none_of_its_inputs(
    swept: Swept, tiny_folder: Path, rows: Path, tmp_path: Path
) -> None:
    """Also with force, and through a link: a file of the folder that the sweep has yet to write."""
    out = tmp_path / "out"
    out.mkdir()
    names = ("tiny-terminal-Q2_K.json", "tiny-terminal-bf16.json", "tiny-terminal.imatrix", "report.md")
    for name in (*names, "plots/size-score.png"):
        (out / name).parent.mkdir(exist_ok=True)
        (tmp_path / "reference.json").unlink(missing_ok=True)
        shutil.copy(swept.results[1], tmp_path / "reference.json")
        (out / name).symlink_to(tmp_path / "reference.json")
        with pytest.raises(ResultError, match=f"{name}: is an input of this command"):
            run(tiny_folder, rows, out, reference=str(tmp_path / "reference.json"), force=True)
        assert [path for path in out.rglob("*") if not path.is_dir()] == [out / name]
        (out / name).unlink()


def test_one_sweep_in_a_folder_at_a_time(tiny_folder: Path, rows: Path, tmp_path: Path) -> None:
    with (
        sole_user(tmp_path / "out", "test"),
        pytest.raises(ResultError, match=r"out: another edge sweep is writing it; let it finish, or choose"),
    ):
        run(tiny_folder, rows, tmp_path / "out", force=True)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": 64}, "--max-tokens"),
        ({"constrained": False}, "the grammar"),
        ({"parallel": 2}, "--parallel"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(
    swept: Swept, tiny_folder: Path, rows: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ResultError, match=rf"sweep.json: holds another sweep \({words} was") as caught:
        run(tiny_folder, rows, swept.page.parent, **change)
    assert "\n" not in str(caught.value)


def test_a_killed_sweep_continues(swept: Swept, tiny_folder: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        "from edge.cli.main import main; main()",
        "sweep",
        str(tiny_folder),
        "--quiet",
    ]
    command += ["--quants", "Q8_0,Q2_K", "--replay", str(rows), "--out", str(out), "--max-tokens", "128"]
    command += ["--parallel", "1", "--threads", "1"]
    for waited in ("tiny-terminal-bf16.json.journal", "tiny-terminal-bf16.json", "tiny-terminal-Q8_0.json"):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 120
            while not (out / waited).exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, process.communicate()
        assert not (out / "report.html").exists()
    done = run(tiny_folder, rows, out)
    for mine, theirs in zip(done.results, swept.results, strict=True):
        assert steady(read(mine)) == steady(read(theirs))
    for quant in ("Q8_0", "Q2_K"):
        name = f"tiny-terminal-{quant}.measure.json"
        assert read(out / name)["aggregate"] == read(swept.page.parent / name)["aggregate"]
    left = {path.name for path in out.iterdir()} - {path.name for path in swept.page.parent.iterdir()}
    assert left == set()


def test_bad_input_is_one_line_before_any_work(
    swept: Swept, tiny_folder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for quants, options, wanted in (
        (["Q9"], {}, "Q9 is not a quantization type of llama.cpp"),
        (["IQ2_XS"], {}, "IQ2_XS needs an importance matrix"),
        ([], {}, "name at least one"),
        (QUANTS, {"reference": "no-such-model"}, "no-such-model: no such file"),
        (QUANTS, {"calibrate_on": tmp_path / "none.jsonl"}, "none.jsonl: cannot be read"),
    ):
        with pytest.raises(EdgeError, match=wanted) as caught:
            run(tiny_folder, rows, out, quants, **options)
        assert "\n" not in str(caught.value)
        assert not out.exists()
    with pytest.raises(EdgeError, match="nowhere"):
        run(tmp_path / "nowhere", rows, out)
    with monkeypatch.context() as small:
        small.setattr(edge.sweep, "free_disk", lambda path: 1000)
        with pytest.raises(
            ConversionError, match=r"free on this disk, about .* needed for the GGUFs; choose"
        ):
            run(tiny_folder, rows, out)
    assert not out.exists()
    out.mkdir()
    (out / "sweep.json").write_text('{"sweep": 3}')
    with pytest.raises(ResultError, match="is not the state of a sweep"):
        run(tiny_folder, rows, out)
    assert (out / "sweep.json").read_text() == '{"sweep": 3}'


def test_calibrated_types_share_one_matrix(tiny_folder: Path, rows: Path, tmp_path: Path) -> None:
    """The same rows judge and calibrate only where that is asked for, and then the page says so."""
    same = f"{rows}: {ROWS} of the {ROWS} rows to judge by are also in these calibration rows"
    with pytest.raises(
        ResultError, match=re.escape(f"{same}; calibrate on other rows, or allow it with --same-")
    ):
        run(tiny_folder, rows, tmp_path / "out", ["IQ2_XS"], calibrate_on=rows)
    assert not (tmp_path / "out").exists()
    options = {"calibrate_on": rows, "same_rows": True}
    done = run(tiny_folder, rows, tmp_path / "out", ["IQ2_XS"], **options, keep=True, budget=10**9)
    assert same in done.page.with_name("report.md").read_text() or same in done.page.read_text()
    assert done.choice is not None and done.choice.quant == "IQ2_XS" and "IQ2_XS" in done.choice.why
    assert read(done.results[1])["provenance"]["imatrix"]
    assert (tmp_path / "out" / "tiny-terminal.imatrix").is_file()
    assert (tmp_path / "out" / "tiny-terminal-bf16.gguf").is_file()


def test_a_layer_that_llama_cpp_does_not_run(tmp_path: Path, one_thread: None) -> None:
    """Qwen3.5's MTP layer has no weights in the matrix that the sweep makes, and a type that needs them."""
    import make_random

    folder = random_folder("qwen35-mtp", make_random.FAMILIES["qwen35-mtp"])
    rows = tmp_path / "rows.jsonl"
    row = {"task_id": "a", "step_idx": 0, "messages": [{"role": "user", "content": "list the files " * 9}]}
    answer = '{"analysis": "", "plan": "", "commands": [], "task_complete": true}'
    rows.write_text(json.dumps(row | {"ref_raw": answer}))
    options = {"calibrate_on": rows, "same_rows": True, "max_tokens": 8, "keep": True}
    done = run(folder, rows, tmp_path / "out", ["IQ2_XXS"], **options)
    (file,) = done.page.parent.glob("*-IQ2_XXS.gguf")
    tensors = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    assert tensors["blk.4.attn_q.weight"] == "Q4_K" and tensors["blk.3.attn_q.weight"] == "IQ2_XXS"


def test_a_frontier_has_searched_files_beside_the_types(
    random_two_layers_folder: Path, rows: Path, tmp_path: Path
) -> None:
    """The table, the plot and the choice have them; the choice stays, and is the file that was measured."""
    from edge.formats.gguf import sha256

    two, other = tmp_path / "two.jsonl", tmp_path / "other.jsonl"
    lines = embedded_rows().read_text().splitlines(keepends=True)
    two.write_text("".join(lines[:2]))
    other.write_text(lines[-1])
    out = tmp_path / "out"
    options = {"frontier": True, "calibrate_on": other, "budget": 10**9}
    done = run(random_two_layers_folder, two, out, ["Q4_K_M"], max_tokens=8, **options)
    cells = [cell.strip() for cell in done.frontier.splitlines()[2].split("|")]
    auto = read(out / "lfm2moe-two-auto-Q4_K_M.measure.json")["aggregate"]["kl_mean"]
    plain = read(out / "lfm2moe-two-Q4_K_M.measure.json")["aggregate"]["kl_mean"]
    assert cells[1] == "Q4_K_M" and cells[6] == f"{auto / plain:.2f}" and auto < plain
    assert (out / "plots" / "size-kl.png").is_file() and "auto-" in (out / "report.md").read_text()
    assert done.choice is not None and done.choice.quant == "auto-Q4_K_M" and done.chosen is not None
    assert sha256(done.chosen) == read(out / "lfm2moe-two-auto-Q4_K_M.json")["model_sha256"]
    assert sorted(path.name for path in out.glob("*.gguf")) == ["lfm2moe-two-auto-Q4_K_M.gguf"]
    assert (out / "lfm2moe-two-auto-Q4_K_M.recipe").is_file()
    # Its GGUF is made again with the same bits, from the choice that the search stored.
    done.chosen.unlink()
    again = run(random_two_layers_folder, two, out, ["Q4_K_M"], max_tokens=8, **options)
    assert again.chosen == done.chosen
    assert sha256(done.chosen) == read(out / "lfm2moe-two-auto-Q4_K_M.json")["model_sha256"]
    with pytest.raises(ConversionError, match="a frontier needs replay rows to search with"):
        run(random_two_layers_folder, two, tmp_path / "x", ["Q4_K_M"], frontier=True)
    with pytest.raises(ConversionError, match="a frontier needs types whose size it takes"):
        run(random_two_layers_folder, two, tmp_path / "x", ["F16"], frontier=True, calibrate_on=other)
