"""Tokens that only tokenizer_config.json, added_tokens.json or special_tokens_map.json name: as transformers has them.

pytest tests/conversion/test_added_tokens.py
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_tokenizers import N_VOCAB
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from edge.conversion.added_tokens import assemble
from edge.convert import convert
from edge.errors import ConversionError
from edge.formats.checkpoint import open_checkpoint
from edge.llama.vocabulary import file_vocabulary

TOOL = "<|tool_obs|>"
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
TEXT = f"ls\n{TOOL}total 48\n{TOOL}"


@pytest.fixture
def folder(random_llama_folder: Path, tmp_path: Path) -> Path:
    """A small checkpoint whose model has eight rows more than tokenizer.json has tokens."""
    path = Path(shutil.copytree(random_llama_folder, tmp_path / "model"))
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    last = {i: text for text, i in tokenizer["model"]["vocab"].items() if i >= N_VOCAB - 8}
    listed = {token["content"] for token in tokenizer["added_tokens"]}
    for text in set(last.values()) - listed:
        del tokenizer["model"]["vocab"][text]
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < N_VOCAB - 8]
    for text in set(last.values()) & listed:
        tokenizer["model"]["vocab"].pop(text, None)
    tokenizer["model"]["merges"] = [
        merge for merge in tokenizer["model"]["merges"] if "".join(merge) in tokenizer["model"]["vocab"]
    ]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((path / "tokenizer_config.json").read_text())
    kept = {name: config[name] for name in ("bos_token", "eos_token")}
    (path / "tokenizer_config.json").write_text(json.dumps(kept))
    (path / "special_tokens_map.json").unlink(missing_ok=True)
    return path


def write(folder: Path, name: str, value: dict[str, Any]) -> None:
    """Add to a JSON file, or make it."""
    file = folder / name
    old = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**old, **value}))


def converted(folder: Path, out: Path) -> tuple[dict[str, int], dict[str, int], list[int], tuple[str, ...]]:
    """Ids and types of a GGUF's tokens, how llama.cpp reads TEXT, and the notes."""
    done = convert(folder, quant="BF16", out=out)
    fields = GGUFReader(out).fields
    texts = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    with file_vocabulary(out) as vocabulary:
        ids = vocabulary.encode(TEXT)
    return (
        {text: i for i, text in enumerate(texts)},
        dict(zip(texts, types, strict=True)),
        ids,
        done.warnings,
    )


NEXT = N_VOCAB - 8
SPECIAL = {"content": TOOL, **FLAGS, "special": True}
FILES: dict[str, tuple[dict[str, dict[str, Any]], TokenType]] = {
    "decoder": (
        {"tokenizer_config.json": {"added_tokens_decoder": {str(NEXT): SPECIAL}}},
        TokenType.CONTROL,
    ),
    "user's token": (
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {str(NEXT): {**SPECIAL, "content": "tool_obs", "special": False}}
            }
        },
        TokenType.USER_DEFINED,
    ),
    "added_tokens.json": ({"added_tokens.json": {TOOL: NEXT}}, TokenType.CONTROL),
    "special_tokens_map.json": ({"special_tokens_map.json": {"pad_token": TOOL}}, TokenType.CONTROL),
    "named": (
        {"tokenizer_config.json": {"pad_token": {"__type": "AddedToken", **SPECIAL}}},
        TokenType.CONTROL,
    ),
    "additional": ({"tokenizer_config.json": {"additional_special_tokens": [TOOL]}}, TokenType.CONTROL),
    "own name": ({"tokenizer_config.json": {"tool_token": TOOL}}, TokenType.CONTROL),
    "a model's own": (
        {"tokenizer_config.json": {"model_specific_special_tokens": {"tool_token": TOOL}}},
        TokenType.CONTROL,
    ),
    "a name for it": ({"tokenizer_config.json": {"extra_special_tokens": {"tool": TOOL}}}, TokenType.CONTROL),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_token_of_another_file(name: str, folder: Path, tmp_path: Path) -> None:
    files, kind = FILES[name]
    for file, value in files.items():
        write(folder, file, value)
    content = "tool_obs" if name == "user's token" else TOOL
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    assert reference.convert_tokens_to_ids(content) == NEXT
    ids, types, read, notes = converted(folder, tmp_path / "m.gguf")
    assert ids[content] == NEXT and types[content] == kind
    assert read == reference.encode(TEXT, add_special_tokens=False)
    assert not any(content in note for note in notes)


def test_an_id_that_transformers_does_not_give(folder: Path, tmp_path: Path) -> None:
    """transformers numbers new tokens itself: edge follows it, and says so."""
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": {str(NEXT + 3): SPECIAL}})
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    ids, _, read, notes = converted(folder, tmp_path / "m.gguf")
    assert ids[TOOL] == reference.convert_tokens_to_ids(TOOL) == NEXT
    assert read == reference.encode(TEXT, add_special_tokens=False)
    assert any(f"{TOOL!r} the id {NEXT + 3}; edge gives it {NEXT}" in note for note in notes)


def test_an_id_that_the_tokenizers_package_does_not_give(folder: Path, tmp_path: Path) -> None:
    """A token that somebody wrote into tokenizer.json with a free id: it gets the next one."""
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["added_tokens"].append({**SPECIAL, "id": NEXT + 5})
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    ids, types, read, notes = converted(folder, tmp_path / "m.gguf")
    assert ids[TOOL] == reference.convert_tokens_to_ids(TOOL) == NEXT and types[TOOL] == TokenType.CONTROL
    assert read == reference.encode(TEXT, add_special_tokens=False)
    assert any(f"({TOOL!r}: {NEXT + 5}, not {NEXT})" in note for note in notes)


def test_a_template_that_writes_a_token_without_a_row(folder: Path, tmp_path: Path) -> None:
    """transformers stops at such a prompt; llama.cpp would split the text."""
    full = {str(NEXT + i): {**SPECIAL, "content": f"<|new{i}|>"} for i in range(9)}
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": full})
    for template, found in (("<|new8|>", True), ("<|new7|>", False)):
        (folder / "chat_template.jinja").write_text(f"{{{{ messages[0].content }}}}{template}")
        notes = convert(folder, quant="BF16", out=tmp_path / "m.gguf", force=True).warnings
        assert any("the chat template writes '<|new8|>'" in note for note in notes) is found


def test_names_without_a_row(folder: Path, tmp_path: Path) -> None:
    """A token that was added without resizing the model is left out, with a note; config.json's number counts."""
    full = {str(NEXT + i): {**SPECIAL, "content": f"<|new{i}|>"} for i in range(8)}
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**config, "pad_token_id": 3})
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": full, "pad_token": "[PAD]"})
    ids, _, _, notes = converted(folder, tmp_path / "m.gguf")
    assert "[PAD]" not in ids and ids["<|new7|>"] == N_VOCAB - 1
    assert any(f"'[PAD]' (id {N_VOCAB}), for which the model has no row" in note for note in notes)
    assert any(
        "its pad_token '[PAD]' is not in the vocabulary; the GGUF uses pad_token_id 3" in note
        for note in notes
    )


@pytest.mark.parametrize(
    ("file", "value", "problem"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "added_tokens_decoder is not a map"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": SPECIAL}}, "'x', which is not a token id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": SPECIAL}}, "'-1', which is not a token id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": "x"}}, "holds a malformed token"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": 1}}}, "holds a malformed token"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"7": {**SPECIAL, "lstrip": 2}}},
            "malformed token",
        ),
        ("tokenizer_config.json", {"pad_token": {"content": "x", "lstrip": "y"}}, "holds a malformed token"),
        ("added_tokens.json", {"x": "y"}, "added_tokens.json: the map holds 'y'"),
        ("added_tokens.json", {"x": 1.5}, "added_tokens.json: the map holds '1.5'"),
    ],
)
def test_malformed_files_are_one_line(file: str, value: dict[str, Any], problem: str, folder: Path) -> None:
    write(folder, file, value)
    with pytest.raises(ConversionError) as caught:
        convert(folder, quant="BF16", out=folder / "m.gguf")
    assert problem in str(caught.value) and "\n" not in str(caught.value)


TEXTS = st.sampled_from(["<a>", "<b>", "<|c|>", "the", "<s>", "</s>", "<|pad|>", "x y", "<think>"])
TOKENS = st.builds(
    lambda content, special, lstrip: {**FLAGS, "content": content, "special": special, "lstrip": lstrip},
    TEXTS,
    st.booleans(),
    st.booleans(),
)
NAMES = st.sampled_from(["bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "image_token"])
OWN = st.sampled_from(["tool_token", "boi_token"])
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "added_tokens_decoder": st.dictionaries(st.integers(0, N_VOCAB + 2).map(str), TOKENS, max_size=4),
        "additional_special_tokens": st.lists(TEXTS, max_size=3),
        "extra_special_tokens": st.lists(TEXTS, max_size=2) | st.dictionaries(OWN, TEXTS, max_size=2),
        "names": st.dictionaries(NAMES, TEXTS, max_size=4),
    },
)
MAPS = st.fixed_dictionaries(
    {},
    optional={
        "additional_special_tokens": st.lists(TEXTS, max_size=2),
        "extra_special_tokens": st.lists(TEXTS, max_size=2) | st.dictionaries(OWN, TEXTS, max_size=2),
        "pad_token": TEXTS,
        "eos_token": TOKENS.map(lambda token: {key: token[key] for key in ("content", "lstrip")}),
    },
)


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=CONFIGS, special=MAPS, encoder=st.dictionaries(TEXTS, st.integers(0, N_VOCAB + 2), max_size=3))
def test_any_files_give_the_tokens_of_transformers(
    config: dict[str, Any], special: dict[str, Any], encoder: dict[str, int], folder: Path
) -> None:
    config = {**config, **config.pop("names", {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "added_tokens.json").write_text(json.dumps(encoder))
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    backend: Tokenizer = reference.backend_tokenizer
    assembled = assemble(open_checkpoint(folder), 1 << 20).tokenizer
    wanted = {i: repr(token) for i, token in backend.get_added_tokens_decoder().items()}
    assert {i: repr(token) for i, token in assembled.get_added_tokens_decoder().items()} == wanted
    assert assembled.get_vocab() == backend.get_vocab()
    within = assemble(open_checkpoint(folder), N_VOCAB)
    beyond = {text: i for text, i in backend.get_vocab().items() if i >= N_VOCAB}
    assert set(within.left_out) == beyond.keys()
    assert within.tokenizer.get_vocab() == {text: i for text, i in backend.get_vocab().items() if i < N_VOCAB}
