"""The tokenizer beside an adapter, and added tokens without a row: what transformers gives, or one error line.

pytest tests/conversion/test_adapter_tokenizer.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_random
import pytest
from make_adapter import make_adapter
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from edge.conversion.tokenizer import make_vocabulary
from edge.conversion.verify import compare_with_source
from edge.convert import convert, convert_adapter
from edge.errors import CheckpointError, ConversionError
from edge.formats.checkpoint import open_checkpoint
from edge.formats.gguf import read_model_file
from edge.formats.lora import merge_lora
from edge.llama.vocabulary import file_vocabulary

NEW = ["<|tool_obs|>", "<|agent_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|agent_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 with 27 rows after the last token, as published ones have."""
    folder = tmp_path_factory.mktemp("qwen3")
    make_random.qwen3(folder)
    return folder


@pytest.fixture
def base(qwen3: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(qwen3, tmp_path / "base"))


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def tuned(base: Path, folder: Path) -> Path:
    """An adapter whose tokenizer transformers saved: two special tokens in padded rows, a new EOS and template."""
    make_adapter(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": NEW[:1]})
    tokenizer.add_special_tokens({"eos_token": NEW[1]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def as_transformers(path: Path, folder: Path) -> None:
    """llama.cpp's tokens of a GGUF are those of transformers for a folder."""
    judge = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "ls -la"}, {"role": "user", "content": f"{NEW[0]} none"}]
    texts = ["ls", f"{NEW[0]}\nfiles{NEW[1]}", judge.apply_chat_template(chat, tokenize=False)]
    with file_vocabulary(path) as vocabulary:
        for text in texts:
            assert vocabulary.encode(text) == judge(text, add_special_tokens=False).input_ids
        assert judge.eos_token_id in vocabulary.end_ids
        assert [vocabulary.piece(judge.convert_tokens_to_ids(text)) for text in NEW] == [b"", b""]
    model = read_model_file(path)
    assert (model.eos_token, model.chat_template) == (judge.eos_token, judge.chat_template)


def test_the_adapters_tokenizer_is_that_of_transformers(base: Path, tmp_path: Path) -> None:
    adapter = tuned(base, tmp_path / "tuned")
    done = convert(base, quant="BF16", lora=adapter, out=tmp_path / "x.gguf", threads=1)
    as_transformers(done.path, adapter)
    [note] = [line for line in done.warnings if "tokenizer is the adapter's" in line]
    assert "2 further tokens ('<|tool_obs|>', '<|agent_end|>')" in note
    assert "eos is '<|agent_end|>', not '<|im_end|>'" in note
    assert not compare_with_source(done.path, base, lora=adapter).different
    plain = convert(base, quant="BF16", out=tmp_path / "plain.gguf", threads=1)
    assert not any("adapter" in line for line in plain.warnings)


def test_the_adapters_generation_settings(base: Path, tmp_path: Path) -> None:
    adapter = tuned(base, tmp_path / "tuned")
    ids = [AutoTokenizer.from_pretrained(adapter).convert_tokens_to_ids(text) for text in NEW]
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    done = convert(base, quant="BF16", lora=adapter, out=tmp_path / "x.gguf", threads=1)
    assert set(read_model_file(done.path).end_ids) >= set(ids)


def test_a_tokenizer_like_the_bases_says_nothing(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "tuned")
    AutoTokenizer.from_pretrained(base).save_pretrained(adapter)
    tokenizer = Tokenizer.from_file(str(adapter / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(100)
    tokenizer.save(str(adapter / "tokenizer.json"))
    done = convert(base, quant="BF16", lora=adapter, out=tmp_path / "x.gguf", threads=1)
    assert not any("tokenizer" in line for line in done.warnings)


def test_two_adapters_in_turn(base: Path, tmp_path: Path) -> None:
    """Each tokenizer extends the one before; the second knows the tokens of the first."""
    first = tuned(base, tmp_path / "first")
    second = make_adapter(base, tmp_path / "second", seed=9)
    tokenizer = AutoTokenizer.from_pretrained(first)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|third|>"]})
    tokenizer.save_pretrained(second)
    both = merge_lora(merge_lora(open_checkpoint(base), first), second)
    vocabulary = make_vocabulary(both, 1024)
    assert {*NEW, "<|third|>"} <= set(vocabulary.tokens)
    assert "1 further token ('<|third|>')" in vocabulary.warnings[0]
    with pytest.raises(ConversionError, match=r"lacks '<\|third\|>'"):
        make_vocabulary(merge_lora(both, first), 1024)


OLDER = {
    "added_tokens.json": {NEW[0]: 997, NEW[1]: 998},
    "special_tokens_map.json": {"additional_special_tokens": NEW},
}


def test_only_a_configuration_beside_the_adapter(base: Path, tmp_path: Path) -> None:
    """Without a tokenizer.json the names of the adapter count, and those that it does not name stay."""
    adapter = make_adapter(base, tmp_path / "tuned")
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    done = convert(base, quant="BF16", lora=adapter, out=tmp_path / "x.gguf", threads=1)
    assert read_model_file(done.path).eos_token == "<|endoftext|>"
    assert any("eos is '<|endoftext|>', not '<|im_end|>'" in line for line in done.warnings)
    for name, files in OLDER.items():
        (adapter / name).write_text(json.dumps(files))
    done = convert(base, quant="BF16", lora=adapter, out=tmp_path / "y.gguf", threads=1)
    assert any("2 further tokens ('<|tool_obs|>', '<|agent_end|>')" in line for line in done.warnings)
    with file_vocabulary(done.path) as vocabulary:
        ids = vocabulary.encode(f"{NEW[0]}\nls{NEW[1]}")
        assert (ids[0], ids[-1]) == (997, 998)
        assert [vocabulary.piece(i) for i in (997, 998)] == [b"", b""]
    (adapter / "tokenizer.model").write_bytes(b"x")
    notes = merge_lora(open_checkpoint(base), adapter).notes
    assert any("tokenizer.model but no tokenizer.json" in note for note in notes)


def other_token(tokenizer: dict[str, Any]) -> None:
    """Two tokens change their places, as in another model's vocabulary."""
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def fewer_tokens(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:-3]


def other_merges(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"].reverse()


def other_regex(tokenizer: dict[str, Any]) -> None:
    pattern = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    pattern["Regex"] = pattern["Regex"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def past_the_rows(tokenizer: dict[str, Any]) -> None:
    last = tokenizer["added_tokens"][-1]
    further = [{**last, "id": i, "content": f"<|more{i}|>"} for i in range(last["id"] + 1, 1026)]
    tokenizer["added_tokens"] += further


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (other_token, "is 'b', but the base's id"),
        (fewer_tokens, "but the base's id 996 is '</think>'"),
        (other_merges, "splits texts in another way than the base's"),
        (other_regex, "splits texts in another way than the base's"),
        (past_the_rows, "'<|more1024|>' is past the 1,024 rows of the embeddings"),
    ],
)
def test_what_does_not_extend_the_base_is_refused(
    change: Callable[[dict[str, Any]], object], problem: str, base: Path, tmp_path: Path
) -> None:
    adapter = tuned(base, tmp_path / "tuned")
    change_json(adapter / "tokenizer.json", change)
    for call in (
        lambda: convert(base, quant="BF16", lora=adapter, out=tmp_path / "x.gguf", check=False, threads=1),
        lambda: convert_adapter(adapter, base, out=tmp_path / "a.gguf"),
    ):
        with pytest.raises(ConversionError) as caught:
            call()
        assert problem in str(caught.value)
        assert str(adapter / "tokenizer.json") in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.gguf"))


def test_a_damaged_tokenizer_is_one_line(base: Path, tmp_path: Path) -> None:
    adapter = tuned(base, tmp_path / "tuned")
    (adapter / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tuned/tokenizer.json: cannot be read as JSON"):
        convert(base, quant="BF16", lora=adapter, out=tmp_path / "x.gguf", threads=1)


def test_an_adapter_as_a_gguf_says_what_it_cannot_hold(base: Path, tmp_path: Path) -> None:
    done = convert_adapter(tuned(base, tmp_path / "tuned"), base, out=tmp_path / "a.gguf")
    [note] = [line for line in done.warnings if "has another tokenizer than the base" in line]
    assert "2 further tokens" in note
    assert "merge it with" in note


# --- added tokens without a row ---


def image_token(in_vocabulary: bool) -> Callable[[dict[str, Any]], None]:
    """Gemma 3's token for images, one past the rows of the text models."""

    def change(tokenizer: dict[str, Any]) -> None:
        token = {**tokenizer["added_tokens"][0], "id": 1024, "content": "<image_soft_token>"}
        tokenizer["added_tokens"].append(token)
        if in_vocabulary:
            tokenizer["model"]["vocab"]["<image_soft_token>"] = 1024

    return change


@pytest.mark.parametrize("in_vocabulary", [True, False])
def test_gemma3_as_published(in_vocabulary: bool, tmp_path: Path) -> None:
    """The token is left out with a note; all others stay as they are for transformers."""
    make_random.gemma3(tmp_path / "model")
    change_json(tmp_path / "model" / "tokenizer.json", image_token(in_vocabulary))
    done = convert(tmp_path / "model", quant="BF16", out=tmp_path / "x.gguf", threads=1)
    [note] = [line for line in done.warnings if "<image_soft_token>" in line]
    assert note.startswith(
        "1 added token ('<image_soft_token>') past the 1,024 rows of the embeddings: left out"
    )
    judge = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "<bos><start_of_turn>user\nls   -la<end_of_turn>\n"
    with file_vocabulary(done.path) as vocabulary:
        assert vocabulary.n_vocab == 1024
        assert vocabulary.encode(text) == judge(text, add_special_tokens=False).input_ids


def pad(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 1024, "content": "[PAD]"})


def test_a_pad_token_without_a_row(random_llama_folder: Path, tmp_path: Path) -> None:
    """Added without a new size of the embeddings: left out. As an entry of the vocabulary it is an error."""
    base = Path(shutil.copytree(random_llama_folder, tmp_path / "base"))
    change_json(base / "tokenizer.json", pad)
    change_json(base / "tokenizer_config.json", lambda c: c.update(pad_token="[PAD]"))
    done = convert(base, quant="BF16", out=tmp_path / "x.gguf", threads=1)
    assert any("1 added token ('[PAD]') past the 1,024 rows" in line for line in done.warnings)
    assert not any("for which the model has no row" in line for line in done.warnings)
    change_json(base / "tokenizer.json", lambda t: t["model"]["vocab"].update({"[PAD]": 1024}))
    change_json(base / "tokenizer.json", lambda t: t.update(added_tokens=t["added_tokens"][:-1]))
    with pytest.raises(
        ConversionError, match=r"'\[PAD\]' has id 1024, beyond .* call model.resize_token_emb"
    ):
        convert(base, quant="BF16", out=tmp_path / "y.gguf", threads=1)


def test_an_added_token_that_a_merge_makes_stays_an_error(base: Path, tmp_path: Path) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        text = "".join(tokenizer["model"]["merges"][-1])
        tokenizer["model"]["vocab"][text] = 1024
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 1024, "content": text})

    change_json(base / "tokenizer.json", change)
    with pytest.raises(ConversionError, match=r"has id 1024, beyond config.json's vocab_size 1024"):
        convert(base, quant="BF16", out=tmp_path / "x.gguf", threads=1)
