"""edge measure: compared with transformers, with a direct computation and with llama-perplexity.

pytest tests/measure/test_measure.py
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pytest
from conftest import ROOT, converted
from typer.testing import CliRunner

from edge.cli.main import app
from edge.errors import ContextError, EdgeError, ModelFileError, ResultError
from edge.formats.gguf import read_model_file
from edge.llama.encode import encode_with
from edge.llama.loading import Loading
from edge.llama.prefixes import distinct_tokens
from edge.measure.run import Chosen, base_scores, measure
from edge.measure.spans import token_fields
from edge.prompt import prompt_source, render_prompt
from edge.replay.rows import read_rows

pytestmark = pytest.mark.slow

ROWS = ROOT / "models" / "tiny-terminal" / "eval.jsonl"
FEW = 12


@pytest.fixture(scope="module")
def tiny_f32(tiny_folder: Path) -> Path:
    return converted(tiny_folder, "tiny-terminal-F32.gguf", "F32")


def given(model: Path, limit: int = FEW) -> list[tuple[list[int], int]]:
    """The prompt and answer of each row in tokens, and the index where the answer begins."""
    source = prompt_source(model)
    found = []
    for row in read_rows(ROWS, limit):
        prompt = render_prompt(row.messages, source).text
        found.append((encode_with(model, prompt + row.ref_raw), len(encode_with(model, prompt))))
    return found


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def direct(model: Path) -> list[np.ndarray]:
    """Log probabilities at each position of each answer and at its end. llama_cpp reads each row separately."""
    import llama_cpp

    llm = llama_cpp.Llama(
        str(model), n_ctx=1024, n_batch=512, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False
    )
    found = []
    for tokens, begin in given(model):
        llm.reset()
        llm.eval(tokens)
        found.append(log_softmax(llm.scores[begin - 1 : len(tokens)]))
    llm.close()
    return found


def targets(model: Path, tokens: list[int], begin: int, log_probs: np.ndarray) -> np.ndarray:
    ends = sorted(read_model_file(model).end_ids)
    end = np.logaddexp.reduce(log_probs[-1, ends])
    return np.append(log_probs[np.arange(len(tokens) - begin), tokens[begin:]], end)


def test_likelihoods_are_those_of_transformers(tiny_folder: Path, tiny_f32: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ours = measure(tiny_f32, tmp_path / "m.json", replay=ROWS, limit=FEW, loading=Loading(threads=1))
    assert "base_nll" not in ours["aggregate"] and "kl_mean" not in ours["aggregate"]
    model = AutoModelForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.float32, attn_implementation="eager"
    )
    for step, (tokens, begin) in zip(ours["per_step"], given(tiny_f32), strict=True):
        with torch.no_grad():
            log_probs = log_softmax(model(torch.tensor([tokens])).logits[0, begin - 1 :].numpy())
        expected = targets(tiny_f32, tokens, begin, log_probs)
        assert step["tokens"] == len(expected)
        # What is left is the cache in 16 bits.
        assert step["nll"] == pytest.approx(-expected.mean(), abs=1e-3)


def test_figures_are_those_of_the_whole_distributions(tiny_bf16: Path, tiny_q4: Path, tmp_path: Path) -> None:
    ours = measure(
        tiny_q4, tmp_path / "m.json", base=tiny_bf16, replay=ROWS, limit=FEW, loading=Loading(threads=1)
    )
    figures = ours["aggregate"]
    p, q = direct(tiny_bf16), direct(tiny_q4)
    kl = [(np.exp(a) * (a - b)).sum(1) for a, b in zip(p, q, strict=True)]
    same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(p, q, strict=True)])
    everything = np.concatenate(kl)
    # In the tree the batches are others, which moves the logits of a quantized model: by 5 % of the divergences' mean
    # and 16 % of the largest ones at most, on the processors tried. Alone, each row is read in the same batches.
    assert figures["kl_mean"] == pytest.approx(everything.mean(), rel=0.05)
    assert figures["kl_p99"] == pytest.approx(np.quantile(everything, 0.99), rel=0.25)
    assert figures["kl_max"] == pytest.approx(everything.max(), rel=0.25)
    assert figures["kl_error_bound"] < 0.1 * figures["kl_mean"]
    lines = ROWS.read_text().splitlines()
    for line, expected in list(zip(lines, kl, strict=False))[:6]:
        row = tmp_path / "row.jsonl"
        row.write_text(line)
        alone = measure(
            tiny_q4, tmp_path / "row.json", base=tiny_bf16, replay=row, loading=Loading(threads=1), force=True
        )["aggregate"]
        assert abs(alone["kl_mean"] - expected.mean()) <= alone["kl_error_bound"] + 1e-8
        assert alone["kl_max"] == pytest.approx(expected.max(), rel=1e-2)
        for name in ("median", "p90", "p99"):
            quantile = {"median": 0.5, "p90": 0.9, "p99": 0.99}[name]
            assert alone[f"kl_{name}"] == pytest.approx(np.quantile(expected, quantile), rel=0.02, abs=1e-6)
    assert figures["tokens"] == len(everything)
    assert figures["top1_agreement_pct"] == pytest.approx(100 * same.mean(), abs=100 / len(same) + 1e-9)
    for name, model, log_probs in (("nll", tiny_q4, q), ("base_nll", tiny_bf16, p)):
        rows = [targets(model, *row, some) for row, some in zip(given(model), log_probs, strict=True)]
        assert figures[name] == pytest.approx(-np.concatenate(rows).mean(), abs=1e-3)
    assert figures["perplexity"] == pytest.approx(np.exp(figures["nll"]))
    for step, some in zip(ours["per_step"], kl, strict=True):
        assert step["kl_mean"] == pytest.approx(some.mean(), rel=0.1, abs=2e-5)
    for name in ("by_position", "by_field"):
        assert sum(band["tokens"] for band in ours[name]) == figures["tokens"]
        weighted = sum(band["tokens"] * band["kl_mean"] for band in ours[name])
        assert weighted / figures["tokens"] == pytest.approx(figures["kl_mean"])
    for name in ("nll", "kl_mean", "top1_agreement_pct", "first_command_prob", "perplexity"):
        low, high = ours["intervals"][name]
        assert low <= figures[name] <= high
    assert json.loads((tmp_path / "m.json").read_text()) == ours
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "row.json", "row.jsonl"]


def test_a_model_against_itself(tiny_q4: Path, tmp_path: Path) -> None:
    done = measure(
        tiny_q4, tmp_path / "m.json", base=tiny_q4, replay=ROWS, limit=FEW, loading=Loading(threads=1)
    )
    figures = done["aggregate"]
    assert figures["kl_mean"] == figures["kl_max"] == figures["nll_difference"] == 0
    assert figures["top1_agreement_pct"] == 100
    assert figures["nll"] == figures["base_nll"]
    assert done["intervals"]["kl_mean"] == [0, 0]


def test_every_distinct_token_is_decoded_once(tiny_q4: Path, tmp_path: Path) -> None:
    done = measure(tiny_q4, tmp_path / "m.json", replay=ROWS, loading=Loading(threads=1))
    sequences = [tokens for tokens, _ in given(tiny_q4, 1000)]
    assert done["method"]["tokens_decoded"] == distinct_tokens(sequences) < sum(map(len, sequences))


def test_one_base_pass_serves_several_models(tiny_bf16: Path, tiny_q4: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"replay": ROWS, "limit": 4, "loading": Loading(threads=1)}
    at_once = measure(tiny_q4, tmp_path / "a.json", base=tiny_bf16, keep_base=True, **how)
    kept = tmp_path / "a.json.base-scores"
    other = base_scores(tiny_bf16, tmp_path / "base.scores", **how)
    assert kept.read_bytes() == other.read_bytes()
    for base in (kept, other):
        found = measure(tiny_q4, tmp_path / "b.json", base=base, **how)
        for name in ("aggregate", "per_step", "intervals", "base_sha256"):
            assert found[name] == at_once[name]
    with pytest.raises(ResultError, match=r"was made for another measurement \(other replay rows\)"):
        measure(tiny_q4, tmp_path / "c.json", base=other, replay=ROWS, limit=3, loading=Loading(threads=1))
    with pytest.raises(ResultError, match="--batch was 512, is 64"):
        measure(tiny_q4, tmp_path / "c.json", base=other, **{**how, "loading": Loading(threads=1, batch=64)})
    data = bytearray(other.read_bytes())
    for place in (len(data) // 2, len(data) - 3):
        damaged = bytearray(data)
        damaged[place] ^= 4
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ResultError, match="damaged"):
            measure(tiny_q4, tmp_path / "c.json", base=tmp_path / "damaged", **how)
    (tmp_path / "damaged").write_bytes(data[:-100])
    with pytest.raises(ResultError, match="damaged"):
        measure(tiny_q4, tmp_path / "c.json", base=tmp_path / "damaged", **how)
    # Kept base scores are used again, but never those of another base.
    measure(tiny_q4, tmp_path / "a.json", base=tiny_bf16, keep_base=True, **how)
    (tmp_path / "a.json").unlink()
    with pytest.raises(
        ResultError, match=r"holds the distributions of a base of another run \(another base\)"
    ):
        measure(tiny_q4, tmp_path / "a.json", base=tiny_q4, keep_base=True, **how)
    found = measure(tiny_q4, tmp_path / "a.json", base=tiny_q4, keep_base=True, force=True, **how)
    assert found["aggregate"]["kl_mean"] == 0 and kept.read_bytes() != other.read_bytes()
    assert not (tmp_path / "c.json").exists()


def test_other_vocabularies_are_refused(tiny_q4: Path, smollm2_q4: Path, tmp_path: Path) -> None:
    scores = base_scores(tiny_q4, tmp_path / "scores", replay=ROWS, limit=1, loading=Loading(threads=1))
    for base in (tiny_q4, scores):
        with pytest.raises(ModelFileError, match="vocabulary differs from that of"):
            measure(
                smollm2_q4, tmp_path / "m.json", base=base, replay=ROWS, limit=1, loading=Loading(threads=1)
            )


def test_what_cannot_be_measured(tiny_q4: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    with pytest.raises(ContextError, match="--skip-too-long"):
        measure(tiny_q4, out, replay=ROWS, loading=Loading(context=150, threads=1))
    done = measure(
        tiny_q4,
        out,
        replay=ROWS,
        limit=30,
        chosen=Chosen(skip_too_long=True),
        loading=Loading(context=150, threads=1),
    )
    skipped = done["method"]["skipped_too_long"]
    assert 0 < skipped < 30 and done["aggregate"]["rows"] == 30 - skipped
    with pytest.raises(ResultError, match="is an input"):
        measure(tiny_q4, tiny_q4, replay=ROWS)
    with pytest.raises(EdgeError, match="give either replay rows or a text"):
        measure(tiny_q4, out)
    with pytest.raises(EdgeError, match="GGUF"):
        measure(tiny_q4, out, base=ROWS, replay=ROWS)


def start(*arguments: object) -> command_line.Started:
    return command_line.start(
        *("measure", *arguments, "--threads", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=ROOT,
    )


def wait_for_scores(process: command_line.Started, folder: Path) -> None:
    until = time.monotonic() + 120
    while not any(path.stat().st_size for path in folder.glob(".m.json.base-scores.*.tmp")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle(which: signal.Signals, tiny_bf16: Path, tiny_q4: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    process = start("-m", tiny_q4, "--base", tiny_bf16, "-r", ROWS, "-o", out)
    wait_for_scores(process, tmp_path)
    process.send_signal(which)
    _, told = process.communicate()
    assert not out.exists()
    if which == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted in the base after" in told and "nothing was written" in told
        assert not list(tmp_path.iterdir())
    else:
        assert len(list(tmp_path.iterdir())) == 1  # what it was writing
    measure(tiny_q4, out, replay=ROWS, limit=1, loading=Loading(threads=1))
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_a_text_is_cut_as_llama_perplexity_cuts_it(tiny_q4: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A sentence of some words, <|im_end|> among them.\n" * 80)
    done = measure(
        tiny_q4, tmp_path / "m.json", base=tiny_q4, text=text, chunk=128, limit=3, loading=Loading(threads=1)
    )
    assert done["kind"] == "text" and done["method"]["chunk"] == 128
    assert [step["tokens"] for step in done["per_step"]] == [63, 63, 63]
    assert "by_position" not in done and "first_command_prob" not in done["aggregate"]
    with pytest.raises(EdgeError, match="at least two chunks"):
        measure(tiny_q4, tmp_path / "m.json", text=text, chunk=2048, loading=Loading(threads=1))


def test_agreement_with_llama_perplexity(
    tiny_bf16: Path, tiny_q4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = os.environ.get("EDGE_LLAMA_PERPLEXITY")
    if not binary:
        pytest.skip("EDGE_LLAMA_PERPLEXITY names no llama-perplexity")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from compare_with_llama_perplexity import FIGURES, compare

    rows = compare(Path(binary), tiny_bf16, tiny_q4, chunks=4)
    assert len(rows) == len(FIGURES)
    assert not [row for row in rows if row[3]]


def test_fields_and_first_command() -> None:
    text = 'Hm. {"analysis": "a b", "plan": "p", "commands": [{"keystrokes": "ls\\n", "duration": 0.1}]}'
    pieces = [character.encode() for character in text]
    fields, command = token_fields(text, pieces)
    by_field = {
        name: "".join(c for c, f in zip(text, fields, strict=True) if f == name) for name in set(fields)
    }
    assert by_field["analysis"] == "a b" and by_field["plan"] == "p"
    assert by_field["keystrokes"] == "ls\\n" and by_field["duration"] == "0.1"
    assert by_field["other"].startswith("Hm. ")
    assert text[command.start : command.stop] == 'ls\\n"'
    fields, command = token_fields("no JSON", [b"no ", b"JSON"])
    assert fields == ["other", "other"] and not command


def test_command_line(tiny_bf16: Path, tiny_q4: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    arguments = [
        "measure",
        "-m",
        tiny_q4,
        "--base",
        tiny_bf16,
        "-r",
        ROWS,
        "-o",
        out,
        "--limit",
        2,
        "--threads",
        1,
    ]
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert ran.exit_code == 0, ran.output
    assert "KL divergence, mean" in ran.stdout and str(out) in ran.stdout
    assert json.loads(out.read_text())["measurement"] == 1
    assert CliRunner().invoke(app, ["measure", "-m", str(tiny_q4), "-o", str(out)]).exit_code == 2
