"""`edge convert --quant auto` on the embedded model: memory against real files, sizes to the byte, resuming."""

import ctypes
import json
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command_line
import llama_cpp
import numpy as np
import pytest

from edge.conversion.recipe import Recipe, read_recipe
from edge.convert import TensorTypes, convert
from edge.errors import ConversionError, Interrupted
from edge.formats.gguf import TensorInfo, read_metadata, read_model_file, read_tensors
from edge.formats.imatrix import read_imatrix
from edge.llama import ggml
from edge.llama.loading import Loading
from edge.llama.speed import weights_per_second
from edge.llama.types import FTYPES
from edge.measure.calibrate import calibrate
from edge.measure.passes import Settings
from edge.measure.positions import rows_plan
from edge.measure.run import base_scores
from edge.mixing.groups import make_groups
from edge.mixing.outcome import Mixed
from edge.mixing.probe import Probe, Values, file_divergences, through, uncertain_rows
from edge.mixing.rivals import Divergences, Rival, better_rival
from edge.mixing.run import Target, mix
from edge.mixing.search import RARE_ERROR
from edge.mixing.sizes import Sizes, standard_types
from edge.mixing.speed import Speeds
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
    calibrate(folder / "base.gguf", folder / "x.imatrix", rows=rows, loading=Loading(threads=1))
    base_scores(folder / "base.gguf", folder / "base.scores", replay=rows, loading=Loading(threads=1))
    return folder


def test_weights_in_memory_change_and_come_back(place: Path) -> None:
    """The same weights give the same logits to the last bit, also after others were there."""
    file = read_model_file(place / "base.gguf")
    plan = rows_plan(file, place / "rows.jsonl")
    values = Values(place / "base.gguf", place / "x.imatrix", 64)
    q2, q8 = ggml.types()["q2_k"], ggml.types()["q8_0"]
    with Probe(file, values, plan, place / "base.scores", READING) as probe:
        assert probe.whole({}) == 0
        coarse = probe.whole({"blk.3.ffn_down_exps.weight": q2})
        both = probe.whole({"blk.3.ffn_down_exps.weight": q2, "token_embd.weight": q8})
        fine = probe.whole({"blk.3.ffn_down_exps.weight": q8})
        assert coarse > 10 * fine > 0 and both > coarse
        assert probe.whole({"blk.3.ffn_down_exps.weight": q2}) == coarse
        assert probe.whole({}) == 0


@pytest.mark.slow
def test_uncertain_rows_have_nearly_all_of_the_divergence(place: Path, tmp_path: Path) -> None:
    """They are known before any measurement, and they are fewer tokens than half."""
    file = read_model_file(place / "base.gguf")
    rows, scores = first_rows(tmp_path / "rows.jsonl", 30), tmp_path / "base.scores"
    base_scores(place / "base.gguf", scores, replay=rows, loading=Loading(threads=1))
    plan = rows_plan(file, rows)
    places = uncertain_rows(plan, scores)
    assert places == sorted(set(places)) and plan.part(places).tokens < 0.5 * plan.tokens
    values = Values(place / "base.gguf", place / "x.imatrix", 64)
    with Probe(file, values, plan, scores, READING, places) as probe:
        for name, kind in (("blk.3.ffn_down_exps.weight", "q2_k"), ("blk.4.attn_v.weight", "q4_k")):
            types = {name: ggml.types()[kind]}
            assert 0.75 * probe.whole(types) < sum(probe.divergence(types)) <= probe.whole(types)


def test_a_resumed_search_reads_the_same_rows(tmp_path: Path) -> None:
    """Also where the base's distributions differ in their last bits, as with another number of threads."""
    path = tmp_path / "costs.json"
    assert Costs.open(path, {"edge": "1"}).rows(lambda: [1, 3]) == [1, 3]
    assert Costs.open(path, {"edge": "1"}).rows(lambda: [0, 3]) == [1, 3]


@pytest.mark.slow
def test_memory_against_a_real_file(place: Path, tiny_folder: Path) -> None:
    """The size is known before; the divergence in memory is that of the file, but for the rounding of activations."""
    file = read_model_file(place / "base.gguf")
    plan = rows_plan(file, place / "rows.jsonl")
    real = convert(
        tiny_folder, quant="Q3_K_M", imatrix=place / "x.imatrix", out=place / "q3.gguf", check=False
    )
    values = Values(place / "base.gguf", place / "x.imatrix", 64)
    types = standard_types(place / "base.gguf", ["Q2_K", "Q3_K_M"])["Q3_K_M"]
    sizes = Sizes.of(
        place / "base.gguf", read_imatrix(place / "x.imatrix").metadata(str(place / "x.imatrix"))
    )
    assert sizes.before() + sizes.data(types) == real.n_bytes
    with Probe(file, values, plan, place / "base.scores", READING) as probe:
        in_memory = probe.whole(types)
    in_file = Divergences(file_divergences(real.path, plan, place / "base.scores", READING)).mean
    assert in_memory == pytest.approx(in_file, rel=0.4)  # six rows; both roundings differ
    # Its values are those of the file, to the rounding of the base's own type.
    info = next(t for t in read_tensors(real.path) if t.name == "blk.4.attn_q.weight")
    data = np.memmap(real.path, np.uint8, "r")[info.offset : info.offset + info.n_bytes]
    number = ggml.types()[info.type.lower()]
    theirs = ggml.dequantize(number, data.reshape(info.shape[1], -1), info.shape[0])
    blocks = [(values.wide(info.name, rows), weights) for _, rows, weights in values.blocks(info.name)]
    assert np.array_equal(np.concatenate([through(number, rows, w) for rows, w in blocks]), theirs)


@dataclass(frozen=True)
class Searched:
    """A search in `place` for 3.5 bits per weight, and what is there for further ones."""

    folder: Path
    rows: Path
    place: Path
    found: Mixed

    @property
    def kept(self) -> Path:
        return next(self.place.glob("*-costs-*"))

    @property
    def costs(self) -> Any:
        return json.loads((self.kept / "costs.json").read_text())


@pytest.fixture(scope="module")
def searched(random_two_layers_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    place = tmp_path_factory.mktemp("searched")
    rows = first_rows(place / "rows.jsonl", 1)
    found = mix(random_two_layers_folder, Target(bits=3.5), rows, out=place / "small.gguf", threads=1)
    return Searched(random_two_layers_folder, rows, place, found)


def contents(path: Path) -> list[tuple[str, str, bytes]]:
    """Each tensor's name, type and data, by name."""
    data = path.read_bytes()
    return sorted((t.name, t.type, data[t.offset : t.offset + t.n_bytes]) for t in read_tensors(path))


@pytest.fixture(scope="module")
def resumed(searched: Searched) -> Path:
    """The file of a command that was killed with kill -9, then with Ctrl-C, and then ended."""
    other = first_rows(searched.place / "other.jsonl", 2, skip=50)
    out = searched.place / "auto.gguf"
    words = ["convert", searched.folder, "-q", "auto", "--calibrate", searched.rows, "--threads", "1"]
    words += ["--bpw", "5.5", "-o", out, "--measure", other]
    for number in (signal.SIGKILL, signal.SIGINT):
        before = searched.costs
        command = command_line.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while searched.costs == before and command.poll() is None:
            time.sleep(0.005)
        command.send_signal(number)
        _, errors = command.communicate()
        said = errors.decode()
        assert command.returncode == (130 if number == signal.SIGINT else -number), said
        assert not out.exists()
        assert (searched.kept / "base.gguf").is_file()
        for group, known in before["alone"].items():
            assert searched.costs["alone"][group].items() >= known.items()
    assert said.splitlines()[-1] == "interrupted; run the same command again to resume"
    done = command_line.run(*words)
    assert done.returncode == 0, done.stderr
    assert "the same file again: edge convert" in done.stdout
    return out


@pytest.mark.slow
def test_a_killed_search_resumes(searched: Searched, resumed: Path) -> None:
    """The file has the size, the recipe and a measurement; what was measured for another size counts."""
    assert 0.98 * 5.5 <= read_model_file(resumed).bits_per_weight <= 5.5
    assert json.loads(resumed.with_suffix(".measure.json").read_text())["aggregate"]["rows"] == 2
    recipe = resumed.with_suffix(".recipe").read_text()
    assert read_metadata(resumed)["edge.recipe"] == recipe
    costs = json.loads(read_metadata(resumed)["edge.recipe.costs"])
    assert len(costs["groups"]) == len(recipe.split()) > 12
    assert read_model_file(resumed).file_type.startswith("auto-")
    assert sorted(path.name for path in searched.kept.iterdir()) == ["calibration.imatrix", "costs.json"]


@pytest.mark.slow
def test_the_recipe_makes_the_file_again(searched: Searched, resumed: Path, tmp_path: Path) -> None:
    """With edge, and with llama.cpp's own quantizer: the same types, the same bits."""
    recipe, matrix = resumed.with_suffix(".recipe"), searched.found.matrix
    types = TensorTypes(recipe=read_recipe(recipe))
    again = convert(searched.folder, imatrix=matrix, tensor_types=types, out=tmp_path / "2.gguf", check=False)
    assert contents(again.path) == contents(resumed)
    convert(searched.folder, quant="bf16", out=tmp_path / "base.gguf", check=False)
    quantized_by_llama(tmp_path / "base.gguf", recipe, matrix, tmp_path / "llama.gguf")
    assert contents(tmp_path / "llama.gguf") == contents(resumed)


def quantized_by_llama(base: Path, recipe: Path, matrix: Path, out: Path) -> None:
    """llama_model_quantize with what llama-quantize gives it for --tensor-type-file and --imatrix."""
    lines = [line.partition("=") for line in recipe.read_text().split()]
    overrides = (llama_cpp.llama_model_tensor_override * (len(lines) + 1))()
    for entry, (pattern, _, kind) in zip(overrides, lines, strict=False):
        entry.pattern, entry.type = pattern.lower().encode(), ggml.types()[kind]
    weights = read_imatrix(matrix).weights()
    entries = (llama_cpp.llama_model_imatrix_data * (len(weights) + 1))()
    for entry, (name, values) in zip(entries, weights.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FTYPES["Q4_K_M"], 1
    params.tt_overrides, params.imatrix = overrides, entries
    assert not llama_cpp.llama_model_quantize(str(base).encode(), str(out).encode(), ctypes.byref(params))


@pytest.mark.slow
def test_a_type_of_llama_cpp_that_is_better_is_taken(searched: Searched) -> None:
    """Experts that these rows hardly use take nearly all of this size: Q2_K has the smaller divergence."""
    out, found = searched.place / "small.gguf", searched.found
    taken = found.taken
    assert taken is not None and taken.quant == "Q2_K" and taken.matrix and found.recipe is None
    assert taken.measured.mean < found.real.mean
    assert "the file is Q2_K with the matrix, as llama.cpp makes it" in found.to_text("x")
    assert not out.with_suffix(".recipe").exists()
    own = convert(
        searched.folder, quant="Q2_K", imatrix=found.matrix, out=searched.place / "q2.gguf", check=False
    )
    assert out.read_bytes() == own.path.read_bytes() and own.n_bytes <= found.target
    # The same again changes nothing; another size needs --force, before any work.
    assert mix(searched.folder, Target(bits=3.5), searched.rows, out=out, threads=1).passes == 0
    with pytest.raises(ConversionError, match=r"holds a GGUF of another run \(size was 3.5bpw, is 4bpw\)"):
        mix(searched.folder, Target(bits=4.0), searched.rows, out=out, threads=1)
    assert out.read_bytes() == own.path.read_bytes()


@pytest.mark.slow
def test_slow_types_are_weighed_and_excluded(searched: Searched) -> None:
    """On this machine's own figures: a choice that must be faster has a smaller sum of times, and no IQ type."""
    target = Target(bits=4.5, speed=1.0, exclude=("iq",))
    said: list[str] = []
    out = searched.place / "fast.gguf"
    found = mix(searched.folder, target, searched.rows, out=out, threads=1, say=said.append)
    line = next(line for line in said if line.startswith("the products of the mixture"))
    mixture, theirs = (float(part.replace(",", "")) for part in re.findall(r"[:] ([0-9,]+)", line))
    assert mixture >= 0.999 * theirs
    assert sum("| iq3_s " in line for line in said) == 1
    types = searched.costs["choices"]["4.5bpw, speed 1, without iq"]["types"]
    assert found.converted.bits_per_weight <= 4.5
    assert not any(kind.startswith("iq") for kind in types.values())


def test_each_type_is_timed() -> None:
    """A weight of 16 bits is not faster than a quarter of it; a token reads half of the experts of this model."""
    names = ("q4_k", "q8_0", "bf16", "f32")
    numbers = [ggml.types()[name] for name in names]
    found = weights_per_second(numbers, 1)
    assert list(found) == numbers and all(each > 1e6 for each in found.values())
    experts = TensorInfo("blk.1.ffn_up_exps.weight", (256, 256, 4), "BF16", 0, 0)
    head = TensorInfo("token_embd.weight", (256, 1000), "BF16", 0, 0)
    groups = make_groups([experts, head])
    speeds = Speeds(dict.fromkeys(names, 1e6), expert_share=0.5, tied=True)
    assert sorted(speeds.seconds(group, "q4_k") for group in groups) == [0.131072, 0.256]
    apart = Speeds(dict.fromkeys(names, 1e6), expert_share=0.5, tied=False)
    assert min(apart.seconds(group, "q4_k") for group in groups) == 0


def test_llama_cpps_file_is_taken_unless_the_mixture_gains_a_fifth() -> None:
    def rival(mean: float, *, matrix: bool) -> Rival:
        return Rival("Q4_K_M", matrix, 1, Divergences({"a": [mean, 1]}))

    mixture = Divergences({"a": [1.0, 1]})
    for with_matrix, without, taken in (
        (1.3, 1.3, None),
        (1.3, 1.2, False),  # too near
        (1.2, 1.3, True),
        (0.9, 1.1, True),  # only this one is better than the mixture
        (0.9, 0.95, False),  # the matrix gains too little to be trusted
        (0.7, 0.95, True),
    ):
        found = better_rival(mixture, [rival(with_matrix, matrix=True), rival(without, matrix=False)])
        assert (None if found is None else found.matrix) is taken, (with_matrix, without)
    assert better_rival(mixture, []) is None


def test_llama_cpps_file_is_taken_if_the_rows_are_too_few_to_show_a_gain() -> None:
    """A second model's mixture had 0.68 (0.39 to 1.63) on its 160 calibration rows, and 1.38 on others."""

    def of(*means: float) -> Divergences:
        return Divergences({str(i): [mean, 1] for i, mean in enumerate(means)})

    once = of(*[1.0] * 19, 11.0), of(*[1.1] * 19, 0.1)  # the gain on one task decides the mean
    assert of(*[1.1] * 19, 0.1).mean < 0.8 * once[0].mean
    rival = Rival("Q4_K_M", False, 1, once[0])
    assert better_rival(once[1], [rival]) is rival
    everywhere = of(*[0.7] * 20)
    assert better_rival(everywhere, [Rival("Q4_K_M", False, 1, of(*[1.0] * 20))]) is None


@pytest.mark.slow
def test_rarely_seen_experts_keep_fine_types(searched: Searched) -> None:
    """One row reaches no expert 64 times: no expert has a type whose own error in them is above 1 %."""
    types = searched.costs["choices"]["3.5bpw"]["types"]
    errors = searched.costs["errors"]
    experts = {group: kind for group, kind in types.items() if "_exps" in group}
    assert len(experts) == 3
    for group, kind in experts.items():
        assert errors[group][kind]["rare"] <= RARE_ERROR < errors[group]["q2_k"]["rare"]
        assert errors[group]["q3_k"]["rare"] > RARE_ERROR > errors[group]["q4_k"]["rare"] > 0
    others = {group: kind for group, kind in types.items() if group not in experts}
    assert any(errors[group][kind]["relative"] > RARE_ERROR for group, kind in others.items())
    with pytest.raises(
        ConversionError, match=r"smallest choice of types has .* of data: give a .* \(3 groups with"
    ):
        mix(searched.folder, Target(n_bytes=200_000), searched.rows, out=searched.place / "s.gguf", threads=1)
    assert not (searched.place / "s.gguf").exists() and not (searched.kept / "base.gguf").exists()


def test_the_error_of_rare_experts_is_their_own(place: Path) -> None:
    """Of the embedded model's experts, only those that worked on few tokens count, each against its own values."""
    name = "blk.4.ffn_up_exps.weight"
    counts = read_imatrix(place / "x.imatrix").entries[name].counts
    few = int(np.median(counts))
    values, number = Values(place / "base.gguf", place / "x.imatrix", few), ggml.types()["q3_k"]
    each = []
    for expert, (_, rows, weights) in enumerate(values.blocks(name)):
        wide = values.wide(name, rows)
        each.append(((through(number, wide, weights) - wide) ** 2).sum() / (wide**2).sum())
        assert expert < len(counts)
    largest = max(one for one, count in zip(each, counts, strict=True) if count < few)
    assert values.rare(name) and values.errors(name, number).rare == pytest.approx(largest, rel=0.2)
    assert Values(place / "base.gguf", place / "x.imatrix", 0).errors(name, number).rare == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--calibrate", ROWS], "needs one of --size, --bpw and --like"),
        (["--calibrate", ROWS, "--bpw", "4", "--like", "Q4_K_M"], "needs one of --size, --bpw and --like"),
        (["--bpw", "4"], "needs replay rows to measure on"),
        (["--calibrate", ROWS, "--size", "5 apples"], "must be a size such as 6GB"),
        (["--calibrate", ROWS, "--size", "9" * 400], "must be a size such as 6GB"),
        (["--calibrate", ROWS, "--size", "-5GB"], "must be a size such as 6GB"),
        (["--calibrate", ROWS, "--size", "0"], "0 bytes: give a size such as 5.15GB"),
        (["--calibrate", ROWS, "--size", "999999999999GB"], "give a size such as 5.15GB"),
        (["--calibrate", ROWS, "--bpw", "nan"], "must be a finite number"),
        (["--calibrate", ROWS, "--bpw", "4", "--speed", "0"], "0: give a share such as 0.9 or 1"),
        (["--calibrate", ROWS, "--bpw", "4", "--exclude", "iq,z9"], "z9: is none of the types"),
        (["--calibrate", ROWS, "--bpw", "4", "--exclude", "iq,q"], "too few types are left to choose from"),
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
    for name, problem in (("other.gguf", "holds a GGUF of another run"), ("notes.gguf", "holds a recipe of")):
        with pytest.raises(ConversionError, match=problem):
            mix(tiny_folder, Target(like="Q4_K_M"), ROWS, out=tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.recipe", "other.gguf"]
    assert (tmp_path / "notes.recipe").read_text() == "mine"


def test_a_recipe_that_somebody_changed_stays(tiny_folder: Path, tmp_path: Path) -> None:
    """Beside a GGUF that a search wrote, also where edge no longer remembers the search."""
    recipe = Recipe((("blk.*", "q8_0"),), "{}")
    types = TensorTypes(recipe=recipe)
    convert(tiny_folder, quant="Q4_K_M", out=tmp_path / "x.gguf", tensor_types=types, check=False)
    changed = recipe.text + "# mine\n"
    (tmp_path / "x.recipe").write_text(changed)
    with pytest.raises(ConversionError, match=r"x\.recipe: holds a recipe of another run"):
        mix(tiny_folder, Target(like="Q4_K_M"), ROWS, out=tmp_path / "x.gguf")
    assert (tmp_path / "x.recipe").read_text() == changed


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
    busy = "another edge convert --quant auto is writing it; let it finish"
    with sole_user(folder, "test"), pytest.raises(ConversionError, match=busy):
        search()
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("ending", [".gguf", ".recipe", ".measure.json"])
def test_rows_are_never_an_output(ending: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Whichever of the three files of a search has their name, and also with force."""
    rows = first_rows((tmp_path / "x.gguf").with_suffix(ending), 1)
    before = rows.read_bytes()
    with pytest.raises(ConversionError, match=rf"x\{ending}: is an input of this command"):
        mix(tiny_folder, Target(like="Q4_K_M"), rows, out=tmp_path / "x.gguf", force=True)
    assert [path.name for path in tmp_path.iterdir()] == [rows.name] and rows.read_bytes() == before


def test_options_of_auto_need_it(tiny_folder: Path, tmp_path: Path) -> None:
    done = command_line.run("convert", tiny_folder, "--like", "Q4_K_M", "-o", tmp_path / "x.gguf")
    assert done.returncode == 2 and "is for --quant auto" in done.stderr
