"""`edge convert --quant auto` on the embedded model: memory against real files, sizes to the byte, resuming."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import command_line
import numpy as np
import pytest

from edge.conversion.recipe import Recipe
from edge.convert import TensorTypes, convert
from edge.errors import ConversionError, Interrupted
from edge.formats.gguf import read_metadata, read_model_file, read_tensors
from edge.formats.imatrix import read_imatrix
from edge.llama import ggml
from edge.llama.loading import Loading
from edge.measure.calibrate import calibrate
from edge.measure.passes import Settings
from edge.measure.positions import rows_plan
from edge.measure.run import base_scores
from edge.mixing.files import Files
from edge.mixing.probe import Probe, Values, file_divergence, through
from edge.mixing.run import Target, mix
from edge.mixing.sizes import Sizes, standard_types
from edge.mixing.state import Costs
from edge.system.locks import sole_user

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "models" / "tiny-terminal" / "eval.jsonl"
READING = Settings.checked(Loading(threads=1))


def first_rows(path: Path, count: int, skip: int = 0) -> Path:
    path.write_text("".join(ROWS.read_text().splitlines(keepends=True)[skip : skip + count]))
    return path


@pytest.fixture(scope="module")
def place(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, its distributions on six rows, and a matrix of them."""
    folder = tmp_path_factory.mktemp("probe")
    shutil.copy(tiny_bf16, folder / "base.gguf")
    rows = first_rows(folder / "rows.jsonl", 6)
    calibrate(folder / "base.gguf", folder / "x.imatrix", rows=rows, threads=1)
    base_scores(folder / "base.gguf", folder / "base.scores", replay=rows, loading=Loading(threads=1))
    return folder


def test_weights_in_memory_change_and_come_back(place: Path) -> None:
    """The same weights give the same logits to the last bit, also after others were there."""
    file = read_model_file(place / "base.gguf")
    plan = rows_plan(file, place / "rows.jsonl")
    values = Values(place / "base.gguf", place / "x.imatrix", 64)
    q2, q8 = ggml.types()["q2_k"], ggml.types()["q8_0"]
    with Probe(file, values, plan, place / "base.scores", READING) as probe:
        assert probe.divergence({}) == 0
        coarse = probe.divergence({"blk.3.ffn_down_exps.weight": q2})
        both = probe.divergence({"blk.3.ffn_down_exps.weight": q2, "token_embd.weight": q8})
        fine = probe.divergence({"blk.3.ffn_down_exps.weight": q8})
        assert coarse > 10 * fine > 0 and both > coarse
        assert probe.divergence({"blk.3.ffn_down_exps.weight": q2}) == coarse
        assert probe.divergence({}) == 0


@pytest.mark.slow
def test_memory_against_a_real_file(place: Path, tiny_folder: Path) -> None:
    """The divergence of a whole type in memory is that of its file, but for the rounding of activations."""
    file = read_model_file(place / "base.gguf")
    plan = rows_plan(file, place / "rows.jsonl")
    real = convert(
        tiny_folder, quant="Q3_K_M", imatrix=place / "x.imatrix", out=place / "q3.gguf", check=False
    )
    values = Values(place / "base.gguf", place / "x.imatrix", 64)
    with Probe(file, values, plan, place / "base.scores", READING) as probe:
        in_memory = probe.divergence(standard_types(place / "base.gguf", "Q3_K_M"))
    in_file = file_divergence(real.path, plan, place / "base.scores", READING)
    assert in_memory == pytest.approx(in_file, rel=0.4)  # six rows; both roundings differ
    # Its values are those of the file, to the rounding of the base's own type.
    info = next(t for t in read_tensors(real.path) if t.name == "blk.4.attn_q.weight")
    data = np.memmap(real.path, np.uint8, "r")[info.offset : info.offset + info.n_bytes]
    number = ggml.types()[info.type.lower()]
    theirs = ggml.dequantize(number, data.reshape(info.shape[1], -1), info.shape[0])
    blocks = [(values.wide(info.name, rows), weights) for _, rows, weights in values.blocks(info.name)]
    assert np.array_equal(np.concatenate([through(number, rows, w) for rows, w in blocks]), theirs)


@pytest.mark.slow
def test_sizes_are_known_before_a_file_is_written(place: Path, tiny_folder: Path) -> None:
    matrix = place / "x.imatrix"
    sizes = Sizes.of(place / "base.gguf", read_imatrix(matrix).metadata(str(matrix)))
    for quant in ("Q4_K_M", "Q2_K"):
        done = convert(tiny_folder, quant=quant, imatrix=matrix, out=place / f"{quant}.gguf", check=False)
        assert sizes.before() + sizes.data(standard_types(place / "base.gguf", quant)) == done.n_bytes


@pytest.mark.slow
def test_the_command(random_small_moe_folder: Path, tmp_path: Path) -> None:
    """The size is hit, the file has its recipe and is made again from it, and a second size measures less."""
    rows, other = first_rows(tmp_path / "rows.jsonl", 1), first_rows(tmp_path / "other.jsonl", 2, skip=50)
    out = tmp_path / "auto.gguf"
    folder = random_small_moe_folder
    words = ["convert", folder, "-q", "auto", "--calibrate", rows, "--threads", "1"]
    done = command_line.run(*words, "--bpw", "4.8", "-o", out, "--measure", other, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert 0.98 * 4.8 <= read_model_file(out).bits_per_weight <= 4.8
    assert "the same file again: edge convert" in done.stdout
    assert json.loads(out.with_suffix(".measure.json").read_text())["aggregate"]["rows"] == 2
    recipe = out.with_suffix(".recipe")
    assert read_metadata(out)["edge.recipe"] == recipe.read_text()
    costs = json.loads(read_metadata(out)["edge.recipe.costs"])
    assert len(costs["groups"]) == len(recipe.read_text().split()) > 12
    assert read_model_file(out).file_type.startswith("auto-")
    kept = next(tmp_path.glob("*-costs-*"))
    assert sorted(path.name for path in kept.iterdir()) == ["calibration.imatrix", "costs.json"]
    matrix = kept / "calibration.imatrix"
    again = command_line.run(
        "convert", folder, "--recipe", recipe, "--imatrix", matrix, "-o", tmp_path / "2.gguf"
    )
    assert again.returncode == 0, again.stderr
    one, two = (
        [(t.name, t.type, path.read_bytes()[t.offset : t.offset + t.n_bytes]) for t in read_tensors(path)]
        for path in (out, tmp_path / "2.gguf")
    )
    assert one == two
    found = mix(folder, Target(bits=4.0), rows, out=tmp_path / "4.gguf", threads=1)
    assert found.passes < len(costs["groups"]) + 7 and found.converted.bits_per_weight <= 4.0
    with pytest.raises(ConversionError, match=r"the smallest choice of types has .* of data"):
        mix(folder, Target(n_bytes=200_000), rows, out=tmp_path / "small.gguf", threads=1)
    assert not (tmp_path / "small.gguf").exists() and not (kept / "base.gguf").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--calibrate", ROWS], "needs one of --size, --bpw and --like"),
        (["--calibrate", ROWS, "--bpw", "4", "--like", "Q4_K_M"], "needs one of --size, --bpw and --like"),
        (["--bpw", "4"], "needs replay rows to measure on"),
        (["--calibrate", ROWS, "--size", "5 apples"], "must be a size such as 6GB"),
        (["--calibrate", ROWS, "--bpw", "40"], "40 bits per weight: give 1 to 16"),
        (["--calibrate", ROWS, "--like", "IQ1_S"], "IQ1_S: give one of Q2_K"),
        (["--calibrate", ROWS, "--bpw", "4", "--imatrix", ROWS], "--quant auto chooses the types itself"),
        (["--calibrate", ROWS, "--bpw", "4", "--measure", ROWS], "are also in these calibration rows"),
    ],
)
def test_wrong_options_are_refused(
    options: list[object], problem: str, tiny_folder: Path, tmp_path: Path
) -> None:
    done = command_line.run("convert", tiny_folder, "-q", "auto", "-o", tmp_path / "x.gguf", *options)
    assert done.returncode == 2
    assert problem in " ".join(done.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_files_of_another_kind_stay(tiny_folder: Path, tiny_q4: Path, tmp_path: Path) -> None:
    """Before the search: nothing is converted, and the messages name the file."""
    shutil.copy(tiny_q4, tmp_path / "other.gguf")
    (tmp_path / "notes.recipe").write_text("mine")
    for name, problem in (("other.gguf", "other.gguf"), ("notes.gguf", "notes.recipe")):
        with pytest.raises(ConversionError, match=rf"{problem}: exists, and no search in .* wrote it"):
            mix(tiny_folder, Target(like="Q4_K_M"), ROWS, out=tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.recipe", "other.gguf"]
    assert (tmp_path / "notes.recipe").read_text() == "mine"


def test_the_same_search_again_replaces_its_files_and_no_others(tiny_folder: Path, tmp_path: Path) -> None:
    """A second search may choose other types: the measurements of the first one are all there."""
    recipe = Recipe((("blk.*", "q8_0"),), "{}")
    types = TensorTypes(recipe=recipe)
    convert(tiny_folder, quant="Q4_K_M", out=tmp_path / "x.gguf", tensor_types=types, check=False)
    (tmp_path / "x.recipe").write_text(recipe.text)
    files = Files(tmp_path / "x.gguf", tmp_path / "costs", "Q4_K_M")
    costs = Costs.open(files.costs, {"edge": "1"})
    with pytest.raises(ConversionError, match=r"x\.gguf: exists, and no search in .*costs wrote it"):
        files.check_replaced(costs, measures=False)
    costs.add_output("x.gguf", "Q4_K_M", recipe.text)
    costs.add_output("x.gguf", "Q4_K_M", "another choice, which was not written")
    costs = Costs.open(files.costs, {"edge": "1"})
    files.check_replaced(costs, measures=True)
    with pytest.raises(ConversionError, match=r"the size was Q4_K_M, is 4bpw\); choose another name"):
        replace(files, size="4bpw").check_replaced(costs, measures=True)
    (tmp_path / "x.measure.json").write_text('{"measurement": 1, "run": {"model_sha256": "0"}}')
    files.check_replaced(costs, measures=False)
    with pytest.raises(ConversionError, match=r"x\.measure\.json: exists, and no search"):
        files.check_replaced(costs, measures=True)
    (tmp_path / "x.recipe").write_text(recipe.text + "# mine\n")
    with pytest.raises(ConversionError, match=r"x\.recipe: exists, and no search"):
        files.check_replaced(costs, measures=False)


@pytest.mark.slow
def test_one_search_in_a_folder_at_a_time(tiny_folder: Path, tmp_path: Path) -> None:
    rows = first_rows(tmp_path / "rows.jsonl", 1)

    def stop(text: str) -> None:
        if not text.startswith("disk: "):
            raise KeyboardInterrupt

    def search() -> None:
        mix(tiny_folder, Target(like="Q4_K_M"), rows, out=tmp_path / "x.gguf", threads=1, say=stop)

    with pytest.raises(Interrupted):
        search()
    folder = next(tmp_path.glob("*-costs-*"))
    before = sorted(folder.iterdir())
    with (
        sole_user(folder, "test"),
        pytest.raises(
            ConversionError, match="another edge convert --quant auto is writing it; let it finish"
        ),
    ):
        search()
    assert sorted(folder.iterdir()) == before


def test_options_of_auto_need_it(tiny_folder: Path, tmp_path: Path) -> None:
    done = command_line.run("convert", tiny_folder, "--like", "Q4_K_M", "-o", tmp_path / "x.gguf")
    assert done.returncode == 2 and "is for --quant auto" in done.stderr
