"""Llama 2's tokenizer as transformers 5 saves it: a Metaspace, whose spaces llama.cpp adds on some texts only.

pytest tests/conversion/test_space_prefix.py
"""

import json
import shutil
from pathlib import Path
from typing import Any

import make_tokenizers
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_tokenizers import N_VOCAB
from transformers import AutoTokenizer

from edge.conversion.space_prefix import SpacePrefix
from edge.conversion.tokenizer import make_vocabulary
from edge.conversion.verify import compare_with_source
from edge.convert import convert
from edge.errors import ConversionError
from edge.formats.checkpoint import open_checkpoint
from edge.llama.vocabulary import file_vocabulary

LLAMA2 = make_tokenizers.MISTRAL_TEMPLATE
# Mistral v0.3's: control tokens, then a space, then the message
MISTRAL3 = LLAMA2.replace("' [/INST]'", "'[/INST]'").replace(
    "{{ message['content']", "{{ ' ' + message['content']"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# A begin with the BOS, then what no setting of llama.cpp does: once a space, once none.
MIXED = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}</s> {{ message['content'] }}{% endfor %}"


@pytest.fixture
def folder(random_llama_folder: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(random_llama_folder, tmp_path / "model"))
    make_tokenizers.mistral(path)
    return path


def change_json(path: Path, **values: Any) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stored, **values}), encoding="utf-8")


def saved_again(folder: Path, *, legacy: bool, template: str | None, control: bool = False) -> Any:
    """Save the tokenizer with transformers 5; `control`: [INST] and [/INST] are special tokens, as in Mistral v0.3."""
    if not control:
        stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        kept = [token for token in stored["added_tokens"] if "INST" not in token["content"]]
        change_json(folder / "tokenizer.json", added_tokens=kept)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("added_tokens_decoder")
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": legacy}))
    (folder / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["normalizer"] is None
    assert stored["pre_tokenizer"]["prepend_scheme"] == ("always" if legacy else "first")
    return (
        tokenizer  # not read again: transformers does not save `legacy`, and would read `always` as `first`
    )


CHAT = [{"role": role, "content": "ls -la  x\n"} for role in ("user", "assistant", "user")]


@pytest.mark.parametrize(
    ("legacy", "template", "control", "adds"),
    [
        (False, LLAMA2, False, False),
        (True, LLAMA2, False, True),
        (False, MISTRAL3, True, False),
        (True, MISTRAL3, True, False),
        (True, ZEPHYR, False, True),
        (False, None, False, False),
        (True, None, False, True),
    ],
)
def test_prompts_have_the_tokens_of_transformers(
    legacy: bool, template: str | None, control: bool, adds: bool, folder: Path, tmp_path: Path
) -> None:
    judge = saved_again(folder, legacy=legacy, template=template, control=control)
    done = convert(folder, quant="BF16", out=tmp_path / "x.gguf", threads=1)
    assert make_vocabulary(open_checkpoint(folder), N_VOCAB).add_space_prefix == adds
    [note] = [line for line in done.warnings if "does not add spaces as this tokenizer does" in line]
    assert f"(Metaspace, {'always' if legacy else 'first'})" in note
    assert not any("prompts that the chat template writes have other" in line for line in done.warnings)
    other = [line for line in done.warnings if "transformers 5 builds the tokenizer from its class" in line]
    assert bool(other) == legacy  # tokenizer.json says `always`, and transformers would build `first`
    assert not compare_with_source(done.path, folder).different
    text = "<s>[INST] ls -la  x\n</s>"
    if template is not None:
        text = judge.apply_chat_template(CHAT, tokenize=False)
    with file_vocabulary(done.path) as vocabulary:
        assert vocabulary.encode(text) == judge(text, add_special_tokens=False).input_ids


def test_prompts_that_do_not_begin_with_the_bos(folder: Path, tmp_path: Path) -> None:
    """`first` before a template that writes no BOS: only a note, since no setting is right."""
    saved_again(folder, legacy=False, template=ZEPHYR)
    done = convert(folder, quant="BF16", out=tmp_path / "x.gguf", threads=1)
    [note] = [line for line in done.warnings if "prompts that the chat template writes have other" in line]
    assert note.startswith("3 of 3 prompts")


def test_prompts_that_begin_with_the_bos_and_differ(folder: Path, tmp_path: Path) -> None:
    saved_again(folder, legacy=True, template=MIXED)
    with pytest.raises(ConversionError, match=r"llama.cpp tokenizes differently"):
        convert(folder, quant="BF16", out=tmp_path / "x.gguf", threads=1)


def test_a_metaspace_that_splits_words(folder: Path, tmp_path: Path) -> None:
    """With `split`, no token holds two spaces; llama.cpp makes such tokens from its merges."""
    saved_again(folder, legacy=False, template=LLAMA2)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, split = stored["model"], {**stored["pre_tokenizer"], "split": True}
    change_json(folder / "tokenizer.json", pre_tokenizer=split)
    convert(folder, quant="BF16", out=tmp_path / "x.gguf", threads=1)
    rare = next(text for text in reversed(model["vocab"]) if len(text) == 1 and text != "▁")
    model["vocab"]["▁▁"] = model["vocab"].pop(rare)
    model["merges"] = [["▁", "▁"], *(pair for pair in model["merges"] if rare not in "".join(pair))]
    change_json(folder / "tokenizer.json", pre_tokenizer=split, model=model)
    with pytest.raises(ConversionError, match=r"llama.cpp tokenizes differently"):
        convert(folder, quant="BF16", out=tmp_path / "y.gguf", threads=1)


def test_one_more_space_as_sentencepiece_adds_it(folder: Path, tmp_path: Path) -> None:
    """transformers writes this normalizer from a tokenizer.model: then all texts are equal."""
    saved_again(folder, legacy=True, template=LLAMA2)
    steps = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    steps.append({"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"})
    change_json(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": steps})
    vocabulary = make_vocabulary(open_checkpoint(folder), N_VOCAB)
    assert vocabulary.space == SpacePrefix("exact", True)
    convert(folder, quant="BF16", out=tmp_path / "x.gguf", threads=1)
    steps[-1]["pattern"] = {"Regex": "(a+)+$"}
    change_json(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": steps})
    with pytest.raises(ConversionError, match=r"llama.cpp's SentencePiece model has no"):
        convert(folder, quant="BF16", out=tmp_path / "x.gguf", threads=1)


# --- the exact set of texts that both tokenize alike ---


@pytest.fixture(scope="module")
def pairs(
    random_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[bool, bool], Any]:
    """For each scheme and each value of the switch, transformers' tokenizer and a GGUF."""
    found = {}
    for legacy in (True, False):
        for adds in (True, False):
            folder = tmp_path_factory.mktemp("pair") / "model"
            shutil.copytree(random_llama_folder, folder)
            make_tokenizers.mistral(folder)
            # A template that is right with one value only.
            begin = "{{ bos_token }}" if adds == legacy else "{{ bos_token + ' ' }}" if legacy else ""
            template = begin + "{% for message in messages %}{{ message['content'] }}{% endfor %}"
            judge = saved_again(folder, legacy=legacy, template=template)
            out = convert(folder, quant="BF16", out=folder / "x.gguf", threads=1).path
            assert make_vocabulary(open_checkpoint(folder), N_VOCAB).add_space_prefix == adds
            found[legacy, adds] = judge, out
    return found


@pytest.mark.slow
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(["<s>", "</s>", " ", "  ", "▁", "a", "ls", "\n", "한"]), max_size=8))
def test_the_texts_that_both_tokenize_alike(
    legacy: bool, adds: bool, parts: list[str], pairs: dict[tuple[bool, bool], Any]
) -> None:
    """They differ exactly where the rule of edge says so: what the note tells is neither too much nor too little."""
    text = "".join(parts)
    judge, out = pairs[legacy, adds]
    agree = True
    begin = True
    for fragment in text.replace("</s>", "<s>").split("<s>"):
        wanted = (legacy or begin) and not fragment.startswith((" ", "▁"))
        agree = agree and (not fragment or wanted == adds)
        begin = False
    with file_vocabulary(out) as vocabulary:
        assert (vocabulary.encode(text) == judge(text, add_special_tokens=False).input_ids) == agree
