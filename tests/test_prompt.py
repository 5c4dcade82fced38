"""Test prompts: templates of GGUFs and checkpoint folders, the fallbacks, and the summary of a result.

Run: .venv/bin/python -m pytest tests/test_prompt.py
"""

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import tokenizers
import transformers
from safetensors.numpy import save_file

from edge.errors import CheckpointError, EdgeError, PromptError
from edge.prompt import (
    PromptSource,
    Rendered,
    check_messages,
    prompt_source,
    read_messages,
    render_prompt,
)
from edge.replay.prepare import template_summary

ROWS = [
    {"role": "system", "content": "Return JSON only."},
    {"role": "user", "content": "  List the files.\n"},
    {"role": "assistant", "content": "<think>\nls\n</think>\n{}"},
    {"role": "tool", "content": "a.py\n"},
]
CHATML = (
    "<|im_start|>system\nReturn JSON only.<|im_end|>\n"
    "<|im_start|>user\n  List the files.\n<|im_end|>\n"
    "<|im_start|>assistant\n<think>\nls\n</think>\n{}<|im_end|>\n"
    "<|im_start|>user\na.py\n<|im_end|>\n"
    "<|im_start|>assistant\n"
)
GEMMA = (
    "<bos><|turn>system\nReturn JSON only.<turn|>\n"
    "<|turn>user\nList the files.<turn|>\n"
    "<|turn>model\n<think>\nls\n</think>\n{}<turn|>\n"
    "<|turn>user\na.py<turn|>\n"
    "<|turn>model\n"
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    ">{{ pad_token }}{{ eos_token }}"
)


def source(template: str | None, architecture: str = "lfm2moe", size_label: str = "") -> PromptSource:
    return PromptSource(template, "<s>", "</s>", architecture, size_label, {"pad_token": "<pad>"})


def test_template_first() -> None:
    rendered = render_prompt(ROWS[:2], source(TEMPLATE))
    assert rendered == Rendered(
        "<s>system:Return JSON only.\nuser:  List the files.\n\n><pad></s>", "chat_template"
    )


@pytest.mark.parametrize(
    "template", [None, "", " \n", "{% for %}", "{{ raise_exception('no system role') }}"]
)
def test_chatml_fallback(template: str | None) -> None:
    rendered = render_prompt(ROWS, source(template))
    assert (rendered.text, rendered.status) == (CHATML, "chatml_fallback")
    # Why the template was not used
    reasons = {"{% for %}": "Expected an expression, got 'end of statement block'"}
    reasons["{{ raise_exception('no system role') }}"] = "no system role"
    assert rendered.reason == reasons.get(template or "", "")


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no tool role') }}"])
@pytest.mark.parametrize("size_label", ["E4B", "E2B", "", "12B", "4.5B"])
@pytest.mark.parametrize("architecture", ["gemma4", "gemma4_text", "Gemma4ForConditionalGeneration"])
def test_gemma_fallback(template: str | None, size_label: str, architecture: str) -> None:
    reason = "no tool role" if template else ""
    rendered = render_prompt(ROWS, source(template, architecture, size_label))
    assert rendered == Rendered(GEMMA, "gemma_fallback", reason)


@pytest.mark.parametrize("size_label", ["31B", "26B-A4B", "26b", "30.7B", "128x0.2B"])
def test_gemma_fallback_of_the_large_models_opens_an_empty_thought(size_label: str) -> None:
    rendered = render_prompt(ROWS, source(None, "gemma4", size_label))
    assert rendered == Rendered(GEMMA + "<|channel>thought\n<channel|>", "gemma_fallback")


@pytest.mark.parametrize(
    ("architecture", "text"), [("gemma4", "False"), ("gemma3", "undefined"), ("llama", "undefined")]
)
def test_gemma_4_is_asked_not_to_think(architecture: str, text: str) -> None:
    template = "{{ enable_thinking if enable_thinking is defined else 'undefined' }}"
    assert render_prompt(ROWS, source(template, architecture, "31B")) == Rendered(text, "chat_template")


def test_fallbacks_write_text_parts_and_refuse_others() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "List "}, "files."]}]
    assert (
        render_prompt(parts, source(None)).text
        == "<|im_start|>user\nList files.<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(PromptError, match="a user message has a part that is not text"):
        render_prompt([{"role": "user", "content": [{"type": "image", "image": "x"}]}], source(None))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "at least one"),
        ("List files", "at least one"),
        ([ROWS[0], "x"], r"messages\[1\] is 'x'; it must be an object"),
        ([{"content": "x"}], r"messages\[0\].role is missing"),
        ([{"role": 3, "content": "x"}], r"messages\[0\].role is 3; it must be a non-empty string"),
        ([{"role": "user"}], r"messages\[0\] is an object; it must be an object with content or tool_calls"),
        (
            [{"role": "user", "content": 3}],
            r"messages\[0\].content is 3; it must be a string, a list or null",
        ),
    ],
)
def test_bad_messages(value: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        check_messages(value)
    with pytest.raises(PromptError, match=reason):
        render_prompt(value, source(None))


def test_read_messages(tmp_path: Path) -> None:
    file = tmp_path / "messages.json"
    for content in (ROWS, {"messages": ROWS, "other": 1}):
        file.write_text(json.dumps(content), encoding="utf-8")
        assert read_messages(file) == ROWS
    for data, reason in [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}", "at least one"),
        (b'[{"role": "user"}]', "content or tool_calls"),
    ]:
        file.write_bytes(data)
        with pytest.raises(PromptError, match=reason) as caught:
            read_messages(file)
        assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    with pytest.raises(PromptError, match="No such file"):
        read_messages(tmp_path / "none.json")


# Where a checkpoint folder can have its template: files to add, and the chat_template in its config.
PLACES: dict[str, tuple[dict[str, str], Any]] = {
    "in the config": ({}, TEMPLATE),
    "in a file": ({"chat_template.jinja": TEMPLATE}, None),
    "file before config": ({"chat_template.jinja": TEMPLATE}, "other"),
    "named list": (
        {},
        [{"name": "tool_use", "template": "other"}, {"name": "default", "template": TEMPLATE}],
    ),
    "named list without default": (
        {},
        [{"name": "tool_use", "template": "other"}, {"name": "x", "template": "y"}],
    ),
    "additional files": (
        {"chat_template.jinja": TEMPLATE, "additional_chat_templates/tool_use.jinja": "other"},
        None,
    ),
    "processor file": ({"chat_template.json": json.dumps({"chat_template": "other"})}, TEMPLATE),
    "additional files only": ({"additional_chat_templates/tool_use.jinja": "other"}, TEMPLATE),
    "none": ({}, None),
    "line ends": ({"chat_template.jinja": TEMPLATE + "{% if true %}\n  x\n{% endif %}\n"}, None),
}


def checkpoint_folder(folder: Path, place: str, **special_tokens: Any) -> Path:
    vocabulary = {"a": 0, "<s>": 1, "</s>": 2, "<pad>": 3}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special_tokens).save_pretrained(folder)
    files, configured = PLACES[place]
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config_file.write_text(
        json.dumps(config | ({"chat_template": configured} if configured else {})), encoding="utf-8"
    )
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "lfm2_moe"}', encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "tokens", [{}, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}], ids=["none", "all"]
)
@pytest.mark.parametrize("place", PLACES)
def test_folder_renders_as_transformers_loads_it(tmp_path: Path, place: str, tokens: dict[str, str]) -> None:
    folder = checkpoint_folder(tmp_path, place, **tokens)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    rendered = render_prompt(ROWS, prompt_source(folder))
    try:
        expected = reference.apply_chat_template(ROWS, tokenize=False, add_generation_prompt=True)
    except ValueError:
        assert place in ("none", "named list without default", "additional files only")
        assert rendered == Rendered(CHATML, "chatml_fallback")
    else:
        assert rendered == Rendered(expected, "chat_template")


def test_folder_with_tokens_as_objects_and_in_the_old_map(tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path, "in the config")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"eos_token": {"content": "</s>", "__type": "AddedToken"}, "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    found = prompt_source(folder)
    assert (found.bos_token, found.eos_token, found.architecture) == (None, "</s>", "lfm2_moe")
    config.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}}', encoding="utf-8")
    assert prompt_source(folder).bos_token == "<s>"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"\xff", b"[" * 100_000], ids=["cut", "list", "not UTF-8", "deep"]
)
def test_damaged_folder(tmp_path: Path, name: str, data: bytes) -> None:
    folder = checkpoint_folder(tmp_path, "in the config")
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name) as caught:
        prompt_source(folder)
    assert "\n" not in str(caught.value)


def test_gemma_folder_takes_its_size_from_its_tensors(tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path, "none")
    (folder / "config.json").write_text('{"model_type": "gemma4"}', encoding="utf-8")
    save_file({"a": numpy.zeros((2, 3), numpy.float32)}, folder / "model-1.safetensors")
    assert render_prompt(ROWS, prompt_source(folder)).text == GEMMA
    # A header with 31 billion parameters, and a sparse file of that size; edge reads only headers.
    header = json.dumps(
        {"w": {"dtype": "BF16", "shape": [31_000, 1_000_000], "data_offsets": [0, 62 * 10**9]}}
    ).encode()
    (folder / "model-2.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(folder / "model-2.safetensors", 8 + len(header) + 62 * 10**9)
    assert render_prompt(ROWS, prompt_source(folder)).text == GEMMA + "<|channel>thought\n<channel|>"
    (folder / "model-2.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors: truncated, or not a safetensors file"):
        prompt_source(folder)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(PromptError, match=r"is not a checkpoint: it has none of config\.json") as caught:
        prompt_source(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("template", [None, TEMPLATE, "{{ '\ud800' }}"])
def test_text_that_is_not_utf8(template: str | None) -> None:
    """Python represents bytes of a command line that are not UTF-8 as halves of surrogate pairs."""
    with pytest.raises(PromptError, match=r"messages\[1\] is not UTF-8 text"):
        render_prompt([ROWS[0], {"role": "user", "content": "List \udcff"}], source(template))
    with pytest.raises(PromptError, match=r"messages\[0\] is not UTF-8 text"):
        check_messages([{"role": "user", "content": [{"type": "text", "text": "\udcff"}]}])


def gguf_file(path: Path, architecture: str, template: str | None, size_label: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_size_label(size_label)
    writer.add_context_length(128)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "<s>", "</s>"])
    writer.add_bos_token_id(1)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("token_embd.weight", numpy.zeros((3, 32), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf(tmp_path: Path) -> None:
    named_otherwise = gguf_file(tmp_path / "llama-7b.gguf", "gemma4", None, "26B-A4B")
    assert render_prompt(ROWS, prompt_source(named_otherwise)).text == GEMMA + "<|channel>thought\n<channel|>"
    named_like_gemma = gguf_file(tmp_path / "gemma-4-31b.gguf", "llama", None, "26B")
    assert render_prompt(ROWS, prompt_source(named_like_gemma)) == Rendered(CHATML, "chatml_fallback")
    with_template = gguf_file(tmp_path / "x.gguf", "lfm2moe", TEMPLATE, "8.3B")
    expected = "<s>system:Return JSON only.\n>"
    assert render_prompt(ROWS[:1], prompt_source(with_template)) == Rendered(expected, "chat_template")
    with pytest.raises(EdgeError):
        prompt_source(tmp_path / "none.gguf")


def test_template_summary() -> None:
    assert template_summary(["chat_template"] * 200, [*range(200, 0, -1)]) == {
        "template_status": "chat_template",
        "template_status_counts": {"chat_template": 200},
        "rank_eligible": True,
        "row_count": 200,
        "prompt_tokens_min": 1,
        "prompt_tokens_p50": 100,
        "prompt_tokens_p95": 190,
        "prompt_tokens_p99": 198,
        "prompt_tokens_max": 200,
    }
    mixed = template_summary(["chat_template", "chatml_fallback", "chat_template"], [5, 5, 5])
    assert mixed["template_status"] == "mixed" and not mixed["rank_eligible"]
    assert mixed["template_status_counts"] == {"chat_template": 2, "chatml_fallback": 1}
    assert not template_summary(["gemma_fallback"], [5])["rank_eligible"]
    assert not template_summary([], [])["rank_eligible"]
