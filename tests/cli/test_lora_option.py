"""`--lora` of the commands that run a model, and `edge convert --base`, from the command line.

pytest tests/cli/test_lora_option.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import pytest
from make_adapter import make_adapter

from edge.cli.main import main
from edge.compare import compare
from edge.convert import convert, convert_adapter
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow
TASK = "Remove the file old.log."
Edge = Callable[..., tuple[int, str, str]]


@pytest.fixture
def edge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Edge:
    """The exit code, stdout and stderr of a command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["edge", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(
        tiny_folder, quant="Q8_0", out=tmp_path_factory.mktemp("base") / "base.gguf", threads=1
    ).path


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that spoils the answers of the embedded model."""
    place = tmp_path_factory.mktemp("adapter")
    folder = make_adapter(tiny_folder, place / "spoiler", size=3.0)
    return convert_adapter(folder, tiny_folder, quant="f16", out=place / "spoiler.gguf").path


@pytest.fixture(scope="module")
def other(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("other")
    folder = make_adapter(tiny_folder, place / "other", seed=8, size=3.0)
    return convert_adapter(folder, tiny_folder, out=place / "other.gguf").path


def test_convert_writes_an_adapter(edge: Edge, tiny_folder: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_folder, tmp_path / "tuned")
    code, out, _ = edge("convert", folder, "--base", tiny_folder)
    assert code == 0 and "LoRA adapter, F32, " in out and "24 weights, rank 4, alpha 8" in out
    code, out, errors = edge("run", TASK, "--model", "tiny-terminal", "--lora", "tuned-lora-f32", "--quiet")
    assert code == 0, errors
    assert json.loads(out)["commands"]
    code, out, _ = edge("models")
    assert "adapter (lfm2moe)" in out and "not usable" not in out
    code, out, _ = edge("models", "--json")
    listed = {one["name"]: one for one in json.loads(out)["models"]}
    assert listed["tuned-lora-f32"]["adapter"] is True and listed["tuned-lora-f32"]["usable"] is False
    code, out, errors = edge("run", TASK, "--quiet")  # the newest GGUF is the adapter, which is no model
    assert code == 0 and "not usable" not in errors


def test_options_that_belong_to_models_are_refused_for_adapters(
    edge: Edge, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tiny_folder, tmp_path / "tuned")
    for options in (["--lora", folder], ["--imatrix", "x"], ["--threads", "1"], ["--tensor-type", "a=q8_0"]):
        code, _, errors = edge("convert", folder, "--base", tiny_folder, *options)
        assert code == 2 and "is for a model; --base converts an adapter" in errors
    code, _, errors = edge("convert", folder, "--base", tiny_folder, "--quant", "Q4_K_M")
    assert code == 2 and "Q4_K_M is not a type for an adapter; use one of F32, F16, BF16, Q8_0" in errors
    code, _, errors = edge("convert", folder)
    assert code == 1 and "is a LoRA adapter" in errors and "--base" in errors
    code, _, errors = edge("convert", tiny_folder, "--base", tiny_folder)
    assert code == 1 and "no adapter_config.json" in errors


def test_run_with_an_adapter(edge: Edge, base: Path, adapter: Path, other: Path) -> None:
    def answer(*options: object) -> str:
        code, out, errors = edge("run", TASK, "--model", base, "--quiet", "--max-tokens", 64, *options)
        assert code == 0, errors
        return out

    plain = answer()
    assert "rm old.log" in plain
    assert answer("--lora", f"{adapter}:0") == plain
    spoiled = answer("--lora", adapter)
    assert spoiled != plain
    assert answer("--lora", f"{adapter}:1") == answer("--lora", f"{adapter}:1.0") == spoiled
    assert answer("--lora", adapter, "--lora", other) == answer("--lora", other, "--lora", adapter)
    assert answer("--lora", adapter, "--lora", f"{other}:0") == spoiled


def test_bad_adapters_are_one_line(
    edge: Edge, base: Path, adapter: Path, random_llama_folder: Path, tmp_path: Path
) -> None:
    def refused(problem: str, *options: object, model: Path = base, code: int = 1) -> None:
        got, out, errors = edge("run", TASK, "--model", model, "--quiet", *options)
        lines = [line for line in errors.splitlines() if line.strip()]
        assert got == code and not out, errors
        assert problem in errors and "Traceback" not in errors
        assert code == 2 or (len(lines) == 1 and lines[0].startswith("error: ")), errors

    refused("none.gguf: no such file", "--lora", tmp_path / "none.gguf")
    refused("the scale 'x' is not a number", "--lora", f"{adapter}:x", code=2)
    refused("is named twice", "--lora", adapter, "--lora", f"{adapter}:2", code=2)
    refused("is a model, not an adapter; give it with --model", "--lora", base)
    refused("is an adapter, not a model; give its base with --model, and it with --lora", model=adapter)
    refused("is a folder; make an adapter file of it with `edge convert", "--lora", tmp_path)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(adapter.read_bytes()[:-40])
    refused("truncated", "--lora", cut)
    folder = make_adapter(random_llama_folder, tmp_path / "llama")
    llama = convert_adapter(folder, random_llama_folder, out=tmp_path / "llama.gguf").path
    refused("is an adapter for the architecture llama", "--lora", llama)


def test_another_base_than_the_recorded_one_is_a_note(
    edge: Edge, base: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "sibling")
    folder = make_adapter(tiny_folder, tmp_path / "tuned")
    file = convert_adapter(folder, tmp_path / "sibling", out=tmp_path / "tuned.gguf").path
    code, out, errors = edge("run", TASK, "--model", base, "--lora", file, "--quiet")
    assert code == 0 and out
    assert errors.count("was trained on sibling, and") == 1 and errors.startswith("note: ")


def evaluation(base: Path, *, limit: int, tokens: int) -> list[object]:
    """The command `edge eval` on the first embedded rows, without its output and its adapters."""
    rows = ["--replay", embedded_rows(), "--limit", limit, "--max-tokens", tokens]
    return ["eval", "--model", base, *rows, "--quiet"]


def test_results_name_their_adapters(
    edge: Edge, base: Path, adapter: Path, other: Path, tmp_path: Path
) -> None:
    """Provenance, the identity of a run, comparisons and the report."""
    options = evaluation(base, limit=4, tokens=48)
    for name, more in (
        ("plain", []),
        ("half", ["--lora", f"{adapter}:0.5"]),
        ("two", ["--lora", adapter, "--lora", f"{other}:0.25"]),
    ):
        code, _, errors = edge(*options, "--out", f"{name}.json", *more)
        assert code == 0, errors
    results: dict[str, Any] = {
        name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "half", "two")
    }
    assert results["plain"]["provenance"]["adapters"] is None and results["plain"]["lora_path"] is None
    [one] = results["half"]["provenance"]["adapters"]
    assert one["name"] == "spoiler.gguf" and one["scale"] == 0.5 and one["base"] == "tiny-terminal"
    assert len(one["sha256"]) == 64 and results["half"]["lora_path"] == f"{adapter}:0.5"
    assert [each["scale"] for each in results["two"]["provenance"]["adapters"]] == [1.0, 0.25]
    for more in ([], ["--lora", adapter], ["--lora", f"{other}:0.5"]):
        code, _, errors = edge(*options, "--out", "half.json", *more)
        changed = "other LoRA adapters" if more else "now without LoRA adapters"
        assert code == 1 and f"holds a result of another run ({changed})" in errors
    code, _, errors = edge(*options, "--out", "half.json", "--lora", f"{adapter}:0.5")
    assert code == 0, errors
    code, _, errors = edge(*options, "--out", "two.json", "--lora", f"{other}:0.25", "--lora", adapter)
    assert code == 0, errors  # their order changes nothing
    code, _, errors = edge(*options, "--out", adapter, "--lora", adapter)
    assert code == 1 and "is an input of this command" in errors
    text = compare([tmp_path / "half.json"], tmp_path / "plain.json").to_markdown()
    assert (
        "The runs have different adapters: none in the reference, spoiler.gguf (scale 0.5) in ours." in text
    )
    code, out, _ = edge("compare", "--causes", "plain.json", "half.json")
    assert "No two of these results differ in exactly one thing" in out
    code, _, errors = edge("report", "plain.json", "half.json", "--out", "page.html")
    assert code == 0, errors
    page = (tmp_path / "page.html").read_text()
    assert "spoiler.gguf, scale 0.5" in page and str(adapter.parent) not in page


def test_an_interrupted_evaluation_does_not_continue_with_another_adapter(
    edge: Edge, base: Path, adapter: Path, tmp_path: Path
) -> None:
    from edge.replay.journal import Journal, journal_path

    options = evaluation(base, limit=2, tokens=32)
    assert edge(*options, "--out", "a.json", "--lora", adapter)[0] == 0
    result = json.loads((tmp_path / "a.json").read_text())
    with Journal.open(journal_path(tmp_path / "b.json"), result["run"]) as journal:
        journal.append(result["per_step"][0])
    code, _, errors = edge(*options, "--out", "b.json")
    assert code == 1 and "of another evaluation (now without LoRA adapters)" in errors
    assert edge(*options, "--out", "b.json", "--lora", adapter)[0] == 0


def test_other_backends_have_no_adapters(edge: Edge, adapter: Path) -> None:
    code, _, errors = edge(
        "eval", "--backend", "openai", "--base-url", "http://127.0.0.1:1/v1", "--lora", adapter
    )
    assert code == 2 and "belongs to the backend edge, not to openai" in errors


def test_measure_with_an_adapter(edge: Edge, base: Path, adapter: Path, tmp_path: Path) -> None:
    """The adapter changes the model, not the base: at scale 0 both are equal."""
    options = [
        "measure",
        "--model",
        base,
        "--base",
        base,
        "--replay",
        embedded_rows(),
        "--limit",
        2,
        "--quiet",
    ]
    for name, lora in (("zero", f"{adapter}:0"), ("one", adapter)):
        code, _, errors = edge(*options, "--out", f"{name}.json", "--lora", lora)
        assert code == 0, errors
    zero, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("zero", "one"))
    assert zero["aggregate"]["kl_max"] < 1e-9 and zero["aggregate"]["top1_agreement_pct"] == 100
    assert one["aggregate"]["kl_mean"] > 0.5
    assert one["provenance"]["adapters"][0]["name"] == "spoiler.gguf"
    code, _, errors = edge(*options, "--out", "one.json")
    assert code == 1 and "holds a measurement of another run (now without LoRA adapters)" in errors
    evaluated = [
        "eval",
        "--model",
        base,
        "--replay",
        embedded_rows(),
        "--limit",
        2,
        "--max-tokens",
        32,
        "--quiet",
    ]
    assert edge(*evaluated, "--out", "plain.json")[0] == 0
    code, _, errors = edge("report", "plain.json", "one.json", "--out", "page.html")
    assert code == 1 and "no result is about that model with the same adapters" in errors
    assert edge(*evaluated, "--out", "tuned.json", "--lora", adapter)[0] == 0
    code, _, errors = edge("report", "tuned.json", "one.json", "--out", "page.html")
    assert code == 0, errors


def test_inspect_describes_an_adapter(edge: Edge, adapter: Path, tiny_folder: Path, tmp_path: Path) -> None:
    code, out, _ = edge("inspect", adapter, "--verify")
    assert code == 0
    assert "spoiler: LoRA for lfm2moe, 24 weights, rank 4, alpha 8" in out
    assert "base         tiny-terminal" in out and "attn_q.weight (3)" in out.replace("  ", " ")
    assert "all data read: no NaN or Inf, no stray bytes" in out
    code, out, _ = edge("inspect", adapter, "--json")
    found = json.loads(out)
    assert found["ok"] and found["adapter"]["weights"]["blk.0.ffn_down.weight"] == 4
    data = bytearray(adapter.read_bytes())
    data[-9] ^= 4
    (tmp_path / "flipped.gguf").write_bytes(data)
    code, out, _ = edge("inspect", tmp_path / "flipped.gguf", "--verify")
    assert code == 1 and "PROBLEM" in out and "(CRC-32)" in out
    code, _, errors = edge("inspect", adapter, "--source", tiny_folder)
    assert code == 1 and "is an adapter; edge compares only models with their source" in errors


def test_chat_with_an_adapter(base: Path, adapter: Path) -> None:
    def answer(*options: object) -> str:
        words = ("chat", TASK, "--model", base, "--answers", "action", "--max-tokens", "48")
        done = command_line.run(*words, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert answer() == answer("--lora", f"{adapter}:0") != answer("--lora", adapter)


def test_chat_shows_and_protects_the_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(adapter.read_bytes())
    words = ("chat", "--commands", "--model", base, "--lora", f"{own}:0.5")
    done = command_line.run(*words, input=f"/show\n/save {own}\n")
    assert f"adapter       {own}:0.5" in done.stderr
    assert done.returncode == 1 and "is an input of this command" in done.stderr
    assert own.read_bytes() == adapter.read_bytes()
