"""edge report --card: huggingface_hub reads the card, and no fact in it is invented.

pytest tests/report/test_report_card.py
"""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import pytest
from conftest import converted
from huggingface_hub import ModelCard
from small_results import FILES, TASKS, digest, result, small_results, trials

from edge.errors import ResultError
from edge.report import words
from edge.report.build import report
from edge.report.collect import collect
from edge.report.model_card import CardFacts, to_card

pytestmark = pytest.mark.slow


def written(folder: Path, files: list[Path], **facts: object) -> str:
    facts.setdefault("path", folder / "README.md")
    report(files, folder / "page.html", files[0], card=CardFacts(**facts), force=True)  # type: ignore[arg-type]
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_hub_library_reads_what_was_written(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    text = written(tmp_path, files, license="apache-2.0", quantized_by="me", tags=("terminal", "gguf"))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "base_model": "owner/small",
        "base_model_relation": "quantized",
        "quantized_by": "me",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "terminal"],
    }
    assert card.content == text
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for line in text.splitlines()
        if line.startswith("| small-") and " MB " in line
        for cells in [line.split("|")]
    }
    assert list(rows) == [f"small-{name}.gguf" for name in FILES]
    assert rows["small-Q4_K_M.gguf"][:3] == ["5.0 MB", "5.00", "0.00400"]
    assert rows["small-Q4_K_M.gguf"][3].startswith("83.3 (")
    assert "It lost 58.33 points of score." in rows["small-Q2_K.gguf"][-1]
    assert rows["small-Q8_0.gguf"][-1].startswith("Take it if it fits into your memory.")
    assert rows["small-Q4_K_M.gguf"][-1].startswith("Take it if Q8_0 does not fit.")
    assert "tasks solved" not in text and "Whether an agent with these files solves whole tasks." in text
    assert "The memory of Q8_0, Q4_K_M and Q2_K." in text and "unknown" not in text
    digests = re.findall(r"^\| small-(\S+)\.gguf +\| `(\w+)`", text, re.MULTILINE)
    assert digests == [(name, digest(name)) for name in FILES]
    assert "edge convert owner/small --quant Q4_K_M --out small-Q4_K_M.gguf" in text
    assert "--replay rows.jsonl --max-tokens 64 --think off --parallel 4 --out small-Q4_K_M.json" in text


def test_unknown_facts_are_said_and_a_base_model_is_needed(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    text = written(tmp_path, files)
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert "license" not in data and "quantized_by" not in data
    assert "The licence is unknown: the files do not name one." in text
    assert "Who quantized the files is unknown" in text
    for path in files[:4]:
        stored = json.loads(path.read_text())
        stored["provenance"]["source"] = "/home/me/small"
        path.write_text(json.dumps(stored))
    with pytest.raises(ResultError, match=r"base model is unknown: .* --base-model OWNER/NAME"):
        written(tmp_path / "other", files)
    assert not (tmp_path / "other").exists()
    assert "base_model: a/b\n" in written(tmp_path, files, base_model="a/b")


def test_files_of_two_base_models_are_refused(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    stored = json.loads(files[2].read_text())
    stored["provenance"]["source"] = "another/one"
    files[2].write_text(json.dumps(stored))
    with pytest.raises(ResultError, match=r"different values \(another/one, owner/small\) for base model"):
        written(tmp_path, files)


def test_solved_shares_have_a_column(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    tried = [trials(tmp_path / f"t-{name}.json", name, lost) for name, lost in (("bf16", 0), ("Q4_K_M", 20))]
    page = tmp_path / "p.html"
    facts = CardFacts(tmp_path / "README.md", license="mit", quantized_by="me")
    report([*files, *tried], page, files[0], card=facts)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    header, _, base, _, q4 = text[text.index("| file") :].splitlines()[:5]
    assert header.split("|")[2].strip() == "tasks solved %"
    assert (
        base.split("|")[2].strip() == "29.8 (21.0 … 40.2)" and q4.split("|")[2].strip() == "6.0 (2.6 … 13.2)"
    )
    assert "- Q4\\_K\\_M: A loss of 23.8 points" in text or "- Q4_K_M: A loss of 23.8 points" in text
    assert "Tasks solved: the percentage of trials in a sandbox" in text
    assert "Whether an agent" not in text and "- The tasks that Q8_0 and Q2_K solve." in text
    again = "edge trial --model small-Q4_K_M.gguf --attempts 1 --max-steps 6 --max-tokens 256 --out trials"
    assert again in text and "trials/small-Q4_K_M.json --reference" in text


def test_a_gguf_gives_its_licence_and_its_memory(tiny_folder: Path, tmp_path: Path) -> None:
    from edge.formats.gguf import model_sha256, read_metadata
    from edge.llama.memory import buffers, read_shape
    from edge.report.words import size

    gguf = converted(tiny_folder, "tiny-terminal-Q2_K.gguf", "Q2_K")
    base, ours = result(tmp_path / "bf16.json", "bf16"), result(tmp_path / "Q2_K.json", "Q2_K")
    stored = json.loads(ours.read_text())
    stored["provenance"]["model_sha256"] = model_sha256(gguf)
    ours.write_text(json.dumps(stored))
    text = written(tmp_path, [base, ours], ggufs=(gguf,), context=2048)
    shape = read_shape(gguf)
    assert "memory at 2,048 tokens" in text
    assert f" {size(shape.weights + buffers(shape, 2048).total)} " in text
    licence = read_metadata(gguf).get("general.license")
    assert ModelCard.load(tmp_path / "README.md").data.get("license") == licence
    with pytest.raises(ResultError, match="no result of the report is about this file"):
        written(tmp_path, [base, result(tmp_path / "Q2_K.json", "Q2_K")], ggufs=(gguf,))


def test_the_command_writes_it_and_refuses_facts_without_a_card(tmp_path: Path) -> None:
    files = small_results(tmp_path)
    card, page = tmp_path / "README.md", tmp_path / "p.html"
    done = command_line.run(
        *("report", *files, "--reference", files[0], "--out", page, "--card", card),
        *("--license", "mit", "--quantized-by", "me", "--tag", "x"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(page), str(card)]
    assert re.search(r"^license: mit$", card.read_text(), re.MULTILINE)
    before = card.read_bytes()
    done = command_line.run("report", *files, "--out", tmp_path / "q.html", "--card", card)
    assert done.returncode == 1 and "not as this report wrote it" in done.stderr
    assert card.read_bytes() == before
    done = command_line.run("report", *files, "--license", "mit", "--out", tmp_path / "q.html")
    assert done.returncode == 2 and "needs --card" in done.stderr


def test_what_is_missing_stands_above_the_tables(tmp_path: Path) -> None:
    """Missing rows, settings that differ, and errors are said on the page, in the short form and on the card."""
    base, ours = result(tmp_path / "a-bf16.json", "bf16"), result(tmp_path / "a-Q4_K_M.json", "Q4_K_M")
    stored = json.loads(ours.read_text())
    stored["per_step"] = [step for step in stored["per_step"] if step["command_f1"] == 1.0]
    del stored["aggregate"]
    stored["engine"]["rows_missing"] = TASKS - len(stored["per_step"])
    stored["per_step"][0]["error"] = "HTTP 500"
    stored["sampling"] |= {"temperature": 0.5, "thinking_mode": "on"}
    ours.write_text(json.dumps({**stored, "complete": False}))
    theirs = json.loads(base.read_text())
    theirs["sampling"]["thinking_mode"] = "off"
    base.write_text(json.dumps(theirs))
    facts = CardFacts(tmp_path / "README.md", base_model="o/small")
    out = tmp_path / "r.html"
    report([base, ours], out, base, markdown=tmp_path / "short.md", card=facts)
    page = html.unescape(out.read_text())
    for text in (page[: page.index("<nav")], (tmp_path / "short.md").read_text(), facts.path.read_text()):
        text = text.replace("\\_", "_")
        assert "Q4_K_M has no prediction for 3 rows; its figures leave them out." in text
        assert "0 steps only in Q4_K_M, 3 steps only in bf16. Scores are over all steps of a file" in text
        assert "Q4_K_M is unfinished: it has 9 steps." in text
        assert "Q4_K_M: 1 answer has an error of a server and a text; edge scored the text." in text
        assert "Besides the model file, the temperature and the thinking mode differ, so that" in text


def test_a_run_with_other_prompts_or_another_checkpoint_is_another_run(tmp_path: Path) -> None:
    base, like = result(tmp_path / "a-bf16.json", "bf16"), result(tmp_path / "a-Q8_0.json", "Q8_0")
    changed = {"Q4_K_M": ("sampling", {"style": "compact"}), "Q2_K": ("provenance", {"source": "owner/big"})}
    others = []
    for name, (field, values) in changed.items():
        others.append(result(tmp_path / f"a-{name}.json", name, style="auto"))
        stored = json.loads(others[-1].read_text())
        stored[field] |= values
        others[-1].write_text(json.dumps(stored))
    result(base, "bf16", style="auto")
    found = collect([base, like, *others], base)
    assert {entry.label: entry.other for entry in found.others} == (
        {"Q4_K_M": "style compact", "Q2_K": "another checkpoint"}
    )


def test_the_commands_have_the_recorded_settings(tmp_path: Path) -> None:
    settings = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "seed": 7,
        "style": "compact",
        "text_share": 0.4,
    }
    more = {**settings, "thinking_mode": "on", "strip_thinking_history": "auto", "max_model_len": 4096}
    files = [result(tmp_path / f"a-{name}.json", name, **more) for name in ("bf16", "Q8_0")]
    for path in files:
        stored = json.loads(path.read_text())
        stored["engine"]["kv_type"] = "q8_0"
        stored["model_path"] = "out/a\n`b`.gguf" if "Q8_0" in path.name else stored["model_path"]
        path.write_text(json.dumps(stored))
    text = written(tmp_path, files)
    (line,) = (line for line in text.splitlines() if line.startswith("edge eval --model small-bf16.gguf"))
    assert line == (
        "edge eval --model small-bf16.gguf --replay rows.jsonl --max-tokens 64 --think off --parallel 4 "
        "--temperature 0.7 --top-p 0.9 --seed 7 --style compact --text-share 0.4 --thinking-mode on --kv-type q8_0 "
        "--out small-bf16.json"
    )
    block = text[text.index("```sh") : text.index("| file ", text.index("```sh"))]
    assert block.count("```") == 2 and "edge eval --model 'a·`b`.gguf'" in block


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [result(tmp_path / f"a-{name}.json", name) for name in ("bf16", "Q8_0", "Q2_K")]
    for folder, path in zip("ab", files[1:], strict=True):
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({**stored, "model_path": f"{folder}/model.gguf"}))
    with pytest.raises(
        ResultError, match=r"Q8_0 and Q2_K are both of a file named model\.gguf: a repository needs"
    ):
        written(tmp_path, files)


def test_the_page_says_what_else_differs_and_what_cannot_be_compared(tmp_path: Path) -> None:
    """One file under two names, a file without steps, a grammar against vLLM, and a reference that is quantized."""

    def stored(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
        return path

    base = result(tmp_path / "a-bf16.json", "bf16")
    ours = result(tmp_path / "a-Q4_K_M.json", "Q4_K_M")
    facts = CardFacts(tmp_path / "README.md", base_model="o/small")

    digest = json.loads(base.read_text())["provenance"]["model_sha256"]
    twin = stored(
        result(tmp_path / "a-twin.json", "Q4_K_M"), lambda v: v["provenance"].update(model_sha256=digest)
    )
    remarks = words.remarks(collect([base, twin], base))
    assert (
        "twin and bf16 are of the same model file: their differences are not those of quantization."
        in remarks
    )

    bare = stored(result(tmp_path / "a-Q8_0.json", "Q8_0"), lambda v: v.pop("per_step"))
    found = collect([base, bare], base)
    assert words.layman(found) == "No result has steps that edge can compare with those of bf16."
    assert "Q8_0 has figures but no steps, so that edge cannot compare it with bf16." in words.remarks(found)

    vllm = stored(
        result(tmp_path / "a-vllm.json", "bf16"),
        lambda v: (
            v.update(provenance={}),
            v["sampling"].pop("constrained"),
            v["sampling"].update(backend="vllm"),
        ),
    )
    [remark] = [text for text in words.remarks(collect([vllm, ours], vllm)) if text.startswith("Besides")]
    assert "the engine (vllm and edge) and the grammar differ" in remark
    asked = stored(vllm, lambda v: v["sampling"].update(structured="json_schema"))
    [remark] = [text for text in words.remarks(collect([asked, ours], asked)) if text.startswith("Besides")]
    assert "grammar" not in remark

    smallest = result(tmp_path / "a-Q2_K.json", "Q2_K")
    card = to_card(collect([ours, smallest], ours), facts)
    assert "The reference of the comparison." in card and "unquantized base" not in card
